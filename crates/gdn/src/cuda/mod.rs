//! What the CUDA kernels take. The library does not launch them yet; their
//! tests do, on the CPU.

pub mod params;
