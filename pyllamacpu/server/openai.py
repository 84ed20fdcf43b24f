"""OpenAI's dialect: models, chat completions, completions, embeddings.

Source: https://platform.openai.com/docs/api-reference. llama.cpp's sampling options are taken too.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime, timezone
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from pyllamacpu.server import http
from pyllamacpu.server.embeddings import answer_embeddings
from pyllamacpu.server.fields import Fields
from pyllamacpu.server.generation import Service
from pyllamacpu.server.openai_chat import ChatCompletion
from pyllamacpu.server.openai_completions import TextCompletion


def router(service: Service, strict: bool) -> APIRouter:
    """The routes of the dialect; with `strict` unknown fields are refused."""
    routes = APIRouter()

    @routes.get("/v1/models")
    @routes.get("/v1/models/", include_in_schema=False)
    @routes.get("/models")
    async def models() -> Response:
        entries = [_model_entry(f.name, f.modified) for f in await service.off_loop(service.models.files)]
        ends = {"first_id": entries[0]["id"], "last_id": entries[-1]["id"]} if entries else {}
        return http.json_response({"object": "list", "data": entries, "has_more": False, **ends})

    @routes.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        file = await service.off_loop(service.models.find, name)
        return http.json_response(_model_entry(file.name, file.modified))

    @routes.post("/v1/chat/completions")
    @routes.post("/chat/completions")
    async def chat_completions(request: Request) -> Response:
        fields = await http.read_fields(request)
        return await http.answer(request, ENDPOINTS["/v1/chat/completions"](service, fields, strict))

    @routes.post("/v1/completions")
    async def completions(request: Request) -> Response:
        fields = await http.read_fields(request)
        return await http.answer(request, ENDPOINTS["/v1/completions"](service, fields, strict))

    @routes.post("/v1/embeddings")
    @routes.post("/embeddings")
    async def embeddings(request: Request) -> Response:
        fields = await http.read_fields(request)
        return await http.answer(request, ENDPOINTS["/v1/embeddings"](service, fields, strict))

    return routes


def _model_entry(name: str, modified: float) -> dict[str, Any]:
    """In OpenAI's shape, and in Anthropic's, whose path is the same."""
    return {
        "id": name,
        "object": "model",
        "created": int(modified),
        "owned_by": "pyllamacpu",
        "type": "model",
        "display_name": name,
        "created_at": datetime.fromtimestamp(int(modified), timezone.utc).isoformat().replace("+00:00", "Z"),
        "lifecycle": "active",
    }


def _chat(service: Service, fields: Fields, strict: bool) -> Awaitable[Response]:
    return ChatCompletion(service, strict).answer(fields)


def _completion(service: Service, fields: Fields, strict: bool) -> Awaitable[Response]:
    return TextCompletion(service, strict).answer(fields)


ENDPOINTS: Mapping[str, Callable[[Service, Fields, bool], Awaitable[Response]]] = {
    "/v1/chat/completions": _chat,
    "/v1/completions": _completion,
    "/v1/embeddings": answer_embeddings,
}
"""What answers a body, by path; with True, unknown fields are refused. They raise HTTPError."""
