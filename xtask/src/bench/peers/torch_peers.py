"""PyTorch: fused attention with linear layers around it, nn.MultiheadAttention, torch.compile, products."""

import protocol

protocol.keep_to_cores()
try:
    import numpy as np
    import torch
    import torch.nn.functional as F
except ImportError as error:
    protocol.serve_nothing(error)
    raise SystemExit(0)

torch.set_num_threads(protocol.threads())
DTYPES = {"f32": torch.float32, "f64": torch.float64, "f16": torch.float16, "bf16": torch.bfloat16}


def numpy_of(tensor):
    return tensor.detach().to(torch.float32).numpy()


class Layer(torch.nn.Module):
    """Four linear layers around the fused attention."""

    def __init__(self, spec, arrays):
        super().__init__()
        self.heads = spec["H"]
        self.rate = spec.get("p") or 0.0
        width = spec["D"]
        self.inner = torch.nn.Linear(width, 3 * width)
        self.outer = torch.nn.Linear(width, width)
        with torch.no_grad():
            kernels = np.concatenate([arrays["w" + name] for name in "qkv"], axis=1)
            self.inner.weight.copy_(torch.from_numpy(kernels.T.copy()))
            self.inner.bias.copy_(torch.from_numpy(np.concatenate([arrays["b" + name] for name in "qkv"])))
            self.outer.weight.copy_(torch.from_numpy(arrays["wo"].T.copy()))
            self.outer.bias.copy_(torch.from_numpy(arrays["bo"]))

    def forward(self, x):
        batch, length, width = x.shape
        split = self.inner(x).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = split.permute(2, 0, 3, 1, 4)
        context = F.scaled_dot_product_attention(q, k, v, dropout_p=self.rate)
        return self.outer(context.transpose(1, 2).reshape(batch, length, width))

    def query_kernel(self):
        width = self.outer.in_features
        return self.inner.weight.grad[:width].T

    def out_kernel(self):
        return self.outer.weight.grad.T


class Multihead(Layer):
    """nn.MultiheadAttention with the same weights."""

    def __init__(self, spec, arrays):
        super().__init__(spec, arrays)
        self.module = torch.nn.MultiheadAttention(spec["D"], spec["H"], dropout=self.rate, batch_first=True)
        self.module.in_proj_weight = self.inner.weight
        self.module.in_proj_bias = self.inner.bias
        self.module.out_proj.weight = self.outer.weight
        self.module.out_proj.bias = self.outer.bias

    def forward(self, x):
        return self.module(x, x, x, need_weights=False)[0]


def training(module, call, x, g):
    def step():
        x.grad = None
        module.zero_grad(set_to_none=True)
        call(x).backward(g)
        return x.grad

    def fetch(gradient):
        parts = [gradient, module.query_kernel(), module.out_kernel()]
        return np.concatenate([numpy_of(part).ravel() for part in parts])

    return step, fetch


def layer(module_type, compiled=False):
    def prepare(spec, arrays):
        module = module_type(spec, arrays)
        x = torch.from_numpy(arrays["x"])
        call = torch.compile(module) if compiled else module
        if spec["kind"] == "train":
            x.requires_grad_()
            return training(module, call, x, torch.from_numpy(arrays["g"]))
        module.train(spec["kind"] == "dropout")

        def step():
            with torch.inference_mode():
                return call(x)

        return step, numpy_of

    return prepare


def core(compiled=False):
    def prepare(spec, arrays):
        q, k, v = (torch.from_numpy(arrays[name]).to(DTYPES[spec["dtype"]]) for name in "qkv")
        mask = (torch.arange(spec["Lk"]) < spec["valid"])[None, None, None] if spec["valid"] else None
        grouped = spec["H"] != spec["Hkv"]

        def attend(q, k, v):
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=spec["causal"], enable_gqa=grouped)

        call = torch.compile(attend) if compiled else attend

        def step():
            with torch.inference_mode():
                return call(q, k, v)

        return step, numpy_of

    return prepare


def either(for_core, for_layer):
    return lambda spec, arrays: (for_core if spec["kind"] == "core" else for_layer)(spec, arrays)


def product(spec, arrays):
    a, b = torch.from_numpy(arrays["a"]), torch.from_numpy(arrays["b"])
    return (lambda: a @ b), numpy_of


def linear(spec, arrays):
    a, weight = torch.from_numpy(arrays["a"]), torch.from_numpy(arrays["b"].T.copy())

    def step():
        with torch.inference_mode():
            return F.linear(a, weight)

    return step, numpy_of


protocol.serve(
    "torch " + torch.__version__,
    {
        "torch.sdpa": (["layer", "core", "train", "dropout"], either(core(), layer(Layer))),
        "torch.mha": (["layer", "train", "dropout"], layer(Multihead)),
        "torch.compile": (["layer", "core", "train"], either(core(True), layer(Layer, True))),
        "torch.mm": (["gemm"], product),
        "torch.linear": (["gemm"], linear),
    },
)
