"""Messages in the form that a chat template reads, and whether all of them reached the prompt.

Templates differ in what they take: contents as text or as a list of parts, arguments of tool calls as text
or as objects, several calls in a message, one, or none at all, the role `developer` or only `system`. What a
template can do is found out by rendering a probe, never guessed from its source; and every prompt is checked
for the messages' words.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from typing import Any

from pyllamacpu.errors import TemplateError, TextSizeError
from pyllamacpu.text.call_messages import (
    TOOL_ROLES,
    calls_of,
    give_ids,
    names_of_results,
    one_call_each,
    parsed,
    with_written_calls,
    written_result,
)
from pyllamacpu.text.marked_calls import MarkedForm, form_of_calls
from pyllamacpu.text.missing import strings_in, unescaped
from pyllamacpu.text.render_error import RenderError

Message = Mapping[str, Any]
Render = Callable[[Sequence[Message]], str]

MAX_CHARACTERS = 16_000_000  # of a conversation: somewhat less than the sandbox lets a template write

_WORD = "prbqzvx"  # what a probe looks for in the prompt
_ARGUMENTS = {"prbkey": _WORD}
_ARGUMENTS_TEXT = json.dumps(_ARGUMENTS)
_PRINTED_PART = re.compile(rf"text['\"]\s*:\s*['\"]{_WORD}")  # a part that was printed instead of read
_PRINTED_ARGUMENTS = re.compile(rf"'prbkey'\s*:\s*'{_WORD}'")
_KNOWN_AS = {"developer": "system", "function": "tool"}  # by templates that do not know them
_NO_ROLE = "prbrole"  # of which no template has heard
_QUESTION = {"role": "user", "content": "x"}
_STRING = {"type": "string", "description": "x"}
_PARAMETERS = {"type": "object", "properties": {"prbitem": _STRING}, "required": ["prbitem"]}
PROBE_TOOL = {
    "type": "function",
    "function": {"name": "prbtool", "description": "x", "parameters": _PARAMETERS},
}
"""The tool that stands beside probes, for templates that are others with tools."""


def check_size(messages: Sequence[Message], tools: Sequence[Any] | None = None) -> None:
    """Raises TextSizeError for messages and tools with more than `MAX_CHARACTERS`, names of fields
    included.
    """
    n = sum(map(len, strings_in([messages, tools])))
    if n > MAX_CHARACTERS:
        raise TextSizeError(
            f"the messages have {n} characters, and a chat template is given {MAX_CHARACTERS} at the most: "
            "send fewer or shorter ones"
        )


def _with_call(arguments: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "tool_calls": [_probe_call("prb123456", arguments)], **more}


def _probe_call(call_id: str, arguments: Any) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": "prbfn", "arguments": arguments}}


def _two_calls() -> list[dict[str, Any]]:
    """A conversation with a message of two calls, and their results."""
    calls = [_probe_call(f"prb12345{i}", {"prbkey": f"{_WORD}{i}"}) for i in range(2)]
    results = [
        {"role": "tool", "content": "x", "tool_call_id": call["id"], "name": "prbfn"} for call in calls
    ]
    return [dict(_QUESTION), {"role": "assistant", "content": "", "tool_calls": calls}, *results]


class Abilities:
    """What one template reads; each question is asked once. `render` raises RenderError."""

    def __init__(self, render: Render) -> None:
        self._render = render
        self._takes_parts: bool | None = None
        self._answers: dict[tuple[str, ...], bool] = {}
        self._hostile = False  # a probe had to be stopped: no more of them

    def reads_text(self, role: str) -> bool:
        """Whether a content given as text reaches the prompt."""
        asked = _conversation(role, _WORD)
        return self._once(("text", role), lambda: _WORD in self._shown(asked, role))

    def reads_parts(self, role: str) -> bool:
        """Whether a content given as a list of parts is read, not printed."""

        def ask() -> bool:
            text = self._shown(_conversation(role, [{"type": "text", "text": _WORD}]))
            return _WORD in text and not _PRINTED_PART.search(unescaped(text))

        return self._once(("parts", role), ask)

    def reads_argument_text(self) -> bool:
        """Whether arguments of a tool call given as JSON text come out as that text."""
        return self._once(("arguments", "text"), lambda: _ARGUMENTS_TEXT in self._call(_ARGUMENTS_TEXT))

    def reads_argument_objects(self) -> bool:
        """Whether arguments given as an object are read, and not as Python prints them."""

        def ask() -> bool:
            text = self._call(dict(_ARGUMENTS))
            return _WORD in text and not _PRINTED_ARGUMENTS.search(unescaped(text))

        return self._once(("arguments", "objects"), ask)

    def allows_no_content(self, role: str) -> bool:
        """Whether a message of this role may lack its content."""

        def ask() -> bool:
            if role == "assistant":
                answer = {"role": "tool", "content": "x", "tool_call_id": "prb123456", "name": "prbfn"}
                conversation = [_QUESTION, _with_call(dict(_ARGUMENTS)), answer]
            else:
                conversation = _conversation(role, None)
                for message in conversation:
                    if message.get("content", "") is None:
                        message.pop("content")
            return "None" not in self._shown(conversation)

        return self._once(("absent", role), ask)

    def knows_role(self, role: str) -> bool:
        """Whether this role is more to the template than any word: it is shown in another way."""

        def ask() -> bool:
            said = _conversation(role, _WORD)
            own = self._shown(said)
            try:
                other = self._shown([{**m, "role": _NO_ROLE} if m["role"] == role else m for m in said])
            except RenderError as error:
                if error.kind == "stopped":
                    raise
                return True
            return own.lower().replace(role, _NO_ROLE) != other.lower().replace(role, _NO_ROLE)

        return self._once(("known", role), ask)

    def reads_second_system(self) -> bool:
        """Whether a second message of the system's, right behind the first, reaches the prompt."""

        def ask() -> bool:
            first, second = ({"role": "system", "content": text} for text in ("x", _WORD))
            return _WORD in self._shown([first, second, dict(_QUESTION)])

        return self._once(("system", "second"), ask)

    def reads_later_system(self) -> bool:
        """Whether a message of the system's reaches the prompt in the middle of a conversation."""

        def ask() -> bool:
            answer, system = ({"role": r, "content": c} for r, c in (("assistant", "x"), ("system", _WORD)))
            return _WORD in self._shown([dict(_QUESTION), answer, system, dict(_QUESTION)])

        return self._once(("system", "later"), ask)

    def reads_result_of_text(self, role: str) -> bool:
        """Whether a result reaches the prompt behind an answer that holds its call as text."""

        def ask() -> bool:
            answer = {"role": "assistant", "content": "x"}
            return _WORD in self._shown([dict(_QUESTION), answer, _conversation(role, _WORD)[-1]])

        return self._once(("result", role), ask)

    def shows_calls(self) -> bool:
        """Whether tool calls reach the prompt; true of a template that takes none of the probes."""

        def ask() -> bool:
            texts = [self._call(form) for form in (dict(_ARGUMENTS), _ARGUMENTS_TEXT)]
            return not any(texts) or any(_WORD in text for text in texts)

        return self._once(("calls",), ask)

    def call_form(self) -> MarkedForm | None:
        """How the template writes calls, where it does so behind a mark."""
        if self._hostile:
            return None
        try:
            opening = self._shown([dict(_QUESTION)])
        except RenderError as error:
            self._hostile = error.kind == "stopped"
            return None
        prompts = (self._call(form) for form in (dict(_ARGUMENTS), _ARGUMENTS_TEXT))
        return next(filter(None, (form_of_calls(text, "prbfn", opening) for text in prompts)), None)

    def needs_single_calls(self) -> bool:
        """Whether several calls reach the prompt only when each has a message of its own."""

        def shown(messages: list[dict[str, Any]]) -> bool:
            try:
                text = self._shown([self._formed_call(message) for message in messages])
            except RenderError as error:
                if error.kind == "stopped":
                    raise
                return False
            return all(f"{_WORD}{i}" in text for i in range(2))

        both = _two_calls()
        return self._once(("calls", "single"), lambda: not shown(both) and shown(one_call_each(both)))

    def _formed_call(self, message: dict[str, Any]) -> dict[str, Any]:
        """The probe's calls with arguments as the template reads them."""
        if self.reads_argument_objects() or not self.reads_argument_text():
            return message
        message = deepcopy(message)
        for call in message.get("tool_calls", ()):
            call["function"]["arguments"] = json.dumps(call["function"]["arguments"])
        return message

    def _shown(self, messages: Sequence[Message], asked: str = "") -> str:
        """A probe as the template renders it. Contents that are text are parts where that is all that it
        takes, except in messages of the role that is `asked` about.
        """
        if self._takes_parts is None:
            self._takes_parts = not self._reads(_IN_TEXT) and self._reads([_in_parts(m) for m in _IN_TEXT])
        if not self._takes_parts:
            return self._render(messages)
        return self._render([m if m["role"] == asked else _in_parts(m) for m in messages])

    def _reads(self, messages: Sequence[Message]) -> bool:
        """Whether the words of the question in this conversation reach the prompt."""
        try:
            text = self._render(messages)
        except RenderError as error:
            if error.kind == "stopped":
                raise
            return False
        return _WORD in text and not _PRINTED_PART.search(unescaped(text))

    def _call(self, arguments: Any) -> str:
        for more in ({}, {"content": ""}):  # a few templates want a content beside a call
            try:
                return self._shown([_QUESTION, _with_call(arguments, **more)])
            except RenderError:
                continue
        return ""

    def _once(self, key: tuple[str, ...], ask: Callable[[], bool]) -> bool:
        if key not in self._answers:
            try:
                self._answers[key] = not self._hostile and ask()
            except RenderError as error:
                self._answers[key] = False
                self._hostile = error.kind == "stopped"
        return self._answers[key]


