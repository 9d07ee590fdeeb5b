//! What a backend computes. A layer is generic over these traits and is told which backend by a value.

use crate::backward::{AttentionBackward, NormalizeBackward, ProjectionBackward};
use crate::dtype::Element;
use crate::error::{Error, Result};
use crate::projection::{Packing, Projection};
use crate::request::{Attention, AttentionShape, Features};
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

/// The operations of an attention layer in dtype `T`.
///
/// Every operation takes its scratch from the caller, in elements of `T::Acc`, so that a backend needs no allocator; the
/// `…_scratch` methods say how many. A scratch that is too short is [`Error::Scratch`], a longer one is fine.
pub trait Kernels<T: Element>: Backend {
    /// Scratch of [`Kernels::project`] for this many rows, features and outputs.
    fn project_scratch(&self, rows: usize, features: usize, outputs: usize) -> usize;

    /// `out = input · kernel + bias`, accumulated in `T::Acc`, rounded once. `out` is `[rows..., outputs]` or `[rows..., heads, head_dim]`.
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

    /// Several dense layers, as [`Kernels::project`] one after the other; with [`RowOrder::Fixed`](crate::RowOrder::Fixed) to the same bits. A backend may read an input
    /// that several share once. `calls` and `outs` have the same length.
    ///
    /// # Errors
    ///
    /// As [`Kernels::project`]; [`Error::Together`] if an output is missing or one too many.
    fn project_each(
        &self,
        calls: &[Projection<'_, Self::Storage, T>],
        outs: &mut [ViewMut<'_, Self::Storage, T>],
        scratch: &mut <Self::Storage as Storage>::Buf<T::Acc>,
    ) -> Result<(), Self::Error> {
        if calls.len() != outs.len() {
            return Err(Error::Together {
                left: "calls",
                right: "outs",
            }
            .into());
        }
        for (call, out) in calls.iter().zip(outs) {
            self.project(call, out.reborrow(), scratch)?;
        }
        Ok(())
    }

    /// Scratch of [`Kernels::project_each`] for `count` dense layers of these sizes on one input.
    fn project_each_scratch(
        &self,
        rows: usize,
        features: usize,
        outputs: usize,
        _count: usize,
    ) -> usize {
        self.project_scratch(rows, features, outputs)
    }

    /// How this backend packs a kernel of these sizes, `None` if it does not pack.
    fn packing(&self, _features: usize, _outputs: usize) -> Option<Packing> {
        None
    }

    /// Packs a kernel, `[features, outputs]`, in the order in which [`Kernels::project`] reads it. `to` has [`Packing::elements`] elements.
    ///
    /// # Errors
    ///
    /// [`Error::Rank`], [`Error::Buffer`], [`Error::Strides`]; [`Error::Unsupported`] if the backend does not pack.
    fn pack(
        &self,
        _kernel: View<'_, Self::Storage, T>,
        _to: &mut <Self::Storage as Storage>::Buf<T>,
    ) -> Result<(), Self::Error> {
        Err(Error::Unsupported {
            backend: self.name(),
            feature: "packed kernels",
            instead: "Give the kernel as it lies",
        }
        .into())
    }

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

    /// The parts of a request that [`Kernels::attend`] computes; it refuses every other.
    fn features(&self) -> Features {
        Features::FLAX
    }

    /// The parts that [`Kernels::attend_backward`] has gradients for; it refuses every other.
    fn backward_features(&self) -> Features {
        Features::FLAX
    }

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
