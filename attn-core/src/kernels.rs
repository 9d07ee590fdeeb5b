//! What a backend computes. A layer is generic over these traits and is told which backend by a value.

use crate::backward::{AttentionBackward, NormalizeBackward, ProjectionBackward};
use crate::dtype::Element;
use crate::error::{Error, Result};
use crate::layout::Dims;
use crate::request::{Attention, AttentionShape};
use crate::view::{Storage, View, ViewMut};

/// A place that computes: a CPU with a chosen instruction set, or a device.
pub trait Backend {
    /// Where its buffers live.
    type Storage: Storage;
    /// What can go wrong: at least everything of [`Error`].
    type Error: core::error::Error + From<Error>;

    /// Its name in messages and tables.
    fn name(&self) -> &'static str;
}

/// Whether the rounding of a row may depend on how many rows are computed at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RowOrder {
    /// It may: the fastest product for the size at hand.
    #[default]
    Any,
    /// It must not: a row has the same bits whether computed alone or among others. Decoding token by token then
    /// equals prefilling all at once.
    Fixed,
}

/// A dense layer: `input · kernel + bias` over the last axis (`flax.linen.DenseGeneral` with its axes flattened).
#[derive(Debug)]
pub struct Projection<'a, S: Storage, T: Element> {
    /// `[rows..., features]`, any number of row axes; the last axis contiguous.
    pub input: View<'a, S, T>,
    /// `[features, outputs]`.
    pub kernel: View<'a, S, T>,
    /// `[outputs]`.
    pub bias: Option<View<'a, S, T>>,
    /// Whether rows must be rounded independently of each other.
    pub row_order: RowOrder,
}

impl<S: Storage, T: Element> Projection<'_, S, T> {
    /// Checks that all parts fit each other and `out`, and gives `(rows, features, outputs)`.
    ///
    /// # Errors
    ///
    /// [`Error::Rank`], [`Error::Shape`].
    pub fn sizes(&self, out: &Dims) -> Result<(usize, usize, usize)> {
        let &[features, outputs] = self.kernel.shape().as_slice() else {
            return Err(Error::Rank {
                argument: "kernel",
                got: self.kernel.shape().rank(),
                wanted: "[features, outputs]",
            });
        };
        let Some((&last, rows)) = self.input.shape().split_last() else {
            return Err(Error::Rank {
                argument: "input",
                got: 0,
                wanted: "[rows..., features]",
            });
        };
        let rows = Dims::new(rows)?;
        if last != features {
            return Err(Error::Shape {
                argument: "input",
                got: *self.input.shape(),
                wanted: rows.push(features)?,
            });
        }
        if *out != rows.push(outputs)? {
            return Err(Error::Shape {
                argument: "output",
                got: *out,
                wanted: rows.push(outputs)?,
            });
        }
        if let Some(bias) = &self.bias
            && bias.shape().as_slice() != [outputs]
        {
            return Err(Error::Shape {
                argument: "bias",
                got: *bias.shape(),
                wanted: Dims::new(&[outputs])?,
            });
        }
        Ok((rows.elements()?, features, outputs))
    }
}

/// The operations of an attention layer in dtype `T`.
///
/// Every operation takes its scratch from the caller, in elements of `T::Acc`, so that a backend needs no allocator; the
/// `…_scratch` methods say how many. A scratch that is too short is [`Error::Scratch`], a longer one is fine.
pub trait Kernels<T: Element>: Backend {
    /// Scratch of [`Kernels::project`] for this many rows, features and outputs.
    fn project_scratch(&self, rows: usize, features: usize, outputs: usize) -> usize;

    /// `out = input · kernel + bias`, accumulated in `T::Acc`, rounded once. `out` is `[rows..., outputs]`.
    ///
    /// # Errors
    ///
    /// What [`Projection::sizes`] finds, [`Error::Strides`], [`Error::Scratch`], and the backend's own.
    fn project(
        &self,
        call: &Projection<'_, Self::Storage, T>,
        out: ViewMut<'_, Self::Storage, T>,
        scratch: &mut <Self::Storage as Storage>::Buf<T::Acc>,
    ) -> Result<(), Self::Error>;

    /// Layer norm over the last axis, in place (`flax.linen.LayerNorm(use_bias=False)`), statistics in `T::Acc` or wider. Flax's
    /// fast variance loses digits; a backend may be more exact. `x` is `[..., depth]`, `scale` `[depth]`.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`], [`Error::Strides`], and the backend's own.
    fn normalize(
        &self,
        x: ViewMut<'_, Self::Storage, T>,
        scale: View<'_, Self::Storage, T::Acc>,
        epsilon: f64,
    ) -> Result<(), Self::Error>;

    /// Scratch of [`Kernels::attend`] for these sizes.
    fn attend_scratch(&self, shape: &AttentionShape) -> usize;

    /// Attention: scores, mask, softmax and the sum of values in one pass with memory linear in the length.
    /// `out` is `[batch..., query_length, heads, value_depth]`.
    ///
    /// A row has the same bits whatever the number of queries beside it and of threads.
    ///
    /// # Errors
    ///
    /// What [`Attention::shape`] and [`Attention::check_supported`] find, [`Error::Shape`] for `out`, [`Error::Scratch`], and the backend's own.
    fn attend(
        &self,
        call: Attention<'_, Self::Storage, T>,
        out: ViewMut<'_, Self::Storage, T>,
        scratch: &mut <Self::Storage as Storage>::Buf<T::Acc>,
    ) -> Result<(), Self::Error>;

    /// Scratch of [`Kernels::project_backward`] for this many rows, features and outputs.
    fn project_backward_scratch(&self, rows: usize, features: usize, outputs: usize) -> usize;

    /// The gradients of a dense layer, accumulated in `T::Acc`, rounded once. The same bits for every number of threads.
    ///
    /// # Errors
    ///
    /// What [`ProjectionBackward::sizes`] finds, [`Error::Strides`], [`Error::Scratch`], and the backend's own.
    fn project_backward(
        &self,
        call: ProjectionBackward<'_, Self::Storage, T>,
        scratch: &mut <Self::Storage as Storage>::Buf<T::Acc>,
    ) -> Result<(), Self::Error>;

    /// The gradients of a layer norm, from the exact variance.
    ///
    /// # Errors
    ///
    /// What [`NormalizeBackward::sizes`] finds, [`Error::Strides`], and the backend's own.
    fn normalize_backward(
        &self,
        call: NormalizeBackward<'_, Self::Storage, T>,
    ) -> Result<(), Self::Error>;

    /// Scratch of [`Kernels::attend_backward`] for these sizes.
    fn attend_backward_scratch(&self, shape: &AttentionShape) -> usize;

    /// The gradients of attention in one pass with memory linear in the length: weights are made again tile by tile from
    /// the statistics, dropout's bits from their counters. The same bits for every number of threads.
    ///
    /// # Errors
    ///
    /// What [`AttentionBackward::shape`] and [`Attention::check_supported`] find, [`Error::Scratch`], and the backend's own.
    fn attend_backward(
        &self,
        call: AttentionBackward<'_, Self::Storage, T>,
        scratch: &mut <Self::Storage as Storage>::Buf<T::Acc>,
    ) -> Result<(), Self::Error>;
}
