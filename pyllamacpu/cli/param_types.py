"""Kinds of values that options take and click does not know."""

from __future__ import annotations

import math
from typing import Any

import click

from pyllamacpu.errors import OptionError
from pyllamacpu.units import parse_bytes

LARGEST = (1 << 31) - 1  # what numbers of tokens, answers and the like are kept in
MAX_THREADS = 512  # of a pool (csrc/api/cpu.h)


class Whole(click.IntRange):
    """A whole number within a range, at most `LARGEST` where no other end is given."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if self.max is None and number > LARGEST:
            self.fail(f"{number} is more than {LARGEST}.", param, ctx)
        return number


THREADS = Whole(-1, MAX_THREADS)
"""Threads of a command; 0 and -1 are as many as the machine has cores."""


class Number(click.FloatRange):
    """A number within a range. click's own type lets NaN pass, which is neither below nor above anything."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value} is not in the range {self._describe_range()}.", param, ctx)
        return number


class Size(click.types.IntParamType):
    """Bytes: 12GB, 500M, 4GiB or a plain number, as `units.parse_bytes` reads them."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, int):
            return value
        try:
            return parse_bytes(value)
        except OptionError as error:
            self.fail(str(error), param, ctx)


SIZE = Size()
