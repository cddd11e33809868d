//! A problem in a GPU's memory, and the launches that run a layer on it.
#![allow(dead_code, unsafe_code, unreachable_pub, clippy::print_stdout)] // A launch trusts the addresses that it is given.

use std::path::Path;

use gdn::{BetaRounding, DType, HeadOrder, PoolOptions, Slice, StatePool, cuda::params::*};
use gdn_check::{Case, Outcome, Problem, Tensor};
use gdn_emu::{Build, Compiler, Error, Launch, Memory};

pub const GDN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../gdn/src");

/// The emulator, or `None` with a line saying why the test is skipped.
pub fn compiler() -> Option<Compiler> {
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("kernels");
    Compiler::new(&Path::new(GDN).join("cuda"), &out).map_err(|why| println!("skipped: {why}")).ok()
}

/// Which kernels run the layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    Split,
    Packed,
    Fused,
    Prefill,
}

/// The tile of a kernel.
#[derive(Clone, Copy, Debug)]
pub enum Tile {
    Direct { warps: u32, rows: u32, cluster: u32 },
    Stream { warps: u32, rows: u32, stages: u32, split: u32, ctas: u32 },
    Any,
}

/// How to run: which kernels, in which tile and order.
#[derive(Clone, Debug)]
pub struct How {
    pub path: Kernel,
    pub tile: Tile,
    pub i64_slots: bool,
    pub schedule: u32,
    pub build: Build,
}

/// What a run left behind, to the bit.
#[derive(Debug, PartialEq)]
pub struct Left {
    pub out: Vec<Vec<u8>>,
    state: Vec<u8>,
    ring: Vec<u8>,
    phase: Vec<u32>,
    /// The sticky word for a bad slot.
    pub error: u64,
}

/// Phases start just below where u32 wraps around, at a multiple of W = 4.
const PHASE: u32 = u32::MAX - 3;

fn type_name(dtype: DType) -> String {
    dtype.to_string()
}

fn bytes(slice: Slice<'_>) -> Memory {
    match slice {
        Slice::F32(s) => Memory::of(s),
        Slice::BF16(s) => Memory::of(s),
        Slice::F16(s) => Memory::of(s),
    }
}

fn narrow(values: &[f64]) -> Memory {
    Memory::of(&values.iter().map(|&x| x as f32).collect::<Vec<_>>())
}

/// Elements of any dtype, widened.
fn widen(dtype: DType, bytes: &[u8]) -> Vec<f32> {
    let halves = || bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
    match dtype {
        DType::F32 => {
            bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
        }
        DType::BF16 => halves().map(|b| gdn::bf16::from_bits(b).to_f32()).collect(),
        DType::F16 => halves().map(|b| gdn::f16::from_bits(b).to_f32()).collect(),
    }
}

fn shape(grid: [usize; 3], block: u32, shared: usize, how: &How) -> Launch {
    let grid = grid.map(|n| n as u32);
    Launch { grid, block, cluster: 1, shared: shared as u32, schedule: how.schedule }
}

/// All memory of one layer.
struct World<'p> {
    problem: &'p Problem,
    how: &'p How,
    compiler: &'p Compiler,
    slots: Memory,
    error: Memory,
    state: Memory,
    ring: Memory,
    phase: Memory,
    conv_weight: Memory,
    conv_bias: Memory,
    neg_exp_a: Memory,
    dt_bias: Memory,
    norm_weight: Memory,
}

/// The inputs of some rows, in a GPU's memory.
struct Input {
    rows: usize,
    x: Memory,
    a: Memory,
    b: Memory,
    z: Memory,
    stride: [i64; 3],
}

