"""Answers in the shapes of the OpenAI API, as plain dicts. Nothing here computes anything but text positions.

Source of the shapes: https://platform.openai.com/docs/api-reference (completions, chat, embeddings).
"""

from __future__ import annotations

import codecs
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pyllamacpu.engine.generate import FinishReason, GenerationStats, TextEvent
from pyllamacpu.errors import TokenizerError
from pyllamacpu.sampling.sampler import TokenLogprobs
from pyllamacpu.text.tokenizer import Tokenizer

Response = dict[str, Any]


def _new_id() -> str:
    import uuid

    return f"cmpl-{uuid.uuid4()}"


@dataclass(frozen=True)
class Heading:
    """What all parts of one answer have in common."""

    model: str
    id: str = field(default_factory=_new_id)
    created: int = field(default_factory=lambda: int(time.time()))  # seconds since 1970

    def wrap(self, kind: str, choice: Response, **more: Any) -> Response:
        prefix = "chat" if kind.startswith("chat.") else ""
        head = {"id": prefix + self.id, "object": kind, "created": self.created, "model": self.model}
        return {**head, "choices": [{"index": 0, **choice}], **more}


def usage(n_prompt: int, n_completion: int) -> dict[str, int]:
    return {
        "prompt_tokens": n_prompt,
        "completion_tokens": n_completion,
        "total_tokens": n_prompt + n_completion,
    }


# Log-probabilities


class LogprobWriter:
    """Turns logprobs into the API's table, keeping track of where in the text each token begins (in
    characters).
    """

    def __init__(self, tokenizer: Tokenizer | None, text_offset: int) -> None:
        if tokenizer is None:
            raise TokenizerError(
                "this model has no tokenizer, so logprobs cannot name tokens: use Llama.logits()"
            )
        self._tokenizer = tokenizer
        self._offset = text_offset
        self._n_echoed, self._prompt, self._spelled = 0, "", False
        # Characters are counted as they become whole; bytes that are no UTF-8 count nothing.
        self._decoder = codecs.getincrementaldecoder("utf-8")("ignore")

    def echo(self, prompt: str, entries: Sequence[TokenLogprobs | int], spelled: bool) -> None:
        """The first tokens of the table are the prompt's, but for a BOS that is left out. Special tokens have
        the text that is `spelled` in it, or none, as in an answer; a space that the tokenizer put before a
        word takes no room.
        """
        self._prompt, self._n_echoed, self._spelled = prompt, len(entries), spelled
        bos = self._tokenizer.bos
        if spelled and bos is not None and entries and entries[0] != bos:
            start = self._text(bos, spelled)
            self._offset += len(start) if prompt.startswith(start) else 0

    def table(self, entries: Iterable[TokenLogprobs | int]) -> Response:
        """The table for tokens that follow those of earlier calls. A bare id has no logprobs (the first of a
        text).
        """
        rows = [self._row(entry) for entry in entries]
        return {
            name: [row[name] for row in rows]
            for name in ("tokens", "text_offset", "token_logprobs", "top_logprobs")
        }

    def chat(self, entries: Iterable[TokenLogprobs]) -> Response:
        """The same in the chat API's shape."""
        return chat_logprobs(self._tokenizer, entries)

    def _row(self, entry: TokenLogprobs | int) -> Response:
        token = entry if isinstance(entry, int) else entry.token
        is_echo, self._n_echoed = self._n_echoed > 0, max(0, self._n_echoed - 1)
        spelled = is_echo and self._spelled
        text = self._text(token, spelled)
        offset, shown = self._offset, self._decoder.decode(self._raw(token, spelled))
        if is_echo and shown.startswith(" ") and not self._prompt.startswith(shown, offset):
            shown = shown[1:]
        self._offset += len(shown)
        if isinstance(entry, int):
            return {"tokens": text, "text_offset": offset, "token_logprobs": None, "top_logprobs": None}
        top: dict[str, float] = {}  # of several tokens with one text the likeliest counts
        for other, value in (*entry.top, (entry.token, entry.logprob)):
            top.setdefault(self._text(other, spelled), value)
        return {"tokens": text, "text_offset": offset, "token_logprobs": entry.logprob, "top_logprobs": top}

    def _raw(self, token: int, spelled: bool) -> bytes:
        return self._tokenizer.token_bytes(token, special=spelled) if token < self._tokenizer.n_vocab else b""

    def _text(self, token: int, spelled: bool) -> str:
        return self._raw(token, spelled).decode("utf-8", "ignore")


