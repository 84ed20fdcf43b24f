"""engine/pages.py: KV spaces, the limit in bytes, page tables, and states saved page by page."""

from __future__ import annotations

import io

import numpy as np
import pytest

from pyllamacpu.engine.pages import PAGE, KVCache, Sequence
from pyllamacpu.errors import ContextError, ModelError, OptionError
from pyllamacpu.model.kv_space import KVSpace
from pyllamacpu.native import ffi

TEXT = KVSpace("text", n_layers=2, kv_heads=1, k_dim=16, v_dim=16)
LOCAL = KVSpace("local", n_layers=3, kv_heads=2, k_dim=16, v_dim=8, kind="chunked", chunk=2 * PAGE)


def cache(*spaces: KVSpace, limit_pages: int | None = None) -> KVCache:
    made = KVCache(spaces or (TEXT,), "f32", "f16")
    if limit_pages is not None:
        made.limit_bytes = limit_pages * made.page_bytes
    return made


def grow(sequence: Sequence, n: int) -> None:
    """`n` more tokens, whose number is written into each new page."""
    start = len(sequence)
    tables = sequence.prepare(n)
    sequence.tokens += range(start, start + n)
    for space, table in enumerate(tables):
        for i in range(start // PAGE, -(-(start + n) // PAGE)):
            page = int(ffi.cast("uintptr_t *", table)[i])
            mark = np.frombuffer(sequence.cache.bytes_of(page, space), np.uint8)
            mark[:] = (i + 1) * (space + 1)


def marks(sequence: Sequence) -> list[list[int]]:
    """The first byte of each page, per space; 0 for a page that was let go."""
    n = -(-len(sequence) // PAGE)
    sets = [sequence.page_set(i) for i in range(n)]
    return [
        [sequence.cache.bytes_of(pages[space], space)[0][0] if pages[space] else 0 for pages in sets]
        for space in range(len(sequence.cache.spaces))
    ]


def test_each_space_has_its_own_pages() -> None:
    kv = cache(TEXT, LOCAL)
    sequence = Sequence(kv)
    grow(sequence, PAGE + 1)
    assert kv.pages_in_use == 4
    assert kv.bytes_in_use == 2 * kv.page_bytes == 2 * sum(kv.space_page_bytes)
    assert marks(sequence) == [[1, 2], [2, 4]]
    fork = sequence.fork()
    grow(fork, 1)  # the half-filled pages of both spaces become the fork's own
    assert kv.pages_in_use == 6
    sequence.close()
    assert marks(fork) == [[1, 2], [2, 4]]
    fork.close()
    assert kv.bytes_in_use == 0


def test_past_chunks_may_be_dropped_and_cannot_be_continued() -> None:
    kv = cache(TEXT, LOCAL)
    sequence = Sequence(kv)
    grow(sequence, 5 * PAGE)
    sequence.drop_past_chunks()
    assert marks(sequence) == [[1, 2, 3, 4, 5], [0, 0, 0, 0, 10]]
    assert kv.pages_in_use == 6
    assert [sequence.reusable(n) for n in (200, 5 * PAGE, 4 * PAGE + 1, 4 * PAGE)] == [160, 160, 129, 128]
    assert [sequence.reusable(n) for n in (4 * PAGE - 1, 2 * PAGE + 1, 1)] == [64, 64, 0]
    with pytest.raises(OptionError, match="cannot be cut"):
        sequence.truncate(3 * PAGE)
    sequence.truncate(2 * PAGE)
    grow(sequence, 1)
    assert marks(sequence) == [[1, 2, 3], [0, 0, 6]]
    fork = sequence.fork()
    assert marks(fork) == marks(sequence)
    fork.close()
    sequence.close()
    assert kv.pages_in_use == 0


def test_chunks_that_the_last_tokens_read_may_be_kept() -> None:
    kv = cache(TEXT, LOCAL)
    sequence = Sequence(kv)
    grow(sequence, 4 * PAGE + 3)
    sequence.drop_past_chunks(4)
    assert marks(sequence)[1] == [0, 0, 6, 8, 10] and sequence.reusable(4 * PAGE - 1) == 4 * PAGE - 1
    sequence.truncate(4 * PAGE - 1)
    sequence.drop_past_chunks(4)
    assert marks(sequence)[1] == [0, 0, 6, 8]
    sequence.truncate(0)
    grow(sequence, 3 * PAGE)  # none of its new pages counts as let go
    sequence.drop_past_chunks()
    assert marks(sequence)[1] == [0, 0, 6]
    sequence.close()


def test_bytes_of_a_context() -> None:
    kv = cache(TEXT, LOCAL)
    text, local = kv.space_page_bytes
    assert kv.context_bytes(0, 8) == 0
    assert kv.context_bytes(PAGE + 1, 8) == 2 * (text + local)
    assert kv.context_bytes(100 * PAGE, PAGE) == 100 * text + 5 * local  # a chunk, a step, and 64 tokens


def test_chunks_are_whole_pages() -> None:
    with pytest.raises(ModelError, match="chunks of 33"):
        cache(KVSpace("odd", 1, 1, 16, 16, "chunked", 33))


def test_many_pages_make_the_table_grow() -> None:
    kv = cache()
    sequence = Sequence(kv)
    for _ in range(50):
        grow(sequence, PAGE)
    table = ffi.cast("uintptr_t *", sequence.prepare(0)[0])
    assert [int(table[i]) for i in range(50)] == [sequence.page_set(i)[0] for i in range(50)]
    assert marks(sequence) == [list(range(1, 51))]


def test_a_limit_asks_for_pages_and_then_refuses() -> None:
    kv = cache(limit_pages=3)
    spare = [kv.new_page(), kv.new_page()]
    asked: list[int] = []

    def let_go(n_bytes: int) -> bool:
        asked.append(n_bytes)
        if spare:
            kv.release(spare.pop())
            return True
        return False

    kv.on_full = let_go
    sequence = Sequence(kv)
    grow(sequence, 3 * PAGE)
    assert asked == [kv.page_bytes] * 2
    with pytest.raises(ContextError, match=r"limit of \d+ bytes .*use a smaller context"):
        sequence.prepare(1)
    sequence.trim()
    assert len(sequence) == 3 * PAGE
    sequence.truncate(PAGE)
    grow(sequence, 1)
    assert kv.bytes_in_use == 2 * kv.page_bytes


def test_room_that_was_not_used_is_given_back() -> None:
    kv = cache(limit_pages=2)
    sequence = Sequence(kv)
    grow(sequence, 1)
    with pytest.raises(ContextError):
        sequence.prepare(3 * PAGE)
    assert kv.pages_in_use == 2
    sequence.trim()
    assert kv.pages_in_use == 1


def test_pages_of_another_sequence_are_shared_and_copied() -> None:
    kv = cache(TEXT, LOCAL)
    first, second = Sequence(kv), Sequence(kv)
    grow(first, 2 * PAGE)
    second.extend_shared(first.tokens[:PAGE], first.page_set(0))
    second.extend_copied(first.tokens[PAGE : PAGE + 5], first.page_set(1))
    assert second.tokens == first.tokens[: PAGE + 5]
    assert second.page_set(0) == first.page_set(0)
    assert not set(second.page_set(1)) & set(first.page_set(1))
    assert kv.pages_in_use == 6
    first.close()
    assert marks(second) == [[1, 2], [2, 4]]
    second.close()
    assert kv.pages_in_use == 0


@pytest.mark.parametrize("drop", [False, True])
def test_a_state_is_saved_and_loaded_page_by_page(drop: bool) -> None:
    kv = cache(TEXT, LOCAL)
    sequence = Sequence(kv)
    grow(sequence, 5 * PAGE + 3)
    if drop:
        sequence.drop_past_chunks()
    parts = list(map(len, sequence.saved()))
    assert max(parts) == max(*kv.space_page_bytes, 4 * len(sequence))
    file = io.BytesIO()
    sequence.save(file)
    assert len(file.getvalue()) == sum(parts)
    file.seek(0)
    other = Sequence(kv)
    grow(other, 40)
    other.load(file)
    assert (other.tokens, marks(other)) == (sequence.tokens, marks(sequence))
    assert other.reusable(3) == sequence.reusable(3)


def test_damaged_states_are_refused_and_leave_nothing() -> None:
    kv = cache(TEXT, LOCAL)
    sequence = Sequence(kv)
    grow(sequence, PAGE + 3)
    file = io.BytesIO()
    sequence.save(file)
    data = file.getvalue()
    sequence.close()
    huge = data[:16] + (2**31 - 1).to_bytes(8, "little") + data[24:]
    for damaged in (data[:-1], data[:100], data[:5], b"", b"X" + data[1:], huge):
        with pytest.raises(OptionError, match="damaged"):
            sequence.load(io.BytesIO(damaged))
        assert (len(sequence), kv.pages_in_use) == (0, 0)
    other = Sequence(cache(TEXT))
    with pytest.raises(OptionError, match="another model"):
        other.load(io.BytesIO(data))
