"""Tools of the `Llama` class: OpenAI's shapes, whole and streamed. Covers api/tools.py and
api/tool_answers.py.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_llama import nothing_was_warned_of  # noqa: F401
from tiny_model import byte, write_model

from pyllamacpu import Llama
from pyllamacpu.api.grammar import LlamaGrammar
from pyllamacpu.api.tools import shown_tools
from pyllamacpu.errors import OptionError
from pyllamacpu.text import ChatTemplate

SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER: Any = {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}
TIME = {
    "type": "function",
    "function": {"name": "time", "parameters": {"type": "object", "additionalProperties": False}},
}
STRICT = {"type": "function", "function": {**WEATHER["function"], "strict": True}}
UNCHECKABLE: Any = {
    "type": "function",
    "function": {"name": "f", "strict": True, "parameters": {"properties": {"a": {"uniqueItems": True}}}},
}


def of(parameters: Any, name: str = "f") -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


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
    """(text, calls with their pieces put together, finish reason) of a stream."""
    chunks = list(chat(llm, stream=True, **more))
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant"} and deltas[-1] == {}
    calls: list[dict[str, Any]] = []
    for piece in (call for delta in deltas for call in delta.get("tool_calls", ())):
        if piece["index"] == len(calls):  # the first piece has id, type and name, and no arguments
            assert (
                piece.keys() == {"index", "id", "type", "function"} and piece["function"]["arguments"] == ""
            )
            calls.append({**piece, "function": dict(piece["function"]), "n_pieces": 0})
        else:
            assert piece.keys() == {"index", "function"} and piece["function"].keys() == {"arguments"}
            calls[piece["index"]]["function"]["arguments"] += piece["function"]["arguments"]
            calls[piece["index"]]["n_pieces"] += 1
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
    if text.startswith("{"):  # a token of this model is a byte
        assert all(part["n_pieces"] == len(part["function"]["arguments"]) for part in parts)


@pytest.mark.parametrize("text", [f"Say {CALL}", '{"name": "other", "parameters": {}}'])
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


def test_a_call_that_is_cut_off_is_told_by_the_reason(llm: Llama) -> None:
    """Before its arguments it is text; behind, it has the beginning of them."""
    own: Any = {"tools": [WEATHER], "tool_choice": "required"}
    choice = chat(llm, **own, max_tokens=4)["choices"][0]
    assert choice["finish_reason"] == "length" and "tool_calls" not in choice["message"]
    content, calls, reason = streamed(llm, **own, max_tokens=4)
    assert (content, calls, reason) == (choice["message"]["content"], [], "length")
    n_tokens = len('{"name": "weather", "parameters": {"ci')
    choice = chat(llm, **{**saying(CALL), "max_tokens": n_tokens})["choices"][0]
    (call,) = choice["message"]["tool_calls"]
    assert call["function"]["name"] == "weather" and '{"city"'.startswith(call["function"]["arguments"])
    assert (choice["finish_reason"], choice["message"]["content"]) == ("length", None)
    content, calls, reason = streamed(llm, **{**saying(CALL), "max_tokens": n_tokens})
    assert (content, calls[0]["function"], reason) == ("", call["function"], "length")


def test_text_behind_a_call_is_content(llm: Llama) -> None:
    choice = chat(llm, **saying(f"{CALL} is it"))["choices"][0]
    assert choice["message"]["content"] == " is it" and len(choice["message"]["tool_calls"]) == 1
    content, calls, reason = streamed(llm, **saying(f"{CALL} is it"))
    assert (content, len(calls), reason) == (" is it", 1, "tool_calls")


def test_functions_are_the_older_shape(llm: Llama) -> None:
    functions = [WEATHER["function"]]
    own = {**saying(CALL), "tools": None, "functions": functions}
    answer = chat(llm, **own)["choices"][0]
    assert answer["finish_reason"] == "function_call"
    assert answer["message"]["function_call"]["name"] == "weather"
    chunks = list(chat(llm, **own, stream=True))
    pieces = [piece for c in chunks if (piece := c["choices"][0]["delta"].get("function_call"))]
    assert pieces[0] == {"name": "weather", "arguments": ""} and all("name" not in p for p in pieces[1:])
    joined = "".join(piece["arguments"] for piece in pieces)
    assert joined == answer["message"]["function_call"]["arguments"]
    two = {**saying(f"{CALL}\n{CALL}"), "tools": None, "functions": functions}
    message = chat(llm, **two)["choices"][0]["message"]  # there is no room for the second
    assert message["function_call"]["name"] == "weather" and message["content"] == f"\n{CALL}"


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


@pytest.mark.parametrize("role", ["system", "developer"])
@pytest.mark.parametrize("content", ["Be kind.", [{"type": "text", "text": "Be kind."}], None])
def test_the_words_of_tools_stand_in_the_system_message_that_is_there(role: str, content: Any) -> None:
    template = ChatTemplate("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}")
    question: Any = [{"role": role, "content": content}, {"role": "user", "content": "?"}]
    shown, tools = shown_tools(template, question, [WEATHER])
    text = template.render(shown, tools)
    assert tools is None and text.count("<system>") == 1 and "<developer>" not in text
    assert '"weather"' in text and ("Be kind." in text) == bool(content)


def test_a_template_that_cannot_do_without_tools_gets_them() -> None:
    template = ChatTemplate("{% for t in tools %}{{ t | tojson }}{% endfor %}{{ messages[0].content }}")
    assert shown_tools(template, [{"role": "user", "content": "?"}], [WEATHER])[1] == [WEATHER]


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
        ({**saying("x"), "tools": [STRICT]}, "strict"),
        ({**saying("x"), "parallel_tool_calls": False}, "parallel_tool_calls"),
        ({"tools": [WEATHER], "parallel_tool_calls": 3}, "parallel_tool_calls"),
        ({"tools": [UNCHECKABLE]}, "tools: 'f': parameters: #/properties/a: uniqueItems cannot"),
        ({"tools": [of({"type": "string"})]}, r"tools\[0\]: parameters: arguments are an object"),
        (
            {"tools": [WEATHER, UNCHECKABLE], "tool_choice": "required"},
            "tools: 'f': parameters: #/properties/a",
        ),
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


ANSWER: Any = {"type": "json_object", "schema": {"const": {"n": 1}}}


def test_json_that_was_asked_for_beside_tools(llm: Llama) -> None:
    """The answer is of the schema, or calls: what the model wants, and nothing else."""
    seen = set()
    for seed in range(40):
        more: Any = {"tools": [WEATHER], "response_format": ANSWER, "seed": seed, "temperature": 3.0}
        message = chat(llm, **more)["choices"][0]["message"]
        if calls := message.get("tool_calls"):
            assert {call["function"]["name"] for call in calls} == {"weather"} and message["content"] is None
        else:
            assert json.loads(message["content"]) == {"n": 1}
        seen.add(bool(calls))
    assert seen == {True, False}


def test_a_call_that_must_come_is_all_of_the_answer(llm: Llama) -> None:
    choice = chat(llm, tools=[WEATHER], tool_choice="required", response_format=ANSWER)["choices"][0]
    assert choice["message"]["tool_calls"] and choice["finish_reason"] == "tool_calls"


def test_a_form_beside_tools_that_cannot_be_enforced(llm: Llama) -> None:
    for schema in ({"properties": {"a": {"pattern": "(?=x)"}}}, {"properties": {"a": {"multipleOf": 0}}}):
        with pytest.raises(OptionError, match=r"^json_schema: #/properties/a"):
            chat(llm, tools=[WEATHER], response_format={"type": "json_object", "schema": schema})


def test_a_named_tool_may_be_strict(llm: Llama) -> None:
    choice = {"type": "function", "function": {"name": "weather"}}
    (call,) = chat(llm, tools=[STRICT], tool_choice=choice)["choices"][0]["message"]["tool_calls"]
    assert json.loads(call["function"]["arguments"])["city"] in ("Paris", "Rome")


def test_a_named_tool_comes_in_both_shapes(llm: Llama) -> None:
    """As llama-cpp-python's callers expect; streamed, name and id come once, as OpenAI's callers expect."""
    choice = {"type": "function", "function": {"name": "weather"}}
    answer = chat(llm, tools=[WEATHER], tool_choice=choice)["choices"][0]
    (call,) = answer["message"]["tool_calls"]
    assert answer["message"]["function_call"] == call["function"] and answer["finish_reason"] == "tool_calls"
    own: Any = {"functions": [WEATHER["function"]], "function_call": {"name": "weather"}}
    older = chat(llm, **own)["choices"][0]
    assert older["message"]["function_call"] == call["function"] and older["finish_reason"] == "tool_calls"
    chunks = [chunk["choices"][0]["delta"] for chunk in chat(llm, stream=True, **own)]
    names = [chunk["function_call"].get("name") for chunk in chunks if "function_call" in chunk]
    assert names[0] == "weather" and set(names[1:]) == {None} and len(names) > 5


ASK: Any = {"temperature": 1.0, "max_tokens": 120, "top_k": 0}


def braces(weight: float) -> dict[int, float]:
    """The bias with which a model of random weights begins with a brace, or never writes one."""
    return {byte(ord("{")): weight}


def test_strict_tools_that_need_not_be_called(llm: Llama) -> None:
    """An answer that begins with a brace is a call that fits; any other text is a text."""
    texts = []
    for seed in range(3):
        own: Any = {"tools": [STRICT, TIME], "seed": seed, **ASK}
        choice = chat(llm, **own, logit_bias=braces(100))["choices"][0]
        for call in choice["message"]["tool_calls"]:
            if call["function"]["name"] == "weather":
                assert json.loads(call["function"]["arguments"])["city"] in ("Paris", "Rome")
        prose = chat(llm, **own, logit_bias=braces(-100))["choices"][0]
        assert "tool_calls" not in prose["message"]
        texts.append(prose["message"]["content"])
    assert len(set(texts)) > 1


def test_never_more_calls_than_one(llm: Llama) -> None:
    """A model that only wants to go on with calls, and is let, or not."""
    more = {"tools": [TIME], "logit_bias": {**braces(100), byte(ord("\n")): 50}, **ASK}
    for own in ({"tool_choice": "required"}, {"tool_choice": "required", "parallel_tool_calls": False}):
        choice = chat(llm, **more, **own)["choices"][0]
        assert len(choice["message"]["tool_calls"]) == 1 and choice["finish_reason"] == "tool_calls"
    choice = chat(llm, **more, parallel_tool_calls=False)["choices"][0]
    assert len(choice["message"]["tool_calls"]) == 1 and choice["finish_reason"] == "tool_calls"
    choice = chat(llm, **more, tool_choice="required", parallel_tool_calls=True)["choices"][0]
    assert len(choice["message"]["tool_calls"]) > 1


def test_schemas_that_refer_to_themselves(llm: Llama) -> None:
    """As pydantic writes them: definitions beside the properties, alone and beside other tools."""
    defs = {"City": {"enum": ["Rome"]}, "a/b": {"$ref": "#/$defs/City"}}
    schema = {
        "properties": {"city": {"$ref": "#/$defs/a~1b"}},
        "required": ["city"],
        "additionalProperties": False,
    }
    tool = of({**schema, "$defs": defs})
    named = {"type": "function", "function": {"name": "f"}}
    for tools in ([tool], [TIME, tool]):
        for choice in (named, "required"):
            answer = chat(llm, tools=tools, tool_choice=choice)["choices"][0]["message"]
            (call,) = answer["tool_calls"]
            if call["function"]["name"] == "f":
                assert json.loads(call["function"]["arguments"]) == {"city": "Rome"}
    more = {"logit_bias": {byte(ord("[")): 100, byte(ord("}")): 100, byte(ord("{")): 50}}  # it wants a list
    call = chat(llm, tools=[of({})], tool_choice="required", **more)["choices"][0]["message"]["tool_calls"][0]
    assert call["function"]["arguments"] == "{}"


@pytest.mark.parametrize("name", ["wétter_😀", 'a"b\\n', "x y", "a" * 64])
def test_odd_names(llm: Llama, name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # this template escapes the name, so it is not found in the prompt
        tool = of({"additionalProperties": False}, name)
        (call,) = chat(llm, tools=[tool], tool_choice="required")["choices"][0]["message"]["tool_calls"]
    assert call["function"] == {"name": name, "arguments": call["function"]["arguments"]}
    assert json.loads(call["function"]["arguments"]) == {}
