"""From the arguments of `Llama` to what is opened, and the warnings about what was."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from pyllamacpu.api.compat import warn_once
from pyllamacpu.api.loading import LoadedModel, LoadOptions, cache_type
from pyllamacpu.api.prompts import as_texts
from pyllamacpu.errors import OptionError
from pyllamacpu.gguf.overrides import Overrides
from pyllamacpu.model.lora import check_scale
from pyllamacpu.store.paths import pack_folder
from pyllamacpu.units import parse_bytes

if TYPE_CHECKING:
    from pyllamacpu.engine.page_files import PageFiles
    from pyllamacpu.text.formats import Format

_MAX_COUNT = 2**31 - 1  # tokens


def load_options(given: Mapping[str, Any]) -> LoadOptions:
    """How to open the model, from the arguments of `Llama` by name. Raises OptionError."""
    n_threads = given["n_threads"]
    if given["n_threads_batch"] not in (None, n_threads):
        warn_once("n_threads_batch", "n_threads_batch does nothing: n_threads serves prompts too")
    _check_numbers(given)
    _check_objects(given)
    _check_sizes(given["n_ctx"], given["n_batch"], given["n_ubatch"], n_threads)
    types = {
        name: cache_type(given["kv_type"] if given[name] is None else given[name], name)
        for name in ("type_k", "type_v")
    }
    return LoadOptions(
        n_ctx=given["n_ctx"],
        n_batch=min(given["n_batch"], given["n_ubatch"]),
        n_threads=n_threads or None,
        precision=given["precision"],
        rope_freq_base=given["rope_freq_base"],
        rope_freq_scale=given["rope_freq_scale"],
        chat_template=template_choice(given["chat_format"], given["chat_template"]),
        vocab_only=given["vocab_only"],
        adapters=_adapters(given["lora_path"], given["lora_scale"]),
        expert_memory=_expert_bytes(given["expert_memory"]),
        kv_overrides=_overrides(given["kv_overrides"]),
        pack_cache=pack_folder(given["pack_cache"], given["pack_cache_limit"]),
        mmproj=given["mmproj"],
        draft=given["draft_model"],
        **types,
    )


def _expert_bytes(given: Any) -> int | None:
    """Of the argument expert_memory: a number, or a text such as "12GB". Raises OptionError."""
    if isinstance(given, str):
        return parse_bytes(given)
    if given is not None and (isinstance(given, bool) or not isinstance(given, int)):
        raise OptionError(f"expert_memory={given!r:.80}: give a number of bytes, or a size such as '12GB'")
    return given


def _overrides(given: Any) -> Overrides | None:
    """Of the argument kv_overrides. The values are checked beside the file's. Raises OptionError."""
    if given is not None and not isinstance(given, Mapping):
        raise OptionError(f"kv_overrides={given!r:.80}: give a dictionary of keys and values")
    return dict(given) if given is not None else None


def _adapters(lora_path: Any, lora_scale: Any) -> tuple[tuple[str, float], ...]:
    """Of these two arguments. Raises OptionError."""
    scale = check_scale(1.0 if lora_scale is None else lora_scale)
    if lora_path is None:
        if scale != 1.0:
            warn_once("lora_scale", "lora_scale does nothing without a lora_path")
        return ()
    return adapter_files("lora_path", lora_path, scale)


def adapter_files(name: str, files: Any, scale: float = 1.0) -> tuple[tuple[str, float], ...]:
    """LoRA files with their scales, of one path or a list of paths and (path, scale), which is the argument
    `name`. Raises OptionError.
    """
    given = [files] if isinstance(files, (str, os.PathLike)) else files
    if not isinstance(given, Iterable) or isinstance(given, (Mapping, bytes, bytearray)):
        raise OptionError(f"{name}={files!r:.80}: give a file, or a list of files and (file, scale)")
    found = []
    for item in given:
        path, own = item if isinstance(item, (list, tuple)) and len(item) == 2 else (item, scale)
        if not isinstance(path, (str, os.PathLike)):
            raise OptionError(f"{name}: {item!r:.80} is neither a file nor (file, scale)")
        if not os.path.exists(path):
            raise OptionError(f"{os.fsdecode(path)}: no such file; give the path of a LoRA adapter (GGUF)")
        found.append((os.fsdecode(path), check_scale(own)))
    return tuple(found)