/// Runs every step of `problem` through the whole layer.
pub fn run(
    compiler: &Compiler,
    problem: &Problem,
    slots: &[i32],
    how: &How,
) -> Result<Left, Error> {
    let Problem { case, layer, .. } = problem;
    let oracle = &layer.oracle;
    let pool = problem.pool();
    let (state, ring) = pool.buffers();
    let (channels, width) = (oracle.channels(), oracle.conv_width);
    let taps =
        (0..width * channels).map(|i| oracle.conv_weight[i % channels * width + i / channels]);
    let neg_exp_a: Vec<f64> = oracle.a_log.iter().map(|a| -a.exp()).collect();
    let wide_slots: Vec<i64> = slots.iter().map(|&slot| slot.into()).collect();
    let mut world = World {
        problem,
        how,
        compiler,
        slots: if how.i64_slots { Memory::of(&wide_slots) } else { Memory::of(slots) },
        error: Memory::of(&[0u64]),
        state: bytes(state),
        ring: bytes(ring),
        phase: Memory::of(&vec![PHASE; case.pool * case.spec.v_heads()]),
        conv_weight: narrow(&taps.collect::<Vec<_>>()),
        conv_bias: narrow(&oracle.conv_bias),
        neg_exp_a: narrow(&neg_exp_a),
        dt_bias: narrow(&oracle.dt_bias),
        norm_weight: narrow(&oracle.norm_weight),
    };
    let out = match how.path {
        Kernel::Prefill => world.prefill()?,
        _ => (0..case.steps).map(|step| world.step(step)).collect::<Result<_, _>>()?,
    };
    Ok(Left {
        out,
        state: world.state.bytes().to_vec(),
        ring: world.ring.bytes().to_vec(),
        phase: world.phase.read(),
        error: world.error.read::<u64>()[0],
    })
}

impl Left {
    /// The same as gdn-check's outcome, which the oracle judges.
    pub fn outcome(&self, problem: &Problem) -> Outcome {
        let case = &problem.case;
        let spec = &case.spec;
        let options = PoolOptions {
            recurrent: case.recurrent,
            conv: case.activations,
            ..PoolOptions::new(case.pool)
        };
        let mut pool = StatePool::new(spec, &options).unwrap();
        let state = widen(case.recurrent, &self.state);
        let ring = widen(case.activations, &self.ring);
        for slot in 0..case.pool {
            let recurrent = &state[slot * (spec.state_len() + case.slot_gap)..][..spec.state_len()];
            let ring = &ring[slot * (spec.conv_len() + case.slot_gap)..][..spec.conv_len()];
            let phase = self.phase[slot * spec.v_heads()] as usize;
            let taps = (1..spec.conv_width()).flat_map(|tap| {
                let entry = (phase + tap) % spec.conv_width();
                &ring[entry * spec.channels()..][..spec.channels()]
            });
            let conv: Vec<f32> = taps.copied().collect();
            pool.set(slot as i32, recurrent, &conv).unwrap();
        }
        let tensor = |out: &Vec<u8>| {
            Tensor::new(case.activations, &widen(case.activations, out), spec.value_len(), 0)
        };
        Outcome { out: self.out.iter().map(tensor).collect(), pool }
    }

    /// Panics unless slots that no row has, gaps and phases are as they should be.
    pub fn check_the_rest(&self, problem: &Problem, slots: &[i32]) {
        let case = &problem.case;
        let pool = problem.pool();
        let (state, ring) = pool.buffers();
        let same = |now: &[u8], before: Memory, len: usize, size: usize| {
            let pitch = (len + case.slot_gap) * size;
            let pairs = now.chunks(pitch).zip(before.bytes().chunks(pitch));
            for (slot, (now, before)) in pairs.enumerate() {
                let from = if slots.contains(&(slot as i32)) { len * size } else { 0 };
                assert!(
                    now[from..] == before[from..],
                    "slot {slot} or the gap behind it was written"
                );
            }
        };
        same(&self.state, bytes(state), case.spec.state_len(), case.recurrent.size());
        same(&self.ring, bytes(ring), case.spec.conv_len(), case.activations.size());
        for (slot, phases) in self.phase.chunks(case.spec.v_heads()).enumerate() {
            let steps = if slots.contains(&(slot as i32)) { case.steps as u32 } else { 0 };
            assert!(
                phases.iter().all(|&p| p == PHASE.wrapping_add(steps)),
                "phases of slot {slot}"
            );
        }
    }
}

