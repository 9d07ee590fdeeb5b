//! The forward pass.

use super::arguments::Attention;
use super::heads;
use super::prepared::{Operands, Prepared};
use crate::scratch::buffer;
use crate::stage::{HostKernels, elements, view_mut, with_dtype};
use crate::stage_backward::cast;
use crate::tensor::Tensor;
use alloc::vec::Vec;
use attn_core::{
    Attention as Request, Backend, DType, Element, Host, HostViewMut, Kernels, Outputs as Asked,
    Result, Scalar, Stage, bf16, f16,
};

/// What a call gives.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Outputs {
    /// `[batch, q_num_heads, q_length, v_head_size]`, or `[batch, q_length, q_num_heads * v_head_size]` for inputs of rank 3; of the queries' type.
    pub y: Tensor,
    /// Past and new keys, `[batch, kv_num_heads, total_length, head_size]`, if they were asked for.
    pub present_key: Option<Tensor>,
    /// Past and new values, `[batch, kv_num_heads, total_length, v_head_size]`, if they were asked for.
    pub present_value: Option<Tensor>,
    /// The scores at the stage that was asked for, `[batch, q_num_heads, q_length, total_length]`, of the queries' type.
    pub qk_matmul_output: Option<Tensor>,
}

/// The operator `Attention`.
///
/// ```
/// use attn_layers::{Cpu, onnx, tensor::TensorView};
/// let q = TensorView::from_slice(&[1.0f32, 1.0], &[1, 1, 2, 1])?;
/// let k = TensorView::from_slice(&[0.0f32, 0.0], &[1, 1, 2, 1])?;
/// let v = TensorView::from_slice(&[1.0f32, 3.0], &[1, 1, 2, 1])?;
/// let mut call = onnx::Attention::new(q, k, v);
/// call.is_causal = true;
/// let outputs = onnx::attention(&Cpu::detect(), &call)?;
/// assert_eq!(outputs.y.to_vec_f64(), [1.0, 2.0]);
/// # Ok::<(), attn_layers::Error>(())
/// ```
///
/// # Errors
///
/// [`Error::Rank`](crate::Error::Rank), [`Error::Shape`](crate::Error::Shape), [`Error::Mismatch`](crate::Error::Mismatch),
/// [`Error::Broadcast`](crate::Error::Broadcast), [`Error::DTypeMismatch`](crate::Error::DTypeMismatch),
/// [`Error::NoHeads`](crate::Error::NoHeads) for inputs that do not fit each other; [`Error::Together`](crate::Error::Together),
/// [`Error::Exclusive`](crate::Error::Exclusive) for a part of a past, or a past beside `nonpad_kv_seqlen`; [`Error::Entry`](crate::Error::Entry) for
/// a length in it beyond the keys; [`Error::Softcap`](crate::Error::Softcap); [`Error::Unsupported`](crate::Error::Unsupported) for what the opset or
/// the backend does not have.
pub fn attention<B: HostKernels>(backend: &B, arguments: &Attention<'_>) -> Result<Outputs> {
    let call = Prepared::new(arguments)?;
    let attended = attend(backend, &call, false)?;
    outputs(attended, &call.arguments, call.present)
}

/// The outputs in the operator's types.
pub(super) fn outputs(
    attended: Attended,
    arguments: &Attention<'_>,
    present: Option<[Tensor; 2]>,
) -> Result<Outputs> {
    let scalar = arguments.q.scalar();
    let asked = present.filter(|_| arguments.present);
    let (present_key, present_value) = asked.map(|[key, value]| (key, value)).unzip();
    let scores = attended.scores.map(|scores| cast(scores, scalar));
    Ok(Outputs {
        y: cast(attended.y, scalar)?,
        present_key,
        present_value,
        qk_matmul_output: scores.transpose()?,
    })
}

/// What a backend gives, in the types it computes in.
pub(super) struct Attended {
    pub(super) y: Tensor,
    pub(super) scores: Option<Tensor>,
    pub(super) statistics: Option<Tensor>,
}

