"""Messages in the form that a template reads, and the check that all of them arrive.

Covers text/missing.py, text/call_messages.py.
"""

from __future__ import annotations

import json
import re
import warnings
from copy import deepcopy
from datetime import datetime
from typing import Any

import pytest
from test_text_template import CHATML, chat_tokenizer, user

from pyllamacpu.errors import TemplateError, TextSizeError
from pyllamacpu.text.chat import encode_chat
from pyllamacpu.text.messages import MAX_CHARACTERS, MessageForms
from pyllamacpu.text.missing import missing_messages, missing_tools
from pyllamacpu.text.template import ChatTemplate

PLAIN = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}"
PARTS_ONLY = (
    "{% for m in messages %}<{{ m['role'] }}>{% for p in m['content'] %}"
    "{% if p['type'] == 'text' %}{{ p['text'] }}{% endif %}{% endfor %}\n{% endfor %}"
)
BOTH = (
    "{% for m in messages %}<{{ m['role'] }}>{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for p in m['content'] %}{{ p['text'] }}{% endfor %}{% endif %}\n{% endfor %}"
)
USER_PARTS = (  # the system message is text, the user's is parts: as a vision model's template may have it
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] | trim }}{% else %}"
    "{% for p in m['content'] %}{{ p['text'] }}{% endfor %}{% endif %}{% endfor %}"
)
CALLS = "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function.name }}"
OBJECTS = CALLS + "{{ c.function.arguments | tojson }}{% endfor %}{% endfor %}"
JOINED = CALLS + "{{ '(' + c.function.arguments + ')' }}{% endfor %}{% endfor %}"
ITEMS = (
    CALLS
    + "{% for k, v in c.function.arguments.items() %}{{ k }}={{ v }};{% endfor %}{% endfor %}{% endfor %}"
)
PLAIN_CALLS = CALLS + "{{ c.function.arguments }}{% endfor %}{% endfor %}"


def parts(*texts: str) -> list[dict[str, Any]]:
    return [{"type": "text", "text": text} for text in texts]


def call(arguments: Any, **more: Any) -> list[dict[str, Any]]:
    calls = [{"id": "1", "type": "function", "function": {"name": "look", "arguments": arguments}}]
    return [*user("x"), {"role": "assistant", "tool_calls": calls, **more}]


@pytest.mark.parametrize(
    "source", [PLAIN, PLAIN.replace("['content']", "['content'] | e"), PARTS_ONLY, BOTH, USER_PARTS]
)
@pytest.mark.parametrize("content", ["Hello there", parts("Hello ", "there"), ["Hello ", "there"]])
def test_text_and_parts_reach_every_template(source: str, content: Any) -> None:
    messages = [{"role": "system", "content": "Be kind."}, *user(content)]
    text = ChatTemplate(source).render(messages)
    assert "Be kind." in text and "Hello there" in text
    assert "type" not in text and "[" not in text


def test_a_tool_call_in_the_template_does_not_make_it_read_parts() -> None:
    """The word 'type' stands in it, but contents are printed."""
    source = PLAIN + "{% for c in tools or [] %}{{ c['type'] }}{{ c['text'] }}{% endfor %}"
    assert ChatTemplate(source).render(user(parts("Hello"))) == "<user>Hello\n"


def test_images_stay_for_templates_that_read_parts_and_are_refused_by_others() -> None:
    content = [{"type": "image"}, *parts("what is it")]
    assert "what is it" in ChatTemplate(PARTS_ONLY).render(user(content))
    with pytest.raises(TemplateError, match="not text"):
        ChatTemplate(PLAIN).render(user(content))


