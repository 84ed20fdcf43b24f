"""Calls as Mistral's newer models and functionary write them: read, forced and shown by every dialect. Covers
text/marked_calls.py, text/call_parts.py, sampling/call_grammar.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
from serving import PATIENCE, Running, serving
from tiny_model import PIECES, write_model

from pyllamacpu import Llama
from pyllamacpu.text import ChatTemplate
from pyllamacpu.text.call_forms import ToolCall
from pyllamacpu.text.call_parts import Answer, join_parts
from pyllamacpu.text.marked_calls import FUNCTIONARY, MISTRAL, MarkedForm
from pyllamacpu.text.tool_calls import ToolCallReader

NAMES = ["add", "get_weather", "all_of", "TOOL"]
ARGUMENTS = '{"a": [1, "]"]}'
ADD, WEATHER = ToolCall("add", ARGUMENTS), ToolCall("get_weather", "{}")


def read(text: str, size: int, **more: Any) -> Answer:
    reader = ToolCallReader(more.pop("names", NAMES), **more)
    pieces = [text[i : i + size] for i in range(0, len(text), size)]
    return join_parts([*(part for piece in pieces for part in reader.push(piece)), *reader.finish()])


def read_any(text: str, **more: Any) -> Answer:
    """The same however it is cut."""
    found = {str(read(text, size, **more)) for size in range(1, len(text) + 1)}
    assert len(found) == 1
    return read(text, len(text), **more)


MARKED: list[tuple[str, str, list[ToolCall]]] = [
    (f"[TOOL_CALLS]add[ARGS]{ARGUMENTS}", "", [ADD]),
    (f"[TOOL_CALLS]add{ARGUMENTS}", "", [ADD]),
    (f"[TOOL_CALLS]add {ARGUMENTS}", "", [ADD]),
    (f"[TOOL_CALLS]add[CALL_ID]a1B2c3D4e[ARGS]{ARGUMENTS}", "", [ADD]),
    (f"[TOOL_CALLS]add[ARGS]{ARGUMENTS}[TOOL_CALLS]get_weather[ARGS]{{}}", "", [ADD, WEATHER]),
    (f"[TOOL_CALLS]add{ARGUMENTS}\n[TOOL_CALLS]get_weather{{}}\n", "", [ADD, WEATHER]),
    (f"Let me see.[TOOL_CALLS]add[ARGS]{ARGUMENTS}", "Let me see.", [ADD]),
    (f"a [1] [[TOOL_CALLS]add[ARGS]{ARGUMENTS} b", "a [1] [ b", [ADD]),
    ('[TOOL_CALLS] [{"name": "get_weather", "arguments": {}}]', "", [WEATHER]),
    ('x[TOOL_CALLS][{"name": "get_weather", "arguments": {}, "id": "a1B2c3D4e"}]', "x", [WEATHER]),
    ("[TOOL()]", "", [ToolCall("TOOL", "{}")]),
    ('[TOOL_CALLS]add[ARGS]{"a":', "", [ToolCall("add", '{"a":', False)]),
    *[(text, text, []) for text in (
        f"[TOOL_CALLS]steal[ARGS]{ARGUMENTS}", "[TOOL_CALLS]add it", "[TOOL_CALLS]", "[TOOL_C",
        "[TOOL_CALLS]add",
        "[TOOL_CALLS]add[ARGS][ARGS]{}", "[TOOL_CALLS]add[CALL_ID]x[CALL_ID]x{}", "add[ARGS]{}", "[ARGS]",
    )],
]  # fmt: skip


@pytest.mark.parametrize("text, rest, calls", MARKED, ids=[text[:50] for text, _, _ in MARKED])
def test_mistral(text: str, rest: str, calls: list[ToolCall]) -> None:
    assert read_any(text) == (rest, calls)


PROMPTED: list[tuple[str, str, list[ToolCall]]] = [
    (f"add\n{ARGUMENTS}", "", [ADD]),
    (f">>>add\n{ARGUMENTS}", "", [ADD]),
    (f"add\n{ARGUMENTS}>>>get_weather\n{{}}", "", [ADD, WEATHER]),
    (f"add\n{ARGUMENTS}\n>>>get_weather\n{{}}\n", "", [ADD, WEATHER]),
    (f"all\nWell >> so.\n>>>add\n{ARGUMENTS}", "Well >> so.\n", [ADD]),
    (f"add\n{ARGUMENTS}\n>>>all\nThat is it.", "That is it.", [ADD]),
    ("all_of\n{}", "", [ToolCall("all_of", "{}")]),
    ("all\nHello\n>>> 1", "Hello\n>>> 1", []),
    ("all\n", "", []),
    *[
        (text, text, [])
        for text in ("all", "all right", "Hello", "add\n1", "add 1", "steal\n{}", "", ">>>no\n")
    ],
]


@pytest.mark.parametrize("text, rest, calls", PROMPTED, ids=[text[:50] for text, _, _ in PROMPTED])
def test_functionary(text: str, rest: str, calls: list[ToolCall]) -> None:
    if text:
        assert read_any(text, form=FUNCTIONARY) == (rest, calls)
        assert read(text, 3, form=FUNCTIONARY, most=1).calls == calls[:1]
    if not calls:
        assert read(text, 3, form=FUNCTIONARY, names=()) == (rest, [])


def test_other_models_are_not_functionary() -> None:
    for text in ("all\nof it", f"add\n{ARGUMENTS}", f">>>add\n{ARGUMENTS}"):
        assert read_any(text) == (text, [])


# Templates, and models that have them

_CALLS = "{% for m in messages %}{% if m.tool_calls %}{% for c in m.tool_calls %}"
_REST = (
    "{% endfor %}{% elif m.role == 'tool' %}[R]{{ m.content }}{% elif m.role == 'system' %}{{ m.content }}"
    "{% elif m.role == 'user' %}[INST]{{ m.content }}[/INST]{% else %}{{ SAID }}{{ m.content }}{% endif %}"
    "{% endfor %}{% for t in tools or [] %}{{ t | tojson }}{% endfor %}"
)
_SAID = _REST.replace("SAID", r"'>>>all\n'")
_JSON = "{{ c.function.arguments if c.function.arguments is string else c.function.arguments | tojson }}"
TEMPLATES = {
    "args": f"{_CALLS}[TOOL_CALLS]{{{{ c.function.name }}}}[ARGS]{_JSON}{_REST}",
    "bare": f"{_CALLS}[TOOL_CALLS]{{{{ c.function.name }}}}{_JSON}{_REST}",
    "id": f"{_CALLS}[TOOL_CALLS]{{{{ c.function.name }}}}[CALL_ID]{{{{ c.id }}}}[ARGS]{_JSON}{_REST}",
    "functionary": (
        f"{_CALLS}>>>{{{{ c.function.name + '\\n' }}}}{_JSON}{_SAID}"
        "{% if add_generation_prompt %}{{ '>>>' }}{% endif %}"
    ),
}
TEMPLATES = {name: text.replace("{{ SAID }}", "") for name, text in TEMPLATES.items()}
FORMS = {
    "args": MarkedForm(MISTRAL.mark, "[ARGS]"),
    "bare": MarkedForm(MISTRAL.mark, ""),
    "id": MISTRAL,
    "functionary": FUNCTIONARY,
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_form_is_found_by_a_probe(name: str) -> None:
    assert ChatTemplate(TEMPLATES[name]).call_form == FORMS[name]


def test_other_templates_have_no_marks() -> None:
    for source in (
        "{{ messages }}",
        "{{ raise_exception('no') }}",
        "[TOOL_CALLS] >>>{{ messages[0].content }}",
    ):
        assert ChatTemplate(source).call_form is None


CITY = {"$defs": {"city": {"enum": ["Paris", "Rome"]}}, "type": "object",
        "properties": {"city": {"$ref": "#/$defs/city"}}, "required": ["city"],
        "additionalProperties": False}  # fmt: skip
TOOLS: Any = [
    {"type": "function", "function": {"name": "weather", "parameters": CITY}},
    {
        "type": "function",
        "function": {"name": "time", "parameters": {**CITY, "properties": {}, "required": []}},
    },
]
QUESTION: Any = [{"role": "user", "content": "hello"}]


def model_file(folder: Path, name: str, control: bool) -> Path:
    """A model with the template; `control`: the marks are control tokens, as in Mistral's models."""
    pieces = list(PIECES)
    if control:
        pieces[3:6] = ["[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"]
    keys: Any = {"tokenizer__ggml__tokens": pieces, "tokenizer__chat_template": TEMPLATES[name]}
    return write_model(folder / f"{name}-{control}.gguf", n_ctx=2048, **keys)


