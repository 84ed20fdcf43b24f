"""llama.cpp's endpoints. Covers server/native.py, server/line_limits.py."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from serving import Running, hold, serving, tiny_llama, tiny_path, tiny_server, wait_until
from tiny_model import BOS, vocabulary, write_model

from pyllamacpu import Llama
from pyllamacpu.server import http
from pyllamacpu.server.line_limits import LineLimits

path, running = tiny_path(), tiny_server()
llm = tiny_llama()


def complete(running: Running, **body: Any) -> Any:
    response = running.post("/completion", **{"n_predict": 8, "temperature": 0, **body})
    assert response.status_code == 200, response.text
    return response.json()


def streamed(running: Running, path: str = "/completion", **body: Any) -> list[dict[str, Any]]:
    response = running.post(path, **{"n_predict": 8, "temperature": 0, "stream": True, **body})
    lines = [line for line in response.text.split("\n\n") if line]
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def test_completion(running: Running, llm: Llama) -> None:
    expected = llm("hello the", max_tokens=8, temperature=0)["choices"][0]["text"]
    answer = complete(running, prompt="hello the", return_tokens=True, n_probs=2)
    assert answer["content"] == expected and answer["stop"] is True and answer["stop_type"] == "limit"
    assert len(answer["tokens"]) == answer["tokens_predicted"] == answer["timings"]["predicted_n"] == 8
    assert [len(row["top_logprobs"]) for row in answer["completion_probabilities"]] == [2] * 8
    ids = llm.tokenize(b"hello the")
    assert complete(running, prompt=ids)["content"] == expected
    mixed = complete(running, prompt=["hello", *llm.tokenize(b" the", add_bos=False)])
    assert mixed["tokens_evaluated"] > 2
    many = complete(running, prompt=["hello the", "the world"])
    assert [one["index"] for one in many] == [0, 1] and many[0]["content"] == expected
    word = complete(running, prompt="hello the", stop=[expected[2:4]])
    assert word["stop_type"] == "word" and word["stopping_word"] == expected[2:4]


def test_a_stream_adds_up(running: Running) -> None:
    whole = complete(running, prompt="hello the")
    chunks = streamed(running, prompt="hello the")
    assert "".join(chunk["content"] for chunk in chunks) == whole["content"]
    assert [chunk["stop"] for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1]["tokens_predicted"] == 8


@pytest.mark.parametrize("stop", [[], ["the"], ["e"]])
@pytest.mark.parametrize("form", ["the the", "thé"])
def test_tokens_and_probabilities_of_a_stream_add_up(running: Running, stop: list[str], form: str) -> None:
    """Also those of tokens without a text: the halves of a letter, and what a stop string took."""
    for limit in range(1, 8):
        body = {"prompt": "hello", "n_probs": 1, "return_tokens": True, "stop": stop, "n_predict": limit}
        body |= {"json_schema": {"const": form}, "temperature": 0}
        whole = running.post("/completion", **body).json()
        lines = running.post("/completion", **body, stream=True).text.split("\n\n")
        parts = [json.loads(line.removeprefix("data: ")) for line in lines if line]
        rows = [row["id"] for part in parts for row in part.get("completion_probabilities", ())]
        assert rows == [row["id"] for row in whole["completion_probabilities"]] == whole["tokens"]
        assert [token for part in parts for token in part["tokens"]] == whole["tokens"]
        assert "".join(part["content"] for part in parts) == whole["content"]


def test_forbidden_tokens_are_json(running: Running) -> None:
    """Every number of the answer is one that JSON has."""
    bias = [[token, False] for token in range(200)]
    for stream in (False, True):
        body = {"prompt": "a", "n_predict": 2, "n_probs": 100, "logit_bias": bias, "stream": stream}
        text = running.post("/completion", **body).text
        assert "-9999.0" in text and not re.search("Infinity|NaN", text)
        lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
        shown = json.loads(lines[-1])["generation_settings"]["logit_bias"]
        assert shown == [[token, -9999.0] for token in range(200)]
    assert http.dump({"a": (1.5, float("nan"), float("-inf"))}) == '{"a":[1.5,null,-9999.0]}'


def test_infill(running: Running, llm: Llama) -> None:
    expected = llm("a hello", suffix="world", max_tokens=8, temperature=0)["choices"][0]["text"]
    body = {"input_prefix": "a ", "input_suffix": "world", "prompt": "hello"}
    chunks = streamed(running, "/infill", **body)
    assert "".join(chunk["content"] for chunk in chunks) == expected
    extra = [{"filename": "x.py", "text": "the world"}]
    more = running.post("/infill", **body, input_extra=extra, n_predict=2).json()
    assert more["tokens_evaluated"] > chunks[-1]["tokens_evaluated"]
    assert running.post("/infill", input_prefix="x").status_code == 400


def test_infill_ends_by_lines(running: Running) -> None:
    """An editor's request: soon, not beyond the block, and only the fields that it reads."""
    newline = running.post("/tokenize", content="a\nb").json()["tokens"][1]
    body = {"input_prefix": "a ", "input_suffix": "world", "prompt": "hello", "n_predict": 200, "seed": 1}
    body |= {"temperature": 2, "top_k": 0, "logit_bias": [[newline, 4]], "ignore_eos": True}
    wanted = ["content", "timings/predicted_n", "tokens_cached", "nothing/here"]
    whole = running.post("/infill", **body).json()
    assert whole["stop_type"] == "limit" and whole["tokens_predicted"] == 200 and "\n" in whole["content"]
    soon = running.post("/infill", **body, t_max_predict_ms=1, t_max_prompt_ms=500).json()
    assert soon["stop_type"] == "limit" and soon["tokens_predicted"] < 200
    assert whole["content"].startswith(soon["content"]) and "\n" in soon["content"]
    block = running.post("/infill", **body, n_indent=4, response_fields=wanted).json()
    assert set(block) == {"content", "timings/predicted_n", "tokens_cached"}
    assert whole["content"].startswith(block["content"]) and block["timings/predicted_n"] < 200
    named = running.post("/infill", **body, n_indent=4, samplers=["top_k", "top_p", "infill"])
    assert named.status_code == 200
    lines = block["content"].split("\n")[1:]
    assert lines and not any(line.strip() and not line.startswith("    ") for line in lines)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("a\n    b\n  c\n    d", "a\n    b\n"),
        ("  a\n\n    b\n  ", "  a\n\n    b\n  "),
        ("a\nb", "a\n"),
        ("a", "a"),
        ("\n\t\t\t\tx\n", "\n\t\t\t\tx\n"),
    ],
)
def test_lines_within_a_block(text: str, kept: str) -> None:
    assert LineLimits(n_indent=4).within(text) == kept
    assert LineLimits().within(text) == text