def chat_logprobs(tokenizer: Tokenizer, entries: Iterable[TokenLogprobs], with_ids: bool = False) -> Response:
    """Each token with its bytes (a part of a character has no text of its own) and its alternatives;
    `with_ids`: and their ids, as llama.cpp has them.
    """

    def shown(token: int, logprob: float) -> Response:
        raw = tokenizer.token_bytes(token, special=True) if token < tokenizer.n_vocab else b""
        named = {"id": token} if with_ids else {}
        return {**named, "token": raw.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(raw)}

    content = [
        {**shown(entry.token, entry.logprob), "top_logprobs": [shown(*other) for other in entry.top]}
        for entry in entries
    ]
    return {"content": content, "refusal": None}


def _logprobs_of_table(table: Response | None) -> Response | None:
    """A completion's logprobs table in the chat API's shape. It has texts only, so no bytes of characters'
    parts.
    """
    if table is None:
        return None
    rows = zip(table["tokens"], table["token_logprobs"], table["top_logprobs"], strict=True)
    return {
        "content": [
            {
                "token": token,
                "logprob": logprob,
                "bytes": list(token.encode("utf-8")) or None,
                "top_logprobs": [
                    {"token": text, "logprob": value, "bytes": list(text.encode("utf-8")) or None}
                    for text, value in top.items()
                ],
            }
            for token, logprob, top in rows
        ],
        "refusal": None,
    }


# Text completions


@dataclass(frozen=True)
class Plan:
    """How the events of one generation become an answer. `before` and `after` are put around the text."""

    heading: Heading
    n_prompt: int
    before: str = ""  # the echoed prompt
    after: str = ""  # a suffix that is only appended
    logprobs: LogprobWriter | None = None
    first_logprobs: tuple[TokenLogprobs | int, ...] = ()  # of the echoed prompt


def whole_completion(plan: Plan, events: Iterable[TextEvent]) -> Response:
    """The answer when all of it is there."""
    seen = list(events)
    text = plan.before + "".join(event.text for event in seen) + plan.after
    entries = [*plan.first_logprobs, *(entry for event in seen for entry in event.logprobs)]
    table = None if plan.logprobs is None else plan.logprobs.table(entries)
    choice = {"text": text, "logprobs": table, "finish_reason": seen[-1].finish_reason}
    n_generated = sum(len(event.tokens) for event in seen)
    return plan.heading.wrap("text_completion", choice, usage=usage(plan.n_prompt, n_generated))


def completion_chunks(plan: Plan, events: Iterable[TextEvent]) -> Iterator[Response]:
    """The answer piece by piece; the last piece has no text but the finish reason."""
    if plan.before or plan.first_logprobs:
        yield _chunk(plan, plan.before, plan.first_logprobs)
    reason: FinishReason | None = None
    for event in events:
        reason = event.finish_reason
        if event.text or event.tokens:
            yield _chunk(plan, event.text, event.logprobs)
    if plan.after:
        yield _chunk(plan, plan.after, ())
    yield plan.heading.wrap("text_completion", {"text": "", "logprobs": None, "finish_reason": reason})


def _chunk(plan: Plan, text: str, entries: Sequence[TokenLogprobs | int]) -> Response:
    table = None if plan.logprobs is None else plan.logprobs.table(entries)
    return plan.heading.wrap("text_completion", {"text": text, "logprobs": table, "finish_reason": None})


