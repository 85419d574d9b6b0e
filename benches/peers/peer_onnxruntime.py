"""ONNX Runtime: one decoder step with a KV cache as a graph of the fused operations that it runs a quantised model with.

int8: `DynamicQuantizeLinear` and `MatMulIntegerToFloat`, which is what a model from `onnxruntime.quantization.quantize_dynamic`
is fused to. int4 and int2: `MatMulNBits` with int8 arithmetic inside, and a table of four bits. Two bits hold a trit exactly. The
graph is written down directly, since an export of a model in float32 would take ten bytes for each of these."""

import numpy
import onnx
import onnxruntime
from onnx import TensorProto, helper

from shapes import RandomBytes, any_bytes, bytes_of_codes, linear_scale, trit_bytes

MICROSOFT = "com.microsoft"
TYPES = {"float32": TensorProto.FLOAT, "int8": TensorProto.INT8, "uint8": TensorProto.UINT8}


class Graph:
    """Nodes, and tensors that lie in a file of their own: a protocol buffer ends at 2 GiB."""

    def __init__(self, shape, variant, data_path):
        self.shape, self.variant = shape, variant
        self.nodes, self.initializers = [], []
        self.data_path, self.data = data_path, open(data_path, "wb")
        self.trits, self.nibbles = trit_bytes(), any_bytes()
        self.codes = RandomBytes(bytes_of_codes(4, [1, 2, 3])) if variant == "int2" else RandomBytes(bytes_of_codes(2, [7, 8, 9]))
        self.quantised = {}

    def node(self, kind, inputs, outputs=1, domain="", **attributes):
        """Adds a node; its output's name or names."""
        names = [f"{kind}_{len(self.nodes)}_{index}" for index in range(outputs)]
        self.nodes.append(helper.make_node(kind, inputs, names, domain=domain, **attributes))
        return names[0] if outputs == 1 else names

    def small(self, name, array):
        self.initializers.append(onnx.numpy_helper.from_array(array, name))
        return name

    def large(self, name, array):
        tensor = TensorProto(name=name, data_type=TYPES[array.dtype.name], dims=array.shape, data_location=TensorProto.EXTERNAL)
        self.data.write(bytes(-self.data.tell() % 4096))
        entries = {"location": self.data_path.name, "offset": self.data.tell(), "length": array.nbytes}
        for key, value in entries.items():
            tensor.external_data.add(key=key, value=str(value))
        array.tofile(self.data)
        self.initializers.append(tensor)
        return name

    def norm(self, name, x, n):
        epsilon = self.shape.rms_norm_eps
        scale = self.small(name + ".scale", numpy.ones(n, numpy.float32))
        return self.node("SimplifiedLayerNormalization", [x, scale], axis=-1, epsilon=epsilon)

    def linear(self, name, x, n, k, is_head=False):
        """x: [1, m, k] to [1, m, n]."""
        if self.variant == "int8":
            if x not in self.quantised:
                self.quantised[x] = self.node("DynamicQuantizeLinear", [x], 3)
            codes, scale, zero_point = self.quantised[x]
            weight = self.large(name, self.trits.take(k * n).view(numpy.int8).reshape(k, n))
            weight_scale = self.small(name + ".scale", numpy.float32(linear_scale(k)).reshape(()))
            return self.node("MatMulIntegerToFloat", [codes, weight, scale, weight_scale, zero_point], domain=MICROSOFT)
        bits, block = (2, 128) if self.variant == "int2" and not is_head else (4, 32)
        random = self.nibbles if is_head else self.codes
        weight = self.large(name, random.take(n * k * bits // 8).reshape(n, k // block, block * bits // 8))
        scales = self.large(name + ".scales", numpy.full((n, k // block), linear_scale(k), numpy.float32))
        sizes = dict(K=k, N=n, bits=bits, block_size=block, accuracy_level=4)
        return self.node("MatMulNBits", [x, weight, scales], domain=MICROSOFT, **sizes)

    def embedding(self, ids, n, k):
        if self.variant == "int8":
            table = self.large("embedding", self.trits.take(n * k).view(numpy.int8).reshape(n, k))
            rows = self.node("Gather", [table, ids], axis=0)
            return self.node("DequantizeLinear", [rows, self.small("embedding.scale", numpy.float32(0.05).reshape(()))])
        table = self.large("embedding", self.nibbles.take(n * k // 2).reshape(n, k // 2))
        scales = self.large("embedding.scales", numpy.full((n, k // 32), 0.01, numpy.float32))
        sizes = dict(bits=4, block_size=32, gather_axis=0, quantize_axis=1)
        return self.node("GatherBlockQuantized", [table, ids, scales], domain=MICROSOFT, **sizes)

    def attention(self, layer, x):
        shape, prefix = self.shape, f"layer.{layer}."
        sizes = [shape.d_queries, shape.d_keys, shape.d_keys]
        qkv = self.linear(prefix + "qkv", x, sum(sizes), shape.d_model)
        q, k, v = self.node("Split", [qkv, "qkv.sizes"], 3, axis=-1)
        if not shape.is_bitnet:
            q, k = self.head_norm(prefix + "q_norm", q), self.head_norm(prefix + "k_norm", k)
        past = [f"past.{layer}.key", f"past.{layer}.value"]
        inputs = [q, k, v, *past, "last_position", "n_positions", "cos", "sin"]
        outputs = [f"attention.{layer}", f"present.{layer}.key", f"present.{layer}.value"]
        attributes = dict(num_heads=shape.n_heads, kv_num_heads=shape.n_kv_heads, do_rotary=1)
        self.nodes.append(helper.make_node("GroupQueryAttention", inputs, outputs, domain=MICROSOFT, **attributes))
        return outputs[0]

    def head_norm(self, name, x):
        heads = self.node("Reshape", [x, "heads.shape"])
        return self.node("Reshape", [self.norm(name, heads, self.shape.head_dim), "flat.shape"])

    def layer(self, layer, x):
        shape, prefix = self.shape, f"layer.{layer}."
        d, q, ff = shape.d_model, shape.d_queries, shape.d_ff
        y = self.attention(layer, self.norm(prefix + "attention_norm", x, d))
        if shape.is_bitnet:
            y = self.norm(prefix + "attention_sub_norm", y, q)
        x = self.node("Add", [x, self.linear(prefix + "o_proj", y, d, q)])
        gate_up = self.linear(prefix + "gate_up", self.norm(prefix + "feed_forward_norm", x, d), 2 * ff, d)
        gate, up = self.node("Split", [gate_up, "gate_up.sizes"], 2, axis=-1)
        if shape.is_bitnet:
            gate = self.node("Relu", [gate])
            gate = self.node("Mul", [gate, gate])
        else:
            gate = self.node("Mul", [gate, self.node("Sigmoid", [gate])])
        y = self.node("Mul", [gate, up])
        if shape.is_bitnet:
            y = self.norm(prefix + "feed_forward_sub_norm", y, ff)
        return self.node("Add", [x, self.linear(prefix + "down_proj", y, d, ff)])

    def build(self):
        shape = self.shape
        sizes = [shape.d_queries, shape.d_keys, shape.d_keys]
        self.small("qkv.sizes", numpy.array(sizes, numpy.int64))
        self.small("gate_up.sizes", numpy.array([shape.d_ff] * 2, numpy.int64))
        if not shape.is_bitnet:
            self.small("heads.shape", numpy.array([0, -1, shape.head_dim], numpy.int64))
            self.small("flat.shape", numpy.array([1, 0, -1], numpy.int64))
        x = self.embedding("ids", shape.n_vocab, shape.d_model)
        for layer in range(shape.n_layers):
            x = self.layer(layer, x)
        last = self.node("Gather", [x, self.small("last", numpy.array([-1], numpy.int64))], axis=1)
        logits = self.linear("head", self.norm("final_norm", last, shape.d_model), shape.n_vocab, shape.d_model, is_head=True)
        self.nodes.append(helper.make_node("Identity", [logits], ["logits"]))
        self.data.close()
        value = helper.make_tensor_value_info
        rows = ["n_context", shape.head_dim // 2]
        inputs = [value("ids", TensorProto.INT64, [1, "m"]), value("last_position", TensorProto.INT32, [1])]
        inputs += [value("n_positions", TensorProto.INT32, [])]
        inputs += [value(name, TensorProto.FLOAT, rows) for name in ("cos", "sin")]
        outputs = [value("logits", TensorProto.FLOAT, [1, 1, shape.n_vocab])]
        cache = [1, shape.n_kv_heads, "n_context", shape.head_dim]
        for layer in range(shape.n_layers):
            for part in ("key", "value"):
                inputs.append(value(f"past.{layer}.{part}", TensorProto.FLOAT, cache))
                outputs.append(value(f"present.{layer}.{part}", TensorProto.FLOAT, cache))
        graph = helper.make_graph(self.nodes, shape.name, inputs, outputs, self.initializers)
        imports = [helper.make_opsetid("", 21), helper.make_opsetid(MICROSOFT, 1)]
        return helper.make_model(graph, opset_imports=imports, ir_version=10)


def paths(shape, variant, folder):
    stem = f"{shape.name}-{variant}"
    return folder / f"{stem}.onnx", folder / f"{stem}.onnx.data"


def prepare(shape, variant, folder):
    graph_path, data_path = paths(shape, variant, folder)
    if graph_path.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    model = Graph(shape, variant, data_path).build()
    # Last: where it is, the data are whole.
    graph_path.write_bytes(model.SerializeToString())


class Model:
    def __init__(self, shape, variant, folder, threads, n_context):
        files = paths(shape, variant, folder)
        self.size_bytes = sum(path.stat().st_size for path in files)
        self.weights = {"int8": "int8 (int8)", "int4": "4 bits, blocks of 32 (4 bits)", "int2": "ternary, 2 bits, blocks of 128 (4 bits)"}[variant]
        self.versions = {"onnxruntime": onnxruntime.__version__}
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(str(files[0]), options, providers=["CPUExecutionProvider"])
        value = onnxruntime.OrtValue.ortvalue_from_numpy
        exponents = numpy.arange(0, shape.head_dim, 2, dtype=numpy.float32) / shape.head_dim
        angles = numpy.outer(numpy.arange(n_context, dtype=numpy.float32), shape.rope_base**-exponents).astype(numpy.float32)
        self.rotations = {"cos": value(numpy.cos(angles)), "sin": value(numpy.sin(angles))}
        cache = (1, shape.n_kv_heads, n_context, shape.head_dim)
        names = [f"{layer}.{part}" for layer in range(shape.n_layers) for part in ("key", "value")]
        self.cache = {name: value(numpy.zeros(cache, numpy.float32)) for name in names}
        self.position = 0

    def _step(self, ids):
        self.position += len(ids)
        binding = self.session.io_binding()
        binding.bind_cpu_input("ids", numpy.array([ids], numpy.int64))
        binding.bind_cpu_input("last_position", numpy.array([self.position - 1], numpy.int32))
        binding.bind_cpu_input("n_positions", numpy.array(self.position, numpy.int32))
        for name, rows in self.rotations.items():
            binding.bind_ortvalue_input(name, rows)
        # Keys and values are written where they are.
        for name, rows in self.cache.items():
            binding.bind_ortvalue_input(f"past.{name}", rows)
            binding.bind_ortvalue_output(f"present.{name}", rows)
        binding.bind_output("logits")
        self.session.run_with_iobinding(binding)
        return int(binding.get_outputs()[-1].numpy().argmax())

    def read(self, ids):
        self.position = 0
        return self._step(ids)

    def write(self, token):
        return self._step([token])


def open_model(shape, variant, folder, threads, n_context):
    return Model(shape, variant, folder, threads, n_context)
