"""Ollama's model management over the store: tags, show, ps, version, pull, delete, copy.

Models are only ever named, never given as paths: only files of the store are copied or deleted.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import datetime, timezone
from functools import lru_cache
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from pyllamacpu import __version__
from pyllamacpu.errors import PyllamacpuError
from pyllamacpu.files import PartialFile
from pyllamacpu.gguf.reader import GGUFFile
from pyllamacpu.server import http
from pyllamacpu.server.errors import HTTPError
from pyllamacpu.server.fields import Fields
from pyllamacpu.server.generation import Service
from pyllamacpu.server.models import Model, ServedFile
from pyllamacpu.server.ollama import NDJSON
from pyllamacpu.store import resolve_model
from pyllamacpu.store.hub import parse_hub_ref
from pyllamacpu.store.paths import models_dir
from pyllamacpu.store.quants import quant_of
from pyllamacpu.store.resolve import model_files

_NAME = re.compile(r"[A-Za-z0-9][\w.:-]{0,120}\Z")
_HEARTBEAT = 1.0  # seconds between two lines about a download
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
        file = await service.off_loop(service.models.find, _named(fields))
        verbose = fields.flag("verbose")
        fields.finish(strict)
        return http.json_response(await service.off_loop(_show, file, verbose))

    @routes.post("/api/pull")
    async def pull(request: Request) -> Response:
        fields = await http.read_fields(request)
        name, stream = _named(fields), fields.flag("stream", True)
        fields.refuse("insecure", "only checked connections are made", False)
        fields.finish(strict)
        if not (parse_hub_ref(name) or _NAME.match(name)):
            raise fields.wrong("model", f"{name!r:.80} is not the name of a model")
        if stream:
            return http.Stream(AsyncExitStack(), _pull(name), _failed, NDJSON)
        await service.off_loop(resolve_model, name)
        return http.json_response({"status": "success"})

    @routes.delete("/api/delete")
    async def delete(request: Request) -> Response:
        fields = await http.read_fields(request)
        file = await service.off_loop(service.models.find, _named(fields))
        fields.finish(strict)
        await _delete(service, file)
        return Response(status_code=200)

    @routes.post("/api/copy")
    async def copy(request: Request) -> Response:
        fields = await http.read_fields(request)
        file = await service.off_loop(service.models.find, fields.text("source") or "?")
        target = fields.text("destination") or ""
        fields.finish(strict)
        if not _NAME.match(target):
            raise fields.wrong("destination", "a name has letters, digits and . _ - : only")
        await service.off_loop(_copy, service, file, target)
        return Response(status_code=200)

    return routes


def _named(fields: Fields) -> str:
    name = fields.text("model") or fields.text("name")
    if not name:
        raise fields.wrong("model", "is missing")
    return name


def _failed(error: HTTPError) -> bytes:
    return http.ndjson({"error": str(error)})


# What there is


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat()


def _tag(file: ServedFile) -> dict[str, Any]:
    return {
        "name": file.name,
        "model": file.name,
        "modified_at": _time(file.modified),
        "size": file.size,
        "details": _details(file),
    }


def _details(file: ServedFile) -> dict[str, Any]:
    family, size = _family(file.path, file.modified)
    return {
        "parent_model": "",
        "format": "gguf",
        "family": family,
        "families": [family],
        "parameter_size": size,
        "quantization_level": quant_of(file.path.name) or "unknown",
    }


@lru_cache(maxsize=256)
def _family(path: Path, modified: float) -> tuple[str, str]:
    """(architecture, parameters) of a file that was last changed at `modified`."""
    try:
        with contextlib.closing(GGUFFile.open(path)) as opened:
            n = sum(info.n_elements for info in opened.tensors.values())
            return str(opened.metadata.get("general.architecture", "unknown")), _short(n)
    except PyllamacpuError:
        return "unknown", "unknown"


def _short(n: int) -> str:
    return f"{n / 1e9:.1f}B" if n >= 1e9 else f"{n / 1e6:.1f}M"


def _loaded(model: Model) -> dict[str, Any]:
    until = time.time() + max(0.0, model.idle_until - time.monotonic())
    return {
        **_tag(model.source),
        "size": model.engine.weight_bytes + model.engine.cache.bytes_in_use,
        "size_vram": 0,
        "context_length": model.engine.n_ctx,
        "expires_at": _time(min(until, _NEVER)),
    }


def _show(file: ServedFile, verbose: bool) -> dict[str, Any]:
    with contextlib.closing(GGUFFile.open(file.path)) as opened:
        info = {key: _shown(value, verbose) for key, value in opened.metadata.items()}
        template = opened.metadata.get("tokenizer.chat_template")
        fills = "tokenizer.ggml.prefix_token_id" in opened.metadata
    return {
        "modelfile": f"FROM {file.name}\n",
        "parameters": "",
        "template": template if isinstance(template, str) else "",
        "modified_at": _time(file.modified),
        "details": _details(file),
        "model_info": info,
        "capabilities": ["completion", "embedding", *(["insert"] if fills else [])],
    }


def _shown(value: Any, verbose: bool) -> Any:
    """Metadata as JSON has it; long arrays are null unless asked for, as in Ollama."""
    if isinstance(value, (str, bool, int, float)):
        return value
    items = list(value)
    if len(items) > _MANY and not verbose:
        return None
    return [item if isinstance(item, (str, bool)) else float(item) for item in items]


# Changes


async def _pull(name: str) -> AsyncIterator[bytes]:
    yield http.ndjson({"status": "pulling manifest"})
    work = asyncio.get_running_loop().run_in_executor(None, resolve_model, name)
    while not (await asyncio.wait([work], timeout=_HEARTBEAT))[0]:
        yield http.ndjson({"status": f"pulling {name}"})
    path = work.result()
    size = path.stat().st_size
    yield http.ndjson({"status": f"pulling {name}", "total": size, "completed": size})
    yield http.ndjson({"status": "success"})


def _check_stored(file: ServedFile) -> None:
    if not file.path.resolve().is_relative_to(models_dir().resolve()):
        raise HTTPError(f"{file.name!r} is not in the store of this server: it stays", status=403)


async def _delete(service: Service, file: ServedFile) -> None:
    _check_stored(file)
    model = service.models.loaded.get(file.name)
    if model is not None:
        if model.n_users:
            raise HTTPError(f"{file.name!r} is in use", status=409)
        await service.models.unload(model)
    await service.off_loop(_unlink, file.path)


def _unlink(path: Path) -> None:
    for part in model_files(path):
        part.unlink(missing_ok=True)


def _copy(service: Service, file: ServedFile, name: str) -> None:
    """A second name in the store for the same weights. Parts of a split file belong together by name."""
    if len(model_files(file.path)) > 1:
        raise HTTPError(f"{file.name!r} has several files: it cannot be copied under another name")
    target = models_dir() / f"{name.removesuffix(':latest')}.gguf"
    if service.models.exists(name):
        raise HTTPError(f"there is a model {name!r} already", status=409, code="exists")
    models_dir().mkdir(parents=True, exist_ok=True)
    with open(file.path, "rb") as source, PartialFile(target) as out:
        shutil.copyfileobj(source, out, 1 << 20)
