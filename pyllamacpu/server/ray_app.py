"""The server as an application of Ray Serve: replicas of the engine behind one ingress.

The ingress is a FastAPI application behind the access control; it hands each request, whole, to the replica
whose cache has the beginning of its prompt (`ray_router`), and passes the answer on as it comes. A replica is
the whole server of `app`, so all dialects are the same.

    serve run pyllamacpu.server.ray_app:app model=llama3.2:1b replicas=2
"""

from __future__ import annotations

import asyncio
import logging
import re
import signal
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Any, Literal

from fastapi import FastAPI, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pyllamacpu import __version__
from pyllamacpu.api.loading import LoadOptions
from pyllamacpu.errors import OptionError, PyllamacpuError
from pyllamacpu.limits import cpus_usable
from pyllamacpu.server import http
from pyllamacpu.server.access import AccessControl, AccessOptions, Message
from pyllamacpu.server.app import ServeOptions, Server, add_errors, make_app
from pyllamacpu.server.errors import HTTPError
from pyllamacpu.server.models import PoolOptions
from pyllamacpu.server.prefix_routing import prompt_keys
from pyllamacpu.server.ray_cluster import (
    ClusterModel,
    connected,
    files_on_this_node,
    import_ray,
    live_nodes,
    node_options,
)
from pyllamacpu.server.served_files import check_names, served_file
from pyllamacpu.store.paths import pack_folder

log = logging.getLogger("pyllamacpu.server")

_NAME = "pyllamacpu"  # of the application
_ENGINE = "Engine"
_HEAD_NODE = "node:__internal_head__"  # Ray's resource: what ends it ends the cluster
_METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD"]
_OF_ONE_MACHINE = ("/metrics", "/api/pull", "/api/delete", "/api/copy", "/api/create", "/api/blobs/")
_SCALES = "/lora-adapters"  # which are read on any machine, and set on one
_HEALTH_SECONDS = 2.0  # that a replica has to be found for /health
_ATTEMPTS = 3  # at a request whose replica is lost before it answered
_SMALL = 1 << 17  # bytes of a body that is looked at in the event loop


class Engine:
    """A replica: the server of one node, called with requests as the ingress has received them."""

    async def __init__(  # type: ignore[misc]  # Ray Serve awaits it
        self, models: Sequence[ClusterModel], options: ServeOptions, version: str
    ) -> None:
        """Raises PyllamacpuError when the default model cannot be loaded."""
        files = await asyncio.to_thread(files_on_this_node, models, version)
        self._app = make_app(replace(options, models=tuple(files), checks_access=False, metrics=False))
        self._stack = AsyncExitStack()
        await self._stack.enter_async_context(self._app.router.lifespan_context(self._app))
        while self._health()[1] == "loading model":
            await asyncio.sleep(0.05)
        self.check_health()

    def _health(self) -> tuple[int, str]:
        server: Server = self._app.state.server
        return server.health()

    def check_health(self) -> None:
        """Called by Ray Serve, which replaces a replica that raises."""
        status, word = self._health()
        if status != 200:
            raise PyllamacpuError(self._app.state.server.failure or word)

    async def respond(
        self, scope: dict[str, Any], body: bytes, keys: Sequence[bytes]
    ) -> AsyncIterator[Message]:
        """The ASGI messages of the response. keys: for the router."""
        messages: asyncio.Queue[Message | None] = asyncio.Queue(maxsize=64)
        received = False

        async def receive() -> Message:
            nonlocal received
            if received:
                await asyncio.Event().wait()  # who leaves cancels the call
            received = True
            return {"type": "http.request", "body": body, "more_body": False}

        async def run() -> None:
            try:
                await self._app(scope, receive, messages.put)
            finally:
                await messages.put(None)

        task = asyncio.ensure_future(run())
        try:
            while (message := await messages.get()) is not None:
                yield message
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def __del__(self) -> None:
        await self._stack.aclose()


class _Relay(Response):
    """A response that comes from a replica. It is asked again elsewhere when its replica is lost before it
    has begun; later the connection is broken off.
    """

    def __init__(self, engines: Any, scope: dict[str, Any], body: bytes, keys: tuple[bytes, ...]) -> None:
        super().__init__()
        self._engines, self._call = engines, (scope, body)
        self._keys = keys

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        ray = import_ray()
        for attempt in range(_ATTEMPTS):
            begun = False
            stream = self._engines.respond.remote(*self._call, keys=self._keys)
            try:
                async for message in stream:
                    begun = True
                    await send(message)
                return
            except ray.exceptions.RayActorError as error:
                if begun:
                    raise
                log.warning("a replica was lost: %s", error)
                if attempt + 1 == _ATTEMPTS:
                    raise HTTPError("the replicas are being lost", status=503, retry_after=5) from error
            except ray.serve.exceptions.BackPressureError:
                raise HTTPError("the queue is full", status=503, code="queue_full", retry_after=1) from None
            finally:
                stream.cancel()


