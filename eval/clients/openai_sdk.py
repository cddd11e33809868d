#!/usr/bin/env python3
"""OpenAI's Python SDK against a server of the trained fixture with Qwen3.5's chat template.
usage: openai_sdk.py URL"""
import json
import sys
from pathlib import Path

import openai

FIXTURE = Path(__file__).resolve().parents[2] / "crates/gdn-model/tests/fixtures/qwen3_5_trained"
ROWS = [json.loads(line) for line in (FIXTURE / "eval.jsonl").read_text().splitlines()]
PREFIX = (FIXTURE / "eval_prefix.txt").read_text()
STOP = "\n\n"

client = openai.OpenAI(base_url=f"{sys.argv[1].rstrip('/')}/v1", api_key="none", max_retries=0)
model = client.models.list().data[0].id


def prompt(row):
    return f"{PREFIX}Question: {row['question']}\nAnswer:"


def answer(row):
    """What Hugging Face transformers generates."""
    return row["hf_f32_output"].split(STOP)[0]


def completion(prompt, **more):
    fields = {"max_tokens": 24, "temperature": 0, "stop": STOP, **more}
    return client.completions.create(model=model, prompt=prompt, **fields)


def chat(**more):
    fields = {"max_completion_tokens": 24, "temperature": 0, **more}
    messages = [{"role": "system", "content": "Add."}, {"role": "user", "content": "What is 4 + 5?"}]
    return client.chat.completions.create(model=model, messages=messages, **fields)


def said(part):
    """Thoughts and text of a message or a delta."""
    return (getattr(part, "reasoning_content", None) or "") + (part.content or "")


def test_models():
    assert client.models.retrieve(model).id == model
    assert [listed.id for listed in client.models.list()] == [model]


def test_completions():
    for row in ROWS[::10]:
        got = completion(prompt(row))
        (choice,) = got.choices
        assert choice.text == answer(row), (choice.text, answer(row))
        assert choice.finish_reason == "stop", choice
        assert got.object == "text_completion" and got.model == model
        assert got.usage.total_tokens == got.usage.prompt_tokens + got.usage.completion_tokens
    assert completion(prompt(ROWS[0]), max_tokens=3).choices[0].finish_reason == "length"
    assert completion(prompt(ROWS[0]), max_tokens=3).usage.completion_tokens == 3


def test_many_prompts_and_answers():
    rows = ROWS[:2] + ROWS[-2:]
    got = completion([prompt(row) for row in rows])
    assert [choice.index for choice in got.choices] == list(range(4))
    assert [choice.text for choice in got.choices] == [answer(row) for row in rows]
    got = completion([prompt(row) for row in rows[:2]], n=2)
    assert sorted(choice.index for choice in got.choices) == list(range(4))
    texts = {choice.index: choice.text for choice in got.choices}
    assert [texts[i] for i in range(4)] == [answer(row) for row in rows[:2] for _ in range(2)]


def test_completions_stream():
    row = ROWS[3]
    whole = completion(prompt(row))
    chunks = list(completion(prompt(row), stream=True, stream_options={"include_usage": True}))
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == answer(row)
    finish = [choice.finish_reason for chunk in chunks for choice in chunk.choices]
    assert finish[-1] == "stop" and not any(finish[:-1]), finish
    # Usage comes last, beside no choice, and nowhere else.
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens
    assert not any(chunk.usage for chunk in chunks[:-1])
    plain = list(completion(prompt(row), stream=True))
    assert all(chunk.choices and not chunk.usage for chunk in plain)
    assert len(plain) > 2, "an answer in one piece is no stream"


def test_completion_logprobs():
    got = completion(prompt(ROWS[0]), logprobs=2).choices[0]
    logprobs = got.logprobs
    assert "".join(logprobs.tokens).startswith(got.text)
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.top_logprobs)
    for logprob, top in zip(logprobs.token_logprobs, logprobs.top_logprobs):
        # The most likely token is the one that was taken, to the bit.
        assert logprob == max(top.values()) <= 0 and len(top) >= 2
    text = "Question: What is"
    echo = completion(text, logprobs=1, echo=True, max_tokens=1, stop=None).choices[0]
    assert echo.text.startswith(text)
    assert echo.logprobs.token_logprobs[0] is None and echo.logprobs.top_logprobs[0] is None
    assert all(logprob <= 0 for logprob in echo.logprobs.token_logprobs[1:])
    assert "".join(echo.logprobs.tokens) == echo.text


def test_seeds():
    fields = {"temperature": 1.5, "stop": None, "max_tokens": 16}
    texts = [completion("Question:", seed=seed, **fields).choices[0].text for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2], texts


