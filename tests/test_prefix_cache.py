"""engine/prefix_cache.py against a plain dictionary of prefixes, by random operations."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from collections.abc import Sequence as Seq
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from pyllamacpu.engine.pages import PAGE, KVCache, Sequence
from pyllamacpu.engine.prefix_cache import PrefixCache, common_prefix
from pyllamacpu.errors import ContextError
from pyllamacpu.model.kv_space import KVSpace

SPACES = (
    KVSpace("text", n_layers=1, kv_heads=1, k_dim=64, v_dim=64),
    KVSpace("more", n_layers=2, kv_heads=1, k_dim=64, v_dim=64),
)
MARK = 4  # bytes that stand for a position's keys and values


def marks(tokens: Seq[int]) -> bytes:
    """What the keys and values of each position depend on: all tokens up to it."""
    found, last = [], b""
    for token in tokens:
        last = zlib.crc32(last + bytes([token])).to_bytes(MARK, "little")
        found.append(last)
    return b"".join(found)


def read(sequence: Sequence, tokens: Seq[int]) -> None:
    """Evaluates `tokens`: writes their marks."""
    sequence.prepare(len(tokens))
    start = len(sequence)
    sequence.tokens.extend(tokens)
    written = marks(sequence.tokens)
    for i in range(start // PAGE, -(-len(sequence) // PAGE)):
        begin, end = max(start, i * PAGE), min(len(sequence), (i + 1) * PAGE)
        for space, page in enumerate(sequence.page_set(i)):
            memory = sequence.cache.bytes_of(page, space)
            memory[(begin - i * PAGE) * MARK : (end - i * PAGE) * MARK] = written[begin * MARK : end * MARK]


def check(sequence: Sequence) -> None:
    """Every position holds what evaluating the tokens up to it gives."""
    expected = marks(sequence.tokens)
    for i in range(-(-len(sequence) // PAGE)):
        end = min(PAGE, len(sequence) - i * PAGE)
        for space, page in enumerate(sequence.page_set(i)):
            found = bytes(sequence.cache.bytes_of(page, space)[: end * MARK])
            assert found == expected[i * PAGE * MARK : (i * PAGE + end) * MARK]


Prefix = tuple[int, ...]
Place = tuple[Any, Prefix]  # extra key, tokens up to the end of the page


class Model:
    """The pages of the tree, as the tokens up to their end, by when they were last used."""

    def __init__(self) -> None:
        self.used: dict[Place, int] = {}
        self.clock = 0

    def touch(self, extra: Any, ends: Iterable[Prefix]) -> None:
        for prefix in sorted(ends, key=len, reverse=True):  # the longest first: a parent is newer
            self.clock += 1
            self.used[extra, prefix] = self.clock

    def best(self, extra: Any, tokens: Prefix) -> int:
        return max((common_prefix(p, tokens) for e, p in self.used if e == extra), default=0)

    def extend(self, extra: Any, tokens: Prefix, n: int) -> None:
        """`n` tokens of `tokens` were found."""
        full = n // PAGE * PAGE
        ends = [tokens[:end] for end in range(PAGE, full + 1, PAGE)]
        if n % PAGE:
            here = [p for e, p in self.used if e == extra and _pages(p) == _pages(tokens[:n])]
            ends.append(max(p for p in here if p[:n] == tokens[:n] and _beside(p, tokens, here)))
        self.touch(extra, ends)

    def insert(self, extra: Any, tokens: Prefix) -> None:
        ends = [tokens[:end] for end in range(PAGE, len(tokens) + 1, PAGE)]
        if len(tokens) % PAGE:
            here = [p for e, p in self.used if e == extra and _pages(p) == _pages(tokens)]
            ends.append(min((p for p in here if p[: len(tokens)] == tokens), default=tokens))
        for end in ends:  # a partly used page that this one continues goes
            for n in range((_pages(end) - 1) * PAGE + 1, len(end)):
                self.used.pop((extra, end[:n]), None)
        self.touch(extra, ends)


def _pages(tokens: Prefix) -> int:
    return -(-len(tokens) // PAGE)


def _beside(p: Prefix, tokens: Prefix, here: list[Prefix]) -> bool:
    """Whether `p` is the next before or after `tokens`, cut to a page, in alphabetic order."""
    own = tokens[: _pages(p) * PAGE]
    return not any(p < q < own or own <= q < p for q in here if _parent(q) == _parent(p))


def _parent(p: Prefix) -> Prefix:
    return p[: (_pages(p) - 1) * PAGE]


def nodes(prefixes: PrefixCache) -> dict[Place, Any]:
    """The nodes of the tree by their place, without what tells adapters apart: none are used here."""
    found: dict[Place, Any] = {}
    for (_, extra), root in prefixes._roots.items():
        todo: list[tuple[Any, Prefix]] = [(root, ())]
        while todo:
            node, before = todo.pop()
            assert node.order == sorted(node.children)
            for key, child in node.children.items():
                found[extra, (*before, *key)] = child
                todo.append((child, (*before, *key)))
    return found


def check_eviction(prefixes: PrefixCache, model: Model) -> None:
    """From now on each eviction must take the least recently used leaf that only the tree has."""
    plain = prefixes.evict

    def evict(n_bytes: int) -> bool:
        before = nodes(prefixes)
        free = [p for p, node in before.items() if not node.children and not prefixes._is_pinned(node)]
        done = plain(n_bytes)
        assert done == bool(free)
        gone = set(before) - set(nodes(prefixes))
        assert gone == ({min(free, key=lambda place: model.used[place])} if free else set())
        for place in gone:
            del model.used[place]
        return done

    prefixes._cache.on_full = evict


TEXTS = st.lists(
    st.sampled_from([(0,) * 16, (0,) * 15 + (1,), (1,) * 16, (2,), (0,) * 32]), min_size=1, max_size=7
).map(lambda parts: tuple(token for part in parts for token in part))
OPERATIONS = st.lists(
    st.tuples(st.sampled_from(["leave", "hold", "drop"]), TEXTS, st.sampled_from([None, "adapter"])),
    max_size=24,
)


@settings(max_examples=100, deadline=None)
@given(OPERATIONS, st.one_of(st.none(), st.integers(8, 24)))
def test_against_a_dictionary(operations: list[tuple[str, Prefix, Any]], limit_pages: int | None) -> None:
    """Sequences come, take what is there, and leave their pages; some are held meanwhile."""
    cache = KVCache(SPACES, "f32", "f32")
    cache.limit_bytes = None if limit_pages is None else limit_pages * cache.page_bytes
    prefixes, model = PrefixCache(cache), Model()
    check_eviction(prefixes, model)
    held: list[Sequence] = []
    for what, tokens, extra in operations:
        if what == "drop" and held:
            held.pop(0).close()
            continue
        sequence = Sequence(cache)
        expected = model.best(extra, tokens)
        n = prefixes.extend(sequence, tokens, extra)
        assert n == expected or (limit_pages is not None and n == expected // PAGE * PAGE)
        assert sequence.tokens == list(tokens[:n])
        check(sequence)
        model.extend(extra, tokens, n)
        try:
            read(sequence, tokens[n:])
        except ContextError:
            assert limit_pages is not None
            sequence.trim()
        prefixes.insert(sequence, extra)
        model.insert(extra, tuple(sequence.tokens))
        assert set(nodes(prefixes)) == set(model.used)
        held.append(sequence)
        if what != "hold":
            held.pop().close()
        for other in held:
            check(other)
        assert cache.limit_bytes is None or cache.bytes_in_use <= cache.limit_bytes
    for sequence in held:
        sequence.close()
    assert len(prefixes) * cache.page_bytes == cache.bytes_in_use == prefixes.evictable_bytes()
    prefixes.clear()
    assert cache.bytes_in_use == 0


def test_full_pages_are_shared_and_a_partly_used_one_is_copied() -> None:
    cache = KVCache(SPACES, "f32", "f32")
    prefixes = PrefixCache(cache)
    first, second = Sequence(cache), Sequence(cache)
    read(first, range(70))
    prefixes.insert(first)
    assert len(prefixes) == 3
    assert prefixes.n_in_use(range(70)) == 2
    assert prefixes.extend(second, [*range(66), 9, 9]) == 66
    assert second.page_set(1) == first.page_set(1)
    assert second.page_set(2) != first.page_set(2)
    other = Sequence(cache)
    assert prefixes.extend(other, [*range(40), 9]) == 40  # inside a full page
    assert prefixes.extend(Sequence(cache), range(70), "other adapter") == 0
    for sequence in (first, second, other):
        check(sequence)
        sequence.close()
    assert prefixes.n_in_use(range(70)) == 0


def test_without_room_for_a_copy_only_full_pages_are_reused() -> None:
    cache = KVCache(SPACES, "f32", "f32")
    prefixes = PrefixCache(cache)
    first, second = Sequence(cache), Sequence(cache)
    read(first, range(40))
    prefixes.insert(first)
    cache.limit_bytes = cache.bytes_in_use
    assert prefixes.extend(second, range(40)) == 32
    first.close()
    assert cache.pages_in_use == 2 * len(SPACES)


def test_a_chunk_that_another_sequence_still_has_is_completed() -> None:
    """The tree has the first page of a chunk from one sequence, and lacks the second, which a longer one had
    let go: until a third one brings it.
    """
    local = KVSpace("local", 1, 1, 64, 64, "chunked", 2 * PAGE)
    cache = KVCache((SPACES[0], local), "f32", "f32")
    prefixes = PrefixCache(cache)
    short, long, whole = (Sequence(cache) for _ in range(3))
    read(short, range(PAGE))
    prefixes.insert(short)
    prefixes.extend(long, range(PAGE))
    read(long, range(PAGE, 3 * PAGE))
    long.drop_past_chunks()
    prefixes.insert(long)
    again = Sequence(cache)
    assert prefixes.extend(again, range(2 * PAGE - 1)) == PAGE
    read(whole, range(2 * PAGE))
    prefixes.insert(whole)
    again.truncate(0)
    assert prefixes.extend(again, range(2 * PAGE - 1)) == 2 * PAGE - 1
    for sequence in (short, long, whole, again):
        sequence.close()
    prefixes.clear()
    assert cache.pages_in_use == 0


def test_a_chunk_is_not_completed_with_a_page_that_is_partly_written() -> None:
    local = KVSpace("local", 1, 1, 64, 64, "chunked", 2 * PAGE)
    cache = KVCache((SPACES[0], local), "f32", "f32")
    prefixes = PrefixCache(cache)
    long, short, again = (Sequence(cache) for _ in range(3))
    read(long, range(3 * PAGE))
    long.drop_past_chunks()
    prefixes.insert(long)
    read(short, range(PAGE + 13))
    prefixes.insert(short)
    assert prefixes.extend(again, range(2 * PAGE - 1)) == PAGE
    check(again)


def test_pages_of_past_chunks_are_not_needed() -> None:
    local = KVSpace("local", 1, 1, 64, 64, "chunked", 2 * PAGE)
    cache = KVCache((SPACES[0], local), "f32", "f32")
    prefixes = PrefixCache(cache)
    first = Sequence(cache)
    read(first, range(5 * PAGE))
    first.drop_past_chunks()
    prefixes.insert(first)
    for n, reused in (
        (5 * PAGE, 5 * PAGE),
        (4 * PAGE + 3, 4 * PAGE + 3),
        (4 * PAGE, 4 * PAGE),
        (70, 64),
        (50, 0),
    ):
        second = Sequence(cache)
        assert prefixes.extend(second, range(n)) == reused
        second.close()
    first.close()
    prefixes.clear()
    assert cache.pages_in_use == 0
