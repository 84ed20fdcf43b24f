"""Tool calls in what a model writes, as it comes.

An answer is text, or calls and what the model wrote behind them: calls begin it. JSON in the middle of prose
stays prose, unless the tag `<tool_call>` stands before it, and a name that was not offered is no call. The
forms are those of Llama 3.1 to 4, as their prompt formats and their models' habits have them: JSON objects
one after the other or in a list, and those of `call_forms`; in a code fence, between python tags or the tags
of Hermes and SmolLM2, or in Firefunction 2's list; and those of `marked_calls`, also behind a text.

A call in JSON begins when its name is known and its arguments open: from then on its arguments come as they
are written, and nothing takes it back. What does not go on as calls do, and all behind it, is text. The other
forms are read at the end of the answer, and only if it consists of nothing else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Generator
from dataclasses import dataclass

from pyllamacpu.text.call_forms import NoCall, calls_of
from pyllamacpu.text.call_parts import Answer, Part, ToolCallDelta, join_parts
from pyllamacpu.text.json_scanner import SPACE, JsonScanner, is_json_object
from pyllamacpu.text.marked_calls import MISTRAL, MarkedForm

_CALL_TAG = "<tool_call>"
_TAGS = ("<|python_tag|>", "<|python_start|>", "<|python_end|>", _CALL_TAG, "</tool_call>")
_ANY_TAG = re.compile("|".join(map(re.escape, _TAGS)))
_LIST = "functools["
_FUNCTION = "<function="
_FENCE = "```"
_FENCE_LINE = re.compile(r"```[\w-]*[ \t]*\n")
_ARGUMENT_KEYS = ('"parameters"', '"arguments"')
_OTHER_KEYS = ('"type"', '"id"', '"index"')
_KEYS = ('"name"', '"function"', *_ARGUMENT_KEYS, *_OTHER_KEYS)


def read_answer(text: str, names: Collection[str], most: int | None = None) -> Answer:
    """Of the tools that were offered, at most so many calls."""
    reader = ToolCallReader(names, most)
    return join_parts([*reader.push(text), *reader.finish()])


@dataclass
class _Call:
    """What is known of the call that is being read."""

    name: str | None = None
    arguments: str | None = None  # held until the name is known
    begun: bool = False


class ToolCallReader:
    """Reads an answer piece by piece; what may become a call is held back until that is decided. The outcome
    is the same however the text is cut.
    """

    def __init__(
        self,
        names: Collection[str],
        most: int | None = None,
        plain: bool = False,
        form: MarkedForm | None = None,
    ) -> None:
        """most: calls that may come, the rest is text. plain: only JSON that begins the answer is a call, or
        what has this `form`, the one that the template writes.
        """
        self._names = frozenset(names)
        self._form, self._is_own = form or MISTRAL, form is not None
        self._openers = frozenset((_CALL_TAG[0], self._form.mark[0]))
        self._opener = re.compile(f"[{re.escape(''.join(self._openers))}]")
        self._most = most
        self._plain = plain
        self._parts: list[Part] = []
        self._piece: list[str] = []  # of the arguments, for the next part
        self._held = ""  # what no part has yet
        self._at_end = False  # the text is read when it is whole
        self._between = False  # what is held stands between calls, or behind the last
        self._open = False  # a call has begun and is not done
        self.n_calls = 0  # that are done
        self._machine: Generator[None, str, None] | None = None
        if (names and most != 0) or self._form.speech:
            self._machine = self._answer()
            next(self._machine)

    @property
    def has_called(self) -> bool:
        """Whether there are calls, and all of them are whole."""
        return self.n_calls > 0 and not self._open

    def push(self, text: str) -> list[Part]:
        """The parts that `text` completes."""
        at = 0
        while at < len(text):
            if self._machine is None:
                found = self._opener.search(text, at) if self._may_call else None
                self._text(text[at : found.start()] if found else text[at:])
                if found is None:
                    break
                at, self._machine = found.start(), self._tagged()
                next(self._machine)
            if self._at_end:
                self._held += text[at:]
                break
            c = text[at]
            at += 1
            self._held += c
            try:
                self._machine.send(c)
            except NoCall:
                if c in self._openers and len(self._held) > 1:  # it may begin a tag
                    at, self._held = at - 1, self._held[:-1]
                self._stop()
        return self._take_parts()

    @property
    def _may_call(self) -> bool:
        """Whether a call may still come, behind a tag or a mark, or more of what the model says."""
        if self._form.speech:
            return True
        return bool(self._names) and not self._plain and self.n_calls != self._most

    def _stop(self) -> None:
        """What is held is text, without the tags between calls."""
        held, self._machine = self._take(), None
        self._text(_ANY_TAG.sub("", held) if self._between else held)
        self._between = False

    def finish(self) -> list[Part]:
        """The parts of what was held back, at the end of the answer."""
        if self._at_end:
            self._read_at_end()
        elif self._between:
            self._take()
        self._text(self._take())
        self._machine = None
        return self._take_parts()

    def _take(self) -> str:
        held, self._held = self._held, ""
        return held

    def _take_parts(self) -> list[Part]:
        self._put_piece()
        parts, self._parts = self._parts, []
        return parts

    def _text(self, text: str) -> None:
        self._put_piece()
        if text and self._parts and isinstance(last := self._parts[-1], str):
            self._parts[-1] = last + text
        elif text:
            self._parts.append(text)

    # Calls

    def _begin(self, name: str) -> None:
        self._take()
        self._open = True
        self._parts.append(ToolCallDelta(self.n_calls, name))

    def _put_piece(self, done: bool = False) -> None:
        """What has come of the arguments, as one part."""
        if self._piece:
            self._parts.append(ToolCallDelta(self.n_calls, None, "".join(self._piece), done))
            self._piece.clear()

    def _end(self) -> None:
        self._put_piece(done=True)
        self.n_calls += 1
        self._open, self._between = False, True

    def _whole_call(self, name: str, arguments: str) -> None:
        self._begin(name)
        self._piece.append(arguments)
        self._end()

    def _read_at_end(self) -> None:
        text = _without_tags(self._held)
        if (fence := _FENCE_LINE.match(text)) and text.endswith(_FENCE):
            text = _without_tags(text[fence.end() : -len(_FENCE)])
        try:
            calls = calls_of(text)
        except NoCall:
            return
        if all(call.name in self._names for call in calls) and (
            self._most is None or len(calls) <= self._most
        ):
            for call in calls:
                self._whole_call(call.name, call.arguments)

    # The machine: it is sent one character after the other. Its parts get the character that they begin with,
    # and give back the first one behind them. NoCall: what is held is text, and so is all that comes.

    def _answer(self) -> Generator[None, str, None]:
        c = yield from self._opening((yield))
        if self._is_own and (self._form.prompted or self._plain) and c not in "<{[`":
            yield from self._marked_answer(c)
            return
        if self._plain and c != "{" and not (self._is_own and c == self._form.mark[0]):
            raise NoCall
        fenced = c == _FENCE[0]
        if fenced:
            yield from self._one_of(c, [_FENCE])
            c = yield from self._fence_line((yield))
            c = yield from self._opening(c)
        if c not in "{[":
            mark = yield from self._one_of(c, [_LIST, *(f"{name}.call(" for name in self._names)])
            if mark != _LIST:
                yield from self._hold()
            c = "["
        if c == "[":
            c = yield
            if c == self._form.mark[1:2] and self._form.mark[0] == "[":
                mark = yield from self._one_of(
                    c, [self._form.mark[1:], *(f"{name}(" for name in self._names)]
                )
                yield from self._marked() if mark == self._form.mark[1:] else self._hold()
                yield from self._more(fenced)
            c = yield from self._space(c)
            if c != "{":
                yield from self._one_of(c, list(self._names))
                yield from self._hold()
            c = yield from self._list(c)
        else:
            yield from self._call()
        yield from self._more(fenced)

    def _tagged(self) -> Generator[None, str, None]:
        """Calls in the middle of a text, behind the tag of calls or the form's mark."""
        if (yield from self._one_of((yield), [_CALL_TAG, self._form.mark])) == self._form.mark:
            yield from self._marked()
            yield from self._more(False)
        c = yield from self._space((yield))
        if c == "[":
            c = yield from self._space((yield))
            yield from self._list(c)
        elif c == "{":
            yield from self._call()
        else:
            raise NoCall
        yield from self._more(False)

    def _more(self, fenced: bool) -> Generator[None, str, None]:
        """Behind the first value."""
        while True:
            self._take()
            c = yield from self._separators((yield), fenced)
            if c == self._form.mark[0] != "[" and not self._ends:
                yield from self._one_of(c, [self._form.mark])
                yield from self._marked()
                continue
            if self._ends or c not in "{[":
                raise NoCall
            self._between = False
            if c == "{":
                yield from self._call()
                continue
            c = yield
            if c == self._form.mark[1:2] and self._form.mark[0] == "[":
                yield from self._one_of(c, [self._form.mark[1:]])
                yield from self._marked()
            else:
                c = yield from self._space(c)
                yield from self._list(c)

    @property
    def _ends(self) -> bool:
        """Whether no more calls may come."""
        return self.n_calls == self._most

    def _marked_answer(self, c: str) -> Generator[None, str, None]:
        """An answer that begins with a mark, or with what stands behind one."""
        if c == self._form.mark[0]:
            yield from self._one_of(c, [self._form.mark])
            yield from self._marked()
        elif self._form.prompted:
            yield from self._named(c)
        else:
            raise NoCall
        yield from self._more(False)

    def _marked(self) -> Generator[None, str, None]:
        """Behind a mark: a name and arguments, or (Mistral's older models) calls in JSON."""
        self._between = False
        c = yield from self._space((yield))
        if c == "[":
            c = yield from self._space((yield))
            yield from self._list(c)
        elif c == "{":
            yield from self._call()
        else:
            yield from self._named(c)

    def _named(self, c: str) -> Generator[None, str, None]:
        """A name and the arguments behind it, or what the model says behind the name of speech."""
        form, name = self._form, ""
        known = (*self._names, form.speech)
        while any(other.startswith(name + c) for other in known):
            name += c
            c = yield
        if name == form.speech != "" and c == form.between:
            self._take()
            raise NoCall
        if not form.speech:
            c = yield from self._id(c)
        elif c != form.between:
            raise NoCall
        c = yield from self._space(c)
        if name not in self._names or self._ends or c != "{":
            raise NoCall
        self._begin(name)
        self._held = c
        yield from self._stream_object(c)

    def _id(self, c: str) -> Generator[None, str, str]:
        """What stands between a name and its arguments: an id, and the marks of both, where there are any."""
        marks = [MISTRAL.id_mark, MISTRAL.between]
        while c == "[" and marks:
            mark = yield from self._one_of(c, marks)
            c = yield
            while mark == MISTRAL.id_mark and (c.isalnum() or c in "_-"):
                c = yield
            marks = marks[marks.index(mark) + 1 :]
        return c

    def _list(self, c: str) -> Generator[None, str, str]:
        """Calls behind the "[" of a list, to its end."""
        while c == "{":
            self._between = False
            yield from self._call()
            self._take()
            c = yield from self._space((yield))
            if c == "]":
                return c
            if c != "," or self.n_calls == self._most:
                break
            c = yield from self._space((yield))
        raise NoCall

    def _call(self) -> Generator[None, str, None]:
        """Behind the "{" of a call, to its "}"."""
        call = _Call()
        yield from self._pairs(call, _KEYS)
        if call.name not in self._names:
            raise NoCall
        if not call.begun:
            self._whole_call(call.name, call.arguments or "{}")

    def _pairs(self, call: _Call, keys: Collection[str]) -> Generator[None, str, None]:
        """Keys and values, to the "}". A key stands there once."""
        left = set(keys)
        c = yield from self._space((yield))
        while True:
            key = yield from self._one_of(c, left)
            left -= set(_ARGUMENT_KEYS) if key in _ARGUMENT_KEYS else {key}
            c = yield from self._space((yield))
            if c != ":":
                raise NoCall
            c = yield from self._space((yield))
            c = yield from self._pair(call, key, c)
            c = yield from self._space(c)
            if c == "}":
                return
            if c != ",":
                raise NoCall
            c = yield from self._space((yield))

    def _pair(self, call: _Call, key: str, c: str) -> Generator[None, str, str]:
        """The value of a key."""
        if key in _ARGUMENT_KEYS:
            return (yield from self._arguments(call, c))
        if key == '"function"' and c == "{":
            yield from self._pairs(call, ('"name"', *_ARGUMENT_KEYS))
            return (yield)
        raw, c = yield from self._value(c)
        if key in ('"name"', '"function"'):
            if call.name is not None or raw[0] != '"':
                raise NoCall
            call.name = json.loads(raw)
            if call.name not in self._names:
                raise NoCall
        return c

    def _arguments(self, call: _Call, c: str) -> Generator[None, str, str]:
        if c == "{" and call.name is not None:
            call.begun = True
            self._begin(call.name)
            self._held = c
            yield from self._stream_object(c)
            return (yield)
        raw, c = yield from self._value(c)
        if raw == "null":
            return c
        text: str = json.loads(raw) if raw[0] == '"' else raw
        if not is_json_object(text):
            raise NoCall
        call.arguments = text.strip(SPACE)
        return c

    def _stream_object(self, c: str) -> Generator[None, str, None]:
        """The arguments, piece by piece."""
        scanner = JsonScanner()
        while scanner.push(c):
            self._piece.append(self._take())
            if scanner.is_whole:
                self._end()
                return
            c = yield
        raise NoCall

    def _value(self, c: str) -> Generator[None, str, tuple[str, str]]:
        """(the text of any value, the character behind it)."""
        scanner, raw = JsonScanner(), ""
        while scanner.push(c):
            raw += c
            c = yield
            if scanner.is_whole:
                return raw, c
        if not scanner.is_whole:
            raise NoCall
        return raw, c

    def _hold(self) -> Generator[None, str, None]:
        self._at_end = True
        while True:
            yield

    def _space(self, c: str) -> Generator[None, str, str]:
        while c in SPACE:
            c = yield
        return c

    def _opening(self, c: str) -> Generator[None, str, str]:
        """White space and tags; the "<" of a function's tag is left."""
        while True:
            if c == "<" and not self._plain:
                mark = yield from self._one_of(c, [*_TAGS, _FUNCTION])
                if mark == _FUNCTION:
                    yield from self._hold()
            elif not c.isspace():
                return c
            c = yield

    def _fence_line(self, c: str) -> Generator[None, str, str]:
        """The rest of the line that opens a fence; what follows it."""
        while c.isalnum() or c in "_-":
            c = yield
        while c in " \t":
            c = yield
        if c != "\n":
            raise NoCall
        return (yield)

    def _separators(self, c: str, fenced: bool) -> Generator[None, str, str]:
        """Between calls, and behind the last: white space, semicolons, commas, tags, the end of the fence."""
        while True:
            if c == "<" and not self._plain:
                yield from self._one_of(c, _TAGS)
            elif c == _FENCE[0] and fenced:
                yield from self._one_of(c, [_FENCE])
                fenced = False
            elif not c.isspace() and c not in ";,":
                return c
            c = yield

    def _one_of(self, c: str, marks: Collection[str]) -> Generator[None, str, str]:
        """The mark that the text goes on with."""
        found = c
        while found not in marks:
            if not any(mark.startswith(found) for mark in marks):
                raise NoCall
            found += yield
        return found


def _without_tags(text: str) -> str:
    """`text` without white space and tags around it; within it they may be part of an argument."""
    length = -1
    while len(text) != length:
        length, text = len(text), text.strip()
        for tag in _TAGS:
            text = text.removeprefix(tag).removesuffix(tag)
    return text
