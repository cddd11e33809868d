//! Checked views over borrowed memory: what the operators read and write.
//!
//! A view is made once, where memory enters the crate; from then on its shape
//! and stride are known to fit its buffer.
#![expect(unsafe_code, reason = "raw parts: foreign tensors come as pointers")]

use half::{bf16, f16};

use crate::{
    DType, Element, ErrorKind, Result,
    device::{DeviceElements, DeviceElementsMut, Place},
};

/// A borrowed slice whose element type is known at run time.
#[derive(Clone, Copy, Debug)]
pub enum Slice<'a> {
    /// Elements of [`DType::F32`].
    F32(&'a [f32]),
    /// Elements of [`DType::BF16`].
    BF16(&'a [bf16]),
    /// Elements of [`DType::F16`].
    F16(&'a [f16]),
}

/// A mutably borrowed slice whose element type is known at run time.
#[derive(Debug)]
pub enum SliceMut<'a> {
    /// Elements of [`DType::F32`].
    F32(&'a mut [f32]),
    /// Elements of [`DType::BF16`].
    BF16(&'a mut [bf16]),
    /// Elements of [`DType::F16`].
    F16(&'a mut [f16]),
}

/// A borrowed tensor's elements, on the host or on a GPU.
///
/// The views take whatever becomes one: a slice or a vector of an [`Element`]
/// type, a [`Slice`], a [`gdn_cuda::DeviceSlice`].
#[derive(Clone, Copy, Debug)]
pub enum Data<'a> {
    /// Memory of the host.
    Host(Slice<'a>),
    /// Memory of a GPU.
    Device(DeviceElements<'a>),
}

/// A mutably borrowed tensor's elements: as [`Data`].
#[derive(Debug)]
pub enum DataMut<'a> {
    /// Memory of the host.
    Host(SliceMut<'a>),
    /// Memory of a GPU.
    Device(DeviceElementsMut<'a>),
}

/// Runs `$body` with `$slice` bound to the typed slice inside a [`Slice`] or
/// [`SliceMut`].
macro_rules! with_slice {
    ($enum:ident, $erased:expr, $slice:ident => $body:expr) => {
        match $erased {
            $crate::views::$enum::F32($slice) => $body,
            $crate::views::$enum::BF16($slice) => $body,
            $crate::views::$enum::F16($slice) => $body,
        }
    };
}
pub(crate) use with_slice;

impl<'a> Slice<'a> {
    /// The element type.
    pub fn dtype(&self) -> DType {
        match self {
            Self::F32(_) => DType::F32,
            Self::BF16(_) => DType::BF16,
            Self::F16(_) => DType::F16,
        }
    }

    /// The number of elements.
    #[allow(clippy::len_without_is_empty)] // Nobody asks an empty tensor.
    pub fn len(&self) -> usize {
        with_slice!(Slice, self, slice => slice.len())
    }

    /// The elements from `start` on, as many as `dst` takes, as f32.
    #[inline(always)]
    pub(crate) fn read(&self, start: usize, dst: &mut [f32]) {
        let end = start + dst.len();
        with_slice!(Slice, self, slice => Element::widen(&slice[start..end], dst));
    }

    /// The bytes of all elements.
    pub(crate) fn bytes(&self) -> &'a [u8] {
        with_slice!(Slice, self, slice => bytemuck::cast_slice(slice))
    }

    /// All elements as f32.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.len()];
        self.read(0, &mut values);
        values
    }

    /// # Safety
    /// As [`Rows::from_raw_parts`], for `len` elements.
    unsafe fn from_raw_parts(ptr: *const u8, dtype: DType, len: usize) -> Result<Self> {
        check_pointer(ptr, dtype)?;
        // SAFETY: the caller vouches for `len` elements of this dtype, alive
        // and not written for 'a; alignment and non-null were checked above.
        unsafe {
            Ok(match dtype {
                DType::F32 => Self::F32(std::slice::from_raw_parts(ptr.cast(), len)),
                DType::BF16 => Self::BF16(std::slice::from_raw_parts(ptr.cast(), len)),
                DType::F16 => Self::F16(std::slice::from_raw_parts(ptr.cast(), len)),
            })
        }
    }
}

impl<'a> SliceMut<'a> {
    /// The element type.
    pub fn dtype(&self) -> DType {
        self.as_slice().dtype()
    }

    /// The number of elements.
    #[allow(clippy::len_without_is_empty)] // Nobody asks an empty tensor.
    pub fn len(&self) -> usize {
        self.as_slice().len()
    }

    /// The bytes of all elements, to write.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        with_slice!(SliceMut, self, slice => bytemuck::cast_slice_mut(slice))
    }

    /// The same elements, to read.
    pub fn as_slice(&self) -> Slice<'_> {
        with_slice!(SliceMut, self, slice => Element::erase(slice))
    }

    /// The same elements, borrowed for a shorter time.
    pub fn reborrow(&mut self) -> SliceMut<'_> {
        with_slice!(SliceMut, self, slice => Element::erase_mut(slice))
    }

    /// # Safety
    /// As [`RowsMut::from_raw_parts`], for `len` elements.
    pub(crate) unsafe fn from_raw_parts(ptr: *mut u8, dtype: DType, len: usize) -> Result<Self> {
        check_pointer(ptr, dtype)?;
        // SAFETY: the caller vouches for `len` elements of this dtype, alive
        // and ours alone for 'a; alignment and non-null were checked above.
        unsafe {
            Ok(match dtype {
                DType::F32 => Self::F32(std::slice::from_raw_parts_mut(ptr.cast(), len)),
                DType::BF16 => Self::BF16(std::slice::from_raw_parts_mut(ptr.cast(), len)),
                DType::F16 => Self::F16(std::slice::from_raw_parts_mut(ptr.cast(), len)),
            })
        }
    }
}

impl<'a> Data<'a> {
    /// The element type.
    pub fn dtype(&self) -> DType {
        match self {
            Self::Host(slice) => slice.dtype(),
            Self::Device(elements) => elements.region.dtype,
        }
    }

    /// The number of elements.
    #[allow(clippy::len_without_is_empty)] // Nobody asks an empty tensor.
    pub fn len(&self) -> usize {
        match self {
            Self::Host(slice) => slice.len(),
            Self::Device(elements) => elements.region.len,
        }
    }

    /// The memory that holds them.
    pub fn place(&self) -> Place {
        match self {
            Self::Host(_) => Place::Host,
            Self::Device(elements) => Place::Cuda(elements.region.gpu),
        }
    }

    /// The elements of a tensor whose place was checked.
    #[inline(always)]
    fn host(&self) -> &Slice<'a> {
        match self {
            Self::Host(slice) => slice,
            Self::Device(_) => unreachable!("a backend of the host checks places first"),
        }
    }
}