@pytest.mark.parametrize(
    ("source", "given", "shown"),
    [
        (OBJECTS, {"a": 1}, 'look{"a": 1}'),
        (OBJECTS, '{"a": 1}', 'look{"a": 1}'),
        (JOINED, '{"a":1}', 'look({"a":1})'),
        (JOINED, {"a": 1}, 'look({"a": 1})'),
        (ITEMS, {"a": 1}, "looka=1;"),
        (ITEMS, '{"a": 1}', "looka=1;"),
        (PLAIN_CALLS, '{"a":1}', 'look{"a":1}'),
        (PLAIN_CALLS, {"a": "é"}, 'look{"a": "é"}'),
    ],
)
def test_arguments_have_the_form_that_the_template_takes(source: str, given: Any, shown: str) -> None:
    assert ChatTemplate(source).render(call(given)) == "x" + shown


@pytest.mark.parametrize("empty", [None, [], {}, ""])
@pytest.mark.parametrize("field", ["tool_calls", "name", "function_call", "reasoning_content", "refusal"])
def test_empty_fields_are_as_if_absent(empty: Any, field: str) -> None:
    source = "{% for m in messages %}{{ m.content }}{% if '" + field + "' in m %}!{% endif %}{% endfor %}"
    messages = [*user("x"), {"role": "assistant", "content": "y", field: empty}]
    assert ChatTemplate(source).render(messages) == "xy"


@pytest.mark.parametrize(
    "content",
    [
        "{{ m.content }}",
        "{{ m['content'] + '' }}",
        "{% if m.content is not none %}{{ m.content }}{% endif %}",
    ],
)
def test_a_content_of_null_is_as_if_absent(content: str) -> None:
    calls = "{% for c in m.tool_calls or [] %}{{ c.function.arguments.values() | list }}{% endfor %}"
    source = "{% for m in messages %}<{{ m.role }}>" + content + calls + "{% endfor %}"
    messages = [*user("x"), *call({"a": 1}, content=None)[1:], {"role": "tool", "content": None}]
    assert ChatTemplate(source).render(messages) == "<user>x<assistant>[1]<tool>"


def test_developer_is_system_where_only_that_is_known() -> None:
    known = "{% if m.role in ['system', 'user'] %}<{{ m.role }}>{{ m.content }}{% endif %}"
    knows = "{% for m in messages %}" + known + "{% endfor %}"
    messages = [{"role": "developer", "content": "Be kind."}, *user("x")]
    assert ChatTemplate(knows).render(messages) == "<system>Be kind.<user>x"
    both = knows.replace("'system', ", "'system', 'developer', ")
    assert ChatTemplate(both).render(messages) == "<developer>Be kind.<user>x"


@pytest.mark.parametrize(
    "source, shown",
    [
        (PLAIN, "<system>Be kind."),
        (PLAIN.replace("m['role'] }}", "m['role'] | title }} developer"), "<System developer>Be kind."),
        (PLAIN.replace("m['role'] }}", "'S' if m['role'] == 'system' else 'U' }}"), "<S>Be kind."),
    ],
)
def test_developer_is_system_where_it_is_a_word_like_any_other(source: str, shown: str) -> None:
    """Printed as it stands, or taken for the user's: no template was trained on that."""
    messages = [{"role": "developer", "content": "Be kind."}, *user("x")]
    assert ChatTemplate(source).render(messages).startswith(shown)
    for role in ("user", "assistant"):
        assert "Be kind." in ChatTemplate(source).render([*messages, {"role": role, "content": "y"}])


@pytest.mark.parametrize("content", [{}, {"content": None}, {"content": ""}])
def test_a_call_needs_no_content(content: dict[str, Any]) -> None:
    """Clients leave it out: the template may read it all the same."""
    joined = "{% for m in messages %}{{ '<' + m['content'] + '>' }}{% for c in m.tool_calls or [] %}"
    source = joined + "{{ c.function.arguments | tojson }}{% endfor %}{% endfor %}"
    messages = [*user("x"), *call({"a": 1})[1:]]
    messages[1] = {key: value for key, value in messages[1].items() if key != "content"} | content
    assert ChatTemplate(source).render(messages) == '<x><>{"a": 1}'


