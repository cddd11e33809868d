//! Running a problem on a backend, and what the oracle says of the result.

use gdn::{
    Backend, Decode, DecodePath, LayerStep, Prefill, PrefillForm, Result, StatePool,
    oracle::OracleState,
};
use rayon::prelude::*;

use crate::{Problem, Tensor, problem::random_pool};

/// What is run on a problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    /// The recurrence alone, on the split or the packed path; the inputs stand
    /// for convolved ones.
    Decode(DecodePath),
    /// The whole layer, one token a step.
    Layer(DecodePath),
    /// The whole layer, each row's steps as one sequence.
    Prefill(PrefillForm),
}

impl Operator {
    /// A name for a table.
    pub fn name(self) -> String {
        match self {
            Self::Decode(path) => format!("{path} decode"),
            Self::Layer(path) => format!("{path} layer"),
            Self::Prefill(form) => format!("{form:?} prefill").to_lowercase(),
        }
    }
}

/// What an operator made of a problem.
#[derive(Debug)]
pub struct Outcome {
    /// The output of each step, `[B, HV·V]`.
    pub out: Vec<Tensor>,
    /// The pool behind the last step.
    pub pool: StatePool,
}

/// The worst relative L2 errors of an [`Outcome`], over its rows.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Errors {
    /// Of the output of any step.
    pub out: f64,
    /// Of the recurrent state of any slot.
    pub state: f64,
}

impl Errors {
    /// The larger one; NaN if either is.
    pub fn worst(self) -> f64 {
        worse(self.out, self.state)
    }

    fn or_worse(self, other: Self) -> Self {
        Self { out: worse(self.out, other.out), state: worse(self.state, other.state) }
    }
}

impl Problem {
    /// Runs `operator` through all steps, on a fresh pool.
    ///
    /// # Errors
    /// Those of the operator.
    pub fn run(&self, backend: &mut dyn Backend, operator: Operator) -> Result<Outcome> {
        let mut pool = random_pool(&self.case);
        let out = match operator {
            Operator::Prefill(form) => self.prefill(backend, form, &mut pool)?,
            _ => {
                let steps = 0..self.steps.len();
                steps
                    .map(|step| self.step(backend, operator, step, &mut pool))
                    .collect::<Result<_>>()?
            }
        };
        Ok(Outcome { out, pool })
    }

    fn step(
        &self,
        backend: &mut dyn Backend,
        operator: Operator,
        step: usize,
        pool: &mut StatePool,
    ) -> Result<Tensor> {
        let layer = &self.layer.layer;
        let slots = (&self.slots).into();
        let inputs = &self.steps[step];
        let (mixed_qkv, a, b) = (inputs.mixed_qkv.view(), inputs.a.view(), inputs.b.view());
        let mut out = self.poisoned_out();
        let out_view = out.view_mut();
        match operator {
            Operator::Decode(path) => {
                let recurrent = pool.state_mut().recurrent;
                let args = Decode { layer, mixed_qkv, a, b, slots, recurrent, out: out_view };
                match path {
                    DecodePath::Split => backend.split_decode(args)?,
                    _ => backend.packed_decode(args)?,
                }
            }
            Operator::Layer(path) => {
                let (z, state) = (inputs.z.view(), pool.state_mut());
                let args = LayerStep { layer, mixed_qkv, a, b, z, slots, state, out: out_view };
                backend.layer_step(path, args)?;
            }
            Operator::Prefill(_) => unreachable!("runs all steps at once"),
        }
        Ok(out)
    }

    /// All steps of each row as one sequence, sequence behind sequence.
    fn prefill(
        &self,
        backend: &mut dyn Backend,
        form: PrefillForm,
        pool: &mut StatePool,
    ) -> Result<Vec<Tensor>> {
        let (rows, steps) = (self.case.rows, self.steps.len());
        let gather = |tensor: fn(&crate::Inputs) -> &Tensor| {
            let tokens = (0..rows * steps).map(|token| (token / steps, token % steps));
            let values = tokens.flat_map(|(row, step)| tensor(&self.steps[step]).row(row));
            let values: Vec<f32> = values.map(|x| x as f32).collect();
            let cols = tensor(&self.steps[0]).view().cols();
            Tensor::new(self.case.activations, &values, cols, self.case.row_gap)
        };
        let (mixed_qkv, z) = (gather(|i| &i.mixed_qkv), gather(|i| &i.z));
        let (a, b) = (gather(|i| &i.a), gather(|i| &i.b));
        let cols = self.case.spec.value_len();
        let mut out = Tensor::poisoned(self.case.activations, rows * steps, cols);
        let args = Prefill {
            layer: &self.layer.layer,
            mixed_qkv: mixed_qkv.view(),
            a: a.view(),
            b: b.view(),
            z: z.view(),
            lengths: &vec![steps; rows],
            slots: (&self.slots).into(),
            state: pool.state_mut(),
            out: out.view_mut(),
        };
        backend.prefill(form, args)?;
        let step_of = |step: usize| {
            let values = (0..rows).flat_map(|row| out.row(row * steps + step));
            let values: Vec<f32> = values.map(|x| x as f32).collect();
            Tensor::new(self.case.activations, &values, cols, 0)
        };
        Ok((0..steps).map(step_of).collect())
    }

    fn poisoned_out(&self) -> Tensor {
        Tensor::poisoned(self.case.activations, self.case.rows, self.case.spec.value_len())
    }

