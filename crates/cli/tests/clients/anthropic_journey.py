"""What a program that uses the official Anthropic client does, against a running server."""

import json
import os

import anthropic
import journeys
from anthropic import Anthropic

client = Anthropic(base_url=os.environ["BITNET_URL"], api_key=os.environ["BITNET_KEY"], max_retries=0)
MODEL = os.environ["BITNET_SERVED"]
# The client no longer names it; the API of older models has it.
GREEDY = {"temperature": 0}
HELLO = [{"role": "user", "content": "Tell me a short story."}]
WEATHER = {
    "name": "weather",
    "description": "Tells the weather",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 12}},
        "required": ["city"],
        "additionalProperties": False,
    },
}


def message():
    reply = client.messages.create(model=MODEL, max_tokens=12, messages=HELLO, system="Be brief.", extra_body=GREEDY)
    assert reply.role == "assistant" and reply.content[0].type == "text" and reply.usage.output_tokens <= 12
    assert reply.stop_reason in ("max_tokens", "end_turn")
    with client.messages.stream(model=MODEL, max_tokens=12, messages=HELLO, system="Be brief.", extra_body=GREEDY) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == reply.content[0].text and final.stop_reason == reply.stop_reason
    assert final.usage.output_tokens == reply.usage.output_tokens


def tools():
    choice = {"type": "any", "disable_parallel_tool_use": True}
    reply = client.messages.create(model=MODEL, max_tokens=200, messages=HELLO, tools=[WEATHER], tool_choice=choice)
    use = reply.content[-1]
    assert reply.stop_reason == "tool_use" and use.type == "tool_use" and isinstance(use.input["city"], str)
    with client.messages.stream(model=MODEL, max_tokens=200, messages=HELLO, tools=[WEATHER], tool_choice=choice) as stream:
        final = stream.get_final_message()
    assert isinstance(final.content[-1].input["city"], str)
    told = HELLO + [
        {"role": "assistant", "content": [block.model_dump(exclude_none=True) for block in reply.content]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": use.id, "content": "sunny"}]},
    ]
    assert client.messages.create(model=MODEL, max_tokens=4, messages=told, tools=[WEATHER]).content is not None


def counting():
    counted = client.messages.count_tokens(model=MODEL, messages=HELLO)
    reply = client.messages.create(model=MODEL, max_tokens=1, messages=HELLO)
    assert counted.input_tokens == reply.usage.input_tokens + reply.usage.cache_read_input_tokens


def errors():
    for kind, more in [
        (anthropic.NotFoundError, {"model": "claude-0"}),
        (anthropic.BadRequestError, {"extra_body": {"temperature": 2}}),
        (anthropic.BadRequestError, {"extra_body": {"nonsense": 1}}),
    ]:
        try:
            client.messages.create(**{"model": MODEL, "max_tokens": 2, "messages": HELLO, **more})
        except kind as error:
            assert error.body["type"] == "error", json.dumps(error.body)
        else:
            raise AssertionError(f"not refused: {more}")


journeys.run([message, tools, counting, errors])
