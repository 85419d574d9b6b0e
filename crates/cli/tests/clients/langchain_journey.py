"""What a program that uses LangChain does, against a running server, through langchain-openai."""

import asyncio
import os
from typing import Literal

import journeys
import openai
from langchain_core.messages import HumanMessage, SystemMessage, ToolMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from pydantic import BaseModel

SERVER = {"base_url": os.environ["BITNET_URL"] + "/v1", "api_key": os.environ["BITNET_KEY"], "max_retries": 0}
MODEL = os.environ["BITNET_SERVED"]
# The client keeps its connections, which belong to one loop.
LOOP = asyncio.new_event_loop()
HELLO = [SystemMessage("Be brief."), HumanMessage("Tell me a short story.")]


def model(**more):
    return ChatOpenAI(model=MODEL, **{**SERVER, "temperature": 0, "max_tokens": 12, **more})


@tool
def weather(city: Literal["Bonn", "Rome"], days: Literal[1, 2, 3]) -> str:
    """Tells the weather."""
    return f"{city} {days}"


class Verdict(BaseModel):
    """A verdict."""

    ok: bool
    grade: Literal["good", "bad"]


def chat():
    reply = model().invoke(HELLO)
    assert reply.content and reply.usage_metadata["output_tokens"] <= 12
    assert reply.response_metadata["finish_reason"] in ("length", "stop")
    chain = ChatPromptTemplate.from_messages([("system", "Be brief."), ("user", "Tell me a {what}.")]) | model() | StrOutputParser()
    assert chain.invoke({"what": "short story"}) == reply.content
    assert chain.batch([{"what": "short story"}] * 3) == [reply.content] * 3


def streaming():
    chunks = list(model(stream_usage=True).stream(HELLO))
    total = chunks[0]
    for chunk in chunks[1:]:
        total += chunk
    assert total.content == model().invoke(HELLO).content and total.usage_metadata["output_tokens"] > 0

    async def gather():
        return "".join([chunk.content async for chunk in model().astream(HELLO)])

    assert LOOP.run_until_complete(gather()) == total.content


def tools():
    calling = model(max_tokens=200).bind_tools([weather], tool_choice="any", parallel_tool_calls=False, strict=True)
    reply = calling.invoke(HELLO)
    call = reply.tool_calls[0]
    assert call["name"] == "weather" and not reply.invalid_tool_calls
    result = weather.invoke(call)
    assert isinstance(result, ToolMessage) and result.content == f"{call['args']['city']} {call['args']['days']}"
    assert model().bind_tools([weather]).invoke([*HELLO, reply, result]).response_metadata["finish_reason"]
    streamed = None
    for chunk in calling.stream(HELLO):
        streamed = chunk if streamed is None else streamed + chunk
    assert streamed.tool_calls[0]["args"] == call["args"]


def schema_output():
    for method in ("json_schema", "function_calling"):
        verdict = model(max_tokens=100).with_structured_output(Verdict, method=method).invoke(HELLO)
        assert isinstance(verdict, Verdict), (method, verdict)


def responses():
    reply = model(use_responses_api=True, max_tokens=16).invoke(HELLO)
    assert reply.text and reply.id.startswith("resp_"), reply
    streamed = "".join(chunk.text for chunk in model(use_responses_api=True, max_tokens=16).stream(HELLO))
    assert streamed == reply.text


def completions():
    legacy = OpenAI(model=MODEL, temperature=0, max_tokens=8, **SERVER)
    assert legacy.invoke("Once upon a time") == "".join(legacy.stream("Once upon a time"))


def embeddings():
    # Texts are cut by OpenAI's vocabulary otherwise, which the client would have to fetch.
    embedder = OpenAIEmbeddings(model=os.environ["BITNET_SERVED_VECTORS"], check_embedding_ctx_length=False, **SERVER)
    documents = embedder.embed_documents(["a king", "a queen"])
    query = embedder.embed_query("a king")
    assert len(documents) == 2 and len(query) == len(documents[0]) and documents[0] != documents[1]
    assert max(abs(a - b) for a, b in zip(query, documents[0])) < 1e-6


def errors():
    for kind, more in [
        (openai.NotFoundError, {"model": "gpt-9"}),
        (openai.AuthenticationError, {"api_key": "sk-wrong"}),
        (openai.BadRequestError, {"temperature": -1}),
        (openai.BadRequestError, {"extra_body": {"nonsense": 1}}),
    ]:
        try:
            ChatOpenAI(**{**SERVER, "model": MODEL, "max_tokens": 2, **more}).invoke(HELLO)
        except kind:
            continue
        raise AssertionError(f"not refused: {list(more)}")


def cancellation():
    for _ in model(max_tokens=1500).stream(HELLO):
        break

    async def leave_early():
        task = asyncio.create_task(model(max_tokens=1500).ainvoke(HELLO))
        try:
            await asyncio.wait_for(task, 0.05)
        except asyncio.TimeoutError:
            pass
        return await model(max_tokens=2).ainvoke(HELLO)

    assert LOOP.run_until_complete(leave_early()).response_metadata


journeys.run([chat, streaming, tools, schema_output, responses, completions, embeddings, errors, cancellation])