@pytest.mark.parametrize("role", ["system", "developer"])
def test_systems_are_one_where_a_template_takes_one(role: str) -> None:
    rest = "{% for m in messages[1:] %}{% if m.role == 'system' %}BAD{% else %}{{ m.content }}{% endif %}"
    drops = "<{{ messages[0].content }}>" + rest.replace("BAD", "") + "{% endfor %}"
    refuses = drops.replace("'system' %}", "'system' %}{{ raise_exception('one system message') }}")
    messages = [{"role": "system", "content": "Be kind."}, {"role": role, "content": "Be brief."}, *user("x")]
    for source in (drops, refuses):
        assert ChatTemplate(source).render(messages) == "<Be kind.\n\nBe brief.>x"
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            encode_chat(chat_tokenizer(), ChatTemplate(source), messages)
    assert ChatTemplate(PLAIN).render(messages).count("<system>") == 2


# Calls that a template takes one by one, or not at all

ONE_CALL = (
    "{% for m in messages %}<{{ m.role }}>{% if m.tool_calls %}{% if m.tool_calls | length != 1 %}"
    "{{ raise_exception('one call at a time') }}{% endif %}f{{ m.tool_calls[0].function.arguments | tojson }}"
    "{% endif %}{{ m.content }}{% endfor %}"
)
FIRST_CALL = ONE_CALL.replace("!= 1", "> 9")  # drops the others
TURNS = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"


def called(*ids: str, content: str = "") -> dict[str, Any]:
    calls = [
        {"id": i, "type": "function", "function": {"name": "f", "arguments": f'{{"a": "{i}"}}'}} for i in ids
    ]
    return {"role": "assistant", "content": content, "tool_calls": calls}


def result(call_id: str | None, content: str) -> dict[str, Any]:
    return {"role": "tool", "content": content, **({"tool_call_id": call_id} if call_id else {})}


@pytest.mark.parametrize("source", [ONE_CALL, FIRST_CALL])
@pytest.mark.parametrize("named", [True, False])
def test_calls_become_messages_where_a_template_takes_one(source: str, named: bool) -> None:
    """Each with its result behind it, found by the id, or in their order."""
    ids = ("two", "one") if named else (None, None)
    results = [result(ids[0], "B" if named else "A"), result(ids[1], "A" if named else "B")]
    messages = [*user("x"), called("one", "two", content="so"), *results, *user("y")]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encode_chat(chat_tokenizer(), ChatTemplate(source), messages)
    assert ChatTemplate(source).render(messages) == (
        '<user>x<assistant>f{"a": "one"}so<tool>A<assistant>f{"a": "two"}<tool>B<user>y'
    )
    assert len(messages) == 5 and len(messages[1]["tool_calls"]) == 2


@pytest.mark.parametrize("role", ["function", "tool"])
def test_the_older_form_of_calls_is_read(role: str) -> None:
    """OpenAI's `function_call`, whose results are `function`'s: both as tool calls, with ids."""
    call = {"name": "f", "arguments": '{"a": "one"}'}
    older = {"role": "assistant", "content": None, "function_call": call}
    messages = [*user("x"), older, {"role": role, "name": "f", "content": "A"}, *user("y")]
    source = ONE_CALL.replace("{{ m.content", "{{ m.tool_call_id }}{{ m.content")
    template = ChatTemplate(source)
    assert template.render(messages) == '<user>x<assistant>f{"a": "one"}<tool>call00000A<user>y'
    assert missing_messages("xAy", messages) == [1]
    both = {**older, "tool_calls": [{"id": "a", "type": "function", "function": call}]}
    assert [c["id"] for c in MessageForms([both], template.abilities).chosen[0]["tool_calls"]] == ["a"]
    knows = source.replace("<{{ m.role }}>", "<{{ 'f' if m.role == 'function' else m.role }}>")
    assert ("<f>" in ChatTemplate(knows).render(messages)) == (role == "function")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encode_chat(chat_tokenizer(), ChatTemplate(TURNS), messages)


