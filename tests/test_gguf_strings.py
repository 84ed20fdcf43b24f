"""Arrays of strings in a file: text, bytes and items, whatever is in them."""

from __future__ import annotations

from pathlib import Path

import pytest
from gguf_build import Build, small_file
from hypothesis import given, settings
from hypothesis import strategies as st

from pyllamacpu.gguf.reader import GGUFFile
from pyllamacpu.gguf.strings import StringArray


def saved(path: Path, build: Build) -> Path:
    path.write_bytes(build.bytes())
    return path


def test_strings_as_text_bytes_and_items(tmp_path: Path) -> None:
    with GGUFFile.open(saved(tmp_path / "m.gguf", small_file())) as file:
        tokens = file.metadata["tokenizer.ggml.tokens"]
        assert (
            len(tokens) == 5
            and tokens[3] == "€"
            and tokens[-5] == "<s>"
            and tokens[1:3] == ["", "\udcff\udcfe"]
        )
        assert tokens.bytes(2) == b"\xff\xfe" and tokens[2].encode("utf-8", "surrogateescape") == b"\xff\xfe"
        assert list(tokens) == tokens.str_list() == [tokens[i] for i in range(5)]
        assert tokens == ["<s>", "", "\udcff\udcfe", "€", "a\nb\x00"] and tokens != ["<s>"]
        for i in (5, -6):
            with pytest.raises(IndexError):
                tokens[i]


def test_strings_that_use_every_separator(tmp_path: Path) -> None:
    texts = [bytes([c]) for c in range(256)] + [b"", b"\xe2\x82", b"\xac"]
    build = Build()
    build.add_strings("s", texts)
    build.add_strings("none", [])
    with GGUFFile.open(saved(tmp_path / "m.gguf", build)) as file:
        assert file.metadata["s"].bytes_list() == texts
        assert file.metadata["s"].str_list() == [t.decode("utf-8", "surrogateescape") for t in texts]
        assert file.metadata["none"].bytes_list() == [] and list(file.metadata["none"]) == []


# Bytes that the array joins its strings with are frequent, so that it must look for another, or use none.
RAW = st.lists(
    st.one_of(st.binary(max_size=12), st.text("\x00\x01\x02\x03\naé€", max_size=6).map(str.encode))
)


def test_any_bytes_come_back(tmp_path: Path) -> None:
    @settings(max_examples=200, deadline=None, derandomize=True)
    @given(RAW, st.sampled_from([1, 2, 3]), st.booleans())
    def check(raw: list[bytes], version: int, big: bool) -> None:
        build = Build(version=version, big=big)
        build.add_strings("texts", raw)
        with GGUFFile.open(saved(tmp_path / "m.gguf", build)) as file:
            texts = file.metadata["texts"]
            assert isinstance(texts, StringArray) and len(texts) == len(raw)
            assert texts.bytes_list() == raw and [texts.bytes(i) for i in range(len(raw))] == raw
            expected = [one.decode("utf-8", "surrogateescape") for one in raw]
            assert texts.str_list() == list(texts) == [texts[i] for i in range(len(raw))] == expected
            assert texts == expected and texts != [*expected, ""]

    check()
