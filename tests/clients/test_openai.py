"""The official `openai` package against a worker: what its users do must work as their documentation says."""

import concurrent.futures
import json
import threading
import time

import openai
import pytest
from pydantic import BaseModel

from conftest import eventually

MODEL = "haiku"
ASK = [{"role": "user", "content": "Write a haiku about the moon"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 12}, "unit": {"enum": ["c", "f"]}},
            "required": ["city", "unit"],
            "additionalProperties": False,
        },
    },
}
# Enough for the model to finish a short constrained answer.
ROOM = 96


@pytest.fixture(scope="module")
def worker(start_worker, gpu_backend):
    """A worker on a GPU's backend where there is one, with room for the tests' concurrency."""
    flags = ["--max-batch", "16", "--max-queue", "128", "--served-model-name", MODEL]
    return start_worker(*flags, backend=gpu_backend).wait_ready()


@pytest.fixture(scope="module")
def client(worker):
    """A client that hides nothing by trying again."""
    return openai.OpenAI(base_url=f"{worker.url}/v1", api_key="none", max_retries=0, timeout=120)


def chat(client, **fields):
    """A short conversation with fixed randomness."""
    defaults = {"model": MODEL, "messages": ASK, "max_completion_tokens": 24, "seed": 7, "temperature": 0.7}
    return client.chat.completions.create(**{**defaults, **fields})


def said(message):
    """All that a message or a delta says, reasoning included."""
    return (getattr(message, "reasoning_content", None) or "") + (message.content or "")


def test_models_are_listed_and_found(client):
    listed = client.models.list().data
    assert [model.id for model in listed] == [MODEL]
    found = client.models.retrieve(MODEL)
    assert found.object == "model" and found.id == MODEL and found.owned_by
    with pytest.raises(openai.NotFoundError) as missing:
        client.models.retrieve("nobody/nothing")
    assert missing.value.code == "model_not_found"


def test_a_chat_is_answered_and_counted(client):
    answer = chat(client)
    [choice] = answer.choices
    assert answer.object == "chat.completion" and answer.id.startswith("chatcmpl-") and answer.model == MODEL
    assert choice.message.role == "assistant" and said(choice.message)
    assert choice.finish_reason in ("stop", "length")
    usage = answer.usage
    assert usage.prompt_tokens > 0 and 0 < usage.completion_tokens <= 24
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert said(chat(client).choices[0].message) == said(choice.message), "the same request says the same"


def test_a_stream_says_what_the_whole_answer_says(client):
    whole = chat(client).choices[0]
    chunks = list(chat(client, stream=True))
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.object == "chat.completion.chunk" for chunk in chunks)
    choices = [chunk.choices[0] for chunk in chunks]
    assert choices[0].delta.role == "assistant"
    assert "".join(said(choice.delta) for choice in choices) == said(whole.message)
    reasons = [choice.finish_reason for choice in choices if choice.finish_reason]
    assert reasons == [whole.finish_reason] and choices[-1].finish_reason
    assert all(chunk.usage is None for chunk in chunks)


def test_usage_comes_last_when_asked_for(client):
    whole = chat(client).usage
    chunks = list(chat(client, stream=True, stream_options={"include_usage": True}))
    assert all(chunk.usage is None and chunk.choices for chunk in chunks[:-1])
    assert chunks[-1].choices == []
    streamed = chunks[-1].usage
    assert (streamed.prompt_tokens, streamed.completion_tokens) == (
        whole.prompt_tokens, whole.completion_tokens,
    )


def test_several_answers_are_numbered(client):
    answer = chat(client, n=3, temperature=1.0, max_completion_tokens=8)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    chunks = chat(client, n=3, temperature=1.0, max_completion_tokens=8, stream=True)
    texts = {}
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + said(choice.delta)
    assert texts == {choice.index: said(choice.message) for choice in answer.choices}


