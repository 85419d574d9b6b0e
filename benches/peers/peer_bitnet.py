"""bitnet itself, by its own `bench` verb: one repetition, so that rounds interleave with the peers'."""

import json
import subprocess


def measure(shape, arguments):
    command = [arguments.bitnet, "bench", "--shape", shape.name, "--device", "cpu", "--json", "--quiet", "-r", "1"]
    command += ["-p", str(arguments.n_prompt), "-n", str(arguments.n_generate), "-t", str(arguments.threads)]
    reading, writing = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    version = subprocess.run([arguments.bitnet, "--version"], check=True, capture_output=True, text=True).stdout
    return {
        "prompt_tokens_per_second": reading["tokens_per_second_mean"],
        "generate_tokens_per_second": writing["tokens_per_second_mean"],
        "n_generated": arguments.n_generate,
        "peak_memory_bytes": writing["peak_memory_bytes"],
        "size_bytes": writing["size_bytes"],
        "weights": "ternary, 2 bits" + (" (bf16)" if shape.tied_head else " (2 bits)"),
        "versions": {"bitnet": version.split()[-1], "isa": writing["isa"]},
    }
