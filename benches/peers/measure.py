"""Measures one peer in this process: makes or opens its random model, then prints one line of JSON.

`compare.py` starts it once for each peer and round. What is measured: tokens read a second (a prompt at once, logits of its last
token), tokens written a second (one at a time, each the likeliest after the last), and the most memory that was resident
meanwhile. Making the model counts for neither.
"""

import argparse
import ctypes
import gc
import importlib
import json
import os
import pathlib
import time

from shapes import SHAPES

# name: module, variant within it
PEERS = {
    "bitnet": ("peer_bitnet", "ternary"),
    "llama.cpp-q4_0": ("peer_llama_cpp", "Q4_0"),
    "llama.cpp-tq2_0": ("peer_llama_cpp", "TQ2_0"),
    "onnxruntime-int8": ("peer_onnxruntime", "int8"),
    "onnxruntime-int4": ("peer_onnxruntime", "int4"),
    "onnxruntime-int2": ("peer_onnxruntime", "int2"),
    "pytorch-bf16": ("peer_pytorch", "bf16"),
    "pytorch-int8": ("peer_pytorch", "int8"),
    "transformers-bf16": ("peer_transformers", "bf16"),
    "transformers-bitnet": ("peer_transformers", "autobitlinear"),
    "transformers-bitnet-packed": ("peer_transformers", "bitlinear"),
}


def module_of(peer):
    module, variant = PEERS[peer]
    return importlib.import_module(module), variant


def forget_peak_memory():
    """From here on, the peak is counted anew, without what making the model left over (Linux, glibc)."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    pathlib.Path("/proc/self/clear_refs").write_text("5")


def peak_memory_bytes():
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("this system does not say how much memory was resident")


def timed(work):
    start = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start


def read_rate(model, prompt):
    """Tokens a second of the second reading: at the first, frameworks compile and allocate."""
    model.read(prompt)
    _, elapsed = timed(lambda: model.read(prompt))
    return len(prompt) / elapsed


def write_rate(model, n_tokens, limit_s):
    """Tokens a second from the third token on, and how many were written: no further one is begun after `limit_s`."""
    token = model.write(model.read([1]))
    start, n_written = time.perf_counter(), 0
    while n_written < n_tokens and time.perf_counter() - start < limit_s:
        token = model.write(token)
        n_written += 1
    return n_written / (time.perf_counter() - start), n_written


def measure(arguments):
    module, variant = module_of(arguments.peer)
    shape = SHAPES[arguments.shape]
    if hasattr(module, "measure"):
        return module.measure(shape, arguments)
    n_context = max(arguments.n_prompt, arguments.n_generate + 4)
    model = module.open_model(shape, variant, arguments.folder, arguments.threads, n_context)
    forget_peak_memory()
    prompt = [2 + i * 7919 % (shape.n_vocab - 2) for i in range(arguments.n_prompt)]
    prompt_rate = read_rate(model, prompt)
    generate_rate, n_written = write_rate(model, arguments.n_generate, arguments.limit_s)
    return {
        "prompt_tokens_per_second": prompt_rate,
        "generate_tokens_per_second": generate_rate,
        "n_generated": n_written,
        "peak_memory_bytes": peak_memory_bytes(),
        "size_bytes": model.size_bytes,
        "weights": model.weights,
        "versions": model.versions,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--folder", type=pathlib.Path, required=True)
    parser.add_argument("--prepare", action="store_true", help="only make the peer's files")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--n-prompt", type=int, default=128)
    parser.add_argument("--n-generate", type=int, default=32)
    parser.add_argument("--limit-s", type=float, default=10.0)
    parser.add_argument("--bitnet", default="bitnet")
    arguments = parser.parse_args()
    if arguments.prepare:
        module, variant = module_of(arguments.peer)
        if hasattr(module, "prepare"):
            module.prepare(SHAPES[arguments.shape], variant, arguments.folder)
        return
    # Before any framework is imported: their pools are made then.
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(arguments.threads)
    print(json.dumps(measure(arguments)))


if __name__ == "__main__":
    main()
