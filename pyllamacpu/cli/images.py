"""Images that a person gives to a chat or a text: options, files, and paths that were dropped on a line."""

from __future__ import annotations

import os
import re
import shlex
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import click

from pyllamacpu.cli.options import options
from pyllamacpu.cli.param_types import SIZE
from pyllamacpu.errors import ImageError, OptionError
from pyllamacpu.files import read_start
from pyllamacpu.store.paths import expanded

if TYPE_CHECKING:
    from pyllamacpu.api.vision import Vision
    from pyllamacpu.images.tiles import Tiles
    from pyllamacpu.server.images import ImageAccess

mmproj_option = click.option(
    "-mm",
    "--mmproj",
    type=click.Path(path_type=Path),
    help="The model's vision tower.  [default: in the model's file, or beside it]",
)
image_option = click.option(
    "--image",
    "images",
    multiple=True,
    type=click.Path(),
    help="Show the model this image: JPEG, PNG, WebP, GIF or BMP (can be repeated).",
)

served_image_options = options(
    mmproj_option,
    click.option(
        "--allow-image-hosts",
        metavar="HOSTS",
        help="Fetch images at URLs from these hosts, joined by commas; *.example.com, * is any. Public "
        "addresses only.",
    ),
    click.option(
        "--image-memory",
        type=SIZE,
        metavar="SIZE",
        help="Memory for the images of one request: their tiles, the vision tower's rows, and keys and "
        "values of layers that attend to images (Llama 3.2 Vision). Each model keeps as much at the most for "
        "images that may come again, and never more than 512MB of rows and 1GB of keys and values.  "
        "[default: 2GB]",
    ),
)
"""Of commands whose images come in requests; `image_access` reads them."""

_WORD = r"""(?:'[^']*'|"[^"]*"|\\.|[^\s'"\\])+"""  # as a shell reads it
_FIRST = re.compile(rf"\s*({_WORD})(?=\s|\Z)")
_LAST = re.compile(rf"(?:\A|(?<=\s))({_WORD})\s*\Z")
_MAX_WORD = 5000  # characters in which the last word is looked for
_PICTURE = re.compile(
    r"\.(avif|bmp|gif|hei[cf]|ico|jpe?g|jxl|png|psd|svg|tiff?|webp)", re.IGNORECASE
)  # a suffix
_PATH = re.compile(r"/|~/|\.\.?/|file://", re.IGNORECASE)  # how paths begin that are meant as such


@dataclass(frozen=True, eq=False)
class ImageFile:
    """An image as it was read: the file may go. where: the path, or what else errors call it."""

    where: str
    data: bytes = field(repr=False)

    @classmethod
    def read(cls, path: str | Path) -> ImageFile:
        """Of a path, or of a file:// URL. Raises ImageError."""
        from pyllamacpu.images.sources import file_bytes, local_path

        found = local_path(str(path), str(path))
        return cls(found, file_bytes(found, found or "''"))

    @classmethod
    def of_url(cls, url: str, where: str) -> ImageFile:
        """Of a data URL. Raises ImageError."""
        from pyllamacpu.images.sources import data_url_bytes

        return cls(f"{where}: image", data_url_bytes(url, where))

    @property
    def name(self) -> str:
        """To be shown."""
        return Path(self.where).name

    @property
    def url(self) -> str:
        """As a data URL. Raises ImageError."""
        from pyllamacpu.images.headers import image_format

        kind = image_format(self.data, self.where).lower()
        return f"data:image/{kind};base64,{b64encode(self.data).decode('ascii')}"

    def tiles(self, vision: Vision) -> Tiles:
        """As the model reads it. Raises ImageError."""
        return vision.tiles_of(self.data, self.where)


def image_access(parameters: Mapping[str, Any]) -> ImageAccess:
    """How images of requests are taken, as `served_image_options` say. Raises OptionError."""
    from pyllamacpu.images.fetch import Fetcher, parse_hosts
    from pyllamacpu.server.images import IMAGE_MEMORY, ImageAccess

    hosts = parameters["allow_image_hosts"]
    fetch = None if hosts is None else Fetcher(parse_hosts(hosts))
    return ImageAccess(fetch, parameters["image_memory"] or IMAGE_MEMORY)


def described(image: ImageFile, tiles: Tiles, vision: Vision) -> str:
    """One line: what an image is to a model."""
    return f"{image.name}: {tiles_text(tiles)}, {n_tokens(vision.count(tiles))}"


def n_tokens(n: int) -> str:
    return f"{n} token{'' if n == 1 else 's'}"