impl<'a> DataMut<'a> {
    /// The same elements, to read.
    pub fn as_data(&self) -> Data<'_> {
        match self {
            Self::Host(slice) => Data::Host(slice.as_slice()),
            Self::Device(elements) => Data::Device(DeviceElements::new(elements.region)),
        }
    }

    /// The same elements, borrowed for a shorter time.
    pub fn reborrow(&mut self) -> DataMut<'_> {
        match self {
            Self::Host(slice) => DataMut::Host(slice.reborrow()),
            Self::Device(elements) => DataMut::Device(DeviceElementsMut::new(elements.region)),
        }
    }

    /// The elements of a tensor whose place was checked.
    pub(crate) fn into_host(self) -> SliceMut<'a> {
        match self {
            Self::Host(slice) => slice,
            Self::Device(_) => unreachable!("a backend of the host checks places first"),
        }
    }
}

impl<'a, S: Into<Slice<'a>>> From<S> for Data<'a> {
    fn from(slice: S) -> Self {
        Self::Host(slice.into())
    }
}

impl<'a, T: Element> From<gdn_cuda::DeviceSlice<'a, T>> for Data<'a> {
    fn from(slice: gdn_cuda::DeviceSlice<'a, T>) -> Self {
        Self::Device(slice.into())
    }
}

impl<'a, S: Into<SliceMut<'a>>> From<S> for DataMut<'a> {
    fn from(slice: S) -> Self {
        Self::Host(slice.into())
    }
}

impl<'a, T: Element> From<gdn_cuda::DeviceSliceMut<'a, T>> for DataMut<'a> {
    fn from(slice: gdn_cuda::DeviceSliceMut<'a, T>) -> Self {
        Self::Device(slice.into())
    }
}

impl<'a, T: Element> From<&'a [T]> for Slice<'a> {
    fn from(slice: &'a [T]) -> Self {
        T::erase(slice)
    }
}

impl<'a, T: Element> From<&'a Vec<T>> for Slice<'a> {
    fn from(vec: &'a Vec<T>) -> Self {
        T::erase(vec)
    }
}

