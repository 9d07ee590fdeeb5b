//! The gradients of the operator.

use super::arguments::Attention;
use super::forward::{Outputs, attend, outputs};
use super::heads;
use super::past;
use super::prepared::Prepared;
use crate::scratch::buffer;
use crate::stage::{HostKernels, elements, view_mut, with_dtype};
use crate::stage_backward::cast;
use crate::tensor::{Tensor, TensorView};
use crate::vjp::check_like;
use alloc::vec::Vec;
use attn_core::{
    AttentionBackward, Backend, DType, Element, Error, Host, HostView, HostViewMut, Kernels,
    Result, Scalar, bf16, f16,
};

/// The gradients of [`attention`](super::attention), each of its array's shape and type.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Gradients {
    /// Of the queries.
    pub d_q: Tensor,
    /// Of the keys.
    pub d_k: Tensor,
    /// Of the values.
    pub d_v: Tensor,
    /// Of the past keys, if there are any.
    pub d_past_key: Option<Tensor>,
    /// Of the past values, if there are any.
    pub d_past_value: Option<Tensor>,
    /// Of a mask of floats, summed over the axes that it was broadcast along. An element that is `-inf` has the gradient 0.
    pub d_attn_mask: Option<Tensor>,
}

/// What [`attention_vjp`] keeps for the backward pass: the inputs, past and new keys joined, the output, and two numbers a row.
pub struct Residuals<'a> {
    call: Prepared<'a>,
    y: Tensor,
    statistics: Tensor,
}

impl core::fmt::Debug for Residuals<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Residuals")
            .field("arguments", &self.call.arguments)
            .finish_non_exhaustive()
    }
}

/// [`attention`](super::attention), and what the gradients of its output `Y` need.
///
/// ```
/// use attn_layers::{Cpu, onnx, tensor::TensorView};
/// let q = TensorView::from_slice(&[1.0f32], &[1, 1, 1, 1])?;
/// let k = TensorView::from_slice(&[0.0f32, 0.0], &[1, 1, 2, 1])?;
/// let v = TensorView::from_slice(&[1.0f32, 3.0], &[1, 1, 2, 1])?;
/// let cpu = Cpu::detect();
/// let (outputs, residuals) = onnx::attention_vjp(&cpu, &onnx::Attention::new(q, k, v))?;
/// let gradients = residuals.backward(&cpu, TensorView::from_slice(&[1.0f32], &[1, 1, 1, 1])?)?;
/// assert_eq!(outputs.y.to_vec_f64(), [2.0]);
/// assert_eq!(gradients.d_k.to_vec_f64(), [-0.5, 0.5]);
/// assert_eq!(gradients.d_v.to_vec_f64(), [0.5, 0.5]);
/// # Ok::<(), attn_layers::Error>(())
/// ```
///
/// # Errors
///
/// Those of [`attention`](super::attention).
pub fn attention_vjp<'a, B: HostKernels>(
    backend: &B,
    arguments: &Attention<'a>,
) -> Result<(Outputs, Residuals<'a>)> {
    let call = Prepared::new(arguments)?;
    let mut attended = attend(backend, &call, true)?;
    let statistics = attended.statistics.take().ok_or(Error::Unsupported {
        backend: backend.name(),
        feature: "row statistics as an output",
        instead: "Use another backend",
    })?;
    let y = attended.y.clone();
    let present = call.present.as_ref().filter(|_| arguments.present);
    let outputs = outputs(attended, arguments, present.cloned())?;
    Ok((
        outputs,
        Residuals {
            call,
            y,
            statistics,
        },
    ))
}

