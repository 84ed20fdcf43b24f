"""The packed pieces of a vocabulary. Covers text/pieces.py."""

from __future__ import annotations

import pytest

from pyllamacpu.text.pieces import Pieces

PLAIN = ["a", "ab", "b", "Ġthe", "▁x", "<0x0A>", "\udc80", "\ud800", "語", "x" * 5000]
WITH_LINE_ENDS = [*PLAIN, "\n", "a\nb", "b\na", "\n\n", "a\nab\nb"]


@pytest.mark.parametrize("texts", [[], ["one"], ["\n"], PLAIN, WITH_LINE_ENDS])
def test_pieces_come_back(texts: list[str]) -> None:
    pieces = Pieces(texts)
    assert len(pieces) == len(texts) and list(pieces) == texts
    assert [pieces[i] for i in range(len(texts))] == texts == pieces[:]
    assert [pieces.id_of(text) for text in texts] == list(range(len(texts)))
    for i in (len(texts), -len(texts) - 1):
        with pytest.raises(IndexError):
            pieces[i]
    if texts:
        assert pieces[-1] == texts[-1]


@pytest.mark.parametrize("text", ["", "c", "abc", "a\nab", "x" * 4999, "\ud801"])
def test_what_is_no_piece_has_no_id(text: str) -> None:
    """Also where it stands in the text of several pieces together."""
    assert Pieces(WITH_LINE_ENDS).id_of(text) is None
    assert Pieces(PLAIN).id_of("a\nab") is None
