"""LoRA adapters over HTTP: `lora` in a request, the adapters' names as models, and /lora-adapters.

Source of the fields: https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from pyllamacpu.model.lora import MAX_SCALE, AdapterScales
from pyllamacpu.server import http
from pyllamacpu.server.fields import Fields, wrong
from pyllamacpu.server.generation import Service
from pyllamacpu.server.models import Model


def router(service: Service, strict: bool) -> APIRouter:
    """The routes of a model's adapters, the default one's unless `?model=` names another; with `strict`
    unknown fields are refused.
    """
    routes = APIRouter()

    @routes.get("/lora-adapters")
    async def adapters(request: Request) -> Response:
        async with service.models.use(request.query_params.get("model")) as model:
            return http.json_response(_listed(model))

    @routes.post("/lora-adapters")
    async def set_adapters(request: Request) -> Response:
        items = await http.read_list(request)
        async with service.models.use(request.query_params.get("model")) as model:
            model.engine.default_adapters = _scales(items, model, "lora", strict)
            return http.json_response({"success": True})

    return routes


def _listed(model: Model) -> list[dict[str, Any]]:
    served = (model.whole or model).source.adapters  # of the model, also under an adapter's name
    applied = {id(adapter): scale for adapter, scale in model.engine.default_adapters}
    return [
        {"id": i, "name": own.name, "path": str(a.path), "scale": applied.get(id(a), 0.0), "rank": a.rank}
        for i, (own, a) in enumerate(zip(served, model.engine.adapters, strict=True))
    ]


def read_lora(fields: Fields, model: Model) -> AdapterScales | None:
    """The adapters of `lora`: [{"id": number, "scale": number}], those left out not at all; None: it is not
    given. Raises HTTPError.
    """
    if "lora" not in fields:
        fields.ignore("lora")
        return None
    return _scales(fields.items("lora"), model, "lora", strict=True)


def _scales(items: list[Any], model: Model, name: str, strict: bool) -> AdapterScales:
    loaded = model.engine.adapters
    if items and not len(loaded):
        raise wrong(name, "no adapter is loaded; start the server with --lora FILE")
    wanted: dict[int, float] = {}
    for i, item in enumerate(items):
        own = Fields(item, f"{name}[{i}].")
        number = own.integer("id", 0, len(loaded) - 1)
        if number is None:
            raise own.wrong("id", "is missing")
        if number in wanted:
            raise own.wrong("id", f"adapter {number} is given twice")
        scale = own.number("scale", -MAX_SCALE, MAX_SCALE)
        if scale is None:
            raise own.wrong("scale", "is missing")
        wanted[number] = scale
        own.ignore("name", "path", "rank")  # of a list that was got from here
        own.finish(strict)
    return loaded.scales(wanted.items())
