//! The operator's inputs and attributes.

use crate::tensor::TensorView;
use attn_core::{DType, Error, Result, Stage};

/// A version of the operator. What a version lacks is refused, not left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
#[non_exhaustive]
pub enum Opset {
    /// Without `nonpad_kv_seqlen` and windows. The last axis of `attn_mask` must be 1 or the number of keys.
    V23,
    /// Without windows.
    V24,
    /// With windows. Inputs of rank 4 must come without numbers of heads.
    #[default]
    V25,
}

impl Opset {
    /// The operator's version in a model that imports this version of the operator set.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] before 23, which has no such operator.
    pub const fn of_import(version: i64) -> Result<Self> {
        match version {
            ..23 => Err(Error::Unsupported {
                backend: "the ONNX operator set before 23",
                feature: "Attention",
                instead: "Export the model with opset 23 or later",
            }),
            23 => Ok(Self::V23),
            24 => Ok(Self::V24),
            _ => Ok(Self::V25),
        }
    }
}

/// One call of the operator `Attention`: its inputs, its attributes, and which outputs are asked for.
///
/// `Q`, `K` and `V` have the same rank. Rank 4 is `[batch, heads, length, head_size]`; rank 3 is `[batch, length, heads * head_size]`, with
/// the numbers of heads as attributes. Keys and values may have fewer heads than queries, each for a group of them.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Attention<'a> {
    /// Queries.
    pub q: TensorView<'a>,
    /// Keys, of the queries' type.
    pub k: TensorView<'a>,
    /// Values.
    pub v: TensorView<'a>,
    /// Broadcasts to `[batch, q_num_heads, q_length, total_length]`, where `total_length` counts past keys too. From opset 24 on its last
    /// axis may be shorter, and hides the keys beyond it.
    pub attn_mask: Option<TensorView<'a>>,
    /// Keys of earlier calls, `[batch, kv_num_heads, past_length, head_size]`; with `past_value` or not at all.
    pub past_key: Option<TensorView<'a>>,
    /// Values of earlier calls, `[batch, kv_num_heads, past_length, v_head_size]`.
    pub past_value: Option<TensorView<'a>>,
    /// How many keys of each batch entry are no padding, `int64[batch]`: keys and values are a cache that is kept outside. Not with a past.
    pub nonpad_kv_seqlen: Option<TensorView<'a>>,
    /// Whether a query sees no later key. Query 0 lies behind the past; with `nonpad_kv_seqlen` the last query lies at the last key.
    pub is_causal: bool,
    /// Heads of queries of rank 3.
    pub q_num_heads: Option<usize>,
    /// Heads of keys and values of rank 3.
    pub kv_num_heads: Option<usize>,
    /// The factor on the scores, `1 / sqrt(head_size)` without one.
    pub scale: Option<f32>,
    /// `c` of `c * tanh(score / c)`, before anything is added; 0 caps nothing.
    pub softcap: f32,
    /// The least type that softmax runs in. Results are never less exact than in `float32`.
    pub softmax_precision: Option<DType>,
    /// How many keys before its own a query sees, all without one; it lies where `is_causal` says.
    pub left_window_size: Option<usize>,
    /// How many keys after its own a query sees.
    pub right_window_size: Option<usize>,
    /// Whether `present_key` and `present_value` are outputs.
    pub present: bool,
    /// The stage of the scores that is the output `qk_matmul_output`, if there is one.
    pub qk_matmul_output: Option<Stage>,
    /// The operator's version.
    pub opset: Opset,
}

impl<'a> Attention<'a> {
    /// A call with the operator's defaults, whose only output is `Y`.
    #[must_use]
    pub fn new(q: TensorView<'a>, k: TensorView<'a>, v: TensorView<'a>) -> Self {
        Self {
            q,
            k,
            v,
            attn_mask: None,
            past_key: None,
            past_value: None,
            nonpad_kv_seqlen: None,
            is_causal: false,
            q_num_heads: None,
            kv_num_heads: None,
            scale: None,
            softcap: 0.0,
            softmax_precision: None,
            left_window_size: None,
            right_window_size: None,
            present: false,
            qk_matmul_output: None,
            opset: Opset::default(),
        }
    }

