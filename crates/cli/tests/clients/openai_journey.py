"""What a program that uses the official OpenAI client does, against a running server: BITNET_URL says where, BITNET_KEY with what."""

import json
import os

import journeys
import openai
from openai import OpenAI

client = OpenAI(base_url=os.environ["BITNET_URL"] + "/v1", api_key=os.environ["BITNET_KEY"], max_retries=0)
MODEL = client.models.list().data[0].id
HELLO = [{"role": "user", "content": "Tell me a short story."}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 12}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}


def chat():
    reply = client.chat.completions.create(model=MODEL, messages=HELLO, max_completion_tokens=16, seed=1)
    assert reply.choices[0].message.role == "assistant" and reply.choices[0].message.content
    assert reply.usage.completion_tokens <= 16 and reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    stream = client.chat.completions.create(
        model=MODEL, messages=HELLO, max_completion_tokens=16, seed=1, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == reply.choices[0].message.content, (text, reply.choices[0].message.content)
    assert chunks[-1].usage.completion_tokens == reply.usage.completion_tokens


def choices_and_logprobs():
    reply = client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=4, n=2, logprobs=True, top_logprobs=3, seed=2)
    assert [choice.index for choice in reply.choices] == [0, 1]
    tokens = reply.choices[0].logprobs.content
    assert tokens and all(len(token.top_logprobs) == 3 and token.logprob <= 0 for token in tokens)


def tools():
    arguments = dict(model=MODEL, messages=HELLO, tools=[WEATHER], tool_choice="required", parallel_tool_calls=False, max_tokens=200, seed=3)
    call = client.chat.completions.create(**arguments).choices[0].message.tool_calls[0]
    given = json.loads(call.function.arguments)
    assert call.function.name == "weather" and 1 <= given["days"] <= 9 and isinstance(given["city"], str)
    streamed = ""
    for chunk in client.chat.completions.create(**arguments, stream=True):
        for delta in (chunk.choices[0].delta.tool_calls or []) if chunk.choices else []:
            streamed += delta.function.arguments or ""
    assert json.loads(streamed) == given
    told = HELLO + [
        {"role": "assistant", "content": None, "tool_calls": [call.model_dump()]},
        {"role": "tool", "tool_call_id": call.id, "content": "sunny"},
    ]
    assert client.chat.completions.create(model=MODEL, messages=told, tools=[WEATHER], tool_choice="none", max_tokens=4).choices


def formats():
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"], "additionalProperties": False}
    response_format = {"type": "json_schema", "json_schema": {"name": "verdict", "schema": schema, "strict": True}}
    reply = client.chat.completions.create(model=MODEL, messages=HELLO, response_format=response_format, max_tokens=60)
    assert isinstance(json.loads(reply.choices[0].message.content)["ok"], bool)


def completions():
    reply = client.completions.create(model=MODEL, prompt="Once upon a time", max_tokens=8, temperature=0, echo=True, logprobs=1)
    choice = reply.choices[0]
    assert choice.text.startswith("Once upon a time") and len(choice.logprobs.tokens) == len(choice.logprobs.text_offset)
    pieces = client.completions.create(model=MODEL, prompt="Once upon a time", max_tokens=8, temperature=0, stream=True)
    assert "Once upon a time" + "".join(piece.choices[0].text for piece in pieces) == choice.text


def responses():
    first = client.responses.create(model=MODEL, input="Tell me a story.", max_output_tokens=16, temperature=0)
    assert first.output_text and first.status in ("completed", "incomplete"), first
    again = client.responses.create(model=MODEL, input="More.", previous_response_id=first.id, max_output_tokens=8)
    assert again.usage.input_tokens > first.usage.input_tokens, (first.usage, again.usage)
    assert client.responses.retrieve(first.id).output_text == first.output_text
    # The client's own `get_final_response` knows only replies that were not cut off by a limit.
    with client.responses.stream(model=MODEL, input="Tell me a story.", max_output_tokens=8, temperature=0) as stream:
        events = list(stream)
    kinds = [event.type for event in events]
    assert kinds[:2] == ["response.created", "response.in_progress"] and kinds[-1] == "response.incomplete", kinds
    assert events[-1].response.output_text, events[-1]
    client.responses.delete(first.id)


def errors():
    def refused(kind, code, param, **more):
        try:
            client.chat.completions.create(**{"model": MODEL, "messages": HELLO, "max_tokens": 2, **more})
        except kind as error:
            assert (error.code, error.param) == (code, param), (error.code, error.param)
            return
        raise AssertionError("not refused")

    refused(openai.NotFoundError, "model_not_found", "model", model="gpt-9")
    refused(openai.BadRequestError, "invalid_value", "temperature", temperature=-1)
    refused(openai.BadRequestError, "unknown_parameter", "nonsense", extra_body={"nonsense": 1})
    refused(openai.BadRequestError, "unsupported_parameter", "reasoning_effort", reasoning_effort="low")
    try:
        OpenAI(base_url=client.base_url, api_key="wrong", max_retries=0).models.list()
    except openai.AuthenticationError as error:
        assert error.code == "invalid_api_key"
    else:
        raise AssertionError("a wrong key was taken")


def cancellation():
    stream = client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=200, stream=True)
    next(iter(stream))
    stream.close()
    # The place is free again: a request after it is answered.
    assert client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=2).choices


def batches():
    line = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"model": MODEL, "prompt": "Once", "max_tokens": 2}}
    file = client.files.create(file=("in.jsonl", json.dumps(line).encode()), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/completions", completion_window="24h")
    while batch.status in ("validating", "in_progress", "finalizing"):
        batch = client.batches.retrieve(batch.id)
    assert batch.status == "completed" and batch.request_counts.completed == 1, batch
    assert json.loads(client.files.content(batch.output_file_id).text)["custom_id"] == "a"


journeys.run([chat, choices_and_logprobs, tools, formats, completions, responses, errors, cancellation, batches])
