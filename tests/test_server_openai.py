"""OpenAI's dialect, through its own client and beside the `Llama` class.

Covers server/openai.py, server/openai_endpoint.py, server/openai_chat.py, server/openai_completions.py,
server/embeddings.py, server/generation.py, server/prompts.py, server/logprobs.py, server/http.py,
server/sampling_fields.py, server/messages.py.
"""

from __future__ import annotations

import base64
import inspect
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from serving import PATIENCE, Running, openai_client, serving, tiny_llama, tiny_path, tiny_server
from tiny_model import PIECES

from pyllamacpu import Llama
from pyllamacpu.api.tools import shown_tools
from pyllamacpu.server.sampling_fields import folded_seed
from pyllamacpu.text.chat import RESERVED, encode_chat
from pyllamacpu.text.template import ChatTemplate

QUESTION = [{"role": "user", "content": "hello the world"}]


path, running = tiny_path(), tiny_server()
client, llm = openai_client(), tiny_llama()


def chat(client: openai.OpenAI, **more: Any) -> Any:
    return client.chat.completions.create(
        **{"model": "tiny", "messages": QUESTION, "max_tokens": 12, "temperature": 0, **more}
    )


def test_models(client: openai.OpenAI) -> None:
    assert "tiny" in [model.id for model in client.models.list()]
    assert client.models.retrieve("tiny").owned_by == "pyllamacpu"
    with pytest.raises(openai.NotFoundError, match="nobody"):
        client.models.retrieve("nobody")


def test_the_list_of_models_with_a_slash(running: Running) -> None:
    assert running.get("/v1/models/").json() == running.get("/v1/models").json()


@pytest.mark.parametrize("stream", [False, True])
def test_no_tokens_are_an_empty_completion(running: Running, stream: bool) -> None:
    response = running.post("/v1/completions", prompt="hello", max_tokens=0, stream=stream)
    assert response.status_code == 200, response.text
    if stream:
        assert response.text.endswith("data: [DONE]\n\n")
    else:
        (choice,) = response.json()["choices"]
        assert (choice["text"], choice["finish_reason"]) == ("", "length")
        assert response.json()["usage"]["completion_tokens"] == 0


def test_echoed_logprobs_stand_where_their_tokens_are(running: Running, llm: Llama) -> None:
    """Special tokens that a prompt spells are as long as they are spelled there."""
    assert_echo_stands(running, llm, "hello</s>the world")


def test_a_spelled_bos_takes_its_room(running: Running, llm: Llama) -> None:
    """It is not among the tokens, but it is in the text."""
    assert_echo_stands(running, llm, "<s>hello</s>the world")


def assert_echo_stands(running: Running, llm: Llama, prompt: str) -> None:
    answers = [
        running.post("/v1/completions", prompt=prompt, max_tokens=3, echo=True, logprobs=1).json(),
        llm(prompt, max_tokens=3, echo=True, logprobs=1, temperature=0),
    ]
    for answer in answers:
        (choice,) = answer["choices"]
        table, text = choice["logprobs"], choice["text"]
        assert text.startswith(prompt) and "</s>" in table["tokens"]
        at = table["tokens"].index("</s>")
        assert text[table["text_offset"][at] :].startswith("</s>the")
        assert text[table["text_offset"][at + 1] :].startswith("the")


def test_a_chat_is_that_of_the_class(client: openai.OpenAI, llm: Llama) -> None:
    expected = llm.create_chat_completion(QUESTION, max_tokens=12, temperature=0)
    answer = chat(client)
    assert answer.choices[0].message.content == expected["choices"][0]["message"]["content"]
    assert answer.choices[0].finish_reason == expected["choices"][0]["finish_reason"]
    assert answer.usage.prompt_tokens == expected["usage"]["prompt_tokens"]
    assert answer.usage.completion_tokens == expected["usage"]["completion_tokens"]
    assert answer.object == "chat.completion" and answer.id.startswith("chatcmpl-") and answer.model == "tiny"


def test_the_prompt_of_a_second_request_is_cached(client: openai.OpenAI) -> None:
    messages = [{"role": "user", "content": "the world " * 30}]
    first, second = (chat(client, messages=messages, logprobs=True) for _ in range(2))
    assert first.usage.prompt_tokens_details.cached_tokens < 32  # the template's own words
    assert second.usage.prompt_tokens_details.cached_tokens == second.usage.prompt_tokens - 1
    values = [[entry.logprob for entry in a.choices[0].logprobs.content] for a in (first, second)]
    assert values[0] == values[1]