def page_folder(folder: Any, limit_bytes: Any) -> PageFiles | None:
    """The folder that keys and values are kept in, of the arguments cache_disk and cache_disk_limit. Raises
    OptionError.
    """
    if folder is None:
        if limit_bytes is not None:
            raise OptionError("cache_disk_limit: name the folder too, with cache_disk")
        return None
    if not isinstance(folder, (str, os.PathLike)) or not os.fspath(folder):
        raise OptionError(f"cache_disk={folder!r:.80}: give the path of a folder")
    if limit_bytes is not None and not hasattr(limit_bytes, "__index__"):
        raise OptionError(f"cache_disk_limit={limit_bytes!r:.80}: give a number of bytes")
    from pyllamacpu.engine.page_files import open_page_files

    return open_page_files(folder, limit_bytes)


def template_choice(chat_format: str | None, chat_template: str | None) -> str | Format | None:
    """The one way that was named to make prompts, where llama-cpp-python's names mean its prompts.

    None is the file's own template, which it calls "chat_template.default"; a name that the program
    registered a handler for needs none.
    """
    for name, value in (("chat_format", chat_format), ("chat_template", chat_template)):
        if not isinstance(value, (str, type(None))):
            raise OptionError(f"{name}={value!r:.80}: give a text")
    if chat_format is not None and chat_template is not None:
        raise OptionError("give chat_format or chat_template, not both")
    if chat_format is None:
        return chat_template
    from pyllamacpu.api.chat_handlers import registered_handler
    from pyllamacpu.text.named_formats import NAMED_FORMATS

    if chat_format == "chat_template.default" or registered_handler(chat_format) is not None:
        return None
    return NAMED_FORMATS.get(chat_format, chat_format)


def check_hub_arguments(
    repo_id: Any, filename: Any, additional_files: Any, local_dir: Any, cache_dir: Any
) -> list[str | None]:
    """The names and patterns of the files to download. Raises OptionError for arguments of a wrong kind."""
    if not isinstance(repo_id, str) or not repo_id:
        raise OptionError(f"repo_id={repo_id!r:.80}: give the name of a repository on the hub: USER/REPO")
    if not isinstance(filename, (str, type(None))):
        raise OptionError(f"filename={filename!r:.80}: give a name or a pattern, or None")
    for name, folder in (("local_dir", local_dir), ("cache_dir", cache_dir)):
        if not isinstance(folder, (str, os.PathLike, type(None))):
            raise OptionError(f"{name}={folder!r:.80}: give the path of a folder")
    return [filename, *as_texts("additional_files", additional_files or ())]


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


def _check_numbers(given: Mapping[str, Any]) -> None:
    """Raises OptionError for what is not a number where one belongs."""
    for name in ("n_ctx", "n_batch", "n_ubatch", "last_n_tokens_size", "n_threads", "kv_bytes"):
        may_be_left = given[name] is None and name in ("n_threads", "kv_bytes")
        if not may_be_left and not hasattr(given[name], "__index__"):
            raise OptionError(f"{name}={given[name]!r:.80}: give a whole number")
    if not -1 <= given["last_n_tokens_size"] <= _MAX_COUNT:
        said = f"last_n_tokens_size={given['last_n_tokens_size']}"
        raise OptionError(f"{said}: give a number of tokens, or -1 for all of the context")
    if (given["kv_bytes"] or 0) < 0:
        raise OptionError(f"kv_bytes={given['kv_bytes']}: give a number of bytes, or None")
    for name in ("rope_freq_base", "rope_freq_scale"):
        if given[name] is not None and not isinstance(given[name], (int, float)):
            raise OptionError(f"{name}={given[name]!r:.80}: give a number, or 0 for the file's own")


def _check_objects(given: Mapping[str, Any]) -> None:
    """Raises OptionError for a handler that cannot be called, and a tokenizer without its methods."""
    handler, tokenizer = given["chat_handler"], given["tokenizer"]
    if handler is not None and not callable(handler):
        raise OptionError(f"chat_handler={handler!r:.80}: give a function")
    if tokenizer is not None and not (hasattr(tokenizer, "tokenize") and hasattr(tokenizer, "detokenize")):
        raise OptionError(f"tokenizer={tokenizer!r:.80}: give a BaseLlamaTokenizer")


def _check_sizes(n_ctx: int, n_batch: int, n_ubatch: int, n_threads: int | None) -> None:
    if not 0 <= n_ctx <= _MAX_COUNT:
        raise OptionError(f"n_ctx={n_ctx}: give a number of tokens, or 0 for what the model was trained with")
    if min(n_batch, n_ubatch) < 1:
        raise OptionError(f"n_batch={n_batch}, n_ubatch={n_ubatch}: give at least 1 token")
    if n_threads is not None and n_threads < 0:
        raise OptionError(f"n_threads={n_threads}: give at least 1, or None for one per usable CPU core")
