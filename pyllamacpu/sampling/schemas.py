"""JSON schemas before they become grammars: what asks for nothing is left out, what would take too long is
refused, and where a schema is refused is found. An object with `properties` has no others unless it says so
(`additionalProperties`), as in llama.cpp's grammars, so that no keys are made up.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from typing import Any

from pyllamacpu.errors import OptionError
from pyllamacpu.sampling.ecma_regex import rust_pattern
from pyllamacpu.sampling.grammar_limits import check_repeats

_MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_SINGLES = (
    "items", "additionalProperties", "additionalItems", "not", "if", "then", "else", "contains",
    "propertyNames", "unevaluatedItems", "unevaluatedProperties",
)  # fmt: skip
_NOTHING: dict[str, tuple[Any, ...]] = {  # values that ask for nothing
    "uniqueItems": (False,),
    "unevaluatedItems": (True, {}),
    "unevaluatedProperties": (True, {}),
    "propertyNames": (True, {}),
    "dependentRequired": ({},),
    "dependentSchemas": ({},),
}
_OWN_KEYS = ("properties", "patternProperties", "additionalProperties", "unevaluatedProperties")
_SHAPING = {*_OWN_KEYS, "allOf", "anyOf", "oneOf", "$ref", "if", "then", "else", "not", "dependentSchemas"}
_LEAST = 1e-15  # what is nearer to 0 has very many digits
_MAX_MULTIPLE = 5_000  # states, too
_MAX_OPTIONAL = 400  # properties of one object, which may come in any choice
_MAX_TRIES = 200  # subschemas that are tried to find the one that is refused
_FORMAT = re.compile(r"Unknown format: (.*)")
_KEYS = re.compile(r'Unimplemented keys: \["([^"]*)"')


def _children(schema: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The subschemas right below, with their keys."""
    for key in _MAPS:
        if isinstance(inner := schema.get(key), Mapping):
            yield from (((key, name), value) for name, value in inner.items())
    for key in (*_LISTS, "items"):
        if isinstance(inner := schema.get(key), list):
            yield from (((key, str(i)), value) for i, value in enumerate(inner))
    for key in _SINGLES:
        if isinstance(inner := schema.get(key), (Mapping, bool)):
            yield (key,), inner


def prepared(schema: Mapping[str, Any]) -> dict[str, Any]:
    """`schema` without what asks for nothing, with `additionalProperties: false` for objects that list their
    properties and say nothing of others, and with anyOf for a oneOf whose alternatives exclude each other by
    the value of a property. Raises OptionError for automata that would be too large, ValueError and TypeError
    for what JSON does not have.
    """
    schema = _as_json(schema)
    combined = _combined(schema)

    def prepare(node: Mapping[str, Any], where: str) -> dict[str, Any]:
        kept = {key: value for key, value in node.items() if value not in _NOTHING.get(key, ())}
        _check_sizes(kept, where)
        _translate_patterns(kept)
        _move_exclusive_ends(kept)
        for path, child in list(_children(kept)):
            if isinstance(child, Mapping):
                _replace(kept, path, prepare(child, _below(where, path)))
        if "oneOf" in kept and "anyOf" not in kept and _exclude_each_other(kept["oneOf"], schema):
            kept["anyOf"] = kept.pop("oneOf")
        if id(node) not in combined and _lists_all_keys(node):
            kept["additionalProperties"] = False
        return kept

    return prepare(schema, "#")