def test_calls_without_ids_get_them() -> None:
    """As many templates ask for; results that name none are given theirs in order."""
    calls = [{"function": {"name": "f", "arguments": {"a": a}}} for a in ("one", "two")]
    both = [{"role": "assistant", "tool_calls": calls}, result(None, "A"), result(None, "B")]
    chosen = MessageForms([*user("x"), *both, *both], ChatTemplate(OBJECTS).abilities).chosen
    assert [c["id"] for m in chosen for c in m.get("tool_calls", ())] == [f"call0000{i}" for i in range(4)]
    assert [m["tool_call_id"] for m in chosen if m["role"] == "tool"] == [f"call0000{i}" for i in range(4)]


def test_calls_stay_together_where_a_template_takes_several() -> None:
    messages = [*user("x"), called("one", "two"), result("one", "A"), result("two", "B")]
    forms = MessageForms(messages, ChatTemplate(OBJECTS).abilities).chosen
    assert [len(message.get("tool_calls", ())) for message in forms] == [0, 2, 0, 0]
    cut = MessageForms(messages[:2], ChatTemplate(ONE_CALL).abilities).chosen
    assert [message["tool_calls"][0]["id"] for message in cut[1:]] == ["one", "two"]


@pytest.mark.parametrize("content", ["", None, "so", parts("so")])
@pytest.mark.parametrize("source", [TURNS, PARTS_ONLY, BOTH])
def test_calls_that_a_template_does_not_show_are_written(source: str, content: Any) -> None:
    messages = [*user("x"), {**called("one", "two"), "content": content}, result("one", "A")]
    shown = ChatTemplate(source).render(messages)
    first, second = ({"name": "f", "parameters": {"a": a}} for a in ("one", "two"))
    assert f"{json.dumps(first)}\n{json.dumps(second)}" in shown and ("so" in shown) == bool(content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encode_chat(chat_tokenizer(), ChatTemplate(source), messages)


def test_a_template_for_tools_is_asked_beside_tools() -> None:
    """Whether it shows calls is another question without them."""
    tool: Any = {"type": "function", "function": {"name": "f", "parameters": {}}}
    template = ChatTemplate(TURNS, tool_source=OBJECTS + "{% for t in tools %}{{ t | tojson }}{% endfor %}")
    messages = [*user("x"), called("one")]
    assert "parameters" in template.render(messages)
    assert template.render(messages, [tool]).startswith('xf{"a": "one"}')


def test_the_callers_messages_are_not_changed() -> None:
    messages = call('{"a": 1}', content=None, name="")
    before = json.dumps(messages)
    template = ChatTemplate(OBJECTS)
    template.render(messages)
    assert MessageForms(messages, template.abilities).chosen[1].keys() == {"role", "tool_calls"}
    assert json.dumps(messages) == before


# Nothing lost


@pytest.mark.parametrize(
    "source",
    [
        "no messages",
        "{{ messages[0].content }}",
        "{% for m in messages if m.role == 'system' %}{{ m.content }}{% endfor %}",
        "{% for m in messages %}{{ m.content[:3] }}{% endfor %}",
    ],
)
def test_a_last_message_that_is_lost_is_an_error(source: str) -> None:
    messages = [{"role": "system", "content": "rules"}, *user("a question of some length")]
    with pytest.raises(TemplateError, match=r"last message.*'user'.*--chat-template"):
        encode_chat(chat_tokenizer(), ChatTemplate(source), messages)


def test_an_earlier_message_that_is_lost_is_a_warning() -> None:
    messages = [*user("first"), {"role": "assistant", "content": "second"}, *user("third")]
    template = ChatTemplate("{{ messages[0].content }}{{ messages[-1].content }}")
    with pytest.warns(UserWarning, match=r"message 1 .*'assistant'"):
        encode_chat(chat_tokenizer(), template, messages)


def test_tools_that_a_template_does_not_show_are_a_warning() -> None:
    tools = [{"type": "function", "function": {"name": "look_up", "parameters": {}}}]
    with pytest.warns(UserWarning, match="look_up"):
        encode_chat(chat_tokenizer(), ChatTemplate(CHATML), user("x"), tools)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encode_chat(chat_tokenizer(), ChatTemplate(PLAIN + "{{ tools | tojson }}"), user("x"), tools)


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages[0].content }}",
        "{{ messages[0].content | trim }}",
        "{{ messages[0].content | tojson }}",
        "{{ messages[0].content | tojson(ensure_ascii=true) }}",
        "{{ messages[0].content | e }}",
        "{{ messages[0].content.split() | join(' ') }}",
    ],
)
def test_trimmed_and_quoted_words_have_arrived(source: str) -> None:
    content = '  Émile said: "<b> & so on"\n\tand <|im_end|> left  '
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encode_chat(chat_tokenizer(), ChatTemplate(source), user(content))


