"""Images for a text model: the tower that goes with it, the forms of an image, and its place in a prompt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pyllamacpu.api.chat_images import Encode, Messages, encode_with_images, text_with_images
from pyllamacpu.engine.engine import Engine
from pyllamacpu.engine.images import EmbeddedImage, image_digest
from pyllamacpu.engine.tower import Tower, TowerFile
from pyllamacpu.engine.tower_files import open_tower
from pyllamacpu.errors import GGUFError, ImageError, ModelError, OptionError
from pyllamacpu.forks import fork_safe_lock
from pyllamacpu.gguf.reader import GGUFFile
from pyllamacpu.images.tiles import Tiles
from pyllamacpu.model.towers import TOWERS
from pyllamacpu.text.tokenizer import Tokenizer

Floats = npt.NDArray[np.float32]


class Vision:
    """A text model's images. Any thread may call it; the tower is loaded when the first image comes."""

    def __init__(self, engine: Engine, opened: TowerFile, tokenizer: Tokenizer | None) -> None:
        self.engine, self.opened = engine, opened
        self._tower: Tower | None = None
        self._closed = False
        self._lock = fork_safe_lock()
        names = {} if tokenizer is None else tokenizer.special_tokens
        self.n_ids = engine.n_vocab if engine.image_keys is None else engine.n_embeddings
        self.ids = opened.image_tokens(names, self.n_ids, engine.file.metadata)
        if engine.image_keys is not None:  # the row after those of the output is that of images
            first = engine.n_outputs
            self.ids = {"patch": first, "image": first, **self.ids}
            engine.images.token_row = engine.embedding(self.ids["patch"])
        engine.images.placeholder = self.ids.get("patch", 0)

    @property
    def path(self) -> str:
        """The file that the tower is in."""
        return str(self.opened.file.paths[0])

    @property
    def loaded_bytes(self) -> int:
        """Of the tower, once it is loaded."""
        return 0 if self._tower is None else self._tower.n_bytes

    @property
    def tower(self) -> Tower:
        """Raises GGUFError, ModelError for a damaged file, and when the model is closed."""
        with self._lock:
            if self._closed:
                raise ModelError("the model is closed: it reads no more images")
            if self._tower is None:
                engine = self.engine
                exact = engine.precision == "exact"
                self._tower = Tower(
                    self.opened,
                    engine.pool,
                    engine.exclusive,
                    exact=exact,
                    pack_cache=engine.pack_cache,
                )
            return self._tower

    def tiles(self, image: Any) -> Tiles:
        """An image in any form (see `Llama.logits`) as the tiles that the tower reads.

        Raises ImageError, OptionError.
        """
        if isinstance(image, Tiles):
            return image
        if (pixels := _given_pixels(image, self.opened.config.image_size)) is not None:
            more = image if isinstance(image, Mapping) else {}
            return self.opened.architecture.given_tiles(self.opened.config, pixels, more)
        from pyllamacpu.images.sources import open_picture

        return self.opened.cut(open_picture(image))

    def tiles_of(self, image: Any, where: str) -> Tiles:
        """Likewise; errors name the place `where`."""
        if isinstance(image, (Tiles, Mapping, np.ndarray)) or _is_tensor(image):
            return self.tiles(image)
        from pyllamacpu.images.sources import open_picture

        return self.opened.cut(open_picture(image, where=where))

    def count(self, tiles: Tiles) -> int:
        """Tokens that an image takes in a prompt."""
        return len(self.opened.placeholders(self.ids, tiles))

    def image_bytes(self, tiles: Tiles) -> int:
        """Bytes of memory that an image takes at the most: its tiles, what the tower makes of them, and the
        keys and values of that in layers that attend to images.
        """
        config, keys = self.opened.config, self.engine.image_keys
        n_rows = len(tiles.pixels) * config.rows_per_tile
        own = 0 if keys is None else keys.most_bytes(n_rows)
        return int(tiles.pixels.nbytes + 4 * n_rows * config.dim + own)

    def keep_at_most(self, n_bytes: int) -> None:
        """Bytes for images that may come again: of their rows, and as many of their keys and values. No more
        than 512 MB and 1 GB in any case. The newest stays, however large.
        """
        self.engine.images.keep_at_most(n_bytes)
        if self.engine.image_keys is not None:
            self.engine.image_keys.keep_at_most(n_bytes)

    def embed(self, image: Any) -> EmbeddedImage:
        """What the tower makes of an image; each is computed once. Raises ImageError, OptionError."""
        tiles = self.tiles(image)
        digest = image_digest(tiles, self.opened.identity)
        return self.engine.images.embedded(digest, lambda: self._encoded(tiles))

    def _encoded(self, tiles: Tiles) -> Floats:
        rows = self.tower.encode(tiles)
        if not np.isfinite(rows).all():
            raise ModelError(
                f"{self.path}: the vision tower made numbers of an image that are not finite; the file is "
                "damaged, or the pixels are far from those that it was trained with"
            )
        return rows

    def prompt(
        self, ids: Sequence[int], images: Sequence[Any]
    ) -> tuple[list[int], tuple[EmbeddedImage, ...]]:
        """`placed` for ids that hold placeholders, else `expanded`."""
        return (self.placed if self._id("patch") in ids else self.expanded)(ids, images)

    def placed(
        self, ids: Sequence[int], images: Sequence[Any]
    ) -> tuple[list[int], tuple[EmbeddedImage, ...]]:
        """`ids`, whose placeholders are exchanged for the ids of the images' rows, in order; the images.

        Raises OptionError when there are not as many placeholders as rows, ImageError.
        """
        embedded = tuple(self.embed(image) for image in _one_by_one(images))
        rows = [row for image in embedded for row in image.ids]
        patch = self._id("patch")
        places = [i for i, token in enumerate(ids) if token == patch]
        if len(places) != len(rows):
            n = self.opened.config.rows_per_tile
            each = f"{n} for each tile" if self.engine.image_keys is None else "one for each image"
            raise OptionError(
                f"the prompt has {len(places)} placeholders (token {patch}), and the images take "
                f"{len(rows)}: {each}"
            )
        found = list(ids)
        for place, row in zip(places, rows, strict=True):
            found[place] = row
        return found, embedded

    def expanded(
        self, ids: Sequence[int], images: Sequence[Any]
    ) -> tuple[list[int], tuple[EmbeddedImage, ...]]:
        """Likewise, for a prompt that has one token for each image, as chat templates write it."""
        mark, tiles = self._id("image"), [self.tiles(image) for image in _one_by_one(images)]
        if ids.count(mark) != len(tiles):
            raise OptionError(
                f"the prompt has places for {ids.count(mark)} images, and {len(tiles)} are given: the chat "
                "template of this model does not write them; give another with chat_template"
            )
        found: list[int] = []
        left = iter(tiles)
        for token in ids:
            found += self.opened.placeholders(self.ids, next(left)) if token == mark else [token]
        return self.placed(found, tiles)

    def chat_prompt(
        self, encode: Encode, messages: Messages, images: Sequence[Any]
    ) -> tuple[list[int], tuple[EmbeddedImage, ...]]:
        """Messages whose parts {"type": "image"} stand for `images`, as token ids, by `encode`. Raises
        TemplateError, ImageError, OptionError.
        """
        ids = encode_with_images(encode, messages, self._id("image"), len(images))
        return self.expanded(ids, images)

    def count_prompt(self, encode: Encode, messages: Messages, counts: Sequence[int]) -> int:
        """The tokens of what `chat_prompt` gives for images of so many tokens; nothing is embedded."""
        ids = encode_with_images(encode, messages, self._id("image"), len(counts))
        return len(ids) - len(counts) + sum(counts)

    def text_prompt(
        self, tokenizer: Tokenizer, text: str | bytes | Sequence[int], images: Sequence[Any]
    ) -> tuple[list[int], tuple[EmbeddedImage, ...]]:
        """A text, or token ids, whose images stand where it says so, else before it. Raises OptionError,
        ImageError.
        """
        return self.expanded(text_with_images(tokenizer, text, self._id("image"), len(images)), images)

    def _id(self, what: str) -> int:
        if what not in self.ids:
            raise ModelError(
                f"{self.engine.file.paths[0]}: its vocabulary has no token for images ({what}), so "
                "that there is no place for one in a prompt"
            )
        return self.ids[what]

    def close(self) -> None:
        with self._lock:
            if self._tower is not None:
                self._tower.release()
            self._tower, self._closed = None, True
            if self.opened.file is not self.engine.file:
                self.opened.file.close()


