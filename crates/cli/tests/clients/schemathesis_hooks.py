"""Leads made-up requests to where something happens: most name no model and no object that exists, and would all be the same 404."""

import json
import os
import urllib.request

import schemathesis

URL, KEY = os.environ["BITNET_URL"], os.environ["BITNET_KEY"]
TEXT, VECTORS = os.environ["BITNET_SERVED"], os.environ["BITNET_SERVED_VECTORS"]
# The longest reply that is worth waiting for.
N_TOKENS = 3
LIMITS = {
    "/v1/chat/completions": "max_completion_tokens",
    "/v1/completions": "max_tokens",
    "/v1/responses": "max_output_tokens",
    "/v1/messages": "max_tokens",
}
made = {}


def ask(path, body, content_type="application/json"):
    headers = {"authorization": f"Bearer {KEY}", "content-type": content_type}
    with urllib.request.urlopen(urllib.request.Request(URL + path, body, headers)) as reply:
        return json.load(reply)["id"]


def file():
    line = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"model": TEXT, "prompt": "a", "max_tokens": 1}}
    parts = [
        '--x\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nbatch',
        f'\r\n--x\r\ncontent-disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n{json.dumps(line)}\r\n--x--\r\n',
    ]
    return ask("/v1/files", "".join(parts).encode(), "multipart/form-data; boundary=x")


def batch():
    body = {"input_file_id": file(), "endpoint": "/v1/completions", "completion_window": "24h"}
    return ask("/v1/batches", json.dumps(body).encode())


def response():
    return ask("/v1/responses", json.dumps({"model": TEXT, "input": "a", "max_output_tokens": 1}).encode())


MAKERS = {"/v1/files/{id}": file, "/v1/batches/{id}": batch, "/v1/responses/{id}": response}


def existing(path, method):
    for prefix, maker in MAKERS.items():
        if path.startswith(prefix):
            if prefix not in made:
                made[prefix] = maker()
            return made.pop(prefix) if method == "DELETE" else made[prefix]
    return None


@schemathesis.hook
def before_call(context, case, **kwargs):
    path, parameters, body = case.operation.path, case.path_parameters, case.body
    # Every other request, so that what does not exist is asked for, too.
    before_call.turn = not getattr(before_call, "turn", False)
    if before_call.turn and isinstance(parameters, dict):
        if "id" in parameters:
            parameters["id"] = existing(path, case.method.upper()) or parameters["id"]
        if "model" in parameters:
            parameters["model"] = TEXT
    if not isinstance(body, dict):
        return
    if isinstance(body.get("model"), str):
        body["model"] = VECTORS if path == "/v1/embeddings" else TEXT
    limit = LIMITS.get(path)
    if limit and (limit not in body or body[limit] is None or (isinstance(body[limit], int) and body[limit] > N_TOKENS)):
        body[limit] = N_TOKENS
        if path == "/v1/chat/completions" and isinstance(body.get("max_tokens"), int):
            body.pop("max_tokens")
