"""Prompts as token ids: plain text, text with a hole (fill in the middle), and conversations."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pyllamacpu.api.compat import warn_once
from pyllamacpu.errors import OptionError
from pyllamacpu.text.call_messages import TOOL_ROLES
from pyllamacpu.text.infill import prompt_with_hole
from pyllamacpu.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from pyllamacpu.text.template import ChatTemplate

CheckIds = Callable[[Iterable[int]], list[int]]  # raises TokenizerError


def text_prompt(tokenizer: Tokenizer, prompt: str | Sequence[int], check: CheckIds) -> list[int]:
    """Ids of `prompt`: text gets BOS where the model wants it and may spell special tokens; ids stay as they
    are, if `check` lets them pass.

    A text with `<FILL_ME>` asks a model that can fill in for what belongs there. An empty text is just BOS.
    Raises OptionError when nothing is left to evaluate, TokenizerError for several holes.
    """
    if isinstance(prompt, str):
        if (filled := prompt_with_hole(tokenizer, prompt)) is not None:
            return filled
        ids = tokenizer.encode(prompt, parse_special=True)
    else:
        ids = check(prompt)
    if not ids:
        raise OptionError(
            "the prompt is empty, and this model puts no BOS before it: give at least one token"
        )
    return ids


def check_messages(messages: Any, with_images: bool = False) -> list[dict[str, Any]]:
    """`messages` as a list of dicts with a role; `with_images`: parts may be {"type": "image"}. Raises
    OptionError.
    """
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise OptionError("messages must be a list of {'role': ..., 'content': ...}")
    if not messages:
        raise OptionError("messages is empty: give at least one message")
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise OptionError(f"messages[{i}] must be a dict with a 'role', not {message!r:.80}")
        _check_content(message, i, with_images)
        if not isinstance(message.get("tool_calls"), (list, tuple, type(None))):
            raise OptionError(f"messages[{i}]: tool_calls must be a list, not {message['tool_calls']!r:.80}")
    return [_with_list(message) for message in messages]


def _with_list(message: Mapping[str, Any]) -> dict[str, Any]:
    """A copy whose parts are a list, as templates test for."""
    content = message.get("content")
    return {**message, "content": list(content)} if isinstance(content, tuple) else dict(message)


def _check_content(message: Mapping[str, Any], index: int, with_images: bool) -> None:
    """Raises OptionError for a content that is neither text nor a list of texts: a template would drop an
    image silently, and print anything else as Python writes it. Results of tools may be what they are.
    """
    content = message.get("content")
    if not isinstance(content, (str, list, tuple, type(None))) and message["role"] not in TOOL_ROLES:
        given = type(content).__name__
        raise OptionError(f"messages[{index}]: content must be a text or a list of parts, not {given}")
    for part in content if isinstance(content, (list, tuple)) else ():
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text" and not isinstance(part.get("text"), str):
            raise OptionError(f"messages[{index}]: a content part of type 'text' has no text: {part!r:.80}")
        if not isinstance(part, str) and kind != "text" and not (with_images and kind == "image"):
            raise OptionError(
                f"messages[{index}]: only text is supported, not a content part of type {kind!r}"
            )


def stop_token_ids(tokenizer: Tokenizer, template: ChatTemplate) -> frozenset[int]:
    """Ids of the tokens that end a turn in this template, beside those that the vocabulary names."""
    ids = (tokenizer.token_id(spelling) for spelling in template.stop_tokens)
    return frozenset(token for token in ids if token is not None)


def stop_strings(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    """The texts that end an answer. Raises OptionError for what is none."""
    return () if stop is None else tuple(as_texts("stop", stop))


def chat_ends(stop: str | Sequence[str] | None, template: ChatTemplate) -> list[str]:
    """What ends an answer of a chat: the caller's texts and the template's."""
    return [*stop_strings(stop), *template.stop_strings]


def as_texts(name: str, value: str | Iterable[str]) -> list[str]:
    """One text or several, as a list. Raises OptionError for anything else."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, (bytes, Mapping)) or not isinstance(value, Iterable):
        raise OptionError(f"{name}={value!r:.80}: give a text, or a list of texts")
    texts = list(value)
    if wrong := [text for text in texts if not isinstance(text, str)]:
        raise OptionError(f"{name}: {wrong[0]!r:.80} is not a text")
    return texts


def check_list(name: str, value: Any) -> None:
    """Raises OptionError for what is neither a list nor None."""
    if not isinstance(value, (Sequence, type(None))) or isinstance(value, (str, bytes)):
        raise OptionError(f"{name}={value!r:.80}: give a list")


def token_count(name: str, value: int | None) -> int:
    """A number of tokens; None and less than 0 are 0. Raises OptionError for what is no whole number."""
    try:
        return max(0, operator.index(0 if value is None else value))
    except TypeError:
        raise OptionError(f"{name}={value!r:.80}: give a whole number, or None") from None


def listed_tokens(logprobs: Any, top_logprobs: int | None) -> int | None:
    """How many tokens a chat lists beside each of its own; None: it lists no log-probabilities. Raises
    OptionError.
    """
    n = token_count("top_logprobs", top_logprobs)
    return n if logprobs else None


def warn_retired(tfs_z: float, penalize_nl: bool = True) -> None:
    """Tells of options that llama-cpp-python still takes and no sampler has any more."""
    if tfs_z != 1.0:
        warn_once("tfs_z", f"tfs_z={tfs_z!r} does nothing: tail-free sampling was retired; use min_p")
    if not penalize_nl:
        warn_once("penalize_nl", "penalize_nl=False does nothing: newlines are penalized like other tokens")
