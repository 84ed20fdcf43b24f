"""Opening a model file for the `Llama` class: engine, tokenizer, chat template."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pyllamacpu.api.drafts import source_of_drafts
from pyllamacpu.api.state import weights_digest
from pyllamacpu.engine.drafts import DraftSource
from pyllamacpu.engine.engine import Engine
from pyllamacpu.engine.pages import PAGE
from pyllamacpu.engine.precision import kv_types_of
from pyllamacpu.engine.prefix_cache import PrefixCache
from pyllamacpu.engine.scheduler import Scheduler
from pyllamacpu.errors import OptionError, TokenizerError
from pyllamacpu.gguf.metadata import architecture_of
from pyllamacpu.gguf.overrides import Overrides
from pyllamacpu.gguf.reader import GGUFFile
from pyllamacpu.gguf.types import TensorType
from pyllamacpu.limits import memory_usable
from pyllamacpu.model.config import ModelConfig, check_is_model, kv_type
from pyllamacpu.model.towers import TOWERS
from pyllamacpu.text.load import load_tokenizer
from pyllamacpu.text.tokenizer import Tokenizer
from pyllamacpu.units import binary_bytes

if TYPE_CHECKING:
    from pyllamacpu.api.vision import Vision
    from pyllamacpu.engine.page_files import PageFiles
    from pyllamacpu.engine.tower import TowerFile
    from pyllamacpu.store.paths import PackFolder
    from pyllamacpu.text.formats import Format
    from pyllamacpu.text.template import ChatTemplate


_CONTEXTS = 8  # sequences as long as the context whose keys and values are kept, if memory allows


@dataclass(frozen=True)
class LoadOptions:
    """How to open a model. `n_ctx` 0 is the context the model was trained with; None leaves a choice to the
    engine.
    """

    n_ctx: int = 512
    n_batch: int = 512
    n_threads: int | None = None
    type_k: str | None = None  # that of the precision
    type_v: str | None = None
    precision: str = "fast"  # or "exact"
    rope_freq_base: float = 0.0  # 0: as the file says
    rope_freq_scale: float = 0.0  # 0: as the file says
    chat_template: str | Format | None = None  # a Jinja source, a format or its name; None: the file's own
    vocab_only: bool = False
    adapters: tuple[tuple[str, float], ...] = ()  # LoRA files and their scales
    expert_memory: int | None = None  # bytes; experts stay in the file then
    kv_overrides: Overrides | None = None  # metadata instead of the file's own
    pack_cache: PackFolder | None = None  # the folder where packed weights are kept
    mmproj: Any = None  # the file of the vision tower; None: one beside the model or in it, False: none
    draft: Any = None  # "lookup", a model file or a LlamaDraftModel: what guesses tokens ahead

    @property
    def kv_types(self) -> tuple[str, str]:
        """Of keys and of values."""
        return kv_types_of(self.precision, self.type_k, self.type_v)


@dataclass(frozen=True)
class LoadedModel:
    """The parts of an opened model. `engine` is None for vocab_only, `tokenizer` for a file without one."""

    file: GGUFFile
    engine: Engine | None
    tokenizer: Tokenizer | None
    chat_template: str | Format | None  # a Jinja source, a format or its name, instead of the file's own
    drafts: DraftSource | None = None
    vision: Vision | None = None  # None for a model that has no vision tower at hand

    @property
    def metadata(self) -> Mapping[str, Any]:
        return self.file.metadata

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights: adapters, a draft model, and a loaded vision tower included."""
        engine = 0 if self.engine is None else self.engine.weight_bytes
        drafts = 0 if self.drafts is None else self.drafts.weight_bytes
        return engine + drafts + (0 if self.vision is None else self.vision.loaded_bytes)

    @cached_property
    def template(self) -> ChatTemplate | None:
        """The chat template, made when first asked for: a broken one shall not keep the model from other
        work.
        """
        if self.tokenizer is None:
            return None
        from pyllamacpu.text.chat import choose_template, warn_of_foreign_tokens

        template = choose_template(self.metadata, self.chat_template)
        warn_of_foreign_tokens(template, self.tokenizer)
        return template

    @cached_property
    def weights_digest(self) -> str:
        """Tells the model apart from others in saved states; made when one is first saved or loaded."""
        assert self.engine is not None
        return weights_digest(self.file, self.engine.config)

    def with_template(self, chosen: str | Format | None) -> LoadedModel:
        """The same model with another way to make prompts. Raises TemplateError."""
        if self.tokenizer is not None:
            from pyllamacpu.text.chat import choose_template

            choose_template(self.metadata, chosen)
        return replace(self, chat_template=chosen)

    def close(self) -> None:
        if self.drafts is not None:
            self.drafts.close()
        if self.vision is not None:
            self.vision.close()
        if self.engine is not None:
            self.engine.close()
        self.file.close()


