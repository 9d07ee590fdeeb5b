//! Arrays of a type known only at run time: what a weight file holds and a caller passes.

use attn_core::{Dims, Element, Error, Result, Scalar, ScalarType, bf16, f16};
use core::fmt;

#[cfg(feature = "alloc")]
use alloc::{borrow::Cow, vec, vec::Vec};
#[cfg(feature = "alloc")]
use attn_core::DType;

/// A borrowed array: row-major, little-endian bytes, aligned or not.
///
/// ```
/// use attn_layers::{ScalarType, tensor::TensorView};
/// let bytes = [0, 0, 128, 63, 0, 0, 0, 64];
/// let view = TensorView::new(ScalarType::F32, &[2], &bytes)?;
/// assert_eq!((view.get_f64(0), view.get_f64(1)), (1.0, 2.0));
/// # Ok::<(), attn_layers::Error>(())
/// ```
#[derive(Clone, Copy, PartialEq)]
pub struct TensorView<'a> {
    scalar: ScalarType,
    shape: Dims,
    bytes: &'a [u8],
}

impl<'a> TensorView<'a> {
    /// An array of `shape` over `bytes`.
    ///
    /// # Errors
    ///
    /// [`Error::Buffer`] (in bytes) if the length does not fit; [`Error::Rank`], [`Error::TooLarge`].
    pub fn new(scalar: ScalarType, shape: &[usize], bytes: &'a [u8]) -> Result<Self> {
        let shape = Dims::new(shape)?;
        let wanted = byte_length(scalar, &shape)?;
        if bytes.len() != wanted {
            return Err(Error::Buffer {
                argument: "bytes",
                got: bytes.len(),
                wanted,
            });
        }
        Ok(Self {
            scalar,
            shape,
            bytes,
        })
    }

    /// A slice as an array of `shape`, on a little-endian machine.
    ///
    /// # Errors
    ///
    /// As [`TensorView::new`].
    pub fn from_slice<T: Scalar>(slice: &'a [T], shape: &[usize]) -> Result<Self> {
        Self::new(T::SCALAR, shape, bytemuck::cast_slice(slice))
    }

    /// Type of the elements.
    #[must_use]
    pub const fn scalar(&self) -> ScalarType {
        self.scalar
    }

    /// Axis lengths.
    #[must_use]
    pub const fn shape(&self) -> &Dims {
        &self.shape
    }

    /// The elements' bytes.
    #[must_use]
    pub const fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Number of elements.
    #[must_use]
    pub const fn elements(&self) -> usize {
        self.bytes.len() / self.scalar.size()
    }

