"""The options of the sampling chain: names, meaning and defaults are llama.cpp's."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from pyllamacpu.errors import OptionError
from pyllamacpu.units import exact

RANDOM_SEED = -1
MAX_SEED = 2**32 - 1
MAX_STEPS = 32

DEFAULT_SAMPLERS = (
    "penalties",
    "dry",
    "top_n_sigma",
    "top_k",
    "typ_p",
    "top_p",
    "min_p",
    "xtc",
    "temperature",
)
"""The chain's steps in the order they run."""

LETTERS = {
    "e": "penalties",
    "d": "dry",
    "s": "top_n_sigma",
    "k": "top_k",
    "y": "typ_p",
    "p": "top_p",
    "m": "min_p",
    "x": "xtc",
    "t": "temperature",
    "a": "adaptive_p",
}
"""The one-letter names that `--sampling-seq` takes."""

STEP_ALIASES = {"nucleus": "top_p", "temp": "temperature", "typ": "typ_p", "typical_p": "typ_p"}

OPTION_ALIASES = {
    "temp": "temperature",
    "typ_p": "typical_p",
    "typical": "typical_p",
    "penalty_repeat": "repeat_penalty",
    "penalty_present": "presence_penalty",
    "penalty_freq": "frequency_penalty",
    "penalty_last_n": "repeat_last_n",
    "mirostat_mode": "mirostat",
    "mirostat_ent": "mirostat_tau",
    "mirostat_lr": "mirostat_eta",
    "dynatemp_exp": "dynatemp_exponent",
    "dry_sequence_breaker": "dry_sequence_breakers",
    "top_nsigma": "top_n_sigma",
    "sampler_seq": "samplers",
    "sampling_seq": "samplers",
}
"""Other names of options, as llama.cpp's command line, its C structs and llama-cpp-python spell them."""

STEP_OPTIONS = {
    "penalties": ("repeat_penalty", "presence_penalty", "frequency_penalty"),
    "dry": ("dry_multiplier",),
    "top_n_sigma": ("top_n_sigma",),
    "top_k": ("top_k",),
    "typ_p": ("typical_p",),
    "top_p": ("top_p",),
    "min_p": ("min_p",),
    "xtc": ("xtc_probability",),
    "temperature": ("temperature", "dynatemp_range"),
    "adaptive_p": ("adaptive_target",),
}
"""For each step the options that it reads first; a chain without the step leaves them without effect."""

DETAIL_OPTIONS = {
    "dry_multiplier": ("dry_base", "dry_allowed_length", "dry_penalty_last_n", "dry_sequence_breakers"),
    "xtc_probability": ("xtc_threshold",),
    "dynatemp_range": ("dynatemp_exponent",),
    "mirostat": ("mirostat_tau", "mirostat_eta"),
    "adaptive_target": ("adaptive_decay",),
}
"""For each option that switches something on, those that then say how."""

_MOST = 1e28  # that a logit may be raised by: sums and multiples of it are float32 still

_RANGES: dict[str, tuple[float, float]] = {
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "typical_p": (0.0, 1.0),
    "xtc_probability": (0.0, 1.0),
    "xtc_threshold": (0.0, 1.0),
    "temperature": (-math.inf, math.inf),
    "top_n_sigma": (-math.inf, math.inf),
    "dynatemp_range": (0.0, math.inf),
    "dynatemp_exponent": (0.0, math.inf),
    "repeat_penalty": (1e-30, 1e30),
    "presence_penalty": (-_MOST, math.inf),
    "frequency_penalty": (-_MOST, math.inf),
    "dry_multiplier": (-_MOST, math.inf),
    "dry_base": (0.0, math.inf),
    "mirostat_tau": (0.0, math.inf),
    "mirostat_eta": (0.0, math.inf),
    "adaptive_target": (-math.inf, 1.0),
    "adaptive_decay": (0.0, 0.99),
}
_INT_RANGES: dict[str, tuple[int, int]] = {
    "top_k": (-(2**31), 2**31 - 1),
    "min_keep": (0, 2**31 - 1),
    "repeat_last_n": (-1, 2**31 - 1),
    "dry_allowed_length": (0, 2**30),
    "dry_penalty_last_n": (-1, 2**31 - 1),
    "mirostat": (0, 2),
    "seed": (RANDOM_SEED, MAX_SEED),
}


