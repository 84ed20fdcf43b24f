"""Sizes and numbers as options take them: one kind for all commands."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from serving import tiny_path

from pyllamacpu import Llama
from pyllamacpu.cli.main import cli
from pyllamacpu.cli.param_types import SIZE, Number
from pyllamacpu.errors import OptionError

path = tiny_path()

_OPTIONS_OF_BYTES = {
    "serve": ("--cache-ram", "--memory", "--cache-disk-limit", "--image-memory", "--expert-memory"),
    "batch": ("--cache-ram", "--memory", "--cache-disk-limit", "--expert-memory"),
    "chat": ("--cache-disk-limit", "--expert-memory", "--pack-cache-limit"),
    "convert": ("--split-max-size",),
    "quantize": ("--target-size", "--expert-memory"),
}


@pytest.mark.parametrize(("text", "size"), [("500M", 500_000_000), ("4GiB", 4 << 30), ("1234", 1234)])
def test_sizes_are_read_with_units_and_without(text: str, size: int) -> None:
    assert SIZE.convert(text, None, None) == size


def test_a_number_is_not_nan() -> None:
    with pytest.raises(click.BadParameter):
        Number(min=0).convert("nan", None, None)


@pytest.mark.parametrize(
    ("command", "option"), [(command, o) for command, names in _OPTIONS_OF_BYTES.items() for o in names]
)
@pytest.mark.parametrize("given", ["0", "-1", "many", "5x", "nan"])
def test_every_option_of_bytes_says_what_a_size_is(command: str, option: str, given: str) -> None:
    result = CliRunner().invoke(cli, [command, option, given, "x"])
    assert result.exit_code == 2
    assert "is not a size" in result.output


def test_a_cache_smaller_than_two_pages_is_an_error_with_units(path: Path) -> None:
    with pytest.raises(OptionError, match="a plain number is bytes, so write 8GiB"):
        Llama(str(path), n_ctx=64, kv_bytes=8)
