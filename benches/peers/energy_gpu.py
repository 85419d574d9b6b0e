"""Joules that a GPU takes for a token: `bitnet` beside PyTorch in bfloat16 on the same shape, from the energy counter of NVML.

PyTorch's step is what a careful user would run: one product for queries, keys and values, one for gate and up, scaled_dot_product_attention
over a KV cache made once, and all of it recorded as one CUDA graph, so that the processor does not hold the GPU up. Weights are random, which
does not change the energy by much. PyTorch's sequences have 128 tokens behind them, `bitnet`'s grow from none to 128. Needs one NVIDIA GPU from Volta on and torch with CUDA; nothing else of `requirements.txt`.

    python benches/peers/energy_gpu.py --shape 2b4t --batch 1,64 --head memory --bitnet target/release/bitnet
"""

import argparse
import ctypes
import json
import subprocess
import time

import torch
from torch.nn import functional

from shapes import SHAPES

# The counter moves some ten times a second.
SECONDS = 4.0
CONTEXT = 128


class EnergyCounter:
    """Joules of the first GPU that CUDA shows."""

    def __init__(self):
        self.nvml = ctypes.CDLL("libnvidia-ml.so.1")
        self.check(self.nvml.nvmlInit_v2())
        self.device = ctypes.c_void_p()
        uuid = f"GPU-{torch.cuda.get_device_properties(0).uuid}".encode()
        self.check(self.nvml.nvmlDeviceGetHandleByUUID(uuid, ctypes.byref(self.device)))

    @staticmethod
    def check(status):
        if status != 0:
            raise SystemExit(f"NVML error {status}: this GPU's energy cannot be read")

    def joules(self):
        millijoules = ctypes.c_ulonglong()
        self.check(self.nvml.nvmlDeviceGetTotalEnergyConsumption(self.device, ctypes.byref(millijoules)))
        return millijoules.value / 1e3


class Model:
    """One token of each of `n_sequences` sequences at position `CONTEXT`, bfloat16."""

    def __init__(self, shape, n_sequences):
        self.shape, self.n_sequences = shape, n_sequences
        make = {"dtype": torch.bfloat16, "device": "cuda"}
        d, q, kv, ff = shape.d_model, shape.d_queries, shape.d_keys, shape.d_ff

        def weights(n, k):
            return torch.randint(-1, 2, (n, k), device="cuda").to(torch.bfloat16).mul_(k**-0.5)

        self.embedding = torch.randn(shape.n_vocab, d, **make).mul_(0.05)
        self.head = self.embedding if shape.tied_head else torch.randn(shape.n_vocab, d, **make).mul_(0.05)
        cache = (n_sequences, shape.n_kv_heads, CONTEXT + 1, shape.head_dim)
        self.layers = [
            {
                "qkv": weights(q + 2 * kv, d),
                "o": weights(d, q),
                "gate_up": weights(2 * ff, d),
                "down": weights(d, ff),
                "norms": [torch.ones(n, **make) for n in (d, q, d, ff)],
                "heads": torch.ones(shape.head_dim, **make),
                "keys": torch.randn(cache, **make),
                "values": torch.randn(cache, **make),
            }
            for _ in range(shape.n_layers)
        ]
        self.final_norm = torch.ones(d, **make)
        angles = CONTEXT * shape.rope_base ** -(torch.arange(0, shape.head_dim, 2, device="cuda") / shape.head_dim)
        angles = torch.cat((angles, angles))
        self.cos, self.sin = angles.cos().to(torch.bfloat16), angles.sin().to(torch.bfloat16)
        self.ids = torch.zeros(n_sequences, dtype=torch.long, device="cuda")

    def norm(self, x, weight):
        return functional.rms_norm(x, weight.shape, weight, self.shape.rms_norm_eps)

    def rotate(self, x):
        left, right = x.chunk(2, dim=-1)
        return x * self.cos + torch.cat((-right, left), dim=-1) * self.sin

    def layer(self, x, layer):
        shape, m = self.shape, self.n_sequences
        attention, attention_sub, feed_forward, feed_forward_sub = layer["norms"]
        qkv = functional.linear(self.norm(x, attention), layer["qkv"])
        q, k, v = (part.view(m, -1, 1, shape.head_dim) for part in qkv.split([shape.d_queries, shape.d_keys, shape.d_keys], dim=-1))
        if not shape.is_bitnet:
            q, k = self.norm(q, layer["heads"]), self.norm(k, layer["heads"])
        layer["keys"][:, :, CONTEXT:] = self.rotate(k)
        layer["values"][:, :, CONTEXT:] = v
        y = functional.scaled_dot_product_attention(self.rotate(q), layer["keys"], layer["values"], enable_gqa=shape.n_heads != shape.n_kv_heads)
        y = y.reshape(m, -1)
        x = x + functional.linear(self.norm(y, attention_sub) if shape.is_bitnet else y, layer["o"])
        gate, up = functional.linear(self.norm(x, feed_forward), layer["gate_up"]).chunk(2, dim=-1)
        y = self.norm(functional.relu(gate).square() * up, feed_forward_sub) if shape.is_bitnet else functional.silu(gate) * up
        return x + functional.linear(y, layer["down"])

    def step(self):
        x = functional.embedding(self.ids, self.embedding)
        for layer in self.layers:
            x = self.layer(x, layer)
        self.ids.copy_(functional.linear(self.norm(x, self.final_norm), self.head).argmax(dim=-1))


