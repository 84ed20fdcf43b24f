"""Sizes and numbers as options take them: one kind for all commands."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from serving import tiny_path

from pyllamacpu import Llama
from pyllamacpu.cli.main import cli
from pyllamacpu.cli.param_types import LARGEST, MAX_THREADS, SIZE, Number, Whole
from pyllamacpu.errors import OptionError
from pyllamacpu.native import lib

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


def test_numbers_have_an_end() -> None:
    """Of a number that no field can hold the option is told, before something fails on it."""
    assert Whole(min=1).convert(str(LARGEST), None, None) == LARGEST
    assert Whole(min=1, max=1 << 40).convert(str(1 << 40), None, None) == 1 << 40
    for text in (str(LARGEST + 1), "9" * 5000, "0"):
        with pytest.raises(click.BadParameter):
            Whole(min=1).convert(text, None, None)
    assert MAX_THREADS == lib.PL_MAX_THREADS


@pytest.mark.parametrize("option", ["-c", "-t", "-b", "-ub", "-n"])
@pytest.mark.parametrize("command", ["chat", "complete"])
def test_a_number_beyond_all_is_wrong_usage(command: str, option: str) -> None:
    for text in ("100000000000", "9" * 5000):
        assert CliRunner().invoke(cli, [command, option, text, "-p", "x"]).exit_code == 2


@pytest.mark.parametrize("command", ["chat", "complete", "serve", "batch"])
def test_a_limit_without_its_folder_is_wrong_usage(command: str) -> None:
    result = CliRunner().invoke(cli, [command, "--cache-disk-limit", "1GB", "x", "y"])
    assert result.exit_code == 2 and "name the folder too, with --cache-disk" in result.output


@pytest.mark.parametrize("command", ["chat", "complete", "serve", "batch", "image", "guard", "prompt-guard"])
def test_threads_beyond_those_of_a_pool_are_wrong_usage(command: str) -> None:
    result = CliRunner().invoke(cli, [command, "-t", "513", "x", "y"])
    assert result.exit_code == 2 and "512" in result.output


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
