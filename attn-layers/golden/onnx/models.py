"""Makes model files with nodes of attention, and what each node must give.

    python models.py OUT_DIR

NAME.onnx is the model, NAME.safetensors holds `given/VALUE` for its inputs, and for each output `expected/OUTPUT` in float64 with the
largest difference allowed, `atol/OUTPUT`. ONNX Runtime computes the operators of its own, ONNX's reference implementation the other.
"""

import sys
import zlib
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from safetensors.numpy import save

import files
import truth

HIDDEN, HEADS = 6, 2


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, made in CASES.items():
        model, given, exact = made(np.random.default_rng(zlib.crc32(name.encode())))
        onnx.checker.check_model(model)
        bytes_of_model = model.SerializeToString()
        (folder / f"{name}.onnx").write_bytes(bytes_of_model)
        tensors = {f"given/{value}": array for value, array in given.items()}
        asked = [output.name for output in model.graph.output]
        for output, got in zip(asked, run(model, bytes_of_model, given)):
            expected = files.judged(output, got, exact[output])
            tensors[f"expected/{output}"] = exact[output]
            tensors[f"atol/{output}"] = np.array(expected["atol"])
        (folder / f"{name}.safetensors").write_bytes(save(files.stored(tensors)))
        print(name)


def run(model, bytes_of_model, given):
    if any(node.domain == "com.microsoft" for node in model.graph.node):
        return onnxruntime.InferenceSession(bytes_of_model, providers=["CPUExecutionProvider"]).run(None, given)
    return ReferenceEvaluator(model).run(None, given)


def microsoft(node, given, weights, outputs):
    """A model of one of ONNX Runtime's nodes."""
    return model([node], given, weights, outputs, [("", 17), ("com.microsoft", 1)])


def model(nodes, given, weights, outputs, imports):
    info = lambda name, array: helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
    graph = helper.make_graph(
        nodes, "attention", [info(*one) for one in given.items()], [info(*one) for one in outputs.items()], weights
    )
    opsets = [helper.make_opsetid(*one) for one in imports]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def normal(random, *shape):
    return random.standard_normal(shape).astype(np.float32)


def attributes(**given):
    return truth.ATTRIBUTES | {"q_num_heads": HEADS, "kv_num_heads": HEADS} | given


def mask_in_the_file(random):
    """ONNX's operator; the mask is an initializer of float numbers, the keys a constant, the values an initializer of 16-bit floats."""
    given = {"queries": normal(random, 2, 4, 3, 5)}
    mask = normal(random, 3, 6)
    mask[0, 2] = -np.inf
    keys, values = normal(random, 2, 2, 6, 5), normal(random, 2, 2, 6, 4).astype(np.float16)
    numbers = helper.make_tensor("mask", TensorProto.FLOAT, mask.shape, mask.flatten())
    bits = helper.make_tensor("values", TensorProto.FLOAT16, values.shape, values.flatten())
    constant = helper.make_node("Constant", [], ["keys"], value=numpy_helper.from_array(keys))
    node = helper.make_node(
        "Attention", ["queries", "keys", "values", "mask"], ["y", "", "present", "scores"], "core", is_causal=1, qk_matmul_output_mode=2
    )
    inputs = {"Q": given["queries"], "K": keys, "V": values, "attn_mask": mask}
    exact = truth.attention(24, truth.ATTRIBUTES | {"is_causal": 1, "qk_matmul_output_mode": 2}, inputs)
    exact = {"y": exact["Y"], "present": exact["present_value"], "scores": exact["qk_matmul_output"]}
    outputs = {"y": given["queries"], "present": values, "scores": given["queries"]}
    outputs = {name: np.empty(exact[name].shape, dtype=array.dtype) for name, array in outputs.items()}
    return model([constant, node], given, [numbers, bits], outputs, [("", 24)]), given, exact


def multi_head(random, **more):
    """ONNX Runtime's node of three inputs and a bias."""
    given = {"query": normal(random, 2, 3, HIDDEN), "key": normal(random, 2, 4, HIDDEN), "value": normal(random, 2, 4, HIDDEN)}
    bias = normal(random, 3 * HIDDEN)
    q, k, v = (x + b for x, b in zip(given.values(), np.split(bias.astype(np.float64), 3)))
    return given, numpy_helper.from_array(bias, "bias"), {"Q": q, "K": k, "V": v}