def _ingress(options: AccessOptions) -> Any:
    """A function that makes the ingress in its own process."""

    def make() -> FastAPI:
        api = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
        api.add_middleware(AccessControl, options=options, count=lambda path, status: None)
        add_errors(api)
        _add_forwarding(api)
        return api

    return make


def _add_forwarding(api: FastAPI) -> None:
    engines: list[Any] = []  # the handle, once it has been asked for

    def replicas() -> Any:
        if not engines:
            handle = import_ray().serve.get_deployment_handle(_ENGINE)
            engines.append(handle.options(stream=True))
        return engines[0]

    @api.get("/health")
    @api.get("/v1/health")
    async def health(request: Request) -> Response:
        relay = _Relay(replicas(), _plain_scope(request), b"", ())
        return await _within(relay, _HEALTH_SECONDS)

    @api.api_route("/{path:path}", methods=_METHODS)
    async def forward(request: Request) -> Response:
        path = request.url.path
        if path.startswith(_OF_ONE_MACHINE):
            raise HTTPError(
                f"{path}: a cluster has none: models are chosen where it is started, metrics are Ray's",
                status=501,
            )
        if path == _SCALES and request.method == "POST":
            raise HTTPError(f"{path}: replicas have no common scales: give lora in each request", status=501)
        body = await request.body()
        loop = asyncio.get_running_loop()
        keys = _keys(body) if len(body) <= _SMALL else await loop.run_in_executor(None, _keys, body)
        return _Relay(replicas(), _plain_scope(request), body, keys)


async def _within(relay: _Relay, seconds: float) -> Response:
    """The whole response of `relay`, or a 503 when it does not come in time."""
    messages: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        messages.append(message)

    try:
        await asyncio.wait_for(relay({}, None, send), seconds)
    except asyncio.TimeoutError:
        raise HTTPError("no replica is ready", status=503, retry_after=1) from None
    body = b"".join(message.get("body", b"") for message in messages)
    return Response(body, messages[0]["status"], media_type="application/json")


def _keys(body: bytes) -> tuple[bytes, ...]:
    try:
        return prompt_keys(http.parse_json(body, "the body"))
    except HTTPError:
        return ()  # a replica says so


def _plain_scope(request: Request) -> dict[str, Any]:
    """What another process needs of a request's scope."""
    names = ("type", "http_version", "method", "scheme", "path", "raw_path", "query_string", "headers")
    scope = {name: request.scope[name] for name in names if name in request.scope}
    return {**scope, "headers": [tuple(header) for header in scope["headers"]], "root_path": ""}


@dataclass(frozen=True)
class Replicas:
    """n_cpus: of each, 0: not known yet. grace: seconds of a replica that is stopped for running answers."""

    count: int = 1
    n_cpus: int = 0
    grace: float = 30.0