def test_chat():
    for thinking in (True, False):
        extra = {"chat_template_kwargs": {"enable_thinking": thinking}}
        got = chat(extra_body=extra)
        (choice,) = got.choices
        assert choice.message.role == "assistant" and choice.message.tool_calls is None
        assert choice.finish_reason in ("stop", "length")
        assert 0 < got.usage.completion_tokens <= 24
        assert got.object == "chat.completion" and got.id.startswith("chatcmpl")
        if not thinking:
            assert not getattr(choice.message, "reasoning_content", None)
        chunks = list(chat(extra_body=extra, stream=True, stream_options={"include_usage": True}))
        deltas = [choice.delta for chunk in chunks for choice in chunk.choices]
        assert deltas[0].role == "assistant"
        # Whatever it says, it says the same in pieces.
        assert "".join(map(said, deltas)).strip() == said(choice.message).strip()
        finish = [choice.finish_reason for chunk in chunks for choice in chunk.choices]
        assert finish[-1] == choice.finish_reason and not any(finish[:-1])
        assert chunks[-1].usage.completion_tokens == got.usage.completion_tokens


def test_chat_logprobs():
    got = chat(logprobs=True, top_logprobs=3).choices[0].logprobs.content
    assert got
    for token in got:
        top = [likely.logprob for likely in token.top_logprobs]
        assert len(top) == 3 and top == sorted(top, reverse=True)
        assert token.logprob == top[0] <= 0
        assert token.bytes is None or all(0 <= byte < 256 for byte in token.bytes)


WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Oslo", "Rome"]}, "metric": {"type": "boolean"}},
            "required": ["city", "metric"],
            "additionalProperties": False,
        },
    },
}
ANSWER_AT_ONCE = {"chat_template_kwargs": {"enable_thinking": False}}


def check_call(name, arguments):
    assert name == "get_weather"
    got = json.loads(arguments)
    assert set(got) == {"city", "metric"}, got
    assert got["city"] in ("Oslo", "Rome") and isinstance(got["metric"], bool), got


def test_tools():
    named = {"type": "function", "function": {"name": "get_weather"}}
    fields = {"tools": [WEATHER], "max_completion_tokens": 200, "extra_body": ANSWER_AT_ONCE}
    (choice,) = chat(tool_choice=named, **fields).choices
    (call,) = choice.message.tool_calls
    assert call.type == "function" and call.id
    check_call(call.function.name, call.function.arguments)
    chunks = list(chat(tool_choice=named, stream=True, **fields))
    parts = [
        part for chunk in chunks for choice in chunk.choices for part in choice.delta.tool_calls or []
    ]
    assert {part.index for part in parts} == {0}
    names = [part.function.name for part in parts if part.function.name]
    assert len(names) == 1 and parts[0].id
    check_call(names[0], "".join(part.function.arguments or "" for part in parts))
    none = chat(tool_choice="none", **fields | {"max_completion_tokens": 16}).choices[0]
    assert not none.message.tool_calls


def test_json_schema():
    schema = WEATHER["function"]["parameters"]
    form = {"type": "json_schema", "json_schema": {"name": "w", "schema": schema, "strict": True}}
    got = chat(response_format=form, max_completion_tokens=200, extra_body=ANSWER_AT_ONCE)
    check_call("get_weather", got.choices[0].message.content)


def refused(kind, ask):
    try:
        ask()
    except kind as error:
        # The whole of what other tools rely on.
        assert isinstance(error.body, dict), error.body
        assert {"message", "type", "param", "code"} <= set(error.body), error.body
        return error
    raise AssertionError(f"expected {kind.__name__}, got an answer")


def test_errors():
    error = refused(openai.NotFoundError, lambda: client.completions.create(model="no-such", prompt="a"))
    assert error.code == "model_not_found"
    long = [7] * 1_000_000
    error = refused(openai.BadRequestError, lambda: completion(long))
    assert error.code == "context_length_exceeded", error.body
    error = refused(openai.BadRequestError, lambda: completion("a", temperature=-1))
    assert error.param == "temperature", error.body
    refused(openai.BadRequestError, lambda: completion("a", max_tokens=-1))
    refused(openai.BadRequestError, lambda: client.chat.completions.create(model=model, messages=[]))
    refused(openai.NotFoundError, lambda: client.models.retrieve("no-such"))
    error = refused(
        openai.BadRequestError,
        lambda: chat(tools=[WEATHER], tool_choice={"type": "function", "function": {"name": "other"}}),
    )
    assert error.param == "tool_choice", error.body


for name, test in list(globals().items()):
    if name.startswith("test_"):
        test()
        print(f"ok   {name.removeprefix('test_')}", flush=True)
