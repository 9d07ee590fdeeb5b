//! Cases of the ONNX operator `Attention`.

use super::Outputs;
use super::case::Expected;
use super::fields::Fields;
use super::tensors::Tensors;
use anyhow::{Context, Result, bail, ensure};
use attn_layers::onnx::{self, Attention};
use attn_layers::tensor::TensorView;
use attn_layers::{HostKernels, ScalarType};
use std::collections::BTreeMap;

/// The operator's inputs, the optional ones behind the others.
const INPUTS: [&str; 7] = [
    "Q",
    "K",
    "V",
    "attn_mask",
    "past_key",
    "past_value",
    "nonpad_kv_seqlen",
];

const ATTRIBUTES: [&str; 9] = [
    "is_causal",
    "q_num_heads",
    "kv_num_heads",
    "scale",
    "softcap",
    "qk_matmul_output_mode",
    "softmax_precision",
    "left_window_size",
    "right_window_size",
];

/// A recorded call of the operator.
#[derive(Debug)]
pub(crate) struct OnnxCase {
    pub(crate) opset: i64,
    pub(crate) attributes: Fields,
    /// The name of the tensor of each input.
    pub(crate) inputs: Fields,
    /// The type of each input in the model.
    pub(crate) input_types: Fields,
    pub(crate) tensors: Tensors,
    /// The outputs that the call has.
    pub(crate) asked: Vec<String>,
    pub(crate) expected: BTreeMap<String, Expected>,
    /// The contents of the expected file.
    pub(crate) truth: Tensors,
}

/// Makes the call and gives its outputs by the operator's names.
pub(crate) fn run<B: HostKernels>(case: &OnnxCase, backend: &B) -> Result<Outputs> {
    let outputs = onnx::attention(backend, &case.call()?)?;
    let named = [
        ("Y", Some(outputs.y)),
        ("present_key", outputs.present_key),
        ("present_value", outputs.present_value),
        ("qk_matmul_output", outputs.qk_matmul_output),
    ];
    let given = named
        .into_iter()
        .filter_map(|(name, output)| Some((name.to_owned(), output?)));
    Ok(given.collect())
}

impl OnnxCase {
    fn call(&self) -> Result<Attention<'_>> {
        self.attributes.only(&ATTRIBUTES)?;
        self.inputs.only(&INPUTS)?;
        let attribute = |name| self.attributes.integer(name);
        let window = |name| match attribute(name)? {
            Some(size) => Ok(onnx::window_of_size(name, size)?),
            None => Ok::<_, anyhow::Error>(None),
        };
        let needed = |name| {
            self.input(name)?
                .with_context(|| format!("inputs.{name} is missing"))
        };
        let mut call = Attention::new(needed("Q")?, needed("K")?, needed("V")?);
        call.opset = onnx::Opset::of_import(self.opset)?;
        call.attn_mask = self.input("attn_mask")?;
        call.past_key = self.input("past_key")?;
        call.past_value = self.input("past_value")?;
        call.nonpad_kv_seqlen = self.input("nonpad_kv_seqlen")?;
        call.is_causal = attribute("is_causal")?.is_some_and(|causal| causal != 0);
        call.q_num_heads = self.attributes.size("q_num_heads")?;
        call.kv_num_heads = self.attributes.size("kv_num_heads")?;
        call.scale = self.attributes.number("scale")?.map(|scale| scale as f32);
        call.softcap = self.attributes.number("softcap")?.unwrap_or(0.0) as f32;
        call.softmax_precision = attribute("softmax_precision")?
            .map(onnx::precision_of_type)
            .transpose()?;
        call.left_window_size = window("left_window_size")?;
        call.right_window_size = window("right_window_size")?;
        for output in &self.asked {
            match output.as_str() {
                "Y" => {}
                "present_key" | "present_value" => call.present = true,
                "qk_matmul_output" => {
                    let mode = attribute("qk_matmul_output_mode")?.unwrap_or(0);
                    call.qk_matmul_output = Some(onnx::stage_of_mode(mode)?);
                }
                other => bail!("the output {other:?} is not supported"),
            }
        }
        Ok(call)
    }

    /// The input `name`, if it is given. Safetensors has no type for bool: such inputs are stored as bytes.
    fn input(&self, name: &str) -> Result<Option<TensorView<'_>>> {
        let Some(tensor) = self.inputs.text(name)? else {
            return Ok(None);
        };
        let view = self.tensors.view(tensor)?;
        let wanted = self.input_types.scalar(name)?.unwrap_or(view.scalar());
        let stored = match wanted {
            ScalarType::Bool => [ScalarType::Bool, ScalarType::U8],
            other => [other, other],
        };
        ensure!(
            stored.contains(&view.scalar()),
            "the tensor {tensor:?} is {}, not {wanted}",
            view.scalar()
        );
        Ok(Some(TensorView::new(wanted, view.shape(), view.bytes())?))
    }
}
