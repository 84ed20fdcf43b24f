"""Which chat template a model gets, and a chat as token ids.

Special tokens are recognised in the words of the template, never in the words of the people: a user who
writes `<|im_end|>` writes ten characters.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from inspect import Parameter, signature
from typing import Any

from pyllamacpu.errors import TemplateError
from pyllamacpu.gguf.metadata import text_of
from pyllamacpu.text.formats import ALIASES, FORMATS, Format, find_format
from pyllamacpu.text.messages import Message, MessageForms, check_size
from pyllamacpu.text.missing import missing_messages, missing_tools, strings_in
from pyllamacpu.text.named_formats import NAMED_FORMATS, find_named
from pyllamacpu.text.template import ADVICE, ChatTemplate
from pyllamacpu.text.tokenizer import Tokenizer
from pyllamacpu.text.vocab import END_NAMES, START_NAMES

TEMPLATE_KEY = "tokenizer.chat_template"

# A token of the vocabulary → the format that was trained with it; the first that is there wins.
BY_TOKEN = (
    ("<|header_start|>", "llama4"),
    ("<|start_header_id|>", "llama3"),
    ("<|im_start|>", "chatml"),
    ("[INST]", "mistral"),
    ("<step>", "codellama-70b"),
)
# A word in the model's name → its format.
BY_NAME = (
    ("codellama-70b", "codellama-70b"),
    ("vicuna", "vicuna"),
    ("wizard", "wizardlm"),
    ("alpaca", "alpaca"),
    ("tinyllama", "zephyr"),
    ("zephyr", "zephyr"),
    ("mistral", "mistral"),
    ("mixtral", "mistral"),
    ("orca", "orca"),
)


def choose_template(metadata: Mapping[str, Any], name: str | Format | None = None) -> ChatTemplate:
    """The chat template for a model file.

    `name` is a format or its name (see `formats.FORMATS`, then `named_formats`), a Jinja source, or None for
    the file's own template. A file without one gets the format that its vocabulary or its name points to, and
    the result's `warning` says so.
    Raises TemplateError for an unknown name or a broken template.
    """
    tokens = _SpecialSpellings(metadata)
    if isinstance(name, Format):
        return _from_format("chosen", name, tokens)
    if name is not None:
        found = find_format(name) or find_named(name)
        if found is not None:
            return _from_format(*found, tokens)
        if "{{" in name or "{%" in name:
            return ChatTemplate(
                name, tokens.bos, tokens.eos, name="the given chat template", variables=tokens.others
            )
        known = ", ".join(sorted({*FORMATS, *ALIASES, *NAMED_FORMATS}))
        raise TemplateError(f"there is no chat format {name!r}; known are {known}, or give a Jinja template")
    own = metadata.get(TEMPLATE_KEY)
    tool_use = metadata.get(f"{TEMPLATE_KEY}.tool_use")
    if own is None:
        own = next((metadata[key] for key in _named_templates(metadata)), None)
    if isinstance(own, str):
        return ChatTemplate(
            own,
            tokens.bos,
            tokens.eos,
            name="the model's chat template",
            tool_source=tool_use if isinstance(tool_use, str) else None,
            variables=tokens.others,
        )
    guess, reason = _guess(metadata)
    return _from_format(
        guess,
        FORMATS[guess],
        tokens,
        warning=f"the model file has no chat template; using the {guess} format, {reason}. "
        f"If answers look wrong, {ADVICE}",
    )


def foreign_tokens(template: ChatTemplate, tokenizer: Tokenizer) -> list[str]:
    """Control tokens that the template writes and the vocabulary lacks: it was made for another family of
    models, and this one reads them letter by letter.
    """
    try:
        text = template.render([{"role": "user", "content": "?"}])
    except TemplateError:  # which is said when there is a conversation to render
        return []
    names = sorted((END_NAMES | START_NAMES) - tokenizer.special_tokens.keys())
    return [name for name in names if name in text]


def warn_of_foreign_tokens(template: ChatTemplate, tokenizer: Tokenizer) -> None:
    """Adds to the template's warning what `foreign_tokens` finds."""
    if foreign := foreign_tokens(template, tokenizer):
        said = (
            f"{template.name} writes {', '.join(foreign)}, which this model has no tokens for: it was made "
            f"for another kind of model, and answers may be of no use; {ADVICE}"
        )
        template.warning = f"{template.warning}; {said}" if template.warning else said