MODELS = [
    ("args", True),
    ("args", False),
    ("bare", True),
    ("id", True),
    ("id", False),
    ("functionary", False),
]


@pytest.mark.parametrize("name, control", MODELS)
@pytest.mark.parametrize("several", [False, True])
def test_forced_calls_are_written_as_the_template_reads_them(
    tmp_path: Path, name: str, control: bool, several: bool
) -> None:
    with Llama(str(model_file(tmp_path, name, control)), n_ctx=0, n_threads=1) as llm:
        written: list[str] = []
        make = llm.stream

        def watched(*given: Any, **more: Any) -> Iterator[Any]:
            for event in make(*given, **more):
                written.append(event.text)
                yield event

        llm.stream = watched  # type: ignore[method-assign]
        asked: Any = {"messages": QUESTION, "tools": TOOLS, "max_tokens": 200, "parallel_tool_calls": several}
        for choice in ("required", {"type": "function", "function": {"name": "weather"}}):
            for seed in range(3):
                written.clear()
                answer: Any = llm.create_chat_completion(**asked, tool_choice=choice, seed=seed)
                (one,) = answer["choices"]
                calls, text = one["message"]["tool_calls"], "".join(written)
                assert one["finish_reason"] in ("tool_calls", "stop", "length")
                first = calls[0]["function"]
                assert several or len(calls) == 1
                form = FORMS[name]
                opening = "" if form.prompted else form.mark
                assert text.startswith(f"{opening}{first['name']}{form.id_mark or form.between}"), text
                assert form.between in text
                for call in calls if one["finish_reason"] != "length" else ():
                    given = json.loads(call["function"]["arguments"])
                    assert set(given) == ({"city"} if call["function"]["name"] == "weather" else set())
                    assert given.get("city", "Paris") in ("Paris", "Rome")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("marked")
    files = [(f"{name}-{control}", model_file(folder, name, control)) for name, control in MODELS]
    with serving(*files, n_ctx=0) as found:
        yield found
        found.wait_idle()


