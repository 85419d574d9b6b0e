"""What a program that uses LiteLLM does, against a running server: as OpenAI's API and as Anthropic's."""

import asyncio
import json
import os

import journeys
import litellm

litellm.telemetry = False
litellm.suppress_debug_info = True
URL, KEY, MODEL = (os.environ[name] for name in ("BITNET_URL", "BITNET_KEY", "BITNET_SERVED"))
OPENAI = {"model": f"openai/{MODEL}", "api_base": f"{URL}/v1", "api_key": KEY, "num_retries": 0}
ANTHROPIC = {"model": f"anthropic/{MODEL}", "api_base": URL, "api_key": KEY, "num_retries": 0}
HELLO = [{"role": "user", "content": "Tell me a short story."}]
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 12}, "unit": {"enum": ["C", "F"]}},
    "required": ["city", "unit"],
    "additionalProperties": False,
}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "Tells the weather", "parameters": PARAMETERS}}


def chat_and_streaming():
    whole = litellm.completion(**OPENAI, messages=HELLO, max_tokens=12, seed=1)
    assert whole.choices[0].message.content and whole.usage.completion_tokens <= 12
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    options = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(litellm.completion(**OPENAI, messages=HELLO, max_tokens=12, seed=1, **options))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content, (text, whole.choices[0].message.content)
    rebuilt = litellm.stream_chunk_builder(chunks, messages=HELLO)
    assert rebuilt.usage.completion_tokens == whole.usage.completion_tokens


def anthropic_chat_and_streaming():
    whole = litellm.completion(**ANTHROPIC, messages=HELLO, max_tokens=12, temperature=0)
    pieces = litellm.completion(**ANTHROPIC, messages=HELLO, max_tokens=12, temperature=0, stream=True)
    text = "".join(piece.choices[0].delta.content or "" for piece in pieces)
    assert text and text == whole.choices[0].message.content, (text, whole)


def tools():
    for target in (OPENAI, ANTHROPIC):
        given = {"messages": HELLO, "tools": [WEATHER], "tool_choice": "required", "max_tokens": 200, "parallel_tool_calls": False}
        message = litellm.completion(**target, **given).choices[0].message
        call = message.tool_calls[0]
        arguments = json.loads(call.function.arguments)
        assert call.function.name == "weather" and arguments["unit"] in ("C", "F") and set(arguments) == {"city", "unit"}, arguments
        told = HELLO + [message.model_dump(exclude_none=True), {"role": "tool", "tool_call_id": call.id, "content": "sunny"}]
        after = litellm.completion(**target, messages=told, tools=[WEATHER], max_tokens=4)
        assert after.choices[0].finish_reason in ("length", "stop", "tool_calls"), after


def schema_output():
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"], "additionalProperties": False}
    response_format = {"type": "json_schema", "json_schema": {"name": "verdict", "schema": schema, "strict": True}}
    reply = litellm.completion(**OPENAI, messages=HELLO, response_format=response_format, max_tokens=60)
    assert isinstance(json.loads(reply.choices[0].message.content)["ok"], bool)


def text_completion():
    given = {"prompt": "Once upon a time", "max_tokens": 8, "temperature": 0}
    target = {**OPENAI, "model": f"text-completion-openai/{MODEL}"}
    whole = litellm.text_completion(**target, **given)
    pieces = litellm.text_completion(**target, **given, stream=True)
    assert "".join(piece.choices[0].text or "" for piece in pieces) == whole.choices[0].text


def embeddings():
    target = {**OPENAI, "model": f"openai/{os.environ['BITNET_SERVED_VECTORS']}"}
    vectors = [row["embedding"] for row in litellm.embedding(**target, input=["a king", "a queen"], encoding_format="float").data]
    assert len(vectors) == 2 and len(vectors[0]) == len(vectors[1]) and vectors[0] != vectors[1]


def responses():
    reply = litellm.responses(**OPENAI, input="Tell me a story.", max_output_tokens=16, temperature=0)
    assert reply.status in ("completed", "incomplete") and reply.output[0].content[0].text


def errors():
    for kind, more in [
        (litellm.NotFoundError, {"model": "openai/gpt-9"}),
        (litellm.AuthenticationError, {"api_key": "sk-wrong"}),
        (litellm.BadRequestError, {"temperature": -1}),
        (litellm.BadRequestError, {"extra_body": {"nonsense": 1}}),
        (litellm.ContextWindowExceededError, {"messages": [{"role": "user", "content": "story " * 4000}]}),
    ]:
        try:
            litellm.completion(**{**OPENAI, "messages": HELLO, "max_tokens": 2, **more})
        except kind:
            continue
        raise AssertionError(f"not refused: {list(more)}")


def cancellation():
    async def leave_early():
        stream = await litellm.acompletion(**OPENAI, messages=HELLO, max_tokens=1500, stream=True)
        async for _ in stream:
            break
        await stream.aclose()
        task = asyncio.create_task(litellm.acompletion(**OPENAI, messages=HELLO, max_tokens=1500))
        await asyncio.sleep(0)
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            pass
        return await litellm.acompletion(**OPENAI, messages=HELLO, max_tokens=2)

    assert asyncio.run(leave_early()).choices[0].message is not None


journeys.run([
    chat_and_streaming,
    anthropic_chat_and_streaming,
    tools,
    schema_output,
    text_completion,
    embeddings,
    responses,
    errors,
    cancellation,
])
