"""Bytes and durations in words, both ways."""

from __future__ import annotations

import pytest

from pyllamacpu.errors import OptionError
from pyllamacpu.units import binary_bytes, decimal_bytes, duration, environment_switch, exact, parse_bytes


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4.5GB", 4_500_000_000),
        ("4.5 gb", 4_500_000_000),
        ("2MiB", 2 << 20),
        ("2m", 2_000_000),
        ("3gi", 3 << 30),
        ("123", 123),
        ("123B", 123),
        ("1kB", 1000),
        ("500M", 500_000_000),
        ("2G", 2_000_000_000),
        ("1T", 10**12),
        (" 7 K ", 7000),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    "text",
    ["", "GB", "4.5.1GB", "-1GB", "4XB", "4BB", "1e9", "iB", "1iB", "0", "0.2", "9" * 400, "99999999T"],
)
def test_no_sizes(text: str) -> None:
    with pytest.raises(OptionError, match="is not a size"):
        parse_bytes(text)


def test_as_text() -> None:
    assert [decimal_bytes(n) for n in (12, 1234, 5.6e6, 7.89e9, 1e12)] == [
        *("12 B", "1.23 KB", "5.60 MB", "7.89 GB", "1.00 TB")
    ]
    assert [binary_bytes(n) for n in (12, 2048, 5 << 18, 3 << 30, 1 << 40)] == [
        *("12 B", "2 KiB", "1.25 MiB", "3 GiB", "1 TiB")
    ]
    assert [duration(n) for n in (0.2, 61, 3723)] == ["0:00", "1:01", "1:02:03"]


@pytest.mark.parametrize(
    ("text", "on"),
    [("", False), ("0", False), ("False", False), ("OFF", False), ("no", False), ("1", True), ("TRUE", True)],
)
def test_switches_of_the_environment(text: str, on: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYLLAMACPU_WHOLE_TILES", text)
    assert environment_switch("PYLLAMACPU_WHOLE_TILES") is on


def test_a_switch_that_says_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYLLAMACPU_WHOLE_TILES", raising=False)
    assert not environment_switch("PYLLAMACPU_WHOLE_TILES")
    monkeypatch.setenv("PYLLAMACPU_WHOLE_TILES", "maybe")
    with pytest.raises(OptionError, match=r"PYLLAMACPU_WHOLE_TILES=maybe: give 1 \(on\) or 0 \(off\)"):
        environment_switch("PYLLAMACPU_WHOLE_TILES")


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (2**32 - 1, "4294967295"),
        (4294967295.0, "4294967295"),
        (2**64 - 1, "18446744073709551615"),
        (2.0, "2"),
        (0.1234567, "0.1234567"),
        (1e15, "1e+15"),
        (float("-inf"), "-inf"),
        (65504.0, "65504"),
    ],
)
def test_bounds_are_not_rounded(number: float, text: str) -> None:
    assert exact(number) == text
