//! ONNX Runtime's own operators, `MultiHeadAttention` and `Attention` of `com.microsoft`, as calls of ONNX's.
//!
//! Their masks do not hide a key: they add `mask_filter_value` to its scores.

use super::attributes::{Attributes, refused};
use super::error::ModelError;
use super::node::Inputs;
use crate::onnx::{Attention, Opset, Outputs};
use crate::stage::{self, HostKernels, promote};
use crate::tensor::{Tensor, TensorView};
use attn_core::{Dims, Error, RowOrder, ScalarType};

pub(super) const MULTI_HEAD_INPUTS: [&str; 10] = [
    "query",
    "key",
    "value",
    "bias",
    "key_padding_mask",
    "attention_bias",
    "past_key",
    "past_value",
    "past_sequence_length",
    "cache_indirection",
];

pub(super) const ATTENTION_INPUTS: [&str; 7] = [
    "input",
    "weights",
    "bias",
    "mask_index",
    "past",
    "attention_bias",
    "past_sequence_length",
];

const DEFAULT_FILTER: f32 = -10_000.0;

/// `com.microsoft.MultiHeadAttention` on inputs of rank 3. `asked`: present key, present value, scores.
pub(super) fn multi_head_attention<B: HostKernels>(
    backend: &B,
    attributes: Attributes<'_, '_>,
    inputs: &Inputs<'_, '_>,
    asked: [bool; 3],
) -> Result<Outputs, ModelError> {
    attributes.only(
        &["num_heads", "scale", "mask_filter_value", "unidirectional"],
        &[],
    )?;
    unsupported(
        inputs.find("past_sequence_length")?,
        "a shared buffer of past keys",
    )?;
    unsupported(inputs.find("cache_indirection")?, "beam search")?;
    let query = inputs.needed("query")?;
    let (Some(key), Some(value)) = (inputs.find("key")?, inputs.find("value")?) else {
        return Err(ModelError::Unsupported {
            feature: "query, key and value in one array",
        });
    };
    let mut parts = [query, key, value].map(Part::Given);
    if let Some(bias) = inputs.find("bias")? {
        let mut start = 0;
        for part in &mut parts {
            let features = last("query, key and value", part.view().shape())?;
            let bias = columns(&bias, start, features)?;
            *part = Part::Made(biased(&part.view(), &bias.view())?);
            start += features;
        }
    }
    let past = [inputs.find("past_key")?, inputs.find("past_value")?];
    let masks = [
        inputs.find("key_padding_mask")?,
        inputs.find("attention_bias")?,
    ];
    call(
        backend,
        attributes,
        parts.each_ref().map(Part::view),
        past,
        masks,
        asked,
    )
}

/// `com.microsoft.Attention`: `input` `[batch, length, features]` by `weights` `[features, query + key + value features]`.
pub(super) fn attention<B: HostKernels>(
    backend: &B,
    attributes: Attributes<'_, '_>,
    inputs: &Inputs<'_, '_>,
    asked: [bool; 3],
) -> Result<Outputs, ModelError> {
    let known = [
        "num_heads",
        "scale",
        "mask_filter_value",
        "unidirectional",
        "qkv_hidden_sizes",
    ];
    attributes.only(
        &known,
        &[
            "do_rotary",
            "rotary_embedding_dim",
            "past_present_share_buffer",
        ],
    )?;
    unsupported(
        inputs.find("past_sequence_length")?,
        "a shared buffer of past keys",
    )?;
    let (input, weights) = (inputs.needed("input")?, inputs.needed("weights")?);
    let bias = inputs.find("bias")?;
    let sizes = hidden_sizes(attributes, last("weights", weights.shape())?)?;
    let dtype = promote(None, [input.scalar(), weights.scalar()]);
    let mut start = 0;
    let mut project = |features: usize| -> Result<Tensor, ModelError> {
        let kernel = columns(&weights, start, features)?;
        let bias = match &bias {
            Some(bias) => Some(columns(bias, start, features)?),
            None => None,
        };
        start += features;
        let bias = bias.as_ref().map(Tensor::view);
        let order = RowOrder::default();
        Ok(stage::project(
            backend,
            dtype,
            order,
            &input,
            &kernel.view(),
            bias.as_ref(),
        )?)
    };
    let [query, key, value] = sizes;
    let parts = [project(query)?, project(key)?, project(value)?];
    let past = match inputs.find("past")? {
        None => [None, None],
        Some(past) => halves(&past)?.map(Some),
    };
    let masks = [inputs.find("mask_index")?, inputs.find("attention_bias")?];
    call(
        backend,
        attributes,
        parts.each_ref().map(Tensor::view),
        past,
        masks,
        asked,
    )
}

