"""What Prometheus' own checker says of the metrics of a running server, and of the rules and the configuration that we ship."""

import os
import pathlib
import subprocess
import urllib.request

import journeys

PROMTOOL, DEPLOY = os.environ["BITNET_PROMTOOL"], pathlib.Path(os.environ["BITNET_ROOT"]) / "deploy" / "prometheus"


def promtool(*arguments, text=None):
    done = subprocess.run([PROMTOOL, "check", *arguments], input=text, capture_output=True, text=True)
    return done.returncode, (done.stdout + done.stderr).splitlines()


def page():
    request = urllib.request.Request(os.environ["BITNET_URL"] + "/metrics", headers={"authorization": "Bearer " + os.environ["BITNET_KEY"]})
    with urllib.request.urlopen(request) as reply:
        return reply.read().decode()


def metrics():
    # Colons are for rules, but vLLM's names have them, and those names are what load balancers for inference look for.
    wanted = "metric names should not contain ':'"
    _, lines = promtool("metrics", text=page())
    said = [line for line in lines if not (line.startswith("vllm:") and line.endswith(wanted))]
    assert not said, said
    assert promtool("metrics", text=page() + "bitnet_x 1\nbitnet_x 1\n")[0] != 0, "the checker sees a repeated line"


def rules():
    code, lines = promtool("rules", str(DEPLOY / "alerts.yml"))
    assert code == 0, lines
    names = {line.split(" ")[0].split("{")[0] for line in page().splitlines() if not line.startswith("#")}
    text = (DEPLOY / "alerts.yml").read_text()
    import re

    used = set(re.findall(r"\b(?:bitnet_|vllm:)\w+", text))
    unknown = {name for name in used if name not in names and not any(known.startswith(name) for known in names)}
    assert used and not unknown, f"rules name metrics that the server does not have: {unknown}"


def scrape_configuration():
    # Files that it names need not be there.
    code, lines = promtool("config", "--syntax-only", str(DEPLOY / "scrape.yml"))
    assert code == 0, lines


journeys.run([metrics, rules, scrape_configuration])
