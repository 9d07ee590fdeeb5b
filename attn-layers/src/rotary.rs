//! Rotary embedding as a function of arrays, and its gradient.

use crate::stage::{self, HostKernels, Turning, promote};
use crate::stage_backward::{cast, check_float};
use crate::tensor::{Tensor, TensorView};
use crate::vjp::check_like;
use attn_core::{Host, Positions, Result, Rotary};

/// The arguments of [`rotary_embedding`].
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct RotaryEmbedding<'a> {
    /// Queries or keys, `[batch..., length, heads, depth]`.
    pub x: TensorView<'a>,
    /// Which elements turn together, and how fast.
    pub rotary: Rotary,
    /// Where the rows lie; from position 0 on by default.
    pub positions: Positions<'a, Host>,
    /// Cosines and sines to use in the place of the formula's, `[positions, rotary_dim / 2]` each, from position 0 on.
    pub table: Option<[TensorView<'a>; 2]>,
}

impl<'a> RotaryEmbedding<'a> {
    /// Rows from position 0 on.
    #[must_use]
    pub const fn new(x: TensorView<'a>, rotary: Rotary) -> Self {
        Self {
            x,
            rotary,
            positions: Positions::From(0),
            table: None,
        }
    }

    /// With rows at these positions.
    #[must_use]
    pub const fn with_positions(mut self, positions: Positions<'a, Host>) -> Self {
        self.positions = positions;
        self
    }

    /// With a table, or without.
    #[must_use]
    pub const fn with_table(mut self, table: Option<[TensorView<'a>; 2]>) -> Self {
        self.table = table;
        self
    }

    fn turning(&self, inverse: bool) -> Turning<'a> {
        Turning {
            rotary: self.rotary,
            positions: self.positions,
            table: self.table,
            inverse,
        }
    }
}

/// `x` with its pairs turned by angles that grow with the position, in its dtype (integers in `float32`).
///
/// ```
/// use attn_layers::{Cpu, Positions, Rotary, RotaryEmbedding, rotary_embedding, tensor::TensorView};
/// // One pair, which turns by one radian a position.
/// let x = TensorView::from_slice(&[1.0f64, 0.0, 1.0, 0.0], &[2, 1, 2])?;
/// let arguments = RotaryEmbedding::new(x, Rotary::new()).with_positions(Positions::From(3));
/// let turned = rotary_embedding(&Cpu::detect(), &arguments)?.to_vec_f64();
/// for (got, wanted) in turned.iter().zip([3f64.cos(), 3f64.sin(), 4f64.cos(), 4f64.sin()]) {
///     assert!((got - wanted).abs() < 1e-15);
/// }
/// # Ok::<(), attn_layers::Error>(())
/// ```
///
/// # Errors
///
/// Those of [`Rotate::shape`](attn_core::Rotate::shape) and [`Rotate::check_ids`](attn_core::Rotate::check_ids);
/// [`Error::Unsupported`](crate::Error::Unsupported) from a backend that does not rotate.
pub fn rotary_embedding<B: HostKernels>(
    backend: &B,
    arguments: &RotaryEmbedding<'_>,
) -> Result<Tensor> {
    let dtype = promote(None, [arguments.x.scalar()]);
    let x = arguments.x.to_scalar(dtype.scalar())?;
    stage::rotate(backend, x, &arguments.turning(false))
}

/// The gradient of `x` from `d_out`, that of what [`rotary_embedding`] gives of these arguments: `d_out` turned back.
///
/// ```
/// use attn_layers::{Cpu, Rotary, RotaryEmbedding, rotary_embedding_vjp, tensor::TensorView};
/// let x = TensorView::from_slice(&[0.5f64; 4], &[2, 1, 2])?;
/// let d_out = TensorView::from_slice(&[1.0f64, 0.0, 1.0, 0.0], &[2, 1, 2])?;
/// let d_x = rotary_embedding_vjp(&Cpu::detect(), &RotaryEmbedding::new(x, Rotary::new()), d_out)?.to_vec_f64();
/// for (got, wanted) in d_x.iter().zip([1.0, 0.0, 1f64.cos(), -1f64.sin()]) {
///     assert!((got - wanted).abs() < 1e-15);
/// }
/// # Ok::<(), attn_layers::Error>(())
/// ```
///
/// # Errors
///
/// Those of [`rotary_embedding`]; [`Error::DTypeMismatch`](crate::Error::DTypeMismatch) if `x` is of integers, which have no gradient, or `d_out` is not of
/// its dtype, [`Error::Shape`](crate::Error::Shape) if it is not of its shape.
pub fn rotary_embedding_vjp<B: HostKernels>(
    backend: &B,
    arguments: &RotaryEmbedding<'_>,
    d_out: TensorView<'_>,
) -> Result<Tensor> {
    let x = &arguments.x;
    check_float("x", x)?;
    check_like(&d_out, x.scalar(), x.shape())?;
    let gradient = stage::rotate(backend, d_out.to_tensor()?, &arguments.turning(true))?;
    cast(gradient, x.scalar())
}