def encode_chat(
    tokenizer: Tokenizer,
    template: ChatTemplate,
    /,
    messages: Sequence[Message],
    tools: Sequence[Any] | None = None,
    add_generation_prompt: bool = True,
    check: bool = True,
    markers: Mapping[str, int] | None = None,
    **extra: Any,
) -> list[int]:
    """Token ids of the prompt for `messages`, with one BOS if the vocabulary wants one.

    Raises TextSizeError as `check_size`, and TemplateError when the words of the last message are not in the
    prompt (unless `check` is off); an earlier message or a tool that the template leaves out is a
    UserWarning.

    Spellings of special tokens inside messages and tools stay text. They are made unrecognisable before
    rendering, by putting a private-use character for their first one, and restored afterwards in the text
    between the template's own special tokens, so that word and token boundaries are those of the plain text.
    `markers`: texts inside messages that stand for a token each (where an image is).
    """
    check_size(messages, tools)
    masks = _Masks(tokenizer, template, messages, tools, extra, markers or {})
    special = frozenset(masks.spellings)
    formed = MessageForms(messages, template.abilities_with(tools)).chosen

    def render(open_spellings: frozenset[str]) -> str:
        hidden = special - open_spellings
        shown = [masks.hide(message, hidden) for message in formed]
        hidden_tools = masks.hide(list(tools), hidden) if tools else None
        return template.render_forms(shown, hidden_tools, add_generation_prompt, **masks.hide(extra, hidden))

    text = render(frozenset())
    if masks.used:
        text = _reconcile(text, render, masks)
    if check:
        _check_prompt(masks.restore(text), template, messages, tools, masks.used)
    pieces = masks.split(text)
    ids: list[int] = []
    for piece in pieces:
        if isinstance(piece, int):
            ids.append(piece)
        elif piece:
            ids += tokenizer.encode_fragment(piece, ids)
    if tokenizer.add_bos and tokenizer.bos is not None and tokenizer.bos not in ids:
        ids.insert(0, tokenizer.bos)
    return ids


RESERVED = frozenset(
    name
    for function in (encode_chat, ChatTemplate.render)
    for name, parameter in signature(function).parameters.items()
    if parameter.kind is Parameter.POSITIONAL_OR_KEYWORD
)
"""Names that a variable of a template cannot have: those that are given beside them."""


def _check_prompt(
    prompt: str,
    template: ChatTemplate,
    messages: Sequence[Message],
    tools: Sequence[Any] | None,
    special: Iterable[str],
) -> None:
    """Whether the words of all messages and the names of all tools reached the prompt."""
    missing = missing_messages(prompt, messages, special)
    if missing and missing[-1] == len(messages) - 1:
        role = messages[-1].get("role")
        lost = f"all or some of the last message (of the role {role!r})"
        raise TemplateError(f"{template.name} leaves out {lost}; {ADVICE}")
    for i in missing:
        role = messages[i].get("role")
        _warn(f"{template.name} leaves out all or some of message {i} (of the role {role!r})")
    if tools and (names := missing_tools(prompt, tools)):
        _warn(f"{template.name} does not show the model these tools: {', '.join(names[:5])}")


def _warn(sentence: str) -> None:
    warnings.warn(sentence, UserWarning, stacklevel=4)


def _reconcile(text: str, render: Any, masks: _Masks) -> str:
    """A rendering in which the template's questions about the contents (`'</think>' in content`) got true
    answers.

    `text` was rendered with every special spelling hidden. If the plain messages render to the same words, it
    is right. Otherwise the template reacts to a spelling; those that it consumes, so that none of them comes
    out more often than the template itself writes it, are left visible. The others stay hidden: nobody's text
    becomes a special token.
    """
    if masks.restore(text) == render(frozenset(masks.used)):
        return text
    consumed = [
        spelling
        for spelling in sorted(masks.used)
        if masks.count(render(frozenset([spelling])), spelling) <= masks.count(text, spelling)
    ]
    return str(render(frozenset(consumed))) if consumed else text


