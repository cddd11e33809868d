//! What a backend offers, and the paths that a decode step can take.

use std::{fmt, str::FromStr};

use crate::{
    DType, Error, ErrorKind, LayerSpec, Result,
    ops::{ConvUpdate, Decode, GatedNorm, LayerStep, Prefill, PrefillForm},
};

/// How one token of a layer is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DecodePath {
    /// Conv update, split into contiguous q, k, v, gates as a step of their
    /// own, recurrence, gated norm: the baseline and the fallback.
    Split,
    /// Conv update, one kernel from packed `mixed_qkv` to output, gated norm.
    Packed,
    /// Everything in one launch.
    Fused,
}

impl DecodePath {
    /// Every path, the fastest first: the order in which the dispatcher asks.
    pub const ALL: [Self; 3] = [Self::Fused, Self::Packed, Self::Split];
}

impl fmt::Display for DecodePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Split => "split",
            Self::Packed => "packed",
            Self::Fused => "fused",
        })
    }
}

impl FromStr for DecodePath {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|path| path.to_string() == s).ok_or_else(|| {
            let expected = "split, packed or fused";
            ErrorKind::Value { argument: "path", expected, got: s.to_owned() }.into()
        })
    }
}

/// What a backend is asked to support.
#[derive(Clone, Copy, Debug)]
pub struct DecodeSpec<'a> {
    /// The layer.
    pub layer: &'a LayerSpec,
    /// The dtype of activations and conv state.
    pub activations: DType,
    /// The dtype of the recurrent state.
    pub recurrent: DType,
}

/// Why a backend does not have a path.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Unsupported {
    /// In words, for a log line.
    pub reason: String,
}

/// A device that runs the operators.
///
/// Each operator checks its arguments first and writes nothing if one of them
/// is bad. An empty batch is a no-op.
pub trait Backend: fmt::Debug + Send {
    /// The name that `--backend` takes.
    fn name(&self) -> &'static str;

    /// Whether this backend has `path` for such a layer.
    ///
    /// # Errors
    /// [`Unsupported`] with the reason if it has not.
    fn supports(&self, path: DecodePath, spec: &DecodeSpec<'_>) -> Result<(), Unsupported>;

    /// One token of the causal convolution and its SiLU.
    ///
    /// # Errors
    /// As listed at [`ConvUpdate`].
    fn conv_update(&mut self, args: ConvUpdate<'_>) -> Result<()>;

    /// One token of the recurrence, step by step.
    ///
    /// # Errors
    /// As listed at [`Decode`].
    fn split_decode(&mut self, args: Decode<'_>) -> Result<()>;

    /// One token of the recurrence in one kernel.
    ///
    /// # Errors
    /// As listed at [`Decode`].
    fn packed_decode(&mut self, args: Decode<'_>) -> Result<()>;

    /// The gated RMS norm.
    ///
    /// # Errors
    /// As listed at [`GatedNorm`].
    fn gated_norm(&mut self, args: GatedNorm<'_>) -> Result<()>;

    /// One token of the whole layer: convolution, recurrence, gated norm.
    ///
    /// # Errors
    /// As listed at [`LayerStep`].
    fn layer_step(&mut self, path: DecodePath, args: LayerStep<'_>) -> Result<()>;

    /// All tokens of some sequences through the whole layer.
    ///
    /// # Errors
    /// As listed at [`Prefill`].
    fn prefill(&mut self, form: PrefillForm, args: Prefill<'_>) -> Result<()>;
}
