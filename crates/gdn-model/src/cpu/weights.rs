//! Weights on the CPU.

use gdn::{Slice, bf16};

use crate::{
    device::ExpertWeights,
    math::{Math, Out, Scratch, Values, silu},
    ops::{
        self,
        route::cpu::{Routes, sort},
    },
    weights::{Elements, Tensor},
};

/// Matrices on top of each other, left where they lie.
#[derive(Debug)]
pub(crate) struct Matrix {
    parts: Vec<Tensor>,
    inputs: usize,
    outputs: usize,
}

/// The experts of a layer, the shared one last: gate and up, and down.
#[derive(Debug)]
pub(crate) struct Experts(Vec<(Matrix, Matrix)>);

/// What lies between the products of experts.
#[derive(Debug, Default)]
pub(super) struct Between {
    gathered: Vec<f32>,
    gate_up: Vec<f32>,
    gated: Vec<f32>,
    out: Vec<f32>,
}

impl Matrix {
    pub(super) fn new(parts: &[Tensor]) -> Self {
        Self {
            inputs: parts[0].cols(),
            outputs: parts.iter().map(Tensor::rows).sum(),
            parts: parts.iter().map(made).collect(),
        }
    }

    pub(super) fn outputs(&self) -> usize {
        self.outputs
    }

    /// `y = x·wᵀ`, `[T, outputs]`.
    pub(super) fn apply(&self, math: Math, x: &[f32], y: &mut Vec<f32>, scratch: &mut Scratch) {
        y.resize(x.len() / self.inputs * self.outputs, 0.0);
        let mut offset = 0;
        // Parts of a few rows go along with their neighbours.
        for parts in self.parts.chunks(PARTS) {
            let mut values = [Values::F32(&[]); PARTS];
            values.iter_mut().zip(parts).for_each(|(values, part)| *values = stored(part));
            let out = Out { y, stride: self.outputs, offset };
            math.product_into(&values[..parts.len()], self.inputs, x, out, scratch);
            offset += parts.iter().map(Tensor::rows).sum::<usize>();
        }
    }

    pub(super) fn read_row(&self, row: usize, out: &mut [f32]) {
        match stored(&self.parts[0].cut(row..row + 1)) {
            Values::F32(values) => out.copy_from_slice(values),
            Values::Bf16(values) => {
                out.iter_mut().zip(values).for_each(|(out, value)| *out = value.to_f32());
            }
        }
    }
}

/// Matrices that one product takes.
const PARTS: usize = 8;

/// The tensor itself, with numbers for those of a dummy.
fn made(tensor: &Tensor) -> Tensor {
    match tensor.elements() {
        Elements::Stored(_) => tensor.clone(),
        Elements::Dummy(dummy, first) => {
            let mut values = vec![bf16::ZERO; tensor.rows() * tensor.cols()];
            ops::fill::cpu::fill(&mut values, dummy, first);
            Tensor::bf16(values, tensor.cols())
        }
    }
}

fn stored(tensor: &Tensor) -> Values<'_> {
    match tensor.elements() {
        Elements::Stored(Slice::F32(values)) => Values::F32(values),
        Elements::Stored(Slice::BF16(values)) => Values::Bf16(values),
        elements => unreachable!("`made` leaves no such tensor: {elements:?}"),
    }
}

/// `silu(gate) · up` for rows of gates, then of what they gate.
pub(super) fn swiglu(gate_up: &[f32], intermediate: usize, out: &mut Vec<f32>) {
    out.clear();
    for row in gate_up.chunks_exact(2 * intermediate) {
        let (gate, up) = row.split_at(intermediate);
        out.extend(gate.iter().zip(up).map(|(&gate, up)| silu(gate) * up));
    }
}

impl Experts {
    pub(super) fn new(weights: ExpertWeights) -> Self {
        let all = weights.experts.into_iter().chain([weights.shared]);
        let pair =
            |(gate_up, down): (Vec<Tensor>, Tensor)| (Matrix::new(&gate_up), Matrix::new(&[down]));
        Self(all.map(pair).collect())
    }

    /// The sum of the shares of the experts' outputs, `[T, hidden]`.
    pub(super) fn apply(
        &self,
        math: Math,
        routes: &Routes,
        x: &[f32],
        y: &mut Vec<f32>,
        between: &mut Between,
        scratch: &mut Scratch,
    ) {
        let hidden = self.0[0].1.outputs();
        let Between { gathered, gate_up, gated, out } = between;
        y.clear();
        y.resize(x.len(), 0.0);
        let places = routes.experts.len() / (x.len() / hidden);
        let sorted = sort(&routes.experts, self.0.len());
        // One product for all tokens of an expert. A token's experts are added in
        // order of their index, so its sum does not depend on the other tokens.
        for &expert in &sorted.active {
            let (up, down) = &self.0[expert as usize];
            let range = &sorted.starts[expert as usize..][..2];
            let pairs = &sorted.order[range[0] as usize..range[1] as usize];
            gathered.clear();
            for &pair in pairs {
                gathered.extend_from_slice(&x[pair as usize / places * hidden..][..hidden]);
            }
            up.apply(math, gathered, gate_up, scratch);
            swiglu(gate_up, up.outputs() / 2, gated);
            down.apply(math, gated, out, scratch);
            for (&pair, out) in pairs.iter().zip(out.chunks_exact(hidden)) {
                let (y, share) =
                    (&mut y[pair as usize / places * hidden..], routes.shares[pair as usize]);
                y[..hidden].iter_mut().zip(out).for_each(|(y, out)| *y += share * out);
            }
        }
    }
}
