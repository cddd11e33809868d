//! What is compiled of `gdn`: every tile that the backend's table can return, for every
//! GPU family.

use std::path::{Path, PathBuf};

use gdn::{
    DType::{self, BF16, F16, F32},
    cuda::{
        kernel::{Kernel, Source},
        tiles::{ANY, Gpu, Tile, Tiled, Want, direct, prepare_shared},
    },
};

use super::Unit;

/// A GPU family.
pub(crate) struct Family {
    /// The compiler's name for it.
    pub(crate) arch: &'static str,
    pub(crate) gpu: Gpu,
    /// Its place in the budget.
    pub(crate) order: usize,
}

/// With the fastest memory, for which the table has all of its tiles: the
/// compiler's name, compute capability, multiprocessors of the largest
/// member, and the shared memory that a CTA may have.
const FAMILIES: [(&str, u32, u32, u32); 6] = [
    ("sm_80", 80, 108, 163 << 10),
    ("sm_86", 86, 84, 99 << 10),
    ("sm_89", 89, 142, 99 << 10),
    ("sm_90a", 90, 132, 227 << 10),
    ("sm_100a", 100, 148, 227 << 10),
    ("sm_120", 120, 188, 99 << 10),
];

/// Every GPU family.
pub(crate) fn families() -> Vec<Family> {
    let family = |(order, (arch, capability, multiprocessors, shared_bytes))| {
        let name = String::from(arch);
        let gpu = Gpu { name, capability, multiprocessors, shared_bytes, memory_gb_s: u32::MAX };
        Family { arch, gpu, order }
    };
    FAMILIES.into_iter().enumerate().map(family).collect()
}

/// One run of the compiler.
pub(crate) struct Job<'f> {
    pub(crate) family: &'f Family,
    pub(crate) kernel: Kernel,
    /// Whether the kernels for any dims are compiled along.
    any: bool,
}

/// Every family with bf16 activations, and the one that was tuned for with f32
/// and f16 too.
pub(crate) fn jobs(families: &[Family]) -> Vec<Job<'_>> {
    let mut jobs = Vec::new();
    for family in families {
        let mut shapes = vec![(BF16, F32, 128), (BF16, BF16, 128), (BF16, F16, 128)];
        shapes.extend([(BF16, F32, 64), (BF16, F32, 256)]);
        if family.arch == "sm_90a" {
            shapes.extend([(F32, F32, 128), (F32, BF16, 128), (F16, F16, 128)]);
        }
        for (activations, recurrent, dim) in shapes {
            let first = dim == 128;
            for (source, operator) in [
                (Source::Split, Tiled::Split),
                (Source::Packed, Tiled::Packed),
                (Source::Fused, Tiled::Fused),
                (Source::Prefill, Tiled::Prefill),
                (Source::Chunked, Tiled::Chunked),
            ] {
                let want = Want { operator, head_k: dim, head_v: dim, activations, recurrent };
                let mut tiles: Vec<_> =
                    want.tiles(&family.gpu).into_iter().map(|tile| (tile, true)).collect();
                // What unaligned memory takes, in the models' own dtypes.
                let unaligned = matches!(operator, Tiled::Split | Tiled::Packed | Tiled::Fused);
                if first && recurrent == F32 && unaligned {
                    tiles.push((want.tile(&family.gpu, usize::MAX >> 8, false), false));
                }
                if tiles.is_empty() && first && operator != Tiled::Chunked {
                    tiles.push((ANY, true));
                }
                for (i, (tile, aligned)) in tiles.into_iter().enumerate() {
                    let kernel = kernel(source, activations, recurrent, dim, tile, aligned);
                    jobs.push(Job { family, kernel, any: first && i == 0 });
                }
            }
            // One kernel whatever the state, so compiled with one.
            if first && (recurrent == F32 || activations == F16) {
                for source in [Source::Conv, Source::Norm] {
                    let tile = direct(4, 8, 1, 1);
                    let kernel = kernel(source, activations, recurrent, dim, tile, true);
                    jobs.push(Job { family, kernel, any: true });
                }
            }
        }
    }
    jobs
}