def test_a_model_without_a_hole_cannot_fill_it(tmp_path: Path) -> None:
    other = write_model(tmp_path / "plain.gguf", **vocabulary(fill_in=False))
    with serving(("plain", other)) as running:
        response = running.post("/infill", input_prefix="a", input_suffix="b")
        assert response.status_code == 400 and "fill in the middle" in response.json()["error"]["message"]


def test_tokens_and_templates(running: Running, llm: Llama) -> None:
    ids = running.post("/tokenize", content="hello é", add_special=True).json()["tokens"]
    assert ids == llm.tokenize("hello é".encode(), special=True) and ids[0] == BOS
    pieces = running.post("/tokenize", content="\N{SNOWMAN}", with_pieces=True).json()["tokens"]
    assert [piece["piece"] for piece in pieces][-3:] == [[0xE2], [0x98], [0x83]]
    assert running.post("/detokenize", tokens=ids[1:]).json()["content"] == "hello é"
    assert running.post("/detokenize", tokens=[10**6]).status_code == 400
    prompt = running.post("/apply-template", messages=[{"role": "user", "content": "hi"}]).json()["prompt"]
    assert prompt == "user: hi\nassistant:"


def test_a_prompt_that_does_not_open_the_answer(running: Running) -> None:
    question = [{"role": "user", "content": "hello"}]
    opened, left = (
        running.post("/apply-template", messages=question, add_generation_prompt=opens).json()["prompt"]
        for opens in (True, False)
    )
    assert opened.startswith(left) and len(left) < len(opened)
    counts = [
        running.post(
            "/v1/chat/completions", messages=question, max_tokens=1, add_generation_prompt=opens
        ).json()["usage"]["prompt_tokens"]
        for opens in (True, False)
    ]
    assert counts[0] > counts[1]


