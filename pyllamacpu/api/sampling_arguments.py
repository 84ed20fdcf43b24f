"""From the keyword arguments of `Llama`'s methods to `SamplingOptions`."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any, TypedDict, TypeVar, cast

from pyllamacpu.api.compat import unknown_keyword
from pyllamacpu.sampling.options import OPTION_ALIASES, SamplingOptions

Method = TypeVar("Method", bound=Callable[..., Any])


class SamplingKeywords(TypedDict, total=False):
    """The sampling keywords of all methods: llama-cpp-python's names, and the fields of SamplingOptions."""

    temperature: float
    temp: float
    top_k: int
    top_p: float
    min_p: float
    typical_p: float
    repeat_penalty: float
    frequency_penalty: float
    presence_penalty: float
    repeat_last_n: int
    mirostat_mode: int
    mirostat_tau: float
    mirostat_eta: float
    mirostat: int
    logit_bias: Any
    samplers: Any
    min_keep: int
    top_n_sigma: float
    xtc_probability: float
    xtc_threshold: float
    dynatemp_range: float
    dynatemp_exponent: float
    dry_multiplier: float
    dry_base: float
    dry_allowed_length: int
    dry_penalty_last_n: int
    dry_sequence_breakers: Any
    adaptive_target: float
    adaptive_decay: float


_DEFAULTS: dict[str, Any] = {
    "temperature": 0.8,
    "temp": 0.8,
    "top_k": 40,
    "top_p": 0.95,
    "min_p": 0.05,
    "typical_p": 1.0,
    "repeat_penalty": 1.0,
    "frequency_penalty": 0.0,
    "presence_penalty": 0.0,
    "mirostat_mode": 0,
    "mirostat_tau": 5.0,
    "mirostat_eta": 0.1,
    "logit_bias": None,
}
"""llama-cpp-python's."""

_PENALTIES_OFF = {"repeat_penalty": 1.0, "frequency_penalty": 0.0, "presence_penalty": 0.0}
_KNOWN = {field.name for field in fields(SamplingOptions)} | set(OPTION_ALIASES)


def with_sampling(order: str, **defaults: Any) -> Callable[[Method], Method]:
    """Gives a method that takes **sampling the sampling keywords, at the places that llama-cpp-python has.

    `order`: the names of all arguments in their order; those that the method does not name are sampling
    keywords. It is called with the keywords that were given and the defaults of the others in `order`.
    `defaults`: where this method's differ.
    """
    chosen = {**_DEFAULTS, **defaults}

    def decorate(method: Method) -> Method:
        own = inspect.signature(method).parameters
        names = [name for name in order.split() if name not in own]
        parameters = [own["self"]]
        for name in order.split():
            kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
            if name in own:
                parameters.append(own[name].replace(kind=kind))
            else:
                hint = SamplingKeywords.__annotations__[name].__forward_arg__
                parameters.append(inspect.Parameter(name, kind, default=chosen[name], annotation=hint))
        parameters.append(inspect.Parameter("sampling", inspect.Parameter.VAR_KEYWORD, annotation="Any"))
        signature = inspect.Signature(parameters)

        @functools.wraps(method)
        def call(*args: Any, **keywords: Any) -> Any:
            given = dict(signature.bind(*args, **keywords).arguments)
            given |= given.pop("sampling", {})
            known = {_canonical(name) for name in given}
            rest = {name: chosen[name] for name in names if _canonical(name) not in known}
            return method(**given, **rest)

        call.__signature__ = signature  # type: ignore[attr-defined]
        return cast(Method, call)

    return decorate


def answering(order: str, **defaults: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """`with_sampling` for a method whose overloads say what it takes, also in this order, and gives."""
    return with_sampling(order, **defaults)


def _canonical(name: str) -> str:
    return OPTION_ALIASES.get(name, name)


def sampling_options(function: str, keywords: Mapping[str, Any], seed: int, last_n: int) -> SamplingOptions:
    """Options from a method's sampling keywords; None is the option's own default.

    `last_n` is how far penalties look back, unless the keywords say so. Options that were given and do
    nothing are reported by a UserWarning. Raises TypeError for a keyword that no option has, OptionError for
    a value out of range.
    """
    for name in keywords:
        if name not in _KNOWN:
            raise unknown_keyword(function, name, _KNOWN)
    values = {"seed": seed, **_as_given(keywords)}
    if any(keywords.get(name, off) not in (off, None) for name, off in _PENALTIES_OFF.items()):
        values.setdefault("repeat_last_n", last_n)
    options = SamplingOptions.from_mapping(values)
    for sentence in effective(options).warnings():
        warnings.warn(sentence, UserWarning, stacklevel=5)
    return options


def _as_given(keywords: Mapping[str, Any]) -> Mapping[str, Any]:
    """The keywords; for a temperature below 0 those that llama-cpp-python then heeds: penalties and bias, and
    a draw from all tokens.
    """
    temperature = keywords.get("temperature", keywords.get("temp"))
    if not isinstance(temperature, (int, float)) or not temperature < 0:  # NaN is refused later
        return keywords
    kept = {*_PENALTIES_OFF, "repeat_last_n", "logit_bias"}
    heeded = {name: value for name, value in keywords.items() if name in kept}
    return {**heeded, "temperature": 1.0, "samplers": ["penalties", "temperature"]}


def effective(options: SamplingOptions) -> SamplingOptions:
    """`options` without what temperature 0 makes redundant: to ask for greedy and also say top_k=1 is no
    mistake.
    """
    cold = options.temperature <= 0
    return replace(options, seed=-1, temperature=SamplingOptions.temperature if cold else options.temperature)