impl<'a, T: Element, const N: usize> From<&'a [T; N]> for Slice<'a> {
    fn from(array: &'a [T; N]) -> Self {
        T::erase(array)
    }
}

impl<'a, T: Element> From<&'a mut [T]> for SliceMut<'a> {
    fn from(slice: &'a mut [T]) -> Self {
        T::erase_mut(slice)
    }
}

impl<'a, T: Element> From<&'a mut Vec<T>> for SliceMut<'a> {
    fn from(vec: &'a mut Vec<T>) -> Self {
        T::erase_mut(vec)
    }
}

impl<'a, T: Element, const N: usize> From<&'a mut [T; N]> for SliceMut<'a> {
    fn from(array: &'a mut [T; N]) -> Self {
        T::erase_mut(array)
    }
}

/// A matrix to read: `rows` × `cols`, each row dense, rows `stride` elements
/// apart.
///
/// Tensors of more dims come with their inner dims flattened: `z [B, HV, V]`
/// is B rows of HV·V columns.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    data: Data<'a>,
    /// Where the first row starts: a view of some columns keeps the buffer.
    offset: usize,
    rows: usize,
    cols: usize,
    stride: usize,
}

impl<'a> Rows<'a> {
    /// A dense matrix.
    ///
    /// # Errors
    /// [`ErrorKind::Buffer`] if `data` has fewer than `rows` · `cols` elements.
    pub fn new(data: impl Into<Data<'a>>, rows: usize, cols: usize) -> Result<Self> {
        Self::strided(data, rows, cols, cols)
    }

    /// A matrix whose rows are `stride` elements apart.
    ///
    /// # Errors
    /// [`ErrorKind::Stride`] if `stride` < `cols`; [`ErrorKind::Buffer`] if
    /// `data` ends before the last row does.
    pub fn strided(
        data: impl Into<Data<'a>>,
        rows: usize,
        cols: usize,
        stride: usize,
    ) -> Result<Self> {
        let data = data.into();
        check_layout("data", data.len(), rows, cols, stride)?;
        Ok(Self { data, offset: 0, rows, cols, stride })
    }

    /// A matrix in foreign memory.
    ///
    /// # Errors
    /// [`ErrorKind::Stride`] as [`strided`](Self::strided);
    /// [`ErrorKind::Value`] if `ptr` is null or not aligned to the dtype.
    ///
    /// # Safety
    /// For the lifetime `'a`, `ptr` points to (`rows` − 1) · `stride` + `cols`
    /// initialised elements of `dtype`, in one allocation, which nobody writes.
    pub unsafe fn from_raw_parts(
        ptr: *const u8,
        dtype: DType,
        rows: usize,
        cols: usize,
        stride: usize,
    ) -> Result<Self> {
        let len = layout_len("data", rows, cols, stride)?;
        // SAFETY: passed on to the caller.
        let data = unsafe { Slice::from_raw_parts(ptr, dtype, len)? };
        Ok(Self { data: data.into(), offset: 0, rows, cols, stride })
    }

    /// Columns `start .. start + cols` of this matrix: one tensor out of a
    /// packed projection.
    ///
    /// # Errors
    /// [`ErrorKind::Dim`] if the matrix has fewer columns.
    pub fn columns(&self, start: usize, cols: usize) -> Result<Self> {
        match start.checked_add(cols) {
            Some(end) if end <= self.cols => {
                Ok(Self { offset: self.offset + start, cols, ..*self })
            }
            end => Err(ErrorKind::Dim {
                argument: "columns",
                unit: "columns at the most",
                expected: self.cols,
                got: end.unwrap_or(usize::MAX),
            }
            .into()),
        }
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.data.dtype()
    }

    /// The memory that holds it.
    pub fn place(&self) -> Place {
        self.data.place()
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The distance from one row to the next, in elements.
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// Elements of `row` from column `col` on, as many as `dst` takes, as f32.
    #[inline(always)]
    pub(crate) fn read(&self, row: usize, col: usize, dst: &mut [f32]) {
        debug_assert!(row < self.rows && col + dst.len() <= self.cols);
        self.data.host().read(self.offset + row * self.stride + col, dst);
    }

    /// All elements of the buffer, and where the first row starts in it.
    pub(crate) fn data(&self) -> (Data<'a>, usize) {
        (self.data, self.offset)
    }

    /// `Err` unless the view has this shape.
    pub(crate) fn expect(&self, argument: &'static str, rows: usize, cols: usize) -> Result<()> {
        crate::error::expect_dim(argument, "rows", rows, self.rows)?;
        crate::error::expect_dim(argument, "columns", cols, self.cols)
    }
}

/// A matrix to write: as [`Rows`].
#[derive(Debug)]
pub struct RowsMut<'a> {
    data: DataMut<'a>,
    rows: usize,
    cols: usize,
    stride: usize,
}

