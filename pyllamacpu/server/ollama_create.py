"""Ollama's `/api/create`: a named model from another one, or from files that were sent to `/api/blobs`.

Source: https://github.com/ollama/ollama/blob/main/docs/api.md, "Create a Model". What is asked for is checked
before anything is written; the model appears when it is whole (`store.created`).
"""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from starlette.requests import ClientDisconnect

from pyllamacpu.errors import OutputError
from pyllamacpu.server import http
from pyllamacpu.server.errors import HTTPError
from pyllamacpu.server.fields import Fields
from pyllamacpu.server.generation import Service
from pyllamacpu.server.messages import read_messages
from pyllamacpu.server.model_making import Recipe, Source, make
from pyllamacpu.server.ollama_shapes import Report, model_name, new_name, progress, wanted_name
from pyllamacpu.server.sampling_fields import BIG, WIDE, numbers
from pyllamacpu.store.blobs import BlobWriter, blob_path
from pyllamacpu.store.created import ModelCard, adapters_of, card_of

# Parameters of a Modelfile that only touch speed and memory.
NO_EFFECT = ("num_batch", "num_gpu", "main_gpu", "low_vram", "use_mmap", "use_mlock", "num_thread", "numa",
             "num_keep", "f16_kv", "vocab_only", "logits_all", "embedding_only")  # fmt: skip
_PIECE = 1 << 20  # bytes of a sent file that are written at a time
_MAX_FILES = 256


def router(service: Service, strict: bool) -> APIRouter:
    """The routes; with `strict` unknown fields are refused."""
    routes = APIRouter()

    @routes.post("/api/create")
    async def create(request: Request) -> Response:
        fields = await http.read_fields(request)
        return await http.answer(request, _create(service, fields, strict))

    @routes.post("/api/push")
    async def push(request: Request) -> Response:
        name = model_name(await http.read_fields(request))
        raise HTTPError(f"{name!r:.80}: models of this server are not pushed anywhere")

    @routes.head("/api/blobs/{digest}")
    async def has_blob(digest: str) -> Response:
        return Response(status_code=200 if await service.off_loop(blob_path(digest).is_file) else 404)

    @routes.post("/api/blobs/{digest}")
    async def take_blob(request: Request, digest: str) -> Response:
        if await service.off_loop(blob_path(digest).is_file):
            return Response(status_code=200)
        await _take(request, digest)
        return Response(status_code=201)

    return routes


async def _take(request: Request, digest: str) -> None:
    """The body into the store, piece by piece; the client may stop at any time."""
    loop, stated = asyncio.get_running_loop(), request.headers.get("content-length", "")
    size = int(stated) if stated.isdecimal() and len(stated) < 19 else 0
    try:
        writer = await loop.run_in_executor(None, BlobWriter, digest, size)
    except OutputError as error:
        raise HTTPError(f"the file cannot be taken: {error.reason}", status=413, code="no_room") from None
    try:
        held = bytearray()
        async for chunk in request.stream():
            held += chunk
            if len(held) >= _PIECE:
                await loop.run_in_executor(None, writer.write, bytes(held))
                held.clear()
        await loop.run_in_executor(None, writer.write, bytes(held))
        await loop.run_in_executor(None, writer.publish)
    except ClientDisconnect:
        raise HTTPError("the client left before the file was whole", status=http.LEFT) from None
    finally:
        writer.discard()


async def _create(service: Service, fields: Fields, strict: bool) -> Response:
    name = new_name(fields, "model", model_name(fields))
    for field, why in _NOT_HERE.items():
        fields.refuse(field, why, {}, [], "")
    source = await service.off_loop(_source, service, fields)
    card = _card(fields, name, source)
    given = fields.raw("adapters")
    adapters = [*source.adapters, *(_sent_files(fields, given, "adapters").values() if given else ())]
    quantize, stream = fields.text("quantize") or fields.text("quantization"), fields.flag("stream", True)
    fields.finish(strict)
    await service.off_loop(_check_free, service, name)
    recipe = Recipe(card, source, quantize, adapters)
    await service.off_loop(recipe.check)
    return await progress(partial(_make, service, recipe, asyncio.get_running_loop()), stream)


