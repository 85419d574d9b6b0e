"""Compares what metering and admission cost: `bitnet serve --platform` beside LiteLLM's proxy, on the same machine and the same work.

The work is a chat of a few tokens with the embedded model, one token long, so that what is measured is not the model. Three ways to it:

- `upstream`: `bitnet serve`, with a key. Nothing is metered.
- `litellm`: LiteLLM's proxy with a key in front of that upstream. It keeps no account of usage here: that would take a database.
- `bitnet`: `bitnet serve --platform`: the key is an account's, plan and limits are asked, usage is durable in SQLite before it is answered.

One load generator for all of them: so many connections that stay open, each sending its next request when the last is answered. It shares
the processors with what it measures, which costs the faster one more. Ways are measured in turn, in rounds; the table has the best
round of each (what else a machine does only ever slows a program down). See README.md for how to run it.
"""

import argparse
import asyncio
import json
import os
import pathlib
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
START_SECONDS = 180


def arguments_of(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bitnet", default=str(ROOT / "target" / "release" / "bitnet"))
    parser.add_argument("--litellm", default=str(pathlib.Path(sys.executable).parent / "litellm"), help="LiteLLM's command")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="LiteLLM's processes")
    parser.add_argument("-c", "--connections", default="1,8", help="how many at once, separated by commas")
    parser.add_argument("-s", "--seconds", type=float, default=5.0, help="of each measurement, after one second that does not count")
    parser.add_argument("-r", "--rounds", type=int, default=3)
    parser.add_argument("--json", type=pathlib.Path, help="a file for all figures")
    arguments = parser.parse_args(argv)
    arguments.connections = [int(n) for n in arguments.connections.split(",")]
    for program, how in ((arguments.bitnet, "cargo build --release"), (arguments.litellm, "pip install -r requirements-gateway.txt")):
        if shutil.which(program) is None:
            parser.error(f"{program} is not there: {how}")
    return arguments


class Way:
    """A server, where it is, and the request that it is sent."""

    def __init__(self, name, port, key, model):
        self.name, self.port = name, port
        messages = [{"role": "user", "content": "Hello"}]
        self.body = json.dumps({"model": model, "messages": messages, "max_tokens": 1, "temperature": 0}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer {key}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(self.body)}\r\n\r\n"
        self.request, self.key = head.encode() + self.body, key


class Client(asyncio.Protocol):
    """A connection that sends its next request when the last is answered, and notes how long each took."""

    def __init__(self, way, until):
        self.way, self.until = way, until
        self.buffer, self.wanted, self.times = b"", None, []
        self.done = asyncio.get_running_loop().create_future()

    def connection_made(self, transport):
        self.transport = transport
        self.send()

    def send(self):
        self.began = time.perf_counter()
        self.transport.write(self.way.request)

    def data_received(self, data):
        self.buffer += data
        if self.wanted is None:
            head, separator, _ = self.buffer.partition(b"\r\n\r\n")
            if not separator:
                return
            length = re.search(rb"\r\ncontent-length: *(\d+)", head, re.IGNORECASE)
            if not head.startswith(b"HTTP/1.1 200") or length is None:
                self.fail(f"{self.way.name}: {self.buffer[:500]!r}")
                return
            self.wanted = len(head) + 4 + int(length[1])
        if len(self.buffer) < self.wanted:
            return
        now = time.perf_counter()
        self.times.append((self.began, now - self.began))
        self.buffer, self.wanted = self.buffer[self.wanted :], None
        if now < self.until:
            self.send()
        else:
            self.transport.close()
            self.done.set_result(self.times)

    def fail(self, reason):
        self.transport.close()
        if not self.done.done():
            self.done.set_exception(RuntimeError(reason))

    def connection_lost(self, error):
        if not self.done.done():
            self.done.set_exception(RuntimeError(f"{self.way.name}: the connection ended: {error}"))