def test_a_stream_adds_up_to_the_whole(client: openai.OpenAI) -> None:
    whole = chat(client, logprobs=True, top_logprobs=3)
    chunks = list(
        chat(client, logprobs=True, top_logprobs=3, stream=True, stream_options={"include_usage": True})
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    entries = [
        e for c in chunks if c.choices and c.choices[0].logprobs for e in c.choices[0].logprobs.content
    ]
    assert entries == whole.choices[0].logprobs.content
    assert all(len(entry.top_logprobs) == 3 for entry in entries)
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == whole.choices[0].finish_reason
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_several_answers_have_seeds_of_their_own(client: openai.OpenAI) -> None:
    answer = chat(client, n=3, seed=7, temperature=2)
    texts = [choice.message.content for choice in answer.choices]
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    singles = [chat(client, seed=7 + i, temperature=2).choices[0].message.content for i in range(3)]
    assert texts == singles and len(set(texts)) == 3
    assert answer.usage.completion_tokens > 12  # all answers count, the prompt once
    assert answer.usage.prompt_tokens == chat(client).usage.prompt_tokens
    streamed = ["", "", ""]
    for chunk in chat(client, n=3, seed=7, temperature=2, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert streamed == texts


def test_answers_at_once_are_those_of_answers_alone(client: openai.OpenAI) -> None:
    questions = [[{"role": "user", "content": "hello " * i}] for i in range(1, 13)]

    def ask(question: Any) -> str:
        return str(chat(client, messages=question).choices[0].message.content)

    alone = [ask(question) for question in questions]
    with ThreadPoolExecutor(12) as threads:
        assert list(threads.map(ask, questions)) == alone


def test_stop_strings_and_logit_bias(client: openai.OpenAI) -> None:
    text = chat(client).choices[0].message.content
    stop = text[2:4]
    cut = chat(client, stop=[stop])
    assert cut.choices[0].message.content == text[: text.index(stop)]
    assert cut.choices[0].finish_reason == "stop"
    world = PIECES.index("world")
    forced = chat(client, logit_bias={str(world): 100}, max_tokens=3)
    assert forced.choices[0].message.content == "worldworldworld"


def test_completions(client: openai.OpenAI, llm: Llama) -> None:
    expected = llm("hello the", max_tokens=8, temperature=0, logprobs=2, echo=True)["choices"][0]
    answer = client.completions.create(
        model="tiny", prompt="hello the", max_tokens=8, temperature=0, logprobs=2, echo=True
    )
    assert answer.choices[0].text == expected["text"]
    assert answer.choices[0].logprobs.model_dump() == expected["logprobs"]
    many = client.completions.create(
        model="tiny", prompt=["hello the", "the world"], max_tokens=8, temperature=0, n=2
    )
    assert [choice.index for choice in many.choices] == [0, 1, 2, 3]
    assert many.choices[0].text == many.choices[1].text == expected["text"].removeprefix("hello the")
    ids = llm.tokenize(b"hello the")
    by_ids = client.completions.create(model="tiny", prompt=ids, max_tokens=8, temperature=0)
    assert by_ids.choices[0].text == many.choices[0].text


def test_completions_stream(client: openai.OpenAI) -> None:
    arguments: Any = {"model": "tiny", "prompt": "hello", "max_tokens": 8, "temperature": 0, "echo": True}
    whole = client.completions.create(**arguments, logprobs=1).choices[0]
    chunks = [c.choices[0] for c in client.completions.create(**arguments, logprobs=1, stream=True)]
    assert "".join(chunk.text for chunk in chunks) == whole.text
    assert [t for c in chunks if c.logprobs for t in c.logprobs.tokens] == whole.logprobs.tokens
    assert [t for c in chunks if c.logprobs for t in c.logprobs.text_offset] == whole.logprobs.text_offset


def test_echoed_prompts_that_are_too_long_are_refused_before_any_is_evaluated(running: Running) -> None:
    service = running.server.service
    assert service is not None
    engine = service.models.loaded["tiny"].engine
    steps: list[int] = []
    step, engine.step = engine.step, lambda *a, **k: steps.append(1) or step(*a, **k)  # type: ignore
    try:
        answer = running.post(
            "/v1/completions", model="tiny", prompt=["hello", "hello the world " * 200], echo=True, logprobs=1
        )
    finally:
        del engine.step  # type: ignore
    assert answer.status_code == 400 and "context" in answer.json()["error"]["message"]
    assert not steps


def test_best_of_gives_the_likeliest(client: openai.OpenAI) -> None:
    arguments: Any = {"model": "tiny", "prompt": "hello", "max_tokens": 6, "temperature": 2, "seed": 3}
    all_of_them = client.completions.create(**arguments, n=4, logprobs=0).choices
    best = max(all_of_them, key=lambda c: np.mean(c.logprobs.token_logprobs))
    assert client.completions.create(**arguments, best_of=4).choices[0].text == best.text


def test_a_hole_is_filled(client: openai.OpenAI, llm: Llama) -> None:
    expected = llm("hello", suffix="world", max_tokens=8, temperature=0)["choices"][0]["text"]
    answer = client.completions.create(
        model="tiny", prompt="hello", suffix="world", max_tokens=8, temperature=0
    )
    assert answer.choices[0].text == expected


def test_embeddings(client: openai.OpenAI, running: Running, llm: Llama) -> None:
    texts = ["hello", "the world", "a"]
    answer = client.embeddings.create(model="tiny", input=texts)  # the client asks for base64
    expected = np.array(llm.embed(texts, normalize=True), np.float32)
    np.testing.assert_array_equal(np.array([item.embedding for item in answer.data], np.float32), expected)
    plain = running.post("/v1/embeddings", input="hello").json()
    assert plain["data"][0]["embedding"] == pytest.approx(expected[0].tolist())
    packed = running.post("/v1/embeddings", input="hello", encoding_format="base64").json()
    assert base64.b64decode(packed["data"][0]["embedding"]) == expected[0].astype("<f4").tobytes()
    assert answer.usage.prompt_tokens == sum(len(llm.tokenize(text.encode())) for text in texts)


BAD_CHATS: list[tuple[dict[str, Any], str]] = [
    ({"temperature": -1}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"top_p": 1.5}, "top_p"),
    ({"n": 0}, "n"),
    ({"n": 1.5}, "n"),
    ({"seed": "x"}, "seed"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"stop": 3}, "stop"),
    ({"stop": [""]}, "stop"),
    ({"stop": ["a" * 99_999, "bc"]}, "stop"),
    ({"logit_bias": {"99999": 1}}, "logit_bias"),
    ({"logit_bias": {"x": 1}}, "logit_bias"),
    ({"logit_bias": {"3": 1000}}, "logit_bias"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"logprobs": 3}, "logprobs"),
    ({"stream": "yes"}, "stream"),
    ({"messages": []}, "messages"),
    ({"messages": "hello"}, "messages"),
    ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0]"),
    ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
    ({"tools": [{"type": "retrieval"}]}, "tools[0]"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"modalities": ["audio"]}, "modalities"),
    ({"min_p": 2}, "min_p"),
    ({"samplers": ["nonsense"]}, "samplers"),
]