def test_what_is_missing() -> None:
    said = [
        *user("one"),
        {"role": "assistant", "content": "<think>two</think> three"},
        *user(parts("four", "five")),
    ]
    assert missing_messages("one three four five", said) == []
    assert missing_messages("one two four", said) == [1, 2]
    assert missing_messages("", [{"role": "assistant", "content": " "}, {"role": "user"}]) == []
    assert missing_messages("f", call({}, content=None)[1:]) == [0]
    for arguments in ({"city": "Rome"}, '{"city": "Rome"}'):  # the name may stand in the list of tools
        assert missing_messages("look city", call(arguments)[1:]) == [0]
        assert missing_messages("look(city='Rome')", call(arguments)[1:]) == []
    assert missing_tools("only f here", [{"function": {"name": "f"}}, {"name": "g"}, "junk"]) == ["g"]


def test_a_hostile_template_is_probed_once() -> None:
    asked = []

    class Hostile(ChatTemplate):
        def _render(self, *arguments: Any, **more: Any) -> str:
            asked.append(arguments)
            return super()._render(*arguments, **more)

    template = Hostile("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}")
    with pytest.raises(TemplateError, match=re.escape("was stopped")):
        template.render([{"role": "system", "content": "s"}, *user("x")])
    assert len(asked) == 2


