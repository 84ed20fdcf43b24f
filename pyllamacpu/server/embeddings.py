"""OpenAI's embeddings, and what dialects take as texts: one or a list, or their token ids."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
from fastapi.responses import Response

from pyllamacpu.server import http
from pyllamacpu.server.adapters import read_lora
from pyllamacpu.server.fields import Fields
from pyllamacpu.server.generation import Service
from pyllamacpu.server.openai_endpoint import NO_EFFECT
from pyllamacpu.server.sampling_fields import BIG


def are_ids(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int for item in value)


async def answer_embeddings(service: Service, fields: Fields, strict: bool) -> Response:
    async with service.models.use(fields.text("model")) as model:
        inputs = read_inputs(fields)
        form = fields.choice("encoding_format", ("float", "base64"), "float")
        dimensions = fields.integer("dimensions", 1, BIG)
        if dimensions not in (None, model.engine.dim):
            raise fields.wrong("dimensions", f"this model's vectors have {model.engine.dim}")
        adapters = read_lora(fields, model)
        fields.ignore(*NO_EFFECT)
        fields.finish(strict)
        vectors, n_tokens = await service.embed(model, inputs, adapters=adapters)
        shown = [_base64(v) for v in vectors] if form == "base64" else vectors
        data = [{"object": "embedding", "index": i, "embedding": vector} for i, vector in enumerate(shown)]
        counts = {"prompt_tokens": n_tokens, "total_tokens": n_tokens}
        return http.json_response({"object": "list", "data": data, "model": model.name, "usage": counts})


def read_inputs(fields: Fields, name: str = "input", at_most: int = 2048) -> list[str | list[int]]:
    """A text, token ids, or a list of either."""
    value = fields.raw(name)
    if value is None:
        raise fields.wrong(name, "is missing")
    values = [value] if isinstance(value, str) or (value and are_ids(value)) else value
    if not isinstance(values, list) or not values:
        raise fields.wrong(name, "must be a text, token ids, or a list of them")
    if not all(isinstance(item, str) or (item and are_ids(item)) for item in values):
        raise fields.wrong(name, "must be a text, token ids, or a list of them")
    if len(values) > at_most:
        raise fields.wrong(name, f"{len(values)} inputs; allowed: at most {at_most}")
    return values


def input_names(fields: Fields, name: str) -> list[str]:
    """Where each of the inputs stands: in the field itself, or in its list."""
    values = fields.raw(name)
    is_one = isinstance(values, str) or are_ids(values)
    return [name] if is_one else [f"{name}[{i}]" for i in range(len(values))]


def _base64(vector: Sequence[float]) -> str:
    return base64.b64encode(np.asarray(vector, "<f4").tobytes()).decode("ascii")