    /// Compares an outcome of `operator` with the oracle, row by row.
    pub fn against_oracle(&self, operator: Operator, outcome: &Outcome) -> Errors {
        let row_errors = |row: usize| {
            let slot = self.slots[row];
            let mut state = (slot >= 0).then(|| self.oracle_state(&self.before, slot));
            let mut errors = Errors::default();
            for (step, out) in outcome.out.iter().enumerate() {
                let expected = match &mut state {
                    Some(state) => self.oracle_step(operator, state, step, row),
                    None => vec![0.0; self.case.spec.value_len()],
                };
                let out = relative_l2(&out.row(row), &expected);
                errors = errors.or_worse(Errors { out, state: 0.0 });
            }
            if let Some(state) = state {
                let (recurrent, conv) = states(&outcome.pool, slot);
                let recurrent = relative_l2_of(wide(&recurrent).zip(state.recurrent));
                // The conv state holds raw inputs: no error is small enough.
                let moved = wide(&conv).eq(state.conv.into_iter().flatten())
                    || matches!(operator, Operator::Decode(_));
                let state = if moved { recurrent } else { f64::NAN };
                errors = errors.or_worse(Errors { out: 0.0, state });
            }
            errors
        };
        let rows = 0..self.case.rows;
        rows.into_par_iter().map(row_errors).reduce(Errors::default, Errors::or_worse)
    }

    fn oracle_step(
        &self,
        operator: Operator,
        state: &mut OracleState,
        step: usize,
        row: usize,
    ) -> Vec<f64> {
        let oracle = &self.layer.oracle;
        let inputs = &self.steps[step];
        let (x, a, b) = (inputs.mixed_qkv.row(row), inputs.a.row(row), inputs.b.row(row));
        match operator {
            Operator::Decode(_) => oracle.decode(state, &x, &a, &b),
            _ => oracle.step(state, &x, &a, &b, &inputs.z.row(row)),
        }
    }

    /// Compares two outcomes, of one problem on two paths.
    pub fn against(&self, outcome: &Outcome, other: &Outcome) -> Errors {
        let rows = 0..self.case.rows;
        let row_errors = |row: usize| {
            let mut errors = Errors::default();
            for (out, other) in outcome.out.iter().zip(&other.out) {
                let out = relative_l2(&out.row(row), &other.row(row));
                errors = errors.or_worse(Errors { out, state: 0.0 });
            }
            if self.slots[row] >= 0 {
                let (state, _) = states(&outcome.pool, self.slots[row]);
                let (expected, _) = states(&other.pool, self.slots[row]);
                let state = relative_l2_of(wide(&state).zip(wide(&expected)));
                errors = errors.or_worse(Errors { out: 0.0, state });
            }
            errors
        };
        rows.into_par_iter().map(row_errors).reduce(Errors::default, Errors::or_worse)
    }

    /// Whether every slot that no row has, and every gap between slots, kept
    /// every bit.
    pub fn kept_the_rest(&self, outcome: &Outcome) -> bool {
        let spec = &self.case.spec;
        let on_host = "pools of the host";
        let (recurrent, conv) = self.before.buffers().expect(on_host);
        let (recurrent_now, conv_now) = outcome.pool.buffers().expect(on_host);
        let gap = self.case.slot_gap;
        (0..self.case.pool).into_par_iter().all(|slot| {
            let taken = self.slots.contains(&(slot as i32));
            let last = slot + 1 == self.case.pool;
            let kept = |now: gdn::Slice<'_>, before: gdn::Slice<'_>, len: usize| {
                let start = slot * (len + gap) + if taken { len } else { 0 };
                let end = slot * (len + gap) + len + if last { 0 } else { gap };
                same_bits(now, before, start..end)
            };
            kept(recurrent_now, recurrent, spec.state_len())
                && kept(conv_now, conv, spec.conv_len())
        })
    }
}

fn same_bits(a: gdn::Slice<'_>, b: gdn::Slice<'_>, range: std::ops::Range<usize>) -> bool {
    use gdn::Slice::{BF16, F16, F32};
    match (a, b) {
        (F32(a), F32(b)) => {
            a[range.clone()].iter().zip(&b[range]).all(|(a, b)| a.to_bits() == b.to_bits())
        }
        (BF16(a), BF16(b)) => {
            a[range.clone()].iter().zip(&b[range]).all(|(a, b)| a.to_bits() == b.to_bits())
        }
        (F16(a), F16(b)) => {
            a[range.clone()].iter().zip(&b[range]).all(|(a, b)| a.to_bits() == b.to_bits())
        }
        _ => false,
    }
}

/// The larger one; NaN if either is, unlike [`f64::max`].
fn worse(a: f64, b: f64) -> f64 {
    if a.is_nan() || a > b { a } else { b }
}

/// The recurrent and the conv state of a slot.
fn states(pool: &StatePool, slot: i32) -> (Vec<f32>, Vec<f32>) {
    let of_the_pool = "a slot of the pool";
    (pool.recurrent(slot).expect(of_the_pool), pool.conv(slot).expect(of_the_pool))
}

fn wide(values: &[f32]) -> impl Iterator<Item = f64> {
    values.iter().map(|&x| x.into())
}

/// `‖got − expected‖ / ‖expected‖`; the plain norm where nothing is expected.
pub fn relative_l2(got: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(got.len(), expected.len());
    relative_l2_of(got.iter().copied().zip(expected.iter().copied()))
}

/// [`relative_l2`] of pairs (got, expected).
fn relative_l2_of(pairs: impl Iterator<Item = (f64, f64)>) -> f64 {
    let square = |x: f64| x * x;
    let (difference, norm) = pairs.fold((0.0, 0.0), |(difference, norm), (got, expected)| {
        (difference + square(got - expected), norm + square(expected))
    });
    if norm == 0.0 { difference.sqrt() } else { (difference / norm).sqrt() }
}
