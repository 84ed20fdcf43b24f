"""The `Llama` class: completions, chats and embeddings, in the shapes of the OpenAI API.

Covers api/completions.py, api/embeddings.py, api/prompts.py, api/responses.py, api/sampling_arguments.py,
engine/pooling.py.
"""

# ruff: noqa: F811 (fixtures are imported and then used as arguments)

from __future__ import annotations

import inspect
import json
import pickle
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_llama import N_VOCAB, greedy, llm, nothing_was_warned_of, path, starter, text_of  # noqa: F401
from tiny_model import BOS, DIM, EOS, MID, PIECES, PRE, SUF, write_model

from pyllamacpu import Llama
from pyllamacpu.errors import ContextError, OptionError, TemplateError

# Completions


def test_a_completion_has_the_openai_shape(llm: Llama) -> None:
    answer = llm.create_completion("hello", max_tokens=5, temperature=0.0)
    assert set(answer) == {"id", "object", "created", "model", "choices", "usage"}
    assert answer["object"] == "text_completion"
    assert answer["id"].startswith("cmpl-")
    (choice,) = answer["choices"]
    assert set(choice) == {"text", "index", "logprobs", "finish_reason"}
    assert (choice["index"], choice["logprobs"], choice["finish_reason"]) == (0, None, "length")
    assert answer["usage"] == {"prompt_tokens": 2, "completion_tokens": 5, "total_tokens": 7}
    assert answer["model"] == llm.model_path
    assert llm("hello", model="name")["model"] == "name"


def test_calling_is_create_completion(llm: Llama) -> None:
    assert text_of(llm("hello", None, 7, 0.0)) == greedy(llm, "hello", 7)
    assert inspect.signature(Llama.create_completion).parameters["max_tokens"].default == 16


def test_prompts_as_ids_are_taken_as_they_are(llm: Llama) -> None:
    ids = llm.tokenize(b"hello")
    assert greedy(llm, ids) == greedy(llm, "hello")
    assert llm([9], max_tokens=1)["usage"]["prompt_tokens"] == 1


def test_an_empty_prompt(llm: Llama, tmp_path: Path) -> None:
    assert llm("", max_tokens=1)["usage"]["prompt_tokens"] == 1  # BOS
    for call in (lambda: llm([]), lambda: llm.stream([]), lambda: llm.generate([]).send(None)):
        with pytest.raises(OptionError, match="empty"):
            call()
    path = write_model(tmp_path / "no-bos.gguf", tokenizer__ggml__add_bos_token=False)
    with Llama(str(path)) as no_bos, pytest.raises(OptionError, match="empty"):
        no_bos("")


def test_a_spelled_bos_is_not_doubled(llm: Llama) -> None:
    assert llm("<s>hello", max_tokens=1)["usage"] == llm("hello", max_tokens=1)["usage"]


def test_streamed_chunks_are_the_whole_answer(llm: Llama) -> None:
    whole = llm("hello", max_tokens=40, temperature=0.9, seed=7)
    chunks = list(llm("hello", max_tokens=40, temperature=0.9, seed=7, stream=True))
    assert "".join(map(text_of, chunks)) == text_of(whole)
    assert {chunk["id"] for chunk in chunks} == {chunks[0]["id"]}
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + [whole["choices"][0]["finish_reason"]]
    assert text_of(chunks[-1]) == ""
    assert "\ufffd" not in text_of(chunks[-2]) or "\ufffd" in text_of(whole)


