//! The expansion, used.
#![allow(missing_docs, clippy::missing_errors_doc, reason = "a test")]

use attn_core::{DType, Element, Error, bf16};
use attn_macros::dtype_variants;
use std::collections::HashMap;

/// A name of its own that the expansion must not mistake for the standard one.
type Result<V> = core::result::Result<V, Error>;

#[dtype_variants(f32, f64, f16, bf16, derive(Debug, Clone))]
#[derive(Debug, Clone, PartialEq)]
pub struct Factor<T> {
    pub factor: T,
}

#[dtype_variants(f32, f64, f16, bf16, name = "Scaling", derive(Debug, PartialEq))]
#[derive(Debug, PartialEq)]
pub struct ScalingOf<'a, T> {
    pub label: &'a str,
    pub offset: T,
}

/// What a method asks of its backend for each dtype.
pub trait Backend<T> {
    fn number(&self) -> f64;
}

/// Numbers the dtypes by their sizes.
pub struct Sizes;

impl<T: Element> Backend<T> for Sizes {
    fn number(&self) -> f64 {
        size_of::<T>() as f64
    }
}

#[dtype_variants(f32, f64, f16, bf16, name = "Scaling")]
impl<'a, T: Element> ScalingOf<'a, T> {
    /// `factor + offset`, `times` times, as `f64`.
    #[dispatch]
    pub fn sum(&self, factor: &Factor<T>, times: usize) -> Result<f64> {
        Ok((factor.factor.to_f64() + self.offset.to_f64()) * times as f64)
    }

    /// The argument's name is that of the match's own variable.
    #[dispatch]
    pub fn same_offset(&self, this: Factor<T>) -> Result<bool> {
        Ok(self.offset.to_f64() == this.factor.to_f64())
    }

    /// Sets the factor to the offset.
    #[dispatch]
    pub fn store(&self, factor: &mut Factor<T>) -> Result<()> {
        factor.factor = self.offset;
        Ok(())
    }

    /// The offset as a factor.
    #[dispatch]
    pub fn to_factor(&self) -> Factor<T> {
        Factor {
            factor: self.offset,
        }
    }

    /// The label.
    #[dispatch]
    pub fn label(&self) -> &'a str {
        self.label
    }

    /// With another label.
    #[dispatch]
    #[must_use]
    pub fn labelled(mut self, label: &'a str) -> Self {
        self.label = label;
        self
    }

    /// The greater of two.
    #[dispatch]
    pub fn max(self, other: ScalingOf<'a, T>) -> Result<ScalingOf<'a, T>> {
        if other.offset.to_f64() > self.offset.to_f64() {
            Ok(other)
        } else {
            Ok(self)
        }
    }

    /// Takes over another's offset.
    #[dispatch]
    pub fn follow(&mut self, other: &Self) -> Result<()> {
        self.offset = other.offset;
        Ok(())
    }

    /// The backend's number.
    #[dispatch]
    pub fn number<B: Backend<T>>(&self, backend: &B) -> f64 {
        backend.number()
    }

    /// The same by other ways of writing a bound.
    #[dispatch]
    pub fn numbers<B>(&self, backend: &B, other: &impl Backend<T>) -> [f64; 2]
    where
        B: Backend<T>,
    {
        [backend.number(), other.number()]
    }

    /// A type that no argument tells.
    #[dispatch]
    pub fn offset_as<V: From<f32>>(&self) -> HashMap<&'a str, V> {
        HashMap::from([(self.label, V::from(self.offset.to_f64() as f32))])
    }
}

#[dtype_variants(f32, f16)]
pub struct Padded<S: Copy, T, const N: usize>
where
    Vec<T>: Clone,
{
    pub tag: S,
    pub data: [T; N],
}

#[dtype_variants(f32, f16)]
impl<S: Copy, T, const N: usize> Padded<S, T, N>
where
    Vec<T>: Clone,
{
    /// Tag and length.
    #[dispatch]
    pub fn len(&self) -> (S, usize) {
        (self.tag, self.data.len())
    }
}

fn scaling(offset: f32) -> AnyScaling<'static> {
    ScalingF32 { label: "x", offset }.into()
}

#[test]
fn the_enum_dispatches_to_the_variant_of_its_dtype() {
    let layer = scaling(1.0);
    let mut factor: AnyFactor = FactorF32 { factor: 2.0 }.into();
    assert_eq!(layer.dtype(), DType::F32);
    assert_eq!(layer.sum(&factor, 3), Ok(9.0));
    assert_eq!(layer.same_offset(factor.clone()), Ok(false));
    layer.store(&mut factor).unwrap();
    assert_eq!(layer.same_offset(factor.clone()), Ok(true));
    assert_eq!(FactorF32::try_from(factor), Ok(FactorF32 { factor: 1.0 }));
    assert_eq!(layer.to_factor().dtype(), DType::F32);
    assert_eq!(layer.label(), "x");
}

#[test]
fn the_own_type_is_taken_and_returned_as_the_enum() {
    let greater = scaling(1.0).max(scaling(3.0)).unwrap();
    assert_eq!(greater, scaling(3.0));
    assert_eq!(greater.labelled("y").label(), "y");
    let mut layer = scaling(1.0);
    layer.follow(&scaling(2.0)).unwrap();
    assert_eq!(layer, scaling(2.0));
}

#[test]
fn bounds_are_those_of_every_dtype() {
    let layers: [AnyScaling<'_>; 2] = [
        scaling(1.0),
        ScalingF64 {
            label: "x",
            offset: 1.0,
        }
        .into(),
    ];
    assert_eq!(
        layers.each_ref().map(|layer| layer.number(&Sizes)),
        [4.0, 8.0]
    );
    assert_eq!(layers[1].numbers(&Sizes, &Sizes), [8.0, 8.0]);
    assert_eq!(layers[0].offset_as::<f64>()["x"], 1.0);
}

#[test]
fn const_parameters_are_kept() {
    let padded: AnyPadded<u8, 3> = PaddedF32 {
        tag: 7,
        data: [0.0; 3],
    }
    .into();
    assert_eq!(padded.len(), (7, 3));
}

#[test]
fn another_dtype_is_a_typed_error() {
    let layer: AnyScaling<'_> = ScalingBF16 {
        label: "x",
        offset: bf16::ONE,
    }
    .into();
    let mut factor: AnyFactor = FactorF64 { factor: 2.0 }.into();
    let error = Error::dtype_mismatch("factor", DType::F64, DType::BF16);
    assert_eq!(layer.sum(&factor, 1), Err(error));
    assert_eq!(layer.store(&mut factor), Err(error));
    assert_eq!(layer.same_offset(factor), Err(error));
}
