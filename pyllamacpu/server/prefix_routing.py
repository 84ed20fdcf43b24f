"""Which of several engines gets a request: the one that has the longest beginning of its prompt in its cache,
unless another has much less to do.

A prompt is known by the hashes of its beginnings, as they grow by messages and by pieces of text: a later
request of a conversation has all those of the earlier ones.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

Replica = TypeVar("Replica", bound=Hashable)

PIECE = 512  # characters between two beginnings of a long text: about four pages of tokens
CAPACITY = 1 << 17  # beginnings that are remembered
SLACK = 4  # requests that an engine may have more than the least busy one for the sake of its cache

# Fields of all dialects: what stands before all messages, and what may follow.
_FIRST = ("model", "tools", "functions", "template", "system", "instructions")
_THEN = ("input_prefix", "prompt", "input", "messages", "content", "input_suffix")


def prompt_keys(body: Any) -> tuple[bytes, ...]:
    """The hashes of the beginnings of a request's prompt, shortest first, whatever its dialect; none for a
    body that is not a request.
    """
    if not isinstance(body, Mapping):
        return ()
    prompt = [part for name in _THEN for part in _parts(body.get(name))]
    if not prompt:
        return ()
    digest = hashlib.blake2b(digest_size=16)
    keys = []
    for part, is_shared in [(_text([body.get(name) for name in _FIRST]), True), *prompt]:
        for start in range(0, len(part), PIECE):
            digest.update(part[start : start + PIECE].encode("utf-8", "surrogatepass"))
            if not is_shared or start + PIECE <= len(part):
                keys.append(digest.digest())
    return tuple(keys)


def _parts(value: Any) -> Iterator[tuple[str, bool]]:
    """The messages of a list, or a text, and whether many conversations have it: a short instruction in
    common does not keep them together. Token ids are one part.
    """
    if value is None or value == []:
        return
    if isinstance(value, list) and not all(isinstance(item, int) for item in value):
        for item in value:
            yield _text(item), isinstance(item, Mapping) and item.get("role") in ("system", "developer")
    else:
        yield (value if isinstance(value, str) else _text(value)), False


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


class PrefixMemory(Generic[Replica]):
    """Who was given which beginnings, the latest ones."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._owners: OrderedDict[bytes, set[Replica]] = OrderedDict()

    def add(self, keys: Sequence[bytes], replica: Replica) -> None:
        for key in reversed(keys):  # short beginnings are the last to be forgotten
            self._owners.setdefault(key, set()).add(replica)
            self._owners.move_to_end(key)
        while len(self._owners) > self._capacity:
            self._owners.popitem(last=False)

    def owners(self, keys: Sequence[bytes], among: Mapping[Replica, int]) -> set[Replica]:
        """Those of `among` that have the longest known beginning."""
        for key in reversed(keys):
            if found := self._owners.get(key, set()) & among.keys():
                return found
        return set()


def choose(
    keys: Sequence[bytes], memory: PrefixMemory[Replica], loads: Mapping[Replica, int]
) -> list[Replica]:
    """The replicas of `loads` (requests that each is answering), the best first. New prompts go to the least
    busy; of several, always to the same one.
    """
    least = min(loads.values(), default=0)
    owners = {replica for replica in memory.owners(keys, loads) if loads[replica] <= least + SLACK}

    def cost(replica: Replica) -> tuple[bool, int, bytes]:
        first = keys[0] if keys else b""
        tie = hashlib.blake2b(first + str(replica).encode(), digest_size=8).digest()
        return replica not in owners, loads[replica], tie

    return sorted(loads, key=cost)
