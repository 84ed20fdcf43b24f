"""What a step costs on this machine, learned from the steps that were measured.

    seconds = a + b * prompt tokens + c * decoded tokens + d * (sum of the tokens' positions)

The last term is attention, which reads all keys before a token.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import chain
from math import exp, log

import numpy as np
import numpy.typing as npt

from pyllamacpu.engine.pages import PAGE

_WINDOW = 64  # measured steps of each kind that count
_REFIT_AFTER = 16  # measured steps
_ROUNDS = 4  # of weighing down outliers
_CAREFUL = 0.9  # of the wanted time is planned for: steps take longer than expected as often as shorter
_SLOWDOWN = 1.4  # times as long as alone, that reading a prompt beside answers may take before their target
_ROWS = 8  # tokens that kernels take at a time: the rest costs as much
_OUTLIER = 0.3  # relative error from which a step counts less

ROW_COST = 0.13  # of a step, that one more row costs as long as nothing is measured
_MAX_ERROR = 0.7  # log, of one measurement
_FOLLOW = 0.25  # of the error, for the time of a single row
_WELL_KNOWN = 32  # measurements of a ratio
_LEAST_WEIGHT = 0.05  # of the error, for a ratio that was measured often
_STALE = 100  # steps since a ratio was measured
_DISBELIEF = 0.6  # of the way back to what is assumed, after so many

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class StepSize:
    """The work of a step. `positions`: the sum of the positions of all its tokens."""

    prompt: int = 0
    decoding: int = 0
    positions: int = 0


class CostModel:
    """Fitted by least squares of relative errors, with outliers (a machine that was busy) weighed down and no
    coefficient below 0.
    """

    def __init__(self) -> None:
        # Apart, so that long answers do not push out what was learned from prompts.
        self._with_prompt: deque[tuple[StepSize, float]] = deque(maxlen=_WINDOW)
        self._decoding: deque[tuple[StepSize, float]] = deque(maxlen=_WINDOW)
        self._coefficients: Floats | None = None
        self._unseen = 0
        self.rows = RowCosts()

    def observe(self, size: StepSize, seconds: float) -> None:
        """A step of this size took this long."""
        if seconds > 0:
            if size.decoding and not size.prompt:
                self.rows.observe(size.decoding, seconds)
            (self._with_prompt if size.prompt else self._decoding).append((size, seconds))
            self._unseen += 1

    def seconds(self, size: StepSize) -> float:
        """The time that a step is expected to take; 0 before any was measured."""
        return float(_row(size) @ self._fitted())

    def prompt_budget(self, target: float, decoding: StepSize, depth: int) -> int:
        """Prompt tokens, read from position `depth` on, that a step can take beside `decoding` and last at
        most `target` seconds: whole pages, or less than one. Where that is so few that the prompt would take
        much longer than alone, as many as keep this bounded, but no more than a page.
        """
        _, b, _, d = self._fitted()
        per_token = float(b + d * depth)
        if not self._with_prompt or per_token <= 0:
            return PAGE
        alone = self.seconds(decoding)
        tokens = min((_CAREFUL * target - alone) / per_token, self._known(target))
        if tokens >= PAGE:
            return int(tokens) // PAGE * PAGE
        tokens = max(tokens, min(PAGE, alone / (_SLOWDOWN - 1) / per_token))
        n = decoding.decoding
        rows = max(n // _ROWS + 1, round((tokens + n) / _ROWS)) * _ROWS
        return min(PAGE, rows - n)

    def _known(self, target: float) -> float:
        """More prompt tokens than this the newest measurement does not speak for: a step with k times as many
        takes at most k times as long.
        """
        if not self._with_prompt:
            return 0.0
        size, seconds = self._with_prompt[-1]
        return size.prompt * max(1.0, target / seconds)

    def _fitted(self) -> Floats:
        n = len(self._with_prompt) + len(self._decoding)
        if n and (self._coefficients is None or self._unseen >= min(_REFIT_AFTER, 1 + n // 4)):
            steps = list(chain(self._with_prompt, self._decoding))
            rows = np.array([_row(size) for size, _ in steps])
            self._coefficients = fit(rows, np.array([seconds for _, seconds in steps]))
            self._unseen = 0
        return np.zeros(4) if self._coefficients is None else self._coefficients


class RowCosts:
    """How many times as long a step with n decoded rows takes as a step with one.

    The time of a single row changes with the length of the texts and with what else runs on the machine, so
    it is followed quickly, and the ratios slowly.
    """

    def __init__(self) -> None:
        self._single: float | None = None  # log seconds of a step with one row
        self._ratios: dict[int, float] = {}  # log, of those that were measured
        self._seen: dict[int, int] = {}
        self._last: dict[int, int] = {}  # the number of the step that was measured last
        self._n_steps = 0
        self._known: dict[int, float] = {}  # what `ratio` found, until a ratio changes

    def ratio(self, n: int) -> float:
        """Of one that was never measured, what the nearest that was makes likely."""
        if (found := self._known.get(n)) is None:
            found = self._known[n] = exp(self._log_ratio(n))
        return found

    def seconds(self, n: int) -> float:
        """Of a step with `n` rows, as things are; 0 before any was measured."""
        return 0.0 if self._single is None else exp(self._single + self._log_ratio(n))

    def _log_ratio(self, n: int) -> float:
        if n <= 1:
            return 0.0
        if (known := self._ratios.get(n)) is not None or not self._ratios:
            return _assumed(n) if known is None else known
        nearest = min(self._ratios, key=lambda other: abs(other - n))
        return max(0.0, _assumed(n) + self._ratios[nearest] - _assumed(nearest))

    def observe(self, n: int, seconds: float) -> None:
        """A step with `n` rows took this long."""
        self._n_steps += 1
        self._last[n] = self._n_steps
        ratio, time = self._log_ratio(n), log(seconds)
        if self._single is None:
            self._single = time - ratio
            return
        error = max(-_MAX_ERROR, min(_MAX_ERROR, time - self._single - ratio))
        seen = self._seen[n] = self._seen.get(n, 0) + 1
        # The error of a ratio that is hardly known says little about the time of a single row.
        self._single += _FOLLOW * error * (1.0 if n == 1 else min(1.0, seen / _WELL_KNOWN))
        if n > 1:
            self._ratios[n] = max(0.0, ratio + error * max(_LEAST_WEIGHT, 0.5 / seen))
            self._known.clear()
        if self._n_steps % _STALE == 0:
            self._disbelieve()

    def _disbelieve(self) -> None:
        """Goes back a part of the way to what is assumed, where nothing was measured for long: so that it is
        tried again.
        """
        for n, ratio in self._ratios.items():
            if self._n_steps - self._last[n] > _STALE:
                self._ratios[n] += _DISBELIEF * (_assumed(n) - ratio)
        self._known.clear()


def _assumed(n: int) -> float:
    return log(1 + ROW_COST * (n - 1))


def _row(size: StepSize) -> Floats:
    return np.array([1.0, size.prompt, size.decoding, size.positions])


def fit(rows: Floats, seconds: Floats) -> Floats:
    """Coefficients, none below 0, of `rows` (n, k) for the measured `seconds` (n,)."""
    scale = rows.max(axis=0)
    used = scale > 0
    result = np.zeros(rows.shape[1])
    relative = rows[:, used] / scale[used] / seconds[:, None]  # the right-hand side is 1 everywhere
    weights = np.ones(len(rows))
    for _ in range(_ROUNDS):
        found = _not_negative(relative * weights[:, None], weights)
        errors = np.abs(relative @ found - 1)
        weights = np.minimum(1, _OUTLIER / np.maximum(errors, 1e-9))
    result[used] = found / scale[used]
    return result


def _not_negative(rows: Floats, target: Floats) -> Floats:
    """Least squares; a column that would count negatively is left out."""
    result = np.zeros(rows.shape[1])
    kept = np.arange(rows.shape[1])
    while kept.size:
        found = np.linalg.lstsq(rows[:, kept], target, rcond=1e-6)[0]
        if (found >= 0).all():
            result[kept] = found
            break
        kept = np.delete(kept, int(found.argmin()))
    return result
