//! The fused layer step: convolution, recurrence and gated norm in one launch.

pub(crate) mod cpu;
pub(crate) mod cuda;

use crate::{
    Layer, Place, Result, Rows, RowsMut, Slots, StateMut,
    error::{expect_dim, expect_dtype},
    ops::checks::{self, BatchCheck},
};

/// Arguments of [`Backend::layer_step`](crate::Backend::layer_step): one token
/// of the whole layer in every row.
///
/// # Errors
/// [`Dim`](crate::ErrorKind::Dim), [`DType`](crate::ErrorKind::DType) or
/// [`Stride`](crate::ErrorKind::Stride) for a tensor that does not fit the
/// layer, [`SlotOutOfRange`](crate::ErrorKind::SlotOutOfRange) or
/// [`DuplicateSlot`](crate::ErrorKind::DuplicateSlot) for a bad slot.
#[derive(Debug)]
pub struct LayerStep<'a> {
    /// The layer.
    pub layer: &'a Layer,
    /// The packed projection q ‖ k ‖ v, `[B, C]`.
    pub mixed_qkv: Rows<'a>,
    /// The input of the decay g, `[B, HV]`.
    pub a: Rows<'a>,
    /// The input of β, `[B, HV]`.
    pub b: Rows<'a>,
    /// The gate of the norm, `[B, HV·V]`.
    pub z: Rows<'a>,
    /// The slot of each row, `[B]`; negative marks padding.
    pub slots: Slots<'a>,
    /// Both states; the conv states have the dtype of `mixed_qkv`.
    pub state: StateMut<'a>,
    /// The output, `[B, HV·V]`, dense; zeros in padding rows.
    pub out: RowsMut<'a>,
}

impl BatchCheck for LayerStep<'_> {
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
        let (rows, dtype) = (self.mixed_qkv.rows(), self.mixed_qkv.dtype());
        self.mixed_qkv.expect("mixed_qkv", rows, spec.channels())?;
        checks::gate_inputs(spec, &self.a, &self.b, rows, dtype)?;
        checks::input("z", &self.z, rows, spec.value_len(), dtype)?;
        expect_dim("slots", "rows", rows, self.slots.len())?;
        self.state.expect(spec)?;
        expect_dtype("state.conv", dtype, self.state.conv.dtype())?;
        checks::output(&self.out, rows, spec.value_len(), dtype)
    }

    fn slots(&self) -> (Slots<'_>, Option<usize>) {
        (self.slots, Some(self.state.recurrent.slots()))
    }
}