class _Masks:
    """Hides special spellings in the strings of a value by writing their first character as a private-use
    one.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        messages: Sequence[Message],
        tools: Sequence[Any] | None,
        extra: Mapping[str, Any],
        markers: Mapping[str, int],
    ) -> None:
        self.spellings = tokenizer.special_tokens
        self.used: set[str] = set()
        self._longest_first = sorted(filter(None, self.spellings), key=len, reverse=True)
        self._special = _any_of(self._longest_first)
        self._visible = _any_of([*self._longest_first, *markers])
        self._ids = {**self.spellings, **markers}
        taken = set(template.source).union(template.tool_source or "", *strings_in([*messages, tools, extra]))
        free = (chr(code) for code in range(0xF0000, 0xFFFFE) if chr(code) not in taken)
        first_letters = sorted({_first_letter(spelling) for spelling in self._longest_first})
        self._mask = dict(zip(first_letters, free, strict=False))
        self._unmask = {ord(mask): letter for letter, mask in self._mask.items()}
        written = (
            json.dumps,
            repr,
        )  # as `tojson(ensure_ascii=true)` writes it, and a printed list or mapping
        self._escaped = {
            write(mask)[1:-1]: letter for letter, mask in self._mask.items() for write in written
        }
        self._by_first: dict[str, list[str]] = {}
        for spelling in self._longest_first:
            self._by_first.setdefault(spelling[0], []).append(spelling)
        self._max_beginning = max(map(len, self._longest_first), default=1) - 1

    def hide(self, value: Any, spellings: frozenset[str]) -> Any:
        """`value` with these spellings hidden in all its strings, keys included; containers are copied."""
        if isinstance(value, str):
            return self._hide_in(value, spellings)
        if isinstance(value, Mapping):
            return {self.hide(key, spellings): self.hide(item, spellings) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.hide(item, spellings) for item in value]
        return value

    def _hide_in(self, text: str, spellings: frozenset[str]) -> str:
        marks = set()
        position = 0
        while (match := self._special.search(text, position)) is not None:
            self.used.add(match.group())
            if match.group() in spellings:
                marks.add(match.start())
            position = match.start() + 1
        # A text that ends in the beginning of a special token could be completed by the template's next
        # words.
        for start in range(max(0, len(text) - self._max_beginning), len(text)):
            if text[start] in self._by_first and self._may_begin(text[start:]):
                marks.add(start)
        if not marks:
            return text
        letters = list(text)
        for mark in marks:
            while letters[mark].isspace() and mark + 1 < len(letters):
                mark += 1
            letters[mark] = self._mask.get(letters[mark], letters[mark])
        return "".join(letters)

    def _may_begin(self, end: str) -> bool:
        """Whether a special token is longer than `end` and begins with it; spaces alone do not count."""
        longer = (spelling for spelling in self._by_first[end[0]] if len(spelling) > len(end))
        return bool(end.strip()) and any(spelling.startswith(end) for spelling in longer)

    def restore(self, text: str) -> str:
        """`text` with the hidden characters back, also where the template wrote them as escapes."""
        for escaped, letter in self._escaped.items():
            if escaped in text:
                text = text.replace(escaped, letter)
        return text.translate(self._unmask)

    def count(self, text: str, spelling: str) -> int:
        return text.count(spelling)

    def split(self, text: str) -> list[str | int]:
        """`text` as plain text and the ids of the special tokens that stand in it unhidden."""
        parts: list[str | int] = []
        end = 0
        for match in self._visible.finditer(text):
            parts += [self.restore(text[end : match.start()]), self._ids[match.group()]]
            end = match.end()
        return [*parts, self.restore(text[end:])]


def _first_letter(spelling: str) -> str:
    return (spelling.lstrip() or spelling)[0]


def _any_of(spellings: Sequence[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, spellings)) or r"(?!)")


def _list(metadata: Mapping[str, Any], key: str) -> Sequence[Any]:
    """A metadata array; empty when it is missing or no array (the tokenizer complains about that, not the
    template).
    """
    value = metadata.get(key)
    return value if isinstance(value, Sequence) and not isinstance(value, str | bytes) else ()


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


class _SpecialSpellings:
    """The spellings of BOS, EOS and the other special tokens, for the template's variables."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self._metadata = metadata
        self._tokens = _list(metadata, "tokenizer.ggml.tokens")
        sentencepiece = text_of(metadata, "tokenizer.ggml.model") in ("llama", "t5")
        self.bos = self._spelling("bos", 1 if sentencepiece else None)
        self.eos = self._spelling("eos", 2 if sentencepiece else None)
        named = {"unk_token": self._spelling("unknown", None), "pad_token": self._spelling("padding", None)}
        self.others = {key: value for key, value in named.items() if value}

    def _spelling(self, role: str, default: int | None) -> str:
        token = self._metadata.get(f"tokenizer.ggml.{role}_token_id", default)
        known = hasattr(token, "__index__") and 0 <= int(token) < len(self._tokens)
        return str(self._tokens[int(token)]) if known else ""


def _from_format(
    name: str, chosen: Format, tokens: _SpecialSpellings, warning: str | None = None
) -> ChatTemplate:
    return ChatTemplate(
        chosen.source,
        tokens.bos,
        tokens.eos,
        name=f"the {name} chat format",
        stop_tokens=chosen.stop_tokens,
        stop_strings=chosen.stop_strings,
        warning=warning,
        variables=tokens.others,
    )


def _named_templates(metadata: Mapping[str, Any]) -> list[str]:
    """Keys of the file's named templates, `default` first, for files that have no unnamed one."""
    keys = [key for key in metadata if key.startswith(f"{TEMPLATE_KEY}.")]
    return sorted(keys, key=lambda key: (not key.endswith(".default"), key))


def _guess(metadata: Mapping[str, Any]) -> tuple[str, str]:
    """A format for a file without a template, and the reason."""
    wanted = dict(BY_TOKEN)
    found = wanted.keys() & set(filter(_is_text, _list(metadata, "tokenizer.ggml.tokens")))
    for token, name in BY_TOKEN:
        if token in found:
            return name, f"because its vocabulary has {token}"
    model = str(metadata.get("general.name", "")).lower().replace(" ", "-")
    for word, name in BY_NAME:
        if word in model:
            return name, f"because it is called {metadata['general.name']!r}"
    if text_of(metadata, "tokenizer.ggml.model") in ("llama", "t5"):
        return "llama2", "because its vocabulary is Llama 2's kind"
    return "chatml", "the most common one"
