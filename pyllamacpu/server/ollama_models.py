"""Ollama's model management over the store: tags, show, ps, version, pull, delete, copy.

Models are only ever named, never given as paths: only files of the store are deleted.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from dataclasses import asdict, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import Response

from pyllamacpu import __version__
from pyllamacpu.api.vision import reads_images
from pyllamacpu.errors import PyllamacpuError
from pyllamacpu.gguf.reader import GGUFFile
from pyllamacpu.quantize.file_types import FILE_TYPE_KEY, find_file_type
from pyllamacpu.server import http
from pyllamacpu.server.errors import HTTPError
from pyllamacpu.server.generation import Service
from pyllamacpu.server.models import Model
from pyllamacpu.server.ollama_shapes import (
    Report,
    downloads,
    model_name,
    new_name,
    progress,
    timestamp,
    wanted_name,
)
from pyllamacpu.server.served_files import ServedFile
from pyllamacpu.store import resolve_model
from pyllamacpu.store.blobs import remove_unused
from pyllamacpu.store.created import ModelCard, created_dir, link_files, make_model, remove_model
from pyllamacpu.store.paths import models_dir
from pyllamacpu.store.quants import quant_of
from pyllamacpu.store.resolve import model_files, own_sampling
from pyllamacpu.store.watched import digest_of

_NEVER = 4102444800.0  # the year 2100
_MANY = 64  # items of an array from which `show` leaves it out unless verbose


def router(service: Service, strict: bool) -> APIRouter:
    """The routes; with `strict` unknown fields are refused."""
    routes = APIRouter()

    @routes.get("/api/version")
    async def version() -> Response:
        return http.json_response({"version": __version__})

    @routes.get("/api/tags")
    async def tags() -> Response:
        files = await service.off_loop(service.models.files)
        return http.json_response({"models": await service.off_loop(lambda: [_tag(f) for f in files])})

    @routes.get("/api/ps")
    async def ps() -> Response:
        return http.json_response({"models": [_loaded(model) for model in service.models.loaded.values()]})

    @routes.post("/api/show")
    async def show(request: Request) -> Response:
        fields = await http.read_fields(request)
        file = await service.off_loop(service.models.find, model_name(fields))
        verbose = fields.flag("verbose")
        fields.finish(strict)
        return http.json_response(await service.off_loop(_show, file, verbose))

    @routes.post("/api/pull")
    async def pull(request: Request) -> Response:
        fields = await http.read_fields(request)
        name, stream = model_name(fields), fields.flag("stream", True)
        fields.refuse("insecure", "only checked connections are made", False)
        fields.finish(strict)
        name = wanted_name(fields, "model", name)
        loop = asyncio.get_running_loop()
        return await http.answer(request, progress(partial(_pull, service, name, loop), stream))

    @routes.delete("/api/delete")
    async def delete(request: Request) -> Response:
        fields = await http.read_fields(request)
        file = await service.off_loop(service.models.find, model_name(fields))
        fields.finish(strict)
        await _delete(service, file)
        return Response(status_code=200)

    @routes.post("/api/copy")
    async def copy(request: Request) -> Response:
        fields = await http.read_fields(request)
        source = fields.text("source")
        if not source:
            raise fields.wrong("source", "is missing")
        file = await service.off_loop(service.models.find, source)
        target = fields.text("destination") or ""
        fields.finish(strict)
        target = new_name(fields, "destination", target)
        await service.off_loop(_copy, service, file, target)
        return Response(status_code=200)

    return routes


# What there is


def _tag(file: ServedFile) -> dict[str, Any]:
    return {
        "name": file.name,
        "model": file.name,
        "modified_at": timestamp(file.modified),
        "size": sum(path.stat().st_size for path in _files(file)),
        "digest": _digest(file),
        "details": _details(file),
    }


def _files(file: ServedFile) -> list[Path]:
    return [path for path in model_files(file.path) if path.is_file()]


def _digest(file: ServedFile) -> str:
    """Of what a model is: its files as the disk knows them, and its card."""
    card = file.card
    words = json.dumps([file.name, _known(file), None if card is None else asdict(card)], sort_keys=True)
    return hashlib.sha256(words.encode()).hexdigest()


def _details(file: ServedFile) -> dict[str, Any]:
    family, size, kind = _family(file.path, file.modified)
    card = file.card
    return {
        "parent_model": "" if card is None else card.parent,
        "format": "gguf",
        "family": family,
        "families": [family],
        "parameter_size": size,
        "quantization_level": quant_of(file.path.name) or kind,
    }


@lru_cache(maxsize=256)
def _family(path: Path, modified: float) -> tuple[str, str, str]:
    """(architecture, parameters, file type) of a file that was last changed at `modified`."""
    try:
        with GGUFFile.open(path) as opened:
            n = sum(info.n_elements for info in opened.tensors.values())
            kind = find_file_type(str(opened.metadata.get(FILE_TYPE_KEY, "")))
            name = "unknown" if kind is None else kind.mix
            return str(opened.metadata.get("general.architecture", "unknown")), _short(n), name
    except PyllamacpuError:
        return "unknown", "unknown", "unknown"


def _short(n: int) -> str:
    return f"{n / 1e9:.1f}B" if n >= 1e9 else f"{n / 1e6:.1f}M"


def _loaded(model: Model) -> dict[str, Any]:
    until = time.time() + max(0.0, model.idle_until - time.monotonic())
    return {
        **_tag(model.source),
        "size": model.engine.weight_bytes + model.engine.cache.bytes_in_use,
        "size_vram": 0,
        "context_length": model.engine.n_ctx,
        "expires_at": timestamp(min(until, _NEVER)),
    }


def _show(file: ServedFile, verbose: bool) -> dict[str, Any]:
    with GGUFFile.open(file.path) as opened:
        info = {key: _shown(value, verbose) for key, value in opened.metadata.items()}
        template = opened.metadata.get("tokenizer.chat_template")
        more = ["insert"] if "tokenizer.ggml.prefix_token_id" in opened.metadata else []
        more += ["vision"] if reads_images(opened) else []
    card = file.card or ModelCard(file.name)
    own = card.template or (template if isinstance(template, str) else "")
    return {
        "modelfile": _modelfile(file.name, card),
        "parameters": "\n".join(_parameters(card)),
        "template": own,
        "system": card.system,
        "license": "\n".join(card.license),
        "messages": [dict(message) for message in card.messages],
        "modified_at": timestamp(file.modified),
        "details": _details(file),
        "model_info": info,
        "capabilities": ["completion", "embedding", "tools", *more],
    }


def _parameters(card: ModelCard) -> list[str]:
    """A line for each, as a Modelfile has them."""
    rows = []
    for name, value in card.parameters.items():
        rows += [(name, item) for item in value] if isinstance(value, (list, tuple)) else [(name, value)]
    return [f"{name:<30} {json.dumps(value) if isinstance(value, str) else value}" for name, value in rows]


def _modelfile(name: str, card: ModelCard) -> str:
    """What would make the model again."""
    lines = [f"FROM {card.parent or name}"]
    lines += [f"PARAMETER {' '.join(line.split(None, 1))}" for line in _parameters(card)]
    lines += [
        f'{word} """{text}"""'
        for word, text in (("TEMPLATE", card.template), ("SYSTEM", card.system))
        if text
    ]
    lines += [f'LICENSE """{text}"""' for text in card.license]
    lines += [f'MESSAGE {m["role"]} """{m.get("content") or ""}"""' for m in card.messages]
    return "\n".join(lines) + "\n"


def _shown(value: Any, verbose: bool) -> Any:
    """Metadata as JSON has it; long arrays are null unless asked for, as in Ollama."""
    if isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, np.generic):
        return value.item()
    items = list(value)
    if len(items) > _MANY and not verbose:
        return None
    return [_shown(item, verbose) for item in items]


# Changes


def _pull(service: Service, name: str, loop: asyncio.AbstractEventLoop, report: Report) -> None:
    """In a thread. A loaded model whose file is another one now is loaded anew by the next request."""
    report("pulling manifest")
    before = {model.name: _known(model.source) for model in list(service.models.loaded.values())}
    path = resolve_model(name, refresh=True, paths=False, on_download=downloads(report))
    for part in model_files(path):
        downloads(report)(digest_of(part.resolve().name), part.stat().st_size, part.stat().st_size)
    for model in list(service.models.loaded.values()):
        if model.source.path.resolve() == path.resolve() and before.get(model.name) != _known(model.source):
            asyncio.run_coroutine_threadsafe(service.models.forget(model.name), loop).result()
    report("writing manifest")


def _known(file: ServedFile) -> list[tuple[int, ...]]:
    """A model's files as the disk knows them."""
    stats = [path.stat() for path in _files(file)]
    return [(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns) for status in stats]


