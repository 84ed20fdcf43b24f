"""Reading the fields of a request's body: each by its type and range, and at the end those that nobody knows.

Every refusal is a 400 that names the field. A field that is null counts as absent.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

from pyllamacpu.sampling.stop import MAX_CHARACTERS
from pyllamacpu.server.errors import HTTPError
from pyllamacpu.units import exact

log = logging.getLogger("pyllamacpu.server")

IMAGE_FIELDS = ("images", "image", "image_data", "image_url", "multimodal_data")
"""Names under which programs send images."""

NO_IMAGES_HERE = (
    "images are not read here: they are parts of a message (image_url), the images of /api/chat and "
    "/api/generate, or the multimodal_data of a prompt of /completion"
)

_MAX_BIASED = 1000  # characters of a text in a logit_bias
_noted: set[str] = set()  # what the log has


def wrong(param: str, message: str) -> HTTPError:
    """The 400 for one field."""
    return HTTPError(f"{param}: {message}", param=param, code="invalid_value")


class Fields:
    """One JSON object of a request. `where` stands before names in messages ("options.")."""

    def __init__(self, values: Any, where: str = "") -> None:
        if not isinstance(values, Mapping):
            name = where.rstrip(".") or "the body"
            raise HTTPError(f"{name} must be a JSON object", param=where.rstrip(".") or None)
        self.values: Mapping[str, Any] = values
        self.where = where
        self._read: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return self.values.get(name) is not None

    def raw(self, name: str) -> Any:
        """The value as it stands; None when it is absent."""
        self._read.add(name)
        return self.values.get(name)

    def wrong(self, name: str, message: str) -> HTTPError:
        return wrong(self.where + name, message)

    def text(self, name: str, default: str | None = None) -> str | None:
        value = self.raw(name)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self.wrong(name, f"must be a string, not {_kind(value)}")
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        value = self.raw(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.wrong(name, f"must be true or false, not {_kind(value)}")
        return value

    def optional_flag(self, name: str) -> bool | None:
        """None when it is not given."""
        return None if self.raw(name) is None else self.flag(name)

    def integer(self, name: str, low: int, high: int, default: int | None = None) -> int | None:
        value = self.raw(name)
        if value is None:
            return default
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.wrong(name, f"must be an integer, not {_kind(value)}")
        if not low <= value <= high:
            raise self.wrong(name, f"{value} is out of range; allowed: {low} to {high}")
        return value

    def number(self, name: str, low: float, high: float, default: float | None = None) -> float | None:
        value = self.raw(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.wrong(name, f"must be a number, not {_kind(value)}")
        if not low <= value <= high:
            raise self.wrong(name, f"{value!r} is out of range; allowed: {exact(low)} to {exact(high)}")
        return float(value)

    def strings(self, name: str, at_most: int = 64) -> tuple[str, ...]:
        """A string or a list of strings, none of them empty."""
        value = self.raw(name)
        values = [value] if isinstance(value, str) else value if value is not None else []
        if not isinstance(values, list) or not all(isinstance(text, str) for text in values):
            raise self.wrong(name, "must be a string or a list of strings")
        if not all(values):
            raise self.wrong(name, "an empty string cannot be looked for")
        if len(values) > at_most:
            raise self.wrong(name, f"{len(values)} strings; allowed: at most {at_most}")
        if (n := sum(map(len, values))) > MAX_CHARACTERS:
            raise self.wrong(name, f"{n} characters in all; allowed: at most {MAX_CHARACTERS}")
        return tuple(values)

    def choice(self, name: str, known: Collection[str], default: str | None = None) -> str | None:
        value = self.text(name, default)
        if value is not None and value not in known:
            raise self.wrong(name, f"{value!r} is not known; allowed: {', '.join(sorted(known))}")
        return value

    def nested(self, name: str) -> Fields:
        """An object in this one; an empty one when it is absent."""
        value = self.raw(name)
        return Fields({} if value is None else value, f"{self.where}{name}.")

    def items(self, name: str) -> list[Any]:
        value = self.raw(name)
        if value is None:
            return []
        if not isinstance(value, list):
            raise self.wrong(name, f"must be a list, not {_kind(value)}")
        return value

    def refuse(self, name: str, why: str, *quiet: Any) -> None:
        """A 400 when `name` is given, and is none of the values that ask for nothing."""
        value = self.raw(name)
        if value is not None and not any(type(value) is type(q) and value == q for q in quiet):
            raise self.wrong(name, why)

    def ignore(self, *names: str) -> None:
        """Names that have no meaning here and change no answer."""
        self._read.update(names)

    def finish(self, strict: bool) -> None:
        """Fields that nobody read: refused when `strict` or where they hold images, which would be lost; else
        noted in the log, each name once.
        """
        unknown = sorted(name for name in self.values if name not in self._read)
        if lost := next((name for name in unknown if name in IMAGE_FIELDS and self.values[name]), None):
            raise self.wrong(lost, NO_IMAGES_HERE)
        if unknown and strict:
            raise self.wrong(unknown[0][:100], "there is no such field")
        for name in unknown:
            key = f"{self.where}{name}"[:100]
            self.note(f"the field {key!r} is not known and has no effect")

    @staticmethod
    def note(text: str) -> None:
        """Something in a request that has no effect: each is in the log once."""
        if text not in _noted and len(_noted) < 1000:
            _noted.add(text)
            log.warning("%s", text)


def logit_bias(
    fields: Fields, n_vocab: int, name: str = "logit_bias", encode: Callable[[str], list[int]] | None = None
) -> list[tuple[int, float]]:
    """{"token id": bias} with ids of the vocabulary, or llama.cpp's list of [id, bias or false], which may
    have a text instead of an id: its tokens (`encode`) all get the bias.
    """
    value = fields.raw(name)
    if value is None:
        return []
    pairs = list(value.items()) if isinstance(value, dict) else value
    if not isinstance(pairs, list):
        raise fields.wrong(name, "must be an object of token ids and biases")
    found: list[tuple[int, float]] = []
    for pair in pairs:
        is_pair = isinstance(pair, (list, tuple)) and len(pair) == 2
        if is_pair and isinstance(value, list) and isinstance(pair[0], str) and encode is not None:
            if len(pair[0]) > _MAX_BIASED:
                raise fields.wrong(name, f"a text of {len(pair[0])} characters; allowed: {_MAX_BIASED}")
            tokens: list[Any] = encode(pair[0])
            found += [_bias(fields, name, (token, pair[1]), n_vocab) for token in tokens]
        else:
            found.append(_bias(fields, name, pair, n_vocab))
    return found


def _bias(fields: Fields, name: str, pair: Any, n_vocab: int) -> tuple[int, float]:
    if not isinstance(pair, (list, tuple)) or len(pair) != 2:
        raise fields.wrong(name, f"{pair!r:.80} is not a token id with a bias")
    token, bias = pair
    if isinstance(token, str) and token.isdecimal() and len(token) < 10:
        token = int(token)
    if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < n_vocab:
        raise fields.wrong(name, f"token {token!r:.80}; allowed: ids from 0 to {n_vocab - 1}")
    if bias is False:
        return token, -math.inf
    if isinstance(bias, bool) or not isinstance(bias, (int, float)) or not -100 <= bias <= 100:
        raise fields.wrong(name, f"bias {bias!r:.80} of token {token}; allowed: -100 to 100")
    return token, float(bias)


def _kind(value: Any) -> str:
    kinds = {bool: "a boolean", str: "a string", list: "a list", dict: "an object"}
    return kinds.get(type(value), f"{value!r:.40}")
