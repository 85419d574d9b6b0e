"""PyTorch: the transformer step as a careful user would write it, eager, with one product for queries, keys and values and one
for gate and up, and a KV cache made once. bf16, or int8 by `torch.ao.quantization.quantize_dynamic` with float32 between the
matrices. torchao's int8 is not here: on a CPU it is slower than either (`aten::_int_mm` without a kernel for few rows)."""

import torch
from torch import nn
from torch.nn import functional

from shapes import linear_scale, trit_bytes


def trits(random, n, k, dtype, scale):
    """A random ternary matrix [n, k]."""
    return torch.from_numpy(random.take(n * k)).view(torch.int8).view(n, k).to(dtype).mul_(scale)


def linear(random, n, k, dtype):
    module = nn.Linear(k, n, bias=False, device="meta")
    module.weight = nn.Parameter(trits(random, n, k, dtype, linear_scale(k)), requires_grad=False)
    return module


class Layer(nn.Module):
    """One layer; `keys` and `values` are [1, n_kv_heads, n_context, head_dim]."""

    def __init__(self, shape, random, dtype, n_context):
        super().__init__()
        self.shape = shape
        d, q, kv, ff = shape.d_model, shape.d_queries, shape.d_keys, shape.d_ff
        self.qkv = linear(random, q + 2 * kv, d, dtype)
        self.o_proj = linear(random, d, q, dtype)
        self.gate_up = linear(random, 2 * ff, d, dtype)
        self.down_proj = linear(random, d, ff, dtype)
        norms = {"attention": d, "attention_sub": q, "feed_forward": d, "feed_forward_sub": ff, "heads": shape.head_dim}
        self.norms = {name: torch.ones(n, dtype=dtype) for name, n in norms.items()}
        self.keys = torch.zeros(1, shape.n_kv_heads, n_context, shape.head_dim, dtype=dtype)
        self.values = torch.zeros_like(self.keys)

    def norm(self, name, x):
        weight = self.norms[name]
        return functional.rms_norm(x, weight.shape, weight, self.shape.rms_norm_eps)

    def forward(self, x, start, cos, sin):
        """x: [1, m, d_model]; cos, sin: [m, head_dim]."""
        shape, m = self.shape, x.shape[1]
        qkv = self.qkv(self.norm("attention", x))
        q, k, v = qkv.split([shape.d_queries, shape.d_keys, shape.d_keys], dim=-1)
        q, k, v = (part.view(1, m, -1, shape.head_dim) for part in (q, k, v))
        if not shape.is_bitnet:
            q, k = self.norm("heads", q), self.norm("heads", k)
        q, k, v = rotate(q.transpose(1, 2), cos, sin), rotate(k.transpose(1, 2), cos, sin), v.transpose(1, 2)
        self.keys[:, :, start : start + m] = k
        self.values[:, :, start : start + m] = v
        keys, values = self.keys[:, :, : start + m], self.values[:, :, : start + m]
        grouped = shape.n_heads != shape.n_kv_heads
        y = functional.scaled_dot_product_attention(q, keys, values, is_causal=m > 1, enable_gqa=grouped)
        y = y.transpose(1, 2).reshape(1, m, -1)
        x = x + self.o_proj(self.norm("attention_sub", y) if shape.is_bitnet else y)
        gate, up = self.gate_up(self.norm("feed_forward", x)).chunk(2, dim=-1)
        if shape.is_bitnet:
            y = self.norm("feed_forward_sub", functional.relu(gate).square_() * up)
        else:
            y = functional.silu(gate) * up
        return x + self.down_proj(y)


def rotate(x, cos, sin):
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-right, left), dim=-1) * sin


class Model:
    def __init__(self, shape, variant, n_context):
        quantised, dtype = variant == "int8", torch.float32 if variant == "int8" else torch.bfloat16
        self.weights = "int8 (int8)" if quantised else "bf16 (bf16)"
        self.versions = {"torch": torch.__version__}
        random = trit_bytes()
        self.shape = shape
        self.embedding = trits(random, shape.n_vocab, shape.d_model, torch.bfloat16, 0.05)
        self.size_bytes = self.embedding.nbytes
        self.layers = []
        for _ in range(shape.n_layers):
            self.layers.append(self._finish(Layer(shape, random, dtype, n_context), quantised))
        if quantised:
            head = nn.Sequential(linear(random, shape.n_vocab, shape.d_model, dtype))
        else:
            head = nn.Sequential(nn.Linear(shape.d_model, shape.n_vocab, bias=False, device="meta"))
            table = self.embedding if shape.tied_head else trits(random, shape.n_vocab, shape.d_model, dtype, 0.05)
            head[0].weight = nn.Parameter(table, requires_grad=False)
        self.head = self._finish(head, quantised, counted=quantised or not shape.tied_head)
        self.final_norm = torch.ones(shape.d_model, dtype=dtype)
        self.cos, self.sin = rotations(shape, n_context, dtype)
        self.dtype, self.position = dtype, 0

    def _finish(self, module, quantised, counted=True):
        n_weights = sum(parameter.numel() for parameter in module.parameters())
        if counted:
            self.size_bytes += n_weights * (1 if quantised else 2)
        if quantised:
            module = torch.ao.quantization.quantize_dynamic(module, {nn.Linear}, dtype=torch.qint8, inplace=True)
        return module

    @torch.inference_mode()
    def _step(self, ids):
        start, end = self.position, self.position + len(ids)
        x = functional.embedding(torch.tensor([ids]), self.embedding).to(self.dtype)
        cos, sin = self.cos[start:end], self.sin[start:end]
        for layer in self.layers:
            x = layer(x, start, cos, sin)
        self.position = end
        last = functional.rms_norm(x[:, -1:], self.final_norm.shape, self.final_norm, self.shape.rms_norm_eps)
        return int(self.head(last).argmax())

    def read(self, ids):
        self.position = 0
        return self._step(ids)

    def write(self, token):
        return self._step([token])


def rotations(shape, n_context, dtype):
    """cos and sin, [n_context, head_dim]."""
    exponents = torch.arange(0, shape.head_dim, 2, dtype=torch.float32) / shape.head_dim
    angles = torch.outer(torch.arange(n_context, dtype=torch.float32), shape.rope_base**-exponents)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def open_model(shape, variant, _folder, threads, n_context):
    torch.set_num_threads(threads)
    # The quickest engine for a single row on x86.
    torch.backends.quantized.engine = "x86" if "x86" in torch.backends.quantized.supported_engines else "qnnpack"
    return Model(shape, variant, n_context)
