//! Gated DeltaNet (GDN) decode: the linear attention of the Qwen3-Next,
//! Qwen3.5 and Qwen3.6 models, one token at a time over a pool of states.
//!
//! # The pieces
//!
//! - [`LayerSpec`] is the shape of a layer and the options of its math;
//!   [`Layer`] adds its small weights, prepared once.
//! - [`StatePool`] holds conv and recurrent state for N sequences, a *slot*
//!   each: allocate, decode, copy, snapshot, free.
//! - A [`Backend`] runs the operators: [`Cpu`], which is always there, or
//!   [`Cuda`] on an NVIDIA GPU. They are [`LayerStep`] (the whole layer), and its parts: [`ConvUpdate`],
//!   [`Decode`] (split or packed), [`GatedNorm`]; and [`Prefill`].
//! - [`Dispatcher`] takes the fastest [`DecodePath`] that a backend has.
//! - [`Rows`] and [`RowsMut`] are checked, strided views over your memory:
//!   slices of f32, [`bf16`] or [`struct@f16`], raw parts of foreign tensors, or
//!   [`gdn_cuda::DeviceSlice`]s of a GPU's memory.
//!
//! Everything is checked once, where it enters, and an [`Error`] names the
//! argument, what was expected and what came; nothing has been written then.
//!
//! # Two sequences decode three tokens
//!
//! ```
//! use gdn::{
//!     Backend, Cpu, DecodePath, Layer, LayerSpec, LayerStep, LayerWeights, PoolOptions, Rows,
//!     RowsMut, StatePool,
//! };
//!
//! // Two query/key heads, four value heads, head dims of 64.
//! let spec = LayerSpec::new(2, 4, 64, 64)?;
//! let (channels, values) = (spec.channels(), spec.value_len());
//! let layer = Layer::new(
//!     &spec,
//!     LayerWeights {
//!         conv_weight: Rows::new(&vec![0.25f32; channels * 4], channels, 4)?,
//!         conv_bias: None,
//!         a_log: (&[0.0f32; 4]).into(),
//!         dt_bias: (&[-2.0f32; 4]).into(),
//!         norm_weight: (&[1.0f32; 64]).into(),
//!     },
//! )?;
//!
//! let mut cpu = Cpu::new()?;
//! let mut pool = StatePool::new(&spec, &PoolOptions::new(8))?;
//! let slots = [pool.allocate()?, pool.allocate()?];
//!
//! let mut out = vec![0.0f32; 2 * values];
//! for token in 0..3 {
//!     // What the layer's input projections would make of two tokens.
//!     let activations = |cols: usize| -> Vec<f32> {
//!         (0..2 * cols).map(|i| ((i + token) as f32).sin()).collect()
//!     };
//!     cpu.layer_step(
//!         DecodePath::Fused,
//!         LayerStep {
//!             layer: &layer,
//!             mixed_qkv: Rows::new(&activations(channels), 2, channels)?,
//!             a: Rows::new(&activations(4), 2, 4)?,
//!             b: Rows::new(&activations(4), 2, 4)?,
//!             z: Rows::new(&activations(values), 2, values)?,
//!             slots: (&slots).into(),
//!             state: pool.state_mut(),
//!             out: RowsMut::new(&mut out, 2, values)?,
//!         },
//!     )?;
//! }
//! assert!(out.iter().any(|&y| y != 0.0));
//! # Ok::<(), gdn::Error>(())
//! ```
//!
//! # Conventions
//!
//! Shapes are written `[B, HV, V]` with the symbols of [`LayerSpec`]; inner
//! dims are dense, outer ones may have any stride, counted in elements. The
//! layouts of `mixed_qkv`, `conv1d.weight`, `A_log` and `dt_bias` are those of
//! the published Qwen3.5 checkpoints; the state is `[HV, V, K]`, as in SGLang
//! and vLLM (Hugging Face transformers stores `[HV, K, V]`). A negative slot is
//! padding, as in SGLang.
//!
//! # What holds on every path and backend
//!
//! - The result of a row does not depend on the size of the batch, the other
//!   rows, its place among them, or its slot: on one backend the bits are the
//!   same.
//! - Two runs give the same bits.
//! - All arithmetic is f32, whatever the storage. [`oracle`] is the same math
//!   in f64, and every path is tested against it.
//! - NaN or infinity in one row stays in that row and its slot.
#![deny(missing_docs)]

mod backend;
mod cpu;
#[doc(hidden)] // Its one public type, `Cuda`, is re-exported below; tests use the rest.
pub mod cuda;
mod device;
mod dispatch;
mod dtype;
mod error;
mod layer;
mod ops;
pub mod oracle;
mod pool;
mod slots;
mod spec;
mod views;

pub use half::{bf16, f16};

pub use self::{
    backend::{Backend, DecodePath, DecodeSpec, Unsupported},
    cpu::Cpu,
    cuda::Cuda,
    device::{DeviceElements, DeviceElementsMut, DeviceIntegers, Place},
    dispatch::Dispatcher,
    dtype::{DType, Element},
    error::{Error, ErrorKind, Result},
    layer::{Layer, LayerWeights},
    ops::{ConvUpdate, Decode, GatedNorm, LayerStep, Prefill, PrefillForm},
    pool::{ConvMut, PoolOptions, RecurrentMut, Snapshot, StateMut, StatePool},
    slots::Slots,
    spec::{BetaRounding, HeadOrder, LayerSpec},
    views::{Data, DataMut, Rows, RowsMut, Slice, SliceMut},
};
