//! One packed decode step from tensors in a file to tensors in a file: what
//! another implementation needs to compare itself with this one.
//!
//! ```text
//! cargo run --release -p gdn --example decode_file -- IN.safetensors OUT.safetensors
//! ```
//!
//! IN holds `mixed_qkv [B, 2·H·K + HV·V]` after the convolution, `a` and `b`
//! `[B, HV]`, `A_log` and `dt_bias` `[HV]`, `state [N, HV, V, K]` and
//! `slots [B]` in i32; its metadata says H as `q_heads`. OUT gets `out [B, HV, V]`
//! and `state`, in the dtypes of `mixed_qkv` and `state`.
#![allow(clippy::print_stdout)]

use std::{collections::HashMap, error::Error, fs};

use bytemuck::Pod;
use gdn::{
    Backend, Cpu, Cuda, DType, Decode, Layer, LayerSpec, LayerWeights, RecurrentMut, Rows, RowsMut,
    Slice, SliceMut, bf16, f16,
};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const USAGE: &str = "usage: decode_file [--backend cpu|cuda] IN.safetensors OUT.safetensors";

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (name, input, output) = match &args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [input, output] => ("cpu", *input, *output),
        ["--backend", name, input, output] => (*name, *input, *output),
        _ => return Err(USAGE.into()),
    };
    let mut backend = backend(name)?;
    let bytes = fs::read(input).map_err(|error| format!("{input}: {error}"))?;
    let file = Input::new(&bytes).map_err(|error| format!("{input}: {error}"))?;

    let mixed_qkv = file.tensor("mixed_qkv", 2)?;
    let (a, b) = (file.tensor("a", 2)?, file.tensor("b", 2)?);
    let (a_log, dt_bias) = (file.tensor("A_log", 1)?, file.tensor("dt_bias", 1)?);
    let slots = file.slots()?;
    let mut state = file.tensor("state", 4)?;

    let (batch, pool) = (mixed_qkv.shape[0], state.shape[0]);
    let spec = LayerSpec::new(file.q_heads, state.shape[1], state.shape[3], state.shape[2])?;
    let layer = layer(&spec, a_log.values.as_slice(), dt_bias.values.as_slice())?;
    let mut out = Values::zeros(mixed_qkv.values.dtype(), batch * spec.value_len());
    backend.packed_decode(Decode {
        layer: &layer,
        mixed_qkv: mixed_qkv.rows()?,
        a: a.rows()?,
        b: b.rows()?,
        slots: (&slots).into(),
        recurrent: RecurrentMut::new(&spec, state.values.as_mut(), pool, spec.state_len())?,
        out: RowsMut::new(out.as_mut(), batch, spec.value_len())?,
    })?;

    let out = Tensor { shape: vec![batch, spec.v_heads(), spec.head_v()], values: out };
    let tensors = [("out", out.view()?), ("state", state.view()?)];
    safetensors::serialize_to_file(tensors, None, output.as_ref())
        .map_err(|error| format!("{output}: {error}"))?;
    println!("{batch} rows of {pool} slots on {}: {output}", backend.name());
    Ok(())
}

fn backend(name: &str) -> Result<Box<dyn Backend>> {
    match name {
        "cpu" => Ok(Box::new(Cpu::new()?)),
        "cuda" => Ok(Box::new(Cuda::new(0)?)),
        _ => Err(format!("--backend {name}: expected cpu or cuda").into()),
    }
}

/// A layer whose recurrence is the file's; packed decode reads no more of it.
fn layer(spec: &LayerSpec, a_log: Slice<'_>, dt_bias: Slice<'_>) -> Result<Layer> {
    let (channels, width) = (spec.channels(), spec.conv_width());
    let (conv, norm) = (vec![0.0f32; channels * width], vec![1.0f32; spec.head_v()]);
    let weights = LayerWeights {
        conv_weight: Rows::new(&conv, channels, width)?,
        conv_bias: None,
        a_log,
        dt_bias,
        norm_weight: (&norm).into(),
    };
    Ok(Layer::new(spec, weights)?)
}

