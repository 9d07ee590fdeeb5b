//! Fresh parameters, as `Module.init` makes them.

use super::case::Case;
use super::{Outputs, layer};
use anyhow::{Result, ensure};
use attn_layers::InitShapes;

/// Makes the parameters. Of the inputs only their shapes are used.
pub(crate) fn run(case: &Case) -> Result<Outputs> {
    case.call.only(&[
        "inputs_q",
        "inputs_k",
        "inputs_v",
        "inputs_kv",
        "mask",
        "deterministic",
    ])?;
    let path = case.path();
    let layer = layer::of(case, &path)?;
    let rngs = case.streams()?;
    rngs.params.map_or(Ok(()), |key| case.check_seed(key))?;
    let inputs_q = case.tensor("inputs_q")?;
    let [inputs_k, inputs_v, inputs_kv] = [
        case.optional_tensor("inputs_k")?,
        case.optional_tensor("inputs_v")?,
        case.optional_tensor("inputs_kv")?,
    ];
    let shapes = InitShapes::new(inputs_q.shape())
        .with_inputs_k(inputs_k.as_ref().map(|k| k.shape().as_slice()))
        .with_inputs_v(inputs_v.as_ref().map(|v| v.shape().as_slice()))
        .with_inputs_kv(inputs_kv.as_ref().map(|kv| kv.shape().as_slice()))
        .with_deterministic(case.call.flag("deterministic")?);
    let params = layer.init(&rngs, &shapes)?;
    let mut outputs = Outputs::new();
    for (name, tensor) in params.into_entries() {
        let name = name_in(case, name);
        ensure!(
            case.expected.contains_key(&name),
            "{name} was made, but Flax makes no such parameter"
        );
        outputs.insert(name, tensor);
    }
    Ok(outputs)
}

/// The parameter's name, from the module's own place or, if the case names them so, from the root.
fn name_in(case: &Case, name: &str) -> String {
    let from_root = ["params", &case.path().join("/"), name].join("/");
    match case.expected.contains_key(&from_root) {
        true => from_root,
        false => format!("params/{name}"),
    }
}
