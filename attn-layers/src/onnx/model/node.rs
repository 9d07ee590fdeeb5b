//! A node of attention: its operator, its inputs, and its call.

use super::attributes::Attributes;
use super::contrib;
use super::error::ModelError;
use super::graph::Arrays;
use super::proto::{self, Array, NodeProto, OpsetImport};
use super::wire::Message;
use crate::onnx::{
    Attention, Opset, Outputs, attention, precision_of_type, stage_of_mode, window_of_size,
};
use crate::stage::HostKernels;
use crate::tensor::TensorView;
use alloc::borrow::ToOwned;
use alloc::vec::Vec;

/// What a node computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Operator {
    /// ONNX's `Attention`.
    Attention(Opset),
    /// `com.microsoft.MultiHeadAttention`.
    MicrosoftMultiHeadAttention,
    /// `com.microsoft.Attention`, which projects its input.
    MicrosoftAttention,
}

impl Operator {
    /// The operator of a node, if it is one of attention.
    pub(super) fn of(node: &NodeProto<'_>, imports: &[OpsetImport<'_>]) -> Option<Self> {
        match (node.domain, node.op_type) {
            ("" | "ai.onnx", "Attention") => {
                let onnx = |import: &&OpsetImport<'_>| ["", "ai.onnx"].contains(&import.domain);
                let version = imports.iter().find(onnx)?.version;
                Some(Self::Attention(Opset::of_import(version).ok()?))
            }
            ("com.microsoft", "MultiHeadAttention") => Some(Self::MicrosoftMultiHeadAttention),
            ("com.microsoft", "Attention") => Some(Self::MicrosoftAttention),
            _ => None,
        }
    }

    /// The operator's inputs, in order.
    const fn inputs(self) -> &'static [&'static str] {
        match self {
            Self::Attention(_) => &[
                "Q",
                "K",
                "V",
                "attn_mask",
                "past_key",
                "past_value",
                "nonpad_kv_seqlen",
            ],
            Self::MicrosoftMultiHeadAttention => &contrib::MULTI_HEAD_INPUTS,
            Self::MicrosoftAttention => &contrib::ATTENTION_INPUTS,
        }
    }
}

/// A node of attention and the weights of its inputs.
#[derive(Debug)]
pub struct Node<'a> {
    operator: Operator,
    proto: NodeProto<'a>,
    /// The array of each input that has one in the file.
    weights: Vec<Option<Message<'a>>>,
}

impl<'a> Node<'a> {
    pub(super) fn new(operator: Operator, proto: NodeProto<'a>, arrays: &Arrays<'a>) -> Self {
        let weights = proto.inputs.iter().map(|name| arrays.get(name).copied());
        Self {
            operator,
            weights: weights.collect(),
            proto,
        }
    }

    /// What it computes.
    #[must_use]
    pub const fn operator(&self) -> Operator {
        self.operator
    }