_NOT_HERE = {
    "modelfile": "the text of a Modelfile is not read: give its fields (from, system, parameters, …)",
    "path": "files of the server are not read: send them to /api/blobs, or give from",
    "renderer": "is not supported: give a template",
    "parser": "is not supported",
    "remote_host": "models of other servers are not supported",
}


def _make(service: Service, recipe: Recipe, loop: asyncio.AbstractEventLoop, report: Report) -> None:
    """In a thread. Afterwards the next request finds the new model."""
    make(recipe, report)
    asyncio.run_coroutine_threadsafe(service.models.forget(recipe.card.name), loop).result()


def _check_free(service: Service, name: str) -> None:
    """A created model may be made anew; nothing else is replaced."""
    if not service.models.exists(name):
        return
    file = service.models.find(name)
    if card_of(file.path) is None or file in service.models.configured:
        raise HTTPError(
            f"there is a model {name!r} already, which was not created here", status=409, code="exists"
        )


# Where the weights come from


def _source(service: Service, fields: Fields) -> Source:
    parent, files = fields.text("from"), fields.raw("files")
    if (parent is None) == (files is None):
        raise fields.wrong("from", "give a model as from, or files that were sent to /api/blobs")
    if files is not None:
        return Source(files=_sent_files(fields, files, "files"))
    assert parent is not None
    if service.models.exists(parent):
        file = service.models.find(parent)
        return Source(file.name, file.path, card_of(file.path), adapters=adapters_of(file.path))
    return Source(wanted_name(fields, "from", parent))


def _sent_files(fields: Fields, values: Any, field: str) -> dict[str, Path]:
    if not isinstance(values, dict) or not 0 < len(values) <= _MAX_FILES:
        raise fields.wrong(field, 'must be an object of names and digests: {"model.gguf": "sha256:…"}')
    found = {}
    for name, digest in values.items():
        where = f"{field}.{name[:80]}"
        if not name.isprintable() or name.startswith(".") or "/" in name or "\\" in name or len(name) > 200:
            raise fields.wrong(where, "is not a plain name of a file")
        if not isinstance(digest, str):
            raise fields.wrong(where, "must be a digest")
        path = blob_path(digest)
        if not path.is_file():
            raise HTTPError(f"{where}: {digest} has not been sent to /api/blobs", param=where, code="no_blob")
        found[name] = path
    return found


# What belongs to the name


def _card(fields: Fields, name: str, source: Source) -> ModelCard:
    """What is not given is the parent's."""
    old = source.card or ModelCard(name)
    given = read_parameters(fields.nested("parameters"))
    messages = read_messages(fields) if fields.raw("messages") else list(old.messages)
    return ModelCard(
        name,
        parent=source.name,
        system=fields.text("system", old.system) or "",
        template=fields.text("template", old.template) or "",
        parameters={**source.sampling, **old.parameters, **given},
        messages=messages,
        license=[*fields.strings("license"), *old.license],
    )


def read_parameters(fields: Fields) -> dict[str, Any]:
    """The parameters of a Modelfile; all of them must be known. Raises HTTPError."""
    fields.ignore(*NO_EFFECT)
    found: dict[str, Any] = dict(numbers(fields, _PARAMETERS))
    for name, low in (("num_ctx", 1), ("num_predict", -2)):
        if (value := fields.integer(name, low, BIG)) is not None:
            found[name] = value
    if stop := fields.strings("stop"):
        found["stop"] = list(stop)
    fields.refuse("penalize_newline", "newlines are penalized like other tokens", True)
    fields.refuse("tfs_z", "is not supported", 1, 1.0)
    fields.finish(strict=True)
    return found


_PARAMETERS = {name: WIDE[name] for name in (
    "temperature", "top_p", "top_k", "min_p", "typical_p", "seed", "repeat_penalty", "repeat_last_n",
    "presence_penalty", "frequency_penalty", "mirostat", "mirostat_tau", "mirostat_eta",
)}  # fmt: skip
