"""Stop strings, found across token borders, with as little text as possible held back."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import islice

from pyllamacpu.errors import OptionError

MAX_CHARACTERS = 100_000  # of all stop strings: each takes some 300 bytes
_Node = dict[str, int]


class StopMatcher:
    """Passes text through until one of the stop strings is complete, in time linear in the text.

    Text that may be the beginning of a stop string is held back until it is decided. Of the stop strings the
    one that is complete first ends the text; if several are complete with the same character, the longest.
    The stop string itself is never emitted. The automaton is Aho and Corasick's
    (https://doi.org/10.1145/360825.360855).
    """

    def __init__(self, stop: Sequence[str] | str | None = ()) -> None:
        strings = [stop] if isinstance(stop, str) else list(stop or ())
        if not all(isinstance(s, str) and s for s in strings):
            raise OptionError(f"stop: {strings!r:.200}; allowed: strings that are not empty")
        if (n := sum(map(len, strings))) > MAX_CHARACTERS:
            raise OptionError(f"stop: {n} characters in all; allowed: at most {MAX_CHARACTERS}")
        self.stop = tuple(dict.fromkeys(strings))
        self._next: list[_Node] = [{}]
        self._depth = [0]  # characters from the root: how much is held back in this state
        self._match = [""]  # the longest stop string that ends in this state
        for string in self.stop:
            self._insert(string)
        self._fail = self._link()
        self.reset()

    @property
    def n_held(self) -> int:
        """Characters that are held back."""
        return len(self._held)

    def reset(self) -> None:
        """Ready for a new text."""
        self._state = 0
        self._held: deque[str] = deque()  # characters: a long beginning is not copied at each push
        self.stopped = False
        self.matched: str | None = None

    def _insert(self, string: str) -> None:
        state = 0
        for char in string:
            if char not in self._next[state]:
                self._next[state][char] = len(self._next)
                self._next.append({})
                self._depth.append(self._depth[state] + 1)
                self._match.append("")
            state = self._next[state][char]
        self._match[state] = string

    def _link(self) -> list[int]:
        """For each state the state of its longest proper suffix; matches are handed down along the way."""
        fail = [0] * len(self._next)
        queue = list(self._next[0].values())
        for state in queue:
            self._match[state] = self._match[state] or self._match[fail[state]]
            for char, child in self._next[state].items():
                fail[child] = self._step(fail[state], char, fail)
                queue.append(child)
        return fail

    def _step(self, state: int, char: str, fail: list[int]) -> int:
        while state and char not in self._next[state]:
            state = fail[state]
        return self._next[state].get(char, 0)

    def push(self, text: str) -> tuple[str, bool]:
        """-> (text that is certain to be no part of a stop string, whether a stop string is complete).

        After a stop nothing more is emitted; `matched` is the stop string then.
        """
        if self.stopped:
            return "", True
        if not self.stop:
            return text, False
        held = self._held
        out: list[str] = []
        for char in text:
            held.append(char)
            self._state = self._step(self._state, char, self._fail)
            if match := self._match[self._state]:
                self.stopped, self.matched = True, match
                out += islice(held, len(held) - len(match))
                held.clear()
                break
            while len(held) > self._depth[self._state]:
                out.append(held.popleft())
        return "".join(out), self.stopped

    def flush(self) -> str:
        """The text ends here: what was held back is no stop string after all."""
        held = "".join(self._held)
        self._held.clear()
        self._state = 0
        return held
