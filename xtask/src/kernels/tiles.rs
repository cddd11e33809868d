//! What is compiled: the tiles of `crates/gdn/src/cuda/tiles.md`, at K = V = 128.

/// A GPU family.
#[derive(Clone, Copy)]
pub(crate) struct Gpu {
    pub(crate) arch: &'static str,
    /// The shared memory that a CTA may have, in bytes.
    pub(crate) shared_limit: u32,
    /// Its place in the budget.
    pub(crate) order: usize,
}

const GPUS: [(&str, u32); 6] = [
    ("sm_80", 163 << 10),
    ("sm_86", 99 << 10),
    ("sm_89", 99 << 10),
    ("sm_90a", 227 << 10),
    ("sm_100a", 227 << 10),
    ("sm_120", 99 << 10),
];

/// The head dims, K and V.
const DIM: u32 = 128;

#[derive(Clone, Copy, PartialEq)]
enum Form {
    Direct,
    Stream,
}

/// How a kernel lies on the GPU; see the macros in `cuda/README.md`.
#[derive(Clone, Copy, PartialEq)]
struct Tile {
    form: Form,
    warps: u32,
    rows: u32,
    stages: u32,
    split: u32,
    cluster: u32,
    hint: u32,
}

const fn direct(warps: u32, rows: u32, cluster: u32, hint: u32) -> Tile {
    Tile { form: Form::Direct, warps, rows, stages: 4, split: 1, cluster, hint }
}

const fn stream(warps: u32, rows: u32, stages: u32, split: u32, hint: u32) -> Tile {
    Tile { form: Form::Stream, warps, rows, stages, split, cluster: 1, hint }
}

/// One run of the compiler.
pub(crate) struct Job {
    pub(crate) operator: &'static str,
    pub(crate) gpu: Gpu,
    act: &'static str,
    state: &'static str,
    tile: Tile,
    /// Whether the kernels for any dims are compiled along.
    any: bool,
}

/// Every GPU with bf16 activations, and the one that was tuned for with f32 and f16 too.
pub(crate) fn jobs() -> Vec<Job> {
    let mut jobs = Vec::new();
    for (order, (arch, shared_limit)) in GPUS.into_iter().enumerate() {
        let gpu = Gpu { arch, shared_limit, order };
        let mut types = vec![("bf16", "f32"), ("bf16", "bf16"), ("bf16", "f16")];
        if arch == "sm_90a" {
            types.extend([("f32", "f32"), ("f32", "bf16"), ("f16", "f16")]);
        }
        for (act, state) in types {
            for operator in ["conv", "norm", "split", "packed", "fused", "prefill"] {
                for (i, tile) in tiles(operator, gpu, act, state).into_iter().enumerate() {
                    jobs.push(Job { operator, gpu, act, state, tile, any: i == 0 });
                }
            }
        }
    }
    jobs
}

fn tiles(operator: &str, gpu: Gpu, act: &str, state: &str) -> Vec<Tile> {
    // Bulk copies, mbarriers and clusters came with sm_90.
    let before_sm90 = gpu.order < 3;
    let f32_state = state == "f32";
    match operator {
        "packed" | "split" if before_sm90 => vec![direct(4, 8, 1, 1)],
        "fused" if before_sm90 => vec![direct(8, 16, 1, 1)],
        "packed" if f32_state => {
            vec![direct(1, 8, 1, 2), direct(1, 8, 1, 1), stream(2, 8, 8, 8, 2)]
        }
        "split" if f32_state => vec![direct(1, 8, 1, 2), direct(1, 8, 1, 1)],
        "packed" | "split" => {
            vec![direct(1, 4, 1, 2), direct(1, 8, 1, 1), direct(4, 8, 1, 1), direct(4, 8, 1, 2)]
        }
        "fused" => {
            let mut tiles = match f32_state {
                true => vec![direct(4, 8, 4, 2), direct(4, 16, 2, 1), direct(4, 16, 2, 2)],
                false => vec![direct(4, 32, 1, 2), direct(4, 32, 1, 1)],
            };
            if !f32_state && act == "f32" {
                tiles.push(direct(4, 16, 2, 2));
            }
            // No stream of the fused step fits the shared memory of sm_120.
            if gpu.arch != "sm_120" {
                tiles.push(if f32_state { stream(8, 4, 12, 1, 1) } else { stream(8, 8, 6, 1, 1) });
            }
            tiles
        }
        // One kernel whatever the state, so compiled with one.
        "conv" | "norm" if !(f32_state || act == "f16") => vec![],
        _ => vec![direct(4, 8, 1, 1)],
    }
}

