//! A tensor that owns its elements, of any dtype.

use gdn::{DType, Data, DataMut, Element, Rows, RowsMut, Slice, SliceMut, bf16, f16};
use gdn_cuda::{Arena, DeviceBuffer, Pod, Stream};

/// A matrix of any dtype, its rows a stride apart.
#[derive(Clone, Debug)]
pub struct Tensor {
    data: Elements,
    rows: usize,
    cols: usize,
    stride: usize,
}

#[derive(Clone, Debug)]
enum Elements {
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
            DType::F32 => Elements::F32(padded),
            DType::BF16 => Elements::BF16(narrowed(&padded)),
            DType::F16 => Elements::F16(narrowed(&padded)),
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
            Elements::F32(data) => data.into(),
            Elements::BF16(data) => data.into(),
            Elements::F16(data) => data.into(),
        }
    }

    /// All elements, gaps included, to write.
    pub fn slice_mut(&mut self) -> SliceMut<'_> {
        match &mut self.data {
            Elements::F32(data) => data.into(),
            Elements::BF16(data) => data.into(),
            Elements::F16(data) => data.into(),
        }
    }

    /// The bits of all elements, gaps included: equal where `==` on NaN is not.
    pub fn bits(&self) -> Vec<u32> {
        match &self.data {
            Elements::F32(data) => data.iter().map(|x| x.to_bits()).collect(),
            Elements::BF16(data) => data.iter().map(|x| x.to_bits().into()).collect(),
            Elements::F16(data) => data.iter().map(|x| x.to_bits().into()).collect(),
        }
    }

    /// A row as it is stored, widened.
    pub fn row(&self, row: usize) -> Vec<f64> {
        let range = row * self.stride..row * self.stride + self.cols;
        match &self.data {
            Elements::F32(data) => data[range].iter().map(|&x| x.into()).collect(),
            Elements::BF16(data) => data[range].iter().map(|&x| x.into()).collect(),
            Elements::F16(data) => data[range].iter().map(|&x| x.into()).collect(),
        }
    }
}

/// A [`Tensor`] on a GPU.
#[derive(Debug)]
pub struct DeviceTensor {
    data: DeviceData,
    rows: usize,
    cols: usize,
    stride: usize,
}

#[derive(Debug)]
enum DeviceData {
    F32(DeviceBuffer<f32>),
    BF16(DeviceBuffer<bf16>),
    F16(DeviceBuffer<f16>),
}

impl Tensor {
    /// A copy in memory of `arena`.
    ///
    /// # Errors
    /// If the arena is full or the GPU refuses.
    pub fn to_device(&self, arena: &Arena, stream: &Stream) -> gdn_cuda::Result<DeviceTensor> {
        fn of<T: Pod>(a: &Arena, s: &Stream, host: &[T]) -> gdn_cuda::Result<DeviceBuffer<T>> {
            let mut buffer = a.alloc(host.len())?;
            s.upload(buffer.view_mut(), host)?;
            Ok(buffer)
        }
        let data = match &self.data {
            Elements::F32(host) => DeviceData::F32(of(arena, stream, host)?),
            Elements::BF16(host) => DeviceData::BF16(of(arena, stream, host)?),
            Elements::F16(host) => DeviceData::F16(of(arena, stream, host)?),
        };
        let Self { rows, cols, stride, .. } = *self;
        Ok(DeviceTensor { data, rows, cols, stride })
    }
}

impl DeviceTensor {
    /// The matrix, to read.
    pub fn view(&self) -> Rows<'_> {
        let data: Data<'_> = match &self.data {
            DeviceData::F32(data) => data.view().into(),
            DeviceData::BF16(data) => data.view().into(),
            DeviceData::F16(data) => data.view().into(),
        };
        Rows::strided(data, self.rows, self.cols, self.stride).expect("laid out as on the host")
    }

    /// The matrix, to write.
    pub fn view_mut(&mut self) -> RowsMut<'_> {
        let data: DataMut<'_> = match &mut self.data {
            DeviceData::F32(data) => data.view_mut().into(),
            DeviceData::BF16(data) => data.view_mut().into(),
            DeviceData::F16(data) => data.view_mut().into(),
        };
        RowsMut::strided(data, self.rows, self.cols, self.stride).expect("laid out as on the host")
    }

    /// The elements on the host again.
    ///
    /// # Errors
    /// If the GPU refuses.
    pub fn to_host(&self, stream: &Stream) -> gdn_cuda::Result<Tensor> {
        fn of<T: Pod>(s: &Stream, buffer: &DeviceBuffer<T>) -> gdn_cuda::Result<Vec<T>> {
            let mut host = vec![T::zeroed(); buffer.len()];
            s.download(buffer.view(), &mut host)?;
            Ok(host)
        }
        let data = match &self.data {
            DeviceData::F32(data) => Elements::F32(of(stream, data)?),
            DeviceData::BF16(data) => Elements::BF16(of(stream, data)?),
            DeviceData::F16(data) => Elements::F16(of(stream, data)?),
        };
        let Self { rows, cols, stride, .. } = *self;
        Ok(Tensor { data, rows, cols, stride })
    }
}

/// `values` rounded to `T`.
fn narrowed<T: Element>(values: &[f32]) -> Vec<T> {
    let mut narrow = vec![T::zeroed(); values.len()];
    T::narrow(values, &mut narrow);
    narrow
}