def samplers_from_letters(letters: str) -> tuple[str, ...]:
    """The steps that a `--sampling-seq` such as "edskypmxt" names. OptionError for an unknown letter."""
    for letter in letters:
        if letter not in LETTERS:
            raise OptionError(
                f"sampling-seq: unknown sampler {letter!r} in {letters!r:.80}; known: {''.join(LETTERS)}"
            )
    return tuple(LETTERS[letter] for letter in letters)


def _step_name(name: str) -> str:
    """The chain's own name of a step: `top_k`, `top-k` and `topk` are one. OptionError for any other."""
    wanted = str(name).strip().lower().replace("-", "_")
    wanted = STEP_ALIASES.get(wanted, wanted)
    for step in STEP_OPTIONS:
        if wanted in (step, step.replace("_", "")):
            return step
    raise OptionError(f"samplers: unknown sampler {name!r:.80}; known: {', '.join(STEP_OPTIONS)}")


def parse_samplers(value: str | Iterable[str]) -> tuple[str, ...]:
    """Step names in order, from "top_k;top_p" or a sequence. OptionError for unknown names or too many."""
    if not isinstance(value, Iterable):
        raise OptionError(f"samplers: {value!r} is not a list of samplers")
    names = [n for n in value.split(";") if n.strip()] if isinstance(value, str) else list(value)
    steps = tuple(_step_name(name) for name in names)
    if len(steps) > MAX_STEPS:
        raise OptionError(f"samplers: {len(steps)} steps given; allowed: at most {MAX_STEPS}")
    return steps


def _bias_pair(token: Any, bias: Any) -> tuple[int, float]:
    try:
        pair = int(token), -math.inf if bias is False else float(bias)
    except (TypeError, ValueError):
        raise OptionError(f"logit_bias: {token!r}: {bias!r}; allowed: token id to number") from None
    if pair[0] < 0 or math.isnan(pair[1]) or pair[1] > _MOST:
        raise OptionError(f"logit_bias: {token!r}: {bias!r}; allowed: id >= 0, bias -inf to {exact(_MOST)}")
    return pair


def parse_logit_bias(
    value: Mapping[Any, Any] | Iterable[tuple[Any, Any]] | None,
) -> tuple[tuple[int, float], ...]:
    """(token id, bias) pairs by id; ids may be strings (JSON), False means -inf, pairs of one id add up."""
    total: dict[int, float] = {}
    try:
        pairs = [
            (token, bias) for token, bias in (value.items() if isinstance(value, Mapping) else value or ())
        ]
    except (TypeError, ValueError):
        raise OptionError(f"logit_bias: {value!r:.80}; allowed: {{token id: number}}") from None
    for token, bias in (_bias_pair(*pair) for pair in pairs):
        total[token] = total.get(token, 0.0) + bias
    return tuple(sorted(total.items()))


def _number(name: str, value: Any, kind: type, low: float, high: float) -> Any:
    """`value` as `kind` inside [low, high], or OptionError that names the option, the value and the range."""
    everything = (low, high) == (-math.inf, math.inf)
    bounds = "any finite number" if everything else f"{exact(low)} to {exact(high)}"
    if kind is int:
        bounds = f"whole numbers from {exact(low)} to {exact(high)}"
    number = None if isinstance(value, bool) else _convert(value, kind)
    if number is None or not math.isfinite(number) or not low <= number <= high:
        raise OptionError(f"{name}: {value!r} is out of range; allowed: {bounds}")
    return number


def _convert(value: Any, kind: type) -> Any:
    try:
        number = kind(value)
        return number if kind is float or number == float(value) else None
    except (TypeError, ValueError, OverflowError):
        return None


