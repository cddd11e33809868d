//! The causal convolution and its SiLU, one token a row.

pub(crate) mod cpu;
pub(crate) mod cuda;

use crate::{
    ConvMut, Layer, Place, Result, Rows, RowsMut, Slots,
    error::{expect_dim, expect_dtype},
    ops::checks::{self, BatchCheck},
};

/// Arguments of [`Backend::conv_update`](crate::Backend::conv_update):
/// `out[c] = silu(bias[c] + Σ w[c, i] · tap_i[c])` over the last W inputs of
/// channel c, the newest being `mixed_qkv`, which then joins the conv state.
///
/// # Errors
/// [`Dim`](crate::ErrorKind::Dim), [`DType`](crate::ErrorKind::DType) or
/// [`Stride`](crate::ErrorKind::Stride) for a tensor that does not fit the
/// layer, [`SlotOutOfRange`](crate::ErrorKind::SlotOutOfRange) or
/// [`DuplicateSlot`](crate::ErrorKind::DuplicateSlot) for a bad slot.
#[derive(Debug)]
pub struct ConvUpdate<'a> {
    /// The layer.
    pub layer: &'a Layer,
    /// The packed projection q ‖ k ‖ v, `[B, C]`.
    pub mixed_qkv: Rows<'a>,
    /// The slot of each row, `[B]`; negative marks padding.
    pub slots: Slots<'a>,
    /// The conv states; their dtype is that of `mixed_qkv`.
    pub conv: ConvMut<'a>,
    /// The convolved q ‖ k ‖ v, `[B, C]`, dense; zeros in padding rows.
    pub out: RowsMut<'a>,
}

impl BatchCheck for ConvUpdate<'_> {
    fn places(&self, visit: &mut dyn FnMut(&'static str, Place) -> Result<()>) -> Result<()> {
        visit("mixed_qkv", self.mixed_qkv.place())?;
        visit("slots", self.slots.place())?;
        visit("conv", self.conv.place())?;
        visit("out", self.out.place())
    }

    fn check(&self) -> Result<()> {
        let spec = self.layer.spec();
        let (rows, dtype) = (self.mixed_qkv.rows(), self.mixed_qkv.dtype());
        self.mixed_qkv.expect("mixed_qkv", rows, spec.channels())?;
        expect_dim("slots", "rows", rows, self.slots.len())?;
        self.conv.expect(spec)?;
        expect_dtype("conv", dtype, self.conv.dtype())?;
        checks::output(&self.out, rows, spec.channels(), dtype)
    }

    fn slots(&self) -> (Slots<'_>, Option<usize>) {
        (self.slots, Some(self.conv.slots()))
    }
}