impl Job {
    pub(crate) fn defines(&self) -> impl Iterator<Item = (&'static str, String)> {
        let Tile { form, warps, rows, stages, split, cluster, hint } = self.tile;
        let want = if form == Form::Stream { 2 } else { 1 } + if self.any { 4 } else { 0 };
        let types = [("ACT", self.act.to_owned()), ("STATE", self.state.to_owned())];
        let numbers = [
            ("K_DIM", DIM),
            ("V_DIM", DIM),
            ("WARPS", warps),
            ("ROWS", rows),
            ("STAGES", stages),
            ("SPLIT", split),
            ("CLUSTER", cluster),
            ("HINT", hint),
            ("WANT", want),
        ];
        types.into_iter().chain(numbers.map(|(name, value)| (name, value.to_string())))
    }

    /// A name for messages and files.
    pub(crate) fn name(&self) -> String {
        let Self { operator, gpu, act, state, .. } = self;
        format!("{operator}-{}-{act}-{state}-{}", gpu.arch, self.tile_label().replace(' ', "-"))
    }

    /// The types that an entry point depends on, and its tile if it has one.
    pub(crate) fn labels(&self, entry: &str) -> (String, String) {
        let stateless = [
            "gdn_conv",
            "gdn_norm",
            "gdn_gates",
            "gdn_split_copy",
            "gdn_prefill_conv",
            "gdn_prefill_ring",
        ];
        let types = match stateless.iter().any(|name| entry.starts_with(name)) {
            true => self.act.to_owned(),
            false => format!("{}/{}", self.act, self.state),
        };
        let tiled = ["gdn_packed", "gdn_split", "gdn_fused", "gdn_prefill"];
        let tiled = tiled.contains(&entry) || entry.ends_with("_stream");
        (types, if tiled { self.tile_label() } else { "-".to_owned() })
    }

    fn tile_label(&self) -> String {
        let Tile { form, warps, rows, stages, split, cluster, hint } = self.tile;
        match form {
            Form::Direct => format!("w{warps} r{rows} c{cluster} h{hint}"),
            Form::Stream => format!("w{warps} r{rows} s{stages} p{split} h{hint}"),
        }
    }

    /// The dynamic shared memory that an entry point is launched with, in bytes,
    /// as in the table of `cuda/README.md`.
    pub(crate) fn dynamic_shared(&self, entry: &str) -> u32 {
        let Tile { warps, rows, stages, cluster, .. } = self.tile;
        let piece = warps * rows * DIM * if self.state == "f32" { 4 } else { 2 };
        match entry {
            "gdn_packed_stream" => (stages * piece + 2 * (3 * DIM * 4 + 16) + 8 * (2 * stages + 4))
                .next_multiple_of(128),
            "gdn_fused_stream" => {
                let prepared = 2 * (4 * DIM * 4 + 32) + 8 * DIM;
                (stages * piece + prepared + 8 * (2 * stages + 5)).next_multiple_of(128)
            }
            "gdn_fused" => (2 * DIM + 2 * DIM / cluster + DIM) * 4 + 16,
            "gdn_packed_any" | "gdn_split_any" => 8 * DIM,
            "gdn_fused_any" => 3 * DIM * 4,
            "gdn_prefill_any" => 4 * DIM,
            _ => 0,
        }
    }
}
