"""From the arguments of `Llama` to what is opened, and the warnings about what was."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyllamacpu.api.compat import warn_once
from pyllamacpu.api.loading import LoadedModel, LoadOptions, cache_type
from pyllamacpu.errors import OptionError


def load_options(given: Mapping[str, Any]) -> LoadOptions:
    """How to open the model, from the arguments of `Llama` by name. Raises OptionError."""
    n_threads = given["n_threads"]
    if given["n_threads_batch"] not in (None, n_threads):
        warn_once("n_threads_batch", "n_threads_batch does nothing: n_threads serves prompts too")
    _check_sizes(given["n_ctx"], given["n_batch"], given["n_ubatch"], n_threads)
    types = {
        name: cache_type(given["kv_type"] if given[name] is None else given[name], "f16", name)
        for name in ("type_k", "type_v")
    }
    return LoadOptions(
        n_ctx=given["n_ctx"],
        n_batch=min(given["n_batch"], given["n_ubatch"]),
        n_threads=n_threads or None,
        rope_freq_base=given["rope_freq_base"],
        rope_freq_scale=given["rope_freq_scale"],
        chat_template=template_choice(given["chat_format"], given["chat_template"]),
        vocab_only=given["vocab_only"],
        **types,
    )


def template_choice(chat_format: str | None, chat_template: str | None) -> str | None:
    """The one way that was named to make prompts; llama-cpp-python calls the file's own
    "chat_template.default".
    """
    if chat_format is not None and chat_template is not None:
        raise OptionError("give chat_format or chat_template, not both")
    chosen = chat_format if chat_template is None else chat_template
    return None if chosen == "chat_template.default" else chosen


def warn_of_model(path: str, parts: LoadedModel, options: LoadOptions) -> None:
    """Warns of what is odd about a model, or about what was asked of it."""
    if parts.engine is not None and not (options.rope_freq_base or options.rope_freq_scale):
        _check_trained(path, options.n_ctx, parts.engine.config.n_ctx_train)
    for sentence in [] if parts.tokenizer is None else parts.tokenizer.warnings:
        warn_once(f"{path}: {sentence}", f"{path}: {sentence}")


def _check_trained(path: str, n_ctx: int, n_ctx_train: int) -> None:
    """Warns of a context that was asked for (512 is the default) and is longer than what was trained."""
    if n_ctx > n_ctx_train and n_ctx != 512:
        warn_once(
            f"{path}: n_ctx {n_ctx}",
            f"{path}: a context of {n_ctx} tokens is longer than the {n_ctx_train} that the model was "
            "trained with; beyond those its answers may be of no use",
        )


def _check_sizes(n_ctx: int, n_batch: int, n_ubatch: int, n_threads: int | None) -> None:
    if n_ctx < 0:
        raise OptionError(f"n_ctx={n_ctx}: give a number of tokens, or 0 for what the model was trained with")
    if min(n_batch, n_ubatch) < 1:
        raise OptionError(f"n_batch={n_batch}, n_ubatch={n_ubatch}: give at least 1 token")
    if n_threads is not None and n_threads < 0:
        raise OptionError(f"n_threads={n_threads}: give at least 1, or None for one per usable CPU core")
