"""llama.cpp through llama-cpp-python: Q4_0 (which it repacks for the processor when it loads) and TQ2_0, both with a Q6_K table,
on the sizes of the shape. Its graph for BitNet has SiLU where 2B4T has squared ReLU; that does not change the speed."""

import ctypes
import importlib.metadata

import gguf
import llama_cpp
import numpy
from gguf import GGMLQuantizationType

from shapes import any_bytes

NAMES = dict(
    q_proj="attn_q", k_proj="attn_k", v_proj="attn_v", o_proj="attn_output", gate_proj="ffn_gate", up_proj="ffn_up", down_proj="ffn_down"
)


def halves(value, n):
    return numpy.full(n, value, numpy.float16).view(numpy.uint8).reshape(n, 2)


def q4_0(random, n_blocks):
    return numpy.hstack([halves(0.005, n_blocks), random.take(n_blocks * 16).reshape(n_blocks, 16)])


def tq2_0(random, n_blocks):
    # 0, 1 and 2 in each two bits: 3 becomes 2.
    codes = random.take(n_blocks * 64).reshape(n_blocks, 64)
    codes -= codes & (codes >> 1) & 0x55
    return numpy.hstack([codes, halves(0.02, n_blocks)])


def q6_k(random, n_blocks):
    codes = random.take(n_blocks * 192).reshape(n_blocks, 192)
    scales = 1 + random.take(n_blocks * 16).reshape(n_blocks, 16) % 59
    return numpy.hstack([codes, scales, halves(2e-5, n_blocks)])


FORMATS = {"Q4_0": (32, q4_0), "TQ2_0": (256, tq2_0), "Q6_K": (256, q6_k)}


def quantised(random, name, n, k):
    """A random matrix [n, k] as rows of bytes."""
    block, make = FORMATS[name]
    return make(random, n * k // block).reshape(n, -1)


def model_file(shape, variant, folder):
    return folder / f"{shape.name}-{variant}.gguf"


def prepare(shape, variant, folder):
    path = model_file(shape, variant, folder)
    if path.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    architecture = "bitnet" if shape.is_bitnet else "qwen3"
    writer = gguf.GGUFWriter(partial, architecture, use_temp_file=True)
    writer.add_vocab_size(shape.n_vocab)
    writer.add_context_length(4096)
    writer.add_embedding_length(shape.d_model)
    writer.add_block_count(shape.n_layers)
    writer.add_feed_forward_length(shape.d_ff)
    writer.add_head_count(shape.n_heads)
    writer.add_head_count_kv(shape.n_kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_layer_norm_rms_eps(shape.rms_norm_eps)
    writer.add_tokenizer_model("no_vocab")
    random = any_bytes()

    def matrix(name, kind, n, k):
        writer.add_tensor(name + ".weight", quantised(random, kind, n, k), raw_dtype=GGMLQuantizationType[kind])

    def norm(name, n):
        writer.add_tensor(name + ".weight", numpy.ones(n, numpy.float32))

    matrix("token_embd", "Q6_K", shape.n_vocab, shape.d_model)
    if not shape.tied_head:
        matrix("output", "Q6_K", shape.n_vocab, shape.d_model)
    norm("output_norm", shape.d_model)
    for layer in range(shape.n_layers):
        prefix = f"blk.{layer}."
        for part, n, k in shape.linears():
            matrix(prefix + NAMES[part], variant, n, k)
        norm(prefix + "attn_norm", shape.d_model)
        norm(prefix + "ffn_norm", shape.d_model)
        if shape.is_bitnet:
            norm(prefix + "attn_sub_norm", shape.d_queries)
            norm(prefix + "ffn_sub_norm", shape.d_ff)
        else:
            norm(prefix + "attn_q_norm", shape.head_dim)
            norm(prefix + "attn_k_norm", shape.head_dim)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.rename(path)


@llama_cpp.llama_log_callback
def silent(_level, _text, _data):
    """llama.cpp says a lot."""


class Model:
    def __init__(self, shape, variant, path, threads, n_context):
        self.n_vocab, self.size_bytes = shape.n_vocab, path.stat().st_size
        self.weights = {"Q4_0": "Q4_0, 4.5 bits (Q6_K)", "TQ2_0": "ternary, TQ2_0, 2.06 bits (Q6_K)"}[variant]
        self.versions = {"llama-cpp-python": importlib.metadata.version("llama-cpp-python")}
        llama_cpp.llama_log_set(silent, None)
        llama_cpp.llama_backend_init()
        model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
        if not model:
            raise RuntimeError(f"llama.cpp does not load {path}")
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx = n_context
        parameters.n_batch = parameters.n_ubatch = 512
        parameters.n_threads = parameters.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(model, parameters)
        if not self.context:
            raise RuntimeError("llama.cpp makes no context")

    def _step(self, ids):
        for start in range(0, len(ids), 512):
            chunk = ids[start : start + 512]
            tokens = (llama_cpp.llama_token * len(chunk))(*chunk)
            status = llama_cpp.llama_decode(self.context, llama_cpp.llama_batch_get_one(tokens, len(chunk)))
            if status != 0:
                raise RuntimeError(f"llama_decode: {status}")
        logits = llama_cpp.llama_get_logits_ith(self.context, -1)
        logits = ctypes.cast(logits, ctypes.POINTER(ctypes.c_float * self.n_vocab)).contents
        return int(numpy.frombuffer(logits, numpy.float32).argmax())

    def read(self, ids):
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        return self._step(ids)

    def write(self, token):
        return self._step([token])


def open_model(shape, variant, folder, threads, n_context):
    return Model(shape, variant, model_file(shape, variant, folder), threads, n_context)