def _as_json(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The same with texts for keys, and lists and dicts alone. Raises ValueError, TypeError."""

    def plain(value: object) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise TypeError(f"{type(value).__name__} is nothing that JSON has")
        return dict(value)

    try:
        found: dict[str, Any] = json.loads(json.dumps(plain(schema), default=plain, allow_nan=False))
    except ValueError as error:
        if "Out of range" in str(error):
            raise ValueError("a number is infinite, too large, or NaN") from None
        raise
    return found


def _lists_all_keys(schema: Mapping[str, Any]) -> bool:
    """Whether an object has properties, says nothing of others, and requires no others, nor do the parts
    that it has beside them.
    """
    properties = schema.get("properties")
    if not isinstance(properties, Mapping) or any(key in schema for key in _OWN_KEYS[1:]):
        return False
    parts = [schema, *(part for key in _LISTS[:3] for part in _as_list(schema.get(key)))]
    required = [
        name for part in parts if isinstance(part, Mapping) for name in _as_list(part.get("required"))
    ]
    return all(name in properties for name in map(str, required))


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _combined(root: Mapping[str, Any]) -> set[int]:
    """Ids of the schemas whose objects have keys from elsewhere too: properties beside an allOf or a `$ref`,
    several parts of an allOf, and whatever stands below such or is referred to from there. If they had no
    others than their own keys, those of the other parts could not come.
    """
    found: set[int] = set()
    seen: set[int] = set()
    waiting: list[tuple[Any, bool]] = [(root, False)]
    while waiting:
        node, is_combined = waiting.pop()
        if not isinstance(node, Mapping) or id(node) in (found if is_combined else seen):
            continue
        seen.add(id(node))
        is_combined = is_combined or _n_parts(node) > 1
        if is_combined:
            found.add(id(node))
        for (key, *_), child in _children(node):
            inner = is_combined and key not in ("$defs", "definitions")
            waiting.append((child, inner or key in ("not", "contains", "propertyNames")))
        if is_combined and isinstance(node.get("$ref"), str):
            waiting.append((_target(node["$ref"], root), True))
    return found


def _n_parts(schema: Mapping[str, Any]) -> int:
    """How many parts of a schema say which keys an object has."""
    any_of, one_of, all_of = (list(map(_has_keys, _as_list(schema.get(key)))) for key in _LISTS[:3])
    n = any(key in schema for key in _OWN_KEYS) + sum(key in schema for key in ("$ref", "dependentSchemas"))
    n += any(any_of) + any(one_of) + sum(all_of)
    return n + 2 * any(_has_keys(schema.get(key)) for key in ("if", "then", "else"))


def _has_keys(schema: Any) -> bool:
    return isinstance(schema, Mapping) and not _SHAPING.isdisjoint(schema)


def moved(schema: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A schema for the place `where` of another: what it refers to within itself is found there."""
    return _referring(schema, "#", where)


def moved_back(schema: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A schema that stood at the place `where` of another as one of its own: `moved`, undone."""
    return _referring(schema, where, "#")


def _referring(schema: Mapping[str, Any], old: str, new: str) -> dict[str, Any]:
    """A copy in which what is referred to at `old` or below is referred to at `new`."""
    kept = dict(schema)
    ref = kept.get("$ref")
    if isinstance(ref, str) and (ref == old or ref.startswith(f"{old}/")):
        kept["$ref"] = f"{new}{ref[len(old) :]}"
    for path, child in list(_children(kept)):
        if isinstance(child, Mapping):
            _replace(kept, path, _referring(child, old, new))
    return kept


def _replace(schema: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    key = path[0]
    if len(path) == 1:
        schema[key] = value
    elif isinstance(schema[key], list):
        schema[key] = [value if str(i) == path[1] else old for i, old in enumerate(schema[key])]
    else:
        schema[key] = {**schema[key], path[1]: value}


def _check_sizes(schema: Mapping[str, Any], where: str) -> None:
    step, pattern = schema.get("multipleOf"), schema.get("pattern")
    patterns = [pattern, *(schema.get("patternProperties") or {})]
    for text in patterns:
        if isinstance(text, str):
            check_repeats(text, f"{where}: pattern")
    properties, required = schema.get("properties"), schema.get("required")
    if isinstance(properties, Mapping):
        n_optional = len(set(properties) - set(map(str, required if isinstance(required, list) else [])))
        if n_optional > _MAX_OPTIONAL:
            raise OptionError(f"{where}: properties: {n_optional} are not required; at most {_MAX_OPTIONAL}")
    is_number = isinstance(step, (int, float)) and not isinstance(step, bool) and abs(step) < 1e300
    if is_number and Fraction(str(step)).numerator > _MAX_MULTIPLE:
        raise OptionError(f"{where}: multipleOf: {step} is too large, beyond {_MAX_MULTIPLE} steps")


def _translate_patterns(schema: dict[str, Any]) -> None:
    if isinstance(pattern := schema.get("pattern"), str):
        schema["pattern"] = rust_pattern(pattern)
    if isinstance(patterns := schema.get("patternProperties"), Mapping):
        schema["patternProperties"] = {rust_pattern(str(key)): value for key, value in patterns.items()}


def _move_exclusive_ends(schema: dict[str, Any]) -> None:
    """llguidance lets the whole number of an exclusive end come when the other end is less than 1 farther
    from 0: (1, 1.5) had 1 in it. The float behind it, as an inclusive end, bounds the same floats.
    """
    if schema.get("type") == "integer":
        return
    for sign, own, exclusive, others in (
        (1, "minimum", "exclusiveMinimum", ("maximum", "exclusiveMaximum")),
        (-1, "maximum", "exclusiveMaximum", ("minimum", "exclusiveMinimum")),
    ):
        end, far = _bound(schema, exclusive, sign), [_bound(schema, key, sign) for key in others]
        nearest = min((value for value in far if value is not None), default=None)
        if end is None or nearest is None or end < 0 or end != int(end) or not end < nearest < end + 1:
            continue
        moved = max(math.nextafter(end, math.inf), _LEAST)
        if moved < nearest and moved > (_bound(schema, own, sign) or 0):
            del schema[exclusive]
            schema[own] = sign * moved


def _bound(schema: Mapping[str, Any], key: str, sign: int) -> float | None:
    value = schema.get(key)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or abs(value) >= 2**53:
        return None
    return sign * float(value)


def _exclude_each_other(alternatives: Any, root: Mapping[str, Any]) -> bool:
    """Whether a required property has other values in each (a tagged union)."""
    if not isinstance(alternatives, list):
        return False
    tags = [_tags(_resolved(alternative, root)) for alternative in alternatives]
    for name in tags[0] if tags else ():
        values = [own.get(name) for own in tags]
        if all(value is not None for value in values):
            flat = [item for value in values for item in value or ()]
            if len(set(map(repr, flat))) == len(flat):
                return True
    return False


def _resolved(schema: Any, root: Mapping[str, Any]) -> Any:
    """What a reference to a definition of the root means."""
    ref = schema.get("$ref") if isinstance(schema, Mapping) else None
    if not isinstance(ref, str) or len(schema) > 1:
        return schema
    return _target(ref, root)


def _target(ref: str, root: Mapping[str, Any]) -> Any:
    """What a reference points to; None when there is no such thing here."""
    if ref == "#":
        return root
    value: Any = root
    for part in ref.removeprefix("#/").split("/"):
        if isinstance(value, Mapping):
            value = value.get(part.replace("~1", "/").replace("~0", "~"))
        else:
            listed = isinstance(value, list) and part.isdecimal() and int(part) < len(value)
            value = value[int(part)] if listed else None
    return value


def _tags(schema: Any) -> dict[str, list[Any]]:
    """The values of the required properties of an object that have only some."""
    if not isinstance(schema, Mapping) or schema.get("type") != "object":
        return {}
    required, properties = schema.get("required"), schema.get("properties")
    if not isinstance(required, list) or not isinstance(properties, Mapping):
        return {}
    found = {}
    for name, value in properties.items():
        if name in required and isinstance(value, Mapping):
            if "const" in value:
                found[name] = [value["const"]]
            elif isinstance(value.get("enum"), list):
                found[name] = value["enum"]
    return found


def where_refused(schema: Mapping[str, Any], error_of: Callable[[Any], str]) -> str:
    """The path of the deepest subschema with the error of the whole, and the error in words: "#/items: …"."""
    error, path, node = error_of(schema), "#", schema
    about = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    tries = _MAX_TRIES
    while error:
        for keys, child in _children(node):
            tries -= 1
            if tries < 0 or not isinstance(child, Mapping):
                continue
            if error_of({**about, **child} if keys[0] not in about else child) == error:
                path, node = _below(path, keys), child
                break
        else:
            break
    return f"{path}: {in_words(error)}"


def _below(path: str, keys: tuple[str, ...]) -> str:
    """A JSON pointer to what is below a path."""
    return "/".join([path, *(key.replace("~", "~0").replace("/", "~1") for key in keys)])


def in_words(error: str) -> str:
    lines = [line.strip() for line in error.splitlines() if line.strip()]
    first = lines[0] if lines else "it cannot be used"
    if found := _KEYS.search(first):
        return f"{found[1]} cannot be enforced"
    if found := _FORMAT.search(first):
        return f"format: {found[1]!r} is not a known one"
    if first.startswith("oneOf constraints"):
        return "oneOf cannot be enforced unless its alternatives exclude each other; use anyOf"
    if "regex parse error" in first:
        return f"pattern: {lines[-1].removeprefix('error: ')}"
    if "NoExtensionBias" in first:
        return "no finite JSON fits"
    return first[:300]