def _one_by_one(images: Sequence[Any]) -> Iterator[Any]:
    """The images; those that a processor gives together (with `aspect_ratio_ids`) apart.

    Raises ImageError.
    """
    for image in images:
        ids = image.get("aspect_ratio_ids") if isinstance(image, Mapping) else None
        n = 1 if ids is None else _as_array(ids).size
        if n < 2 or not isinstance(image, Mapping):
            yield image
            continue
        try:
            by_image = {
                key: _as_array(image[key]).reshape(n, -1) for key in image if str(key).startswith("aspect_")
            }
            pixels = _as_array(image.get("pixel_values"))
            pixels = pixels.reshape(n, -1, *pixels.shape[-3:])
        except ValueError:
            raise ImageError("image", f"its arrays are not of {n} images, as aspect_ratio_ids say") from None
        for i in range(n):
            if by_image["aspect_ratio_ids"][i, 0]:  # 0: none, which makes rows of a batch equally long
                yield {"pixel_values": pixels[i], **{key: value[i] for key, value in by_image.items()}}


def _is_tensor(value: Any) -> bool:
    """Whether it is one of torch's (files have `detach` too)."""
    return hasattr(value, "detach") and hasattr(value, "dtype")


def _as_array(value: Any) -> npt.NDArray[Any]:
    """Lists and torch's tensors too, whose bfloat16 numpy does not know. Raises ImageError for others."""
    try:
        found = np.asarray(value.detach().float() if _is_tensor(value) else value)
    except ValueError:  # lists that differ in length
        raise ImageError("image", "is lists that are not an array") from None
    if not np.can_cast(found.dtype, np.float32, "same_kind"):
        raise ImageError("image", f"is {_named(value)} where an array of numbers belongs")
    return found


