"""Shapes of published ternary models, as `bitnet bench --shape` knows them, and random weights for them.

Values do not change speed, so each framework gets random ternary weights in its own form. No framework is imported here.
"""

from dataclasses import dataclass

import numpy

PARTS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Shape:
    """What the sizes of a model's tensors follow from; `crates/model/src/random.rs` has the same numbers."""

    name: str
    d_model: int
    d_ff: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    n_vocab: int
    rope_base: float
    rms_norm_eps: float = 1e-5
    # The BitNet graph: RMSNorm before o_proj and down_proj, squared ReLU. Otherwise Qwen 3's: norms of queries and keys, SiLU.
    is_bitnet: bool = True
    tied_head: bool = True

    @property
    def d_queries(self):
        return self.n_heads * self.head_dim

    @property
    def d_keys(self):
        return self.n_kv_heads * self.head_dim

    def linears(self):
        """(name, n, k) of the ternary matrices of one layer: n out features, k in features."""
        q, kv, d, ff = self.d_queries, self.d_keys, self.d_model, self.d_ff
        sizes = [(q, d), (kv, d), (kv, d), (d, q), (ff, d), (ff, d), (d, ff)]
        return [(part, n, k) for part, (n, k) in zip(PARTS, sizes)]

    @property
    def n_linear_weights(self):
        return self.n_layers * sum(n * k for _, n, k in self.linears())

    @property
    def n_table_weights(self):
        return self.n_vocab * self.d_model * (1 if self.tied_head else 2)


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("0.7b", 1536, 4096, 24, 16, 16, 96, 32_002, 10_000.0),
        Shape("2b4t", 2560, 6912, 30, 20, 5, 128, 128_256, 500_000.0),
        Shape("8b", 4096, 12_288, 36, 32, 8, 128, 151_936, 1_000_000.0, rms_norm_eps=1e-6, is_bitnet=False, tied_head=False),
    )
}


def linear_scale(k):
    """Keeps a unit input of k numbers at unit variance: two thirds of random trits are not 0."""
    return float((1.5 / k) ** 0.5)


class RandomBytes:
    """Bytes of one pool of 64 MiB, again and again from another place: as good as new ones for a speed test, and quick to have."""

    POOL_BYTES = 1 << 26

    def __init__(self, values, seed=1):
        """`values`: what a byte may be."""
        chosen = numpy.random.default_rng(seed).integers(0, len(values), self.POOL_BYTES, dtype=numpy.uint8)
        self._pool = numpy.asarray(values, numpy.uint8)[chosen]
        self._start = 0

    def take(self, n_bytes):
        """The next `n_bytes`, a new array."""
        self._start = (self._start + 1_000_003) % self.POOL_BYTES
        out = numpy.empty(n_bytes, numpy.uint8)
        filled, start = 0, self._start
        while filled < n_bytes:
            n = min(n_bytes - filled, self.POOL_BYTES - start)
            out[filled : filled + n] = self._pool[start : start + n]
            filled, start = filled + n, 0
        return out


def bytes_of_codes(n_codes_per_byte, codes):
    """All bytes that hold `n_codes_per_byte` of these codes, the first in the lowest bits."""
    width, values = 8 // n_codes_per_byte, [0]
    for place in range(n_codes_per_byte):
        values = [value | code << (width * place) for value in values for code in codes]
    return values


def trit_bytes():
    """-1, 0 and +1 as int8."""
    return RandomBytes([255, 0, 1])


def any_bytes():
    """All 256."""
    return RandomBytes(range(256))