fn kernel(
    source: Source,
    activations: DType,
    recurrent: DType,
    dim: usize,
    tile: Tile,
    aligned: bool,
) -> Kernel {
    let (head_k, head_v) = (dim as u32, dim as u32);
    // The compiler makes every entry point of the source.
    let (entry, conv_width) = ("", 4);
    Kernel { source, entry, activations, recurrent, head_k, head_v, conv_width, tile, aligned }
}

impl Unit for Job<'_> {
    fn family(&self) -> &Family {
        self.family
    }

    fn source(&self, root: &Path) -> (PathBuf, PathBuf) {
        let source = root.join("crates/gdn/src/ops").join(self.kernel.source.path());
        (source, root.join("crates/gdn/src/cuda"))
    }

    fn defines(&self) -> Vec<(&'static str, String)> {
        let mut defines = self.kernel.defines();
        if self.any {
            let both = |(name, value): &mut (&str, String)| {
                if *name == "WANT" {
                    *value = (value.parse::<u32>().expect("a number") | 4).to_string();
                }
            };
            defines.iter_mut().for_each(both);
        }
        defines
    }

    fn name(&self) -> String {
        let Kernel { source, activations, recurrent, head_k, .. } = self.kernel;
        let (arch, tile) = (self.family.arch, self.tile_label());
        let name = format!("{}-{arch}-{activations}-{recurrent}-{head_k}-{tile}", source.name());
        name.replace([' ', '/'], "-")
    }

    fn labels(&self, entry: &str) -> (String, String) {
        let stateless = [
            "gdn_conv",
            "gdn_norm",
            "gdn_gates",
            "gdn_split_copy",
            "gdn_prefill_conv",
            "gdn_prefill_ring",
            "gdn_chunk_conv",
            "gdn_chunk_prepare",
        ];
        let Kernel { activations, recurrent, .. } = self.kernel;
        let types = match stateless.iter().any(|name| entry.starts_with(name)) {
            true => activations.to_string(),
            false => format!("{activations}/{recurrent}"),
        };
        let tiled = ["gdn_packed", "gdn_split", "gdn_fused", "gdn_prefill", "gdn_chunk_state"];
        let tiled = tiled.contains(&entry) || entry.ends_with("_stream");
        (types, if tiled { self.tile_label() } else { "-".to_owned() })
    }

    fn dynamic_shared(&self, entry: &str) -> Option<u32> {
        let operator = match self.kernel.source {
            Source::Split => Tiled::Split,
            Source::Packed => Tiled::Packed,
            Source::Fused => Tiled::Fused,
            Source::Prefill => Tiled::Prefill,
            Source::Chunked => Tiled::Chunked,
            Source::Conv | Source::Norm => return Some(0),
        };
        let Kernel { head_k, head_v, activations, recurrent, .. } = self.kernel;
        let tile = match entry {
            "gdn_chunk_prepare" => return Some(prepare_shared(head_k as usize, activations) as u32),
            _ if entry.ends_with("_any") => ANY,
            "gdn_packed" | "gdn_split" | "gdn_fused" | "gdn_prefill" | "gdn_chunk_state" => {
                self.kernel.tile
            }
            _ if entry.ends_with("_stream") => self.kernel.tile,
            _ => return Some(0),
        };
        let (head_k, head_v) = (head_k as usize, head_v as usize);
        let want = Want { operator, head_k, head_v, activations, recurrent };
        Some(tile.shared(&want) as u32)
    }
}

impl Job<'_> {
    fn tile_label(&self) -> String {
        let Kernel { tile, head_k, aligned, .. } = self.kernel;
        let dims = if head_k == 128 { String::new() } else { format!(" K=V={head_k}") };
        let aligned = if aligned { "" } else { " unaligned" };
        // How many CTAs there are does not change the kernel.
        let tile = tile.to_string();
        let words = tile.split(' ').filter(|word| !word.starts_with('/'));
        format!("{}{dims}{aligned}", words.collect::<Vec<_>>().join(" "))
    }
}