@pytest.mark.parametrize("model", [f"{name}-{control}" for name, control in MODELS])
def test_every_dialect_gives_calls(running: Running, model: str) -> None:
    asked: Any = {"model": model, "messages": QUESTION}
    with openai.OpenAI(base_url=f"{running.url}/v1", api_key="k", timeout=PATIENCE, max_retries=0) as client:
        more: Any = {**asked, "tools": TOOLS, "tool_choice": "required", "max_tokens": 200, "seed": 1}
        whole: Any = client.chat.completions.create(**more).choices[0]
        (call,) = whole.message.tool_calls
        assert json.loads(call.function.arguments) is not None and not whole.message.content
        with client.chat.completions.stream(**more) as stream:
            final: Any = stream.get_final_completion().choices[0]
        (streamed,) = final.message.tool_calls
        assert streamed.function.name == call.function.name and not final.message.content
        own: Any = [{"type": "function", **tool["function"]} for tool in TOOLS]
        answer: Any = client.responses.create(
            model=model, input="hello", tools=own, tool_choice="required", max_output_tokens=200
        )
        assert [item.type for item in answer.output] == ["function_call"]
    tools: Any = [{"name": t["function"]["name"], "input_schema": t["function"]["parameters"]} for t in TOOLS]
    third = anthropic.Anthropic(base_url=running.url, api_key="k", timeout=PATIENCE, max_retries=0)
    called: Any = {**asked, "tools": tools, "tool_choice": {"type": "any"}, "max_tokens": 200}
    with third, third.messages.stream(**called) as events:
        message = events.get_final_message()
    assert [block.type for block in message.content] == ["tool_use"] and message.stop_reason == "tool_use"
    body = {
        **asked,
        "tools": TOOLS,
        "tool_choice": "required",
        "stream": False,
        "options": {"num_predict": 200},
    }
    found = running.post("/api/chat", **body).json()["message"]
    assert len(found["tool_calls"]) == 1 and not found["content"]


@pytest.mark.parametrize("name, control", MODELS)
def test_strict_tools_leave_a_text(tmp_path: Path, name: str, control: bool) -> None:
    strict = [{**tool, "function": {**tool["function"], "strict": True}} for tool in TOOLS]
    with Llama(str(model_file(tmp_path, name, control)), n_ctx=0, n_threads=1) as llm:
        for seed in range(4):
            answer: Any = llm.create_chat_completion(
                messages=QUESTION, tools=strict, max_tokens=60, seed=seed
            )
            message = answer["choices"][0]["message"]
            for call in message.get("tool_calls") or ():
                assert call["function"]["name"] in ("weather", "time")
            assert not (message["content"] or "").startswith(("all\n", "[TOOL_CALLS]"))