@pytest.mark.parametrize("change, param", BAD_CHATS, ids=[str(change)[:40] for change, _ in BAD_CHATS])
def test_what_cannot_be_honoured_is_named(running: Running, change: dict[str, Any], param: str) -> None:
    response = running.post("/v1/chat/completions", **{"messages": QUESTION, **change})
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == param and error["type"] == "invalid_request_error"
    assert error["message"].startswith(param)


@pytest.mark.parametrize(
    "change, param",
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": [[1, "x"]]}, "prompt"),
        ({"best_of": 1, "n": 2}, "best_of"),
        ({"best_of": 3, "stream": True}, "best_of"),
        ({"echo": True, "suffix": "x"}, "echo"),
        ({"logprobs": 50}, "logprobs"),
    ],
)
def test_bad_completions(running: Running, change: dict[str, Any], param: str) -> None:
    response = running.post("/v1/completions", **{"prompt": "x", **change})
    assert response.status_code == 400 and response.json()["error"]["param"] == param


def test_errors_have_their_own_classes(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="nobody"):
        chat(client, model="nobody")
    with pytest.raises(openai.BadRequestError, match=r"has \d+ tokens; the context of 256"):
        chat(client, messages=[{"role": "user", "content": "the " * 400}])
    with pytest.raises(openai.BadRequestError, match="dimensions"):
        client.embeddings.create(model="tiny", input="x", dimensions=3)
    with pytest.raises(openai.BadRequestError, match="outside the vocabulary"):
        client.completions.create(model="tiny", prompt=[5, 100000], max_tokens=3)


