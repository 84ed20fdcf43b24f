"""OpenAI's chat completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pyllamacpu.api.responses import chat_logprobs
from pyllamacpu.engine.generate import TextEvent
from pyllamacpu.server.adapters import read_lora
from pyllamacpu.server.constraints import openai_grammar
from pyllamacpu.server.endings import openai_reason
from pyllamacpu.server.fields import Fields
from pyllamacpu.server.generation import Answers, Generate
from pyllamacpu.server.logprobs import read_logprobs
from pyllamacpu.server.messages import opens_answer, read_messages, template_extra
from pyllamacpu.server.models import Model
from pyllamacpu.server.openai_endpoint import MAX_ANSWERS, NO_EFFECT, Endpoint
from pyllamacpu.server.prompts import Chat
from pyllamacpu.server.sampling_fields import BIG, read_sampling
from pyllamacpu.server.tools import call_id, read_tools, tools_of_answer
from pyllamacpu.text.call_parts import Part, ToolCallDelta
from pyllamacpu.text.tool_calls import ToolCallReader

_NOT_HERE: dict[str, tuple[str, ...]] = {  # why, and values that ask for nothing
    "audio": ("audio is not supported",),
    "web_search_options": ("web search is not supported",),
    "prediction": ("predicted outputs are not supported",),
    "reasoning_effort": ("the model has no reasoning effort", "none"),
    "verbosity": ("the model has no verbosity", "medium"),
    "moderation": ("moderation is not supported",),
}


class ChatCompletion(Endpoint):
    kind, chunk_kind = "chat.completion", "chat.completion.chunk"

    def requests(self, fields: Fields, model: Model, stream: bool) -> list[Generate]:
        messages = read_messages(fields)
        self.tools = read_tools(fields)
        for name, (why, *quiet) in _NOT_HERE.items():
            fields.refuse(name, why, *quiet)
        _check_modalities(fields)
        fields.ignore(*NO_EFFECT, "cache_prompt", "id_slot")
        self.logprobs = read_logprobs(fields)
        form = openai_grammar(fields)
        self.tools = tools_of_answer(fields, self.tools, form, model)
        request = Generate(
            Chat(messages, tools=self.tools, extra=template_extra(fields), opens_answer=opens_answer(fields)),
            read_sampling(fields, model),
            max_tokens=_limit(fields),
            stop=fields.strings("stop"),
            logprobs=self.logprobs,
            n=fields.integer("n", 1, MAX_ANSWERS) or 1,
            ignore_eos=fields.flag("ignore_eos"),
            grammar=self.tools.form or form,
            adapters=read_lora(fields, model),
            stop_loops=fields.optional_flag("stop_loops"),
            draft=fields.flag("draft", True),
        )
        return [request]

    def choice(self, index: int, events: Sequence[TextEvent]) -> dict[str, Any]:
        answer = self.tools.read("".join(event.text for event in events))
        message: dict[str, Any] = {"role": "assistant", "content": answer.text, "refusal": None}
        if answer.calls:
            calls = [_begun(call.name, call.arguments) for call in answer.calls]
            message |= {"content": answer.text or None, "tool_calls": calls}
        return {
            "index": index,
            "message": message,
            "logprobs": self.entries(events),
            **openai_reason(events[-1], answer.has_called),
        }

    def started(self, answers: Answers, requests: Sequence[Generate]) -> None:
        self.tokenizer = answers.model.tokenizer
        self.readers: dict[int, ToolCallReader] = {}
        self.silent: set[int] = set()  # answers of which no text or call was sent yet

    def entries(self, events: Sequence[TextEvent]) -> dict[str, Any] | None:
        if self.logprobs is None:
            return None
        return chat_logprobs(self.tokenizer, [entry for event in events for entry in event.logprobs])

    def opening(self, index: int) -> dict[str, Any]:
        self.silent.add(index)
        delta = {"role": "assistant", "content": None if self.tools.offered else ""}
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def deltas(self, index: int, event: TextEvent) -> list[dict[str, Any]]:
        if not event.text and not event.tokens:
            return []
        parts, entries = self.reader(index).push(event.text), self.entries([event])
        if not parts and entries is not None:
            parts = [""]  # what is held back has its logprobs all the same
        return [self.shown(index, part, None if i else entries) for i, part in enumerate(parts)]

    def ending(self, index: int) -> list[dict[str, Any]]:
        parts = self.reader(index).finish()
        if index in self.silent and not parts:
            parts = [""]  # an answer without calls has a content
        return [self.shown(index, part, None) for part in parts]

    def closing(self, index: int, event: TextEvent) -> dict[str, Any]:
        reason = openai_reason(event, self.reader(index).has_called)
        return {"index": index, "delta": {}, "logprobs": None, **reason}

    def shown(self, index: int, part: Part, logprobs: Any) -> dict[str, Any]:
        self.silent.discard(index)
        delta = {"content": part} if isinstance(part, str) else {"tool_calls": [_call_delta(part)]}
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": None}

    def reader(self, index: int) -> ToolCallReader:
        if index not in self.readers:
            self.readers[index] = self.tools.reader()
        return self.readers[index]


def _limit(fields: Fields) -> int | None:
    """Tokens of the answer, by OpenAI's names, or llama.cpp's, where 0 reads the prompt only."""
    own = fields.integer("n_predict", -2, BIG)
    names = ("max_completion_tokens", "max_tokens")
    given = [limit for name in names if (limit := fields.integer(name, 1, BIG)) is not None]
    return given[0] if given else None if own is None or own < 0 else own


def _begun(name: str, arguments: str = "") -> dict[str, Any]:
    return {"id": call_id(), "type": "function", "function": {"name": name, "arguments": arguments}}


def _call_delta(part: ToolCallDelta) -> dict[str, Any]:
    """Id and name stand in the first piece only."""
    if part.name is not None:
        return {"index": part.index, **_begun(part.name)}
    return {"index": part.index, "function": {"arguments": part.arguments}}


def _check_modalities(fields: Fields) -> None:
    if any(kind != "text" for kind in fields.items("modalities")):
        raise fields.wrong("modalities", "only text is supported")