async def load(way, n_connections, seconds):
    """Requests a second and percentiles in milliseconds; the first second does not count."""
    loop = asyncio.get_running_loop()
    first = time.perf_counter() + 1.0
    until = first + seconds
    clients = [(await loop.create_connection(lambda: Client(way, until), "127.0.0.1", way.port))[1] for _ in range(n_connections)]
    noted = [times for times in await asyncio.gather(*(client.done for client in clients))]
    took = sorted(took for times in noted for began, took in times if first <= began < until)
    at = lambda percent: took[int((len(took) - 1) * percent / 100)] * 1e3
    return {"requests_per_second": len(took) / seconds, "p50_ms": at(50), "p99_ms": at(99), "n_requests": len(took)}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def answers(port, path, key):
    """The JSON that a server gives there, or nothing while it does not yet."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers={"authorization": f"Bearer {key}"})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)
    except (OSError, urllib.error.URLError, json.JSONDecodeError):
        return None


class World:
    """The servers, in a folder of their own."""

    def __init__(self, arguments, folder):
        self.arguments, self.folder, self.children = arguments, pathlib.Path(folder), []

    def start(self, name, command, **more):
        log = open(self.folder / f"{name}.log", "wb")
        environment = {**os.environ, **more}
        self.children.append(subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log, env=environment))

    def until_there(self, name, port, key):
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if any(child.poll() is not None for child in self.children):
                break
            # A model is listed once it can serve.
            models = answers(port, "/v1/models", key)
            if models and models["data"]:
                return models["data"][0]["id"]
            time.sleep(0.2)
        raise SystemExit(f"{name} does not answer: {(self.folder / f'{name}.log').read_text()[-2000:]}")

    def run(self, *command):
        done = subprocess.run([self.arguments.bitnet, *command], cwd=self.folder, capture_output=True, text=True, check=True)
        return (done.stdout or done.stderr).strip()

    def upstream(self):
        port, key = free_port(), secrets.token_hex(16)
        self.start("upstream", [self.arguments.bitnet, "serve", "--listen", f"127.0.0.1:{port}", "--api-key", key, "--log", "error"])
        return Way("upstream", port, key, self.until_there("upstream", port, key))

    def litellm(self, upstream):
        port, key = free_port(), f"sk-{secrets.token_hex(16)}"
        model = json.loads(upstream.body)["model"]
        parameters = {"model": f"openai/{model}", "api_base": f"http://127.0.0.1:{upstream.port}/v1", "api_key": upstream.key}
        config = {
            "model_list": [{"model_name": model, "litellm_params": parameters}],
            "litellm_settings": {"telemetry": False},
            "general_settings": {"master_key": key},
        }
        # JSON is YAML.
        (self.folder / "litellm.yaml").write_text(json.dumps(config))
        command = [self.arguments.litellm, "--config", "litellm.yaml", "--host", "127.0.0.1", "--port", str(port)]
        command += ["--num_workers", str(self.arguments.workers)]
        # It would fetch a price list otherwise, and write every request to its log.
        self.start("litellm", command, LITELLM_LOCAL_MODEL_COST_MAP="True", LITELLM_LOG="ERROR", LITELLM_MODE="PRODUCTION")
        return Way("litellm", port, key, self.until_there("litellm", port, key))

    def bitnet(self):
        port = free_port()
        account = self.run("accounts", "create", "Bench", "--plan", "enterprise")
        key = self.run("keys", "create", account, "--name", "bench")
        self.start("bitnet", [self.arguments.bitnet, "serve", "--platform", "--listen", f"127.0.0.1:{port}", "--log", "error"])
        return Way("bitnet", port, key, self.until_there("bitnet", port, key))

    def check_books(self, n_requests):
        """Everything that was answered was metered, and the books balance; the server has ended by then."""
        said = self.run("db", "reconcile")
        counted = int(re.search(r"[\d,]+", said)[0].replace(",", ""))
        if counted < n_requests:
            raise SystemExit(f"of {n_requests} requests {counted} were metered: {said}")

    def end(self):
        for child in reversed(self.children):
            child.terminate()
        for child in self.children:
            try:
                child.wait(timeout=60)
            except subprocess.TimeoutExpired:
                child.kill()


def note(text):
    print(text, file=sys.stderr, flush=True)


def measured(arguments, ways):
    found = {}
    for number in range(arguments.rounds):
        for n_connections in arguments.connections:
            for way in ways:
                one = asyncio.run(load(way, n_connections, arguments.seconds))
                found.setdefault((n_connections, way.name), []).append(one)
                rate = f"{one['requests_per_second']:,.0f} requests/s"
                note(f"round {number + 1}, {n_connections} at once, {way.name}: {rate}, {one['p50_ms']:.2f} · {one['p99_ms']:.2f} ms")
    return found


def table(found):
    """Of each way its best round; what it adds to the upstream's median; and how many times bitnet's is LiteLLM's."""
    lines = ["| at once | | requests/s | p50, ms | p99, ms | added to p50, ms |", "| ---: | --- | ---: | ---: | ---: | ---: |"]
    best = {names: max(rounds, key=lambda one: one["requests_per_second"]) for names, rounds in found.items()}
    for (n_connections, name), one in best.items():
        added = one["p50_ms"] - best[n_connections, "upstream"]["p50_ms"]
        figures = f"{one['requests_per_second']:,.0f} | {one['p50_ms']:.2f} | {one['p99_ms']:.2f} | {added:.2f}"
        lines.append(f"| {n_connections} | {name} | {figures} |")
    for n_connections in dict.fromkeys(n for n, _ in best):
        ours, theirs = best[n_connections, "bitnet"], best[n_connections, "litellm"]
        rate = ours["requests_per_second"] / theirs["requests_per_second"]
        times = [theirs[key] / ours[key] for key in ("p50_ms", "p99_ms")]
        lines.append(f"\n{n_connections} at once: bitnet answers {rate:.1f} times as many requests; LiteLLM takes {times[0]:.1f} times as long (p50), {times[1]:.1f} (p99).")
    return "\n".join(lines)


def main(argv):
    arguments = arguments_of(argv)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        world = World(arguments, folder)
        try:
            upstream = world.upstream()
            ways = [upstream, world.litellm(upstream), world.bitnet()]
            found = measured(arguments, ways)
        finally:
            world.end()
        world.check_books(sum(one["n_requests"] for (_, name), rounds in found.items() if name == "bitnet" for one in rounds))
    print(table(found))
    if arguments.json:
        figures = [{"connections": n, "way": name, "rounds": rounds} for (n, name), rounds in found.items()]
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