def _check_room(replicas: Replicas) -> Replicas:
    """`replicas` in the cluster that is connected; without a number of CPUs, with all of the smallest node,
    so that each node has one. Raises OptionError.
    """
    nodes = live_nodes().values()
    if not nodes:
        raise OptionError("the cluster has no node with a CPU")
    n_cpus = replicas.n_cpus or min(node.n_cpus for node in nodes)
    n_places = sum(node.n_cpus // n_cpus for node in nodes)
    if n_places < replicas.count:
        log.warning("%d replicas of %d CPUs: there is room for %d now", replicas.count, n_cpus, n_places)
    return replace(replicas, n_cpus=n_cpus)


def build(options: ServeOptions, replicas: Replicas) -> Any:
    """The application for `serve.run`. Raises OptionError, ModelError."""
    serve = _import_serve()
    options = replace(options, pool=node_options(options.pool, replicas.n_cpus))
    n_answers = options.pool.parallel + options.max_queue
    engine = serve.deployment(
        Engine,
        name=_ENGINE,
        num_replicas=replicas.count,
        max_ongoing_requests=n_answers + 16,  # what asks for no answer is not held up by those that do
        max_queued_requests=max(1, options.max_queue),
        graceful_shutdown_timeout_s=replicas.grace,
        ray_actor_options={"num_cpus": replicas.n_cpus},
        request_router_config=serve.config.RequestRouterConfig(
            request_router_class="pyllamacpu.server.ray_router.PrefixRouter"
        ),
        logging_config={"enable_access_log": False},
    ).bind([ClusterModel.of(file) for file in options.models], options, __version__)
    ingress = serve.deployment(
        serve.ingress(_ingress(options.access))(),
        name="Ingress",
        max_ongoing_requests=max(1000, 4 * n_answers * replicas.count),
        graceful_shutdown_timeout_s=replicas.grace,
        ray_actor_options={"num_cpus": 0, "resources": {_HEAD_NODE: 0.001}},
        logging_config={"enable_access_log": False},
    )
    return ingress.bind(engine)


def _import_serve() -> Any:
    import_ray()
    try:
        from ray import serve
    except ImportError:
        raise OptionError("this Ray has no Serve: pip install 'pyllamacpu[ray]'") from None
    return serve


class _Arguments(BaseModel):
    """The arguments of `app`, named as the options of `pyllamacpu serve`."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model: str | list[str] = ""
    replicas: int = Field(1, ge=1)
    ctx_size: int = Field(0, ge=0)
    threads: int | None = Field(None, ge=1)
    cache_type_k: str | None = None
    cache_type_v: str | None = None
    precision: Literal["fast", "exact"] = "fast"
    parallel: int = Field(16, ge=1)
    max_queue: int = Field(64, ge=0)
    expert_memory: int | None = Field(None, ge=1)
    pack_cache: bool | str | None = None
    pack_cache_limit: int | None = Field(None, ge=1)
    cache_ram: int | None = Field(None, ge=1)
    memory: int | None = Field(None, ge=1)
    keep_alive: float | None = None
    itl_target: float = Field(100.0, ge=1, allow_inf_nan=False)
    api_key: str | list[str] = ""
    allowed_hosts: str = ""
    cors_origins: str = ""
    strict: bool = False
    grace: float = Field(30.0, ge=0, allow_inf_nan=False)


def app(arguments: Mapping[str, Any]) -> Any:
    """For `serve run pyllamacpu.server.ray_app:app name=value …` and the configuration files of Ray Serve.
    threads: also the CPUs of a replica; without it, those of the machine that builds the application, which
    need not be connected yet. Raises OptionError, and what `build` raises.
    """
    try:
        given = _Arguments.model_validate(arguments)
    except ValidationError as error:
        wrong = (f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        raise OptionError("; ".join(wrong)) from None
    load = LoadOptions(
        n_ctx=given.ctx_size,
        n_threads=given.threads,
        type_k=given.cache_type_k,
        type_v=given.cache_type_v,
        expert_memory=given.expert_memory,
        pack_cache=pack_folder(given.pack_cache, given.pack_cache_limit),
        precision=given.precision,
    )
    pool = PoolOptions(
        load,
        parallel=given.parallel,
        itl_target=given.itl_target / 1000,
        kv_bytes=given.cache_ram,
        keep_alive=given.keep_alive,
        memory=given.memory,
    )
    access = AccessOptions(_words(given.allowed_hosts), _words(given.cors_origins), _several(given.api_key))
    models = tuple(served_file(text) for text in _several(given.model) or (None,))
    check_names(models)
    options = ServeOptions(models, pool, access, max_queue=given.max_queue, strict=given.strict)
    return build(options, Replicas(given.replicas, given.threads or cpus_usable(), given.grace))


def _several(value: str | Sequence[str]) -> tuple[str, ...]:
    return tuple(filter(None, [value] if isinstance(value, str) else value))


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip().lower().rstrip("/") for word in text.split(",") if word.strip())


def serve_on_ray(
    address: str,
    options: ServeOptions,
    replicas: Replicas,
    listen: tuple[str, int],
    on_ready: Callable[[str], None],
) -> None:
    """Serves on the cluster at `address` until a signal, listening on its head node. A Ray Serve that runs
    there already keeps the addresses that it listens to. Raises PyllamacpuError.
    """
    with connected(address) as ray:
        serve = _import_serve()
        application = build(options, _check_room(replicas))
        shared = bool(serve.status().proxies)
        if not shared:
            serve.start("HeadOnly", {"host": listen[0], "port": listen[1]})
        try:
            serve.run(application, name=_NAME, route_prefix="/")
            on_ready(
                "the address of the Ray Serve that was there" if shared else f"http://{listen[0]}:{listen[1]}"
            )
            _wait_for_signal()
        except (RuntimeError, ray.exceptions.RayError, serve.exceptions.RayServeException) as error:
            raise PyllamacpuError(f"--ray {address}: {_last_words(_reason(serve) or str(error))}") from error
        finally:
            serve.delete(_NAME) if shared else serve.shutdown()


def _reason(serve: Any) -> str:
    """What Ray Serve says of a deployment that failed."""
    found = serve.status().applications.get(_NAME)
    messages = [deployment.message for deployment in found.deployments.values()] if found else []
    return "\n".join(filter(None, messages))


def _last_words(text: str) -> str:
    """What an error says at the end of other processes' stacks, without its class."""
    last = next((line for line in reversed(text.splitlines()) if line.strip()), text)
    return re.sub(r"^[\w.]+(Error|Exception): ", "", last.strip())


def _wait_for_signal() -> None:
    done = threading.Event()
    kept = {s: signal.signal(s, lambda *_: done.set()) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        while not done.wait(0.5):
            pass
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