def test_a_template_that_shows_no_tools_is_applied_as_chat_applies_it(running: Running) -> None:
    tool = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}
    body = {"messages": [{"role": "user", "content": "hi"}], "tools": [tool]}
    prompt = running.post("/apply-template", **body).json()["prompt"]
    ids = running.post("/tokenize", content=prompt, add_special=True).json()["tokens"]
    usage = running.post("/v1/chat/completions", **body, max_tokens=1).json()["usage"]
    assert "look_up" in prompt and len(ids) == usage["prompt_tokens"]


def test_embedding(running: Running, llm: Llama) -> None:
    answer = running.post("/embedding", content="hello", embd_normalize=-1).json()
    assert answer[0]["embedding"][0] == pytest.approx(llm.embed("hello"))
    unit = running.post("/embedding", content=["hello", "the"]).json()
    assert unit[0]["embedding"][0] == pytest.approx(llm.embed("hello", normalize=True))
    assert len(unit) == 2


@pytest.mark.parametrize("stream", [False, True])
def test_no_tokens_wanted_reads_the_prompt_only(running: Running, stream: bool) -> None:
    prompt = f"hello the world and more {stream}"
    if stream:
        (last,) = [event for event in streamed(running, prompt=prompt, n_predict=0) if event["stop"]]
    else:
        last = complete(running, prompt=prompt, n_predict=0)
    assert last["content"] == "" and last["tokens_predicted"] == 0 and last["stop_type"] == "limit"
    assert last["tokens_evaluated"] > 3 and last["tokens_cached"] < last["tokens_evaluated"]


def test_properties(running: Running) -> None:
    props = running.get("/props").json()
    assert props["default_generation_settings"]["n_ctx"] == 256 and props["bos_token"] == "<s>"
    slots = running.get("/slots").json()
    assert len(slots) == props["total_slots"] and not any(slot["is_processing"] for slot in slots)
    refused = running.post("/rerank", query="x", documents=["y"])
    assert refused.status_code == 400 and "reranker" in refused.json()["error"]["message"]


def test_tokens_have_ids_and_settings_say_how(running: Running) -> None:
    body: dict[str, Any] = {
        "prompt": "hello",
        "n_predict": 4,
        "n_probs": 2,
        "stop": ["zzz"],
        "temperature": 0,
    }
    answer = complete(running, **body, return_tokens=True, ignore_eos=True)
    rows = answer["completion_probabilities"]
    assert [row["id"] for row in rows] == answer["tokens"]
    for row in rows:
        assert row["id"] in [other["id"] for other in row["top_logprobs"]]
    settings = answer["generation_settings"]
    expected = {"n_predict": 4, "n_probs": 2, "stop": ["zzz"], "ignore_eos": True, "temperature": 0}
    assert {name: settings[name] for name in expected} == expected
    params = running.get("/props").json()["default_generation_settings"]["params"]
    assert params.keys() == settings.keys()
    assert (params["n_predict"], params["stop"], params["ignore_eos"]) == (-1, [], False)