def test_logprobs_are_of_the_tokens_said(client):
    answer = client.completions.create(
        model=MODEL, prompt="Once upon a", max_tokens=6, temperature=0, logprobs=3,
    )
    logprobs = answer.choices[0].logprobs
    assert "".join(logprobs.tokens) == answer.choices[0].text
    for chosen, top in zip(logprobs.token_logprobs, logprobs.top_logprobs, strict=True):
        assert chosen <= 0 and len(top) >= 3
        assert max(top.values()) == pytest.approx(chosen), "without temperature the likeliest is chosen"
    # An answer whose text is content from its first token on.
    answer = chat(
        client, logprobs=True, top_logprobs=2, temperature=0, max_completion_tokens=ROOM,
        response_format={"type": "json_object"},
    )
    reports = answer.choices[0].logprobs.content
    assert "".join(report.token for report in reports) == answer.choices[0].message.content
    assert all(report.logprob <= 0 and len(report.top_logprobs) == 2 for report in reports)
    assert all(bytes(report.bytes).decode() == report.token for report in reports)


class Poem(BaseModel):
    """What a structured answer is parsed into."""

    title: str
    lines: int
    rhymes: bool


def test_structured_output_keeps_to_its_schema(client):
    schema = {
        "type": "object",
        "properties": {
            "title": {"type": "string", "maxLength": 16}, "lines": {"enum": [3, 5]}, "rhymes": {"type": "boolean"},
        },
        "required": ["title", "lines", "rhymes"],
        "additionalProperties": False,
    }
    answer = chat(
        client, max_completion_tokens=ROOM,
        response_format={"type": "json_schema", "json_schema": {"name": "poem", "strict": True, "schema": schema}},
    )
    assert answer.choices[0].finish_reason == "stop"
    poem = json.loads(answer.choices[0].message.content)
    assert set(poem) == {"title", "lines", "rhymes"} and poem["lines"] in (3, 5)


def test_parse_makes_the_object_that_was_asked_for(client):
    parsed = client.chat.completions.parse(
        model=MODEL, messages=ASK, response_format=Poem, temperature=0.7, seed=3, max_completion_tokens=512,
        extra_body={"frequency_penalty": 1.0},
    )
    if parsed.choices[0].finish_reason == "stop":
        assert isinstance(parsed.choices[0].message.parsed, Poem)


def test_a_schema_that_cannot_be_enforced_is_refused(client):
    with pytest.raises(openai.BadRequestError) as refused:
        chat(client, response_format={
            "type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "no such type"}},
        })
    assert refused.value.param == "response_format"


def test_a_tool_is_called_with_arguments_that_keep_to_its_schema(client):
    answer = chat(client, tools=[WEATHER], tool_choice="required", max_completion_tokens=ROOM)
    [choice] = answer.choices
    [call] = choice.message.tool_calls
    assert choice.finish_reason == "tool_calls"
    assert call.type == "function" and call.id and call.function.name == "get_weather"
    arguments = json.loads(call.function.arguments)
    assert set(arguments) == {"city", "unit"} and arguments["unit"] in ("c", "f")


def test_streamed_arguments_are_the_whole_ones(client):
    chosen = {"type": "function", "function": {"name": "get_weather"}}
    fields = {"tools": [WEATHER], "tool_choice": chosen, "max_completion_tokens": ROOM}
    [whole] = chat(client, **fields).choices[0].message.tool_calls
    name, arguments, reasons, pieces = "", "", [], 0
    for chunk in chat(client, stream=True, **fields):
        for choice in chunk.choices:
            for call in choice.delta.tool_calls or []:
                assert call.index == 0
                name += call.function.name or ""
                arguments += call.function.arguments or ""
                pieces += bool(call.function.arguments)
            reasons += [choice.finish_reason] if choice.finish_reason else []
    assert (name, arguments) == (whole.function.name, whole.function.arguments)
    assert pieces > 1, "arguments leave as they are written"
    assert reasons[-1] in ("tool_calls", "stop")
    json.loads(arguments)


def test_a_conversation_with_tool_results_goes_on(client):
    call = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city":"Rome"}'}}
    messages = [
        *ASK,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
    ]
    assert chat(client, messages=messages, tools=[WEATHER]).usage.prompt_tokens > 0