@torch.inference_mode()
def pytorch(shape, n_sequences, counter):
    """Tokens a second and joules a token."""
    model = Model(shape, n_sequences)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            model.step()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        model.step()

    def run(seconds):
        n_steps, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds:
            for _ in range(20):
                graph.replay()
            torch.cuda.synchronize()
            n_steps += 20
        return n_steps * n_sequences, time.perf_counter() - start

    run(1.0)
    before = counter.joules()
    n_tokens, seconds = run(SECONDS)
    return n_tokens / seconds, (counter.joules() - before) / n_tokens


def bitnet(command, shape, batches, head):
    """The same of `bitnet bench`, by number of sequences."""
    head = [] if head is None else ["--head", head]
    arguments = ["bench", "--shape", shape.name, "--device", "cuda", "-p", "0", "-n", str(CONTEXT), "-b", ",".join(map(str, batches)), "--json", "-q", *head]
    lines = json.loads(subprocess.run([*command.split(), *arguments], check=True, stdout=subprocess.PIPE).stdout)
    return {line["n_sequences"]: (line["tokens_per_second_mean"], line["joules_per_token"]) for line in lines}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="2b4t", choices=SHAPES)
    parser.add_argument("--batch", default="1", help="numbers of sequences at once, as 1,64")
    parser.add_argument("--bitnet", default="target/release/bitnet")
    parser.add_argument("--head", choices=["file", "memory"], help="where the rows of bitnet's head are: on the host, or on the GPU as PyTorch's are")
    arguments = parser.parse_args()
    shape, batches = SHAPES[arguments.shape], [int(n) for n in arguments.batch.split(",")]
    ours, counter = bitnet(arguments.bitnet, shape, batches, arguments.head), EnergyCounter()
    print(f"{shape.name} on {torch.cuda.get_device_name(0)}, torch {torch.__version__}, 128 tokens from none on (bitnet), tokens at context {CONTEXT} (torch)\n")
    print("| sequences | bitnet, tokens/s | J/token | PyTorch bf16, tokens/s | J/token | less energy |\n| ---: | ---: | ---: | ---: | ---: | ---: |")
    for n_sequences in batches:
        rate, joules = ours[n_sequences]
        peer_rate, peer_joules = pytorch(shape, n_sequences, counter)
        less = f"{1 - joules / peer_joules:.0%}" if joules is not None else "–"
        print(f"| {n_sequences} | {rate:,.0f} | {joules or 0:.4f} | {peer_rate:,.0f} | {peer_joules:.4f} | {less} |", flush=True)


if __name__ == "__main__":
    main()
