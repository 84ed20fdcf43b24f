"""What code written for llama-cpp-python brings along: its helper classes, and options that have no meaning
here.

An option that could only change speed or memory there is accepted; when it asks for something that will not
happen, a UserWarning says so, once. An option that would change results and is not supported raises
OptionError.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from pyllamacpu.errors import OptionError
from pyllamacpu.topology import NUMA, use_numa

Ids = npt.NDArray[np.intc]
Row = npt.NDArray[np.float32]
LogitsProcessor = Callable[[Ids, Row], Row]
StoppingCriteria = Callable[[Ids, Row], bool]

_CPU_ONLY = "pyllamacpu computes on the CPU only"
_PANELS = "weights are copied into panels for this CPU when they are loaded"

# name: (values that ask for nothing special, why others do nothing)
_WITHOUT_EFFECT: dict[str, tuple[tuple[Any, ...], str]] = {
    "n_gpu_layers": ((0, None), _CPU_ONLY),
    "split_mode": ((0, 1, None), _CPU_ONLY),
    "main_gpu": ((0, None), _CPU_ONLY),
    "tensor_split": ((None,), _CPU_ONLY),
    "offload_kqv": ((True, False, None), _CPU_ONLY),
    "op_offload": ((True, False, None), _CPU_ONLY),
    "flash_attn": ((True, False, None), "attention is always tiled with an online softmax"),
    "swa_full": ((True, False, None), "the whole cache is always kept"),
    "no_perf": ((True, False, None), "timings cost nothing"),
    "use_mmap": ((True, None), _PANELS),
    "use_mlock": ((False, None), _PANELS),
    "attention_type": ((-1, 0, None), "the attention of a Llama is causal"),
    # Retired in llama-cpp-python, still passed by its clients.
    "f16_kv": ((True, None), "the type of the cache is kv_type"),
    "n_parts": ((-1, 1, None), "files in parts are found by themselves"),
    "low_vram": ((False, None), _CPU_ONLY),
    "mul_mat_q": ((True, False, None), _CPU_ONLY),
    "n_gqa": ((None,), "the file says how many heads there are"),
    "rms_norm_eps": ((None,), "the file says it"),
    "device": (("cpu", None), _CPU_ONLY),
}

# name: values at which nothing is asked for; others would change the answers
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "lora_base": (None,),
    "rope_scaling_type": (-1, None),
    "yarn_ext_factor": (-1.0, None),
    "yarn_attn_factor": (1.0, -1.0, None),
    "yarn_beta_fast": (32.0, -1.0, None),
    "yarn_beta_slow": (1.0, -1.0, None),
    "yarn_orig_ctx": (0, None),
}

_NUMA = {0: None, 1: "distribute", 2: "isolate", 3: "numactl"}

_warned: set[str] = set()


class LogitsProcessorList(list[LogitsProcessor]):
    """Logits processors, called one after the other."""

    def __call__(self, input_ids: Ids, scores: Row) -> Row:
        for processor in self:
            scores = processor(input_ids, scores)
        return scores


class StoppingCriteriaList(list[StoppingCriteria]):
    """Stopping criteria, of which one is enough."""

    def __call__(self, input_ids: Ids, logits: Row) -> bool:
        return any(criterion(input_ids, logits) for criterion in self)


class MinTokensLogitsProcessor:
    """Keeps the token `token_eos` from being chosen until `min_tokens` were. For one call: the first row that
    it sees is taken as the end of the prompt.
    """

    def __init__(self, min_tokens: int, token_eos: int) -> None:
        self.min_tokens = min_tokens
        self.token_eos = token_eos
        self.prompt_tokens: int | None = None

    def __call__(self, input_ids: Ids, scores: Row) -> Row:
        if self.prompt_tokens is None:
            self.prompt_tokens = len(input_ids)
        if len(input_ids) - self.prompt_tokens < self.min_tokens:
            scores[self.token_eos] = -np.inf
        return scores


def as_functions(name: str, value: Any) -> tuple[Callable[..., Any], ...]:
    """One function, a list of them or None, as a tuple. Raises OptionError for anything else."""
    if value is None:
        return ()
    functions = tuple(value) if isinstance(value, Iterable) else (value,)
    if not all(map(callable, functions)):
        raise OptionError(f"{name}={value!r:.80}: give a function, or a list of functions")
    return functions


def warn_once(key: str, message: str) -> None:
    """A UserWarning, the first time that `key` is given."""
    if key not in _warned:
        _warned.add(key)
        warnings.warn(message, UserWarning, stacklevel=4)


def check_foreign_options(options: Mapping[str, Any], known: Collection[str]) -> None:
    """Accepts llama-cpp-python's options that pyllamacpu has no use for.

    A name that neither has is a UserWarning (`known` are ours, for the hint): clients pass many. Raises
    OptionError for an option that would change answers and is not supported.
    """
    for name, value in options.items():
        if name == "numa":
            _choose_numa(value)
        elif name in _WITHOUT_EFFECT:
            quiet, reason = _WITHOUT_EFFECT[name]
            if not _among(value, quiet):
                warn_once(name, f"{name}={value!r} does nothing: {reason}")
        elif name in _UNSUPPORTED:
            if not _among(value, _UNSUPPORTED[name]):
                raise OptionError(f"{name}={value!r} is not supported yet: leave it out")
        else:
            hint = close_name(name, [*known, "numa", *_WITHOUT_EFFECT, *_UNSUPPORTED])
            warn_once(f"Llama({name})", f"Llama() has no option {name!r}, which does nothing{hint}")


def _choose_numa(value: Any) -> None:
    """Of llama-cpp-python: a bool, a number of ggml_numa_strategy, or here a name. For the whole process."""
    strategy = _NUMA.get(value, value) if isinstance(value, int) else value
    if strategy in NUMA:
        use_numa(strategy)
    elif strategy is not None:
        warn_once("numa", f"numa={value!r:.40} does nothing: choose from {', '.join(NUMA)}")


def _among(value: Any, quiet: tuple[Any, ...]) -> bool:
    plain = isinstance(value, (bool, int, float, str))
    return any(value is other or (plain and value == other) for other in quiet)


def unknown_keyword(function: str, name: str, known: Iterable[str]) -> TypeError:
    """The error for a keyword that a function does not have."""
    return TypeError(f"{function}() got an unexpected keyword argument {name!r}{close_name(name, known)}")


def close_name(name: str, known: Iterable[str]) -> str:
    """A hint at the name that may have been meant, or ""."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def handler_arguments(arguments: dict[str, Any]) -> dict[str, Any]:
    """What a chat handler is called with: the method's arguments by name."""
    inner = ("self", "sampling")
    rest = {name: value for name, value in arguments.items() if name not in inner}
    if rest["parallel_tool_calls"] is None:
        del rest["parallel_tool_calls"]  # which llama-cpp-python's handlers do not take
    return {**rest, **arguments["sampling"]}