def test_too_much_text_is_not_the_templates_fault() -> None:
    """Its size and the limit are said, whether a message is long or many are; up to there nothing is lost."""
    template = ChatTemplate("{% for m in messages %}{{ m.content }}{% endfor %}")
    for messages in (user("a" * (MAX_CHARACTERS + 1)), user("a" * (MAX_CHARACTERS // 4 + 1)) * 4):
        with pytest.raises(TextSizeError, match=f"have 160000[0-9]* characters.* given {MAX_CHARACTERS}"):
            template.render(messages)
    assert len(template.render(user("a" * (MAX_CHARACTERS - 99)))) == MAX_CHARACTERS - 99


# Roles that a template does not take: the user tells what they say

_ALTERNATE = (
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
)
TWO_ROLES = (
    "{% for m in messages %}" + _ALTERNATE + "<{{ m.role }}>{{ m.content }}{% endfor %}"
)  # Mistral 0.1
FIRST_SYSTEM = (  # Llama 2
    "{% if messages[0].role == 'system' %}<<{{ messages[0].content }}>>{% set rest = messages[1:] %}"
    "{% else %}{% set rest = messages %}{% endif %}"
) + TWO_ROLES.replace("in messages", "in rest")
SILENT = "{% for m in messages if m.role in ('user', 'assistant') %}<{{ m.role }}>{{ m.content }}{% endfor %}"
SYSTEM = {"role": "system", "content": "Be kind."}
ANSWER = {"role": "assistant", "content": "y"}


def shown(source: str, messages: list[dict[str, Any]]) -> str:
    """What the template prints; no message may be missing."""
    before = deepcopy(messages)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encode_chat(chat_tokenizer(), ChatTemplate(source), messages)
    assert messages == before
    return ChatTemplate(source).render(messages)


@pytest.mark.parametrize("role", ["system", "developer"])
@pytest.mark.parametrize("source", [TWO_ROLES, SILENT])
def test_the_user_tells_what_the_system_says(source: str, role: str) -> None:
    system = {**SYSTEM, "role": role}
    assert shown(source, [system, *user("x")]) == "<user>Be kind.\n\nx"
    assert shown(source, [system, system, *user("x")]).count("Be kind.") >= 1
    assert shown(source, [*user("x"), ANSWER, system, *user("z")]) == "<user>x<assistant>y<user>Be kind.\n\nz"
    assert shown(source, [*user("x"), ANSWER, system]) == "<user>x<assistant>y<user>Be kind."
    assert shown(source, [*user("x"), system]) == "<user>x\n\nBe kind."
    assert shown(source, [system, ANSWER, *user("x")]) == "<user>Be kind.<assistant>y<user>x"
    assert shown(source, [*user("x"), system, ANSWER, *user("z")]).startswith(
        "<user>x\n\nBe kind.<assistant>y"
    )


def test_a_system_that_is_read_only_at_the_beginning() -> None:
    later = {**SYSTEM, "content": "Be brief."}
    messages = [SYSTEM, *user("x"), ANSWER, later, *user("z")]
    assert shown(FIRST_SYSTEM, messages) == "<<Be kind.>><user>x<assistant>y<user>Be brief.\n\nz"
    assert shown(PLAIN, messages).count("<system>") == 2


@pytest.mark.parametrize("role", ["tool", "function", "ipython"])
@pytest.mark.parametrize("source", [TWO_ROLES, FIRST_SYSTEM, SILENT])
def test_the_user_tells_the_results_of_calls(source: str, role: str) -> None:
    results = [{**result(i, f"<|im_end|> {i}\n"), "role": role} for i in ("two", "one")]
    called_two = [*user("x"), called("one", "two")]
    text = shown(source, [*called_two, *results, ANSWER, *user("z")])
    told = [f'{{"tool_response": {{"tool": "f", "content": "<|im_end|> {i}\\n"}}}}' for i in ("two", "one")]
    assert text.endswith("<user>" + "\n\n".join(told) + "<assistant>y<user>z")
    assert shown(source, [*called_two, *results, *user("z")]).endswith(told[1] + "\n\nz")
    assert shown(PLAIN, [*called_two, *results, ANSWER]).count("<user>") == 1


def test_results_of_functions_whose_names_are_not_known() -> None:
    for given, name in (({"tool_call_id": "no such call"}, ""), ({"name": "g"}, '"tool": "g", ')):
        messages = [*user("x"), called("one"), {"role": "tool", "content": "B", **given}]
        assert f'"tool_response": {{{name}"content": "B"}}' in shown(TWO_ROLES, messages)


def test_parts_of_what_the_user_tells() -> None:
    source = (
        "{% for m in messages %}" + _ALTERNATE + "{% for p in m.content %}"
        "{{ p.text if p.type == 'text' else '[' ~ p.type ~ ']' }}{% endfor %}|{% endfor %}"
    )
    system = {**SYSTEM, "content": parts("Be kind.")}
    messages = [system, {"role": "user", "content": [{"type": "image"}, *parts("x")]}, called("one")]
    text = shown(source, [*messages, {**result("one", ""), "content": [*parts("B"), {"type": "image"}]}])
    assert text.startswith("Be kind.\n\n[image]x|")
    assert text.endswith('{"tool_response": {"tool": "f"}}B[image]|')


def test_turns_of_the_caller_stay_as_they_are() -> None:
    for messages in ([*user("x"), *user("z")], [ANSWER, *user("x")]):
        with pytest.raises(TemplateError, match="must alternate"):
            ChatTemplate(TWO_ROLES).render(messages)


# What templates are given beside the messages


def test_a_template_that_asks_for_functions_and_the_time() -> None:
    """Firefunction 2's."""
    source = "{{ messages[0].content + '|' + functions + '|' + datetime }}"
    function = {"name": "f", "parameters": {"type": "object", "properties": {}}}
    tools = [{"type": "function", "function": function}]
    first, told, now = ChatTemplate(source).render(user("x"), tools).split("|")
    assert first == "x" and json.loads(told) == [function] and datetime.fromisoformat(now)
    assert ChatTemplate(source).render(user("x")).startswith("x|[]|")
    assert ChatTemplate(source).render(user("x"), functions="F", datetime="T") == "x|F|T"
    with pytest.raises(TemplateError, match="nothing_else"):
        ChatTemplate(source + "{{ 'a' + nothing_else }}").render(user("x"))
    assert ChatTemplate("{{ functions is defined }}").render(user("x"), tools) == "False"


def test_what_map_gives_is_a_list_in_json() -> None:
    source = "{{ tools | map(attribute='function') | tojson }}{{ [1, 2] | select('odd') | tojson }}"
    assert ChatTemplate(source).render(user("x"), [{"function": {"name": "f"}}]) == '[{"name": "f"}][1]'
    with pytest.raises(TemplateError, match="stopped"):
        ChatTemplate("{{ range(99999) | map('string') | tojson }}" * 50).render(user("x"))


_CALLED = (
    "{% for c in m.tool_calls or [] %}CALL {{ c.function.name }} {{ c.function.arguments | tojson }}"
    "{% endfor %}"
)
ONLY_PARTS = {
    "refuses text": "{% if m.content is string %}{{ raise_exception('parts') }}{% endif %}"
    "{% for p in m.content or [] %}{{ p.text }}{% endfor %}" + _CALLED,
    "the first part": "{{ m.content[0].text if m.content else '' }}" + _CALLED,
    "wants a part": "{{ m.content[0]['text'] + '' }}" + _CALLED,
    "one call": "{{ m.content[0]['text'] + '' }}"
    "{% if m.tool_calls and m.tool_calls | length > 1 %}{{ raise_exception('one') }}{% endif %}" + _CALLED,
}


@pytest.mark.parametrize("body", ONLY_PARTS.values(), ids=ONLY_PARTS)
def test_templates_for_parts_are_probed_with_parts(body: str) -> None:
    """What such a template takes beside contents is found out too: calls, results, messages of the system."""
    template = ChatTemplate("{% for m in messages %}[{{ m.role }}]" + body + "{% endfor %}")
    can = template.abilities
    assert can.reads_parts("user") and not can.reads_text("user") and can.reads_argument_objects()
    assert can.reads_parts("tool") and can.reads_second_system() and can.reads_later_system()
    calls = [
        {
            "id": f"x2345678{i}",
            "type": "function",
            "function": {"name": f"f{i}", "arguments": f'{{"a": {i}}}'},
        }
        for i in range(2)
    ]
    results = [{"role": "tool", "tool_call_id": f"x2345678{i}", "content": f"result {i}"} for i in range(2)]
    called: Any = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": None, "tool_calls": calls},
        *results,
    ]
    text = template.render(called)
    for shown in ('CALL f0 {"a": 0}', 'CALL f1 {"a": 1}', "result 0", "result 1", "[system]s", "[user]q"):
        assert shown in text
    assert can.needs_single_calls() == ("raise_exception('one')" in body)


def test_the_words_of_a_call_are_not_those_of_its_result() -> None:
    """A template that shows calls and drops results given as text was taken for one that reads them."""
    source = (
        "{% for m in messages %}{% if m.role == 'tool' %}{% if m.content is not string %}"
        "{{ m.content[0].text }}{% endif %}{% else %}{{ m.content }}{% endif %}" + _CALLED + "{% endfor %}"
    )
    template = ChatTemplate(source)
    assert not template.abilities.reads_text("tool") and template.abilities.reads_parts("tool")
