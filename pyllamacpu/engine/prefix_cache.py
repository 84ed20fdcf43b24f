"""The prefix cache: a tree of full KV pages keyed by their tokens, in which finished sequences leave theirs.

A token's keys and values depend on the tokens before it and on nothing else (bits do not depend on the
batch), so a page is found by its own 32 tokens below its parent page. A sequence's last page, which may be
partly used, is kept too: it is reused by copying, as far as its tokens agree.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Callable, Hashable
from collections.abc import Sequence as Seq

from pyllamacpu.engine.pages import PAGE, KVCache, PageSet, Sequence
from pyllamacpu.engine.token_ids import common_prefix
from pyllamacpu.errors import ContextError
from pyllamacpu.model.lora import AdapterScales

Key = tuple[int, ...]
"""Tokens of a page: 32, or fewer in a leaf."""
Root = tuple[AdapterScales, Hashable]
"""What decides keys and values beside the tokens: adapters, and an extra key (images)."""


class Node:
    """A page of the tree in every space. `order` has the children's keys sorted: the one that has most tokens
    in common with a text stands beside its place. No child's key is the beginning of another's.
    """

    __slots__ = ("children", "digest", "key", "order", "pages", "parent", "stored_at", "stored_spaces")

    def __init__(self, parent: Node | None, key: Key, pages: PageSet) -> None:
        self.parent, self.key, self.pages = parent, key, pages
        self.digest: bytes | None = None  # its name outside of this process, once somebody needed it
        self.stored_at = 0.0  # monotonic seconds: when it was last written to the disk, or was there
        self.stored_spaces = 0  # bits of the spaces whose pages are known to be there
        self.children: dict[Key, Node] = {}
        self.order: list[Key] = []

    def path(self) -> list[Node]:
        """The nodes down to this one, without the root."""
        found, node = [], self
        while node.parent is not None:
            found.append(node)
            node = node.parent
        return found[::-1]

    def nearest(self, tokens: Key) -> tuple[int, Node | None]:
        """The child with most tokens in common with `tokens`, and how many."""
        at = bisect_left(self.order, tokens)
        beside = self.order[max(at - 1, 0) : at + 1]
        n, key = max(((common_prefix(key, tokens), key) for key in beside), default=(0, ()))
        return n, self.children[key] if n else None


class PrefixCache:
    """The tree over one `KVCache`, whose limit it shares: it lets go of the least recently used leaves when a
    new page needs room. Pages that running sequences use too stay.

    What has the same tokens and other keys and values is kept apart: sequences with other adapters, or other
    scales of them, and whatever else `extra` tells (images).
    """

    def __init__(self, cache: KVCache) -> None:
        self._cache = cache
        self._roots: dict[Root, Node] = {}
        # Least recently used first. Whoever uses a page uses those before it, so children stand first.
        self._recent: OrderedDict[Node, None] = OrderedDict()
        cache.on_full, cache.on_shared = self.evict, self.leave
        self.on_insert: Callable[[list[Node], Root], None] | None = None  # called with the full pages

    def __len__(self) -> int:
        """Pages in the tree."""
        return len(self._recent)

    def extend(self, sequence: Sequence, tokens: Seq[int], extra: Hashable = None) -> int:
        """Gives an empty `sequence` the longest beginning of `tokens` that is here; returns its length."""
        with self._cache.lock:
            path = self._path(tokens, (sequence.adapters, extra))
            for node in path[1:]:
                sequence.extend_shared(node.key, node.pages)
            at = len(sequence)
            if path:
                n, nearest = path[-1].nearest(tuple(tokens[at : at + PAGE]))
                if nearest is not None and self._copy(sequence, nearest, n):
                    path.append(nearest)
            self._touch(path[1:])
            sequence.truncate(sequence.reusable(len(sequence)))
            sequence.drop_past_chunks()
        return len(sequence)

    def _copy(self, sequence: Sequence, node: Node, n: int) -> bool:
        """Reuses the first `n` tokens of a page; False when there is no room for the copy."""
        try:
            sequence.extend_copied(node.key[:n], node.pages)
        except ContextError:
            sequence.trim()
            return False
        return True

    def n_in_use(self, tokens: Seq[int], adapters: AdapterScales = (), extra: Hashable = None) -> int:
        """Full pages of `tokens` that are here and that running sequences use as well."""
        with self._cache.lock:
            return sum(self._is_pinned(node) for node in self._path(tokens, (adapters, extra))[1:])

    def _path(self, tokens: Seq[int], root: Root) -> list[Node]:
        """The root and the full pages that `tokens` begin with."""
        node = self._roots.get(root)
        path = []
        while node is not None:
            path.append(node)
            at = (len(path) - 1) * PAGE
            node = node.children.get(tuple(tokens[at : at + PAGE])) if at + PAGE <= len(tokens) else None
        return path

    def insert(self, sequence: Sequence, extra: Hashable = None) -> None:
        """Keeps the pages of `sequence`, which goes on as before."""
        tokens, path, root = sequence.tokens, [], (sequence.adapters, extra)
        with self._cache.lock:
            node = self._roots.setdefault(root, Node(None, (), ()))
            for i in range(-(-len(tokens) // PAGE)):
                key = tuple(tokens[i * PAGE : (i + 1) * PAGE])
                n, nearest = node.nearest(key)
                if nearest is None or n < len(key):
                    nearest = self._add(node, key, sequence.page_set(i))
                elif 0 in nearest.pages and len(key) == PAGE:  # not with a page that is partly written
                    self._complete(nearest, sequence.page_set(i))
                node = nearest
                path.append(node)
            self._touch(path)
            self._forget_empty(root)
            full = path if len(tokens) % PAGE == 0 else path[:-1]
            if self.on_insert is not None and full:
                self.on_insert(full, root)

    # Pages that come from elsewhere, and go there

    def find(self, tokens: Seq[int], root: Root) -> tuple[int, Node | None]:
        """Full pages of `tokens` that are here, and the last of them."""
        with self._cache.lock:
            path = self._path(tokens, root)[1:]
            return len(path), path[-1] if path else None

    def attach(self, parent: Node | None, key: Key, pages: PageSet, root: Root) -> Node | None:
        """Takes over the pages of 32 tokens, which are nobody else's, below `parent` (None: as the first).
        None if that has left the tree.
        """
        with self._cache.lock:
            node = None
            if parent is None or parent in self._recent:
                parent = self._roots.setdefault(root, Node(None, (), ())) if parent is None else parent
                node = parent.children.get(key) or self._add(parent, key, pages)
                self._touch(node.path())
            for space, page in zip(self._cache.token_spaces, pages, strict=True):
                if page:
                    self._cache.release(page, space)  # the tree counts it, or has its own
        return node

    def copy_pages(self, node: Node, buffers: Seq[memoryview]) -> int:
        """Copies a page into a buffer for each space; bits of the spaces that it is there for, none when it
        has left the tree.
        """
        spaces = 0
        with self._cache.lock:
            if node not in self._recent:
                return 0
            for i, space in enumerate(self._cache.token_spaces):
                if page := node.pages[i]:
                    buffers[i][:] = self._cache.bytes_of(page, space)
                    spaces |= 1 << i
        return spaces

    def _add(self, parent: Node, key: Key, pages: PageSet) -> Node:
        at = bisect_left(parent.order, key)
        if at and key[: len(parent.order[at - 1])] == parent.order[at - 1]:
            self._remove(parent.children[parent.order[at - 1]])  # a partly used page that this one continues
        for space, page in zip(self._cache.token_spaces, pages, strict=True):
            if page:
                self._cache.share(page, space)
        node = Node(parent, key, pages)
        parent.children[key] = node
        insort(parent.order, key)
        return node

    def _complete(self, node: Node, pages: PageSet) -> None:
        """Takes over what the page lacks: pages of a chunk that was over for the sequence it came from."""
        found = []
        for space, own, other in zip(self._cache.token_spaces, node.pages, pages, strict=True):
            found.append(own or (other and self._cache.share(other, space)))
        node.pages, node.stored_at = tuple(found), 0.0

    def _touch(self, path: list[Node]) -> None:
        for node in reversed(path):
            self._recent[node] = None
            self._recent.move_to_end(node)

    def _is_pinned(self, node: Node) -> bool:
        spaces = zip(self._cache.token_spaces, node.pages, strict=True)
        return any(page and self._cache.is_shared(page, space) for space, page in spaces)

    def evictable_bytes(self) -> int:
        """Bytes of the pages that nobody else uses."""
        with self._cache.lock:
            return sum(not self._is_pinned(node) for node in self._recent) * self._cache.page_bytes

    def evict(self, n_bytes: int) -> bool:
        """Lets go of leaves until `n_bytes` are free; whether there was any that nobody else uses."""
        freed = 0
        with self._cache.lock:
            while freed < n_bytes and (leaf := self._oldest_leaf()) is not None:
                self._remove(leaf)
                freed += self._cache.page_bytes
        return freed > 0

    def leave(self, page: int, space: int) -> bool:
        """Leaves a page that is here and with one sequence to that sequence; False if it is not so."""
        i = self._cache.token_spaces.index(space)
        with self._cache.lock:
            leaf = next((n for n in self._recent if not n.children and n.pages[i] == page), None)
            if leaf is None or self._cache.n_users(page, space) != 2:
                return False
            self._remove(leaf)
        return True

    def _oldest_leaf(self) -> Node | None:
        return next((n for n in self._recent if not n.children and not self._is_pinned(n)), None)

    def _remove(self, node: Node) -> None:
        assert node.parent is not None and not node.children
        del node.parent.children[node.key]
        del node.parent.order[bisect_left(node.parent.order, node.key)]
        self._recent.pop(node, None)
        for space, page in zip(self._cache.token_spaces, node.pages, strict=True):
            if page:
                self._cache.release(page, space)

    def clear(self) -> None:
        """Lets go of all pages."""
        with self._cache.lock:
            for node in list(self._recent):  # children first
                self._remove(node)
            self._roots.clear()

    def _forget_empty(self, root: Root) -> None:
        if not self._roots[root].children:
            del self._roots[root]
