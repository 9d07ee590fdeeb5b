"""Times PyTorch's scaled_dot_product_attention on the cases of standard input (one JSON object a line), each backend by itself.

usage: xtask-gpu cases | python3 torch_peer.py OUTPUT.json
"""
import json
import statistics
import sys

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

BACKENDS = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION, "efficient": SDPBackend.EFFICIENT_ATTENTION}
DTYPES = {"f32": torch.float32, "f64": torch.float64, "f16": torch.float16, "bf16": torch.bfloat16}
CALLS, BUDGET_MS, SETS = 30, 400.0, 3


def timed(start):
    """Milliseconds of each call, by the device's own events."""
    for turn in range(3):
        start(turn)
    torch.cuda.synchronize()
    times = []
    for turn in range(CALLS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        start(turn)
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
        if sum(times) > BUDGET_MS:
            break
    return times


def attention(case, backend):
    dtype = DTYPES[case["dtype"]]
    grouped = case["heads"] != case["key_heads"]

    def array(heads, length):
        # [batch, length, heads, depth] in memory, as this project has it.
        shape = (case["batch"], length, heads, case["depth"])
        return torch.randn(shape, device="cuda", dtype=dtype).transpose(1, 2)

    sets = []
    for _ in range(SETS):
        q = array(case["heads"], case["query_length"])
        k, v = (array(case["key_heads"], case["key_length"]) for _ in range(2))
        sets.append((q, k, v))

    def forward(q, k, v):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=case["causal"], enable_gqa=grouped)

    with sdpa_kernel(backend):
        if case["operation"] != "backward":
            with torch.no_grad():
                return timed(lambda turn: forward(*sets[turn % SETS]))
        outs = []
        for q, k, v in sets:
            for array_ in (q, k, v):
                array_.requires_grad_()
            out = forward(q, k, v)
            outs.append((out, torch.randn_like(out), (q, k, v)))

        def backward(turn):
            out, gradient, inputs = outs[turn % SETS]
            torch.autograd.grad(out, inputs, gradient, retain_graph=True)

        return timed(backward)


def project(case):
    dtype = DTYPES[case["dtype"]]
    rows = case["batch"] * case["query_length"]
    sets = [
        (torch.randn(rows, case["depth"], device="cuda", dtype=dtype), torch.randn(case["depth"], case["heads"], device="cuda", dtype=dtype))
        for _ in range(SETS)
    ]
    return timed(lambda turn: sets[turn % SETS][0] @ sets[turn % SETS][1])


def main():
    torch.backends.cuda.matmul.allow_tf32 = False
    results = {"torch": torch.__version__, "device": torch.cuda.get_device_name(), "cases": {}}
    for line in sys.stdin:
        case = json.loads(line)
        found = {}
        backends = {"matmul": None} if case["operation"] == "project" else BACKENDS
        for name, backend in backends.items():
            if name == "efficient" and case["dtype"] != "f32":
                continue
            try:
                times = project(case) if backend is None else attention(case, backend)
                found[name] = statistics.median(times)
            except RuntimeError as error:
                found[name] = None
                print(case["name"], name, str(error).splitlines()[0][:100])
        best = {name: ms for name, ms in found.items() if ms}
        rate = {name: round(case["operations"] / ms / 1e9, 1) for name, ms in best.items()}
        print(f"{case['name']:36}", {name: round(ms, 4) for name, ms in best.items()}, rate)
        results["cases"][case["name"]] = found
        with open(sys.argv[1], "w", encoding="utf-8") as file:
            json.dump(results, file, indent=1)


main()
