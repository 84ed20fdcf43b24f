"""Tools of the `Llama` class: OpenAI's shapes, whole and streamed. Covers api/tools.py."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_llama import nothing_was_warned_of  # noqa: F401
from tiny_model import write_model

from pyllamacpu import Llama
from pyllamacpu.api.grammar import LlamaGrammar
from pyllamacpu.errors import OptionError

SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}
TIME = {
    "type": "function",
    "function": {"name": "time", "parameters": {"type": "object", "additionalProperties": False}},
}
CALL = '{"name": "weather", "parameters": {"city": "Rome"}}'
QUESTION = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Llama]:
    path: Path = write_model(tmp_path_factory.mktemp("tools") / "tiny.gguf", n_ctx=2048)
    with Llama(str(path), n_ctx=2048, verbose=False) as found:
        yield found


def chat(llm: Llama, **more: Any) -> Any:
    return llm.create_chat_completion(QUESTION, **{"max_tokens": 200, "seed": 1, **more})


def saying(text: str) -> dict[str, Any]:
    """Arguments with which a model of random weights writes `text`."""
    return {"grammar": LlamaGrammar.from_choice([text]), "tools": [WEATHER, TIME]}


def streamed(llm: Llama, **more: Any) -> tuple[str, list[dict[str, Any]], Any]:
    """(text, calls, finish reason) of a stream."""
    chunks = list(chat(llm, stream=True, **more))
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant"} and deltas[-1] == {}
    calls = [call for delta in deltas for call in delta.get("tool_calls", ())]
    text = "".join(delta.get("content") or "" for delta in deltas)
    return text, calls, chunks[-1]["choices"][0]["finish_reason"]


@pytest.mark.parametrize(
    "text, expected",
    [
        (CALL, [("weather", {"city": "Rome"})]),
        ("[weather(city='Rome'), time()]", [("weather", {"city": "Rome"}), ("time", {})]),
        (f"{CALL}; {CALL}", [("weather", {"city": "Rome"})] * 2),
    ],
)
def test_calls_of_the_models_own_accord(llm: Llama, text: str, expected: list[Any]) -> None:
    choice = chat(llm, **saying(text))["choices"][0]
    calls = choice["message"]["tool_calls"]
    assert choice["finish_reason"] == "tool_calls" and choice["message"]["content"] is None
    assert [(c["function"]["name"], json.loads(c["function"]["arguments"])) for c in calls] == expected
    assert len({call["id"] for call in calls}) == len(calls)
    content, parts, reason = streamed(llm, **saying(text))
    assert (content, reason) == ("", "tool_calls")
    assert [part["function"] for part in parts] == [call["function"] for call in calls]
    assert [part["index"] for part in parts] == list(range(len(calls)))


@pytest.mark.parametrize("text", [f"Say {CALL}", CALL + " is it", '{"name": "other", "parameters": {}}'])
def test_prose_stays_prose(llm: Llama, text: str) -> None:
    message = chat(llm, **saying(text))["choices"][0]["message"]
    assert message == {"role": "assistant", "content": text}
    content, calls, reason = streamed(llm, **saying(text))
    assert (content, calls, reason) == (text, [], "stop")


def test_without_tools_a_call_is_text(llm: Llama) -> None:
    for more in ({"tools": None}, {"tool_choice": "none"}):
        assert chat(llm, **{**saying(CALL), **more})["choices"][0]["message"]["content"] == CALL


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_a_required_call_comes(llm: Llama, choice: Any) -> None:
    answer = chat(llm, tools=[TIME, WEATHER], tool_choice=choice)["choices"][0]
    (call,) = answer["message"]["tool_calls"]
    assert answer["finish_reason"] == "tool_calls"
    arguments = json.loads(call["function"]["arguments"])
    if call["function"]["name"] == "weather":
        assert arguments in ({"city": "Paris"}, {"city": "Rome"})
    else:
        assert choice == "required" and call["function"]["name"] == "time" and arguments == {}
    parts = streamed(llm, tools=[TIME, WEATHER], tool_choice=choice)[1]
    assert "".join(part["function"]["arguments"] for part in parts) == call["function"]["arguments"]


def test_a_call_that_is_cut_off_is_text(llm: Llama) -> None:
    choice = chat(llm, tools=[WEATHER], tool_choice="required", max_tokens=4)["choices"][0]
    assert choice["finish_reason"] == "length" and "tool_calls" not in choice["message"]
    content, calls, reason = streamed(llm, tools=[WEATHER], tool_choice="required", max_tokens=4)
    assert (content, calls, reason) == (choice["message"]["content"], [], "length")


def test_functions_are_the_older_shape(llm: Llama) -> None:
    functions = [WEATHER["function"]]
    own = {**saying(CALL), "tools": None, "functions": functions}
    answer = chat(llm, **own)["choices"][0]
    assert answer["finish_reason"] == "function_call"
    assert answer["message"]["function_call"]["name"] == "weather"
    chunks = list(chat(llm, **own, stream=True))
    assert chunks[-2]["choices"][0]["delta"] == {"function_call": answer["message"]["function_call"]}
    two = {**saying(f"{CALL}\n{CALL}"), "tools": None, "functions": functions}
    assert chat(llm, **two)["choices"][0]["message"]["content"] == f"{CALL}\n{CALL}"  # no room for two


def test_tools_reach_the_prompt(llm: Llama) -> None:
    def n_prompt(**more: Any) -> int:
        return chat(llm, max_tokens=1, **more)["usage"]["prompt_tokens"]

    assert n_prompt(tools=[WEATHER]) > n_prompt()
    assert n_prompt(tools=[WEATHER], tool_choice="none") == n_prompt()
    assert n_prompt(functions=[WEATHER["function"]]) == n_prompt(tools=[WEATHER], tool_choice="auto")


def test_a_template_without_tools_shows_them_as_words(tmp_path: Path) -> None:
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    path = write_model(tmp_path / "plain.gguf", n_ctx=2048, tokenizer__chat_template=template)
    with Llama(str(path), n_ctx=2048, verbose=False) as llm:
        plain, told = chat(llm, max_tokens=1), chat(llm, max_tokens=1, tools=[WEATHER])
        assert told["usage"]["prompt_tokens"] > plain["usage"]["prompt_tokens"] + len("weather")


def test_logprobs_beside_calls(llm: Llama) -> None:
    chunks = list(chat(llm, stream=True, logprobs=True, **saying(CALL)))
    tables = [chunk["choices"][0]["logprobs"] for chunk in chunks]
    n_tokens = chat(llm, **saying(CALL))["usage"]["completion_tokens"]
    assert sum(len(table["content"]) for table in tables if table) == n_tokens


@pytest.mark.parametrize(
    "options, message",
    [
        ({"tools": [{}]}, r"tools\[0\]"),
        ({"tools": [{"type": "function", "function": {"name": ""}}]}, r"tools\[0\]"),
        ({"functions": [{"name": "f"}, {}]}, r"functions\[1\]"),
        ({"functions": [{"name": "f"}], "tools": [WEATHER]}, "not both"),
        ({"tools": [WEATHER], "tool_choice": "sometimes"}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"function": {"name": "nope"}}}, "nope"),
        ({"functions": [{"name": "f"}], "function_call": {"name": "g"}}, "'g'"),
        ({"tools": [], "tool_choice": "required"}, "no tools"),
        ({"tools": [{"type": "function", "function": {"name": "f", "strict": True}}]}, "strict"),
        ({**saying("x"), "tool_choice": "required"}, "grammar"),
        ({**saying("x"), "tool_choice": {"function": {"name": "time"}}}, "grammar"),
    ],
)
def test_what_cannot_be_honoured_is_an_error(llm: Llama, options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        chat(llm, **options)


def test_a_programs_own_completions_give_calls_too(tmp_path: Path) -> None:
    class Own(Llama):
        def create_completion(self, *args: Any, **kwargs: Any) -> Any:
            return super().create_completion(*args, **kwargs)

    with Own(str(write_model(tmp_path / "tiny.gguf", n_ctx=2048)), n_ctx=2048, verbose=False) as llm:
        for more in (saying(CALL), {"tools": [WEATHER], "tool_choice": "required"}):
            (call,) = chat(llm, **more)["choices"][0]["message"]["tool_calls"]
            assert call["function"]["name"] == "weather"
            assert streamed(llm, **more)[1][0]["function"] == call["function"]


def test_json_that_was_asked_for_is_never_a_call(llm: Llama) -> None:
    schema = {"const": {"name": "weather", "parameters": {}}}
    form = {"type": "json_object", "schema": schema}
    message = chat(llm, tools=[WEATHER], response_format=form)["choices"][0]["message"]
    assert json.loads(message["content"]) == schema["const"] and "tool_calls" not in message


def test_a_named_tool_may_be_strict(llm: Llama) -> None:
    strict = {"type": "function", "function": {**WEATHER["function"], "strict": True}}
    choice = {"type": "function", "function": {"name": "weather"}}
    (call,) = chat(llm, tools=[strict], tool_choice=choice)["choices"][0]["message"]["tool_calls"]
    assert json.loads(call["function"]["arguments"])["city"] in ("Paris", "Rome")
