"""Requests made up from the server's own OpenAPI description, valid and not: no answer is a 5xx, and every answer is as described.
BITNET_LONG tries many more, from a seed of its own."""

import os
import pathlib
import random
import subprocess
import sys
import tempfile

import journeys

# Whether a refusal was right cannot be seen in a description: it does not say which values go together (`top_logprobs` only with
# `logprobs`), which ids exist, or that 1e300 is no temperature. What is refused, and how, is tested in crates/server/tests.
LEFT_OUT = ["positive_data_acceptance"]
# Pages for people.
NOT_FOR_PROGRAMS = ["/", "/docs"]


def program():
    return pathlib.Path(sys.executable).parent / "schemathesis"


def run(*arguments, hooks="schemathesis_hooks"):
    environment = {**os.environ, "SCHEMATHESIS_HOOKS": hooks, "PYTHONPATH": str(pathlib.Path(__file__).parent), "NO_COLOR": "1"}
    # It leaves notes in the folder where it runs.
    with tempfile.TemporaryDirectory() as folder:
        url = os.environ["BITNET_URL"] + "/openapi.json"
        command = [program(), "run", url, "--header", f"authorization: Bearer {os.environ['BITNET_KEY']}", *arguments]
        command += ["--generation-database", "none", "--request-timeout", "60", "--suppress-health-check", "all"]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def every_route():
    is_long = "BITNET_LONG" in os.environ
    seed = random.randrange(1 << 31) if is_long else 1
    arguments = ["--phases", "coverage,fuzzing", "--seed", str(seed), "--max-examples", "500" if is_long else "8"]
    for check in LEFT_OUT:
        arguments += ["--exclude-checks", check]
    for path in NOT_FOR_PROGRAMS:
        arguments += ["--exclude-path", path]
    code, said = run(*arguments)
    print("\n".join(said.splitlines()[-60:] if code else [line for line in said.splitlines() if "generated" in line or "Tested" in line]))
    assert code == 0, f"seed {seed}"


def description_that_lies_is_caught():
    code, said = run("--phases", "coverage", "--include-path", "/health/live", hooks="schemathesis_lie")
    assert code != 0 and "violates schema" in said, said[-2000:]


journeys.run([every_route, description_that_lies_is_caught])
