"""The streaming detokenizer: in sum the same as decoding at once, and never half a character."""

from __future__ import annotations

import random
from typing import Any

import pytest
from text_oracle import HOSTILE, VOCABULARIES, load

from pyllamacpu.text.stream import StreamDecoder


@pytest.fixture(scope="module", params=VOCABULARIES)
def any_tokenizer(request: pytest.FixtureRequest) -> Any:
    return load(request.param)


def test_stream_equals_decoding_at_once(any_tokenizer: Any) -> None:
    rng = random.Random(3)
    sequences = [any_tokenizer.encode(text) for text in HOSTILE]
    sequences += [[rng.randrange(any_tokenizer.n_vocab) for _ in range(60)] for _ in range(40)]
    for ids in sequences:
        for special in (False, True):
            for at_start in (False, True):
                stream = StreamDecoder(any_tokenizer, special=special, at_start=at_start)
                pieces = [stream.push(token) for token in ids]
                text = any_tokenizer.decode(ids, special=special, at_start=at_start)
                assert "".join(pieces) + stream.flush() == text


def test_stream_never_emits_half_a_character(any_tokenizer: Any) -> None:
    text = "😀👩‍👩‍👧 漢字 नमस्ते é"
    stream = StreamDecoder(any_tokenizer, at_start=True)
    pieces = [stream.push(token) for token in any_tokenizer.encode(text)]
    assert "\ufffd" not in "".join(pieces)
    assert "".join(pieces) == text and stream.pending == b"" and stream.flush() == ""


def test_stream_marks_what_never_became_a_character(any_tokenizer: Any) -> None:
    stream = StreamDecoder(any_tokenizer, at_start=True)
    pieces = [stream.push(token) for token in any_tokenizer.encode(b"a\xf0\x9f", add_special=False)]
    assert "".join(pieces) == "a" and stream.pending == b"\xf0\x9f"
    assert stream.flush() == "\ufffd" and stream.flush() == ""


def test_continued_text_keeps_its_leading_space() -> None:
    tokenizer = load("sentencepiece.json")
    ids = tokenizer.encode("the", add_special=False)
    assert tokenizer.decode(ids) == "the"
    assert tokenizer.decode(ids, at_start=False) == " the"
    assert "".join(map(StreamDecoder(tokenizer).push, ids)) == " the"
