//! A thin CUDA runtime for inference kernels, over the raw bindings of `cudarc`.
//!
//! A machine without CUDA is an ordinary machine here: the driver and the kernel compiler are
//! looked for at run time, and their absence is an [`Error`] that says what to install. The crate
//! prints nothing and never exits the process.
//!
//! The types, in the order in which a program meets them:
//!
//! * [`Driver`] proves that the CUDA driver is loaded, and lists the GPUs as [`DeviceInfo`].
//! * [`Device`] is one opened GPU; [`Stream`] is a queue of work on it, [`Event`] a point in it.
//! * [`Arena`] is one block of device memory, taken once; [`DeviceBuffer`] is a typed part of it,
//!   and [`PinnedBuffer`] is host memory that the GPU copies to and from on its own.
//! * [`KernelCache`] turns a [`KernelSource`] into a [`Function`]: compiled once per machine, kept
//!   on disk.
//! * [`Function::launch`] enqueues it with a [`LaunchConfig`] and one plain struct of parameters.
//! * [`Stream::capture`] records a whole step as a [`Graph`]; a [`GraphExec`] replays it.
//!
//! After warm-up neither a launch nor a replay allocates, on the host or on the device.
//!
//! ```
//! use gdn_cuda::{Arena, Device, Driver, ErrorKind, Stream};
//!
//! # fn main() -> Result<(), gdn_cuda::Error> {
//! match Driver::load() {
//!     Err(e) if e.kind() == ErrorKind::NoDriver => { /* take the CPU path */ }
//!     Err(e) => return Err(e),
//!     Ok(driver) if driver.device_count()? == 0 => { /* likewise */ }
//!     Ok(_) => {
//!         let device = Device::open(0)?;
//!         let stream = Stream::new(&device)?;
//!         let arena = Arena::new(&device, 1 << 20)?;
//!         let mut x = arena.alloc::<f32>(256)?;
//!         stream.upload(x.view_mut(), &[1.0; 256])?;
//!         let mut back = [0.0; 256];
//!         stream.download(x.view(), &mut back)?;
//!         assert_eq!(back, [1.0; 256]);
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # What is `unsafe`
//!
//! Four calls: [`Function::launch`], since a kernel trusts the addresses it is given;
//! [`Stream::capture`], since a graph keeps the addresses of what it recorded; and the untracked
//! copies that graphs record, [`Stream::enqueue_upload`] and [`Stream::enqueue_download`].
//! Everything else is checked.

#![allow(unsafe_code)] // This crate is where it lives; each block says why it is sound.
#![deny(missing_docs)]
#![deny(unsafe_op_in_unsafe_fn)]
#![deny(clippy::undocumented_unsafe_blocks)]

mod arena;
mod cache;
mod compiler;
mod copy;
mod device;
mod disk;
mod driver;
mod error;
mod event;
mod function;
mod graph;
mod launch;
mod locate;
mod memory;
mod pinned;
mod source;
mod stream;

pub use arena::Arena;
pub use cache::{CacheStats, KernelCache};
pub use compiler::{Compiled, Compiler};
pub use device::{ComputeCapability, Device, DeviceInfo, MemoryInfo};
pub use driver::{Driver, Version};
pub use error::{Error, ErrorKind, Result};
pub use event::Event;
pub use function::{Function, FunctionInfo};
pub use graph::{Graph, GraphExec};
pub use launch::{LaunchConfig, LaunchLimits};
pub use memory::{DeviceBuffer, DevicePtr, DeviceSlice, DeviceSliceMut};
pub use pinned::PinnedBuffer;
pub use source::KernelSource;
pub use stream::Stream;

/// The traits that elements and kernel parameters implement, and their derives.
pub use bytemuck::{Pod, Zeroable};