impl Residuals<'_> {
    /// The gradients, from that of `Y`, which has its shape and type.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`], [`Error::DTypeMismatch`] if `d_y` is not like the output; [`Error::Unsupported`] from a backend without gradients of
    /// a part of the call.
    pub fn backward<B: HostKernels>(&self, backend: &B, d_y: TensorView<'_>) -> Result<Gradients> {
        check_like(&d_y, self.call.arguments.q.scalar(), self.y.shape())?;
        let parts = with_dtype!(self.call.dtype, backward_as(backend, self, &d_y))?;
        self.gradients(parts)
    }

    /// The gradients in the types and shapes of the operator's inputs.
    fn gradients(&self, parts: Parts) -> Result<Gradients> {
        let Attention { q, k, v, .. } = &self.call.arguments;
        let [_, key, value] = &self.call.given;
        let (d_past_key, d_k, d_past_value, d_v) = if self.call.present.is_some() {
            let (past_key, past_value) = (
                &self.call.arguments.past_key,
                &self.call.arguments.past_value,
            );
            let (d_past_key, d_k) = past::split(&parts.d_key, past_key.as_ref(), k, key)?;
            let (d_past_value, d_v) = past::split(&parts.d_value, past_value.as_ref(), v, value)?;
            (d_past_key, d_k, d_past_value, d_v)
        } else {
            (None, parts.d_key, None, parts.d_value)
        };
        let like = |gradient: Option<Tensor>, of: &TensorView<'_>| {
            gradient
                .map(|gradient| cast(gradient, of.scalar()))
                .transpose()
        };
        let mask = self
            .call
            .arguments
            .attn_mask
            .filter(|mask| mask.scalar().float().is_some());
        Ok(Gradients {
            d_q: cast(parts.d_query, q.scalar())?,
            d_k: cast(d_k, k.scalar())?,
            d_v: cast(d_v, v.scalar())?,
            d_past_key: like(d_past_key, k)?,
            d_past_value: like(d_past_value, v)?,
            d_attn_mask: match mask {
                Some(mask) => like(parts.d_added, &mask)?,
                None => None,
            },
        })
    }
}

/// The gradients of a request's arrays, in the types it was computed in.
struct Parts {
    d_query: Tensor,
    d_key: Tensor,
    d_value: Tensor,
    d_added: Option<Tensor>,
}

fn backward_as<T: Element, B: Kernels<T> + Backend<Storage = Host, Error = Error>>(
    backend: &B,
    residuals: &Residuals<'_>,
    d_y: &TensorView<'_>,
) -> Result<Parts> {
    let call = &residuals.call;
    let zeros = |view: TensorView<'_>| Tensor::zeros(T::SCALAR, view.shape());
    let mut parts = Parts {
        d_query: zeros(call.arguments.q)?,
        d_key: zeros(call.key())?,
        d_value: zeros(call.value())?,
        d_added: match call.added() {
            Some(added) => Some(Tensor::zeros(T::Acc::SCALAR, added.shape())?),
            None => None,
        },
    };
    let shape = call.shape()?;
    // Without output or keys nothing flows back, and a backend need not count what is empty.
    if d_y.shape().contains(&0) || shape.key_length == 0 {
        return Ok(parts);
    }
    let rank = call.arguments.q.shape().rank();
    let (_, out) = heads::output(rank, &shape.output(call.given[0].shape())?)?;
    let [key, value] = call.cut()?;
    let operands = call.operands::<T>()?;
    let (y, d_y) = (residuals.y.view().cast::<T>()?, d_y.cast::<T>()?);
    let statistics = residuals.statistics.view().cast::<T::Acc>()?;
    let request = AttentionBackward {
        call: call.request(&operands)?,
        out: HostView::with_layout(&y, out)?,
        statistics: HostView::new(&statistics, residuals.statistics.shape())?,
        d_out: HostView::with_layout(&d_y, out)?,
        d_query: HostViewMut::with_layout(elements(&mut parts.d_query)?, call.given[0])?,
        d_key: HostViewMut::with_layout(elements(&mut parts.d_key)?, key)?,
        d_value: HostViewMut::with_layout(elements(&mut parts.d_value)?, value)?,
        d_bias: parts.d_added.as_mut().map(view_mut).transpose()?,
        d_relative: None,
        d_sinks: None,
    };
    let mut scratch: Vec<T::Acc> = buffer(backend.attend_backward_scratch(&shape))?;
    backend.attend_backward(request, &mut scratch)?;
    Ok(parts)
}
