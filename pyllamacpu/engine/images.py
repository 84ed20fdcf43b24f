"""Images among tokens: the ids that stand for an image's rows, and the rows that towers made of images.

A row that an image decides has an id below zero in a sequence, which is the same for the same row of the same
image as long as the engine lives, and no other row's. So whatever goes by tokens (sequences, their histories,
the tree of the prefix cache) tells images apart without knowing of them.
"""

from __future__ import annotations

import hashlib
import struct
import time
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import numpy as np
import numpy.typing as npt

from pyllamacpu.engine.batch import Entry
from pyllamacpu.engine.leaving import SingleFlight
from pyllamacpu.engine.token_ids import check_tokens
from pyllamacpu.errors import OptionError, TokenizerError
from pyllamacpu.forks import fork_safe_lock

if TYPE_CHECKING:
    from pyllamacpu.images.tiles import Tiles

Floats = npt.NDArray[np.float32]

_LIMIT = 512 << 20  # bytes of rows that are kept for images that may come again
_LOWEST = -(1 << 31)
_MOST_ROWS = 1 << 20  # of an image
_RANGE = struct.Struct("<iI32s")  # first id, rows, digest


@dataclass(frozen=True, eq=False)
class EmbeddedImage:
    """An image as the text model reads it. digest: of its pixels and of the tower. rows: (n, dim). first: the
    id that stands for row 0; row i has first - i. states: (n, dim), where layers of the model attend to
    images: then rows is the embedding of the one token that stands for it.
    """

    digest: bytes
    rows: Floats
    first: int
    states: Floats | None = None
    _spent: list[float] = field(default_factory=list, repr=False)

    def take_seconds(self) -> float:
        """Those that the tower took, for the first who asks: others found the image in the cache."""
        try:
            return self._spent.pop()
        except IndexError:
            return 0.0

    @property
    def ids(self) -> range:
        return range(self.first, self.first - len(self.rows), -1)