def test_seeds(path: Path, llm: Llama) -> None:
    hot = {"max_tokens": 20, "temperature": 3.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    assert text_of(llm("a", seed=1, **hot)) == text_of(llm("a", seed=1, **hot))
    assert text_of(llm("a", seed=1, **hot)) != text_of(llm("a", seed=2, **hot))
    assert text_of(llm("a", **hot)) != text_of(llm("a", **hot))
    pairs = []
    for _ in range(2):
        with Llama(str(path), n_ctx=128, seed=5) as seeded:
            pairs.append((text_of(seeded("a", **hot)), text_of(seeded("a", **hot))))
    assert pairs[0] == pairs[1]
    assert pairs[0][0] != pairs[0][1]
    llm.set_seed(5)
    one = list(islice(llm.generate([BOS], temp=3.0), 10))
    assert one == list(islice(llm.generate([BOS], temp=3.0), 10))


def test_stop_strings_end_the_answer(llm: Llama) -> None:
    text = greedy(llm, "hello", 30)
    assert len(text) >= 6
    stop = text[3:5]
    answer = llm("hello", max_tokens=30, temperature=0.0, stop=stop)
    assert text_of(answer) == text[: text.index(stop)]
    assert answer["choices"][0]["finish_reason"] == "stop"
    streamed = llm("hello", max_tokens=30, temperature=0.0, stop=[stop, "never"], stream=True)
    assert "".join(map(text_of, streamed)) == text_of(answer)
    with pytest.raises(OptionError, match="stop"):
        llm("hello", stop=[""])


def test_logit_bias_can_force_a_token(llm: Llama) -> None:
    hello = PIECES.index("▁hello")
    assert text_of(llm("a", max_tokens=3, temperature=0.0, logit_bias={hello: 100.0})) == " hello" * 3
    assert text_of(llm("a", max_tokens=1, temperature=0.0, logit_bias={str(hello): 100})) == " hello"
    end = llm("a", max_tokens=3, logit_bias={EOS: 100.0})
    assert (text_of(end), end["choices"][0]["finish_reason"]) == ("", "stop")
    assert end["usage"]["completion_tokens"] == 0


def test_max_tokens(llm: Llama) -> None:
    ban_end = {EOS: -np.inf}
    for limit in (None, 0, -1, 10_000):
        usage = llm("hello", max_tokens=limit, logit_bias=ban_end)["usage"]
        assert usage["total_tokens"] == 128


def test_prompts_that_do_not_fit_are_errors_at_once(llm: Llama) -> None:
    for call in (
        lambda: llm([6] * 128),
        lambda: llm([6] * 500, stream=True),
        lambda: llm("x" * 500),
        lambda: llm.stream([6] * 128),
        lambda: llm.create_chat_completion([{"role": "user", "content": "x" * 500}], stream=True),
    ):
        with pytest.raises(ContextError) as caught:
            call()
        assert isinstance(caught.value, ValueError)
    assert llm([6] * 127)["usage"]["completion_tokens"] <= 1


def test_logprobs_and_echo(llm: Llama) -> None:
    answer = llm("hello the", max_tokens=4, temperature=0.0, logprobs=3, echo=True)
    table = answer["choices"][0]["logprobs"]
    prompt = llm.tokenize(b"hello the")
    assert text_of(answer).startswith("hello the")
    n = len(prompt) - 1 + answer["usage"]["completion_tokens"]
    assert [len(column) for column in table.values()] == [n] * 4
    assert table["token_logprobs"][0] is None
    rows = llm.logits(prompt).astype(np.float64)
    for i in range(1, len(prompt) - 1):
        row = rows[i] - np.log(np.exp(rows[i]).sum())
        assert table["token_logprobs"][i] == pytest.approx(row[prompt[i + 1]], abs=1e-4)
        assert max(table["top_logprobs"][i].values()) == pytest.approx(row.max(), abs=1e-4)
    assert table["text_offset"] == sorted(table["text_offset"])
    plain = llm("hello the", max_tokens=4, temperature=0.0, logprobs=3)["choices"][0]["logprobs"]
    assert plain["token_logprobs"] == table["token_logprobs"][len(prompt) - 1 :]
    assert plain["text_offset"][0] == len("hello the")
    chunks = llm("hello the", max_tokens=4, temperature=0.0, logprobs=3, stream=True)
    streamed = [lp for chunk in chunks if (lp := chunk["choices"][0]["logprobs"])]
    assert [value for lp in streamed for value in lp["token_logprobs"]] == plain["token_logprobs"]
    assert [value for lp in streamed for value in lp["text_offset"]] == plain["text_offset"]


@pytest.mark.parametrize("prompt", ["", "hello", "hello<FILL_ME>e", [BOS, PRE], [PIECES.index("▁hello")]])
@pytest.mark.parametrize("suffix", [None, "the"])
def test_echoed_prompts_in_streams_and_around_holes(llm: Llama, prompt: Any, suffix: str | None) -> None:
    """Each is the same in pieces and as a whole; offsets are places in the text of the choice. The tokens
    around a hole are not those of the prompt, and have no place in it.
    """
    options: dict[str, Any] = {"suffix": suffix, "echo": True, "logprobs": 1, "max_tokens": 5, "seed": 1}
    (whole,) = llm(prompt, **options)["choices"]
    table = whole["logprobs"]
    pieces = [chunk["choices"][0] for chunk in llm(prompt, stream=True, **options)]
    assert "".join(piece["text"] for piece in pieces) == whole["text"]
    for name, column in table.items():
        assert [value for piece in pieces for value in (piece["logprobs"] or {}).get(name, ())] == column
    shown = prompt if isinstance(prompt, str) else llm.detokenize([BOS, *prompt]).decode()
    assert whole["text"].startswith(shown)
    if suffix is not None or "<FILL_ME>" in prompt:
        assert len(table["tokens"]) == 5 and table["text_offset"][0] == len(shown)


def test_filling_in_the_middle(llm: Llama) -> None:
    seen: list[list[int]] = []

    def look(ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        seen.append(ids.tolist())
        return scores

    llm("the", suffix="the", max_tokens=1, logits_processor=look)
    the = PIECES.index("▁the")
    plain = [PIECES.index("th"), PIECES.index("e")]
    assert seen[0][:4] == [BOS, PRE, the, SUF]
    assert seen[0][-1] == MID
    assert llm.detokenize(seen[0][4:-1]) == b"the"
    assert the not in seen[0][4:-1]
    assert set(plain) & set(seen[0][4:-1]) or PIECES.index("t") in seen[0][4:-1]


def test_a_suffix_for_a_model_that_cannot_fill_in_is_appended(tmp_path: Path) -> None:
    tokens = [piece.replace("<PRE>", "<x>").replace("<SUF>", "<y>") for piece in PIECES]
    path = write_model(tmp_path / "plain.gguf", tokenizer__ggml__tokens=tokens)
    with Llama(str(path)) as llm:
        with pytest.warns(UserWarning, match="cannot fill in the middle"):
            text = text_of(llm("the", suffix="!END", max_tokens=2, temperature=0.0))
        assert text == greedy(llm, "the", 2) + "!END"
        chunks = llm("the", suffix="!END", max_tokens=2, temperature=0.0, stream=True)
        assert "".join(map(text_of, chunks)) == text


def test_options_of_the_sampler(llm: Llama) -> None:
    once = greedy(llm, "a", 20)
    assert text_of(llm("a", max_tokens=20, temperature=0.0, repeat_penalty=1e6)) != once
    assert text_of(llm("a", max_tokens=20, top_k=1)) == once
    assert text_of(llm("a", max_tokens=20, temperature=0.0, top_k=1, top_p=1.0, seed=3)) == once
    assert len(text_of(llm("a", max_tokens=20, mirostat_mode=2, seed=1))) > 0
    assert len(text_of(llm("a", max_tokens=20, dry_multiplier=0.8, xtc_probability=0.5, seed=1))) > 0
    for wrong in (
        {"top_p": 7.0},
        {"repeat_penalty": 0.0},
        {"mirostat_mode": 3},
        {"logit_bias": {N_VOCAB: 1.0}},
    ):
        with pytest.raises(OptionError):
            llm("a", max_tokens=1, **wrong)


def test_options_without_effect_are_told_of(llm: Llama) -> None:
    with pytest.warns(UserWarning, match="tfs_z=0.5 does nothing"):
        llm("a", max_tokens=1, tfs_z=0.5)
    with pytest.warns(UserWarning, match="top_k does nothing with mirostat=2"):
        llm("a", max_tokens=1, top_k=7, mirostat_mode=2)


# Chat

HELLO = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hello"}]


def chat(llm: Llama, messages: Any = HELLO, **options: Any) -> Any:
    return llm.create_chat_completion(messages, **{"max_tokens": 6, "temperature": 0.0, **options})


def test_a_chat_completion_has_the_openai_shape(llm: Llama) -> None:
    answer = chat(llm)
    assert answer["object"] == "chat.completion"
    assert answer["id"].startswith("chatcmpl-")
    (choice,) = answer["choices"]
    assert choice["message"]["role"] == "assistant"
    assert choice["message"]["content"] == greedy(llm, "system: be kind\nuser: hello\nassistant:", 6)
    assert choice["finish_reason"] == "length"
    assert choice["logprobs"] is None
    assert answer["usage"]["completion_tokens"] == 6


def test_a_streamed_chat(llm: Llama) -> None:
    whole = chat(llm)["choices"][0]["message"]["content"]
    chunks = list(chat(llm, stream=True))
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant"}
    assert deltas[-1] == {}
    assert "".join(delta["content"] for delta in deltas[1:-1]) == whole
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + [
        "length"
    ]


def test_chat_logprobs(llm: Llama) -> None:
    content = chat(llm, logprobs=True, top_logprobs=2)["choices"][0]["logprobs"]["content"]
    assert len(content) == 6
    assert all(len(entry["top_logprobs"]) in (1, 2) for entry in content)
    assert all(entry["logprob"] <= 0 and isinstance(entry["bytes"], list) for entry in content)
    assert len(chat(llm, logprobs=True)["choices"][0]["logprobs"]["content"]) == 6
    assert chat(llm, top_logprobs=2)["choices"][0]["logprobs"] is None


SCHEMA = {"type": "object", "properties": {"a": {"enum": ["x"]}}, "required": ["a"]}
FUNCTION = {"name": "f", "parameters": SCHEMA}


@pytest.mark.parametrize(
    "options",
    [
        {"tools": [{"function": FUNCTION}], "tool_choice": {"type": "function", "function": {"name": "f"}}},
        {"functions": [FUNCTION], "function_call": {"name": "f"}},
    ],
)
def test_a_named_tool_is_called(path: Path, options: dict[str, Any]) -> None:
    llm = Llama(str(path), n_ctx=256)
    (choice,) = chat(llm, max_tokens=60, **options)["choices"]
    (call,) = choice["message"]["tool_calls"]
    assert call["function"]["name"] == "f" and choice["message"]["content"] is None
    if choice["finish_reason"] == "tool_calls":
        assert json.loads(call["function"]["arguments"]) == {"a": "x"}
    else:  # this model likes spaces
        assert choice["finish_reason"] == "length" and call["function"]["arguments"].startswith("{")
    chunks = list(chat(llm, max_tokens=60, stream=True, **options))
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    pieces = [delta["tool_calls"][0]["function"]["arguments"] for delta in deltas if "tool_calls" in delta]
    assert "".join(pieces).startswith("{")
    missing = {"tools": [], "tool_choice": {"function": {"name": "g"}}}
    with pytest.raises(OptionError, match="'g' is not among the tools"):
        chat(llm, **missing)
    llm.close()


@pytest.mark.parametrize(
    "messages",
    [[], "hello", {"role": "user"}, [{"content": "a"}], ["a"], None],
)
def test_messages_that_are_none(llm: Llama, messages: Any) -> None:
    with pytest.raises(OptionError, match="messages"):
        chat(llm, messages)


def test_content_parts(llm: Llama) -> None:
    parts = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
    assert chat(llm, [HELLO[0], {"role": "user", "content": parts}])["choices"] == chat(llm)["choices"]
    with pytest.raises(OptionError, match="read no images"):
        chat(llm, [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}])


@pytest.mark.parametrize("content", [5, b"hello", {"type": "text", "text": "hello"}, [{"type": "text"}]])
def test_contents_that_are_no_text(llm: Llama, content: Any) -> None:
    with pytest.raises(OptionError, match=r"messages\[1\].*text"):
        chat(llm, [HELLO[0], {"role": "user", "content": content}])


@pytest.mark.parametrize("calls", [5, "look", {"name": "look"}])
def test_tool_calls_that_are_no_list(llm: Llama, calls: Any) -> None:
    with pytest.raises(OptionError, match=r"messages\[0\]: tool_calls must be a list"):
        chat(llm, [{"role": "assistant", "content": "a", "tool_calls": calls}, HELLO[0]])


def test_tools_that_are_none_beside_a_forced_one(llm: Llama) -> None:
    choice = {"type": "function", "function": {"name": "look"}}
    with pytest.raises(OptionError):
        chat(llm, HELLO, tools=[1], tool_choice=choice)


def test_chat_formats(path: Path) -> None:
    with Llama(str(path), chat_format="llama2") as llm:
        prompt = "[INST] <<SYS>>\nbe kind\n<</SYS>>\n\nhello [/INST]"
        assert chat(llm)["choices"][0]["message"]["content"] == greedy(llm, prompt, 6)
    turns = [{"role": role, "content": role} for role in ("assistant", "user")]
    with Llama(str(path), chat_template="{{ messages[-1].content }}") as llm:
        assert chat(llm)["choices"][0]["message"]["content"] == greedy(llm, "be kind\n\nhello", 6)
        with pytest.warns(UserWarning, match="leaves out all or some of message 0"):
            assert chat(llm, turns)["choices"][0]["message"]["content"] == greedy(llm, "user", 6)
    for wrong in ({"chat_format": "nonsense"}, {"chat_template": "{% if %}"}):
        with pytest.raises(TemplateError):
            Llama(str(path), **wrong)


def test_a_broken_template_in_the_file_only_stops_chats(tmp_path: Path) -> None:
    path = write_model(tmp_path / "broken.gguf", tokenizer__chat_template="{% for %}")
    with Llama(str(path)) as llm:
        assert llm("a", max_tokens=1)["choices"]
        with pytest.raises(TemplateError):
            chat(llm)


def test_a_guessed_template_is_told_of(tmp_path: Path) -> None:
    path = write_model(tmp_path / "none.gguf", tokenizer__chat_template=None)
    with Llama(str(path)) as llm, pytest.warns(UserWarning, match="no chat template"):
        chat(llm)


def test_a_chat_handler(path: Path) -> None:
    def handler(*, llama: Llama, messages: Any, max_tokens: int | None, **rest: Any) -> Any:
        return (llama, messages, max_tokens, rest["temperature"])

    with Llama(str(path), chat_handler=handler) as llm:
        assert llm.create_chat_completion(HELLO, max_tokens=3) == (llm, HELLO, 3, 0.2)


def test_special_tokens_in_a_users_words_stay_text(llm: Llama) -> None:
    answer = chat(llm, [{"role": "user", "content": "</s>"}])
    spelled = len(llm.tokenize(b"user: </s>\nassistant:"))
    assert answer["usage"]["prompt_tokens"] == spelled


# Embeddings


def test_embeddings(llm: Llama, path: Path) -> None:
    states = llm.engine.hidden(llm.tokenize(b"hello the"))
    mean = llm.embed("hello the")
    assert len(mean) == DIM
    assert mean == pytest.approx(states.mean(axis=0), abs=1e-6)
    unit = llm.embed("hello the", normalize=True)
    assert np.linalg.norm(unit) == pytest.approx(1)
    assert np.dot(unit, mean) == pytest.approx(np.linalg.norm(mean), rel=1e-5)
    expected = {0: states, 1: states.mean(axis=0), 2: states[0], 3: states[-1]}
    for number, value in expected.items():
        with Llama(str(path), n_ctx=128, kv_type="f32", pooling_type=number, embedding=True) as other:
            assert np.allclose(other.embed("hello the"), value, atol=1e-6)


def test_the_shape_of_an_embedding_answer(llm: Llama) -> None:
    answer = llm.create_embedding(["hello", "hello the"])
    assert [item["index"] for item in answer["data"]] == [0, 1]
    assert answer["data"][0]["embedding"] == llm.embed("hello")
    assert answer["usage"] == {"prompt_tokens": 5, "total_tokens": 5}
    assert answer["object"] == "list"
    assert len(llm.create_embedding("hello")["data"]) == 1
    assert llm.embed(["hello"], return_count=True) == ([llm.embed("hello")], 2)


def test_texts_too_long_to_embed(llm: Llama) -> None:
    llm.eval([BOS, 9])
    with pytest.raises(ContextError, match=r"^input\[1\]: \d+ tokens do not fit"):
        llm.embed(["x", "x" * 500], truncate=False)
    with pytest.warns(UserWarning, match="leaves out a text's tokens behind the first 128"):
        assert len(llm.embed("x" * 500)) == DIM
    assert llm.create_embedding("x" * 500)["usage"]["prompt_tokens"] == 128
    assert llm.n_tokens == 2


# The starter model


def test_a_text_without_tokens_is_named(starter: Llama) -> None:
    with pytest.raises(OptionError, match=r"^input\[1\]: nothing to embed"):
        starter.embed(["a", ""])
    with pytest.raises(OptionError, match=r"^input: nothing to embed"):
        starter.embed("")


def test_the_starter_model_knows_paris(starter: Llama) -> None:
    assert greedy(starter, "The capital of France is", 4).startswith(" Paris.")
    # The margin is small in a chat (0.08 between the first two words), so leave the second best out.
    question = [{"role": "user", "content": "What is the capital of France?"}]
    options = {"temperature": 0.0, "max_tokens": 32, "logit_bias": {starter.tokenize(b"L")[0]: -5.0}}
    answer = starter.create_chat_completion(question, **options)
    assert answer["choices"][0]["message"]["content"] == "The capital of France is Paris."
    assert answer["choices"][0]["finish_reason"] == "stop"
    chunks = starter.create_chat_completion(question, stream=True, **options)
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert text == answer["choices"][0]["message"]["content"]


def test_the_second_turn_begins_with_the_first(starter: Llama) -> None:
    turns = [{"role": "user", "content": "Name a colour."}]
    starter.reset()
    answer = starter.create_chat_completion(turns, temperature=0.0, max_tokens=16)
    first = list(starter.eval_tokens)
    turns += [answer["choices"][0]["message"], {"role": "user", "content": "Another one."}]
    starter.create_chat_completion(turns, temperature=0.0, max_tokens=1)
    assert list(starter.eval_tokens)[: len(first)] == first


def test_emoji_arrive_whole(starter: Llama) -> None:
    emoji = "🎉👩‍👩‍👧"
    script = starter.tokenize(emoji.encode(), add_bos=False)
    position = iter(script)

    def follow(ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        scores[:] = -np.inf
        scores[next(position)] = 0
        return scores

    chunks = list(starter("x", max_tokens=len(script), logits_processor=follow, stream=True))
    assert "".join(map(text_of, chunks)) == emoji
    assert all("\ufffd" not in text_of(chunk) for chunk in chunks)


def test_a_chat_format_that_is_assigned_counts(path: Path) -> None:
    """In llama-cpp-python it does; here it was ignored."""
    messages = [{"role": "user", "content": "hello"}]
    with Llama(str(path), chat_format="llama-2") as named:
        wanted = named.create_chat_completion(messages, max_tokens=4, temperature=0)["usage"]
    with Llama(str(path)) as llm:
        own = llm.create_chat_completion(messages, max_tokens=4, temperature=0)["usage"]
        llm.chat_format = "llama-2"
        assert llm.chat_format == "llama-2"
        assert llm.create_chat_completion(messages, max_tokens=4, temperature=0)["usage"] == wanted != own
        with pytest.raises(TemplateError, match="no chat format 'nonsense'"):
            llm.chat_format = "nonsense"
        assert llm.chat_format == "llama-2"
        assert pickle.loads(pickle.dumps(llm)).chat_format == "llama-2"
        llm.chat_format = None
        assert llm.create_chat_completion(messages, max_tokens=4, temperature=0)["usage"] == own


def test_a_template_of_another_family_is_warned_of(path: Path) -> None:
    messages = [{"role": "user", "content": "hello"}]
    for chosen, names in (
        ("chatml", "<|im_end|>, <|im_start|>"),
        ("llama3", "<|eot_id|>, <|start_header_id|>"),
    ):
        with Llama(str(path), chat_format=chosen) as llm:
            with pytest.warns(UserWarning, match="another kind of model") as found:
                llm.create_chat_completion(messages, max_tokens=1)
            said = " ".join(str(warning.message) for warning in found)
            assert all(name in said for name in names.split(", "))


def test_a_context_beyond_the_training_is_warned_of(path: Path) -> None:
    with pytest.warns(UserWarning, match="longer than the 256 that the model was trained with"):
        Llama(str(path), n_ctx=300).close()
    for quiet in ({"n_ctx": 256}, {"n_ctx": 0}, {}, {"n_ctx": 400, "rope_freq_scale": 0.5}):
        Llama(str(path), **quiet).close()