def _check_stored(service: Service, file: ServedFile) -> None:
    own = (models_dir(), created_dir())
    stored = any(file.path.resolve().is_relative_to(folder.resolve()) for folder in own)
    if not stored or file in service.models.configured:
        raise HTTPError(f"{file.name!r} is not in the store of this server: it stays", status=403)


async def _delete(service: Service, file: ServedFile) -> None:
    _check_stored(service, file)
    model = service.models.loaded.get(file.name)
    if model is not None:
        if model.n_users:
            raise HTTPError(f"{file.name!r} is in use", status=409)
        await service.models.unload(model)
    await service.off_loop(_remove, file.path)


def _remove(path: Path) -> None:
    files = [part for part in model_files(path) if part.is_file()]
    remove_unused(files)
    if not remove_model(path):
        for part in files:
            part.unlink(missing_ok=True)


def _copy(service: Service, file: ServedFile, name: str) -> None:
    """A second name in the store for the same weights."""
    if service.models.exists(name):
        raise HTTPError(f"there is a model {name!r} already", status=409, code="exists")
    old = file.card or ModelCard(file.name, file.name, parameters=own_sampling(str(file.path)))
    files, adapters = model_files(file.path), [adapter.path for adapter in file.adapters]
    make_model(replace(old, name=name), lambda target: link_files(files, target), adapters)