@dataclass(frozen=True)
class SamplingOptions:
    """How the next token is chosen. Immutable, hashable, checked when made (OptionError).

    `samplers` is the order of the steps: names joined by ";" or a sequence. A temperature of 0 or less keeps
    only the best token (greedy). Lengths of -1 mean the whole context. `seed` -1 draws a random one; the seed
    in use is `Sampler.seed`.
    """

    samplers: str | tuple[str, ...] = DEFAULT_SAMPLERS
    seed: int = RANDOM_SEED
    min_keep: int = 0  # tokens that top-p, min-p, typical-p and XTC leave at least
    top_k: int = 40  # <= 0: off
    top_p: float = 0.95  # 1: off
    min_p: float = 0.05  # 0: off
    typical_p: float = 1.0  # 1: off
    top_n_sigma: float = -1.0  # standard deviations below the best logit; <= 0: off
    xtc_probability: float = 0.0  # 0: off
    xtc_threshold: float = 0.1  # > 0.5: off
    temperature: float = 0.8
    dynatemp_range: float = 0.0  # 0: off
    dynatemp_exponent: float = 1.0
    repeat_last_n: int = 64  # tokens that the penalties look back on; 0: off
    repeat_penalty: float = 1.0  # 1: off
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    dry_multiplier: float = 0.0  # 0: off
    dry_base: float = 1.75  # below 1: off
    dry_allowed_length: int = 2  # tokens
    dry_penalty_last_n: int = 64  # tokens; 0: off
    dry_sequence_breakers: tuple[str, ...] = ("\n", ":", '"', "*")
    mirostat: int = 0  # 1 or 2 replace all steps but logit bias and temperature
    mirostat_tau: float = 5.0  # target surprise, bits
    mirostat_eta: float = 0.1  # learning rate
    adaptive_target: float = -1.0  # probability; needs the step adaptive_p; below 0: off
    adaptive_decay: float = 0.9
    logit_bias: Any = ()  # {token id: number or -inf}; kept as sorted pairs

    def __post_init__(self) -> None:
        self._set("samplers", parse_samplers(self.samplers))
        self._set("logit_bias", parse_logit_bias(self.logit_bias))
        breakers = self.dry_sequence_breakers
        if not isinstance(breakers, (Iterable, type(None))):
            raise OptionError(f"dry_sequence_breakers: {breakers!r}; allowed: a list of strings")
        self._set(
            "dry_sequence_breakers", (breakers,) if isinstance(breakers, str) else tuple(breakers or ())
        )
        for name, (low, high) in _RANGES.items():
            self._set(name, _number(name, getattr(self, name), float, low, high))
        for name, (least, most) in _INT_RANGES.items():
            self._set(name, _number(name, getattr(self, name), int, least, most))
        if 0.0 < self.dry_base < 1.0:
            raise OptionError(
                f"dry_base: {self.dry_base!r} is out of range; allowed: at least 1, or 0 for off"
            )
        if not all(isinstance(b, str) and b for b in self.dry_sequence_breakers):
            raise OptionError(f"dry_sequence_breakers: {breakers!r}; allowed: strings that are not empty")

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> SamplingOptions:
        """Options by any of their names ("temp", "top-k", "penalty_repeat"); None means the default.

        Raises OptionError for a name that no option has, and for one option given under two names.
        """
        known = {f.name for f in fields(cls)}
        chosen: dict[str, Any] = {}
        for key, value in values.items():
            name = key.replace("-", "_")
            if name in ("sampler_seq", "sampling_seq") and isinstance(value, str):
                value = samplers_from_letters(value)
            name = OPTION_ALIASES.get(name, name)
            if name not in known:
                from difflib import get_close_matches

                close = get_close_matches(name, sorted(known | set(OPTION_ALIASES)), n=1)
                hint = f"; did you mean {close[0]!r}?" if close else ""
                raise OptionError(f"unknown sampling option {key!r}{hint}")
            if value is None:
                continue
            if name in chosen:
                raise OptionError(f"{name} is given twice (again as {key!r})")
            chosen[name] = value
        return cls(**chosen)

    def changed(self) -> set[str]:
        """Names of the options that differ from their defaults."""
        return {f.name for f in fields(self) if getattr(self, f.name) != f.default}

    @property
    def greedy(self) -> bool:
        """Whether the chain ends with one token: temperature 0 or less, and not made dynamic."""
        has_step = self.mirostat > 0 or "temperature" in self.samplers
        return has_step and self.temperature <= 0 and (self.dynatemp_range == 0 or self.mirostat > 0)

    @property
    def penalties_on(self) -> bool:
        """Whether any penalty looks back on the history."""
        values = (self.repeat_penalty, self.presence_penalty, self.frequency_penalty)
        return self.mirostat == 0 and "penalties" in self.samplers and values != (1.0, 0.0, 0.0)

    @property
    def dry_on(self) -> bool:
        """Whether DRY looks for repetitions."""
        enabled = self.dry_multiplier != 0 and self.dry_base >= 1 and self.dry_penalty_last_n != 0
        return enabled and self.mirostat == 0 and "dry" in self.samplers

    def warnings(self) -> list[str]:
        """One sentence for each option that was changed and does nothing because of another."""
        found = self._warn_mirostat() if self.mirostat else self._warn_missing_steps() + self._warn_greedy()
        return found + self._warn_details()

    def _warn_mirostat(self) -> list[str]:
        ignored = {name for names in STEP_OPTIONS.values() for name in names} - {"temperature"}
        ignored |= {"min_keep", "samplers", "repeat_last_n"}
        return [f"{name} does nothing with mirostat={self.mirostat}" for name in self._in_order(ignored)]

    def _warn_missing_steps(self) -> list[str]:
        return [
            f"{name} does nothing: samplers does not name {step}"
            for step, names in STEP_OPTIONS.items()
            for name in names
            if step not in self.samplers and name in self.changed()
        ]

    def _warn_greedy(self) -> list[str]:
        """Steps that always leave the best token do nothing when only that one is taken."""
        if not self.greedy:
            return []
        names = self._in_order({"top_k", "top_p", "min_p", "top_n_sigma", "seed"})
        present = [n for n in names if n == "seed" or n in self.samplers]
        if self.xtc_probability > 0 and "seed" in present:
            present.remove("seed")
        return [f"{name} does nothing at temperature {exact(self.temperature)}" for name in present]

    def _warn_details(self) -> list[str]:
        defaults = {f.name: f.default for f in fields(self)}
        found = [
            f"{name} does nothing while {switch} is {exact(getattr(self, switch))}"
            for switch, names in DETAIL_OPTIONS.items()
            if getattr(self, switch) == defaults[switch]
            for name in self._in_order(set(names))
        ]
        if not self.mirostat:
            found += self._warn_zero_windows()
        if self.xtc_probability > 0 and self.xtc_threshold > 0.5 and not self.mirostat:
            found.append(
                f"xtc_probability does nothing with xtc_threshold {exact(self.xtc_threshold)} (above 0.5)"
            )
        if "adaptive_p" in self.samplers and self.adaptive_target < 0 and not self.mirostat:
            found.append("the sampler adaptive_p does nothing while adaptive_target is below 0")
        return found

    def _warn_zero_windows(self) -> list[str]:
        found = []
        if self.penalties_on and self.repeat_last_n == 0:
            found.append("the penalties do nothing with repeat_last_n 0")
        if not self.penalties_on and "repeat_last_n" in self.changed():
            found.append("repeat_last_n does nothing while no penalty is set")
        if self.dry_multiplier != 0 and (self.dry_penalty_last_n == 0 or self.dry_base < 1):
            found.append("dry_multiplier does nothing with dry_penalty_last_n 0 or dry_base below 1")
        return found

    def _in_order(self, names: set[str]) -> list[str]:
        """The changed ones among `names`, in the order of the fields."""
        changed = self.changed()
        return [f.name for f in fields(self) if f.name in names and f.name in changed]
