"""Measures gateways one after another with the same requests; prints a table. See README.md."""

import argparse
import http.client
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
STATIC_KEY = "sk-gateway"
LITELLM_CONFIG = """
model_list:
  - model_name: embedded
    litellm_params:
      model: openai/embedded
      api_key: none
      mock_response: "once"
general_settings:
  master_key: {key}
litellm_settings:
  telemetry: false
"""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Gateway:
    """A process that answers on a port, and the key that it takes."""

    def __init__(self, name, command, folder, port=None, key=STATIC_KEY, path="/v1/completions"):
        self.name, self.key, self.path, self.port = name, key, path, port
        environment = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
        self.child = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        if port is None:
            for line in self.child.stderr:
                if match := re.search(r"http://[^:]+:(\d+)", line):
                    self.port = int(match[1])
                    break
        # Somebody has to read what it says.
        threading.Thread(target=lambda: [None for _ in self.child.stderr], daemon=True).start()
        deadline = time.monotonic() + 180
        while self.answer() != 200:
            assert time.monotonic() < deadline and self.child.poll() is None, f"{name} does not answer"
            time.sleep(0.5)

    def body(self):
        body = {"model": "embedded", "max_tokens": 1, "temperature": 0}
        if self.path.endswith("chat/completions"):
            return json.dumps({**body, "messages": [{"role": "user", "content": "Once"}]})
        return json.dumps({**body, "prompt": "Once"})

    def answer(self):
        try:
            return self.send(http.client.HTTPConnection("127.0.0.1", self.port, timeout=60))
        except OSError:
            return None

    def send(self, connection):
        headers = {"authorization": f"Bearer {self.key}", "content-type": "application/json"}
        connection.request("POST", self.path, self.body(), headers)
        response = connection.getresponse()
        response.read()
        return response.status

    def measure(self, n_requests, n_threads):
        """Milliseconds of each request, sorted, and requests a second."""
        took, lock = [], threading.Lock()

        def client():
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
            own = []
            for _ in range(n_requests // n_threads):
                began = time.perf_counter()
                status = self.send(connection)
                assert status == 200, f"{self.name} answered {status}"
                own.append((time.perf_counter() - began) * 1e3)
            with lock:
                took.extend(own)

        threads = [threading.Thread(target=client) for _ in range(n_threads)]
        began = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        rate = len(took) / (time.perf_counter() - began)
        assert len(took) == n_requests // n_threads * n_threads, f"{self.name} lost requests"
        return sorted(took), rate

    def end(self):
        self.child.terminate()
        try:
            self.child.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.child.kill()


def bitnet_static(binary, folder):
    command = [binary, "serve", "--listen", "127.0.0.1:0", "--log", "error", "--api-key", STATIC_KEY]
    return Gateway("bitnet, static key", command, folder)


def bitnet_platform(binary, folder):
    run = lambda *arguments: subprocess.run([binary, *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()
    account = run("accounts", "create", "bench", "--plan", "payg", "--spending-cap", "1000")
    key = run("keys", "create", account, "--name", "bench")
    command = [binary, "serve", "--platform", "--listen", "127.0.0.1:0", "--log", "error"]
    return Gateway("bitnet, accounts", command, folder, key=key)


def litellm(_, folder):
    config, port = Path(folder) / "litellm.yaml", free_port()
    config.write_text(LITELLM_CONFIG.format(key=STATIC_KEY))
    program = Path(sys.executable).with_name("litellm")
    command = [str(program), "--config", str(config), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
    return Gateway("litellm proxy", command, folder, port=port, path="/v1/chat/completions")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--binary", default=str(ROOT / "target/release/bitnet"))
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 8])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows = []
    print(f"{'gateway':22} {'threads':>7} {'p50 ms':>8} {'p99 ms':>8} {'requests/s':>11}")
    for start in (bitnet_static, bitnet_platform, litellm):
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            gateway = start(os.path.abspath(arguments.binary), folder)
            try:
                gateway.measure(50, 1)
                for n_threads in arguments.threads:
                    took, rate = gateway.measure(arguments.requests, n_threads)
                    at = lambda percent: took[int((len(took) - 1) * percent / 100)]
                    row = {"gateway": gateway.name, "threads": n_threads, "p50_ms": at(50), "p99_ms": at(99), "per_second": rate}
                    rows.append(row)
                    print(f"{gateway.name:22} {n_threads:>7} {at(50):>8.2f} {at(99):>8.2f} {rate:>11.0f}", flush=True)
            finally:
                gateway.end()
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