class ImageCache:
    """The images that an engine has seen. Ids stay for good; rows as long as somebody holds the image, or as
    they are among the newest `limit_bytes`. Any thread may call it.
    """

    def __init__(self, limit_bytes: int = _LIMIT) -> None:
        self.limit_bytes = limit_bytes
        self.token_row: Floats | None = (
            None  # (1, dim): what stands for any image whose states are attended to
        )
        self.image_token: int | None = None  # an id outside of the vocabulary that stands for any image
        self.placeholder: int | None = None
        """The id that is shown where an image's row is. None: there is no tower."""
        self._lock = fork_safe_lock()
        self._flights: SingleFlight[EmbeddedImage] = SingleFlight()
        self._firsts: list[int] = []  # of -1 - id: where the ids of each image begin
        self._digests: list[bytes] = []
        self._ranges: dict[bytes, tuple[int, int]] = {}  # by digest: its place among those, and its rows
        self._next = 0
        self._alive: WeakValueDictionary[bytes, EmbeddedImage] = WeakValueDictionary()
        self._recent: OrderedDict[bytes, EmbeddedImage] = OrderedDict()

    def get(self, digest: bytes) -> EmbeddedImage | None:
        """An image whose rows are here."""
        with self._lock:
            found = self._alive.get(digest)
            return None if found is None else self._touch(found)

    def add(self, digest: bytes, made: Floats, seconds: float = 0.0) -> EmbeddedImage:
        """The image of what the tower made in so many seconds."""
        rows, states = (made, None) if self.token_row is None else (self.token_row, made)
        with self._lock:
            if (found := self._alive.get(digest)) is None:
                found = EmbeddedImage(digest, rows, self.first_id(digest, len(rows)), states, [seconds])
                self._alive[digest] = found
            return self._touch(found)

    def embedded(self, digest: bytes, make: Callable[[], Floats]) -> EmbeddedImage:
        """The image of this digest; `make()` gives what the tower makes of it unless it is here, or in the
        making: who asks for it meanwhile waits, and `check_wanted` in `make` raises when all have left.
        """
        found = self.get(digest)
        while found is None:
            found = self._flights.run(digest, lambda: self._made(digest, make))
        return found

    def _made(self, digest: bytes, make: Callable[[], Floats]) -> EmbeddedImage:
        if found := self.get(digest):
            return found
        start = time.perf_counter()
        made = make()
        return self.add(digest, made, time.perf_counter() - start)

    def _touch(self, image: EmbeddedImage) -> EmbeddedImage:
        self._recent[image.digest] = image
        self._recent.move_to_end(image.digest)
        while len(self._recent) > 1 and self.bytes_kept > self.limit_bytes:
            self._recent.popitem(last=False)
        return image

    def keep_at_most(self, n_bytes: int) -> None:
        """Of images that may come again, from now on, and no more than usual."""
        with self._lock:
            self.limit_bytes = min(n_bytes, _LIMIT)

    @property
    def bytes_kept(self) -> int:
        """Of rows that are kept for images that may come again."""
        images = self._recent.values()
        return sum((image.rows if image.states is None else image.states).nbytes for image in images)

    # Ids

    def first_id(self, digest: bytes, n_rows: int) -> int:
        """The id of row 0 of an image, whose rows may be elsewhere (a saved state)."""
        with self._lock:
            if digest not in self._ranges:
                if not 0 < n_rows <= _MOST_ROWS:
                    raise OptionError(f"an image has {n_rows} rows, where 1 to {_MOST_ROWS} are allowed")
                if -1 - self._next - n_rows < _LOWEST:
                    raise OptionError("too many images for one engine: open the model again")
                self._ranges[digest] = len(self._firsts), n_rows
                self._firsts.append(self._next)
                self._digests.append(digest)
                self._next += n_rows
            place, known = self._ranges[digest]
            if known != n_rows:
                raise OptionError(f"an image has {known} rows, not {n_rows}")
            return -1 - self._firsts[place]

    def find(self, token: int) -> tuple[bytes, int]:
        """The digest of the image of an id below 0, and the row."""
        place = bisect_right(self._firsts, -1 - token) - 1
        return self._digests[place], -1 - token - self._firsts[place]

    def check_ids(self, tokens: Iterable[int], n_vocab: int) -> list[int]:
        """As `check_tokens`, for ids some of which may stand for rows of images."""
        text = (str, bytes, bytearray, memoryview)
        if not self._next or isinstance(tokens, text) or not isinstance(tokens, Iterable):
            return check_tokens(tokens, n_vocab, self.image_token)
        ids = list(tokens)
        texts = check_tokens([t if not _is_row(t) else 0 for t in ids], n_vocab, self.image_token)
        if any(_is_row(t) and t < -self._next for t in ids):
            raise TokenizerError("a token id below 0 stands for no image of this model")
        return [int(t) if _is_row(t) else text for t, text in zip(ids, texts, strict=True)]

    def key_parts(self, tokens: Seq[int]) -> list[bytes]:
        """What a name outside of this process holds in the place of ids below 0: digest and row of each."""
        found = []
        for token in tokens:
            if token < 0:
                digest, row = self.find(token)
                found.append(digest + row.to_bytes(4, "little"))
        return found

    def visible(self, tokens: Seq[int]) -> list[int]:
        """With placeholders where rows of images are."""
        shown = self.placeholder or 0
        return [shown if token < 0 else token for token in tokens]

    # Saved states

    def saved_ranges(self, tokens: Seq[int]) -> bytes:
        """What tells the images of `tokens` in another process: of each its first id, rows and digest."""
        found = {}
        for token in tokens:
            if token < 0:
                digest, row = self.find(token)
                found[digest] = token + row
        parts = (_RANGE.pack(first, self._ranges[digest][1], digest) for digest, first in found.items())
        return b"".join(parts)

    def renumbered(self, tokens: Seq[int], ranges: bytes) -> list[int]:
        """The ids here of tokens that were saved with those ranges. Raises OptionError for damaged ones, and
        where there is no tower.
        """
        if self.placeholder is None:
            raise OptionError(
                "the saved state holds images, and the model was opened without its vision tower: "
                "name it with mmproj"
            )
        try:
            known = sorted((-first, n, digest) for first, n, digest in _RANGE.iter_unpack(ranges))
            starts = [start for start, _, _ in known]
            firsts = [self.first_id(digest, n) for _, n, digest in known]
        except struct.error:
            raise OptionError("the saved state is damaged: its images") from None
        found = []
        for token in tokens:
            if token < 0:
                i = bisect_right(starts, -token) - 1
                if i < 0 or -token - starts[i] >= known[i][1]:
                    raise OptionError("the saved state is damaged: a token stands for none of its images")
                token = firsts[i] - (-token - starts[i])
            found.append(token)
        return found

    def of_tokens(self, tokens: Seq[int]) -> list[EmbeddedImage]:
        """The images whose rows are among `tokens`, in the order of their coming.

        Raises OptionError when the rows of one are no longer here.
        """
        found: dict[bytes, EmbeddedImage] = {}
        for token in tokens:
            if token < 0:
                digest, _ = self.find(token)
                if digest not in found:
                    found[digest] = self._held(digest)
        return list(found.values())

    def _held(self, digest: bytes) -> EmbeddedImage:
        with self._lock:
            image = self._alive.get(digest)
        if image is None:
            raise OptionError(
                "the rows of an image are no longer in memory: give the prompt with its image again"
            )
        return image

    # Batches

    def with_rows(self, entries: Seq[Entry]) -> list[Entry]:
        """The entries with the rows of their images as embeddings; those images are then held by their
        sequences.
        """
        return [self._with_rows(entry) if self._has_images(entry) else entry for entry in entries]

    def _has_images(self, entry: Entry) -> bool:
        """False also for ids that stand for no image: whoever checks tokens refuses them."""
        if not self._next or entry.embeddings is not None:
            return False
        return all(map(_is_whole, entry.tokens)) and -self._next <= min(entry.tokens, default=0) < 0

    def _with_rows(self, entry: Entry) -> Entry:
        images = {image.digest: image for image in self.of_tokens(entry.tokens)}
        rows, ids = [], []
        for token in entry.tokens:
            if token < 0:
                digest, row = self.find(token)
                rows.append(images[digest].rows[row])
                token = -len(rows)
            ids.append(token)
        entry.sequence.images.update(images)
        return replace(entry, tokens=ids, embeddings=np.stack(rows))


def _is_whole(token: Any) -> bool:
    return isinstance(token, (int, np.integer))


def _is_row(token: Any) -> bool:
    return _is_whole(token) and bool(token < 0)


def image_digest(tiles: Tiles, tower: bytes) -> bytes:
    """Of an image's tiles, and of what tells towers apart."""
    found = hashlib.sha256(tower + repr((tiles.pixels.shape, tiles.rows, tiles.cols)).encode())
    found.update(np.ascontiguousarray(tiles.pixels, np.float32).data)
    return found.digest()