def test_biases_of_texts(running: Running, llm: Llama) -> None:
    """llama.cpp's: all tokens of a text get the bias."""
    assert llm.text_tokenizer is not None
    token = llm.text_tokenizer.encode("world", add_special=False)[-1]
    body: dict[str, Any] = {"prompt": "hello", "n_predict": 3, "temperature": 0}
    settings = complete(running, **body, logit_bias=[["world", 5], [7, -1]])["generation_settings"]
    assert [token, 5.0] in settings["logit_bias"] and [7, -1.0] in settings["logit_bias"]
    barred = complete(running, **body, logit_bias=[["world", False]])["generation_settings"]["logit_bias"]
    assert [token, -9999.0] in barred
    long = running.post("/completion", **body, logit_bias=[["a" * 2000, 1]])
    assert long.status_code == 400 and long.json()["error"]["param"] == "logit_bias"


def test_adaptive_p_has_its_fields(running: Running) -> None:
    body: dict[str, Any] = {"prompt": "hello", "n_predict": 3, "seed": 1, "samplers": ["top_k", "adaptive_p"]}
    settings = complete(running, **body, adaptive_target=0.4, adaptive_decay=0.5)["generation_settings"]
    assert (settings["adaptive_target"], settings["adaptive_decay"]) == (0.4, 0.5)


def test_slots_that_are_all_busy(tmp_path: Path) -> None:
    many = 1 << 16  # tokens, so that an answer does not end meanwhile
    model = write_model(tmp_path / "long.gguf", n_ctx=many)
    with serving(("tiny", model), n_ctx=many, parallel=1) as running:
        assert running.get("/slots?fail_on_no_slot=1").status_code == 200
        held = hold(running, 1, max_tokens=many - 100)
        try:
            wait_until(lambda: running.get("/slots").json()[0]["is_processing"])
            busy = running.get("/slots?fail_on_no_slot=1")
            assert busy.status_code == 503 and busy.headers["retry-after"]
            assert running.get("/slots").status_code == 200
        finally:
            for connection in held:
                connection.close()
        running.wait_idle()


@pytest.mark.parametrize("url", ["/v1/reranking", "/v1/rerank", "/reranking", "/rerank"])
def test_a_language_model_ranks_nothing(running: Running, url: str) -> None:
    response = running.post(url, query="x", documents=["y"])
    assert response.status_code == 400 and response.json()["error"]["code"] == "not_supported"


@pytest.mark.parametrize(
    "change, says",
    [
        ({"prompt": None}, "prompt"),
        ({"n_predict": -3}, "n_predict"),
        ({"temperature": -1}, "temperature"),
        ({"logit_bias": [[10**6, 1]]}, "logit_bias"),
        ({"n_probs": -1}, "n_probs"),
        ({"response_fields": 3}, "response_fields"),
        ({"n_indent": -1}, "n_indent"),
    ],
)
def test_what_cannot_be_honoured_is_named(running: Running, change: dict[str, Any], says: str) -> None:
    response = running.post("/completion", **{"prompt": "x", **change})
    assert response.status_code == 400
    assert response.json()["error"]["message"].startswith(says)


def test_drafts_are_the_servers_and_a_request_may_decline(path: Path, running: Running) -> None:
    """The answers are the same; timings count the guesses, of which a request may want none."""
    body = {"prompt": "hello hello hello hello", "n_predict": 60, "n_probs": 2}
    expected = complete(running, **body)
    with serving(("tiny", path), ("other", path), draft="lookup") as drafting:
        ways: list[dict[str, Any]] = [{}, {"draft": False}, {"speculative.n_max": 0}]
        asked = [complete(drafting, **body, **way) for way in ways]
    same = ("content", "tokens_predicted", "completion_probabilities")
    for answer in asked:
        assert [answer[name] for name in same] == [expected[name] for name in same]
    assert "draft_n" not in asked[1]["timings"] and "draft_n" not in asked[2]["timings"]
