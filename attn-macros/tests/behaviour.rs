//! The expansion, used.
#![allow(missing_docs, reason = "a test")]

use attn_core::{DType, Element, Error, bf16};
use attn_macros::dtype_variants;

#[dtype_variants(f32, f64, f16, bf16, derive(Debug, Clone))]
#[derive(Debug, Clone, PartialEq)]
pub struct Factor<T> {
    pub factor: T,
}

#[dtype_variants(f32, f64, f16, bf16, name = "Scaling", derive(Debug))]
#[derive(Debug)]
pub struct ScalingOf<'a, T> {
    pub label: &'a str,
    pub offset: T,
}

#[dtype_variants(f32, f64, f16, bf16, name = "Scaling")]
impl<'a, T: Element> ScalingOf<'a, T> {
    /// `factor + offset` as `f64`.
    ///
    /// # Errors
    ///
    /// None of its own.
    #[dispatch]
    pub fn sum(&self, factor: &Factor<T>, times: usize) -> Result<f64, Error> {
        Ok((factor.factor.to_f64() + self.offset.to_f64()) * times as f64)
    }

    /// Sets the factor to the offset.
    ///
    /// # Errors
    ///
    /// None of its own.
    #[dispatch]
    pub fn store(&self, factor: &mut Factor<T>) -> Result<(), Error> {
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
}

#[test]
fn the_enum_dispatches_to_the_variant_of_its_dtype() {
    let layer: AnyScaling<'_> = ScalingF32 {
        label: "x",
        offset: 1.0,
    }
    .into();
    let mut factor: AnyFactor = FactorF32 { factor: 2.0 }.into();
    assert_eq!(layer.dtype(), DType::F32);
    assert_eq!(layer.sum(&factor, 3), Ok(9.0));
    layer.store(&mut factor).unwrap();
    assert_eq!(FactorF32::try_from(factor), Ok(FactorF32 { factor: 1.0 }));
    assert_eq!(layer.to_factor().dtype(), DType::F32);
    assert_eq!(layer.label(), "x");
}

#[test]
fn another_dtype_is_a_typed_error() {
    let layer: AnyScaling<'_> = ScalingBF16 {
        label: "x",
        offset: bf16::ONE,
    }
    .into();
    let factor: AnyFactor = FactorF64 { factor: 2.0 }.into();
    assert_eq!(
        layer.sum(&factor, 1),
        Err(Error::dtype_mismatch("factor", DType::F64, DType::BF16))
    );
}