    /// The elements as they lie, if they are of type `T`, aligned for it, and the machine is little-endian.
    #[must_use]
    pub fn as_slice<T: Scalar>(&self) -> Option<&'a [T]> {
        if self.scalar != T::SCALAR || cfg!(target_endian = "big") {
            return None;
        }
        bytemuck::try_cast_slice(self.bytes).ok()
    }

    /// The same elements under another shape.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] if the number of elements differs.
    pub fn reshape(&self, shape: &[usize]) -> Result<Self> {
        let wanted = Dims::new(shape)?;
        if wanted.elements()? != self.elements() {
            return Err(Error::Shape {
                argument: "shape",
                got: wanted,
                wanted: self.shape,
            });
        }
        Ok(Self {
            shape: wanted,
            ..*self
        })
    }

    /// Element `index` (row-major) as `f64`, rounded if it is a 64-bit integer.
    ///
    /// # Panics
    ///
    /// If `index` is not less than [`TensorView::elements`].
    #[must_use]
    pub fn get_f64(&self, index: usize) -> f64 {
        macro_rules! read {
            ($type:ty) => {
                <$type>::from_le_bytes(self.element(index))
            };
        }
        match self.scalar {
            ScalarType::Bool => f64::from(u8::from(read!(u8) != 0)),
            ScalarType::U8 => read!(u8).into(),
            ScalarType::I8 => read!(i8).into(),
            ScalarType::I16 => read!(i16).into(),
            ScalarType::U16 => read!(u16).into(),
            ScalarType::I32 => read!(i32).into(),
            ScalarType::U32 => read!(u32).into(),
            ScalarType::I64 => read!(i64) as f64,
            ScalarType::U64 => read!(u64) as f64,
            ScalarType::F16 => Element::to_f64(read!(f16)),
            ScalarType::BF16 => Element::to_f64(read!(bf16)),
            ScalarType::F32 => read!(f32).into(),
            ScalarType::F64 => read!(f64),
        }
    }

    /// Element `index` as an `f64` that rounds to `T` as the element itself does.
    fn get_for<T: Element>(&self, index: usize) -> f64 {
        match self.scalar {
            _ if T::SCALAR == ScalarType::F64 => self.get_f64(index),
            ScalarType::U64 => odd_f64(u64::from_le_bytes(self.element(index))),
            ScalarType::I64 => {
                let value = i64::from_le_bytes(self.element(index));
                odd_f64(value.unsigned_abs()).copysign(value as f64)
            }
            _ => self.get_f64(index),
        }
    }

    fn element<const N: usize>(&self, index: usize) -> [u8; N] {
        let mut bytes = [0; N];
        bytes.copy_from_slice(&self.bytes[index * N..(index + 1) * N]);
        bytes
    }

    /// All elements as `f64`, row-major.
    pub fn iter_f64(&self) -> impl Iterator<Item = f64> + '_ {
        (0..self.elements()).map(|index| self.get_f64(index))
    }

    /// Whether element `index` counts as true: it is not 0. NaN is not 0.
    ///
    /// # Panics
    ///
    /// As [`TensorView::get_f64`].
    #[must_use]
    pub fn is_nonzero(&self, index: usize) -> bool {
        // A 64-bit integer rounds to 0 only if it is 0.
        self.get_f64(index) != 0.0
    }

    /// Casts every element, each rounded once, as JAX's `astype` does.
    ///
    /// # Errors
    ///
    /// [`Error::Buffer`] if `to` is not exactly as long.
    pub fn copy_into<T: Element>(&self, to: &mut [T]) -> Result<()> {
        if to.len() != self.elements() {
            return Err(Error::Buffer {
                argument: "to",
                got: to.len(),
                wanted: self.elements(),
            });
        }
        if let Some(same) = self.as_slice::<T>() {
            to.copy_from_slice(same);
        } else {
            for (index, to) in to.iter_mut().enumerate() {
                *to = T::from_f64(self.get_for::<T>(index));
            }
        }
        Ok(())
    }

    /// Casts every element into a new vector.
    ///
    /// # Errors
    ///
    /// [`Error::TooLarge`] if there is no memory for it.
    #[cfg(feature = "alloc")]
    pub fn to_vec<T: Element>(&self) -> Result<Vec<T>> {
        let mut to = filled(T::default(), self.elements(), &self.shape)?;
        self.copy_into(&mut to)?;
        Ok(to)
    }

    /// The elements as `T`: as they lie where nothing changes, else cast into a new vector.
    ///
    /// # Errors
    ///
    /// As [`TensorView::to_vec`].
    #[cfg(feature = "alloc")]
    pub fn cast<T: Element>(&self) -> Result<Cow<'a, [T]>> {
        match self.as_slice::<T>() {
            Some(same) => Ok(Cow::Borrowed(same)),
            None => Ok(Cow::Owned(self.to_vec()?)),
        }
    }
}

impl fmt::Debug for TensorView<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.scalar, self.shape)
    }
}

/// Cuts to the 53 bits of an `f64`, its last bit set if any was lost: rounding that to fewer bits is rounding once.
fn odd_f64(value: u64) -> f64 {
    let surplus = (u64::BITS - value.leading_zeros()).saturating_sub(f64::MANTISSA_DIGITS);
    let cut = value >> surplus;
    let odd = cut | u64::from(cut << surplus != value);
    (odd << surplus) as f64
}

fn byte_length(scalar: ScalarType, shape: &Dims) -> Result<usize> {
    shape
        .elements()?
        .checked_mul(scalar.size())
        .ok_or(Error::TooLarge {
            argument: "shape",
            got: *shape,
        })
}

/// A vector of `len` equal elements; an error, not an abort, where there is no memory.
#[cfg(feature = "alloc")]
pub(crate) fn filled<T: Clone>(value: T, len: usize, shape: &Dims) -> Result<Vec<T>> {
    let mut vector = Vec::new();
    vector.try_reserve_exact(len).map_err(|_| Error::TooLarge {
        argument: "shape",
        got: *shape,
    })?;
    vector.resize(len, value);
    Ok(vector)
}

/// An owned array. Its bytes are aligned for every element type.
#[cfg(feature = "alloc")]
#[derive(Clone)]
pub struct Tensor {
    scalar: ScalarType,
    shape: Dims,
    words: Vec<u64>,
}

#[cfg(feature = "alloc")]
impl Tensor {
    /// An array of zeros.
    ///
    /// # Errors
    ///
    /// [`Error::TooLarge`] if there is no memory for it; [`Error::Rank`].
    pub fn zeros(scalar: ScalarType, shape: &[usize]) -> Result<Self> {
        let shape = Dims::new(shape)?;
        let words = byte_length(scalar, &shape)?.div_ceil(size_of::<u64>());
        Ok(Self {
            scalar,
            shape,
            words: filled(0, words, &shape)?,
        })
    }

