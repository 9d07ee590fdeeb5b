"""Calls of the operator that its own conformance tests leave out."""

import zlib

import ml_dtypes
import numpy as np
import onnx

INPUTS = ["Q", "K", "V", "attn_mask", "past_key", "past_value", "nonpad_kv_seqlen"]
OUTPUTS = ["Y", "present_key", "present_value", "qk_matmul_output"]
HIDDEN = -np.inf


def cases():
    """Name, model, inputs in the order of the model's."""
    for name, (opset, outputs, inputs, attributes) in described().items():
        random = np.random.default_rng(zlib.crc32(name.encode()))
        arrays = {formal: made(random) if callable(made) else np.asarray(made) for formal, made in inputs.items()}
        yield f"more_{name}", model(opset, outputs, arrays, attributes), [arrays[formal] for formal in INPUTS if formal in arrays]


def described():
    """Opset, outputs, inputs and attributes of every call."""
    lengths = np.array([5, 0], dtype=np.int64)
    blind = np.array([[True, False, True], [False, False, False]])
    # The reference implementation takes a mask of one query for that of query 0 where it is causal too, so this one has all.
    added = np.array([[0.5, HIDDEN, -2.0, HIDDEN, 1.5]] * 3, dtype=np.float32)
    # It gives capped scores in mode 0 too, other than the operator's text and its function body.
    cap = lambda mode: 1.5 if mode > 0 else 0.0
    past = lambda heads, size: normal(2, heads, 3, size)
    heads = {"q_num_heads": 4, "kv_num_heads": 2}
    grouped = {"Q": normal(2, 4, 3, 5), "K": normal(2, 2, 6, 5), "V": normal(2, 2, 6, 3)}
    packed = {"Q": normal(2, 3, 20), "K": normal(2, 6, 10), "V": normal(2, 6, 6)}
    square = {"Q": normal(1, 2, 2, 4), "K": normal(1, 2, 3, 4), "V": normal(1, 2, 3, 4)}
    double = {name: normal(1, 2, 3, 4, dtype=np.float64) for name in "QKV"}
    halves = {name: normal(1, 2, 3, 4, dtype=np.float16) for name in "QKV"}
    brains = {name: normal(1, 2, 3, 4, dtype=ml_dtypes.bfloat16) for name in "QKV"}
    scores, everything = ["Y", "qk_matmul_output"], OUTPUTS
    return {
        # Every stage beside everything that hides keys.
        **{
            f"mode{mode}_past_causal_softcap_grouped": (
                23,
                everything,
                grouped | {"past_key": past(2, 5), "past_value": past(2, 3), "attn_mask": booleans(4, 3, 9)},
                {"is_causal": 1, "softcap": cap(mode), "qk_matmul_output_mode": mode},
            )
            for mode in range(4)
        },
        **{
            f"mode{mode}_lengths_short_mask": (
                24,
                scores,
                grouped | {"nonpad_kv_seqlen": lengths, "attn_mask": added},
                {"is_causal": 1, "softcap": cap(mode), "qk_matmul_output_mode": mode},
            )
            for mode in range(4)
        },
        "rank3_everything": (
            25,
            everything,
            packed | {"past_key": past(2, 5), "past_value": past(2, 3), "attn_mask": normal(3, 9)},
            heads | {"is_causal": 1, "scale": 0.3, "softcap": 3.0, "left_window_size": 4, "qk_matmul_output_mode": 2},
        ),
        "rank3_window_lengths": (
            25,
            ["Y"],
            packed | {"nonpad_kv_seqlen": np.array([6, 2], dtype=np.int64)},
            heads | {"left_window_size": 1, "right_window_size": 2},
        ),
        "present_without_past": (23, ["Y", "present_key", "present_value"], packed, heads),
        "mask_of_one_column_hides": (24, scores, square | {"attn_mask": np.array([[0.5], [HIDDEN]], np.float32)}, {"qk_matmul_output_mode": 2}),
        "mask_hides_a_row": (23, scores, square | {"attn_mask": blind}, {"qk_matmul_output_mode": 3}),
        "mask_of_integers_is_added": (24, ["Y"], square | {"attn_mask": np.array([[0, 1, -2]], np.int32)}, {}),
        "float64": (23, scores, double, {"is_causal": 1, "qk_matmul_output_mode": 3}),
        "float16_softmax_in_float64": (24, scores, halves, {"softmax_precision": 11, "qk_matmul_output_mode": 3}),
        "bfloat16_softmax_in_float32": (24, scores, brains, {"softmax_precision": 1, "qk_matmul_output_mode": 1, "softcap": 0.5}),
        "float16_values_of_float32": (23, ["Y"], halves | {"V": normal(1, 2, 3, 4)}, {}),
        "window_of_nothing_before": (25, ["Y"], grouped, {"left_window_size": 0, "right_window_size": 0}),
        "no_past_tokens": (
            23,
            everything,
            grouped | {"past_key": normal(2, 2, 0, 5), "past_value": normal(2, 2, 0, 3)},
            {"is_causal": 1, "qk_matmul_output_mode": 3},
        ),
        "one_key_head": (23, ["Y"], {"Q": normal(1, 6, 9, 8), "K": normal(1, 1, 70, 8), "V": normal(1, 1, 70, 8)}, {"is_causal": 1}),
    }


def normal(*shape, dtype=np.float32):
    """An input that is drawn."""
    return lambda random: random.standard_normal(shape).astype(dtype)


def booleans(*shape):
    """A mask that is drawn."""
    return lambda random: random.random(shape) < 0.6


def model(opset, outputs, arrays, attributes):
    """A model of one node."""
    helper = onnx.helper
    last = max(number for number, formal in enumerate(INPUTS) if formal in arrays)
    inputs = [formal if formal in arrays else "" for formal in INPUTS[: last + 1]]
    asked = [output if output in outputs else "" for output in OUTPUTS]
    while not asked[-1]:
        asked.pop()
    node = helper.make_node("Attention", inputs, asked, **attributes)
    kind = lambda array: helper.np_dtype_to_tensor_dtype(array.dtype)
    given = [helper.make_tensor_value_info(formal, kind(arrays[formal]), arrays[formal].shape) for formal in INPUTS if formal in arrays]
    made = [helper.make_tensor_value_info(output, kind(arrays["Q"]), None) for output in OUTPUTS if output in outputs]
    graph = helper.make_graph([node], "attention", given, made)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