def test_a_long_answer_ends_with_the_context(client: openai.OpenAI) -> None:
    answer = chat(client, max_tokens=10000, extra_body={"ignore_eos": True})
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.total_tokens == 256


@pytest.mark.parametrize("name", ["template", "tokenizer", "self", "offered", "strange"])
def test_variables_of_the_template_have_any_name(running: Running, name: str) -> None:
    body: dict[str, Any] = {"messages": QUESTION, "max_tokens": 1, "tools": [{"function": {"name": "f"}}]}
    response = running.post("/v1/chat/completions", **body, chat_template_kwargs={name: 1})
    assert response.status_code == 200, response.text


def test_no_variable_of_a_template_meets_a_parameter() -> None:
    """Whatever functions pass the variables on, the names that they give beside them are reserved."""
    for function in (encode_chat, ChatTemplate.render, ChatTemplate.render_forms, shown_tools):
        for name, parameter in inspect.signature(function).parameters.items():
            assert parameter.kind in (parameter.POSITIONAL_ONLY, parameter.VAR_KEYWORD) or name in RESERVED


def test_apply_template_has_the_variables_too(running: Running) -> None:
    shown = [
        running.post("/apply-template", messages=QUESTION, **more).json()["prompt"]
        for more in ({}, {"chat_template_kwargs": {"bos_token": "<b>"}})
    ]
    assert all("hello" in text for text in shown)
    refused = running.post("/apply-template", messages=QUESTION, chat_template_kwargs={"tools": []})
    assert refused.status_code == 400


@pytest.mark.parametrize(
    "url, body, param",
    [
        ("/v1/completions", {"prompt": [5, 100000]}, "prompt"),
        ("/v1/completions", {"prompt": ["x", "the " * 400]}, "prompt[1]"),
        ("/v1/completions", {"prompt": [[5], [100000]]}, "prompt[1]"),
        ("/v1/completions", {"prompt": "the " * 400, "echo": True}, "prompt"),
        ("/v1/completions", {"prompt": "x", "n": 100}, "n"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "the " * 400}]}, "messages"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "the " * 99}] * 9}, "messages"),
        ("/v1/responses", {"input": "the " * 400}, "input"),
        ("/v1/responses/input_tokens", {"input": []}, "input"),
        ("/v1/embeddings", {"input": ["x", "the " * 400]}, "input"),
        ("/v1/embeddings", {"input": [[1, 100000]]}, "input"),
        ("/completion", {"prompt": ["x", [5, 100000]]}, "prompt[1]"),
        ("/completion", {"prompt": ["x", [5, None]]}, "prompt[1]"),
        ("/embedding", {"content": "the " * 400}, "content"),
    ],
)
def test_prompts_that_cannot_be_are_named(running: Running, url: str, body: Any, param: str) -> None:
    response = running.post(url, **body)
    assert response.status_code == 400 and response.json()["error"]["param"] == param, response.text


def test_what_asks_for_nothing_is_no_fault(running: Running) -> None:
    short: Any = {"messages": QUESTION, "max_tokens": 1}
    for quiet in ({"reasoning_effort": "none"}, {"verbosity": "medium"}, {"reasoning_effort": None}):
        assert running.post("/v1/chat/completions", **short, **quiet).status_code == 200
    for loud in ({"reasoning_effort": "low"}, {"verbosity": "high"}):
        response = running.post("/v1/chat/completions", **short, **loud)
        assert response.status_code == 400 and response.json()["error"]["param"] == next(iter(loud))


