"""OpenAI's newer dialect: responses, whole and streamed. Nothing is stored between requests.

Source: https://platform.openai.com/docs/api-reference/responses and responses-streaming.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from pyllamacpu.api.responses import chat_logprobs
from pyllamacpu.api.tools import ChatTools
from pyllamacpu.engine.generate import TextEvent
from pyllamacpu.sampling.grammar import Grammar
from pyllamacpu.sampling.sampler import TokenLogprobs
from pyllamacpu.server import http
from pyllamacpu.server.adapters import read_lora
from pyllamacpu.server.constraints import response_grammar
from pyllamacpu.server.endings import is_cut, shown_findings, stopped_by
from pyllamacpu.server.errors import HTTPError, openai_error
from pyllamacpu.server.fields import Fields, wrong
from pyllamacpu.server.generation import Answers, Generate, Service
from pyllamacpu.server.images import content_parts, images_after_results
from pyllamacpu.server.logprobs import MAX_TOP
from pyllamacpu.server.models import Model
from pyllamacpu.server.prompts import Chat, count_tokens
from pyllamacpu.server.sampling_fields import BIG, COMMON, LLAMA_CPP, read_sampling
from pyllamacpu.server.tools import call_id, make_tools, tools_of_answer
from pyllamacpu.text.call_forms import ToolCall
from pyllamacpu.text.call_parts import Part

_SAMPLING = {name: COMMON[name] for name in ("temperature", "top_p", "seed", *LLAMA_CPP)}
_NO_EFFECT = ("user", "service_tier", "store", "safety_identifier", "prompt_cache_key",
              "prompt_cache_retention", "prompt_cache_options")  # fmt: skip
_LOGPROBS = "message.output_text.logprobs"  # of what `include` may name; nothing else is ever there
_TEXT_PARTS = ("input_text", "output_text", "text")
_ROLES = ("system", "developer", "user", "assistant")


def router(service: Service, strict: bool) -> APIRouter:
    """The routes of the dialect; with `strict` unknown fields are refused."""
    routes = APIRouter()

    @routes.post("/v1/responses")
    async def responses(request: Request) -> Response:
        fields = await http.read_fields(request)
        return await http.answer(request, answer(service, fields, strict))

    @routes.post("/v1/responses/input_tokens")
    async def input_tokens(request: Request) -> Response:
        fields = await http.read_fields(request)
        return await http.answer(request, _count(service, fields, strict))

    return routes


async def answer(service: Service, fields: Fields, strict: bool) -> Response:
    async with AsyncExitStack() as stack:
        model = await stack.enter_async_context(service.models.use(fields.text("model")))
        request, stream = _request(fields, model), fields.flag("stream")
        metadata = dict(fields.nested("metadata").values)
        fields.finish(strict)
        assert isinstance(request.prompt, Chat)
        shape = _Shape(model, request.prompt.tools, request, {**_given(fields), "metadata": metadata})
        answers = await stack.enter_async_context(service.generate(model, [request]))
        if stream:
            return http.Stream(stack.pop_all(), shape.events(answers), shape.failed)
        (events,) = await answers.whole()
        found = shape.tools.read("".join(event.text for event in events))
        items = [shape.call(call, _status(call.whole)) for call in found.calls]
        if found.text or not items:
            entries = [] if found.calls else [entry for event in events for entry in event.logprobs]
            status = _status(not is_cut(events[-1]))
            items.append(shape.message(found.text, status, entries=shape.logprobs(entries)))
        return http.json_response(shape.response(items, events[-1], answers))


async def _count(service: Service, fields: Fields, strict: bool) -> Response:
    """Of what would be the prompt."""
    async with service.models.use(fields.text("model")) as model:
        chat, _ = _chat(fields, model)  # a form of the answer takes no tokens
        fields.finish(strict)
        n_tokens = await service.off_loop(
            count_tokens, model, chat, service.images, with_images=bool(chat.images)
        )
    return http.json_response({"object": "response.input_tokens", "input_tokens": n_tokens})


def _chat(fields: Fields, model: Model) -> tuple[Chat, Grammar | None]:
    """The conversation, and the form that the answer is to have."""
    fields.refuse("previous_response_id", "nothing is stored here: send the conversation as input")
    fields.refuse("conversation", "nothing is stored here: send the conversation as input")
    fields.refuse("truncation", "prompts are never cut", "disabled")
    reasoning = fields.nested("reasoning")
    reasoning.refuse("effort", "the model does not think aloud", "none")
    for name in ("summary", "generate_summary"):
        reasoning.refuse(name, "the model does not think aloud")
    reasoning.finish(strict=True)
    fields.refuse("prompt", "there are no stored prompts")
    tools, form = _tools(fields), _form(fields)
    return Chat(_messages(fields), tools=tools_of_answer(fields, tools, form, model), where="input"), form


def _request(fields: Fields, model: Model) -> Generate:
    fields.refuse("background", "is not supported", False)
    fields.refuse("max_tool_calls", "no tools are run here")
    fields.refuse("moderation", "moderation is not supported")
    fields.ignore(*_NO_EFFECT, "stream_options")
    chat, form = _chat(fields, model)
    return Generate(
        chat,
        read_sampling(fields, model, _SAMPLING),
        max_tokens=fields.integer("max_output_tokens", 1, BIG),
        stop=fields.strings("stop"),
        logprobs=_n_logprobs(fields),
        grammar=chat.tools.form or form,
        adapters=read_lora(fields, model),
        stop_loops=fields.optional_flag("stop_loops"),
        draft=fields.flag("draft", True),
    )


def _given(fields: Fields) -> dict[str, Any]:
    """What a response shows of its request as it was given."""
    text = {key: value for key, value in fields.nested("text").values.items() if value is not None}
    return {
        "instructions": fields.raw("instructions"),
        "text": {"format": {"type": "text"}, **text},
        "tool_choice": fields.raw("tool_choice") or "auto",
        "tools": fields.items("tools"),
    }


def _tools(fields: Fields) -> ChatTools:
    """Functions, whose fields stand beside their type here."""
    values = []
    for i, value in enumerate(fields.items("tools")):
        if not isinstance(value, dict) or value.get("type") != "function":
            raise wrong(f"tools[{i}]", "only functions are supported")
        function = {key: item for key, item in value.items() if key != "type" and item is not None}
        values.append({"type": "function", "function": function})
    several = fields.optional_flag("parallel_tool_calls")
    return make_tools(fields, values, fields.raw("tool_choice"), several, "parameters")


def _n_logprobs(fields: Fields) -> int | None:
    """Alternatives beside each token; None without log-probabilities."""
    n_top, included = fields.integer("top_logprobs", 0, MAX_TOP), fields.items("include")
    return n_top or 0 if n_top or _LOGPROBS in included else None


def _form(fields: Fields) -> Grammar | None:
    text = fields.nested("text")
    text.refuse("verbosity", "the model has no verbosity", "medium")
    return response_grammar(text, "format")


def _messages(fields: Fields) -> list[dict[str, Any]]:
    given, instructions = fields.raw("input"), fields.text("instructions")
    if given is None:
        raise fields.wrong("input", "is missing")
    items = [{"role": "user", "content": given}] if isinstance(given, str) else given
    if not isinstance(items, list) or not items:
        raise fields.wrong("input", "must be a text or a list of items")
    messages = [{"role": "system", "content": instructions}] if instructions else []
    for i, item in enumerate(items):
        _add(messages, item, f"input[{i}]")
    return images_after_results(messages)


def _add(messages: list[dict[str, Any]], item: Any, where: str) -> None:
    """One item of the input as a message; calls that follow each other are one message."""
    kind = item.get("type", "message") if isinstance(item, dict) else None
    if kind == "message" and item.get("role") in _ROLES:
        content = content_parts(item.get("content"), f"{where}.content", item["role"], _TEXT_PARTS)
        messages.append({"role": item["role"], "content": content})
    elif kind == "function_call":
        function = {"name": item.get("name"), "arguments": item.get("arguments")}
        if not all(isinstance(value, str) for value in function.values()):
            raise wrong(where, "needs a name and arguments")
        call = {"id": str(item.get("call_id")), "type": "function", "function": function}
        if not (messages and "tool_calls" in messages[-1]):
            messages.append({"role": "assistant", "content": "", "tool_calls": []})
        messages[-1]["tool_calls"].append(call)
    elif kind == "function_call_output":
        content = content_parts(item.get("output"), f"{where}.output", "tool", _TEXT_PARTS)
        messages.append({"role": "tool", "tool_call_id": str(item.get("call_id")), "content": content})
    else:
        raise wrong(where, f"is not a message with a known role, a call or its output: {item!r:.80}")


class _Shape:
    """One response in its shape, and its events with their numbers."""

    def __init__(self, model: Model, tools: ChatTools, request: Generate, given: dict[str, Any]) -> None:
        """given: fields that are shown as the request has them."""
        self.tools = tools
        self._tokenizer = model.tokenizer
        self._number = 0
        self._base: dict[str, Any] = {
            "id": f"resp_{uuid.uuid4().hex}",
            "object": "response",
            "created_at": int(time.time()),
            "model": model.name,
            "status": "in_progress",
            "error": None,
            "incomplete_details": None,
            "max_output_tokens": request.max_tokens,
            "output": [],
            "parallel_tool_calls": tools.most is None,
            "previous_response_id": None,
            "store": False,
            "temperature": request.sampling.temperature,
            "top_logprobs": request.logprobs or 0,
            "top_p": request.sampling.top_p,
            "truncation": "disabled",
            "usage": None,
            **given,
        }

    def logprobs(self, entries: Sequence[TokenLogprobs]) -> list[Any]:
        found: list[Any] = chat_logprobs(self._tokenizer, entries)["content"]
        return found

    def message(
        self, text: str, status: str = "completed", item_id: str | None = None, entries: Sequence[Any] = ()
    ) -> dict[str, Any]:
        return {
            "id": item_id or f"msg_{uuid.uuid4().hex}",
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": [] if status == "in_progress" else [_part(text, entries)],
        }

    def call(self, call: ToolCall, status: str) -> dict[str, Any]:
        return {
            "id": f"fc_{uuid.uuid4().hex}",
            "type": "function_call",
            "call_id": call_id(),
            "name": call.name,
            "arguments": call.arguments,
            "status": status,
        }

    def response(self, items: list[dict[str, Any]], last: TextEvent, answers: Answers) -> dict[str, Any]:
        cut = is_cut(last)
        return {
            **self._base,
            "status": "incomplete" if cut else "completed",
            "incomplete_details": {"reason": _why_cut(last), **stopped_by(last)} if cut else None,
            **shown_findings(last),
            "output": items,
            "usage": {
                "input_tokens": answers.n_prompt,
                "input_tokens_details": {"cached_tokens": answers.n_cached, "cache_write_tokens": 0},
                "output_tokens": answers.n_generated,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": answers.n_prompt + answers.n_generated,
            },
        }

    def event(self, kind: str, **fields: Any) -> bytes:
        number, self._number = self._number, self._number + 1
        return http.sse({"type": kind, "sequence_number": number, **fields}, kind)

    def failed(self, error: HTTPError) -> bytes:
        shown = openai_error(error)["error"]
        return self.event("error", code=str(shown["code"]), message=shown["message"], param=shown["param"])

    async def events(self, answers: Answers) -> AsyncIterator[bytes]:
        reader, items = self.tools.reader(), _Items(self)
        last: TextEvent | None = None
        yield self.event("response.created", response=self._base)
        yield self.event("response.in_progress", response=self._base)
        async for _, last in answers.pieces():
            parts = reader.push(last.text)
            if last.finish_reason is not None:
                parts += reader.finish()
                if not parts and not items.done and not items.is_open:
                    parts = [""]
            items.entries += self.logprobs(last.logprobs)
            for part in parts:
                for event in items.part(part):
                    yield event
        assert last is not None
        for event in items.end(is_cut(last)):
            yield event
        kind = "response.incomplete" if is_cut(last) else "response.completed"
        yield self.event(kind, response=self.response(items.done, last, answers))


class _Items:
    """The items of a response that is streamed, one after the other: a message, or a call."""

    def __init__(self, shape: _Shape) -> None:
        self.done: list[dict[str, Any]] = []
        self._shape = shape
        self._item: dict[str, Any] = {}  # the one that is open
        self._text: list[str] = []  # of the message, or the call's arguments
        self._logprobs: list[Any] = []  # of the message
        self.entries: list[Any] = []  # log-probabilities of tokens whose text is yet to be sent
        self._whole = True

    @property
    def is_open(self) -> bool:
        return bool(self._item)

    def part(self, part: Part) -> Iterator[bytes]:
        if isinstance(part, str):
            if self._item.get("type") != "message":
                yield from self.end()
                yield from self._open_message()
            if part:
                entries, self.entries = self.entries, []
                yield self._event("response.output_text.delta", delta=part, content_index=0, logprobs=entries)
                self._text.append(part)
                self._logprobs += entries
            return
        self.entries = []  # of a call
        if part.name is not None:
            yield from self.end()
            self._whole = False
            yield self._added(self._shape.call(ToolCall(part.name, "", whole=False), "in_progress"))
        if part.arguments:
            yield self._event("response.function_call_arguments.delta", delta=part.arguments)
            self._text.append(part.arguments)
        self._whole = part.done

    def _event(self, kind: str, **fields: Any) -> bytes:
        where = {"item_id": self._item["id"], "output_index": len(self.done)}
        return self._shape.event(kind, **where, **fields)

    def _added(self, item: dict[str, Any]) -> bytes:
        self._item = item
        self._text.clear()
        self._logprobs = []
        return self._shape.event("response.output_item.added", output_index=len(self.done), item=item)

    def _open_message(self) -> Iterator[bytes]:
        yield self._added(self._shape.message("", "in_progress"))
        yield self._event("response.content_part.added", content_index=0, part=_part(""))

    def end(self, is_cut: bool = False) -> Iterator[bytes]:
        """Closes what is open; `is_cut`: a message that might have gone on."""
        if not self.is_open:
            return
        item, text = self._item, "".join(self._text)
        if item["type"] == "message":
            entries = self._logprobs + self.entries
            self.entries = []
            item = self._shape.message(text, _status(not is_cut), item_id=item["id"], entries=entries)
            yield self._event("response.output_text.done", content_index=0, text=text, logprobs=entries)
            yield self._event("response.content_part.done", content_index=0, part=_part(text, entries))
        else:
            item = {**item, "arguments": text, "status": _status(self._whole)}
            done = {"arguments": text, "name": item["name"]}
            yield self._event("response.function_call_arguments.done", **done)
        yield self._shape.event("response.output_item.done", output_index=len(self.done), item=item)
        self.done.append(item)
        self._item = {}


def _status(is_whole: bool) -> str:
    return "completed" if is_whole else "incomplete"


def _part(text: str, entries: Sequence[Any] = ()) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": list(entries)}


def _why_cut(last: TextEvent) -> str:
    return "content_filter" if last.finish_reason == "content_filter" else "max_output_tokens"