struct Input<'a> {
    file: SafeTensors<'a>,
    q_heads: usize,
}

impl<'a> Input<'a> {
    fn new(bytes: &'a [u8]) -> Result<Self> {
        let (_, header) = SafeTensors::read_metadata(bytes)?;
        let metadata: Option<&HashMap<_, _>> = header.metadata().as_ref();
        let q_heads = metadata.and_then(|metadata| metadata.get("q_heads"));
        let q_heads = q_heads.and_then(|heads| heads.parse().ok());
        Ok(Self {
            file: SafeTensors::deserialize(bytes)?,
            q_heads: q_heads.ok_or("the metadata has no number q_heads")?,
        })
    }

    fn view(&self, name: &str, dims: usize) -> Result<TensorView<'_>> {
        let view = self.file.tensor(name)?;
        match view.shape().len() {
            got if got == dims => Ok(view),
            got => Err(format!("{name}: expected {dims} dims, got {got}").into()),
        }
    }

    fn tensor(&self, name: &str, dims: usize) -> Result<Tensor> {
        let view = self.view(name, dims)?;
        let values = match view.dtype() {
            Dtype::F32 => Values::F32(elements(view.data())),
            Dtype::BF16 => Values::BF16(elements(view.data())),
            Dtype::F16 => Values::F16(elements(view.data())),
            got => return Err(format!("{name}: expected f32, bf16 or f16, got {got}").into()),
        };
        Ok(Tensor { shape: view.shape().to_vec(), values })
    }

    fn slots(&self) -> Result<Vec<i32>> {
        let view = self.view("slots", 1)?;
        match view.dtype() {
            Dtype::I32 => Ok(elements(view.data())),
            got => Err(format!("slots: expected i32, got {got}").into()),
        }
    }
}

/// A copy: a file aligns nothing.
fn elements<T: Pod>(bytes: &[u8]) -> Vec<T> {
    let mut elements = vec![T::zeroed(); bytes.len() / size_of::<T>()];
    bytemuck::cast_slice_mut(&mut elements).copy_from_slice(bytes);
    elements
}

struct Tensor {
    shape: Vec<usize>,
    values: Values,
}

impl Tensor {
    fn rows(&self) -> Result<Rows<'_>> {
        Ok(Rows::new(self.values.as_slice(), self.shape[0], self.shape[1])?)
    }

    fn view(&self) -> Result<TensorView<'_>> {
        let (dtype, bytes) = match &self.values {
            Values::F32(values) => (Dtype::F32, bytemuck::cast_slice(values)),
            Values::BF16(values) => (Dtype::BF16, bytemuck::cast_slice(values)),
            Values::F16(values) => (Dtype::F16, bytemuck::cast_slice(values)),
        };
        Ok(TensorView::new(dtype, self.shape.clone(), bytes)?)
    }
}

enum Values {
    F32(Vec<f32>),
    BF16(Vec<bf16>),
    F16(Vec<f16>),
}

impl Values {
    fn zeros(dtype: DType, len: usize) -> Self {
        match dtype {
            DType::F32 => Self::F32(vec![0.0; len]),
            DType::BF16 => Self::BF16(vec![bf16::ZERO; len]),
            DType::F16 => Self::F16(vec![f16::ZERO; len]),
        }
    }

    fn dtype(&self) -> DType {
        self.as_slice().dtype()
    }

    fn as_slice(&self) -> Slice<'_> {
        match self {
            Self::F32(values) => values.into(),
            Self::BF16(values) => values.into(),
            Self::F16(values) => values.into(),
        }
    }

    fn as_mut(&mut self) -> SliceMut<'_> {
        match self {
            Self::F32(values) => values.into(),
            Self::BF16(values) => values.into(),
            Self::F16(values) => values.into(),
        }
    }
}