def test_scored_prompts_wait_for_pages_as_others_do(running: Running) -> None:
    """They held pages beside the scheduler: where memory was short all were refused, and others with them."""

    def ask(i: int) -> Any:
        more = {"echo": True, "logprobs": 2} if i % 3 else {}
        body = {"prompt": [5 + i, *[7, 8, 9] * 25], "max_tokens": 6, "temperature": 0, "ignore_eos": True}
        answer = running.post("/v1/completions", **body, **more)
        assert answer.status_code == 200, answer.text
        return answer.json()["choices"]

    alone = list(map(ask, range(12)))
    service = running.server.service
    assert service is not None
    (model,) = service.models.loaded.values()
    cache = model.engine.cache
    limit, cache.limit_bytes = cache.limit_bytes, 4 * cache.page_bytes
    try:
        with ThreadPoolExecutor(12) as workers:
            assert list(workers.map(ask, range(12))) == alone
    finally:
        cache.limit_bytes = limit


def test_no_alternatives_need_no_logprobs(running: Running) -> None:
    for given, status in (({"top_logprobs": 0}, 200), ({"logprobs": False, "top_logprobs": 1}, 400)):
        answer = running.post("/v1/chat/completions", messages=QUESTION, max_tokens=1, **given)
        assert answer.status_code == status, answer.text


def test_seeds_of_64_bits(running: Running) -> None:
    """Each is a seed: the same answer for the same one, and others for others, whichever bits differ."""
    body: Any = {"messages": QUESTION, "max_tokens": 12, "ignore_eos": True, "temperature": 2}

    def said(seed: int) -> str:
        answer = running.post("/v1/chat/completions", **body, seed=seed)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["choices"][0]["message"]["content"])

    seeds = (3, 3 + 2**40, 3 + 2**63, 2**63 - 1, -2, -3, -(2**63), 2**64 - 5)
    assert [said(seed) for seed in seeds] == [said(seed) for seed in seeds]
    assert len({folded_seed(seed) for seed in seeds}) == len(set(map(said, seeds))) == len(seeds)
    assert [folded_seed(seed) for seed in (-1, 0, 2**32 - 1)] == [-1, 0, 2**32 - 1]
    for seed in (2**64, -(2**63) - 1):
        assert running.post("/v1/chat/completions", **body, seed=seed).status_code == 400


def test_llama_cpps_name_of_the_limit(running: Running) -> None:
    """0 reads the prompt only, as editors' plugins ask ahead of time; below 0 there is none."""
    question = [{"role": "user", "content": "hello"}]
    answer = running.post("/v1/chat/completions", messages=question, n_predict=0, id_slot=0).json()
    assert answer["usage"]["completion_tokens"] == 0 and answer["choices"][0]["finish_reason"] == "length"
    stream = running.post("/v1/chat/completions", messages=question, n_predict=0, stream=True)
    assert stream.status_code == 200 and stream.text.endswith("data: [DONE]\n\n")
    assert running.post("/v1/chat/completions", messages=question, n_predict=-3).status_code == 400
    limits = {"n_predict": 9, "max_tokens": 3}
    three = running.post("/v1/chat/completions", messages=question, ignore_eos=True, **limits).json()
    assert three["usage"]["completion_tokens"] == 3


@pytest.mark.parametrize(
    "change, param",
    [
        ({"chat_template_kwargs": {"check": False}}, "chat_template_kwargs"),
        *[
            ({"chat_template_kwargs": {name: []}}, "chat_template_kwargs")
            for name in ("messages", "tools", "add_generation_prompt", "markers")
        ],
        ({"messages": [*QUESTION, {"role": "assistant", "content": "", "tool_calls": 3}]}, "tool_calls"),
    ],
)
def test_odd_conversations_are_named(running: Running, change: dict[str, Any], param: str) -> None:
    response = running.post("/v1/chat/completions", **{"messages": QUESTION, "max_tokens": 1, **change})
    assert response.status_code == 400 and response.json()["error"]["param"].endswith(param)


def test_the_starter_model_answers(starter_model: Path) -> None:
    question: Any = [{"role": "user", "content": "What is the capital of France?"}]
    with Llama(str(starter_model), n_ctx=512, n_threads=1, kv_type="f32") as llm:
        expected = llm.create_chat_completion(question, max_tokens=16, temperature=0)
    with serving(("smol", starter_model), n_ctx=512) as running:
        client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", timeout=PATIENCE, max_retries=0)
        with client:
            answer = client.chat.completions.create(
                model="smol",
                messages=question,
                max_tokens=16,
                temperature=0,
                extra_body={"repeat_penalty": 1},  # the class has none
            )
            assert answer.choices[0].message.content == expected["choices"][0]["message"]["content"]
            assert "Paris" in str(answer.choices[0].message.content)
