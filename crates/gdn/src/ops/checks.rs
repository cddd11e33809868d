//! What the operators check of a batch before they write anything.

use crate::{
    DType, ErrorKind, LayerSpec, Place, Result, Rows, RowsMut, Slots, error::expect_dtype,
};

/// The arguments of an operator, checked once at its edge.
pub(crate) trait BatchCheck {
    /// Calls `visit` with every argument that is a tensor, and where it lies,
    /// until that fails.
    fn places(&self, visit: &mut dyn FnMut(&'static str, Place) -> Result<()>) -> Result<()>;

    /// Shapes, dtypes and strides: `Err` before anything is written.
    fn check(&self) -> Result<()>;

    /// The slots, and how many there are in the pool; `None` if all that matters
    /// is which rows are padding.
    fn slots(&self) -> (Slots<'_>, Option<usize>);
}

/// A tensor to read: its shape and the dtype of its partners.
pub(crate) fn input(
    argument: &'static str,
    tensor: &Rows<'_>,
    rows: usize,
    cols: usize,
    dtype: DType,
) -> Result<()> {
    tensor.expect(argument, rows, cols)?;
    expect_dtype(argument, dtype, tensor.dtype())
}

/// The gate inputs `a` and `b`, `[B, HV]`.
pub(crate) fn gate_inputs(
    spec: &LayerSpec,
    a: &Rows<'_>,
    b: &Rows<'_>,
    rows: usize,
    dtype: DType,
) -> Result<()> {
    input("a", a, rows, spec.v_heads(), dtype)?;
    input("b", b, rows, spec.v_heads(), dtype)
}

/// The output: its shape, the dtype of its partners, and dense.
pub(crate) fn output(out: &RowsMut<'_>, rows: usize, cols: usize, dtype: DType) -> Result<()> {
    out.expect("out", rows, cols)?;
    expect_dtype("out", dtype, out.dtype())?;
    if rows > 1 && out.stride() != cols {
        let expected = format!("exactly {cols} (dense)");
        return Err(ErrorKind::Stride { argument: "out", expected, got: out.stride() }.into());
    }
    Ok(())
}