    /// A copy of `slice` as an array of `shape`.
    ///
    /// # Errors
    ///
    /// [`Error::Buffer`] if the length does not fit; those of [`Tensor::zeros`].
    pub fn from_slice<T: Scalar>(slice: &[T], shape: &[usize]) -> Result<Self> {
        TensorView::from_slice(slice, shape)?.to_tensor()
    }

    /// An array of `shape` with the values of `values`, each rounded once (floats) or cut (integers).
    ///
    /// # Errors
    ///
    /// [`Error::Buffer`] if there are more or fewer values; those of [`Tensor::zeros`].
    pub fn from_f64s(
        scalar: ScalarType,
        shape: &[usize],
        values: impl IntoIterator<Item = f64>,
    ) -> Result<Self> {
        let mut tensor = Self::zeros(scalar, shape)?;
        let wanted = tensor.view().elements();
        let mut got = 0;
        for value in values {
            if got == wanted {
                return Err(Error::Buffer {
                    argument: "values",
                    got: got + 1,
                    wanted,
                });
            }
            tensor.set_f64(got, value);
            got += 1;
        }
        if got != wanted {
            return Err(Error::Buffer {
                argument: "values",
                got,
                wanted,
            });
        }
        Ok(tensor)
    }

    fn set_f64(&mut self, index: usize, value: f64) {
        let size = self.scalar.size();
        let bytes = &mut bytemuck::cast_slice_mut::<u64, u8>(&mut self.words)
            [index * size..(index + 1) * size];
        match self.scalar {
            ScalarType::Bool => bytes.copy_from_slice(&[u8::from(value != 0.0)]),
            ScalarType::U8 => bytes.copy_from_slice(&(value as u8).to_le_bytes()),
            ScalarType::I8 => bytes.copy_from_slice(&(value as i8).to_le_bytes()),
            ScalarType::I16 => bytes.copy_from_slice(&(value as i16).to_le_bytes()),
            ScalarType::U16 => bytes.copy_from_slice(&(value as u16).to_le_bytes()),
            ScalarType::I32 => bytes.copy_from_slice(&(value as i32).to_le_bytes()),
            ScalarType::U32 => bytes.copy_from_slice(&(value as u32).to_le_bytes()),
            ScalarType::I64 => bytes.copy_from_slice(&(value as i64).to_le_bytes()),
            ScalarType::U64 => bytes.copy_from_slice(&(value as u64).to_le_bytes()),
            ScalarType::F16 => {
                bytes.copy_from_slice(&<f16 as Element>::from_f64(value).to_le_bytes())
            }
            ScalarType::BF16 => {
                bytes.copy_from_slice(&<bf16 as Element>::from_f64(value).to_le_bytes())
            }
            ScalarType::F32 => bytes.copy_from_slice(&(value as f32).to_le_bytes()),
            ScalarType::F64 => bytes.copy_from_slice(&value.to_le_bytes()),
        }
    }

    /// Type of the elements.
    #[must_use]
    pub const fn scalar(&self) -> ScalarType {
        self.scalar
    }

    /// Axis lengths.
    #[must_use]
    pub const fn shape(&self) -> &Dims {
        &self.shape
    }

    /// A view of the whole array.
    #[must_use]
    pub fn view(&self) -> TensorView<'_> {
        let bytes = bytemuck::cast_slice::<u64, u8>(&self.words);
        let len = self.shape.iter().product::<usize>() * self.scalar.size();
        TensorView {
            scalar: self.scalar,
            shape: self.shape,
            bytes: &bytes[..len],
        }
    }

    /// The elements, if they are of type `T`.
    #[must_use]
    pub fn as_slice<T: Scalar>(&self) -> Option<&[T]> {
        self.view().as_slice()
    }

    /// The elements, if they are of type `T`.
    pub fn as_mut_slice<T: Scalar>(&mut self) -> Option<&mut [T]> {
        if self.scalar != T::SCALAR || cfg!(target_endian = "big") {
            return None;
        }
        let len = self.shape.iter().product::<usize>();
        bytemuck::cast_slice_mut::<u64, T>(&mut self.words).get_mut(..len)
    }

    /// The elements' bytes.
    pub fn as_mut_bytes(&mut self) -> &mut [u8] {
        let len = self.view().bytes.len();
        &mut bytemuck::cast_slice_mut::<u64, u8>(&mut self.words)[..len]
    }

    /// The same values in another type, each rounded once.
    ///
    /// # Errors
    ///
    /// Those of [`Tensor::zeros`].
    pub fn to_dtype(&self, dtype: DType) -> Result<Self> {
        self.view().to_scalar(dtype.scalar())
    }

    /// The same elements under another shape.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] if the number of elements differs.
    pub fn reshape(mut self, shape: &[usize]) -> Result<Self> {
        self.shape = *self.view().reshape(shape)?.shape();
        Ok(self)
    }

    /// All elements as `f64`, row-major.
    #[must_use]
    pub fn to_vec_f64(&self) -> Vec<f64> {
        self.view().iter_f64().collect()
    }
}