impl World<'_> {
    fn case(&self) -> &Case {
        &self.problem.case
    }

    fn launch<P: gdn_emu::Pod>(
        &self,
        operator: &str,
        entry: &str,
        mut launch: Launch,
        params: &P,
    ) -> Result<(), Error> {
        let case = self.case();
        let mut build = self.how.build.clone().define("ACT", type_name(case.activations));
        // A kernel that knows no state is not built for each.
        if !matches!(operator, "conv" | "norm") {
            build = build.define("STATE", type_name(case.recurrent));
        }
        let dims = match self.how.tile {
            Tile::Any => [0, 0],
            _ => [case.spec.head_k(), case.spec.head_v()],
        };
        build = build.define("K_DIM", dims[0]).define("V_DIM", dims[1]);
        match self.how.tile {
            _ if matches!(operator, "conv" | "norm") => {}
            Tile::Direct { warps, rows, cluster } => {
                build =
                    build.define("WARPS", warps).define("ROWS", rows).define("CLUSTER", cluster);
                build = build.define("WANT", 1);
                if operator == "fused" {
                    launch.cluster = cluster;
                }
            }
            Tile::Stream { warps, rows, stages, split, .. } => {
                build = build.define("WARPS", warps).define("ROWS", rows).define("STAGES", stages);
                build = build.define("SPLIT", split).define("WANT", 2);
            }
            Tile::Any => build = build.define("WANT", 4),
        }
        let source = format!("{GDN}/ops/{operator}/{operator}.cu");
        let kernels = self.compiler.kernels(Path::new(&source), &build)?;
        // SAFETY: the params are those of this entry, their addresses those of `self`,
        // of `Input`s and of outputs that outlive the call, sized by the case.
        unsafe { kernels.launch(entry, launch, params) }
    }

    fn slots(&self, rows: usize) -> Slots {
        let spec = &self.case().spec;
        let flag = |set: bool, bit: u32| if set { bit } else { 0 };
        Slots {
            slots: self.slots.address(),
            error: self.error.address(),
            n_slots: self.case().pool as i64,
            b: rows as u32,
            flags: flag(self.how.i64_slots, SLOTS_I64)
                | flag(spec.head_order() == HeadOrder::Tiled, TILED)
                | flag(spec.qk_l2norm(), L2NORM)
                | flag(spec.beta_rounding() == BetaRounding::Activation, ROUND_BETA),
        }
    }

    fn ring(&self) -> Ring {
        Ring {
            ring: self.ring.address(),
            phase: self.phase.address(),
            pitch: (self.case().spec.conv_len() + self.case().slot_gap) as i64,
            weight: self.conv_weight.address(),
            bias: self.conv_bias.address(),
        }
    }

    fn dims(&self) -> [u32; 4] {
        let spec = &self.case().spec;
        [spec.q_heads(), spec.v_heads(), spec.head_k(), spec.head_v()].map(|n| n as u32)
    }

    fn packed(
        &self,
        rows: usize,
        input: &Input,
        x: &Memory,
        x_stride: i64,
        out: &Memory,
    ) -> Packed {
        let [h, hv, kd, vd] = self.dims();
        Packed {
            s: self.slots(rows),
            x: x.address(),
            x_stride,
            a: input.a.address(),
            bb: input.b.address(),
            a_stride: input.stride[1],
            b_stride: input.stride[1],
            neg_exp_a: self.neg_exp_a.address(),
            dt_bias: self.dt_bias.address(),
            state: self.state.address(),
            state_pitch: (self.case().spec.state_len() + self.case().slot_gap) as i64,
            out: out.address(),
            h,
            hv,
            kd,
            vd,
            scale: self.case().spec.scale(),
            pad: 0,
        }
    }

    fn input(&self, tensors: [&Tensor; 4]) -> Input {
        let [x, a, b, z] = tensors.map(|tensor| bytes(tensor.slice()));
        let [qkv, gate, _, value] = tensors.map(|tensor| tensor.view().stride() as i64);
        Input { rows: tensors[0].view().rows(), x, a, b, z, stride: [qkv, gate, value] }
    }

    /// Elements of NaN.
    fn poisoned(&self, elements: usize) -> Memory {
        Memory::new(&vec![0xff; elements * self.case().activations.size()])
    }

    fn conv_params(&self, rows: usize, input: &Input, y: &Memory) -> Conv {
        let [h, hv, k, v] = self.dims();
        let (x, y) = (input.x.address(), y.address());
        let y_stride = self.case().spec.channels() as i64;
        Conv {
            s: self.slots(rows),
            r: self.ring(),
            x,
            y,
            x_stride: input.stride[0],
            y_stride,
            h,
            hv,
            k,
            v,
        }
    }

    fn any(&self) -> &'static str {
        if matches!(self.how.tile, Tile::Any) { "_any" } else { "" }
    }

    fn norm(&self, input: &Input, o: &Memory) -> Result<(), Error> {
        let [_, hv, _, v] = self.dims();
        let heads = input.rows * hv as usize;
        let params = Norm {
            o: o.address(),
            z: input.z.address(),
            out: o.address(),
            z_stride: input.stride[2],
            weight: self.norm_weight.address(),
            b: input.rows as u32,
            hv,
            v,
            eps: self.case().spec.norm_eps(),
        };
        self.launch("norm", "gdn_norm", shape([heads.div_ceil(4), 1, 1], 128, 0, self.how), &params)
    }

    /// Where the recurrence runs: grid over (y, z), block, shared memory, entry.
    fn recurrence(&self, operator: &str, rows: usize) -> (Launch, String) {
        let spec = &self.case().spec;
        let (hv, k, v) = (spec.v_heads(), spec.head_k(), spec.head_v());
        let state = self.case().recurrent.size();
        // Rows over both y and z.
        let (y, z) = if rows > 2 { (2, rows.div_ceil(2)) } else { (rows, 1) };
        let fused = operator == "fused";
        let (launch, suffix) = match self.how.tile {
            Tile::Direct { warps, cluster, .. } if fused => {
                let shared = (2 * k + 2 * v / cluster as usize + v) * 4 + 16;
                (shape([hv * cluster as usize, y, z], warps * 32, shared, self.how), "")
            }
            Tile::Direct { warps, rows, .. } => {
                let tiles = v / (warps * rows) as usize;
                (shape([hv * tiles, y, z], warps * 32, 0, self.how), "")
            }
            Tile::Stream { warps, rows, stages, ctas, .. } => {
                let piece = stages as usize * (warps * rows) as usize * k * state;
                let stages = stages as usize;
                let (prepared, barriers, preparing) = match fused {
                    true => (
                        2 * ((2 * k + 2 * v) * 4 + 32) + 8 * v,
                        2 * stages + 5,
                        (2 * k + 2 * v).div_ceil(128),
                    ),
                    false => (2 * ((2 * k + v) * 4 + 16), 2 * stages + 4, 1),
                };
                let shared = (piece + prepared + 8 * barriers).next_multiple_of(128);
                let block = (warps + preparing as u32 + 1) * 32;
                (shape([ctas as usize, 1, 1], block, shared, self.how), "_stream")
            }
            Tile::Any => {
                let floats = if fused { 2 * k + v } else { 2 * k };
                (shape([hv, y, z], 256, floats * 4, self.how), "_any")
            }
        };
        (launch, format!("gdn_{operator}{suffix}"))
    }

    fn step(&mut self, step: usize) -> Result<Vec<u8>, Error> {
        let inputs = &self.problem.steps[step];
        let input = self.input([&inputs.mixed_qkv, &inputs.a, &inputs.b, &inputs.z]);
        let (rows, spec) = (input.rows, &self.case().spec);
        let (h, hv, k, v) = (spec.q_heads(), spec.v_heads(), spec.head_k(), spec.head_v());
        let out = self.poisoned(rows * spec.value_len());
        if self.how.path == Kernel::Fused {
            let params = Fused {
                p: self.packed(rows, &input, &input.x, input.stride[0], &out),
                r: self.ring(),
                z: input.z.address(),
                z_stride: input.stride[2],
                norm_weight: self.norm_weight.address(),
                eps: spec.norm_eps(),
                pad: 0,
            };
            let (launch, entry) = self.recurrence("fused", rows);
            self.launch("fused", &entry, launch, &params)?;
            return Ok(out.bytes().to_vec());
        }
        let (how, y_stride) = (self.how, spec.channels() as i64);
        let y = self.poisoned(rows * spec.channels());
        let conv = self.conv_params(rows, &input, &y);
        self.launch(
            "conv",
            &format!("gdn_conv{}", self.any()),
            shape([hv, rows, 1], 128, 0, how),
            &conv,
        )?;
        let packed = self.packed(rows, &input, &y, y_stride, &out);
        if self.how.path == Kernel::Packed {
            let (launch, entry) = self.recurrence("packed", rows);
            self.launch("packed", &entry, launch, &packed)?;
        } else {
            let (q, key) = (self.poisoned(rows * h * k), self.poisoned(rows * h * k));
            let value = self.poisoned(rows * hv * v);
            let gate = || Memory::of(&vec![f32::NAN; rows * hv]);
            let (g, beta) = (gate(), gate());
            let Packed { s, a, bb, a_stride, b_stride, neg_exp_a, dt_bias, .. } = packed;
            let (g_at, beta_at) = (g.address(), beta.address());
            let gates = Gates {
                a,
                bb,
                a_stride,
                b_stride,
                neg_exp_a,
                dt_bias,
                g: g_at,
                beta: beta_at,
                b: rows as u32,
                hv: hv as u32,
                flags: s.flags,
                pad: 0,
            };
            let grid = [(rows * hv).div_ceil(256), 1, 1];
            self.launch("split", "gdn_gates", shape(grid, 256, 0, how), &gates)?;
            let (q_at, k_at, v_at) = (q.address(), key.address(), value.address());
            let copy = SplitCopy {
                x: y.address(),
                q: q_at,
                k: k_at,
                v: v_at,
                x_stride: y_stride,
                b: rows as u32,
                qk: (h * k) as u32,
                vv: (hv * v) as u32,
                pad: 0,
            };
            self.launch("split", "gdn_split_copy", shape([2, rows, 1], 256, 0, how), &copy)?;
            let Packed { state, state_pitch, out, h, hv, kd, vd, scale, .. } = packed;
            let split = Split {
                s,
                q: q_at,
                k: k_at,
                v: v_at,
                g: g_at,
                beta: beta_at,
                state,
                state_pitch,
                out,
                h,
                hv,
                kd,
                vd,
                scale,
                pad: 0,
            };
            let (launch, entry) = self.recurrence("split", rows);
            self.launch("split", &entry, launch, &split)?;
        }
        self.norm(&input, &out)?;
        Ok(out.bytes().to_vec())
    }

    /// All steps of each row as one sequence; returns what each step made.
    fn prefill(&mut self) -> Result<Vec<Vec<u8>>, Error> {
        let case = self.case();
        let (rows, steps, spec, how) = (case.rows, case.steps, &case.spec, self.how);
        let gather = |tensor: fn(&gdn_check::Inputs) -> &Tensor| {
            let tokens = (0..rows * steps).map(|token| (token / steps, token % steps));
            let values = tokens.flat_map(|(row, step)| tensor(&self.problem.steps[step]).row(row));
            let values: Vec<f32> = values.map(|x| x as f32).collect();
            let cols = tensor(&self.problem.steps[0]).view().cols();
            Tensor::new(case.activations, &values, cols, case.row_gap)
        };
        let (x, a) = (gather(|i| &i.mixed_qkv), gather(|i| &i.a));
        let (b, z) = (gather(|i| &i.b), gather(|i| &i.z));
        let input = self.input([&x, &a, &b, &z]);
        let tokens = rows * steps;
        let starts: Vec<i32> = (0..=rows).map(|row| (row * steps) as i32).collect();
        let owners: Vec<i32> = (0..tokens).map(|token| (token / steps) as i32).collect();
        let (cu, token_seq) = (Memory::of(&starts), Memory::of(&owners));
        let (y, out) =
            (self.poisoned(tokens * spec.channels()), self.poisoned(tokens * spec.value_len()));
        let conv = PrefillConv {
            c: self.conv_params(rows, &input, &y),
            cu: cu.address(),
            fresh: 0,
            token_seq: token_seq.address(),
            tokens: tokens as u32,
            pad: 0,
        };
        let grid = [spec.channels().div_ceil(256), tokens, 1];
        self.launch("prefill", "gdn_prefill_conv", shape(grid, 256, 0, how), &conv)?;
        let grid = [spec.v_heads(), rows, 1];
        self.launch("prefill", "gdn_prefill_ring", shape(grid, 128, 0, how), &conv)?;
        let p = self.packed(rows, &input, &y, spec.channels() as i64, &out);
        let prefill = Prefill { p, cu: cu.address(), fresh: 0 };
        let (launch, entry) = match how.tile {
            Tile::Any => {
                let grid = [spec.value_len(), rows, 1];
                (shape(grid, 32, 4 * spec.head_k(), how), "gdn_prefill_any".to_owned())
            }
            _ => self.recurrence("prefill", rows),
        };
        self.launch("prefill", &entry, launch, &prefill)?;
        self.norm(&input, &out)?;
        let row_bytes = spec.value_len() * case.activations.size();
        let of_step = |step: usize| {
            let tokens = out.bytes().chunks_exact(row_bytes).skip(step).step_by(steps);
            tokens.flatten().copied().collect()
        };
        Ok((0..steps).map(of_step).collect())
    }
}
