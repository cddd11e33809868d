//! Prefill: all tokens of some sequences through the whole layer.

pub(crate) mod chunked;
pub(crate) mod cpu;
pub(crate) mod cuda;

use crate::{
    Layer, Place, Result, Rows, RowsMut, Slots, StateMut,
    error::{expect_dim, expect_dtype},
    ops::checks::{self, BatchCheck},
};

/// How a prefill runs through a sequence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum PrefillForm {
    /// Token by token, as decode does: the state is rounded to its dtype after
    /// every token, and the result has the bits of fused decode steps.
    #[default]
    Recurrent,
    /// In chunks of 64 tokens, a few matrix products each: the state is kept in
    /// f32 and rounded once, at the end of the call. Its bits are not those of
    /// the recurrent form, and depend on where calls cut a sequence. On a GPU it
    /// is for K = V = 128; other head dims take the recurrent kernels.
    Chunked,
}

/// Arguments of [`Backend::prefill`](crate::Backend::prefill). The tokens of
/// all sequences lie behind one another, T in all; a sequence goes on from the
/// state in its slot and leaves its own there.
///
/// # Errors
/// [`Dim`](crate::ErrorKind::Dim), [`DType`](crate::ErrorKind::DType) or
/// [`Stride`](crate::ErrorKind::Stride) for a tensor that does not fit the
/// layer or lengths that don't add up to T,
/// [`SlotOutOfRange`](crate::ErrorKind::SlotOutOfRange) or
/// [`DuplicateSlot`](crate::ErrorKind::DuplicateSlot) for a bad slot.
#[derive(Debug)]
pub struct Prefill<'a> {
    /// The layer.
    pub layer: &'a Layer,
    /// The packed projection q ‖ k ‖ v, `[T, C]`.
    pub mixed_qkv: Rows<'a>,
    /// The input of the decay g, `[T, HV]`.
    pub a: Rows<'a>,
    /// The input of β, `[T, HV]`.
    pub b: Rows<'a>,
    /// The gate of the norm, `[T, HV·V]`.
    pub z: Rows<'a>,
    /// The tokens of each sequence; they add up to T.
    pub lengths: &'a [usize],
    /// The slot of each sequence; negative marks padding.
    pub slots: Slots<'a>,
    /// Both states; the conv states have the dtype of `mixed_qkv`.
    pub state: StateMut<'a>,
    /// The output, `[T, HV·V]`, dense; zeros in padding sequences.
    pub out: RowsMut<'a>,
}

impl BatchCheck for Prefill<'_> {
    fn places(&self, visit: &mut dyn FnMut(&'static str, Place) -> Result<()>) -> Result<()> {
        visit("mixed_qkv", self.mixed_qkv.place())?;
        visit("a", self.a.place())?;
        visit("b", self.b.place())?;
        visit("z", self.z.place())?;
        visit("slots", self.slots.place())?;
        visit("state.recurrent", self.state.recurrent.place())?;
        visit("state.conv", self.state.conv.place())?;
        visit("out", self.out.place())
    }

    fn check(&self) -> Result<()> {
        let spec = self.layer.spec();
        let (tokens, dtype) = (self.mixed_qkv.rows(), self.mixed_qkv.dtype());
        self.mixed_qkv.expect("mixed_qkv", tokens, spec.channels())?;
        checks::gate_inputs(spec, &self.a, &self.b, tokens, dtype)?;
        checks::input("z", &self.z, tokens, spec.value_len(), dtype)?;
        let total = self.lengths.iter().fold(0usize, |total, &n| total.saturating_add(n));
        expect_dim("lengths", "tokens in all", tokens, total)?;
        expect_dim("slots", "sequences", self.lengths.len(), self.slots.len())?;
        self.state.expect(spec)?;
        expect_dtype("state.conv", dtype, self.state.conv.dtype())?;
        checks::output(&self.out, tokens, spec.value_len(), dtype)
    }

    fn slots(&self) -> (Slots<'_>, Option<usize>) {
        (self.slots, Some(self.state.recurrent.slots()))
    }
}
