"""From the keyword arguments of `Llama`'s methods to `SamplingOptions`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from pyllamacpu.api.compat import unknown_keyword
from pyllamacpu.sampling.options import OPTION_ALIASES, SamplingOptions

_NAMED = (
    "temperature",
    "temp",
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
    "repeat_penalty",
    "frequency_penalty",
    "presence_penalty",
    "mirostat_mode",
    "mirostat_tau",
    "mirostat_eta",
    "logit_bias",
)
_PENALTIES_OFF = {"repeat_penalty": 1.0, "frequency_penalty": 0.0, "presence_penalty": 0.0}
_KNOWN = {field.name for field in fields(SamplingOptions)} | set(OPTION_ALIASES)


def sampling_options(
    function: str, arguments: Mapping[str, Any], more: Mapping[str, Any], seed: int, last_n: int
) -> SamplingOptions:
    """Options from a method's `arguments` (others among them are not looked at) and its `more` keywords.

    `last_n` is how far penalties look back, unless `more` says so. Options that were given and do nothing are
    told of by a UserWarning. Raises TypeError for a keyword that no option has, OptionError for a value out
    of range.
    """
    for name in more:
        if name not in _KNOWN:
            raise unknown_keyword(function, name, _KNOWN)
    values = {name: arguments[name] for name in _NAMED if arguments.get(name) is not None}
    if any(values.get(name, off) != off for name, off in _PENALTIES_OFF.items()):
        values["repeat_last_n"] = last_n
    given = {OPTION_ALIASES.get(name, name) for name in more}
    values = {name: value for name, value in values.items() if OPTION_ALIASES.get(name, name) not in given}
    options = SamplingOptions.from_mapping({"seed": seed, **values, **more})
    for sentence in effective(options).warnings():
        warnings.warn(sentence, UserWarning, stacklevel=4)
    return options


def effective(options: SamplingOptions) -> SamplingOptions:
    """`options` without what temperature 0 makes redundant: to ask for greedy and also say top_k=1 is no
    mistake.
    """
    cold = options.temperature <= 0
    return replace(options, seed=-1, temperature=SamplingOptions.temperature if cold else options.temperature)
