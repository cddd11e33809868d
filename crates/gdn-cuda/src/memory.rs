//! Typed device memory: addresses, buffers and views of their parts.

use std::fmt;
use std::marker::PhantomData;
use std::ops::{Bound, RangeBounds};

use bytemuck::{Pod, Zeroable};

use crate::arena::Region;
use crate::error::{Error, Result};

/// A device address, to put into a kernel's parameters: 8 bytes, `T*` on the other side.
///
/// It keeps nothing alive and cannot be read from the host.
#[repr(transparent)]
pub struct DevicePtr<T> {
    address: u64,
    _type: PhantomData<fn() -> T>,
}

// SAFETY: a transparent wrapper of a `u64`, for which zero is valid.
unsafe impl<T> Zeroable for DevicePtr<T> {}
// SAFETY: a transparent wrapper of a `u64`: any bits are valid, none are padding.
unsafe impl<T: 'static> Pod for DevicePtr<T> {}

impl<T> DevicePtr<T> {
    /// The null address.
    pub const NULL: Self = Self::from_address(0);

    /// The address `address`, which need not be valid.
    pub const fn from_address(address: u64) -> Self {
        Self { address, _type: PhantomData }
    }

    /// The address as a number.
    pub const fn address(self) -> u64 {
        self.address
    }

    /// The same address, of another type.
    pub const fn cast<U>(self) -> DevicePtr<U> {
        DevicePtr::from_address(self.address)
    }
}

impl<T> Clone for DevicePtr<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for DevicePtr<T> {}

impl<T> PartialEq for DevicePtr<T> {
    fn eq(&self, other: &Self) -> bool {
        self.address == other.address
    }
}

impl<T> Eq for DevicePtr<T> {}

impl<T> fmt::Debug for DevicePtr<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.address)
    }
}

/// A typed part of an [`Arena`](crate::Arena), aligned to 256 bytes. Dropping it gives the part
/// back; the arena's page says when that is sound.
pub struct DeviceBuffer<T> {
    region: Region,
    len: usize,
    _type: PhantomData<T>,
}

impl<T> DeviceBuffer<T> {
    pub(crate) fn new(region: Region, len: usize) -> Self {
        Self { region, len, _type: PhantomData }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds no element.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Its size in bytes.
    pub fn bytes(&self) -> usize {
        self.len * size_of::<T>()
    }

    /// The address of its first element, for a kernel's parameters.
    pub fn ptr(&self) -> DevicePtr<T> {
        DevicePtr::from_address(self.region.address())
    }

    /// All of it, to read.
    pub fn view(&self) -> DeviceSlice<'_, T> {
        let gpu = self.region.gpu();
        DeviceSlice { ptr: self.ptr(), len: self.len, gpu, _borrow: PhantomData }
    }

    /// All of it, to write.
    pub fn view_mut(&mut self) -> DeviceSliceMut<'_, T> {
        let gpu = self.region.gpu();
        DeviceSliceMut { ptr: self.ptr(), len: self.len, gpu, _borrow: PhantomData }
    }

    /// The elements of `range`, to read.
    ///
    /// # Errors
    /// [`InvalidArgument`](crate::ErrorKind::InvalidArgument) for a range that is not inside.
    pub fn slice(&self, range: impl RangeBounds<usize>) -> Result<DeviceSlice<'_, T>> {
        let (start, len) = resolve(range, self.len)?;
        let address = self.ptr().address() + (start * size_of::<T>()) as u64;
        let (ptr, gpu) = (DevicePtr::from_address(address), self.region.gpu());
        Ok(DeviceSlice { ptr, len, gpu, _borrow: PhantomData })
    }

    /// The elements of `range`, to write.
    ///
    /// # Errors
    /// As [`slice`](Self::slice).
    pub fn slice_mut(&mut self, range: impl RangeBounds<usize>) -> Result<DeviceSliceMut<'_, T>> {
        let DeviceSlice { ptr, len, gpu, .. } = self.slice(range)?;
        Ok(DeviceSliceMut { ptr, len, gpu, _borrow: PhantomData })
    }
}

