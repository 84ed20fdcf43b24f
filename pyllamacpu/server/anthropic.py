"""Anthropic's dialect: messages, whole and streamed, and the counting of their tokens.

Source: https://docs.anthropic.com/en/api/messages and messages-streaming. Tokens from the prefix cache are
`cache_read_input_tokens`, and as there `input_tokens` are the others.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from pyllamacpu.api.tools import ChatTools
from pyllamacpu.engine.generate import TextEvent
from pyllamacpu.images.parts import has_image
from pyllamacpu.server import http
from pyllamacpu.server.adapters import read_lora
from pyllamacpu.server.constraints import anthropic_grammar
from pyllamacpu.server.endings import is_cut, shown_findings, stopped_by
from pyllamacpu.server.errors import HTTPError, error_body
from pyllamacpu.server.fields import Fields, wrong
from pyllamacpu.server.generation import Answers, Generate, Service
from pyllamacpu.server.images import content_parts, image_part, with_images_first
from pyllamacpu.server.models import Model
from pyllamacpu.server.prompts import Chat, count_tokens
from pyllamacpu.server.sampling_fields import BIG, LLAMA_CPP, read_sampling
from pyllamacpu.server.tools import make_tools, partial_arguments, tools_of_answer
from pyllamacpu.text.call_parts import Part

PATH = "/v1/messages"
_SAMPLING = {"temperature": ("temperature", 0.0, 1.0), "top_p": ("top_p", 0.0, 1.0), **LLAMA_CPP}
_NO_EFFECT = ("metadata", "service_tier", "context_management", "cache_control", "inference_geo")


def router(service: Service, strict: bool) -> APIRouter:
    """The routes of the dialect; with `strict` unknown fields are refused."""
    routes = APIRouter()

    @routes.post(PATH)
    async def messages(request: Request) -> Response:
        fields = await http.read_fields(request)
        return await http.answer(request, _answer(service, fields, strict))

    @routes.post(f"{PATH}/count_tokens")
    async def count_tokens(request: Request) -> Response:
        fields = await http.read_fields(request)
        return await http.answer(request, _count(service, fields, strict))

    return routes


async def _answer(service: Service, fields: Fields, strict: bool) -> Response:
    async with AsyncExitStack() as stack:
        model = await stack.enter_async_context(service.models.use(fields.text("model")))
        request, stream = _request(fields, model, strict), fields.flag("stream")
        assert isinstance(request.prompt, Chat)
        tools = request.prompt.tools
        fields.finish(strict)
        answers = await stack.enter_async_context(service.generate(model, [request]))
        if stream:
            return http.Stream(stack.pop_all(), _events(answers, tools), _failed)
        (events,) = await answers.whole()
        found = tools.read("".join(event.text for event in events))
        content = [_use(call.name, partial_arguments(call)) for call in found.calls]
        if found.text or not content:
            content.append({"type": "text", "text": found.text})
        message = _message(model.name, content, _usage(answers))
        return http.json_response(message | _stop(events[-1], found.has_called))


async def _count(service: Service, fields: Fields, strict: bool) -> Response:
    async with service.models.use(fields.text("model")) as model:
        chat = _chat(fields)
        anthropic_grammar(fields, strict)  # takes no tokens
        fields.finish(strict)
        n_tokens = await service.off_loop(
            count_tokens, model, chat, service.images, with_images=bool(chat.images)
        )
        return http.json_response({"input_tokens": n_tokens})


def _request(fields: Fields, model: Model, strict: bool) -> Generate:
    chat = _chat(fields)
    limit = fields.integer("max_tokens", 1, BIG)
    if limit is None:
        raise fields.wrong("max_tokens", "is missing")
    form = anthropic_grammar(fields, strict)
    chat = replace(chat, tools=tools_of_answer(fields, chat.tools, form, model))
    return Generate(
        chat,
        read_sampling(fields, model, _SAMPLING),
        max_tokens=limit,
        stop=fields.strings("stop_sequences"),
        grammar=chat.tools.form or form,
        adapters=read_lora(fields, model),
        stop_loops=fields.optional_flag("stop_loops"),
        draft=fields.flag("draft", True),
    )


def _chat(fields: Fields) -> Chat:
    """System text and messages; a last message of the assistant is the beginning of its answer."""
    tools = _tools(fields)
    fields.ignore(*_NO_EFFECT)
    fields.refuse("thinking", "the model does not think aloud", {"type": "disabled"})
    fields.refuse("mcp_servers", "is not supported", [])
    fields.refuse("container", "is not supported")
    system = fields.raw("system")
    values = fields.items("messages")
    if not values:
        raise fields.wrong("messages", "give at least one message")
    messages = [turn for i, value in enumerate(values) for turn in _turns(value, f"messages[{i}]")]
    begun = messages[-1]["role"] == "assistant" and "tool_calls" not in messages[-1]
    beginning = messages.pop()["content"] if begun else ""
    if not messages:
        raise fields.wrong("messages", "there is no message of the user")
    if system is not None:
        messages.insert(0, {"role": "system", "content": _content(system, "system", "system")})
    if beginning and tools.forced:
        raise fields.wrong("tool_choice", "a call cannot be required of an answer that is begun")
    return Chat(messages, beginning, tools)


def _tools(fields: Fields) -> ChatTools:
    """`tools` and `tool_choice` as Anthropic has them."""
    own = fields.nested("tool_choice")
    kind, name = own.choice("type", ("auto", "any", "tool", "none"), "auto"), own.text("name")
    offered = []
    for i, value in enumerate(fields.items("tools")):
        tool = Fields(value, f"tools[{i}].")
        if tool.choice("type", ("custom",), "custom") and (called := tool.text("name")):
            schema = dict(tool.nested("input_schema").values)
            described = {"description": text} if (text := tool.text("description")) else {}
            offered.append({"name": called, **described, "parameters": schema, "strict": tool.flag("strict")})
        else:
            raise tool.wrong("name", "is missing")
    single = own.flag("disable_parallel_tool_use")
    choices: dict[str, Any] = {"any": "required", "tool": {"function": {"name": name}}}
    return make_tools(
        fields,
        [{"type": "function", "function": function} for function in offered],
        choices.get(kind or "auto", kind),
        several=False if single else None,
        schema_field="input_schema",
    )


def _turns(value: Any, where: str) -> list[dict[str, Any]]:
    """A message in OpenAI's shape; results of tools are messages of their own there. Their images come first
    in what the user says after them: chat templates show none in the results themselves.
    """
    content = value.get("content") if isinstance(value, dict) else None
    if not isinstance(content, list):
        return [_turn(value, where)]
    results, calls, others, images = [], [], [], []
    for i, block in enumerate(content):
        kind = block.get("type") if isinstance(block, dict) else None
        if kind == "tool_result" and value.get("role") == "user":
            text, found = _result(block.get("content") or "", f"{where}.content[{i}].content")
            images += found
            results.append({"role": "tool", "tool_call_id": str(block.get("tool_use_id")), "content": text})
        elif kind == "tool_use" and value.get("role") == "assistant":
            calls.append(_call_of(block, f"{where}.content[{i}]"))
        else:
            others.append(block)
    if calls:
        text = _content(others, f"{where}.content", "assistant") if others else ""
        return [{"role": "assistant", "content": text, "tool_calls": calls}]
    said = [_turn({**value, "content": others}, where)] if others or not results else []
    if images:
        said = [with_images_first(images, *said)]
    return [*results, *said]


def _result(content: Any, where: str) -> tuple[str, list[dict[str, Any]]]:
    """The text of a tool's result, and its images."""
    blocks = list(enumerate(content)) if isinstance(content, list) else []
    images = [image_part(block, f"{where}[{i}]") for i, block in blocks if has_image(block)]
    if images:
        content = [block for _, block in blocks if not has_image(block)]
    return "" if images and not content else _content(content, where, "tool"), images


