"""The description of the API, `/openapi.json` (https://spec.openapis.org/oas/v3.1.0).

What fields a body may have comes from what the dialects read: `body_fields.json` is written by
tools/make_api_description.py, which notes every call of the accessors of `Fields`, and a test compares the
two. `shapes` has what they do not say.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from pyllamacpu.server.ollama_shapes import NDJSON
from pyllamacpu.server.shapes import (
    ANSWERS,
    ANYWHERE,
    BY_PATH,
    DIGEST,
    EITHER,
    ERRORS,
    LISTS,
    REQUIRED,
    Shape,
    or_null,
)

FIELDS_FILE = Path(__file__).with_name("body_fields.json")

ALIASES = {
    "/models": "/v1/models",
    "/chat/completions": "/v1/chat/completions",
    "/embeddings": "/v1/embeddings",
    "/completions": "/completion",
    "/v1/health": "/health",
    "/reranking": "/rerank",
    "/v1/rerank": "/rerank",
    "/v1/reranking": "/rerank",
}
"""Other paths of the same endpoints."""

_REASONS = {
    400: "A field is missing, wrong or cannot be honoured; the message names it",
    401: "The API key is missing or wrong",
    403: "This host, origin or model may not be used so",
    404: "There is no such model",
    408: "The body did not come in time",
    409: "A model of that name is there already, or in use",
    413: "The body is too large",
    415: "The body is not plain JSON in UTF-8",
    431: "The headers are too large",
    500: "An error of the server's own",
    503: "The queue is full, memory is short, or the server is shutting down",
}
_CONFLICTS = ("/api/create", "/api/copy", "/api/delete")
_STREAMED = {
    "text/event-stream": ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages",
                          "/completion", "/infill"),
    NDJSON: ("/api/generate", "/api/chat", "/api/create", "/api/pull"),
}  # fmt: skip
_BLOB = "/api/blobs/{digest}"


def describe(app: FastAPI) -> dict[str, Any]:
    """The description of all routes of `app`."""
    found = get_openapi(title=app.title, version=app.version, routes=app.routes)
    for path, operations in found["paths"].items():
        for method, operation in operations.items():
            _complete(ALIASES.get(path, path), method, operation)
    schemas = {f"{name}_error": shape for name, shape in ERRORS.items()}
    found["components"] = {"schemas": schemas, "securitySchemes": _KEYS}
    found["security"] = [{}, *({name: []} for name in _KEYS)]
    return found


_KEYS = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "x_api_key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}


def body_schema(path: str) -> Shape:
    """The schema of the body that an endpoint takes."""
    own = {**ANYWHERE, **BY_PATH.get(path, {})}
    root: Shape = {"type": "object", "properties": {}}
    for name, shape in body_fields().get(path, {}).items():
        *outer, last = name.split("/")
        if any("/".join(outer[: i + 1]) in own for i in range(len(outer))):
            continue  # within what `shapes` describes
        place = root
        for part in outer:
            place = place["properties"].setdefault(part, {})
            place.update({"type": ["object", "null"], "properties": place.get("properties", {})})
        inner = place["properties"].get(last, {})
        shown = own.get(last if path not in BY_PATH or name not in BY_PATH[path] else name, shape)
        place["properties"][last] = inner if "properties" in inner else or_null(shown)
    _require(root, path, own)
    return root


def _require(root: Shape, path: str, own: dict[str, Shape]) -> None:
    """Marks the fields that must be there, and are never null."""
    either = EITHER.get(path, ())
    root["required"] = [name for name in REQUIRED.get(path, ()) if name not in either]
    for name in root["required"]:
        root["properties"][name] = own.get(name) or body_fields()[path][name]
    if either:
        given = own.get(either[0]) or {**body_fields()[path][either[0]], "minLength": 1}
        root["anyOf"] = [{"required": [name], "properties": {name: given}} for name in either]


@cache
def body_fields() -> dict[str, dict[str, Shape]]:
    """What the endpoints read, by path and name."""
    found: dict[str, dict[str, Shape]] = json.loads(FIELDS_FILE.read_text(encoding="utf-8"))
    return found


def _complete(path: str, method: str, operation: dict[str, Any]) -> None:
    if path == _BLOB:
        _complete_blob(method, operation)
        return
    has_body = path in body_fields() or (path in LISTS and method == "post")
    if has_body:
        content = {"application/json": {"schema": LISTS.get(path) or body_schema(path)}}
        operation["requestBody"] = {"required": True, "content": content}
    statuses = [400, 401, 403, 404, 431, 500, 503, *((408, 413, 415) if has_body else ())]
    statuses += [409] if path in _CONFLICTS else []
    error = {"application/json": {"schema": {"$ref": f"#/components/schemas/{_dialect(path)}_error"}}}
    responses: dict[str, Any] = {
        str(status): {"description": _REASONS[status], "content": error} for status in sorted(statuses)
    }
    if path not in ("/rerank", "/api/push"):  # which no model here can do, and which is not done
        responses["200"] = _answer(path)
    if path == "/health":
        responses["503"] = {"description": "It is not", "content": _answer(path)["content"]}
    operation["responses"] = dict(sorted(responses.items()))


def _answer(path: str) -> dict[str, Any]:
    content: dict[str, Any] = {}
    if path in ANSWERS:
        content["application/json"] = {"schema": ANSWERS[path]}
    if path == "/metrics":
        content["text/plain"] = {"schema": {"type": "string"}}
    for kind, paths in _STREAMED.items():
        if path in paths:
            content[kind] = {}
    return {"description": "The answer", **({"content": content} if content else {})}


def _complete_blob(method: str, operation: dict[str, Any]) -> None:
    operation["parameters"] = [{"name": "digest", "in": "path", "required": True, "schema": DIGEST}]
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/ollama_error"}}}
    there = {"200": {"description": "The file is here"}}
    statuses = [400, 401, 403, 431, 500]
    if method == "post":
        file = {"schema": {"type": "string", "format": "binary"}}
        operation["requestBody"] = {"required": True, "content": {"application/octet-stream": file}}
        there["201"] = {"description": "The file was taken"}
        statuses += [408, 413]
    else:
        there["404"] = {"description": "There is no such file"}
    more = {} if method == "head" else {"content": error}
    refused = {str(status): {"description": _REASONS[status], **more} for status in statuses}
    operation["responses"] = {**there, **refused}


def _dialect(path: str) -> str:
    """Whose errors a path has."""
    if path.startswith("/v1/messages"):
        return "anthropic"
    return "ollama" if path.startswith("/api/") else "openai"