impl<T> fmt::Debug for DeviceBuffer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = std::any::type_name::<T>();
        write!(f, "DeviceBuffer({} × {name} at {:?})", self.len, self.ptr())
    }
}

/// Part of a [`DeviceBuffer`], to read.
pub struct DeviceSlice<'a, T> {
    ptr: DevicePtr<T>,
    len: usize,
    gpu: usize,
    _borrow: PhantomData<&'a T>,
}

/// Part of a [`DeviceBuffer`], to write.
pub struct DeviceSliceMut<'a, T> {
    ptr: DevicePtr<T>,
    len: usize,
    gpu: usize,
    _borrow: PhantomData<&'a mut T>,
}

impl<T> Clone for DeviceSlice<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for DeviceSlice<'_, T> {}

macro_rules! slice_methods {
    ($name:ident) => {
        impl<T> $name<'_, T> {
            /// `len` elements of foreign memory at `ptr`, on GPU number `gpu`.
            ///
            /// # Safety
            /// For the lifetime of the slice, they lie in one allocation of that GPU, aligned to
            /// `T`, and nobody uses them in a way that a Rust slice of this mutability forbids.
            pub unsafe fn from_raw_parts(ptr: DevicePtr<T>, len: usize, gpu: usize) -> Self {
                Self { ptr, len, gpu, _borrow: PhantomData }
            }

            /// The number of the GPU that holds them.
            pub fn gpu(&self) -> usize {
                self.gpu
            }

            /// Number of elements.
            pub fn len(&self) -> usize {
                self.len
            }

            /// Whether it holds no element.
            pub fn is_empty(&self) -> bool {
                self.len == 0
            }

            /// Its size in bytes.
            pub fn bytes(&self) -> usize {
                self.len * size_of::<T>()
            }

            /// The address of its first element, for a kernel's parameters.
            pub fn ptr(&self) -> DevicePtr<T> {
                self.ptr
            }
        }

        impl<T> fmt::Debug for $name<'_, T> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let (name, of) = (stringify!($name), std::any::type_name::<T>());
                write!(f, "{name}({} × {of} at {:?})", self.len, self.ptr)
            }
        }
    };
}
slice_methods!(DeviceSlice);
slice_methods!(DeviceSliceMut);

/// Start and length of `range` in a buffer of `len` elements.
fn resolve(range: impl RangeBounds<usize>, len: usize) -> Result<(usize, usize)> {
    let start = match range.start_bound() {
        Bound::Included(&at) => Some(at),
        Bound::Excluded(&at) => at.checked_add(1),
        Bound::Unbounded => Some(0),
    };
    let end = match range.end_bound() {
        Bound::Included(&at) => at.checked_add(1),
        Bound::Excluded(&at) => Some(at),
        Bound::Unbounded => Some(len),
    };
    match (start, end) {
        (Some(start), Some(end)) if start <= end && end <= len => Ok((start, end - start)),
        _ => Err(Error::argument(format!(
            "elements {:?} to {:?} are not inside a device buffer of {len} elements",
            range.start_bound(),
            range.end_bound()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_resolve_inside_and_are_refused_outside() {
        assert_eq!(resolve(.., 5).unwrap(), (0, 5));
        assert_eq!(resolve(2..=4, 5).unwrap(), (2, 3));
        assert_eq!(resolve(5.., 5).unwrap(), (5, 0));
        assert!(resolve(..6, 5).is_err());
        assert!(resolve(6.., 5).is_err());
        assert!(resolve(..=usize::MAX, 5).is_err());
        #[expect(clippy::reversed_empty_ranges)]
        let backwards = resolve(3..2, 5);
        let e = backwards.unwrap_err();
        assert!(e.to_string().contains("buffer of 5 elements"), "{e}");
    }

    #[test]
    fn an_address_is_eight_plain_bytes() {
        assert_eq!(size_of::<DevicePtr<f32>>(), 8);
        let p = DevicePtr::<f32>::from_address(0x100);
        assert_eq!(bytemuck::bytes_of(&p), 0x100u64.to_ne_bytes());
        assert_eq!(p.cast::<u8>().address(), 0x100);
        assert_eq!(DevicePtr::<u8>::NULL, Zeroable::zeroed());
    }
}
