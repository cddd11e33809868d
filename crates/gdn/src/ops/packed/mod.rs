//! Packed decode: from packed q ‖ k ‖ v to output in one kernel.

pub(crate) mod cpu;
pub(crate) mod cuda;

use crate::{
    Layer, Place, RecurrentMut, Result, Rows, RowsMut, Slots,
    error::expect_dim,
    ops::checks::{self, BatchCheck},
};

/// Arguments of [`Backend::packed_decode`](crate::Backend::packed_decode) and
/// [`Backend::split_decode`](crate::Backend::split_decode): one token of the
/// gated delta rule in every row,
/// `S ← e^g·S`, `u = β·(v − S·k)`, `S ← S + u·kᵀ`, `out = S·q`.
///
/// # Errors
/// [`Dim`](crate::ErrorKind::Dim), [`DType`](crate::ErrorKind::DType) or
/// [`Stride`](crate::ErrorKind::Stride) for a tensor that does not fit the
/// layer, [`SlotOutOfRange`](crate::ErrorKind::SlotOutOfRange) or
/// [`DuplicateSlot`](crate::ErrorKind::DuplicateSlot) for a bad slot.
#[derive(Debug)]
pub struct Decode<'a> {
    /// The layer.
    pub layer: &'a Layer,
    /// q ‖ k ‖ v after the convolution, `[B, C]`.
    pub mixed_qkv: Rows<'a>,
    /// The input of the decay g, `[B, HV]`.
    pub a: Rows<'a>,
    /// The input of β, `[B, HV]`.
    pub b: Rows<'a>,
    /// The slot of each row, `[B]`; negative marks padding.
    pub slots: Slots<'a>,
    /// The recurrent states, in any dtype.
    pub recurrent: RecurrentMut<'a>,
    /// The output, `[B, HV·V]`, dense; zeros in padding rows.
    pub out: RowsMut<'a>,
}

impl BatchCheck for Decode<'_> {
    fn places(&self, visit: &mut dyn FnMut(&'static str, Place) -> Result<()>) -> Result<()> {
        visit("mixed_qkv", self.mixed_qkv.place())?;
        visit("a", self.a.place())?;
        visit("b", self.b.place())?;
        visit("slots", self.slots.place())?;
        visit("recurrent", self.recurrent.place())?;
        visit("out", self.out.place())
    }

    fn check(&self) -> Result<()> {
        let spec = self.layer.spec();
        let (rows, dtype) = (self.mixed_qkv.rows(), self.mixed_qkv.dtype());
        self.mixed_qkv.expect("mixed_qkv", rows, spec.channels())?;
        checks::gate_inputs(spec, &self.a, &self.b, rows, dtype)?;
        expect_dim("slots", "rows", rows, self.slots.len())?;
        self.recurrent.expect(spec)?;
        checks::output(&self.out, rows, spec.value_len(), dtype)
    }

    fn slots(&self) -> (Slots<'_>, Option<usize>) {
        (self.slots, Some(self.recurrent.slots()))
    }
}
