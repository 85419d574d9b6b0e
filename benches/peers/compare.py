"""Compares bitnet with what else runs a model of the same shape on this machine's processor: tokens a second, memory, size.

One peer at a time, each in a process of its own (`measure.py`), in rounds, so that what else the machine does falls on all of
them. Prints a Markdown table of the fastest and, with --json, writes everything that was measured. See README.md.
"""

import argparse
import collections
import json
import pathlib
import platform
import shlex
import shutil
import subprocess
import sys

import psutil

from measure import PEERS
from shapes import SHAPES

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
# Bytes of memory that a peer needs for each weight of the matrices, at its greediest moment, rounded up.
BYTES_PER_WEIGHT = {"bf16": 2.2, "autobitlinear": 2.5, "bitlinear": 0.4, "int8": 2.5, "int4": 1.2, "int2": 0.7, "Q4_0": 1.3, "TQ2_0": 0.4}


def arguments_of(argv):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="2b4t")
    parser.add_argument("--peers", default=",".join(PEERS), help="which, by name, separated by commas")
    parser.add_argument("-t", "--threads", type=int, default=psutil.cpu_count(logical=False) or 1)
    parser.add_argument("-p", "--n-prompt", type=int, default=128, help="tokens of the prompt")
    parser.add_argument("-n", "--n-generate", type=int, default=32, help="tokens to write")
    parser.add_argument("-r", "--rounds", type=int, default=3)
    parser.add_argument("--limit-s", type=float, default=10.0, help="seconds after which a slow peer writes no further token")
    parser.add_argument("--folder", type=pathlib.Path, default=ROOT / "target" / "peers", help="where models are made, and kept")
    parser.add_argument("--bitnet", default=str(ROOT / "target" / "release" / "bitnet"))
    parser.add_argument("--wrap", default="", help="a command to put before each measured one, as `taskset -c 0,1`")
    parser.add_argument("--json", type=pathlib.Path, help="a file for all figures")
    arguments = parser.parse_args(argv)
    arguments.peers = arguments.peers.split(",")
    unknown = [peer for peer in arguments.peers if peer not in PEERS]
    if unknown:
        parser.error(f"no such peer: {', '.join(unknown)}; there are {', '.join(PEERS)}")
    if shutil.which(arguments.bitnet) is None and "bitnet" in arguments.peers:
        parser.error(f"{arguments.bitnet} is not there: cargo build --release, or --bitnet PATH")
    return arguments


def machine():
    """The processor and what of its instruction sets matters here."""
    name, flags = platform.processor(), set()
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            name = value.strip()
        elif key.strip() == "flags":
            flags = set(value.split())
    matters = ["avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16"]
    return {
        "processor": name,
        "n_processors": psutil.cpu_count(),
        "instruction_sets": [flag for flag in matters if flag in flags],
        "memory_bytes": psutil.virtual_memory().total,
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def memory_needed(peer, shape):
    _, variant = PEERS[peer]
    return shape.n_linear_weights * BYTES_PER_WEIGHT.get(variant, 0.4) + shape.n_table_weights * 2


def started(arguments, peer, *more, wrap=""):
    """The last line that `measure.py` printed, or why there is none."""
    command = [*shlex.split(wrap), sys.executable, str(HERE / "measure.py"), peer, "--shape", arguments.shape]
    command += ["--folder", str(arguments.folder.resolve()), *more]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        # The last line of a traceback names the error.
        lines = done.stderr.strip().splitlines() or [f"ended with status {done.returncode}"]
        raise RuntimeError(lines[-1])
    return done.stdout.strip().splitlines()[-1] if done.stdout.strip() else ""


def one_round(arguments, peer):
    more = ["--threads", arguments.threads, "--n-prompt", arguments.n_prompt, "--n-generate", arguments.n_generate]
    more += ["--limit-s", arguments.limit_s, "--bitnet", arguments.bitnet]
    return json.loads(started(arguments, peer, *map(str, more), wrap=arguments.wrap))


def is_slow(arguments, rounds):
    """One round is enough for a peer that did not write all tokens within the limit."""
    return any(found["n_generated"] < arguments.n_generate for found in rounds)


def note(text):
    print(text, file=sys.stderr, flush=True)


def measured(arguments):
    """Rounds of each peer, and why some have none."""
    rounds, failures = collections.defaultdict(list), {}
    for peer in arguments.peers:
        needed, free = memory_needed(peer, SHAPES[arguments.shape]), psutil.virtual_memory().available
        if needed > free:
            failures[peer] = f"needs about {needed / 1e9:.0f} GB of memory, {free / 1e9:.0f} GB are free"
            continue
        try:
            started(arguments, peer, "--prepare")
        except RuntimeError as error:
            failures[peer] = str(error)
    for number in range(arguments.rounds):
        for peer in arguments.peers:
            if peer in failures or is_slow(arguments, rounds.get(peer, [])):
                continue
            try:
                found = one_round(arguments, peer)
            except RuntimeError as error:
                failures[peer] = str(error)
                continue
            rounds[peer].append(found)
            rates = f"{found['prompt_tokens_per_second']:.1f} · {found['generate_tokens_per_second']:.1f} tokens/s"
            note(f"round {number + 1}, {peer}: {rates}, {found['peak_memory_bytes'] / 1e6:,.0f} MB")
    for peer, reason in failures.items():
        note(f"{peer}: {reason}")
    return rounds, failures


def best(rounds, key):
    """The fastest round's figure: what else a machine does only ever slows a program down."""
    return max(found[key] for found in rounds)


def rate(rounds, key, ours):
    value = best(rounds, key)
    text = f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"
    return text if not ours or rounds is ours else f"{text} ({value / best(ours, key):.2g})"


def table(arguments, rounds):
    """Fastest rounds, most memory; in brackets how many times bitnet's rate that is."""
    ours = rounds.get("bitnet")
    head = f"prompt of {arguments.n_prompt}, tokens/s | decode, tokens/s | peak memory, MB | size, MB"
    lines = [f"| peer | weights (head) | {head} |", "| --- | --- | ---: | ---: | ---: | ---: |"]
    for peer, found in rounds.items():
        rates = [rate(found, f"{kind}_tokens_per_second", ours) for kind in ("prompt", "generate")]
        sizes = [f"{best(found, key) / 1e6:,.0f}" for key in ("peak_memory_bytes", "size_bytes")]
        lines.append("| " + " | ".join([peer, found[0]["weights"], *rates, *sizes]) + " |")
    return "\n".join(lines)


def main():
    arguments = arguments_of(sys.argv[1:])
    rounds, failures = measured(arguments)
    versions = {}
    for found in rounds.values():
        versions |= found[0]["versions"]
    here = machine()
    print(table(arguments, rounds))
    sets = " ".join(here["instruction_sets"])
    print(f"\n{arguments.shape}, {arguments.threads} threads, best of {arguments.rounds} rounds; {here['processor']} ({sets}); ", end="")
    print(", ".join(f"{name} {version}" for name, version in versions.items()))
    if arguments.json:
        settings = {key: str(value) if isinstance(value, pathlib.Path) else value for key, value in vars(arguments).items()}
        report = {"settings": settings, "machine": here, "versions": versions, "rounds": rounds, "failures": failures}
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
