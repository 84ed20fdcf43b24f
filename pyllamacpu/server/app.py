"""The application: all dialects on one engine, behind the access control."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.routing import Match

from pyllamacpu import __version__
from pyllamacpu.errors import PyllamacpuError
from pyllamacpu.images.sources import Fetch
from pyllamacpu.limits import trim_memory
from pyllamacpu.safety.shield import Shield, ShieldOptions
from pyllamacpu.server import (
    adapters,
    anthropic,
    http,
    native,
    ollama,
    ollama_create,
    ollama_models,
    openai,
    page_routes,
    responses,
)
from pyllamacpu.server.access import AccessControl, AccessOptions, HeadAsGet
from pyllamacpu.server.description import describe
from pyllamacpu.server.engine_thread import EngineThread
from pyllamacpu.server.errors import HTTPError, as_http_error
from pyllamacpu.server.generation import Service
from pyllamacpu.server.images import NO_URLS, ImageAccess, with_pictures
from pyllamacpu.server.metrics import Metrics
from pyllamacpu.server.models import ModelPool, PoolOptions
from pyllamacpu.server.served_files import ServedFile

log = logging.getLogger("pyllamacpu.server")

_DIALECTS = (adapters, openai, responses, anthropic, ollama, ollama_create, ollama_models, native)
RELEASE_SECONDS = 10.0
_IDLE_LOOK = 1.0  # seconds between two looks for models that are to be unloaded


@dataclass(frozen=True)
class ServeOptions:
    """What `pyllamacpu serve` was asked for. models: the first is the default. stuck_after: seconds in one
    step after which `/health` says so. checks_access: False where that is done in another process.
    """

    models: tuple[ServedFile, ...]
    pool: PoolOptions = field(default_factory=PoolOptions)
    access: AccessOptions = field(default_factory=AccessOptions)
    checks_access: bool = True
    max_queue: int = 64
    strict: bool = False
    metrics: bool = True
    stuck_after: float = 120.0
    shield: ShieldOptions | None = None
    images: ImageAccess = NO_URLS


class Server:
    """The parts of a running server. `start` and `stop` are called in its event loop."""

    def __init__(self, options: ServeOptions) -> None:
        self.options = options
        self.metrics = Metrics()
        self.service: Service | None = None
        self._shield_failure: str | None = None
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> Service:
        thread = EngineThread(asyncio.get_running_loop())
        pool = ModelPool(self.options.models, self.options.pool, thread)
        images = self.options.images
        shield = self._shield(images.fetch)
        self.service = service = Service(pool, thread, self.metrics, self.options.max_queue, shield, images)
        self.metrics.watch(pool)
        chores = (self._load(service), _unload_idle(pool), _release_memory(service))
        self._tasks = [asyncio.create_task(chore) for chore in chores]
        return service

    def _shield(self, fetch: Fetch | None) -> Shield | None:
        if self.options.shield is None:
            return None
        return Shield(self.options.shield, partial(with_pictures, fetch=fetch), self.metrics.count_blocked)

    async def stop(self) -> None:
        assert self.service is not None
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.service.models.close()
        self.service.thread.stop()
        self.service.close()

    async def _load(self, service: Service) -> None:
        """The shield and the default model."""
        pool = service.models
        try:
            if service.shield is not None:
                await service.off_loop(service.shield.load)
                pool.bytes_beside = service.shield.weight_bytes
        except Exception as error:
            self._shield_failure = _reason(error, "the shield")
            return
        try:
            async with pool.use(None) as model:
                if service.shield is not None and model.parts.vision is not None:
                    service.shield.note_images()
        except Exception as error:
            pool.failed = _reason(error, "the default model")
            if not self.serves_nothing:  # else whoever runs the server tells it
                log.error("%s", pool.failed)

    @property
    def failure(self) -> str | None:
        """Why the shield or the default model could not be loaded."""
        return self._shield_failure or (None if self.service is None else self.service.models.failed)

    @property
    def settled(self) -> bool:
        """Whether the default model was loaded, or could not be."""
        return self.service is not None and (self.service.models.ready or self.failure is not None)

    @property
    def serves_nothing(self) -> bool:
        """Whether no request can be answered: the shield or the only model could not be loaded."""
        return self._shield_failure is not None or (
            len(self.options.models) == 1 and self.failure is not None
        )

    def health(self) -> tuple[int, str]:
        """(status, word)."""
        assert self.service is not None
        pool, thread = self.service.models, self.service.thread
        if thread.busy_seconds > self.options.stuck_after:
            return 503, "engine stuck"
        if self.service.draining:
            return 503, "shutting down"
        if self.failure is not None:
            return 503, "model failed to load"
        return (200, "ok") if pool.ready else (503, "loading model")


def _reason(error: Exception, what: str) -> str:
    """Why `what` could not be loaded. What is an error of this program is logged."""
    if isinstance(error, PyllamacpuError):
        return str(error)
    log.error("%s could not be loaded", what, exc_info=error)
    return str(as_http_error(error))


async def _unload_idle(pool: ModelPool) -> None:
    while True:
        await asyncio.sleep(_IDLE_LOOK)
        await pool.unload_idle()


async def _release_memory(service: Service) -> None:
    """Rows of the embedding come from the file: those of words that are long past need not stay in memory.
    Neither need what making tokenizers and grammars has left free.
    """
    while True:
        await asyncio.sleep(RELEASE_SECONDS)
        for model in service.models.loaded.values():
            model.engine.file.release_all()
        await service.off_loop(trim_memory)


class _Application(FastAPI):
    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            self.openapi_schema = describe(self)
        return self.openapi_schema


def make_app(options: ServeOptions) -> FastAPI:
    """The application, as FastAPI has it; its `state.server` is the `Server`."""
    server = Server(options)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service = server.start()
        for dialect in _DIALECTS:
            routes = dialect.router(service, options.strict)
            app.include_router(routes)
            app.state.routes += routes.routes
        try:
            yield
        finally:
            await server.stop()

    app = _Application(
        title="pyllamacpu", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan
    )
    app.state.server = server
    app.add_middleware(HeadAsGet)
    if options.checks_access:
        app.add_middleware(AccessControl, options=options.access, count=_counter(server.metrics))
    page = page_routes.router()
    app.include_router(page)
    app.state.routes = [*page.routes]  # of all routers, each as it is
    add_errors(app)
    _add_own_routes(app, server)
    return app


def _counter(metrics: Metrics) -> Any:
    return lambda path, status: metrics.requests.labels(path, str(status)).inc()


def add_errors(app: FastAPI) -> None:
    """Errors in the shape of the path's dialect."""

    async def failed(request: Request, error: Exception) -> Response:
        return http.error_response(request.url.path, error, request.headers)

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        words = {404: "there is no such path", 405: "this path does not take that method"}
        message = words.get(error.status_code, str(error.detail))
        refusal = HTTPError(message, status=error.status_code)
        response = http.error_response(request.url.path, refusal, request.headers)
        if error.status_code == 405:
            response.headers["Allow"] = ", ".join(_methods(request))
        return response

    app.add_exception_handler(PyllamacpuError, failed)
    app.add_exception_handler(HTTPException, refused)


def _methods(request: Request) -> list[str]:
    """What the path of a request takes."""
    routes = [*request.app.state.routes, *request.app.routes]
    fitting = [route for route in routes if route.matches(request.scope)[0] is not Match.NONE]
    found = {method for route in fitting for method in getattr(route, "methods", None) or ()}
    return sorted(found | ({"HEAD"} if "GET" in found else set()))


def _add_own_routes(app: FastAPI, server: Server) -> None:
    @app.get("/health")
    @app.get("/v1/health")
    async def health() -> Response:
        status, word = server.health()
        if status == 200:
            return http.json_response({"status": word})
        error = {"code": status, "message": word, "type": "unavailable_error"}
        return http.json_response({"status": word, "error": error}, status, {"Retry-After": "1"})

    if server.options.metrics:

        @app.get("/metrics")
        async def metrics() -> Response:
            return Response(server.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")
