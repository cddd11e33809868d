//! A kernel: which source, compiled with which macros.

use super::tiles::{ANY, Form, Tile};
use crate::DType;

/// A CUDA source of this crate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// `conv.cu`
    Conv,
    /// `norm.cu`
    Norm,
    /// `split.cu`
    Split,
    /// `packed.cu`
    Packed,
    /// `fused.cu`
    Fused,
    /// `prefill.cu`
    Prefill,
    /// `chunked.cu`, of prefill too
    Chunked,
}

impl Source {
    /// The name of its file.
    pub fn name(self) -> &'static str {
        match self {
            Self::Conv => "conv",
            Self::Norm => "norm",
            Self::Split => "split",
            Self::Packed => "packed",
            Self::Fused => "fused",
            Self::Prefill => "prefill",
            Self::Chunked => "chunked",
        }
    }

    /// Where it lies, under `ops`.
    pub fn path(self) -> String {
        let operator = if self == Self::Chunked { Self::Prefill } else { self };
        format!("{}/{}.cu", operator.name(), self.name())
    }

    /// The text of its file.
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Conv => include_str!("../ops/conv/conv.cu"),
            Self::Norm => include_str!("../ops/norm/norm.cu"),
            Self::Split => include_str!("../ops/split/split.cu"),
            Self::Packed => include_str!("../ops/packed/packed.cu"),
            Self::Fused => include_str!("../ops/fused/fused.cu"),
            Self::Prefill => include_str!("../ops/prefill/prefill.cu"),
            Self::Chunked => include_str!("../ops/prefill/chunked.cu"),
        }
    }

    /// Whether its kernels know a recurrent state, and so are compiled for each
    /// dtype of it.
    fn has_state(self) -> bool {
        !matches!(self, Self::Conv | Self::Norm)
    }

    /// Whether its kernels know the width of the convolution.
    fn has_conv(self) -> bool {
        matches!(self, Self::Conv | Self::Fused | Self::Prefill | Self::Chunked)
    }
}

/// What the sources include.
pub const HEADERS: [(&str, &str); 6] = [
    ("params.cuh", include_str!("params.cuh")),
    ("common.cuh", include_str!("common.cuh")),
    ("core.cuh", include_str!("core.cuh")),
    ("recur.cuh", include_str!("recur.cuh")),
    ("mma.cuh", include_str!("mma.cuh")),
    ("pieces.cuh", include_str!("pieces.cuh")),
];

/// An entry point, compiled for its types, dims and tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Kernel {
    /// The file.
    pub source: Source,
    /// The entry point.
    pub entry: &'static str,
    /// The dtype of activations and conv state.
    pub activations: DType,
    /// The dtype of the recurrent state.
    pub recurrent: DType,
    /// K, or 0 for any.
    pub head_k: u32,
    /// V, or 0 for any.
    pub head_v: u32,
    /// W.
    pub conv_width: u32,
    /// How it lies on the GPU.
    pub tile: Tile,
    /// Whether pointers, pitches and row strides are multiples of 16 bytes.
    pub aligned: bool,
}

impl Kernel {
    /// Without what its source does not depend on, so that none is compiled
    /// twice.
    pub(crate) fn canonical(self) -> Self {
        let has_state = self.source.has_state();
        Self {
            recurrent: if has_state { self.recurrent } else { DType::F32 },
            conv_width: if self.source.has_conv() { self.conv_width } else { 4 },
            // How many CTAs there are is the launch's business.
            tile: if has_state { Tile { ctas: 1, ..self.tile } } else { ANY },
            ..self
        }
    }

    /// The macros to compile it with.
    pub fn defines(&self) -> Vec<(&'static str, String)> {
        let Tile { form, warps, rows, stages, split, cluster, hint, .. } = self.tile;
        let mut defines = vec![("ACT", self.activations.to_string())];
        let mut number = |name, value: u32| defines.push((name, value.to_string()));
        number("K_DIM", self.head_k);
        number("V_DIM", self.head_v);
        if self.source.has_conv() {
            number("CONV_W", self.conv_width);
        }
        if !self.aligned {
            number("GDN_UNALIGNED", 1);
        }
        if self.source.has_state() {
            for (name, value) in [
                ("WARPS", warps),
                ("ROWS", rows),
                ("STAGES", stages),
                ("SPLIT", split),
                ("CLUSTER", cluster),
                ("HINT", hint),
            ] {
                number(name, value);
            }
            let want = match form {
                Form::Direct => 1,
                Form::Stream => 2,
                Form::Any => 4,
                Form::Chunk => 8,
            };
            number("WANT", want);
            defines.push(("STATE", self.recurrent.to_string()));
        }
        defines
    }
}
