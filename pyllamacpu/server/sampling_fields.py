"""Sampling options in a body, by OpenAI's names and by llama.cpp's: `known` says which a dialect has."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import Any

from pyllamacpu.errors import OptionError
from pyllamacpu.sampling.options import MAX_SEED, RANDOM_SEED, SamplingOptions
from pyllamacpu.server.errors import as_http_error
from pyllamacpu.server.fields import Fields, logit_bias
from pyllamacpu.server.models import Model

BIG = 2**31 - 1

Range = tuple[str, float, float]  # (option, low, high) of a body's field; integers for an integer

OPENAI: dict[str, Range] = {
    "temperature": ("temperature", 0.0, 2.0),
    "top_p": ("top_p", 0.0, 1.0),
    "presence_penalty": ("presence_penalty", -2.0, 2.0),
    "frequency_penalty": ("frequency_penalty", -2.0, 2.0),
    "seed": ("seed", -(2**63), 2**64 - 1),
}
LLAMA_CPP: dict[str, Range] = {
    "top_k": ("top_k", -1, BIG),
    "min_p": ("min_p", 0.0, 1.0),
    "typical_p": ("typical_p", 0.0, 1.0),
    "top_n_sigma": ("top_n_sigma", -1.0, 1e6),
    "xtc_probability": ("xtc_probability", 0.0, 1.0),
    "xtc_threshold": ("xtc_threshold", 0.0, 1.0),
    "repeat_penalty": ("repeat_penalty", 1e-3, 1e3),
    "repeat_last_n": ("repeat_last_n", -1, BIG),
    "dynatemp_range": ("dynatemp_range", 0.0, 1e3),
    "dynatemp_exponent": ("dynatemp_exponent", 0.0, 1e3),
    "dry_multiplier": ("dry_multiplier", 0.0, 1e3),
    "dry_base": ("dry_base", 0.0, 1e3),
    "dry_allowed_length": ("dry_allowed_length", 0, 2**30),
    "dry_penalty_last_n": ("dry_penalty_last_n", -1, BIG),
    "mirostat": ("mirostat", 0, 2),
    "mirostat_tau": ("mirostat_tau", 0.0, 1e3),
    "mirostat_eta": ("mirostat_eta", 0.0, 1e3),
    "min_keep": ("min_keep", 0, BIG),
    "adaptive_target": ("adaptive_target", -1e6, 1.0),
    "adaptive_decay": ("adaptive_decay", 0.0, 0.99),
}
_UNKNOWN_HERE = "infill"  # llama.cpp's sampler that prefers ends
COMMON = {**OPENAI, **LLAMA_CPP}
WIDE = {**COMMON, "temperature": ("temperature", 0.0, 1e3)}


def read_sampling(fields: Fields, model: Model, known: Mapping[str, Range] = COMMON) -> SamplingOptions:
    """The sampling fields of a body, those that `known` has and those that are not numbers: the bias, the
    samplers and DRY's breakers. What is left out is the model's own. Raises HTTPError that names a field.
    """
    options: dict[str, Any] = {**model.own_sampling, **numbers(fields, known)}
    if bias := logit_bias(fields, model.engine.n_vocab, encode=_tokens_of(model)):
        options["logit_bias"] = bias
    if (samplers := fields.raw("samplers")) is not None:
        options["samplers"] = _names(fields, samplers)
    if breakers := fields.strings("dry_sequence_breakers"):
        options["dry_sequence_breakers"] = breakers
    try:
        return SamplingOptions(**options)
    except OptionError as error:
        raise as_http_error(error) from error


def _tokens_of(model: Model) -> Callable[[str], list[int]]:
    return lambda text: model.tokenizer.encode(text, add_special=False, parse_special=True)


def numbers(fields: Fields, known: Mapping[str, Range]) -> dict[str, float]:
    """The options that `fields` has, by their own names. Raises HTTPError."""
    found: dict[str, float] = {}
    for name, (option, low, high) in known.items():
        value: float | None
        if isinstance(low, int) and isinstance(high, int):
            value = fields.integer(name, low, high)
            if option == "seed" and value is not None:
                value = folded_seed(value)
        else:
            value = fields.number(name, low, high)
        if value is not None:
            found[option] = value
    return found


def folded_seed(seed: int) -> int:
    """A seed of 64 bits, as OpenAI has them, in the 32 of this program: all bits count, those that fit stay
    as they are, and -1 is a random one, as llama.cpp has it.
    """
    if RANDOM_SEED <= seed <= MAX_SEED:
        return seed
    return zlib.crc32(seed.to_bytes(9, "little", signed=True))


def _names(fields: Fields, value: Any) -> Any:
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        if _UNKNOWN_HERE in value:  # editor plugins always name it
            fields.note(f"the sampler {_UNKNOWN_HERE!r} is not known here and is left out")
        return tuple(name for name in value if name != _UNKNOWN_HERE)
    if isinstance(value, str):
        return value
    raise fields.wrong("samplers", "must be a list of names, or names joined by ;")