    /// Refuses what the operator's version has no words for, and inputs that exclude each other.
    pub(super) fn check(&self) -> Result<()> {
        let has_window = self.left_window_size.is_some() || self.right_window_size.is_some();
        let has_heads = self.q_num_heads.is_some() || self.kv_num_heads.is_some();
        if self.opset < Opset::V24 && self.nonpad_kv_seqlen.is_some() {
            return Err(later("nonpad_kv_seqlen", "Use opset 24 or later"));
        }
        if self.opset < Opset::V25 && has_window {
            return Err(later("windows", "Use opset 25 or later"));
        }
        if self.opset >= Opset::V25 && has_heads && self.q.shape().rank() == 4 {
            return Err(later(
                "numbers of heads beside inputs of rank 4",
                "Leave out q_num_heads and kv_num_heads",
            ));
        }
        if self.past_key.is_some() != self.past_value.is_some() {
            return Err(Error::Together {
                left: "past_key",
                right: "past_value",
            });
        }
        let excluded = [
            (self.past_key.is_some(), "past_key"),
            (self.present, "present_key"),
        ];
        match excluded.into_iter().find(|(given, _)| *given) {
            Some((_, right)) if self.nonpad_kv_seqlen.is_some() => Err(Error::Exclusive {
                left: "nonpad_kv_seqlen",
                right,
            }),
            _ => Ok(()),
        }
    }

    /// The softcap, if it caps anything.
    pub(super) fn cap(&self) -> Option<f64> {
        (self.softcap != 0.0).then_some(f64::from(self.softcap))
    }
}

const fn later(feature: &'static str, instead: &'static str) -> Error {
    Error::Unsupported {
        backend: "this opset of the ONNX operator Attention",
        feature,
        instead,
    }
}

/// The stage that a `qk_matmul_output_mode` names: 0 the scaled product, 1 after the softcap, 2 with mask and bias, 3 after softmax.
///
/// # Errors
///
/// [`Error::Entry`] for another number.
pub const fn stage_of_mode(mode: i64) -> Result<Stage> {
    match mode {
        0 => Ok(Stage::Scaled),
        1 => Ok(Stage::Capped),
        2 => Ok(Stage::Masked),
        3 => Ok(Stage::Softmax),
        got => Err(Error::Entry {
            argument: "qk_matmul_output_mode",
            index: 0,
            got,
            least: 0,
            most: 3,
        }),
    }
}

/// The type that a `softmax_precision` names, a number of `TensorProto.DataType`: 1 `float32`, 10 `float16`, 11 `float64`, 16 `bfloat16`.
///
/// # Errors
///
/// [`Error::Unsupported`] for another number.
pub const fn precision_of_type(number: i64) -> Result<DType> {
    match number {
        1 => Ok(DType::F32),
        10 => Ok(DType::F16),
        11 => Ok(DType::F64),
        16 => Ok(DType::BF16),
        _ => Err(Error::Unsupported {
            backend: "the ONNX operator Attention",
            feature: "softmax in this softmax_precision",
            instead: "Give 1 (float32), 10 (float16), 11 (float64) or 16 (bfloat16)",
        }),
    }
}

/// The end of a window that an attribute gives: -1 is no end.
///
/// # Errors
///
/// [`Error::Entry`] for other numbers below 0.
pub fn window_of_size(argument: &'static str, size: i64) -> Result<Option<usize>> {
    match size {
        -1 => Ok(None),
        // A window that no word can count ends nowhere.
        0.. => Ok(Some(usize::try_from(size).unwrap_or(usize::MAX))),
        got => Err(Error::Entry {
            argument,
            index: 0,
            got,
            least: -1,
            most: i64::MAX,
        }),
    }
}
