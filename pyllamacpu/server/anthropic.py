"""Anthropic's dialect: messages, whole and streamed, and the counting of their tokens.

Source: https://docs.anthropic.com/en/api/messages and messages-streaming. Tokens from the prefix cache are
`cache_read_input_tokens`, and as there `input_tokens` are the others.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from pyllamacpu.engine.generate import TextEvent
from pyllamacpu.server import http
from pyllamacpu.server.constraints import anthropic_grammar
from pyllamacpu.server.errors import HTTPError, error_body
from pyllamacpu.server.fields import Fields, wrong
from pyllamacpu.server.generation import Answers, Chat, Generate, Service, prompt_ids
from pyllamacpu.server.models import Model
from pyllamacpu.server.sampling_fields import BIG, LLAMA_CPP, make, read_options

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
        request, stream = _request(fields, model), fields.flag("stream")
        fields.finish(strict)
        answers = await stack.enter_async_context(service.generate(model, [request]))
        if stream:
            return http.Stream(stack.pop_all(), _events(answers), _failed)
        (events,) = await answers.whole()
        text = "".join(event.text for event in events)
        message = _message(model.name, [{"type": "text", "text": text}], _usage(answers))
        return http.json_response(message | _stop(events[-1]))


async def _count(service: Service, fields: Fields, strict: bool) -> Response:
    async with service.models.use(fields.text("model")) as model:
        chat = _chat(fields)
        fields.ignore("output_config", "output_format")
        fields.finish(strict)
        ids = await service.off_loop(prompt_ids, model, chat)
        return http.json_response({"input_tokens": len(ids)})


def _request(fields: Fields, model: Model) -> Generate:
    chat = _chat(fields)
    limit = fields.integer("max_tokens", 1, BIG)
    if limit is None:
        raise fields.wrong("max_tokens", "is missing")
    fields.ignore(*_NO_EFFECT)
    return Generate(
        chat,
        make(fields, read_options(fields, _SAMPLING), model.engine.n_vocab),
        max_tokens=limit,
        stop=fields.strings("stop_sequences"),
        grammar=anthropic_grammar(fields),
    )


def _chat(fields: Fields) -> Chat:
    """System text and messages; a last message of the assistant is the beginning of its answer."""
    fields.refuse("tools", "tools are not supported yet", [])
    fields.refuse("tool_choice", "tools are not supported yet", {"type": "auto"}, {"type": "none"})
    fields.refuse("thinking", "the model does not think aloud", {"type": "disabled"})
    fields.refuse("mcp_servers", "is not supported", [])
    fields.refuse("container", "is not supported")
    system = fields.raw("system")
    values = fields.items("messages")
    if not values:
        raise fields.wrong("messages", "give at least one message")
    messages = [_turn(value, f"messages[{i}]") for i, value in enumerate(values)]
    beginning = messages.pop()["content"] if messages[-1]["role"] == "assistant" else ""
    if not messages:
        raise fields.wrong("messages", "there is no message of the user")
    if system is not None:
        messages.insert(0, {"role": "system", "content": _text(system, "system")})
    return Chat(messages, beginning)


def _turn(value: Any, where: str) -> dict[str, str]:
    if not isinstance(value, dict):
        raise wrong(where, "must be an object with a role and a content")
    if value.get("role") not in ("user", "assistant", "system"):
        raise wrong(f"{where}.role", f"{value.get('role')!r:.80} is not known; allowed: user, assistant")
    return {"role": value["role"], "content": _text(value.get("content"), f"{where}.content")}


def _text(content: Any, where: str) -> str:
    """The text of a content: a string, or text blocks."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        raise wrong(where, "must be a string or a list of blocks")
    for i, block in enumerate(content):
        kind = block.get("type") if isinstance(block, dict) else None
        if kind != "text":
            raise wrong(f"{where}[{i}]", f"only text can be read, not a block of type {kind!r:.40}")
        if not isinstance(block.get("text"), str):
            raise wrong(f"{where}[{i}].text", "must be a string")
    return "".join(block["text"] for block in content)


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


def _stop(last: TextEvent) -> dict[str, Any]:
    if last.finish_reason == "length":
        return {"stop_reason": "max_tokens", "stop_sequence": None}
    if last.stop_string is not None:
        return {"stop_reason": "stop_sequence", "stop_sequence": last.stop_string}
    return {"stop_reason": "end_turn", "stop_sequence": None}


async def _events(answers: Answers) -> AsyncIterator[bytes]:
    def event(kind: str, **fields: Any) -> bytes:
        return http.sse({"type": kind, **fields}, kind)

    yield event("message_start", message=_message(answers.model.name, [], _usage(answers)))
    yield event("content_block_start", index=0, content_block={"type": "text", "text": ""})
    yield event("ping")
    last: TextEvent | None = None
    async for _, last in answers.pieces():
        if last.text:
            yield event("content_block_delta", index=0, delta={"type": "text_delta", "text": last.text})
    assert last is not None
    yield event("content_block_stop", index=0)
    yield event("message_delta", delta=_stop(last), usage=_usage(answers))
    yield event("message_stop")


def _failed(error: HTTPError) -> bytes:
    return http.sse(error_body(PATH, error), "error")
