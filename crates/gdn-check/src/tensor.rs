//! A tensor that owns its elements, of any dtype.

use gdn::{DType, Element, Rows, RowsMut, Slice, SliceMut, bf16, f16};

/// A matrix of any dtype, its rows a stride apart.
#[derive(Clone, Debug)]
pub struct Tensor {
    data: Data,
    rows: usize,
    cols: usize,
    stride: usize,
}

#[derive(Clone, Debug)]
enum Data {
    F32(Vec<f32>),
    BF16(Vec<bf16>),
    F16(Vec<f16>),
}

impl Tensor {
    /// `values`, `cols` a row, rounded to `dtype`; NaN in the `gap` elements
    /// between rows, so that whoever reads them is found out.
    pub fn new(dtype: DType, values: &[f32], cols: usize, gap: usize) -> Self {
        let rows = values.len() / cols;
        let mut padded = Vec::with_capacity(rows * (cols + gap));
        for row in values.chunks_exact(cols) {
            padded.extend_from_slice(row);
            padded.extend(std::iter::repeat_n(f32::NAN, gap));
        }
        let data = match dtype {
            DType::F32 => Data::F32(padded),
            DType::BF16 => Data::BF16(narrowed(&padded)),
            DType::F16 => Data::F16(narrowed(&padded)),
        };
        Self { data, rows, cols, stride: cols + gap }
    }

    /// A dense matrix of NaN, for an output.
    pub fn poisoned(dtype: DType, rows: usize, cols: usize) -> Self {
        Self::new(dtype, &vec![f32::NAN; rows * cols], cols, 0)
    }

    /// The matrix, to read.
    pub fn view(&self) -> Rows<'_> {
        Rows::strided(self.slice(), self.rows, self.cols, self.stride).expect("laid out by new")
    }

    /// The matrix, to write.
    pub fn view_mut(&mut self) -> RowsMut<'_> {
        let Self { rows, cols, stride, .. } = *self;
        RowsMut::strided(self.slice_mut(), rows, cols, stride).expect("laid out by new")
    }

    /// All elements, gaps included.
    pub fn slice(&self) -> Slice<'_> {
        match &self.data {
            Data::F32(data) => data.into(),
            Data::BF16(data) => data.into(),
            Data::F16(data) => data.into(),
        }
    }

    /// All elements, gaps included, to write.
    pub fn slice_mut(&mut self) -> SliceMut<'_> {
        match &mut self.data {
            Data::F32(data) => data.into(),
            Data::BF16(data) => data.into(),
            Data::F16(data) => data.into(),
        }
    }

    /// The bits of all elements, gaps included: equal where `==` on NaN is not.
    pub fn bits(&self) -> Vec<u32> {
        match &self.data {
            Data::F32(data) => data.iter().map(|x| x.to_bits()).collect(),
            Data::BF16(data) => data.iter().map(|x| x.to_bits().into()).collect(),
            Data::F16(data) => data.iter().map(|x| x.to_bits().into()).collect(),
        }
    }

    /// A row as it is stored, widened.
    pub fn row(&self, row: usize) -> Vec<f64> {
        let range = row * self.stride..row * self.stride + self.cols;
        match &self.data {
            Data::F32(data) => data[range].iter().map(|&x| x.into()).collect(),
            Data::BF16(data) => data[range].iter().map(|&x| x.into()).collect(),
            Data::F16(data) => data[range].iter().map(|&x| x.into()).collect(),
        }
    }
}

/// `values` rounded to `T`.
fn narrowed<T: Element>(values: &[f32]) -> Vec<T> {
    let mut narrow = vec![T::zeroed(); values.len()];
    T::narrow(values, &mut narrow);
    narrow
}
