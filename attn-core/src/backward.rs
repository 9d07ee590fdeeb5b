//! Calls for gradients as values: what a backend's backward operations read and write.
//!
//! The gradient of an array has the array's shape and dtype. Nothing of a forward pass is kept but what is named here: the
//! attention weights are made again from the statistics of their rows.

use crate::dtype::Element;
use crate::error::{Error, Result};
use crate::layout::Dims;
use crate::projection::{Projection, RowOrder};
use crate::request::{Attention, AttentionShape};
use crate::view::{Flat, FlatMut, Storage, View, ViewMut};

/// The gradients of an attention call (`jax.vjp` of `dot_product_attention`).
#[derive(Debug)]
pub struct AttentionBackward<'a, S: Storage, T: Element> {
    /// The call as it was made; its outputs are not looked at.
    pub call: Attention<'a, S, T>,
    /// Its output, `[batch..., query_length, heads, value_depth]`.
    pub out: View<'a, S, T>,
    /// Its [`statistics`](crate::Outputs::statistics).
    pub statistics: View<'a, S, T::Acc>,
    /// The gradient of the output.
    pub d_out: View<'a, S, T>,
    /// Where the gradient of the query goes, `[batch..., query_length, heads, depth]`.
    pub d_query: ViewMut<'a, S, T>,
    /// Where the gradient of the key goes, `[batch..., key_length, heads, depth]`.
    pub d_key: ViewMut<'a, S, T>,
    /// Where the gradient of the value goes, `[batch..., key_length, heads, value_depth]`.
    pub d_value: ViewMut<'a, S, T>,
    /// Where the gradient of the bias goes, if it is wanted: of the bias's own shape, summed over the axes that it was
    /// broadcast along.
    pub d_bias: Option<ViewMut<'a, S, T::Acc>>,
    /// Where the gradient of the table of relative positions goes, `[heads, distances]`, if it is wanted.
    pub d_relative: Option<FlatMut<'a, S, T::Acc>>,
    /// Where the gradient of the sinks goes, `[heads]`, if it is wanted.
    pub d_sinks: Option<FlatMut<'a, S, T::Acc>>,
}

impl<S: Storage, T: Element> AttentionBackward<'_, S, T> {
    /// Checks that all parts fit each other and gives the call's sizes.
    ///
    /// # Errors
    ///
    /// What [`Attention::shape`] finds; [`Error::Shape`] or [`Error::Buffer`] for the output, the statistics and the gradients;
    /// [`Error::Together`] for a gradient of a part that is not there; [`Error::Unsupported`] for a cache.
    pub fn shape(&self) -> Result<AttentionShape> {
        let shape = self.call.shape()?;
        let (key, value) = self.call.dense()?;
        let query = self.call.query.shape();
        let out = shape.output(query)?;
        let fits = [
            ("out", self.out.shape(), out),
            (
                "statistics",
                self.statistics.shape(),
                shape.statistics(query)?,
            ),
            ("d_out", self.d_out.shape(), out),
            ("d_query", self.d_query.shape(), *query),
            ("d_key", self.d_key.shape(), *key.shape()),
            ("d_value", self.d_value.shape(), *value.shape()),
        ];
        for (argument, got, wanted) in fits {
            same(argument, got, wanted)?;
        }
        let scores = &self.call.scores;
        if let Some(d_bias) = &self.d_bias {
            let bias = together(scores.bias.as_ref(), "d_bias", "bias")?;
            same("d_bias", d_bias.shape(), *bias.shape())?;
        }
        if let Some(d_relative) = &self.d_relative {
            let relative = together(scores.relative.as_ref(), "d_relative", "relative")?;
            same_len("d_relative", d_relative, &relative.table)?;
        }
        if let Some(d_sinks) = &self.d_sinks {
            let sinks = together(scores.sinks.as_ref(), "d_sinks", "sinks")?;
            same_len("d_sinks", d_sinks, sinks)?;
        }
        Ok(shape)
    }
}

fn together<T>(part: Option<T>, left: &'static str, right: &'static str) -> Result<T> {
    part.ok_or(Error::Together { left, right })
}

fn same_len<S: Storage, A: Element>(
    argument: &'static str,
    gradient: &FlatMut<'_, S, A>,
    of: &Flat<'_, S, A>,
) -> Result<()> {
    gradient.as_flat().check_len(argument, of.len())
}

