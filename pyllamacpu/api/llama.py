"""The `Llama` class: the Python API, with the names and answers of llama-cpp-python's.

This module opens models and tells facts about them; text is in `completions`, token ids are in `tokens`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

from pyllamacpu.api.compat import check_foreign_options, warn_once
from pyllamacpu.api.completions import Completions
from pyllamacpu.api.loading import LoadOptions, cache_type, model_file, open_model, text_metadata
from pyllamacpu.engine.pooling import check_pooling
from pyllamacpu.errors import OptionError
from pyllamacpu.sampling.options import MAX_SEED
from pyllamacpu.store.hub import download


class Llama(Completions):
    """A model of the Llama family, loaded from a GGUF file.

        with Llama("model.gguf", n_ctx=4096) as llm:
            print(llm("The capital of France is", max_tokens=8)["choices"][0]["text"])

    Calls from several threads run side by side, each with the result that it has alone. Keys and values of
    earlier calls are kept, and a prompt that begins with the tokens of one is read from there. Ctrl-C leaves
    any call as KeyboardInterrupt, and the object stays usable.
    """

    def __init__(
        self,
        model_path: str | os.PathLike[str],
        *,
        vocab_only: bool = False,
        seed: int = MAX_SEED,
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
        kv_type: str | int | None = None,
        type_k: str | int | None = None,
        type_v: str | int | None = None,
        kv_bytes: int | None = None,
        spm_infill: bool = False,
        verbose: bool = False,
        **kwargs: Any,
    ) -> None:
        """Opens a model.

        Args:
            model_path: a GGUF file, or a name as on the command line: of a stored model, `llama3.2:1b`, or
                `[hf.co/]user/repo[:quant]` on the hub. What is not on this machine is fetched.
            vocab_only: open only the tokenizer and the metadata.
            seed: where the seeds of the calls come from; -1 and 2^32 - 1 mean random ones.
            n_ctx: tokens in the context; 0 is what the model was trained with.
            n_batch, n_ubatch: tokens of a prompt that are evaluated at once, the smaller of both. Speed only.
            n_threads: threads; None is one per usable CPU core. One pool serves prompts and single tokens.
            pooling_type: how `embed` joins a text's vectors: 0 not at all, 1 (and -1) mean, 2 first, 3 last.
            rope_freq_base, rope_freq_scale: override the file's rotary frequencies; 0 leaves them.
            logits_all: keep the logits behind every evaluated token in `scores`.
            embedding: accepted; `embed` works without it.
            last_n_tokens_size: tokens that the penalties look back on.
            chat_format, chat_template: a named prompt format, or a Jinja template, instead of the file's own.
            chat_handler: a function that answers `create_chat_completion` (called with llama=self and its
                arguments).
            kv_type: type of keys and values in the cache: f32, f16 (default), bf16, q8_0, q4_0, or a ggml
                number.
            type_k, type_v: the same for keys and for values alone.
            kv_bytes: bytes of keys and values at most, of running and earlier calls; None is eight contexts,
                or a quarter of the memory if that is less, but at least one context.
            spm_infill: put the suffix first when filling in the middle.
            verbose: write timings to stderr.
            kwargs: llama-cpp-python's options about GPUs, mmap and the like; see `pyllamacpu.api.compat`.

        Raises OptionError (a ValueError), GGUFError, ModelError, TokenizerError, TemplateError, ContextError,
        and StoreError for a name that is not known or cannot be fetched.
        """
        self._arguments = {
            name: value for name, value in locals().items() if name not in ("self", "kwargs", "__class__")
        }
        check_foreign_options(kwargs, known=self._arguments)
        self._arguments.update(kwargs)
        if n_threads_batch not in (None, n_threads):
            warn_once("n_threads_batch", "n_threads_batch does nothing: n_threads serves prompts too")
        _check_sizes(n_ctx=n_ctx, n_batch=n_batch, n_ubatch=n_ubatch, n_threads=n_threads)
        self.model_path = model_file(model_path)
        self.pooling = check_pooling(pooling_type)
        self.n_batch = min(n_batch, n_ubatch)
        self._chat_format, self.chat_handler = chat_format, chat_handler
        self.spm_infill, self.verbose = spm_infill, verbose
        options = LoadOptions(
            n_ctx=n_ctx,
            n_batch=self.n_batch,
            n_threads=n_threads or None,
            type_k=cache_type(kv_type if type_k is None else type_k, "f16", "type_k"),
            type_v=cache_type(kv_type if type_v is None else type_v, "f16", "type_v"),
            rope_freq_base=rope_freq_base,
            rope_freq_scale=rope_freq_scale,
            chat_template=_template_choice(chat_format, chat_template),
            vocab_only=vocab_only,
        )
        self._types = (options.type_k, options.type_v)
        parts = open_model(self.model_path, options)
        try:
            super().__init__(
                parts,
                logits_all=logits_all,
                seed=seed,
                last_n_tokens_size=last_n_tokens_size,
                kv_bytes=kv_bytes,
            )
        except BaseException:
            parts.close()
            raise
        self.metadata = text_metadata(parts.metadata)
        if parts.engine is not None and not (rope_freq_base or rope_freq_scale):
            _check_trained(self.model_path, n_ctx, parts.engine.config.n_ctx_train)
        for sentence in [] if parts.tokenizer is None else parts.tokenizer.warnings:
            warn_once(f"{self.model_path}: {sentence}", f"{self.model_path}: {sentence}")

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
        patterns = [filename, *(additional_files or ())]
        return cls(str(download(repo_id, patterns, local_dir, cache_dir)), **kwargs)

    @property
    def chat_format(self) -> str | None:
        """The name of the prompt format, None for the file's own.

        One that is assigned counts from the next chat on; an unknown one raises TemplateError.
        """
        return self._chat_format

    @chat_format.setter
    def chat_format(self, name: str | None) -> None:
        self._parts = self._parts.with_template(_template_choice(name, None))
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
        token = getattr(self.tokenizer, role, None)
        return -1 if token is None else int(token)

    def pooling_type(self) -> int:
        """How `embed` joins the vectors of a text."""
        return self.pooling

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
        return (self._parts.metadata.get("general.name"), config.arch, *shape, *self._types)

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
        """Pickled as the arguments it was made with: the model is opened again, without the tokens."""
        return _reopen, (self._arguments,)


def _reopen(arguments: dict[str, Any]) -> Llama:
    return Llama(**arguments)


def _template_choice(chat_format: str | None, chat_template: str | None) -> str | None:
    """The one way that was named to make prompts; llama-cpp-python calls the file's own
    "chat_template.default".
    """
    if chat_format is not None and chat_template is not None:
        raise OptionError("give chat_format or chat_template, not both")
    chosen = chat_format if chat_template is None else chat_template
    return None if chosen == "chat_template.default" else chosen


def _check_trained(model_path: str, n_ctx: int, n_ctx_train: int) -> None:
    """Warns of a context that was asked for (512 is the default) and is longer than what was trained."""
    if n_ctx > n_ctx_train and n_ctx != 512:
        warn_once(
            f"{model_path}: n_ctx {n_ctx}",
            f"{model_path}: a context of {n_ctx} tokens is longer than the {n_ctx_train} that the model was "
            "trained with; beyond those its answers may be of no use",
        )


def _check_sizes(n_ctx: int, n_batch: int, n_ubatch: int, n_threads: int | None) -> None:
    if n_ctx < 0:
        raise OptionError(f"n_ctx={n_ctx}: give a number of tokens, or 0 for what the model was trained with")
    if min(n_batch, n_ubatch) < 1:
        raise OptionError(f"n_batch={n_batch}, n_ubatch={n_ubatch}: give at least 1 token")
    if n_threads is not None and n_threads < 0:
        raise OptionError(f"n_threads={n_threads}: give at least 1, or None for one per usable CPU core")
