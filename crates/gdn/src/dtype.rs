//! Element types: f32, bf16 and f16, and how they become f32 and back.

use std::{fmt, str::FromStr};

use half::{bf16, f16, slice::HalfFloatSliceExt};

use crate::{
    ErrorKind, Result,
    views::{Slice, SliceMut},
};

/// The element type of a tensor. All arithmetic is f32, whatever the storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// IEEE 754 binary32.
    F32,
    /// bfloat16: the upper half of an f32.
    BF16,
    /// IEEE 754 binary16.
    F16,
}

impl DType {
    /// Every dtype, widest first.
    pub const ALL: [Self; 3] = [Self::F32, Self::BF16, Self::F16];

    /// The size of one element, in bytes.
    pub const fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::BF16 | Self::F16 => 2,
        }
    }

    /// The elements of this type in `bytes`, aligned or not, as f32.
    pub(crate) fn widen(self, bytes: &[u8], values: &mut [f32]) {
        fn of<T: Element>(bytes: &[u8], values: &mut [f32]) {
            match bytemuck::try_cast_slice(bytes) {
                Ok(elements) => T::widen(elements, values),
                Err(_) => {
                    let mut elements = vec![T::zeroed(); values.len()];
                    bytemuck::cast_slice_mut(&mut elements).copy_from_slice(bytes);
                    T::widen(&elements, values);
                }
            }
        }
        match self {
            Self::F32 => of::<f32>(bytes, values),
            Self::BF16 => of::<bf16>(bytes, values),
            Self::F16 => of::<f16>(bytes, values),
        }
    }

    /// The bytes of `values` rounded to this type.
    pub(crate) fn narrow(self, values: &[f32]) -> Vec<u8> {
        fn of<T: Element>(values: &[f32]) -> Vec<u8> {
            let mut elements = vec![T::zeroed(); values.len()];
            T::narrow(values, &mut elements);
            bytemuck::cast_slice(&elements).to_vec()
        }
        match self {
            Self::F32 => of::<f32>(values),
            Self::BF16 => of::<bf16>(values),
            Self::F16 => of::<f16>(values),
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::F32 => "f32",
            Self::BF16 => "bf16",
            Self::F16 => "f16",
        })
    }
}

impl FromStr for DType {
    type Err = crate::Error;

    /// Reads `f32`, `bf16`, `f16`, and PyTorch's `float32`, `bfloat16`,
    /// `float16`.
    fn from_str(s: &str) -> Result<Self> {
        match s {
            "f32" | "float32" => Ok(Self::F32),
            "bf16" | "bfloat16" => Ok(Self::BF16),
            "f16" | "float16" => Ok(Self::F16),
            _ => Err(ErrorKind::Value {
                argument: "dtype",
                expected: "f32, bf16 or f16",
                got: s.to_owned(),
            }
            .into()),
        }
    }
}

/// A Rust type that stores one element: `f32`, [`bf16`] or [`struct@f16`].
///
/// Sealed: the kernels know just these three.
pub trait Element: sealed::Sealed + bytemuck::Pod + Send + Sync + PartialEq + fmt::Debug {
    /// The dtype of this type.
    const DTYPE: DType;

    /// `src` to f32, exactly. Both slices have one length.
    fn widen(src: &[Self], dst: &mut [f32]);

    /// `src` rounded to this type, to nearest with ties to even; a NaN stays a
    /// NaN. Both slices have one length.
    fn narrow(src: &[f32], dst: &mut [Self]);

    /// The slice, its type known at run time.
    #[doc(hidden)]
    fn erase(slice: &[Self]) -> Slice<'_>;

    /// The slice, its type known at run time.
    #[doc(hidden)]
    fn erase_mut(slice: &mut [Self]) -> SliceMut<'_>;
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for half::bf16 {}
    impl Sealed for half::f16 {}
}

impl Element for f32 {
    const DTYPE: DType = DType::F32;

    #[inline(always)]
    fn widen(src: &[Self], dst: &mut [f32]) {
        dst.copy_from_slice(src);
    }

    #[inline(always)]
    fn narrow(src: &[f32], dst: &mut [Self]) {
        dst.copy_from_slice(src);
    }

    fn erase(slice: &[Self]) -> Slice<'_> {
        Slice::F32(slice)
    }

    fn erase_mut(slice: &mut [Self]) -> SliceMut<'_> {
        SliceMut::F32(slice)
    }
}

// Plain integer loops: inlined into a kernel compiled for AVX2 or AVX-512 they
// become vector code, which the per-element conversions of `half` do not.
impl Element for bf16 {
    const DTYPE: DType = DType::BF16;

    #[inline(always)]
    fn widen(src: &[Self], dst: &mut [f32]) {
        assert_eq!(src.len(), dst.len());
        for (d, s) in dst.iter_mut().zip(src) {
            *d = f32::from_bits(u32::from(s.to_bits()) << 16);
        }
    }

    #[inline(always)]
    fn narrow(src: &[f32], dst: &mut [Self]) {
        assert_eq!(src.len(), dst.len());
        for (d, s) in dst.iter_mut().zip(src) {
            let bits = s.to_bits();
            // Rounding would carry a NaN's payload into its sign: replace it.
            let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
            let bits = if s.is_nan() { 0x7fc0_0000 } else { rounded };
            *d = Self::from_bits((bits >> 16) as u16);
        }
    }

    fn erase(slice: &[Self]) -> Slice<'_> {
        Slice::BF16(slice)
    }

    fn erase_mut(slice: &mut [Self]) -> SliceMut<'_> {
        SliceMut::BF16(slice)
    }
}

impl Element for f16 {
    const DTYPE: DType = DType::F16;

    #[inline(always)]
    fn widen(src: &[Self], dst: &mut [f32]) {
        src.convert_to_f32_slice(dst);
    }

    #[inline(always)]
    fn narrow(src: &[f32], dst: &mut [Self]) {
        dst.convert_from_f32_slice(src);
    }

    fn erase(slice: &[Self]) -> Slice<'_> {
        Slice::F16(slice)
    }

    fn erase_mut(slice: &mut [Self]) -> SliceMut<'_> {
        SliceMut::F16(slice)
    }
}