/// The gradients of a dense layer, `out = input · kernel + bias`.
#[derive(Debug)]
pub struct ProjectionBackward<'a, S: Storage, T: Element> {
    /// `[rows..., features]`, as in [`Projection`].
    pub input: View<'a, S, T>,
    /// `[features, outputs]`.
    pub kernel: View<'a, S, T>,
    /// The gradient of the output, `[rows..., outputs]` or `[rows..., heads, head_dim]`.
    pub d_out: View<'a, S, T>,
    /// Where the gradient of the input goes, `d_out · kernelᵀ`, if it is wanted.
    pub d_input: Option<ViewMut<'a, S, T>>,
    /// Whether the gradient of the input is added to what is there, rounded once more: the input has other uses.
    pub accumulate: bool,
    /// Where the gradient of the kernel goes, `inputᵀ · d_out`, if it is wanted.
    pub d_kernel: Option<ViewMut<'a, S, T>>,
    /// Where the gradient of the bias goes, the sum of the rows of `d_out`, if it is wanted.
    pub d_bias: Option<ViewMut<'a, S, T>>,
}

impl<S: Storage, T: Element> ProjectionBackward<'_, S, T> {
    /// Checks that all parts fit each other and gives `(rows, features, outputs)`.
    ///
    /// # Errors
    ///
    /// [`Error::Rank`], [`Error::Shape`].
    pub fn sizes(&self) -> Result<(usize, usize, usize)> {
        let forward = Projection {
            input: self.input,
            kernel: self.kernel.into(),
            bias: None,
            row_order: RowOrder::Any,
        };
        let sizes = forward
            .sizes(self.d_out.shape())
            .map_err(|error| match error {
                Error::Shape {
                    argument: "output",
                    got,
                    wanted,
                } => Error::Shape {
                    argument: "d_out",
                    got,
                    wanted,
                },
                other => other,
            })?;
        if let Some(d_input) = &self.d_input {
            same("d_input", d_input.shape(), *self.input.shape())?;
        }
        if let Some(d_kernel) = &self.d_kernel {
            same("d_kernel", d_kernel.shape(), *self.kernel.shape())?;
        }
        if let Some(d_bias) = &self.d_bias {
            same("d_bias", d_bias.shape(), Dims::new(&[sizes.2])?)?;
        }
        Ok(sizes)
    }
}

/// The gradients of a layer norm over the last axis.
#[derive(Debug)]
pub struct NormalizeBackward<'a, S: Storage, T: Element> {
    /// What was normalised, `[..., depth]`.
    pub x: View<'a, S, T>,
    /// `[depth]`.
    pub scale: View<'a, S, T::Acc>,
    /// As in the forward pass.
    pub epsilon: f64,
    /// The gradient of the result, `[..., depth]`; it becomes the gradient of `x`.
    pub gradient: ViewMut<'a, S, T>,
    /// Where the gradient of the scale goes, if it is wanted.
    pub d_scale: Option<ViewMut<'a, S, T::Acc>>,
}

impl<S: Storage, T: Element> NormalizeBackward<'_, S, T> {
    /// Checks that all parts fit each other and gives `(rows, depth)`.
    ///
    /// # Errors
    ///
    /// [`Error::Rank`], [`Error::Shape`].
    pub fn sizes(&self) -> Result<(usize, usize)> {
        let Some((&depth, rows)) = self.x.shape().split_last() else {
            return Err(Error::Rank {
                argument: "x",
                got: 0,
                wanted: "[..., depth]",
            });
        };
        let wanted = Dims::new(&[depth])?;
        same("scale", self.scale.shape(), wanted)?;
        same("gradient", self.gradient.shape(), *self.x.shape())?;
        if let Some(d_scale) = &self.d_scale {
            same("d_scale", d_scale.shape(), wanted)?;
        }
        Ok((Dims::new(rows)?.elements()?, depth))
    }
}

fn same(argument: &'static str, got: &Dims, wanted: Dims) -> Result<()> {
    if *got == wanted {
        return Ok(());
    }
    Err(Error::Shape {
        argument,
        got: *got,
        wanted,
    })
}