def _named(value: Any) -> str:
    dtype = getattr(value, "dtype", None)
    return f"of type {type(value).__name__}" if dtype is None else f"an array of {dtype}"


def _given_pixels(image: Any, size: int) -> Floats | None:
    """(n, 3, size, size) of the arrays that processors give, with or without more axes before; None for other
    kinds of images. Raises ImageError for arrays of other shapes.
    """
    if isinstance(image, Mapping):
        if "pixel_values" not in image:
            others = f", only {', '.join(map(str, image))}" if image else ""
            raise ImageError("image", f"has no pixel_values{others}")
        image = image["pixel_values"]
    elif not _is_tensor(image) and (not isinstance(image, np.ndarray) or image.dtype == np.uint8):
        return None
    image = _as_array(image)
    if image.ndim < 3 or image.shape[-3:] != (3, size, size) or not image.size:
        raise ImageError(
            "image",
            f"is {image.dtype} of shape {image.shape}; arrays are pictures, uint8 of (h, w) or (h, w, 3 "
            f"or 4), or a processor's pixels of (n, 3, {size}, {size})",
        )
    with np.errstate(over="ignore"):  # what is too large becomes infinite
        pixels = np.ascontiguousarray(image.reshape(-1, 3, size, size), np.float32)
    if not np.isfinite(pixels).all():
        raise ImageError("image", "has pixels that are not finite")
    return pixels


# ---- finding the tower ----


def reads_images(file: GGUFFile) -> bool:
    """Whether the model of `file` has a tower, in its file or beside it."""
    arch = str(file.metadata.get("general.architecture"))
    dim = file.metadata.get(f"{arch}.embedding_length")
    if arch not in TOWERS or not isinstance(dim, int):
        return False
    try:
        found = open_tower(file, dim, None)
    except (GGUFError, ModelError):
        return False
    if found is not None and found.file is not file:
        found.file.close()
    return found is not None
