//! The CPU backend: SIMD chosen at run time, threads over (row, head) tiles.

pub(crate) mod delta;
pub(crate) mod gemm;
pub(crate) mod math;
pub(crate) mod tiles;
pub(crate) mod workspace;

use std::fmt;

use rayon::prelude::*;

use self::workspace::Workspace;
use crate::{
    ErrorKind, Place, Result,
    backend::{Backend, DecodePath, DecodeSpec, Unsupported},
    ops::{
        self, ConvUpdate, Decode, GatedNorm, LayerStep, Prefill, PrefillForm, checks::BatchCheck,
    },
    slots::{CheckedSlots, SlotChecker},
};

/// Runs the operators on the CPU.
///
/// It has every path for every shape and dtype. Intermediates live here and
/// scratch in the threads, so once they have seen the largest batch no call
/// allocates. (A call from a thread outside [`Cpu::install`] queues work for the
/// threads, for which `rayon` allocates once in 63 calls.)
pub struct Cpu {
    exec: Exec,
    workspace: Workspace,
    slots: SlotChecker,
}

impl Cpu {
    /// A backend with as many threads as the machine runs at once.
    ///
    /// # Errors
    /// [`ErrorKind::System`] if the threads can't be started.
    pub fn new() -> Result<Self> {
        Self::with_threads(std::thread::available_parallelism().map_or(1, Into::into))
    }

    /// A backend with `threads` threads; one thread is the caller's own.
    ///
    /// # Errors
    /// [`ErrorKind::Value`] for zero, [`ErrorKind::System`] if the threads
    /// can't be started.
    pub fn with_threads(threads: usize) -> Result<Self> {
        if threads == 0 {
            let expected = "at least 1";
            return Err(ErrorKind::Value { argument: "threads", expected, got: "0".into() }.into());
        }
        Ok(Self {
            exec: Exec::new(threads)?,
            workspace: Workspace::default(),
            slots: SlotChecker::default(),
        })
    }

    /// Another backend on the same threads.
    pub fn share(&self) -> Self {
        Self {
            exec: self.exec.clone(),
            workspace: Workspace::default(),
            slots: SlotChecker::default(),
        }
    }

    /// The number of threads.
    pub fn threads(&self) -> usize {
        self.exec.threads()
    }

    /// The vector instructions in use, as "x86-64-v4 (AVX-512)".
    pub fn simd_level(&self) -> &'static str {
        self.exec.simd_level()
    }

    /// Runs `f` on one of the backend's threads, which saves the hand-over at
    /// each operator inside it.
    pub fn install<R: Send>(&mut self, f: impl FnOnce(&mut Self) -> R + Send) -> R {
        match self.exec.pool.clone() {
            Some(pool) => pool.install(|| f(self)),
            None => f(self),
        }
    }

    /// Calls `f` with every index below `n`, on all threads.
    ///
    /// For work beside the operators, such as a copy to compare them with.
    pub fn for_each(&self, n: usize, f: impl Fn(usize) + Sync) {
        self.exec.for_each(n, f);
    }
}

impl fmt::Debug for Cpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cpu")
            .field("threads", &self.threads())
            .field("simd", &self.simd_level())
            .finish_non_exhaustive()
    }
}

impl Backend for Cpu {
    fn name(&self) -> &'static str {
        "cpu"
    }

    fn supports(&self, _: DecodePath, _: &DecodeSpec<'_>) -> Result<(), Unsupported> {
        Ok(())
    }

    fn conv_update(&mut self, args: ConvUpdate<'_>) -> Result<()> {
        let slots = check(&args, &mut self.slots)?;
        ops::conv::cpu::run(&self.exec, args, slots);
        Ok(())
    }

    fn split_decode(&mut self, args: Decode<'_>) -> Result<()> {
        let slots = check(&args, &mut self.slots)?;
        ops::split::cpu::run(&self.exec, &mut self.workspace.split, args, slots);
        Ok(())
    }

    fn packed_decode(&mut self, args: Decode<'_>) -> Result<()> {
        let slots = check(&args, &mut self.slots)?;
        ops::packed::cpu::run(&self.exec, args, slots);
        Ok(())
    }

    fn gated_norm(&mut self, args: GatedNorm<'_>) -> Result<()> {
        let slots = check(&args, &mut self.slots)?;
        ops::norm::cpu::run(&self.exec, args, slots);
        Ok(())
    }

    fn layer_step(&mut self, path: DecodePath, args: LayerStep<'_>) -> Result<()> {
        let slots = check(&args, &mut self.slots)?;
        if path == DecodePath::Fused {
            ops::fused::cpu::run(&self.exec, args, slots);
        } else {
            ops::fused::cpu::run_chain(&self.exec, &mut self.workspace, path, args, slots);
        }
        Ok(())
    }

    fn prefill(&mut self, form: PrefillForm, args: Prefill<'_>) -> Result<()> {
        let slots = check(&args, &mut self.slots)?;
        self.workspace.offsets.set(args.lengths);
        ops::prefill::cpu::run(&self.exec, &self.workspace.offsets, form, args, slots);
        Ok(())
    }
}

/// Places, shapes, dtypes and slots: `Err` before anything is written.
fn check<'s>(args: &impl BatchCheck, checker: &'s mut SlotChecker) -> Result<CheckedSlots<'s>> {
    args.places(&mut |argument, place| place.expect(argument, Place::Host))?;
    args.check()?;
    match args.slots() {
        (slots, Some(pool)) => checker.check(slots, pool),
        (slots, None) => Ok(checker.signs(slots)),
    }
}

/// The threads and the vector instructions that the kernels run on.
#[derive(Clone)]
pub(crate) struct Exec {
    /// `None` runs on the caller's thread.
    pool: Option<std::sync::Arc<rayon::ThreadPool>>,
    arch: pulp::Arch,
}

impl Exec {
    fn new(threads: usize) -> Result<Self> {
        let pool = match threads {
            1 => None,
            _ => {
                let pool = rayon::ThreadPoolBuilder::new()
                    .num_threads(threads)
                    .thread_name(|index| format!("gdn-cpu-{index}"))
                    .build()
                    .map_err(|error| ErrorKind::System {
                        what: format!("{threads} threads"),
                        reason: error.to_string(),
                    })?;
                Some(pool.into())
            }
        };
        Ok(Self { pool, arch: pulp::Arch::new() })
    }

    pub(crate) fn threads(&self) -> usize {
        self.pool.as_ref().map_or(1, |pool| pool.current_num_threads())
    }

    fn simd_level(&self) -> &'static str {
        match self.arch {
            #[cfg(target_arch = "x86_64")]
            pulp::Arch::V4(_) => "x86-64-v4 (AVX-512)",
            #[cfg(target_arch = "x86_64")]
            pulp::Arch::V3(_) => "x86-64-v3 (AVX2, FMA)",
            #[cfg(target_arch = "aarch64")]
            pulp::Arch::Neon(_) => "NEON",
            _ => "scalar",
        }
    }

    /// Runs `op` compiled for the best vector instructions of this machine.
    #[inline(always)]
    pub(crate) fn simd<Op: pulp::WithSimd>(&self, op: Op) -> Op::Output {
        self.arch.dispatch(op)
    }

    /// Calls `f` with every index below `n`, on all threads. Which thread gets
    /// which index depends on timing; results must not.
    pub(crate) fn for_each(&self, n: usize, f: impl Fn(usize) + Sync) {
        match &self.pool {
            Some(pool) if n > 1 => pool.install(|| (0..n).into_par_iter().for_each(&f)),
            _ => (0..n).for_each(f),
        }
    }
}