_IN_TEXT: list[dict[str, Any]] = [{"role": "user", "content": _WORD}]


def _in_parts(message: Message) -> Message:
    """With a content that is text as a part."""
    content = message.get("content")
    return (
        {**message, "content": [{"type": "text", "text": content}]} if isinstance(content, str) else message
    )


def _conversation(role: str, content: Any) -> list[dict[str, Any]]:
    """A short conversation that templates accept, with one message of `role`."""
    message = {"role": role, "content": content}
    if role == "user":
        return [message]
    if role == "assistant":
        return [dict(_QUESTION), message, dict(_QUESTION)]
    if role in TOOL_ROLES:
        answer = {**message, "tool_call_id": "prb123456", "name": "prbfn"}
        return [dict(_QUESTION), _with_call({"prbkey": "x"}, content=""), answer]
    return [message, dict(_QUESTION)]


class MessageForms:
    """Copies of `messages` in the form that a template reads: `chosen`.

    What the caller gave stays where the template can take it. Fields that are null or empty are left out.
    Several messages of the system's at the beginning are one where the template takes only one.
    OpenAI's older `function_call` and its results (role `function`) are tool calls and theirs.
    Calls that the template does not show are written in the content as JSON; several in a message, where it
    takes only one, become messages of their own, each before its result. What the system says and the results
    of calls are told by the user where the template takes no messages of theirs, before the user's next
    words.
    Raises TemplateError for messages that are not mappings with a role, and for parts that a template for
    text cannot take.
    """

    def __init__(self, messages: Iterable[Message], abilities: Abilities) -> None:
        self._abilities = abilities
        messages = list(messages)
        self._names = names_of_results(messages)
        self.chosen = [self._formed(message, i) for i, message in enumerate(messages)]
        give_ids(self.chosen)
        self._join_systems()
        several = any(len(message.get("tool_calls") or ()) > 1 for message in self.chosen)
        if several and abilities.needs_single_calls():
            self.chosen = one_call_each(self.chosen)
        self._tell_by_user()

    def _formed(self, message: Any, index: int) -> dict[str, Any]:
        if not isinstance(message, Mapping) or "role" not in message:
            raise TemplateError(
                f"message {index} is not a mapping with a role and a content: {message!r:.200}"
            )
        copy = {key: value for key, value in deepcopy(dict(message)).items() if not _empty(key, value)}
        copy["role"] = role = self._role(copy["role"])
        if calls := calls_of(copy):
            copy["tool_calls"] = calls
        copy.pop("function_call", None)
        if isinstance(copy.get("tool_calls"), list) and not self._abilities.shows_calls():
            copy = with_written_calls(copy)
        speaker = "user" if self._is_told(role) else role
        if speaker != role and self._names[index]:
            copy["name"] = self._names[index]
        if copy.get("content") is None:
            copy.pop("content", None)
            if not self._abilities.allows_no_content(speaker):
                copy["content"] = self._content(speaker, "", index)
        else:
            copy["content"] = self._content(speaker, copy["content"], index)
        for call in copy.get("tool_calls") or ():
            function = call.get("function", call) if isinstance(call, dict) else None
            if isinstance(function, dict) and "arguments" in function:
                function["arguments"] = self._arguments(function["arguments"])
        return copy

    def _join_systems(self) -> None:
        """Messages of the system's at the beginning as one, where the template takes only one."""
        n = next((i for i, m in enumerate(self.chosen) if m["role"] != "system"), len(self.chosen))
        texts = [message.get("content") for message in self.chosen[:n]]
        if (
            n > 1
            and all(isinstance(text, str) for text in texts)
            and not self._abilities.reads_second_system()
        ):
            joined = "\n\n".join(str(text) for text in texts if text)
            self.chosen[:n] = [{**self.chosen[0], "content": joined}]

    def _is_told(self, role: Any, later: bool = False) -> bool:
        """Whether the user tells what this role says; `later`: in the middle of a conversation."""
        if role not in ("system", "developer", *TOOL_ROLES) or not self._can_read("user"):
            return False
        if not self._can_read(role):
            return True
        return later and role == "system" and not self._abilities.reads_later_system()

    def _tell_by_user(self) -> None:
        """Messages of roles that the template does not take become the beginning of the user's next words;
        else the end of those before, or words of their own.
        """
        n = next((i for i, m in enumerate(self.chosen) if m["role"] != "system"), len(self.chosen))
        found: list[dict[str, Any]] = []
        waiting: list[Any] = []
        for i, message in enumerate([*self.chosen, None]):
            if message is not None and self._is_told(message["role"], i >= n):
                content = message.get("content", "")
                is_result = message["role"] in TOOL_ROLES
                waiting.append(written_result(message.get("name"), content) if is_result else content)
                continue
            if waiting and message is not None and message["role"] == "user":
                message = {**message, "content": self._joined([*waiting, message.get("content", "")])}
            elif waiting and found and found[-1]["role"] == "user":
                found[-1] = {**found[-1], "content": self._joined([found[-1].get("content", ""), *waiting])}
            elif waiting:
                found.append({"role": "user", "content": self._joined(waiting)})
            waiting = []
            if message is not None:
                found.append(message)
        self.chosen = found

    def _joined(self, contents: Sequence[Any]) -> Any:
        """Contents of the user's as one, in the form that the template reads."""
        contents = [content for content in contents if content]
        if all(isinstance(content, str) for content in contents):
            return self._content("user", "\n\n".join(contents), 0)
        parts: list[Any] = []
        for content in contents:
            gap = [{"type": "text", "text": "\n\n"}] if parts else []
            parts += [*gap, *([{"type": "text", "text": content}] if isinstance(content, str) else content)]
        return parts

    def _role(self, role: Any) -> Any:
        """`developer` is `system`, and `function` is `tool`, where the template does not know it: an unknown
        role it may print as it is, or take for the user's.
        """
        known = _KNOWN_AS.get(role) if isinstance(role, str) else None
        if known is None or not self._can_read(known):
            return role
        return role if self._can_read(role) and self._abilities.knows_role(role) else known

    def _can_read(self, role: str) -> bool:
        can = self._abilities
        as_text = role in TOOL_ROLES and can.reads_result_of_text(role)
        return as_text or can.reads_text(role) or can.reads_parts(role)

    def _content(self, role: str, content: Any, index: int) -> Any:
        if isinstance(content, str):
            if not self._abilities.reads_text(role) and self._abilities.reads_parts(role):
                return [{"type": "text", "text": content}]
            return content
        if not isinstance(content, list):
            return content
        if self._abilities.reads_parts(role):
            return [{"type": "text", "text": part} if isinstance(part, str) else part for part in content]
        return "".join(_part_text(part, index) for part in content)

    def _arguments(self, arguments: Any) -> Any:
        if isinstance(arguments, str):
            return arguments if self._abilities.reads_argument_text() else parsed(arguments)
        can = self._abilities
        if isinstance(arguments, Mapping) and not can.reads_argument_objects() and can.reads_argument_text():
            return json.dumps(arguments, ensure_ascii=False)
        return arguments


def _empty(key: str, value: Any) -> bool:
    if key in ("role", "content"):
        return False
    return value is None or (isinstance(value, str | list | tuple | dict) and not value)


def _part_text(part: Any, index: int) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping) and isinstance(part.get("text"), str):
        return str(part["text"])
    raise TemplateError(
        f"message {index} holds a part that is not text, and this chat template takes text only"
    )
