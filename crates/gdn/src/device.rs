//! Where tensors lie, and views of those that lie on a GPU.

use std::{fmt, marker::PhantomData};

use gdn_cuda::{DeviceSlice, DeviceSliceMut};

use crate::{DType, Element};

/// The memory that holds a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// Memory of the host.
    Host,
    /// Memory of the CUDA GPU of this number, counted from 0.
    Cuda(usize),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host => f.pad("host memory"),
            Self::Cuda(gpu) => write!(f, "memory of cuda:{gpu}"),
        }
    }
}

/// Elements on a GPU: an address and what lies there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Region {
    pub(crate) address: u64,
    pub(crate) dtype: DType,
    pub(crate) len: usize,
    pub(crate) gpu: usize,
}

/// Elements on a GPU to read, their type known at run time. Made from a
/// [`gdn_cuda::DeviceSlice`].
#[derive(Clone, Copy, Debug)]
pub struct DeviceElements<'a> {
    pub(crate) region: Region,
    borrow: PhantomData<&'a [u8]>,
}

/// Elements on a GPU to write: as [`DeviceElements`].
#[derive(Debug)]
pub struct DeviceElementsMut<'a> {
    pub(crate) region: Region,
    borrow: PhantomData<&'a mut [u8]>,
}

impl DeviceElements<'_> {
    pub(crate) fn new(region: Region) -> Self {
        Self { region, borrow: PhantomData }
    }
}

impl DeviceElementsMut<'_> {
    pub(crate) fn new(region: Region) -> Self {
        Self { region, borrow: PhantomData }
    }
}

impl<'a, T: Element> From<DeviceSlice<'a, T>> for DeviceElements<'a> {
    fn from(slice: DeviceSlice<'a, T>) -> Self {
        let (address, len, gpu) = (slice.ptr().address(), slice.len(), slice.gpu());
        Self::new(Region { address, dtype: T::DTYPE, len, gpu })
    }
}

impl<'a, T: Element> From<DeviceSliceMut<'a, T>> for DeviceElementsMut<'a> {
    fn from(slice: DeviceSliceMut<'a, T>) -> Self {
        let (address, len, gpu) = (slice.ptr().address(), slice.len(), slice.gpu());
        Self::new(Region { address, dtype: T::DTYPE, len, gpu })
    }
}

/// The slots of a batch on a GPU: integers that the host does not see.
#[derive(Clone, Copy, Debug)]
pub struct DeviceIntegers<'a> {
    pub(crate) address: u64,
    pub(crate) len: usize,
    pub(crate) gpu: usize,
    /// Whether they are i64, else i32.
    pub(crate) wide: bool,
    borrow: PhantomData<&'a [u8]>,
}

impl DeviceIntegers<'_> {
    pub(crate) fn new(address: u64, len: usize, gpu: usize, wide: bool) -> Self {
        Self { address, len, gpu, wide, borrow: PhantomData }
    }
}

impl<'a> From<DeviceSlice<'a, i32>> for DeviceIntegers<'a> {
    fn from(slice: DeviceSlice<'a, i32>) -> Self {
        Self::new(slice.ptr().address(), slice.len(), slice.gpu(), false)
    }
}

impl<'a> From<DeviceSlice<'a, i64>> for DeviceIntegers<'a> {
    fn from(slice: DeviceSlice<'a, i64>) -> Self {
        Self::new(slice.ptr().address(), slice.len(), slice.gpu(), true)
    }
}
