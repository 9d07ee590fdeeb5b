"""Makes the cases of the ONNX operator Attention: from its own conformance tests, and more.

    python make.py [--all] OUT_DIR

Without --all only one test of each kind is written. A second run writes the same files.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx.backend.test.case.node import collect_testcases
from onnx.reference import ReferenceEvaluator
from safetensors.numpy import save

import files
import more
import truth

INPUTS = ["Q", "K", "V", "attn_mask", "past_key", "past_value", "nonpad_kv_seqlen"]
# The tests that differ from one of these in sizes alone, or in rank, are left out.
KINDS = """
4d_fp16 4d_gqa_scaled 4d_diff_heads_sizes_causal 4d_attn_mask_4d_causal 4d_attn_mask_bool_4d 4d_gqa_softcap
4d_gqa_with_past_and_present_fp16 4d_diff_heads_with_past_and_present_mask4d 4d_with_qk_matmul 4d_with_qk_matmul_bias
4d_with_qk_matmul_softcap 4d_with_qk_matmul_softmax 4d_with_past_and_present_qk_matmul_bias_4d_mask_causal
4d_with_past_and_present_qk_matmul 3d_gqa_attn_mask 3d_diff_heads_with_past_and_present
3d_with_past_and_present_qk_matmul_softcap 3d_transpose_verification 4d_diff_heads_mask4d_padded_kv
4d_causal_padded_kv_bf16 3d_causal_bf16 4d_softcap_neginf_mask_poison 4d_gqa_causal_nonpad_decode_fp16
4d_causal_nonpad_continued_prefill 4d_causal_with_past_and_present causal_boolmask_nan_robustness
23_boolmask_fullymasked_row_nan_robustness 4d_causal_nonpad_negative_offset_structural_empty
24_qk_matmul_output_mode3_softmax_precision 4d_causal_nonpad_attn_mask_composition 4d_causal_nonpad_batch_prefill
bidirectional_window local_window_rank1_boolean_mask local_window_with_past local_window_ext_cache_rank3_head_mask
local_window_ext_cache_float16_mask 3d_local_window local_window_gqa_rank4_mask
""".split()


def main():
    arguments = sys.argv[1:]
    everything = "--all" in arguments
    paths = [argument for argument in arguments if argument != "--all"]
    if len(paths) != 1:
        sys.exit(__doc__)
    folder = Path(paths[0])
    folder.mkdir(parents=True, exist_ok=True)
    for case in [*own_tests(everything), *more.cases()]:
        make(folder, *case)


def own_tests(everything):
    """The operator's conformance tests: name, model, inputs in the order of the model's."""
    np.random.seed(0)
    for test in collect_testcases("Attention"):
        name = test.name.removeprefix("test_attention_")
        node = test.model.graph.node
        is_attention = len(node) == 1 and node[0].op_type == "Attention"
        if is_attention and (everything or name in KINDS):
            yield f"attention_{name}", test.model, test.data_sets[0][0]


def make(folder, name, model, values):
    """Records one case and writes it."""
    (node,) = model.graph.node
    (opset,) = (entry.version for entry in model.opset_import if entry.domain == "")
    feeds = {info.name: np.asarray(value) for info, value in zip(model.graph.input, values)}
    inputs = {formal: feeds[actual] for formal, actual in zip(INPUTS, node.input) if actual}
    given = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    attributes = truth.ATTRIBUTES | given
    asked = [formal for formal, actual in zip(truth.OUTPUTS, node.output) if actual]
    recorded = ReferenceEvaluator(model).run(None, feeds)
    exact = truth.attention(opset, attributes, inputs)
    expected, tensors = {}, {}
    for output, got in zip(asked, recorded):
        expected[output] = files.judged(output, got, exact[output])
        tensors[f"{output}@f64"] = exact[output]
    case = {
        "name": name,
        "op": "Attention",
        "opset": opset,
        "attributes": attributes,
        "inputs": {formal: formal if formal in inputs else None for formal in INPUTS},
        "input_types": {formal: array.dtype.name for formal, array in inputs.items()},
        "outputs_asked": asked,
        "expected": expected,
    }
    (folder / f"{name}.json").write_text(json.dumps(case) + "\n")
    for part, arrays in (("inputs", inputs), ("expected", tensors)):
        (folder / f"{name}.{part}.safetensors").write_bytes(save(files.stored(arrays)))
    print(name, flush=True)


if __name__ == "__main__":
    main()