def tiles_text(tiles: Tiles) -> str:
    n_tiles = tiles.rows * tiles.cols
    text = "one tile" if n_tiles == 1 else f"{tiles.rows} x {tiles.cols} tiles"
    return f"{text} and the whole picture" if tiles.has_global else text


def read_images(paths: Sequence[str]) -> list[ImageFile]:
    """The files of --image, which may be several with commas between, as llama.cpp takes them.

    Raises ImageError.
    """
    found: list[str] = []
    for path in paths:
        several = path.split(",")
        found += several if not os.path.exists(path) and all(map(os.path.isfile, several)) else [path]
    return [ImageFile.read(path) for path in found]


def image_content(text: str, images: Sequence[ImageFile]) -> Any:
    """The content of a message: its images stand before its text."""
    if not images:
        return text
    parts: list[dict[str, Any]] = [{"type": "image", "image": image} for image in images]
    return [*parts, {"type": "text", "text": text}] if text else parts


def saved_content(content: Any) -> Any:
    """A content for a file: images as data URLs, in OpenAI's form. Raises ImageError."""
    if not isinstance(content, list):
        return content
    return [
        {"type": "image_url", "image_url": {"url": part["image"].url}} if part["type"] == "image" else part
        for part in content
    ]


def read_content(content: Any, where: str) -> tuple[str, list[ImageFile]]:
    """(text, images) of a message in a saved conversation. Raises OptionError."""
    if isinstance(content, str):
        return content, []
    texts, images = [], []
    for part in content if isinstance(content, list) else [None]:
        url = part.get("image_url") if isinstance(part, dict) else None
        url = url.get("url") if isinstance(url, dict) else url
        if isinstance(url, str):
            try:
                images.append(ImageFile.of_url(url, where))
            except ImageError as error:
                raise OptionError(str(error)) from error
        elif isinstance(part, dict) and isinstance(part.get("text"), str):
            texts.append(part["text"])
        else:
            raise OptionError(f"{where} needs a content: text, or parts of text and images")
    return "".join(texts), images


# Paths on a line


def dropped_images(line: str) -> tuple[list[Path], str]:
    """The images whose paths stand at the beginning and at the end of a line, as terminals write a file that
    is dropped on them, and the rest of the line.
    """
    before: list[Path] = []
    behind: list[Path] = []
    rest = line
    while (match := _FIRST.match(rest)) and (path := _image_path(match[1])) is not None:
        before.append(path)
        rest = rest[match.end() :]
    while (match := _LAST.search(rest, max(len(rest) - _MAX_WORD, 0))) and (path := _image_path(match[1])):
        behind.insert(0, path)
        rest = rest[: match.start()]
    return [*before, *behind], rest.strip() if before or behind else line


def unshown_picture(line: str) -> str | None:
    """Why the picture is not shown whose path stands first or last on a line: its format is none that is
    read. None when there is no such path.
    """
    for match in (_FIRST.match(line), _LAST.search(line, max(len(line) - _MAX_WORD, 0))):
        path = _path_of(match[1]) if match else None
        if path is not None and _PICTURE.fullmatch(path.suffix) and (why := _unshown(path)):
            return why
    return None


def unshown_file(line: str) -> str | None:
    """Why the file is not shown whose path begins a line; None when no path does."""
    match = _FIRST.match(line)
    path = _path_of(match[1]) if match else None
    if path is None:
        return None
    return _unshown(path) or f"{path}: {'is a directory' if path.is_dir() else 'no such file'}"


def _unshown(path: Path) -> str | None:
    """Why a file that is there is not shown."""
    try:
        if path.is_file():
            _check_image(path)
    except (OSError, ValueError) as error:
        return str(error)
    return None


def _image_path(word: str) -> Path | None:
    """The file that a word names, if it is an image."""
    path = _path_of(word)
    try:
        if path is None or not path.is_file():
            return None
        _check_image(path)
    except (OSError, ValueError):
        return None
    return path


def _path_of(word: str) -> Path | None:
    """What a word names that begins as paths do which are meant as such."""
    try:
        word = "".join(shlex.split(word))
        if not _PATH.match(word):
            return None
        if word[:7].lower() == "file://":
            word = unquote(urlsplit(word).path)
        return expanded(word)
    except (OSError, ValueError):
        return None


def _check_image(path: Path) -> None:
    """Raises ImageError for a file that begins as no image does."""
    from pyllamacpu.images.headers import image_format

    image_format(read_start(path, 32), str(path))