# Chat completions


def whole_chat(plan: Plan, events: Iterable[TextEvent]) -> Response:
    """The assistant's message when all of it is there."""
    seen = list(events)
    answer = whole_completion(replace(plan, logprobs=None), seen)
    choice = answer["choices"][0]
    message = {"role": "assistant", "content": choice["text"]}
    logprobs = plan.logprobs and plan.logprobs.chat(entry for event in seen for entry in event.logprobs)
    return plan.heading.wrap(
        "chat.completion",
        {"message": message, "logprobs": logprobs, "finish_reason": choice["finish_reason"]},
        usage=answer["usage"],
    )


def chat_chunks(plan: Plan, events: Iterable[TextEvent]) -> Iterator[Response]:
    """The assistant's message piece by piece: the role, the content, then an empty delta with the finish
    reason.
    """
    yield _chat_chunk(plan, {"role": "assistant"}, None, None)
    reason: FinishReason | None = None
    for event in events:
        reason = event.finish_reason
        if event.text or event.tokens:
            logprobs = None if plan.logprobs is None else plan.logprobs.chat(event.logprobs)
            yield _chat_chunk(plan, {"content": event.text}, logprobs, None)
    yield _chat_chunk(plan, {}, None, reason)


def _chat_chunk(plan: Plan, delta: Response, logprobs: Response | None, reason: str | None) -> Response:
    choice = {"delta": delta, "logprobs": logprobs, "finish_reason": reason}
    return plan.heading.wrap("chat.completion.chunk", choice)


def chat_of_completion(answer: Response) -> Response:
    """A chat's answer from a completion's."""
    choice = answer["choices"][0]
    return {
        **_chat_head(answer, "chat.completion"),
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": choice["text"]},
                "logprobs": _logprobs_of_table(choice["logprobs"]),
                "finish_reason": choice["finish_reason"],
            }
        ],
        "usage": answer["usage"],
    }


def chat_of_chunks(chunks: Iterable[Response]) -> Iterator[Response]:
    """A chat's chunks from a completion's: the role before the first, an empty delta at the end."""
    for i, chunk in enumerate(chunks):
        head, choice = _chat_head(chunk, "chat.completion.chunk"), chunk["choices"][0]
        if i == 0:
            yield {**head, "choices": [_delta({"role": "assistant"}, None, None)]}
        reason = choice["finish_reason"]
        delta = {"content": choice["text"]} if reason is None else {}
        yield {**head, "choices": [_delta(delta, _logprobs_of_table(choice["logprobs"]), reason)]}


def _chat_head(answer: Response, kind: str) -> Response:
    head = {name: answer[name] for name in ("created", "model")}
    return {"id": "chat" + answer["id"], "object": kind, **head}


def _delta(delta: Response, logprobs: Response | None, reason: str | None) -> Response:
    return {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": reason}


# Embeddings


def embedding_response(model: str, vectors: Sequence[Any], n_tokens: int) -> Response:
    """Embeddings in the order of their inputs."""
    data = [{"object": "embedding", "embedding": vector, "index": i} for i, vector in enumerate(vectors)]
    counts = {"prompt_tokens": n_tokens, "total_tokens": n_tokens}
    return {"object": "list", "data": data, "model": model, "usage": counts}


# Timings


def timings_text(stats: GenerationStats) -> str:
    """One line: what a generation cost."""
    drafts = f"; {stats.n_accepted} of {stats.n_drafted} drafted came true" if stats.n_drafted else ""
    images = f"images: {stats.n_image} tokens, {stats.image_seconds:.1f} s; " if stats.n_image else ""
    return (
        f"{images}prompt: {stats.n_prompt} tokens ({stats.n_cached} cached), "
        f"{stats.prompt_rate:.1f} tokens/s; "
        f"answer: {stats.n_generated} tokens, {stats.generate_rate:.1f} tokens/s{drafts}"
    )
