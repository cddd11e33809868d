//! Runs CUDA kernels on the CPU, to test them where there is no GPU.
//!
//! [`EmulatedGpu`] is a GPU for the CUDA backend of `gdn`: whatever runs on a
//! [`gdn::Backend`] runs on it. [`Compiler`] builds a `.cu` file with g++ and `shim/emu.h`, which gives each
//! CUDA thread a fibre of its own; [`Kernels`] launches what is in it on host
//! memory, its threads in order or in a random order drawn from a seed. What
//! depends on a barrier that is not there then differs from one schedule to
//! another; asynchronous copies may land, and asynchronous products read, as late
//! as a kernel lets them. Compiled with [`Build::sanitize`], every access is checked by
//! AddressSanitizer and UBSan.
//!
//! It shows what a kernel computes, not how a GPU runs it: no timing, no memory
//! order weaker than the program's, no inline PTX. `common.cuh` and `mma.cuh` of
//! `gdn` have a CPU body for every machine operation that the kernels use.
#![allow(unsafe_code)] // Foreign code on raw memory; each block says why it is sound.
#![deny(missing_docs)]

mod compiler;
mod error;
mod launch;
mod memory;
mod runtime;

pub use self::{
    compiler::{Build, Compiler},
    error::{Error, Result},
    launch::{Kernels, Launch},
    memory::Memory,
    runtime::EmulatedGpu,
};
