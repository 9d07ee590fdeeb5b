//! `attn_mask` as a backend takes it: which keys a query sees, and what is added to the scores.

use crate::tensor::{Tensor, TensorView, filled};
use alloc::{borrow::Cow, vec::Vec};
use attn_core::{Dims, Host, HostView, Mask, Result, ScalarType};

/// The parts of a mask, both of its own shape.
pub(super) struct Parts<'a> {
    shape: Dims,
    keep: Option<Cow<'a, [u8]>>,
    added: Option<Added<'a>>,
}

/// What is added to the scores.
enum Added<'a> {
    Given(TensorView<'a>),
    /// With 0 where a key is hidden.
    Made(Tensor),
}

impl<'a> Parts<'a> {
    pub(super) fn new(mask: TensorView<'a>) -> Result<Self> {
        let shape = *mask.shape();
        if mask.scalar() == ScalarType::Bool {
            return Ok(Self {
                shape,
                keep: Some(Cow::Borrowed(mask.bytes())),
                added: None,
            });
        }
        let (keep, added) = match hidden(&mask)? {
            None => (None, Added::Given(mask)),
            Some(keep) => {
                let kept = |(value, keep): (f64, &u8)| if *keep == 0 { 0.0 } else { value };
                let values = mask.iter_f64().zip(&keep).map(kept);
                let made = Tensor::from_f64s(mask.scalar(), &shape, values)?;
                (Some(Cow::Owned(keep)), Added::Made(made))
            }
        };
        Ok(Self {
            shape,
            keep,
            added: Some(added),
        })
    }

    /// Which keys a query sees, if the mask hides any.
    pub(super) fn keep(&self) -> Result<Option<Mask<'_, Host>>> {
        match self.keep.as_deref() {
            None => Ok(None),
            Some(bytes) => Ok(Some(Mask::keep(HostView::new(bytes, &self.shape)?))),
        }
    }

    /// What is added to the scores.
    pub(super) fn added(&self) -> Option<TensorView<'_>> {
        self.added.as_ref().map(|added| match added {
            Added::Given(view) => *view,
            Added::Made(tensor) => tensor.view(),
        })
    }
}

/// A byte for each element of a mask that is added, 0 where it is `-inf`; none if it is so nowhere.
fn hidden(mask: &TensorView<'_>) -> Result<Option<Vec<u8>>> {
    if !mask.iter_f64().any(|value| value == f64::NEG_INFINITY) {
        return Ok(None);
    }
    let mut keep = filled(1u8, mask.elements(), mask.shape())?;
    for (keep, value) in keep.iter_mut().zip(mask.iter_f64()) {
        *keep = u8::from(value != f64::NEG_INFINITY);
    }
    Ok(Some(keep))
}
