//! Gradients: `d_out`, the gradient of the output, pulled back to everything that the call was given.

use super::Outputs;
use anyhow::Result;
use attn_layers::HostKernels;
use attn_layers::tensor::{Tensor, TensorView};
use attn_layers::{
    Call, DotProductAttention, MultiHeadDotProductAttention, Output, ParamSource,
    dot_product_attention_vjp,
};

/// The call of a layer, and the gradients of its inputs and parameters.
pub(crate) fn of_layer<B: HostKernels>(
    backend: &B,
    layer: &MultiHeadDotProductAttention<'_>,
    params: &dyn ParamSource,
    call: Call<'_>,
    d_out: TensorView<'_>,
) -> Result<(Output, Outputs)> {
    let (output, residuals) = layer.forward(backend, params, call)?;
    let gradients = layer.backward(backend, &residuals, d_out)?;
    let inputs = [
        ("d_inputs_q", gradients.d_inputs_q),
        ("d_inputs_k", gradients.d_inputs_k),
        ("d_inputs_v", gradients.d_inputs_v),
        ("d_inputs_kv", gradients.d_inputs_kv),
    ];
    let mut outputs = present(inputs);
    for (path, gradient) in gradients.params {
        outputs.insert(format!("d_params/{path}"), gradient);
    }
    Ok((output, outputs))
}

/// The call of `dot_product_attention`, and the gradients of its operands and its bias.
pub(crate) fn of_attention<B: HostKernels>(
    backend: &B,
    arguments: &DotProductAttention<'_>,
    value: TensorView<'_>,
    d_out: TensorView<'_>,
) -> Result<(Tensor, Outputs)> {
    let (out, residuals) = dot_product_attention_vjp(backend, arguments, value)?;
    let gradients = residuals.backward(backend, d_out)?;
    let operands = [
        ("d_query", gradients.d_query),
        ("d_key", gradients.d_key),
        ("d_value", gradients.d_value),
        ("d_bias", gradients.d_bias),
    ];
    Ok((out, present(operands)))
}

fn present<const N: usize>(gradients: [(&str, Option<Tensor>); N]) -> Outputs {
    let named = |(name, gradient): (&str, Option<Tensor>)| Some((name.to_owned(), gradient?));
    gradients.into_iter().filter_map(named).collect()
}
