//! The gated RMS norm, per value head.

pub(crate) mod cpu;
pub(crate) mod cuda;

use crate::{
    Layer, Place, Result, Rows, RowsMut, Slots,
    error::expect_dim,
    ops::checks::{self, BatchCheck},
};

/// Arguments of [`Backend::gated_norm`](crate::Backend::gated_norm):
/// `out = o / sqrt(mean_V(o²) + eps) · w · silu(z)`, per value head.
///
/// # Errors
/// [`Dim`](crate::ErrorKind::Dim), [`DType`](crate::ErrorKind::DType) or
/// [`Stride`](crate::ErrorKind::Stride) for a tensor that does not fit the
/// layer.
#[derive(Debug)]
pub struct GatedNorm<'a> {
    /// The layer.
    pub layer: &'a Layer,
    /// The output of the recurrence, `[B, HV·V]`.
    pub o: Rows<'a>,
    /// The gate, `[B, HV·V]`.
    pub z: Rows<'a>,
    /// The slot of each row, `[B]`: only its sign is read, to keep padding rows
    /// zero.
    pub slots: Slots<'a>,
    /// The output, `[B, HV·V]`, dense; zeros in padding rows.
    pub out: RowsMut<'a>,
}

impl BatchCheck for GatedNorm<'_> {
    fn places(&self, visit: &mut dyn FnMut(&'static str, Place) -> Result<()>) -> Result<()> {
        visit("o", self.o.place())?;
        visit("z", self.z.place())?;
        visit("slots", self.slots.place())?;
        visit("out", self.out.place())
    }

    fn check(&self) -> Result<()> {
        let cols = self.layer.spec().value_len();
        let (rows, dtype) = (self.o.rows(), self.o.dtype());
        self.o.expect("o", rows, cols)?;
        checks::input("z", &self.z, rows, cols, dtype)?;
        expect_dim("slots", "rows", rows, self.slots.len())?;
        checks::output(&self.out, rows, cols, dtype)
    }

    fn slots(&self) -> (Slots<'_>, Option<usize>) {
        (self.slots, None)
    }
}