def multi_head_padding(random):
    """A mask of keys, and a past."""
    given, bias, inputs = multi_head(random)
    given |= {"padding": np.array([[1, 1, 1, 0, 1, 1], [0, 1, 1, 1, 1, 0]], dtype=np.int32)}
    past = {"past_key": normal(random, 2, HEADS, 2, 3), "past_value": normal(random, 2, HEADS, 2, 3)}
    given |= past
    names = ["query", "key", "value", "bias", "padding", "", "past_key", "past_value"]
    node = helper.make_node(
        "MultiHeadAttention", names, ["y", "present_key", "present_value"], "mha", domain="com.microsoft", num_heads=HEADS
    )
    added = np.where(given["padding"] == 0, -10000.0, 0.0)[:, None, None, :]
    exact = truth.attention(25, attributes(), inputs | past | {"attn_mask": added})
    exact = {"y": exact["Y"], "present_key": exact["present_key"], "present_value": exact["present_value"]}
    outputs = {name: array.astype(np.float32) for name, array in exact.items()}
    return microsoft(node, given, [bias], outputs), given, exact


def multi_head_lengths(random):
    """The number of keys of each batch entry."""
    given, bias, inputs = multi_head(random)
    given |= {"lengths": np.array([3, 1], dtype=np.int32)}
    node = helper.make_node(
        "MultiHeadAttention", ["query", "key", "value", "bias", "lengths"], ["y"], domain="com.microsoft", num_heads=HEADS, scale=0.4
    )
    hidden = np.arange(4)[None, :] >= given["lengths"][:, None]
    added = np.where(hidden, -10000.0, 0.0)[:, None, None, :]
    exact = {"y": truth.attention(25, attributes(scale=0.4), inputs | {"attn_mask": added})["Y"]}
    return microsoft(node, given, [bias], {"y": given["query"]}), given, exact


def multi_head_bias(random):
    """An attention bias from the file, causal."""
    given, bias, inputs = multi_head(random)
    for name in ("key", "value"):
        given[name] = given[name][:, :3]
        inputs[name[0].upper()] = inputs[name[0].upper()][:, :3]
    scores = normal(random, 1, HEADS, 3, 3)
    node = helper.make_node(
        "MultiHeadAttention",
        ["query", "key", "value", "bias", "", "scores"],
        ["y"],
        domain="com.microsoft",
        num_heads=HEADS,
        unidirectional=1,
    )
    exact = {"y": truth.attention(25, attributes(is_causal=1), inputs | {"attn_mask": scores})["Y"]}
    weights = [bias, numpy_helper.from_array(scores, "scores")]
    return microsoft(node, given, weights, {"y": given["query"]}), given, exact


def projecting(random):
    """ONNX Runtime's node that projects: values of their own size, a mask of keys, a past."""
    sizes = [HIDDEN, HIDDEN, 8]
    given = {"states": normal(random, 2, 3, 5), "mask": np.array([[1, 1, 0], [1, 1, 1]], dtype=np.int32)}
    weights, bias = normal(random, 5, sum(sizes)), normal(random, sum(sizes))
    node = helper.make_node(
        "Attention",
        ["states", "weights", "bias", "mask"],
        ["y"],
        "projecting",
        domain="com.microsoft",
        num_heads=HEADS,
        qkv_hidden_sizes=sizes,
        mask_filter_value=-3e4,
    )
    parts = np.split(given["states"].astype(np.float64) @ weights.astype(np.float64) + bias, np.cumsum(sizes)[:2], axis=-1)
    added = np.where(given["mask"] == 0, -3e4, 0.0)[:, None, None, :]
    exact = {"y": truth.attention(25, attributes(), dict(zip("QKV", parts)) | {"attn_mask": added})["Y"]}
    arrays = [numpy_helper.from_array(weights, "weights"), numpy_helper.from_array(bias, "bias")]
    return microsoft(node, given, arrays, {"y": exact["y"].astype(np.float32)}), given, exact


CASES = {
    "attention_mask_in_the_file": mask_in_the_file,
    "microsoft_multi_head_padding": multi_head_padding,
    "microsoft_multi_head_lengths": multi_head_lengths,
    "microsoft_multi_head_bias": multi_head_bias,
    "microsoft_projecting": projecting,
}

if __name__ == "__main__":
    main()
