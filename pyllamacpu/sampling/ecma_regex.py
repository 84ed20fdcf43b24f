"""Patterns of JSON schemas, which are ECMA-262's regular expressions, in llguidance's syntax, which is Rust's
(https://docs.rs/regex/latest/regex/#syntax). Most is alike; told otherwise here is what Rust would take for
something else, or refuse: in a class `[`, `[:alpha:]`, `&&`, `--`, `~~` and a hyphen beside `\\w`; outside
`\\<` and `\\>`.
"""

from __future__ import annotations

import re

_ATOM = re.compile(r"\\(?:x[0-9A-Fa-f]{2}|[xupP]\{[^}]*\}|u[0-9A-Fa-f]{4}|c[A-Za-z]|.)|.", re.DOTALL)
_SET = re.compile(r"\\[dDwWsSpP]")  # no end of a range
_CLASS_SYNTAX = "[]&~-^"


def rust_pattern(pattern: str) -> str:
    """The same language in Rust's syntax; what is not known is left as it is: llguidance refuses it."""
    found, at = [], 0
    while atom := _ATOM.match(pattern, at):
        at = atom.end()
        if atom[0] != "[":
            found.append(_escape(atom[0]))
            continue
        text, end = _class(pattern, at)
        found.append(text)
        at = end
    return "".join(found)


def _escape(atom: str) -> str:
    """An atom outside of classes, or an escape in one."""
    if atom in ("\\<", "\\>"):
        return atom[1]
    if atom == "\\0":
        return "\\x00"
    return f"\\x{ord(atom[2]) % 32:02x}" if re.match(r"\\c[A-Za-z]$", atom) else atom


def _class(pattern: str, at: int) -> tuple[str, int]:
    """The class whose first character stands at `at`, and where it ends."""
    start, found = at, ["["]
    if pattern.startswith("^", at):
        found.append("^")
        at += 1
    first = at
    while atom := _ATOM.match(pattern, at):
        at = atom.end()
        if atom[0] == "]" and at > first + 1:
            return "".join([*found, "]"]), at
        found.append(_in_class(atom[0]))
        end = _ATOM.match(pattern, at + 1) if pattern.startswith("-", at) else None
        if end is not None and end[0] != "]":
            is_range = not (_SET.match(atom[0]) or _SET.match(end[0]))
            found += ["-" if is_range else "\\-", _in_class(end[0])]
            at = end.end()
    return f"[{pattern[start:]}", len(pattern)


def _in_class(atom: str) -> str:
    if atom == "\\b":
        return "\\x08"
    return f"\\{atom}" if atom in _CLASS_SYNTAX else _escape(atom)