def test_errors_are_the_exceptions_that_clients_catch(client):
    with pytest.raises(openai.BadRequestError) as refused:
        chat(client, temperature=9)
    assert (refused.value.status_code, refused.value.param) == (400, "temperature")
    assert refused.value.type == "invalid_request_error" and refused.value.message
    with pytest.raises(openai.NotFoundError) as refused:
        chat(client, model="no-such-model")
    assert (refused.value.code, refused.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(model=MODEL, prompt="moon " * 6000)
    assert refused.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as refused:
        chat(client, messages=[{"role": "nobody", "content": "x"}])
    assert refused.value.param.startswith("messages")
    with pytest.raises(openai.BadRequestError) as refused:
        chat(client, messages=[])
    assert refused.value.param == "messages"
    with pytest.raises(openai.BadRequestError) as refused:
        chat(client, n=99)
    assert refused.value.param == "n"


def test_unknown_fields_pass(client):
    assert chat(client, max_completion_tokens=2, extra_body={"no_stop_trim": False, "whatever": {"a": 1}}).choices


def test_completions_are_streamed_and_whole(client):
    fields = {"model": MODEL, "prompt": ["The sea", "The wood"], "max_tokens": 8, "temperature": 0}
    whole = client.completions.create(**fields)
    assert [choice.index for choice in whole.choices] == [0, 1] and whole.usage.completion_tokens <= 16
    texts = {0: "", 1: ""}
    for chunk in client.completions.create(**fields, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == {choice.index: choice.text for choice in whole.choices}


def test_a_stop_string_ends_the_text_and_is_not_in_it(client):
    fields = {"model": MODEL, "prompt": "Write a haiku about the moon", "max_tokens": 40, "temperature": 0}
    free = client.completions.create(**fields).choices[0].text
    stop = free[len(free) // 2:][:3]
    stopped = client.completions.create(**fields, stop=[stop]).choices[0]
    assert stopped.text == free[: free.index(stop)] and stopped.finish_reason == "stop"


def test_closing_a_stream_frees_its_slot(client, worker):
    eventually(worker.idle, "nothing runs before")
    streams = []
    for _ in range(8):
        # More than a test would wait for.
        stream = chat(client, stream=True, max_completion_tokens=1500)
        next(iter(stream))
        streams.append(stream)
    for stream in streams:
        stream.close()
    began = time.monotonic()
    eventually(worker.idle, "every slot and block is free")
    assert time.monotonic() - began < 5
    assert said(chat(client).choices[0].message), "others are served"


def test_fifty_streams_at_once_say_what_each_says_alone(client):
    def ask(seed):
        chunks = chat(client, stream=True, seed=seed % 5, max_completion_tokens=4)
        return "".join(said(choice.delta) for chunk in chunks for choice in chunk.choices)

    alone = [ask(seed) for seed in range(5)]
    together = threading.Barrier(50)

    def wait_and_ask(seed):
        together.wait()
        return ask(seed)

    with concurrent.futures.ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(wait_and_ask, range(50)))
    assert answers == [alone[seed % 5] for seed in range(50)]


def test_keys_are_asked_for(start_worker, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("secret\n")
    locked = start_worker("--api-key-file", str(keys)).wait_ready()
    wrong = openai.OpenAI(base_url=f"{locked.url}/v1", api_key="guess", max_retries=0)
    with pytest.raises(openai.AuthenticationError) as refused:
        wrong.models.list()
    assert refused.value.code == "invalid_api_key"
    assert openai.OpenAI(base_url=f"{locked.url}/v1", api_key="secret").models.list().data


def test_a_full_queue_is_a_rate_limit_that_the_client_waits_out(start_worker):
    small = start_worker("--max-batch", "1", "--max-queue", "1", "--served-model-name", MODEL).wait_ready()
    impatient = openai.OpenAI(base_url=f"{small.url}/v1", api_key="none", max_retries=0)
    busy = [chat(impatient, stream=True, max_completion_tokens=400) for _ in range(1)]
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        outcomes = list(pool.map(lambda _: outcome(impatient), range(6)))
    refused = [error for error in outcomes if error]
    assert refused and all(isinstance(error, openai.RateLimitError) for error in refused), outcomes
    assert all(int(error.response.headers["retry-after"]) >= 1 for error in refused)
    for stream in busy:
        stream.close()
    patient = openai.OpenAI(base_url=f"{small.url}/v1", api_key="none", max_retries=8)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert not any(pool.map(lambda _: outcome(patient), range(4)))


def outcome(client):
    """What a short chat ended with: nothing, or the exception."""
    try:
        chat(client, max_completion_tokens=8)
    except openai.APIError as error:
        return error
    return None