def model_file(path: str | os.PathLike[str]) -> str:
    """The file that `Llama` is asked for: a path, or a name as `-m` of the command line takes it.

    A name is a stored model's, one such as `llama3.2:1b`, or `[hf.co/]user/repo[:quant]`; what is not here is
    fetched. Raises StoreError for a name that is not known, OptionError for what is no name at all. A path
    that is missing is the opener's error.
    """
    if not isinstance(path, (str, bytes, os.PathLike)):
        raise OptionError(f"model_path={path!r:.80}: give the path of a GGUF file, or the name of a model")
    name = os.fsdecode(path)
    written_as_path = not isinstance(path, str) or name.startswith((".", "~", os.sep)) or not name.strip()
    if written_as_path or os.path.exists(name):
        return name
    from pyllamacpu.store.hub import parse_hub_ref
    from pyllamacpu.store.resolve import resolve_model

    if name.lower().endswith(".gguf") and parse_hub_ref(name) is None:
        return name
    return str(resolve_model(name))


def open_model(path: str, options: LoadOptions) -> LoadedModel:
    """Opens `path`. Raises any PyllamacpuError but StoreError."""
    if not path.strip():
        raise OptionError("model_path is empty: give the path of a GGUF file, or the name of a model")
    if not os.path.exists(path):
        raise OptionError(f"{path}: no such file; give the path of a GGUF file")
    file = GGUFFile.open(path, options.kv_overrides)
    drafts: DraftSource | None = None
    tower: TowerFile | None = None
    try:
        tokenizer = load_tokenizer(file.metadata, path)
        if tokenizer is None and options.vocab_only:
            raise TokenizerError(f"{path}: this file has no tokenizer, so vocab_only opens nothing")
        if options.chat_template is not None and tokenizer is not None:
            from pyllamacpu.text.chat import choose_template

            choose_template(file.metadata, options.chat_template)  # an unknown name is an error of this call
        if options.draft is not None and not options.vocab_only:
            drafts = open_drafts(file, options)
        tower = None if options.vocab_only else find_tower(file, options.mmproj)
        engine = None if options.vocab_only else open_engine(file, options)
        vision = None if engine is None or tower is None else open_vision(engine, tokenizer, tower)
    except BaseException:
        if tower is not None:
            tower.file.close()
        if drafts is not None:
            drafts.close()
        file.close()
        raise
    return LoadedModel(file, engine, tokenizer, options.chat_template, drafts, vision)


def find_tower(file: GGUFFile, mmproj: Any) -> TowerFile | None:
    """The vision tower of the model of `file`, before any of its weights are loaded: what is wrong with a
    tower is told at once. Raises GGUFError, ModelError, OptionError.
    """
    arch = architecture_of(file.metadata)
    if mmproj is None and arch not in TOWERS:
        return None
    from pyllamacpu.engine.tower_files import open_tower

    return open_tower(file, ModelConfig.from_metadata(file.metadata, file.tensors).dim, mmproj)


def open_vision(engine: Engine, tokenizer: Tokenizer | None, tower: TowerFile) -> Vision:
    """The images of a model; closes it when there is an error."""
    from pyllamacpu.api.vision import Vision

    try:
        return Vision(engine, tower, tokenizer)
    except BaseException:
        engine.close()
        raise


