"""What answers the requests of a batch in this process: the server's models and endpoints, without HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from fastapi.responses import Response

from pyllamacpu.safety.shield import Shield, ShieldOptions
from pyllamacpu.server import http, openai, responses
from pyllamacpu.server.engine_thread import EngineThread
from pyllamacpu.server.errors import HTTPError, as_http_error
from pyllamacpu.server.fields import Fields
from pyllamacpu.server.generation import Service
from pyllamacpu.server.images import NO_URLS, ImageAccess, with_pictures
from pyllamacpu.server.metrics import Metrics
from pyllamacpu.server.models import ModelPool, PoolOptions
from pyllamacpu.server.served_files import ServedFile

ENDPOINTS = {**openai.ENDPOINTS, "/v1/responses": responses.answer}
"""What answers a body, by the `url` of a batch's line."""

_UNLIMITED = 1 << 30  # answers that may wait: who asks limits them


class BatchEngine:
    """Answers requests with the models of a service."""

    def __init__(self, service: Service, strict: bool) -> None:
        self._service, self._strict = service, strict
        self._n_busy = 0  # requests that are being answered, not waiting for memory

    async def load(self) -> None:
        """Loads the shield and the default model. Raises what loading raises."""
        if (shield := self._service.shield) is not None:
            await asyncio.to_thread(shield.load)
            self._service.models.bytes_beside = shield.weight_bytes
        async with self._service.models.use(None):
            pass

    async def answer(self, url: str, body: Any) -> tuple[int, bytes]:
        """The status and the JSON that the server would answer. A model that has no memory because of others
        waits for them.
        """
        while True:
            self._n_busy += 1
            try:
                return _parts(await self._respond(url, body))
            except Exception as error:
                refusal = as_http_error(error)
                if refusal.status != 503 or refusal.retry_after is None or self._n_busy == 1:
                    return _parts(http.error_response(url, error))
            finally:
                self._n_busy -= 1
            await asyncio.sleep(refusal.retry_after)

    async def _respond(self, url: str, body: Any) -> Response:
        if body is None:
            raise HTTPError("body: is missing", param="body")
        fields = Fields(body)
        if fields.flag("stream"):
            raise fields.wrong("stream", "the answers of a batch are not streamed")
        return await ENDPOINTS[url](self._service, fields, self._strict)


def _parts(response: Response) -> tuple[int, bytes]:
    return response.status_code, bytes(response.body)


@asynccontextmanager
async def batch_engine(
    models: Sequence[ServedFile],
    options: PoolOptions,
    strict: bool,
    shield: ShieldOptions | None = None,
    images: ImageAccess = NO_URLS,
) -> AsyncIterator[BatchEngine]:
    """An engine for `models`, of which the first is the default; none is loaded yet. Raises OptionError."""
    judging = None if shield is None else Shield(shield, partial(with_pictures, fetch=images.fetch))
    thread = EngineThread(asyncio.get_running_loop())
    pool = ModelPool(models, options, thread)
    service = Service(pool, thread, Metrics(), _UNLIMITED, judging, images)
    try:
        yield BatchEngine(service, strict)
    finally:
        await pool.close()
        thread.stop()
        service.close()