/// The call that both operators amount to.
fn call<B: HostKernels>(
    backend: &B,
    attributes: Attributes<'_, '_>,
    [q, k, v]: [TensorView<'_>; 3],
    [past_key, past_value]: [Option<TensorView<'_>>; 2],
    [mask, attention_bias]: [Option<TensorView<'_>>; 2],
    [present_key, present_value, scores]: [bool; 3],
) -> Result<Outputs, ModelError> {
    if scores {
        return Err(ModelError::Unsupported {
            feature: "the output qk",
        });
    }
    let heads = attributes.count("num_heads")?;
    let heads = heads.ok_or(ModelError::AttributeMissing { name: "num_heads" })?;
    let filter = attributes
        .float("mask_filter_value")?
        .unwrap_or(DEFAULT_FILTER);
    let past = past_key.map_or(0, |past| past.shape().get(2).copied().unwrap_or(0));
    let new = k.shape().get(1).copied().unwrap_or(0);
    let made = match (&mask, &attention_bias) {
        (None, _) => None,
        (Some(mask), None) => Some(added(mask, filter, past.saturating_add(new))?),
        (Some(_), Some(_)) => {
            return Err(ModelError::Unsupported {
                feature: "a mask beside an attention bias",
            });
        }
    };
    let mut call = Attention::new(q, k, v);
    call.opset = Opset::V25;
    call.q_num_heads = Some(heads);
    call.kv_num_heads = Some(heads);
    call.attn_mask = made.as_ref().map(Tensor::view).or(attention_bias);
    (call.past_key, call.past_value) = (past_key, past_value);
    call.is_causal = attributes.flag("unidirectional")?;
    call.scale = attributes.float("scale")?.filter(|scale| *scale != 0.0);
    call.present = present_key || present_value;
    Ok(crate::onnx::attention(backend, &call)?)
}

/// What a mask adds to the scores, so that it broadcasts to `[batch, heads, query_length, total_length]`. A mask is the number of keys of each
/// batch entry, `[batch]`, or not 0 where a key is seen, `[batch, total_length]` or `[batch, query_length, total_length]`.
fn added(mask: &TensorView<'_>, filter: f32, total: usize) -> Result<Tensor, ModelError> {
    let of = |is_seen: bool| if is_seen { 0.0 } else { f64::from(filter) };
    let rows = mask.iter_f64();
    Ok(match *mask.shape().as_slice() {
        [batch] => {
            let values =
                rows.flat_map(|length| (0..total).map(move |key| of((key as f64) < length)));
            Tensor::from_f64s(ScalarType::F32, &[batch, 1, 1, total], values)?
        }
        [batch, keys] => {
            let values = rows.map(|value| of(value != 0.0));
            Tensor::from_f64s(ScalarType::F32, &[batch, 1, 1, keys], values)?
        }
        [batch, queries, keys] => {
            let values = rows.map(|value| of(value != 0.0));
            Tensor::from_f64s(ScalarType::F32, &[batch, 1, queries, keys], values)?
        }
        _ => {
            return Err(ModelError::from(Error::Rank {
                argument: "mask",
                got: mask.shape().rank(),
                wanted: "[batch], [batch, total_length] or [batch, query_length, total_length]",
            }));
        }
    })
}

/// The features of queries, keys and values: a third each, if the node does not say otherwise.
fn hidden_sizes(attributes: Attributes<'_, '_>, columns: usize) -> Result<[usize; 3], ModelError> {
    const NAME: &str = "qkv_hidden_sizes";
    let Some(sizes) = attributes.integers(NAME) else {
        return Ok([columns / 3; 3]);
    };
    let size = |index: usize| usize::try_from(*sizes.get(index)?).ok();
    match (size(0), size(1), size(2), sizes.len()) {
        (Some(query), Some(key), Some(value), 3) => Ok([query, key, value]),
        _ => Err(refused(NAME)),
    }
}

/// Some columns of an array.
fn columns(array: &TensorView<'_>, start: usize, count: usize) -> Result<Tensor, Error> {
    let Some((&all, rows)) = array.shape().split_last() else {
        return Err(Error::Rank {
            argument: "weights",
            got: 0,
            wanted: "[features, query + key + value features]",
        });
    };
    if start.checked_add(count).is_none_or(|end| end > all) {
        return Err(Error::Buffer {
            argument: "columns of the weights",
            got: all,
            wanted: start.saturating_add(count),
        });
    }
    let shape = Dims::new(rows)?.push(count)?;
    let size = array.scalar().size();
    let mut part = Tensor::zeros(array.scalar(), &shape)?;
    if count > 0 {
        let to = part.as_mut_bytes().chunks_exact_mut(count * size);
        for (to, row) in to.zip(array.bytes().chunks_exact(all * size)) {
            to.copy_from_slice(&row[start * size..(start + count) * size]);
        }
    }
    Ok(part)
}

/// `x + bias`, rounded once; `x` `[batch, length, features]`, `bias` `[features]`.
fn biased(x: &TensorView<'_>, bias: &TensorView<'_>) -> Result<Tensor, Error> {
    let columns = bias.elements().max(1);
    let sums = x
        .iter_f64()
        .enumerate()
        .map(|(index, x)| x + bias.get_f64(index % columns));
    Tensor::from_f64s(x.scalar(), x.shape(), sums)
}

/// Past keys and past values of `[2, batch, heads, past_length, head_size]`.
fn halves<'v>(past: &TensorView<'v>) -> Result<[TensorView<'v>; 2], ModelError> {
    let &[2, batch, heads, length, size] = past.shape().as_slice() else {
        return Err(ModelError::from(Error::Rank {
            argument: "past",
            got: past.shape().rank(),
            wanted: "[2, batch, num_heads, past_length, head_size]",
        }));
    };
    let shape = [batch, heads, length, size];
    let (keys, values) = past.bytes().split_at(past.bytes().len() / 2);
    Ok([
        TensorView::new(past.scalar(), &shape, keys)?,
        TensorView::new(past.scalar(), &shape, values)?,
    ])
}

fn last(argument: &'static str, shape: &Dims) -> Result<usize, Error> {
    shape.last().copied().ok_or(Error::Rank {
        argument,
        got: 0,
        wanted: "at least 1",
    })
}

fn unsupported(given: Option<TensorView<'_>>, feature: &'static str) -> Result<(), ModelError> {
    match given {
        None => Ok(()),
        Some(_) => Err(ModelError::Unsupported { feature }),
    }
}

/// An array as it was given, or with its bias.
enum Part<'a> {
    Given(TensorView<'a>),
    Made(Tensor),
}

impl Part<'_> {
    fn view(&self) -> TensorView<'_> {
        match self {
            Self::Given(view) => *view,
            Self::Made(tensor) => tensor.view(),
        }
    }
}
