//! Attention over parts of the keys, and the parts put together.

use crate::functions::{DotProductAttention, Kept, Purpose, attention};
use crate::stage::{HostKernels, promote, view_mut, with_dtype};
use crate::tensor::{Tensor, TensorView};
use alloc::vec::Vec;
use attn_core::{
    Backend, DType, Dims, Element, Error, Host, HostView, Kernels, Merge, Partial, Result, Scalar,
    bf16, f16,
};

/// Attention over a part of the keys: its output, and what is needed to put it together with that over other parts.
#[derive(Debug, Clone, PartialEq)]
pub struct PartialAttention {
    /// `[batch..., query_length, heads, value_depth]`.
    pub out: Tensor,
    /// `[batch..., heads, query_length, 2]`: the largest score `m` and the sum of `e^(score - m)`; `float64` for a `float64` output, else `float32`.
    pub statistics: Tensor,
}

/// [`dot_product_attention`](crate::dot_product_attention) with the statistics of its rows. Bias and mask are those of the part.
///
/// # Errors
///
/// Those of [`dot_product_attention`](crate::dot_product_attention); [`Error::Unsupported`] with a user's einsums.
pub fn partial_attention<B: HostKernels>(
    backend: &B,
    arguments: &DotProductAttention<'_>,
    value: TensorView<'_>,
) -> Result<PartialAttention> {
    let purpose = Purpose {
        sow_weights: false,
        gradients: true,
    };
    let core = attention(backend, arguments, &value, None, purpose)?;
    match core.kept {
        Some(Kept::Statistics(statistics)) => Ok(PartialAttention {
            out: core.out,
            statistics,
        }),
        _ => Err(Error::Unsupported {
            backend: "attention",
            feature: "statistics beside a user's einsums",
            instead: "Leave the einsums out",
        }),
    }
}

/// Attention over all keys from attention over parts of them, in any number: ring attention, sequence parallelism, a long cache in parts. The
/// result can be put together with further parts.
///
/// ```
/// use attn_layers::{Cpu, DotProductAttention, dot_product_attention, merge_attention, partial_attention};
/// use attn_layers::tensor::TensorView;
///
/// let cpu = Cpu::detect();
/// let query = TensorView::from_slice(&[1.0f32, -0.5], &[1, 1, 2])?;
/// let (keys, values) = ([0.3f32, 0.1, -2.0, 1.5, 0.7, 0.2, 4.0, -1.0], [1.0f32, 2.0, 3.0, 4.0]);
/// // Each device of a ring has half of the keys and values, [length, heads, depth].
/// let device = |n: usize| {
///     let key = TensorView::from_slice(&keys[4 * n..4 * n + 4], &[2, 1, 2])?;
///     let value = TensorView::from_slice(&values[2 * n..2 * n + 2], &[2, 1, 1])?;
///     partial_attention(&cpu, &DotProductAttention::new(query, key), value)
/// };
/// let merged = merge_attention(&cpu, &[device(0)?, device(1)?])?;
///
/// let key = TensorView::from_slice(&keys, &[4, 1, 2])?;
/// let value = TensorView::from_slice(&values, &[4, 1, 1])?;
/// let whole = dot_product_attention(&cpu, &DotProductAttention::new(query, key), value)?;
/// assert!((merged.out.to_vec_f64()[0] - whole.to_vec_f64()[0]).abs() < 1e-6);
/// # Ok::<(), attn_layers::Error>(())
/// ```
///
/// A part that saw no key of a row adds nothing to it; where no part saw one, the row is 0. What is not a number stays so: see [`Merge`]. With dropout the
/// parts draw masks of their own, so the whole is not that of one call.
///
/// # Errors
///
/// Those of [`Merge::shape`]; [`Error::Unsupported`] from a backend that does not merge.
pub fn merge_attention<B: HostKernels>(
    backend: &B,
    parts: &[PartialAttention],
) -> Result<PartialAttention> {
    let dtype = promote(None, parts.iter().map(|part| part.out.scalar()));
    with_dtype!(dtype, merge_as(backend, parts))
}

fn merge_as<T: Element, B: Kernels<T> + Backend<Storage = Host, Error = Error>>(
    backend: &B,
    parts: &[PartialAttention],
) -> Result<PartialAttention> {
    let shapes = parts
        .first()
        .map(|part| [part.out.shape(), part.statistics.shape()]);
    let [out, statistics] = shapes.unwrap_or([&Dims::SCALAR; 2]);
    let mut out = Tensor::zeros(T::SCALAR, out)?;
    let mut statistics = Tensor::zeros(<T::Acc as Scalar>::SCALAR, statistics)?;
    let mut arrays = Vec::new();
    for part in parts {
        let out = part.out.view().cast::<T>()?;
        arrays.push((out, part.statistics.view().cast::<T::Acc>()?));
    }
    let mut views: Vec<Partial<'_, Host, T>> = Vec::new();
    for (part, (out, statistics)) in parts.iter().zip(&arrays) {
        views.push(Partial {
            out: HostView::new(out, part.out.shape())?,
            statistics: HostView::new(statistics, part.statistics.shape())?,
        });
    }
    let is_empty = statistics.shape().contains(&0);
    let call = Merge {
        parts: &views,
        out: view_mut(&mut out)?,
        statistics: Some(view_mut(&mut statistics)?),
    };
    call.shape()?;
    // There may be more empty rows than a kernel could ever count.
    if !is_empty {
        backend.merge(call)?;
    }
    Ok(PartialAttention { out, statistics })
}
