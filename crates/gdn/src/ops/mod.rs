//! The operators, a folder each: arguments and their checks in `mod.rs`, the
//! CPU kernel in `cpu.rs`, what was tried in `notes.md`.

pub(crate) mod checks;
pub(crate) mod conv;
pub(crate) mod fused;
pub(crate) mod norm;
pub(crate) mod packed;
pub(crate) mod prefill;
pub(crate) mod split;

pub use self::{
    conv::ConvUpdate,
    fused::LayerStep,
    norm::GatedNorm,
    packed::Decode,
    prefill::{Prefill, PrefillForm},
};
