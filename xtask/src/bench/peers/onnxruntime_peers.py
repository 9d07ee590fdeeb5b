"""ONNX Runtime: its fused operators MultiHeadAttention, Attention and GroupQueryAttention, ONNX's own Attention, products."""

import protocol

protocol.keep_to_cores()
try:
    import numpy as np
    import onnxruntime as ort
    from onnx import helper, numpy_helper
except ImportError as error:
    protocol.serve_nothing(error)
    raise SystemExit(0)

VENDOR = "com.microsoft"
DTYPES = {"f32": np.float32, "f16": np.float16}


class Graph:
    """A model in the making: nodes, inputs with their arrays, constants."""

    def __init__(self):
        self.nodes, self.inputs, self.constants = [], {}, {}

    def input(self, name, array):
        self.inputs[name] = np.ascontiguousarray(array)
        return name

    def constant(self, name, array):
        self.constants[name] = np.ascontiguousarray(array)
        return name

    def node(self, operator, inputs, output, domain="", **attributes):
        outputs = output if isinstance(output, list) else [output]
        self.nodes.append(helper.make_node(operator, inputs, outputs, domain=domain, **attributes))
        return output

    def dense(self, x, arrays, name):
        product = self.node("MatMul", [x, self.constant("w" + name, arrays["w" + name])], "product_" + name)
        return self.node("Add", [product, self.constant("b" + name, arrays["b" + name])], "dense_" + name)

    def model(self, output, dtype, in_place):
        def info(name, array):
            return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)

        element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        outputs = [helper.make_tensor_value_info(output, element, None)]
        outputs += [info(name, self.inputs[source]) for source, name in in_place.items()]
        inputs = [info(name, array) for name, array in self.inputs.items()]
        constants = [numpy_helper.from_array(array, name) for name, array in self.constants.items()]
        graph = helper.make_graph(self.nodes, "case", inputs, outputs, constants)
        opsets = [helper.make_opsetid("", 23), helper.make_opsetid(VENDOR, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)

    def runner(self, output, dtype, to_result=lambda result: result, in_place={}):
        """`step` and `fetch` with inputs and output bound once; `in_place` names outputs that share an input's memory."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = protocol.threads()
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        model = self.model(output, dtype, in_place).SerializeToString()
        session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        binding = session.io_binding()
        binding.bind_output(output)
        for name, array in self.inputs.items():
            value = ort.OrtValue.ortvalue_from_numpy(array)
            binding.bind_ortvalue_input(name, value)
            if name in in_place:
                binding.bind_ortvalue_output(in_place[name], value)

        def fetch(_):
            return to_result(binding.copy_outputs_to_cpu()[0].astype(np.float32))

        return (lambda: session.run_with_iobinding(binding)), fetch


def layer(context):
    def prepare(spec, arrays):
        graph = Graph()
        x = graph.input("x", arrays["x"])
        y = graph.dense(context(graph, spec, x, arrays), arrays, "o")
        return graph.runner(y, np.float32)

    return prepare


def separate(graph, spec, x, arrays):
    q, k, v = (graph.dense(x, arrays, name) for name in "qkv")
    return graph.node("MultiHeadAttention", [q, k, v], "context", VENDOR, num_heads=spec["H"])


def packed(graph, spec, x, arrays):
    kernel = graph.constant("kernel", np.concatenate([arrays["w" + name] for name in "qkv"], axis=1))
    bias = graph.constant("bias", np.concatenate([arrays["b" + name] for name in "qkv"]))
    return graph.node("Attention", [x, kernel, bias], "context", VENDOR, num_heads=spec["H"])


def standard(graph, spec, x, arrays):
    q, k, v = (graph.dense(x, arrays, name) for name in "qkv")
    return graph.node("Attention", [q, k, v], "context", q_num_heads=spec["H"], kv_num_heads=spec["H"])


def dtype_of(spec):
    if spec["dtype"] not in DTYPES:
        raise ValueError("there are no operators for %s" % spec["dtype"])
    return DTYPES[spec["dtype"]]


def rows(array, dtype):
    """`[batch, length, heads * depth]` of `[batch, heads, length, depth]`."""
    batch, _, length, _ = array.shape
    return array.swapaxes(1, 2).reshape(batch, length, -1).astype(dtype)


def heads_of(spec):
    return lambda y: y.reshape(spec["B"], spec["Lq"], spec["H"], spec["d"]).swapaxes(1, 2)


def core_multihead(spec, arrays):
    dtype, graph = dtype_of(spec), Graph()
    if spec["H"] != spec["Hkv"]:
        raise ValueError("there are no grouped heads")
    inputs = [graph.input(name, rows(arrays[name], dtype)) for name in "qkv"]
    if spec["valid"]:
        keep = np.arange(spec["Lk"]) < spec["valid"]
        inputs += ["", graph.input("keep", np.tile(keep.astype(np.int32), (spec["B"], 1)))]
    causal = int(spec["causal"])
    graph.node("MultiHeadAttention", inputs, "y", VENDOR, num_heads=spec["H"], unidirectional=causal)
    return graph.runner("y", dtype, heads_of(spec))


def core_standard(spec, arrays):
    dtype, graph = dtype_of(spec), Graph()
    inputs = [graph.input(name, arrays[name].astype(dtype)) for name in "qkv"]
    if spec["valid"]:
        keep = np.arange(spec["Lk"]) < spec["valid"]
        inputs.append(graph.input("keep", np.tile(keep, (spec["Lq"], 1))))
    graph.node("Attention", inputs, "y", is_causal=int(spec["causal"]))
    return graph.runner("y", dtype)


def core_grouped(spec, arrays):
    """Decoding: all keys but the last are the cache, the last one is the step's own. The cache is input and output at once, as decoders
    bind it, so that no step copies it."""
    if spec["Lq"] != 1 or spec["causal"] or spec["valid"]:
        raise ValueError("it decodes one token over a cache")
    dtype, graph = dtype_of(spec), Graph()
    inputs = [graph.input("q", rows(arrays["q"], dtype))]
    inputs += [graph.input(name, rows(arrays[name][:, :, -1:], dtype)) for name in "kv"]
    inputs += [graph.input("past_" + name, arrays[name].astype(dtype)) for name in "kv"]
    inputs.append(graph.input("last", np.full(spec["B"], spec["Lk"] - 1, np.int32)))
    inputs.append(graph.input("total", np.array(spec["Lk"], np.int32)))
    in_place = {"past_k": "present_k", "past_v": "present_v"}
    sizes = {"num_heads": spec["H"], "kv_num_heads": spec["Hkv"]}
    graph.node("GroupQueryAttention", inputs, ["y", *in_place.values()], VENDOR, **sizes)
    return graph.runner("y", dtype, heads_of(spec), in_place)


def product(spec, arrays):
    graph = Graph()
    graph.node("MatMul", [graph.input("a", arrays["a"]), graph.constant("b", arrays["b"])], "y")
    return graph.runner("y", np.float32)


def either(for_core, for_layer):
    return lambda spec, arrays: (for_core if spec["kind"] == "core" else for_layer)(spec, arrays)


protocol.serve(
    "onnxruntime " + ort.__version__,
    {
        "ort.mha": (["layer", "core"], either(core_multihead, layer(separate))),
        "ort.attention": (["layer"], layer(packed)),
        "ort.attn23": (["layer", "core"], either(core_standard, layer(standard))),
        "ort.gqa": (["core"], core_grouped),
        "ort.mm": (["gemm"], product),
    },
)
