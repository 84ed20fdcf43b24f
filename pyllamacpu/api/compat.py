"""What code written for llama-cpp-python brings along: its helper classes, and options that have no meaning
here.

An option that could only change speed or memory there is accepted; when it asks for something that will not
happen, a UserWarning says so, once. An option that would change results and is not supported raises
OptionError.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pyllamacpu.engine.token_ids import check_tokens
from pyllamacpu.errors import OptionError
from pyllamacpu.text.tokenizer import Tokenizer

Ids = npt.NDArray[np.intc]
Row = npt.NDArray[np.float32]

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
    "numa": ((False, 0, None), "the thread pool keeps to the CPUs that the process may use"),
    "draft_model": ((None,), "drafts are not used; the tokens are the same without them"),
    "attention_type": ((-1, 0, None), "the attention of a Llama is causal"),
    "lora_scale": ((1.0, None), "no adapter is loaded"),
}

# name: values at which nothing is asked for; others would change the answers
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "kv_overrides": (None, {}),
    "lora_path": (None,),
    "lora_base": (None,),
    "tokenizer": (None,),
    "rope_scaling_type": (-1, None),
    "yarn_ext_factor": (-1.0, None),
    "yarn_attn_factor": (1.0, -1.0, None),
    "yarn_beta_fast": (32.0, -1.0, None),
    "yarn_beta_slow": (1.0, -1.0, None),
    "yarn_orig_ctx": (0, None),
}

_warned: set[str] = set()


class LogitsProcessorList(list[Callable[[Ids, Row], Row]]):
    """Logits processors, called one after the other."""

    def __call__(self, input_ids: Ids, scores: Row) -> Row:
        for processor in self:
            scores = processor(input_ids, scores)
        return scores


class StoppingCriteriaList(list[Callable[[Ids, Row], bool]]):
    """Stopping criteria, of which one is enough."""

    def __call__(self, input_ids: Ids, logits: Row) -> bool:
        return any(criterion(input_ids, logits) for criterion in self)


def as_tuple(functions: Any) -> tuple[Any, ...]:
    """One function, a list of them or None, as a tuple."""
    if functions is None:
        return ()
    if isinstance(functions, Iterable):
        return tuple(functions)
    return (functions,)


def warn_once(key: str, message: str) -> None:
    """A UserWarning, the first time that `key` is given."""
    if key not in _warned:
        _warned.add(key)
        warnings.warn(message, UserWarning, stacklevel=4)


def check_foreign_options(options: Mapping[str, Any], known: Collection[str]) -> None:
    """Accepts llama-cpp-python's options that pyllamacpu has no use for.

    Raises TypeError for a name that neither has (`known` are ours, for the hint), OptionError for an option
    that would change answers and is not supported.
    """
    for name, value in options.items():
        if name in _WITHOUT_EFFECT:
            quiet, reason = _WITHOUT_EFFECT[name]
            if not _among(value, quiet):
                warn_once(name, f"{name}={value!r} does nothing: {reason}")
        elif name in _UNSUPPORTED:
            if not _among(value, _UNSUPPORTED[name]):
                raise OptionError(f"{name}={value!r} is not supported yet; leave it out")
        else:
            raise unknown_keyword("Llama", name, [*known, *_WITHOUT_EFFECT, *_UNSUPPORTED])


def _among(value: Any, quiet: tuple[Any, ...]) -> bool:
    return any(value is other or (type(value) is not str and value == other) for other in quiet)


def unknown_keyword(function: str, name: str, known: Iterable[str]) -> TypeError:
    """The error for a keyword that a function does not have."""
    close = difflib.get_close_matches(name, list(known), n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return TypeError(f"{function}() got an unexpected keyword argument {name!r}{hint}")


class LlamaTokenizer:
    """A tokenizer with llama-cpp-python's method names: `Llama.tokenizer_`. Calling it returns itself."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def __call__(self) -> LlamaTokenizer:
        return self

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = True) -> list[int]:
        """Token ids of UTF-8 text, as `Llama.tokenize`."""
        return self._tokenizer.encode(text, add_special=add_bos, parse_special=special)

    def detokenize(
        self, tokens: Sequence[int], prev_tokens: Sequence[int] | None = None, special: bool = False
    ) -> bytes:
        """The bytes of `tokens`.

        The space that SentencePiece puts before a text's first word is removed only where a text begins:
        behind BOS.
        """
        ids = check_tokens(tokens, self._tokenizer.n_vocab)
        begins = not prev_tokens and ids[:1] == [self._tokenizer.bos]
        return self._tokenizer.decode_bytes(ids, special=special, at_start=begins)

    def encode(self, text: str, add_bos: bool = True, special: bool = True) -> list[int]:
        return self.tokenize(text.encode("utf-8", "surrogateescape"), add_bos, special)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of `tokens`; bytes that are no UTF-8 are left out."""
        return self.detokenize(tokens).decode("utf-8", "ignore")