    /// Its name, empty if it has none.
    #[must_use]
    pub const fn name(&self) -> &'a str {
        self.proto.name
    }

    /// The values that have to be given: each input without weights in the file, by the operator's name and by the model's.
    pub fn open_inputs(&self) -> impl Iterator<Item = (&'static str, &'a str)> {
        let named = self.operator.inputs().iter().zip(&self.proto.inputs);
        named
            .zip(&self.weights)
            .filter(|((_, value), weights)| !value.is_empty() && weights.is_none())
            .map(|((input, value), _)| (*input, *value))
    }

    /// Computes the node on a backend; `given` are the values of its open inputs by the model's names. Outputs that the model does not use
    /// are not made.
    ///
    /// # Errors
    ///
    /// [`ModelError`]: what is wrong with the node, its weights or `given`, or why the call cannot be made.
    pub fn apply<B: HostKernels>(
        &self,
        backend: &B,
        given: &[(&str, TensorView<'_>)],
    ) -> Result<Outputs, ModelError> {
        let inputs = self.bind(given)?;
        let call = Inputs {
            names: self.operator.inputs(),
            values: &self.proto.inputs,
            arrays: &inputs,
        };
        let attributes = Attributes(&self.proto.attributes);
        match self.operator {
            Operator::Attention(opset) => Ok(attention(backend, &self.arguments(&call, opset)?)?),
            Operator::MicrosoftMultiHeadAttention => {
                contrib::multi_head_attention(backend, attributes, &call, self.asked()?)
            }
            Operator::MicrosoftAttention => {
                contrib::attention(backend, attributes, &call, self.asked()?)
            }
        }
    }

    /// The array of each input: given, or from the file.
    fn bind<'v>(
        &self,
        given: &[(&str, TensorView<'v>)],
    ) -> Result<Vec<Option<Array<'v>>>, ModelError>
    where
        'a: 'v,
    {
        let known = self.operator.inputs().len();
        if self.proto.inputs.len() > known {
            return Err(ModelError::TooMany { known });
        }
        for (value, _) in given {
            if !self.open_inputs().any(|(_, open)| open == *value) {
                return Err(ModelError::NoInput {
                    value: (*value).to_owned(),
                });
            }
        }
        let array = |(value, weights): (&&str, &Option<Message<'a>>)| match weights {
            Some(message) => match proto::tensor(*message)? {
                None => Err(ModelError::External {
                    input: (*value).to_owned(),
                }),
                array => Ok(array),
            },
            None => {
                let found = given.iter().find(|(name, _)| name == value);
                Ok(found.map(|(_, view)| Array::InPlace(*view)))
            }
        };
        self.proto
            .inputs
            .iter()
            .zip(&self.weights)
            .map(array)
            .collect()
    }

    /// Which of the outputs after the first are used.
    fn asked(&self) -> Result<[bool; 3], ModelError> {
        if self.proto.outputs.len() > 4 {
            return Err(ModelError::TooMany { known: 4 });
        }
        let used = |index: usize| {
            self.proto
                .outputs
                .get(index)
                .is_some_and(|name| !name.is_empty())
        };
        Ok([used(1), used(2), used(3)])
    }

    /// The call of ONNX's operator.
    fn arguments<'v>(
        &self,
        inputs: &'v Inputs<'_, '_>,
        opset: Opset,
    ) -> Result<Attention<'v>, ModelError> {
        let attributes = Attributes(&self.proto.attributes);
        attributes.only(
            &[
                "is_causal",
                "q_num_heads",
                "kv_num_heads",
                "scale",
                "softcap",
                "qk_matmul_output_mode",
                "softmax_precision",
                "left_window_size",
                "right_window_size",
            ],
            &[],
        )?;
        let window = |name| {
            let size = attributes.integer(name)?.unwrap_or(-1);
            Ok::<_, ModelError>(window_of_size(name, size)?)
        };
        let [key, value, scores] = self.asked()?;
        let mut call = Attention::new(
            inputs.needed("Q")?,
            inputs.needed("K")?,
            inputs.needed("V")?,
        );
        call.attn_mask = inputs.find("attn_mask")?;
        call.past_key = inputs.find("past_key")?;
        call.past_value = inputs.find("past_value")?;
        call.nonpad_kv_seqlen = inputs.find("nonpad_kv_seqlen")?;
        call.is_causal = attributes.flag("is_causal")?;
        call.q_num_heads = attributes.count("q_num_heads")?;
        call.kv_num_heads = attributes.count("kv_num_heads")?;
        call.scale = attributes.float("scale")?;
        call.softcap = attributes.float("softcap")?.unwrap_or(0.0);
        let precision = attributes.integer("softmax_precision")?;
        call.softmax_precision = precision.map(precision_of_type).transpose()?;
        call.left_window_size = window("left_window_size")?;
        call.right_window_size = window("right_window_size")?;
        call.present = key || value;
        if scores {
            let mode = attributes.integer("qk_matmul_output_mode")?.unwrap_or(0);
            call.qk_matmul_output = Some(stage_of_mode(mode)?);
        }
        call.opset = opset;
        Ok(call)
    }
}

/// The inputs of a call by the operator's names.
pub(super) struct Inputs<'v, 'a> {
    names: &'static [&'static str],
    values: &'v [&'v str],
    arrays: &'v [Option<Array<'a>>],
}

impl Inputs<'_, '_> {
    /// The input of this name; none if the node has none. One that the node has must have been given.
    pub(super) fn find(&self, name: &'static str) -> Result<Option<TensorView<'_>>, ModelError> {
        let Some(index) = self.names.iter().position(|input| *input == name) else {
            return Ok(None);
        };
        match (self.values.get(index), self.arrays.get(index)) {
            (Some(value), Some(None)) if !value.is_empty() => Err(ModelError::InputMissing {
                input: name,
                value: (*value).to_owned(),
            }),
            (_, Some(Some(array))) => Ok(Some(array.view())),
            _ => Ok(None),
        }
    }

    pub(super) fn needed(&self, name: &'static str) -> Result<TensorView<'_>, ModelError> {
        self.find(name)?.ok_or(ModelError::InputMissing {
            input: name,
            value: alloc::string::String::new(),
        })
    }
}