def open_drafts(file: GGUFFile, options: LoadOptions) -> DraftSource:
    """What makes drafts for the model of `file`. Raises OptionError for a draft model with other tokens."""
    given = options.draft
    if given == "lookup" or not isinstance(given, (str, os.PathLike)):
        return source_of_drafts(given)
    from pyllamacpu.engine.draft_model import ModelDrafts, vocabulary_difference

    path = model_file(given)
    if not os.path.exists(path):
        raise OptionError(f"{path}: no such file; give the path of a draft model, or 'lookup'")
    draft = GGUFFile.open(path)
    try:
        check_is_model(draft.metadata)
        if difference := vocabulary_difference(draft.metadata, file.metadata):
            raise OptionError(f"{path} cannot draft for {file.paths[0]}: {difference}")
        own = replace(options, adapters=(), expert_memory=None, rope_freq_base=0.0, rope_freq_scale=0.0)
        n_ctx = ModelConfig.from_metadata(draft.metadata, draft.tensors).n_ctx_train
        return ModelDrafts(open_engine(draft, replace(own, n_ctx=min(n_ctx, options.n_ctx or n_ctx))))
    except BaseException:
        draft.close()
        raise


def open_engine(file: GGUFFile, options: LoadOptions) -> Engine:
    engine = Engine(
        file,
        n_ctx=options.n_ctx,
        n_batch=options.n_batch,
        n_threads=options.n_threads,
        type_k=options.kv_types[0],
        type_v=options.kv_types[1],
        precision=options.precision,
        rope_freq_base=options.rope_freq_base or None,
        rope_freq_scale=options.rope_freq_scale or None,
        expert_memory=options.expert_memory,
        pack_cache=options.pack_cache,
    )
    try:
        engine.load_adapters(options.adapters)
    except BaseException:
        engine.close()
        raise
    return engine


def make_scheduler(
    engine: Engine, tokenizer: Tokenizer | None, disk: PageFiles | None = None, **options: Any
) -> Scheduler:
    """A scheduler, whose pages are kept in a folder too. `options`: see `Scheduler`. Raises GGUFError."""
    prefixes = PrefixCache(engine.cache)
    behind = None
    if disk is not None:
        from pyllamacpu.engine.disk_cache import DiskCache
        from pyllamacpu.engine.page_keys import base_key

        behind = DiskCache(
            prefixes,
            engine.cache,
            disk,
            base_key(engine.file, engine.plan, engine.cache, disk, engine.precision),
        )
    return Scheduler(engine, tokenizer, prefixes=prefixes, disk=behind, **options)


def kv_limit(engine: Engine, given: int | None) -> int:
    """Bytes of keys and values that running and earlier calls may take: what was given, or the usual.

    Raises OptionError when not even two pages fit: the size was hardly meant in bytes.
    """
    least = 2 * engine.cache.page_bytes
    if given and given < least:
        raise OptionError(
            f"{binary_bytes(given)} for keys and values: {PAGE} tokens of this model take "
            f"{binary_bytes(engine.cache.page_bytes)}, and two such pages are the least; "
            "a plain number is bytes, so write 8GiB or 500MB"
        )
    return given or _usual_kv_bytes(engine)


def _usual_kv_bytes(engine: Engine) -> int:
    """What the keys and values of running and earlier calls may take: a few whole contexts, of a quarter of
    the memory at most, but one in any case.
    """
    one = engine.cache.context_bytes(engine.n_ctx, engine.n_batch)
    one += 2 * engine.cache.page_bytes  # of pages that are copied when shared
    return max(one, min(_CONTEXTS * one, memory_usable() // 4))


def cache_type(value: str | int | None, option: str) -> str | None:
    """The name of a cache type given by name or by its ggml number. Raises OptionError."""
    if value is None:
        return None
    if isinstance(value, str):
        return kv_type(value).name.lower()
    try:
        return kv_type(TensorType(value)).name.lower()
    except ValueError as error:
        raise OptionError(f"{option}={value!r}: {error}; use f32, f16, bf16, q8_0 or q4_0") from None


def text_metadata(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Scalars as text, without arrays: what llama-cpp-python's `Llama.metadata` holds."""
    return {
        key: _as_text(value) for key, value in metadata.items() if isinstance(value, (str, bool, int, float))
    }


def _as_text(value: str | bool | int | float) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:f}" if isinstance(value, float) else str(value)
