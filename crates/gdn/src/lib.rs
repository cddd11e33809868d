//! TODO-docs
#![deny(missing_docs)]

mod backend;
mod cpu;
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
    dispatch::Dispatcher,
    dtype::{DType, Element},
    error::{Error, ErrorKind, Result},
    layer::{Layer, LayerWeights},
    ops::{ConvUpdate, Decode, GatedNorm, LayerStep, Prefill, PrefillForm},
    pool::{ConvMut, PoolOptions, RecurrentMut, Snapshot, StateMut, StatePool},
    slots::Slots,
    spec::{BetaRounding, HeadOrder, LayerSpec},
    views::{Rows, RowsMut, Slice, SliceMut},
};
