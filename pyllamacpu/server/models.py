"""The models that are served: found by name, loaded when asked for, unloaded when idle or in the way."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyllamacpu.api.loading import LoadedModel, LoadOptions, kv_limit, make_scheduler, open_model
from pyllamacpu.engine.engine import Engine
from pyllamacpu.engine.page_files import open_page_files
from pyllamacpu.engine.pooling import own_pooling
from pyllamacpu.engine.scheduler import ITL_TARGET, Scheduler
from pyllamacpu.engine.weight_bytes import has_experts
from pyllamacpu.errors import ContextError
from pyllamacpu.limits import memory_usable
from pyllamacpu.model.lora import AdapterScales
from pyllamacpu.sampling.grammar import GrammarCompiler
from pyllamacpu.server.engine_thread import EngineThread
from pyllamacpu.server.errors import HTTPError
from pyllamacpu.server.served_files import ServedFile, bytes_of, own_adapters
from pyllamacpu.store import list_models
from pyllamacpu.store.created import ModelCard
from pyllamacpu.store.resolve import model_files, own_sampling
from pyllamacpu.text import ChatTemplate, Tokenizer

if TYPE_CHECKING:
    from pyllamacpu.api.vision import Vision

log = logging.getLogger("pyllamacpu.server")

_SMALLER_CONTEXTS = (32768, 8192, 2048)  # tokens, when the model's own context does not fit in memory
STAY_SECONDS = 2.0  # that a model stays at the least, when others want its place
_STAY_LOADS = 5  # the same, in times that loading it took
ROOM_SECONDS = 30.0  # that a request waits for the place of models in use, since a user of them last went
_MEMORY_SHARE = 0.9  # of the memory for weights, unless a limit is given


@dataclass(frozen=True)
class PoolOptions:
    """How models are loaded and kept. keep_alive: seconds that an idle model stays; None: for good."""

    load: LoadOptions = field(default_factory=lambda: LoadOptions(n_ctx=0))
    parallel: int = 16
    itl_target: float = ITL_TARGET  # seconds
    kv_bytes: int | None = None
    keep_alive: float | None = None
    memory: int | None = None  # bytes of all loaded weights
    pooling: int | None = None  # of embeddings; None: as the file says
    stop_loops: bool = True  # end answers that repeat themselves, unless a request has its own wish
    cache_disk: Path | None = None  # the folder where keys and values are kept too
    cache_disk_limit: int | None = None  # bytes


@dataclass
class Model:
    """A loaded model."""

    source: ServedFile
    parts: LoadedModel
    scheduler: Scheduler
    keep_alive: float | None
    own_sampling: Mapping[str, float] = field(default_factory=dict)  # what a request leaves out
    stop_loops: bool = True
    card: ModelCard | None = None
    adapters: AdapterScales | None = None  # of requests that do not say; None: the engine's own
    whole: Model | None = None  # what this is another name for, with adapters of its own
    chosen_pooling: int | None = None
    retired: bool = False  # no request finds it any more: it is freed when nobody uses it
    n_users: int = 0
    last_used: float = field(default_factory=time.monotonic)
    stays_until: float = 0.0  # monotonic seconds: no other model takes its place before

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def pooling(self) -> int:
        """How embeddings join a text's vectors (`engine.pooling`)."""
        return own_pooling(self.parts.metadata) if self.chosen_pooling is None else self.chosen_pooling

    @property
    def engine(self) -> Engine:
        assert self.parts.engine is not None
        return self.parts.engine

    @property
    def tokenizer(self) -> Tokenizer:
        """Raises HTTPError for a file without one."""
        if self.parts.tokenizer is None:
            raise HTTPError(f"the model {self.name!r} has no tokenizer: it cannot be served text")
        return self.parts.tokenizer

    @property
    def template(self) -> ChatTemplate:
        self.tokenizer  # noqa: B018 (raises)
        assert self.parts.template is not None
        return self.parts.template

    def vision(self, where: str) -> Vision:
        """What reads images, such as the one at `where`. Raises HTTPError for a model that reads none."""
        if self.parts.vision is None:
            from pyllamacpu.engine.tower_files import missing_tower

            reason = str(missing_tower(self.name, self.engine.config.arch))
            raise HTTPError(f"{where}: {reason}", param=where, code="images_not_supported")
        return self.parts.vision

    @property
    def grammars(self) -> GrammarCompiler:
        """Of the model's vocabulary."""
        return (self.whole or self)._grammars

    @cached_property
    def _grammars(self) -> GrammarCompiler:
        return GrammarCompiler(self.tokenizer)

    def adapted(self, source: ServedFile) -> Model:
        """Itself, under the name of one of its adapters, which is then applied alone."""
        assert source.base is not None
        scale = source.base.adapters[source.adapter].scale or 1.0
        chosen = self.engine.adapters.scales([(source.adapter, scale)])
        return replace(self, source=source, adapters=chosen, whole=self)

    def conversation(self, messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """`messages` with those that a created model brings along: its system prompt unless they have one,
        and then its own.
        """
        if self.card is None:
            return list(messages)
        begin, rest = list(messages[:1]), messages[1:]
        if not begin or begin[0].get("role") not in ("system", "developer"):
            begin, rest = [], messages
        if not begin and self.card.system:
            begin = [{"role": "system", "content": self.card.system}]
        return [*begin, *self.card.messages, *rest]

    @property
    def idle_until(self) -> float:
        """When it may go (monotonic seconds), if nobody uses it."""
        return float("inf") if self.keep_alive is None else self.last_used + self.keep_alive


class ModelPool:
    """Which models there are, and those that are loaded. For the event loop."""

    def __init__(self, configured: Sequence[ServedFile], options: PoolOptions, thread: EngineThread) -> None:
        """configured: the models of the command line; the first is the default. Beside them the store's."""
        self.configured = [file for model in configured for file in model.with_adapters]
        self.options = options
        self.thread = thread
        self.loaded: dict[str, Model] = {}
        self.failed: str | None = None  # why the default model could not be loaded when it was last tried
        self.ready = False  # the default model has been loaded once
        self._loading = asyncio.Lock()
        self._late: asyncio.Future[Model] | None = None  # being loaded for a client that has left
        self._n_waiting = 0  # requests for a model that is to be loaded, or that gives way
        self._room_wanted = False  # a model waits for the place of those that are loaded
        self._left = asyncio.Event()  # a user of a model has gone
        self.disk = open_page_files(options.cache_disk, options.cache_disk_limit)
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="loader")
        self.bytes_beside = 0  # of weights that are no served model's, and stay

    @property
    def default(self) -> ServedFile:
        return self.configured[0]

    def files(self) -> list[ServedFile]:
        """All that can be asked for."""
        own = {file.name: file for file in self.configured}
        paths = {file.path.resolve() for file in self.configured}
        stored = [
            ServedFile(model.name, model.path, adapters=own_adapters(model.name, model.path))
            for model in list_models()
        ]
        return [*own.values(), *(f for f in stored if f.name not in own and f.path.resolve() not in paths)]

    def find(self, name: str | None) -> ServedFile:
        """The model of this name; None or "" is the default. Names are never taken as paths."""
        if not name:
            return self.default
        if (file := self._found(name)) is not None:
            return file
        raise HTTPError(
            f"the model {name[:200]!r} does not exist; /v1/models lists those that do",
            status=404,
            param="model",
            code="model_not_found",
        )

    def exists(self, name: str) -> bool:
        """Whether there is a model of this name."""
        return self._found(name) is not None

    def _found(self, name: str) -> ServedFile | None:
        def among(files: Sequence[ServedFile]) -> ServedFile | None:
            return next((file for file in files if file.is_called(name)), None)

        return among(self.configured) or among(self.files())

    @asynccontextmanager
    async def use(self, name: str | None, keep_alive: float | None = None) -> AsyncIterator[Model]:
        """The model, loaded, for as long as the block lasts. `keep_alive`: seconds, instead of the usual."""
        source = self.find(name)
        model = await self._ensure(source.base or source)
        if keep_alive is not None:
            model.keep_alive = None if keep_alive < 0 else keep_alive
        model.n_users += 1
        try:
            yield model.adapted(source) if source.base else model
        finally:
            model.n_users -= 1
            model.last_used = time.monotonic()
            self._left.set()
            if model.retired and model.n_users == 0:
                await self._free(model)

    async def _ensure(self, source: ServedFile) -> Model:
        if (model := self._current(source)) is not None and not self._gives_way(model):
            return model
        self._n_waiting += 1
        try:
            async with self._loading:
                if self._late is not None:  # it may be this model, and takes memory
                    await asyncio.wait([self._late])
                if (model := self._current(source)) is not None:
                    return model
                await self.forget(source.name)
                return await self._bring(source)
        finally:
            self._n_waiting -= 1

    def _current(self, source: ServedFile) -> Model | None:
        """The loaded model, unless it is another one that had the name before."""
        model = self.loaded.get(source.name)
        return model if model is not None and model.source == source else None

    async def _bring(self, source: ServedFile) -> Model:
        """Loads a model. One at a time."""
        size = await asyncio.to_thread(source.weight_bytes, self.options.load.expert_memory)
        needed = size + self._draft_bytes(source)
        await self._make_room(needed)
        if needed + self.bytes_beside > self._limit:
            log.warning("%s is larger than --memory allows; it is loaded alone", source.name)
        log.info("loading %s", source.path)
        started = time.monotonic()
        loading = asyncio.get_running_loop().run_in_executor(self._loader, self._load, source)
        try:
            model = await asyncio.shield(loading)
        except asyncio.CancelledError:  # who asked first has gone; others may want it
            self._late = loading
            loading.add_done_callback(self._keep_late)
            raise
        self._keep(model)
        seconds = time.monotonic() - started
        if self._n_waiting > 1:  # several models may be wanted in turn
            model.stays_until = time.monotonic() + max(STAY_SECONDS, _STAY_LOADS * seconds)
        log.info("loaded %s in %.1f s", source.name, seconds)
        return model

    def _keep_late(self, loading: asyncio.Future[Model]) -> None:
        self._late = None
        if not loading.cancelled() and loading.exception() is None:
            self._keep(loading.result())

    def _keep(self, model: Model) -> None:
        self.thread.add(model.scheduler)
        self.loaded[model.name] = model
        if model.source == self.default:
            self.failed, self.ready = None, True

    def _load(self, source: ServedFile) -> Model:
        parts = self._open(source)
        engine = parts.engine
        assert engine is not None
        engine.cache.limit_bytes = kv_limit(engine, self.options.kv_bytes)
        if parts.template is not None:
            parts.template.call_form  # noqa: B018 (asked here: probes take time, and requests have none)
        scheduler = make_scheduler(
            engine,
            parts.tokenizer,
            self.disk,
            itl_target=self.options.itl_target,
            max_running=self.options.parallel,
            drafts=parts.drafts,
        )
        for note in _notes(parts):
            log.warning("%s: %s", source.name, note)
        own = own_sampling(str(source.path))
        loops, keep_alive = self.options.stop_loops, self.options.keep_alive
        pooling = self.options.pooling
        return Model(source, parts, scheduler, keep_alive, own, loops, source.card, chosen_pooling=pooling)

    def _open(self, source: ServedFile) -> LoadedModel:
        path, card = str(source.path), source.card
        files = tuple((str(a.path), a.scale if a.applied else 0.0) for a in source.adapters)
        options = replace(self.options.load, adapters=files, draft=self._draft(source))
        if source != self.default:  # these are of one model
            options = replace(options, mmproj=None, kv_overrides=None)
        if options.expert_memory is not None and not has_experts(path):
            log.warning("%s has no experts: --expert-memory does nothing for it", source.name)
            options = replace(options, expert_memory=None)
        if card is not None:
            n_ctx = _smaller(options.n_ctx, card.n_ctx or 0)
            options = replace(options, n_ctx=n_ctx, chat_template=card.template or options.chat_template)
        for smaller in _SMALLER_CONTEXTS if options.n_ctx == 0 else ():
            try:
                return open_model(path, options)
            except ContextError as error:
                log.warning("%s; using %d tokens (-c)", error, smaller)
                options = replace(options, n_ctx=smaller)
        return open_model(path, options)

    def _draft(self, source: ServedFile) -> Any:
        """What drafts for a model; a draft model is for one vocabulary."""
        draft = self.options.load.draft
        return draft if draft == "lookup" or source == self.default else None

    def _draft_bytes(self, source: ServedFile) -> int:
        """Of a draft model's file."""
        draft = self._draft(source)
        if draft == "lookup" or not isinstance(draft, (str, Path)) or not Path(draft).exists():
            return 0
        return bytes_of(model_files(Path(draft)))

    def _gives_way(self, model: Model) -> bool:
        """Whether new users of a loaded model wait, because another one is to have its place."""
        return self._room_wanted and model.stays_until <= time.monotonic()

    async def _make_room(self, needed: int) -> None:
        """Unloads idle models, those first that were used longest ago, until `needed` bytes fit. Of models in
        use the new users wait meanwhile, once they have had their turn; the old ones are waited for.
        """
        end = time.monotonic() + ROOM_SECONDS
        self._room_wanted = True
        try:
            while not self._has_room(needed):
                self._left.clear()
                now = time.monotonic()
                free = [m for m in self.loaded.values() if m.n_users == 0 and m.stays_until <= now]
                if free:
                    await self.unload(min(free, key=lambda model: model.last_used))
                    continue
                if now >= end:
                    raise _no_room()
                turns = [m.stays_until for m in self.loaded.values() if m.stays_until > now]
                with suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._left.wait(), min([end, *turns]) - now)
                    end = time.monotonic() + ROOM_SECONDS  # nobody new comes, so there is an end to it
        finally:
            self._room_wanted = False

    @property
    def _limit(self) -> int:
        """Bytes of all weights."""
        return self.options.memory or int(_MEMORY_SHARE * memory_usable())

    def _has_room(self, needed: int) -> bool:
        loaded = sum(model.parts.weight_bytes for model in self.loaded.values())
        return not self.loaded or needed + loaded + self.bytes_beside <= self._limit

    async def unload(self, model: Model) -> None:
        """Frees a model; who still uses it gets errors."""
        if self.loaded.pop(model.name, None) is not None:
            await self._free(model)

    async def forget(self, name: str) -> None:
        """The next request for `name` loads it anew; who uses it now keeps what is loaded."""
        if (model := self.loaded.pop(name, None)) is not None:
            model.retired = True
            if model.n_users == 0:
                await self._free(model)

    async def _free(self, model: Model) -> None:
        loop = asyncio.get_running_loop()
        if model.scheduler.disk is not None:  # its last pages are written; not in the engine's thread
            await loop.run_in_executor(self._loader, model.scheduler.disk.close)
        await asyncio.wrap_future(self.thread.remove(model.scheduler))
        await loop.run_in_executor(self._loader, model.parts.close)
        log.info("unloaded %s", model.name)

    async def unload_idle(self) -> None:
        """Unloads models whose time has come."""
        for model in list(self.loaded.values()):  # one may be wanted again while another is freed
            if model.n_users == 0 and model.idle_until <= time.monotonic():
                await self.unload(model)

    async def close(self) -> None:
        for model in list(self.loaded.values()):
            await self.unload(model)
        self._loader.shutdown(wait=True)


def _smaller(*sizes: int) -> int:
    """The smallest context that is asked for; 0 is the model's own."""
    return min(filter(None, sizes), default=0)


def _no_room() -> HTTPError:
    words = "there is no memory for this model while the others are in use"
    return HTTPError(words, status=503, retry_after=5)


def _notes(parts: LoadedModel) -> list[str]:
    """What an operator should know about the tokenizer and the chat format."""
    if parts.tokenizer is None:
        return ["this file has no tokenizer: it can only be given token ids"]
    template = parts.template
    warning = [] if template is None or not template.warning else [template.warning]
    return [*parts.tokenizer.warnings, *warning]
