"""The `Llama` class: the Python API, with the names and answers of llama-cpp-python's.

This module opens models and tells facts about them; text is in `completions` and `embeddings`, token ids are
in `tokens`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import SimpleNamespace, TracebackType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pyllamacpu.api.compat import check_foreign_options, warn_once
from pyllamacpu.api.embeddings import Embeddings
from pyllamacpu.api.loading import model_file, open_model, text_metadata
from pyllamacpu.api.opening import (
    adapter_files,
    check_hub_arguments,
    load_options,
    page_folder,
    template_choice,
    warn_of_model,
)
from pyllamacpu.api.tokenizers import BaseLlamaTokenizer
from pyllamacpu.engine.pooling import check_pooling
from pyllamacpu.engine.session import Logits
from pyllamacpu.engine.token_ids import common_prefix
from pyllamacpu.errors import OptionError, TokenizerError
from pyllamacpu.model.config import kv_type
from pyllamacpu.model.lora import Adapter
from pyllamacpu.sampling.options import MAX_SEED


class Llama(Embeddings):
    """A model of the Llama family, loaded from a GGUF file.

        with Llama("model.gguf", n_ctx=4096) as llm:
            print(llm("The capital of France is", max_tokens=8)["choices"][0]["text"])

    Calls from several threads run side by side, each with the result that it has alone. Keys and values of
    earlier calls are kept, and a prompt that begins with the tokens of one is read from there. Ctrl-C leaves
    any call as KeyboardInterrupt, and the object stays usable.

    Args:
        model_path: a GGUF file, or a name as on the command line: of a stored model, `llama3.2:1b`, or
            `[hf.co/]user/repo[:quant]` on the hub. What is not on this machine is fetched.
        vocab_only: open only the tokenizer and the metadata.
        seed: where the seeds of the calls come from; None, -1 and 2^32 - 1 mean random ones.
        n_ctx: tokens in the context; 0 is what the model was trained with.
        n_batch, n_ubatch: tokens of a prompt that are evaluated at once, the smaller of both. Speed only.
        n_threads: threads; None is one per usable CPU core. One pool serves prompts and single tokens.
        pooling_type: how `embed` joins a text's vectors: 0 not, 1 mean, 2 first, 3 last, -1 as the file says.
        rope_freq_base, rope_freq_scale: override the file's rotary frequencies; 0 leaves them.
        logits_all: keep the logits behind every evaluated token in `scores`.
        embedding: accepted; `embed` works without it.
        last_n_tokens_size: tokens that the penalties look back on; -1: all of the context.
        chat_format, chat_template: a named prompt format, or a Jinja template, instead of the file's own.
        chat_handler: a function that answers `create_chat_completion` (called with llama=self and its
            arguments).
        tokenizer: makes ids of text instead of the file's own; the ids must be the model's.
        kv_type: type of keys and values in the cache: f32, f16, bf16, q8_0, q4_0, or a ggml number. None is
            f16, and f32 with precision "exact".
        type_k, type_v: the same for keys and for values alone.
        precision: of what quantized weights are multiplied with: "fast", 8 bits, and 16 where one value of 32
            dominates; "exact", always 16, which is slower and all but float32.
        kv_bytes: bytes of keys and values at most, of running and earlier calls; None is eight contexts,
            or a quarter of the memory if that is less, but at least one context.
        cache_disk: a folder in which keys and values are kept too, so that a later process does not compute
            them again; it may be shared, and deleted at any time.
        cache_disk_limit: bytes in that folder at most; None is 8 GiB.
        spm_infill: put the suffix first when filling in the middle.
        lora_path: a LoRA adapter (GGUF), or a list of files and (file, scale); all of them are applied.
        lora_scale: the scale of adapters that are given without one.
        expert_memory: bytes (or a text such as "12GB") for experts: they stay in the file then, and those
            not in memory are read when they are needed. For models larger than memory; the tokens are the
            same. None loads them all.
        kv_overrides: metadata instead of the file's own, by keys: whole numbers, floats, bools, texts, of the
            types that the file has. A key that nothing reads is an error.
        pack_cache: a folder in which packed weights are kept, to be mapped by the next load and shared by
            processes; True is `panels` in PYLLAMACPU_HOME; None is what PYLLAMACPU_PACK_CACHE says, if set.
        pack_cache_limit: bytes in that folder at most: what was not used for longest goes first; None is what
            PYLLAMACPU_PACK_CACHE_LIMIT says, or 64 GiB.
        draft_model: what guesses tokens ahead, which the model then verifies several at a time: "lookup"
            (what followed the newest tokens in the text before), the file or name of a smaller model with
            the same vocabulary, or a `LlamaDraftModel`. Speed only: the tokens are the same.
        mmproj: the file of the vision tower (GGUF), for images in prompts; None is the model's own, or one in
            its folder that is called mmproj and fits; False: no images.
        verbose: write timings to stderr.
        kwargs: llama-cpp-python's options about GPUs, mmap and the like; see `pyllamacpu.api.compat`. A name
            that nobody knows is a UserWarning.

    Raises OptionError (a ValueError), GGUFError, ModelError, TokenizerError, TemplateError, ContextError,
    and StoreError for a name that is not known or cannot be fetched.
    """

    def __init__(
        self,
        model_path: str | os.PathLike[str],
        *,
        vocab_only: bool = False,
        seed: int | None = MAX_SEED,
        n_ctx: int = 512,
        n_batch: int = 512,
        n_ubatch: int = 512,
        n_threads: int | None = None,
        n_threads_batch: int | None = None,
        pooling_type: int = -1,
        rope_freq_base: float = 0.0,
        rope_freq_scale: float = 0.0,
        logits_all: bool = False,
        embedding: bool = False,
        last_n_tokens_size: int = 64,
        chat_format: str | None = None,
        chat_handler: Callable[..., Any] | None = None,
        chat_template: str | None = None,
        tokenizer: BaseLlamaTokenizer | None = None,
        kv_type: str | int | None = None,
        type_k: str | int | None = None,
        type_v: str | int | None = None,
        precision: str = "fast",
        kv_bytes: int | None = None,
        cache_disk: str | os.PathLike[str] | None = None,
        cache_disk_limit: int | None = None,
        spm_infill: bool = False,
        lora_path: str | os.PathLike[str] | Sequence[Any] | None = None,
        lora_scale: float = 1.0,
        expert_memory: int | str | None = None,
        kv_overrides: Mapping[str, bool | int | float | str] | None = None,
        pack_cache: str | os.PathLike[str] | bool | None = None,
        pack_cache_limit: int | None = None,
        draft_model: Any = None,
        mmproj: str | os.PathLike[str] | Literal[False] | None = None,
        verbose: bool = False,
        **kwargs: Any,
    ) -> None:
        given = {name: value for name, value in locals().items() if name not in _NOT_ARGUMENTS}
        check_foreign_options(kwargs, known=given)
        self._arguments = {**given, **kwargs}
        self.model_path, self.pooling = model_file(model_path), check_pooling(pooling_type)
        self._chat_format, self.chat_handler, self._tokenizer_given = chat_format, chat_handler, tokenizer
        self.spm_infill, self.verbose = spm_infill, verbose
        options, disk = load_options(given), page_folder(cache_disk, cache_disk_limit)
        parts = open_model(self.model_path, options)
        try:
            own: dict[str, Any] = {"logits_all": logits_all, "seed": seed}
            own["last_n_tokens_size"] = last_n_tokens_size
            super().__init__(parts, **own, kv_bytes=kv_bytes, disk=disk)
        except BaseException:
            parts.close()
            raise
        self.metadata = text_metadata(parts.metadata)
        self._types, self.n_batch = options.kv_types, options.n_batch
        warn_of_model(self.model_path, parts, options)
        self._own_attributes = frozenset(self.__dict__)

    @property
    def adapters(self) -> list[tuple[Adapter, float]]:
        """The LoRA adapters that are loaded, in their order, and the scales at which calls apply them."""
        engine = self.engine
        applied = {id(adapter): scale for adapter, scale in engine.default_adapters}
        return [(adapter, applied.get(id(adapter), 0.0)) for adapter in engine.adapters]

    def set_adapters(self, scales: Mapping[int, float]) -> None:
        """From now on calls apply the adapters of these numbers at these scales, and no others.

        What was evaluated before is evaluated again when it is needed. Raises OptionError.
        """
        if not isinstance(scales, Mapping):
            raise OptionError(f"scales={scales!r:.80}: give a dict from an adapter's number to its scale")
        engine = self.engine
        chosen = engine.adapters.scales(scales.items())
        self._use_adapters(lambda: setattr(engine, "default_adapters", chosen))

    def load_adapters(
        self,
        files: str
        | os.PathLike[str]
        | Iterable[str | os.PathLike[str] | tuple[str | os.PathLike[str], float]],
    ) -> None:
        """Loads LoRA adapters behind those that are loaded, and applies them, at the scale 1 where none is
        given beside a file.

        Raises AdapterError, GGUFError, OptionError; then nothing has changed.
        """
        checked = adapter_files("files", files)
        self._use_adapters(lambda: self.engine.load_adapters(checked))

    def _use_adapters(self, change: Callable[[], None]) -> None:
        with self._at_rest():
            session = self._changing(anew=True)
            change()
            session.truncate(0)
            session.sequence.adapters = self.engine.default_adapters

    @classmethod
    def from_pretrained(
        cls,
        repo_id: str,
        filename: str | None = None,
        additional_files: Sequence[str] | None = None,
        local_dir: str | os.PathLike[str] | None = None,
        local_dir_use_symlinks: bool | str = "auto",
        cache_dir: str | os.PathLike[str] | None = None,
        **kwargs: Any,
    ) -> Llama:
        """A model from the Hugging Face hub, downloaded into its cache (or `local_dir`) unless it is there.

        `filename` is a name or glob pattern; None takes the best four-bit file. `kwargs` are those of
        `Llama`.
        """
        if local_dir_use_symlinks != "auto":
            warn_once("symlinks", "local_dir_use_symlinks does nothing: the hub's library no longer links")
        patterns = check_hub_arguments(repo_id, filename, additional_files, local_dir, cache_dir)
        from pyllamacpu.store.hub import download

        return cls(str(download(repo_id, patterns, local_dir, cache_dir)), **kwargs)

    @property
    def chat_format(self) -> str | None:
        """The name of the prompt format, None for the file's own.

        One that is assigned counts from the next chat on; an unknown one raises TemplateError.
        """
        return self._chat_format

    @chat_format.setter
    def chat_format(self, name: str | None) -> None:
        self._parts = self._parts.with_template(template_choice(name, None))
        self._chat_format = name
        self._arguments.update(chat_format=name, chat_template=None)

    # The model

    def token_bos(self) -> int:
        """The id that begins a text, or -1."""
        return self._special_id("bos")

    def token_eos(self) -> int:
        """The id that ends a text, or -1."""
        return self._special_id("eos")

    def token_eot(self) -> int:
        """The id that ends a turn, or -1."""
        return self._special_id("eot")

    def token_nl(self) -> int:
        """The id of a newline, or -1."""
        return self._special_id("nl")

    def _special_id(self, role: str) -> int:
        token = getattr(self.text_tokenizer, role, None)
        return -1 if token is None else int(token)

    @property
    def model(self) -> Llama:
        """What `llama_cpp.llama_model_get_vocab` takes."""
        return self

    @property
    def n_threads(self) -> int:
        """Threads of the pool."""
        return self.engine.n_threads

    @property
    def n_threads_batch(self) -> int:
        """The same threads read prompts."""
        return self.engine.n_threads

    @property
    def model_params(self) -> SimpleNamespace:
        """How the model was opened, by llama-cpp-python's names."""
        return SimpleNamespace(n_gpu_layers=0, vocab_only=self._arguments["vocab_only"], use_mlock=False)

    @property
    def context_params(self) -> SimpleNamespace:
        """What the context has, by llama-cpp-python's names."""
        names = ("rope_freq_base", "rope_freq_scale", "logits_all", "embedding", "n_ubatch", "pooling_type")
        given = {name: self._arguments[name] for name in names}
        type_k, type_v = self._types
        return SimpleNamespace(
            n_ctx=self.n_ctx(),
            n_batch=self.n_batch,
            n_threads=self.n_threads,
            n_threads_batch=self.n_threads_batch,
            type_k=kv_type(type_k).value,
            type_v=kv_type(type_v).value,
            embeddings=given["embedding"],
            offload_kqv=False,
            **given,
        )

    def _fingerprint(self) -> tuple[Any, ...]:
        config = self.engine.config
        shape = (
            config.n_layers,
            config.dim,
            config.kv_heads,
            config.head_dim,
            self.n_vocab(),
            config.rope_theta,
        )
        # What decides keys and values, in words that older states have where nothing has changed.
        types = (f"rotated {name}" if name == "q4_0" else name for name in self._types)
        precision = () if self.engine.precision == "fast" else (self.engine.precision,)
        return (self._parts.metadata.get("general.name"), config.arch, *shape, *types, *precision)

    @staticmethod
    def logits_to_logprobs(logits: npt.ArrayLike, axis: int = -1) -> Logits:
        """Log-probabilities along `axis`, float32. Raises OptionError for what has no numbers there."""
        try:
            rows = np.asarray(logits, np.float32)
            top = rows.max(axis=axis, keepdims=True)
        except (TypeError, ValueError, OverflowError) as error:  # of an axis that is not there, too
            raise OptionError(f"logits, axis={axis!r:.40}: {error}") from None
        shifted = rows - np.where(np.isfinite(top), top, np.float32(0))
        with np.errstate(divide="ignore"):
            found: Logits = shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True))
        return found

    @staticmethod
    def longest_token_prefix(a: Sequence[int], b: Sequence[int]) -> int:
        """How many tokens `a` and `b` have in common from the start. Raises TokenizerError."""
        if not (isinstance(a, Iterable) and isinstance(b, Iterable)):
            raise TokenizerError("token ids are a list of whole numbers")
        return common_prefix(tuple(a), tuple(b))

    # The object

    def __enter__(self) -> Llama:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_busy"):  # not when the constructor failed
            with contextlib.suppress(Exception):
                self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as the arguments it was made with and what was set on it since: the model is opened again,
        without the tokens.
        """
        added = {name: value for name, value in self.__dict__.items() if name not in self._own_attributes}
        settings = {name: getattr(self, name) for name in _SETTINGS}
        return _reopen, (type(self), self._arguments, {**settings, **added})


# Attributes that a program may set on an opened model.
_SETTINGS = ("cache", "chat_handler", "last_n_tokens_size", "spm_infill", "verbose")
_NOT_ARGUMENTS = ("self", "kwargs", "__class__")


def _reopen(kind: type[Llama], arguments: dict[str, Any], attributes: dict[str, Any]) -> Llama:
    """The object again. A subclass's own __init__, whose arguments nobody knows, is not called."""
    llama = kind.__new__(kind)
    Llama.__init__(llama, **arguments)
    llama.__dict__.update(attributes)
    return llama