impl<'a> RowsMut<'a> {
    /// A dense matrix.
    ///
    /// # Errors
    /// As [`Rows::new`].
    pub fn new(data: impl Into<DataMut<'a>>, rows: usize, cols: usize) -> Result<Self> {
        Self::strided(data, rows, cols, cols)
    }

    /// A matrix whose rows are `stride` elements apart. What lies between the
    /// rows is never written.
    ///
    /// # Errors
    /// As [`Rows::strided`].
    pub fn strided(
        data: impl Into<DataMut<'a>>,
        rows: usize,
        cols: usize,
        stride: usize,
    ) -> Result<Self> {
        let data = data.into();
        check_layout("data", data.as_data().len(), rows, cols, stride)?;
        Ok(Self { data, rows, cols, stride })
    }

    /// A matrix in foreign memory.
    ///
    /// # Errors
    /// As [`Rows::from_raw_parts`].
    ///
    /// # Safety
    /// For the lifetime `'a`, `ptr` points to (`rows` − 1) · `stride` + `cols`
    /// initialised elements of `dtype`, in one allocation, which nobody else
    /// reads or writes.
    pub unsafe fn from_raw_parts(
        ptr: *mut u8,
        dtype: DType,
        rows: usize,
        cols: usize,
        stride: usize,
    ) -> Result<Self> {
        let len = layout_len("data", rows, cols, stride)?;
        // SAFETY: passed on to the caller.
        let data = unsafe { SliceMut::from_raw_parts(ptr, dtype, len)? };
        Ok(Self { data: data.into(), rows, cols, stride })
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.as_rows().dtype()
    }

    /// The memory that holds it.
    pub fn place(&self) -> Place {
        self.as_rows().place()
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The distance from one row to the next, in elements.
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// The same matrix, to read.
    pub fn as_rows(&self) -> Rows<'_> {
        let Self { rows, cols, stride, .. } = *self;
        Rows { data: self.data.as_data(), offset: 0, rows, cols, stride }
    }

    /// The same matrix, borrowed for a shorter time.
    pub fn reborrow(&mut self) -> RowsMut<'_> {
        let Self { rows, cols, stride, .. } = *self;
        RowsMut { data: self.data.reborrow(), rows, cols, stride }
    }

    /// The whole buffer, gaps between rows included.
    pub(crate) fn into_data(self) -> DataMut<'a> {
        self.data
    }

    /// `Err` unless the view has this shape.
    pub(crate) fn expect(&self, argument: &'static str, rows: usize, cols: usize) -> Result<()> {
        self.as_rows().expect(argument, rows, cols)
    }
}

/// The elements from the first of row 0 to the last of the last row.
pub(crate) fn layout_len(
    argument: &'static str,
    rows: usize,
    cols: usize,
    stride: usize,
) -> Result<usize> {
    if stride < cols {
        let expected = format!("at least {cols}");
        return Err(ErrorKind::Stride { argument, expected, got: stride }.into());
    }
    if rows == 0 {
        return Ok(0);
    }
    (rows - 1).checked_mul(stride).and_then(|len| len.checked_add(cols)).ok_or_else(|| {
        let expected = format!("at most {} elements in all", usize::MAX);
        ErrorKind::Stride { argument, expected, got: stride }.into()
    })
}

fn check_layout(
    argument: &'static str,
    len: usize,
    rows: usize,
    cols: usize,
    stride: usize,
) -> Result<()> {
    let expected = layout_len(argument, rows, cols, stride)?;
    if len < expected {
        return Err(ErrorKind::Buffer { argument, expected, got: len }.into());
    }
    Ok(())
}

fn check_pointer(ptr: *const u8, dtype: DType) -> Result<()> {
    if !ptr.is_null() && ptr.addr().is_multiple_of(dtype.size()) {
        return Ok(());
    }
    let expected = "a pointer that is not null and aligned to the dtype";
    Err(ErrorKind::Value { argument: "ptr", expected, got: format!("{ptr:?}") }.into())
}