def _call_of(block: dict[str, Any], where: str) -> dict[str, Any]:
    name, given = block.get("name"), block.get("input")
    if not isinstance(name, str) or not isinstance(given, dict):
        raise wrong(where, "needs a name and an input")
    return {"id": str(block.get("id")), "type": "function", "function": {"name": name, "arguments": given}}


def _turn(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise wrong(where, "must be an object with a role and a content")
    if value.get("role") not in ("user", "assistant", "system"):
        raise wrong(f"{where}.role", f"{value.get('role')!r:.80} is not known; allowed: user, assistant")
    content = _content(value.get("content"), f"{where}.content", value["role"])
    return {"role": value["role"], "content": content}


def _content(content: Any, where: str, role: str) -> Any:
    """A text, or the blocks of a message with images."""
    if content == []:
        raise wrong(where, "must be a string or a list of blocks")
    return content_parts(content, where, role)


def _message(model: str, content: list[dict[str, Any]], usage: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": f"msg_{uuid.uuid4().hex}",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": content,
        "stop_reason": None,
        "stop_sequence": None,
        "usage": usage,
    }


def _usage(answers: Answers) -> dict[str, Any]:
    return {
        "input_tokens": answers.n_prompt - answers.n_cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": answers.n_cached,
        "output_tokens": answers.n_generated,
    }


def _use(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    return {"type": "tool_use", "id": f"toolu_{uuid.uuid4().hex[:24]}", "name": name, "input": arguments}


def _stop(last: TextEvent, has_called: bool) -> dict[str, Any]:
    if has_called and last.finish_reason == "stop":
        return {"stop_reason": "tool_use", "stop_sequence": None}
    if last.finish_reason == "content_filter":
        return {"stop_reason": "refusal", "stop_sequence": None, **shown_findings(last)}
    if is_cut(last):
        return {"stop_reason": "max_tokens", "stop_sequence": None, **stopped_by(last)}
    if last.stop_string is not None:
        return {"stop_reason": "stop_sequence", "stop_sequence": last.stop_string}
    return {"stop_reason": "end_turn", "stop_sequence": None}


def _event(kind: str, **fields: Any) -> bytes:
    return http.sse({"type": kind, **fields}, kind)


class _Blocks:
    """The blocks of a message that is streamed, one after the other: text, or a call."""

    def __init__(self) -> None:
        self.n_blocks = 0  # that have begun
        self._is_text = self._is_open = False

    def part(self, part: Part) -> Iterator[bytes]:
        if isinstance(part, str):
            if not (self._is_open and self._is_text):
                yield from self._begin({"type": "text", "text": ""})
            yield self._delta({"type": "text_delta", "text": part})
            return
        if part.name is not None:
            yield from self._begin(_use(part.name, {}))
        if part.arguments:
            yield self._delta({"type": "input_json_delta", "partial_json": part.arguments})

    def _begin(self, block: dict[str, Any]) -> Iterator[bytes]:
        yield from self.end()
        self._is_text, self._is_open = block["type"] == "text", True
        self.n_blocks += 1
        yield _event("content_block_start", index=self.n_blocks - 1, content_block=block)

    def _delta(self, delta: dict[str, Any]) -> bytes:
        return _event("content_block_delta", index=self.n_blocks - 1, delta=delta)

    def end(self) -> Iterator[bytes]:
        if self._is_open:
            self._is_open = False
            yield _event("content_block_stop", index=self.n_blocks - 1)


async def _events(answers: Answers, tools: ChatTools) -> AsyncIterator[bytes]:
    """The events of a stream."""
    reader, blocks = tools.reader(), _Blocks()
    last: TextEvent | None = None
    yield _event("message_start", message=_message(answers.model.name, [], _usage(answers)))
    yield _event("ping")
    async for _, last in answers.pieces():
        parts = reader.push(last.text)
        if last.finish_reason is not None:
            parts += reader.finish()
            if not parts and not blocks.n_blocks:
                parts = [""]
        for part in parts:
            for event in blocks.part(part):
                yield event
    assert last is not None
    for event in blocks.end():
        yield event
    yield _event("message_delta", delta=_stop(last, reader.has_called), usage=_usage(answers))
    yield _event("message_stop")


def _failed(error: HTTPError) -> bytes:
    return http.sse(error_body(PATH, error), "error")