/// The call on a backend, `with_statistics` if gradients are to follow.
pub(super) fn attend<B: HostKernels>(
    backend: &B,
    call: &Prepared<'_>,
    with_statistics: bool,
) -> Result<Attended> {
    with_dtype!(call.dtype, attend_as(backend, call, with_statistics))
}

fn attend_as<T: Element, B: Kernels<T> + Backend<Storage = Host, Error = crate::Error>>(
    backend: &B,
    call: &Prepared<'_>,
    with_statistics: bool,
) -> Result<Attended> {
    let query = call.given[0].shape();
    let shape = call.shape()?;
    let (y_shape, y_layout) =
        heads::output(call.arguments.q.shape().rank(), &shape.output(query)?)?;
    let mut y = Tensor::zeros(T::SCALAR, &y_shape)?;
    let mut scores = match call.arguments.qk_matmul_output {
        Some(stage) => Some((stage, unseen::<T::Acc>(call, stage)?)),
        None => None,
    };
    let mut statistics = match with_statistics {
        true => Some(Tensor::zeros(T::Acc::SCALAR, &shape.statistics(query)?)?),
        false => None,
    };
    let operands = call.operands::<T>()?;
    let mut request = call.request(&operands)?;
    match &mut scores {
        Some((stage, scores)) if is_before_mask(*stage) && call.leaves_keys_out() => {
            attend_for_scores(backend, call, &operands, *stage, scores)?;
        }
        Some((stage, scores)) => {
            let columns = heads::columns(scores.shape(), shape.key_length)?;
            request = request.with_scores_at(
                *stage,
                Some(HostViewMut::with_layout(elements(scores)?, columns)?),
            );
        }
        None => {}
    }
    if let Some(statistics) = &mut statistics {
        request = request.with_statistics(Some(view_mut(statistics)?));
    }
    compute(
        backend,
        request,
        HostViewMut::with_layout(elements(&mut y)?, y_layout)?,
    )?;
    Ok(Attended {
        y,
        scores: scores.map(|(_, scores)| scores),
        statistics,
    })
}

/// The scores of all keys by a request of their own, since that for `Y` does not see all of them.
fn attend_for_scores<T: Element, B: Kernels<T> + Backend<Storage = Host, Error = crate::Error>>(
    backend: &B,
    call: &Prepared<'_>,
    operands: &Operands<'_, T>,
    stage: Stage,
    scores: &mut Tensor,
) -> Result<()> {
    let request = call
        .request_for_scores(operands)?
        .with_scores_at(stage, Some(view_mut(scores)?));
    let mut nothing = Vec::new();
    let shape = request.shape()?.output(request.query.shape())?;
    compute(backend, request, HostViewMut::new(&mut nothing, &shape)?)
}

fn compute<T: Element, B: Kernels<T> + Backend<Storage = Host, Error = crate::Error>>(
    backend: &B,
    request: Request<'_, Host, T>,
    out: HostViewMut<'_, T>,
) -> Result<()> {
    let is_empty =
        |view: Option<&HostViewMut<'_, T::Acc>>| view.is_none_or(|view| view.shape().contains(&0));
    let Asked {
        weights,
        statistics,
        ..
    } = &request.outputs;
    // There may be more empty rows than a kernel could ever count.
    if out.shape().contains(&0) && is_empty(weights.as_ref()) && is_empty(statistics.as_ref()) {
        return Ok(());
    }
    let mut scratch: Vec<T::Acc> = buffer(backend.attend_scratch(&request.shape()?))?;
    backend.attend(request, out, &mut scratch)
}

const fn is_before_mask(stage: Stage) -> bool {
    matches!(stage, Stage::Scaled | Stage::Capped)
}

/// The scores of keys that do not take part: `-inf`, and no weight.
fn unseen<A: Element>(call: &Prepared<'_>, stage: Stage) -> Result<Tensor> {
    let mut scores = Tensor::zeros(A::SCALAR, &call.scores()?)?;
    if stage == Stage::Masked && call.leaves_keys_out() {
        elements::<A>(&mut scores)?.fill(A::from_f64(f64::NEG_INFINITY));
    }
    Ok(scores)
}