#[cfg(feature = "alloc")]
impl TensorView<'_> {
    /// A copy.
    ///
    /// # Errors
    ///
    /// [`Error::TooLarge`] if there is no memory for it.
    pub fn to_tensor(&self) -> Result<Tensor> {
        let mut tensor = Tensor::zeros(self.scalar, self.shape.as_slice())?;
        bytemuck::cast_slice_mut::<u64, u8>(&mut tensor.words)[..self.bytes.len()]
            .copy_from_slice(self.bytes);
        Ok(tensor)
    }

    /// The same values in another type: floats rounded once, integers cut.
    ///
    /// # Errors
    ///
    /// As [`TensorView::to_tensor`].
    pub fn to_scalar(&self, scalar: ScalarType) -> Result<Tensor> {
        if scalar == self.scalar {
            return self.to_tensor();
        }
        let mut tensor = Tensor::zeros(scalar, self.shape.as_slice())?;
        for (index, value) in self.iter_f64().enumerate() {
            tensor.set_f64(index, value);
        }
        Ok(tensor)
    }
}

#[cfg(feature = "alloc")]
impl From<TensorView<'_>> for Tensor {
    fn from(view: TensorView<'_>) -> Self {
        let mut words = vec![0u64; view.bytes.len().div_ceil(size_of::<u64>())];
        bytemuck::cast_slice_mut::<u64, u8>(&mut words)[..view.bytes.len()]
            .copy_from_slice(view.bytes);
        Self {
            scalar: view.scalar,
            shape: view.shape,
            words,
        }
    }
}

#[cfg(feature = "alloc")]
impl PartialEq for Tensor {
    fn eq(&self, other: &Self) -> bool {
        self.view() == other.view()
    }
}

#[cfg(feature = "alloc")]
impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.view(), f)
    }
}

#[cfg(all(test, feature = "alloc"))]
mod tests {
    use super::*;

    #[test]
    fn every_type_keeps_small_values() {
        for scalar in ScalarType::ALL {
            let tensor = Tensor::from_f64s(scalar, &[3], [0.0, 1.0, 1.0]).unwrap();
            assert_eq!(tensor.to_vec_f64(), [0.0, 1.0, 1.0], "{scalar}");
            assert!(!tensor.view().is_nonzero(0) && tensor.view().is_nonzero(2));
        }
    }

    #[test]
    fn a_64_bit_integer_is_rounded_once() {
        // Just above the tie between two f32; an f64 cannot hold the difference, and the tie goes down to even.
        let above_tie: i64 = (1 << 62) + (1 << 38) + 1;
        let up = ((1i64 << 62) + (1 << 39)) as f32;
        for (value, wanted) in [
            (above_tie, up),
            (-above_tie, -up),
            (3, 3.0),
            (i64::MIN, -(2f32.powi(63))),
        ] {
            let bytes = value.to_le_bytes();
            let view = TensorView::new(ScalarType::I64, &[1], &bytes).unwrap();
            assert_eq!(view.to_vec::<f32>().unwrap(), [wanted]);
        }
        let bytes = u64::MAX.to_le_bytes();
        let view = TensorView::new(ScalarType::U64, &[1], &bytes).unwrap();
        assert_eq!(view.to_vec::<f32>().unwrap(), [2f32.powi(64)]);
    }

    #[test]
    fn unaligned_bytes_are_read() {
        let mut bytes = [0u8; 9];
        bytes[1..5].copy_from_slice(&1.5f32.to_le_bytes());
        bytes[5..9].copy_from_slice(&(-2.0f32).to_le_bytes());
        let view = TensorView::new(ScalarType::F32, &[2], &bytes[1..]).unwrap();
        assert_eq!(view.to_vec::<f32>().unwrap(), [1.5, -2.0]);
    }

    #[test]
    fn a_shape_beyond_memory_is_an_error() {
        assert!(matches!(
            Tensor::zeros(ScalarType::F64, &[usize::MAX / 2]),
            Err(Error::TooLarge { .. })
        ));
        assert!(matches!(
            Tensor::zeros(ScalarType::U8, &[isize::MAX as usize - 8]),
            Err(Error::TooLarge { .. })
        ));
    }
}
