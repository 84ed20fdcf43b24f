"""Whatever holds an image, to a picture: paths, bytes, open files, data URLs, PIL images, arrays.

`open_picture` is for callers who may read any file of this machine. What comes over the network goes through
`open_url`, which reads no files, or `decode_base64`.
"""

from __future__ import annotations

import os
import re
import sys
from base64 import b64decode
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

import numpy as np
from numpy.typing import NDArray

from pyllamacpu.errors import ImageError
from pyllamacpu.files import read_problem
from pyllamacpu.images.decode import decode, from_pil
from pyllamacpu.images.picture import Picture

MAX_BYTES = 512 << 20  # of an image file

_NOT_FETCHED = (
    "URLs are not fetched here; give the image itself as data:image/...;base64,..., or allow the host with "
    "--allow-image-hosts"
)
_DOWNLOAD = "URLs are not fetched here; download it and give the file, or data:image/...;base64,..."
_KINDS = "a path, bytes, an open binary file, a data URL, a PIL image or a uint8 array (h, w, 3)"

_QUOTED = {"%2B": "+", "%2F": "/", "%3D": "=", "%2D": "-", "%5F": "_", "%0A": "", "%0D": "", "%20": ""}
_NOT_BASE64 = re.compile(r"[^A-Za-z0-9+/=]")
_MAX_QUOTED = 1 << 20  # characters in which any letter may be written as %xx

_NETWORK = ("data", "http", "https")  # schemes that `open_url` reads

Fetch = Callable[[str], bytes]  # a URL's content; raises ImageError


def open_picture(
    source: Any, *, orient: bool = True, where: str | None = None, fetch: Fetch | None = None
) -> Picture:
    """The picture in a path (also file://), bytes, an open binary file (from its beginning, where it can go
    back), a data URL, a PIL image, or a uint8 array of shape (h, w), (h, w, 3) or (h, w, 4); URLs of the
    network with `fetch` only. A picture is given back as it is.

    orient: turn it as its EXIF data says. Raises ImageError, which names it as `where`.
    """
    if isinstance(source, Picture):
        return source
    if isinstance(source, (bytes, bytearray, memoryview)):
        return decode(bytes(source), orient=orient, where=where or "image")
    if isinstance(source, np.ndarray):
        return _of_array(np.asarray(source), where or "array")
    if isinstance(source, str) and _scheme(source) in (_NETWORK if fetch else ("data",)):
        return open_url(source, orient=orient, where=where, fetch=fetch)
    if isinstance(source, (str, os.PathLike)):
        path = os.fspath(source)
        if isinstance(path, str):
            path = local_path(path, where or _short(path))
        name = where or _short(os.fsdecode(path)) or "''"
        return decode(file_bytes(path, name), orient=orient, where=name)
    pillow = sys.modules.get("PIL.Image")  # who has such an image has imported it
    if pillow is not None and isinstance(source, pillow.Image):
        return from_pil(source, orient=orient, where=where or "image")
    if callable(getattr(source, "read", None)):
        name = where or _short(str(getattr(source, "name", "") or "image"))
        return decode(_content(source, name), orient=orient, where=name)
    kind = type(source).__name__
    raise ImageError(where or "image", f"is of type {kind}, not {_KINDS}")


def open_url(
    url: str, *, orient: bool = True, where: str | None = None, fetch: Fetch | None = None
) -> Picture:
    """The picture in a data URL, or at a URL of the network with `fetch`; no files. Raises ImageError."""
    if not isinstance(url, str):
        raise ImageError(where or "image", f"is of type {type(url).__name__}, not a URL")
    scheme = _scheme(url)
    name = where or ("data URL" if scheme == "data" else _short(url))
    if scheme == "data":
        return decode(data_url_bytes(url, name), orient=orient, where=name)
    if scheme not in _NETWORK:
        raise ImageError(name, "is not a URL of an image; give data:image/...;base64,...")
    if fetch is None:
        raise ImageError(name, _NOT_FETCHED)
    return decode(fetch(url), orient=orient, where=name)


def local_path(text: str, where: str) -> str:
    """The path in a path or a file:// URL. Raises ImageError for URLs of other kinds."""
    scheme = _scheme(text)
    if scheme == "file":
        return _path_of_url(text, where)
    if scheme in _NETWORK:
        raise ImageError(where, _DOWNLOAD)
    if scheme and not os.path.exists(text):
        raise ImageError(where, f"{scheme}:// is not read; give the path of a file, or file:///...")
    return text


def decode_base64(text: str, where: str) -> bytes:
    """The bytes in base64, of either alphabet (RFC 4648); white space and missing padding are allowed.
    Raises ImageError for anything else.
    """
    compact = "".join(text.split())
    if compact[:5].lower() == "data:":
        raise ImageError(where, "is a data URL, where base64 alone belongs: leave data:...;base64, out")
    if "-" in compact or "_" in compact:
        if "+" in compact or "/" in compact:
            raise ImageError(where, "is not base64: it has letters of both of its alphabets (+ / and - _)")
        compact = compact.replace("-", "+").replace("_", "/")
    if odd := _NOT_BASE64.search(compact):
        raise ImageError(where, f"is not base64: it has {odd[0]!r} in it")
    if len(compact.rstrip("=")) % 4 == 1:
        raise ImageError(where, "is not base64: its last letter is missing")
    try:
        return b64decode(compact + "=" * (-len(compact) % 4), validate=True)
    except ValueError as error:
        raise ImageError(where, f"is not base64: {error}") from error


def check_media_type(kind: Any, where: str) -> None:
    """What is said of an image, if anything; which format it has is seen. Raises ImageError for others'."""
    if not isinstance(kind, str):
        raise ImageError(where, "must be text: image/png or another")
    kind = kind.strip().lower()
    if kind and not kind.startswith("image/") and kind != "application/octet-stream":
        raise ImageError(where, f"is {kind[:40]}, not an image")


def data_url_bytes(url: str, where: str) -> bytes:
    """The image in a data URL. Raises ImageError."""
    head, comma, content = url.partition(",")
    kind, *options = head[len("data:") :].split(";")
    if not comma or "base64" not in (option.strip().lower() for option in options):
        raise ImageError(where, "is not base64; a data URL is data:image/...;base64,...")
    check_media_type(kind, where)
    return decode_base64(_unquoted(content), where)


def _unquoted(content: str) -> str:
    """Base64 of a URL with the letters as they are that may be written as %xx: of 60 MB too, for which
    `unquote` takes half a minute.
    """
    if "%" in content:
        for code, letter in _QUOTED.items():
            content = content.replace(code, letter).replace(code.lower(), letter)
    return unquote(content) if "%" in content[:_MAX_QUOTED] and len(content) <= _MAX_QUOTED else content


def _scheme(text: str) -> str:
    """Of a URL, in small letters; nothing for a path (C:\\x.png included)."""
    scheme, colon, rest = text[:16].partition(":")
    scheme = scheme.lower()
    return scheme if colon and (scheme == "data" or rest.startswith("//")) else ""


def _path_of_url(url: str, where: str) -> str:
    """Of a file on this machine. Raises ImageError."""
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise ImageError(where, f"is not a URL: {error}") from error
    if parts.netloc.lower() not in ("", "localhost"):
        raise ImageError(where, f"is on another machine ({parts.netloc}); file:///... is on this one")
    return url2pathname(parts.path)


def _short(name: str) -> str:
    return name if len(name) <= 80 else f"{name[:77]}..."


def file_bytes(path: str | bytes | os.PathLike[str], where: str) -> bytes:
    """The content of an image file. Raises ImageError, which names it as `where`."""
    try:
        with open(path, "rb") as file:
            return _content(file, where)
    except ImageError:
        raise
    except (OSError, ValueError) as error:
        raise ImageError(where, read_problem(error, "cannot be read: ")) from error


def _content(file: Any, where: str) -> bytes:
    """Of an open binary file, from its beginning where it can go back. Raises ImageError."""
    try:
        if hasattr(file, "seekable") and file.seekable():
            file.seek(0)
        data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        raise ImageError(where, read_problem(error, "cannot be read: ")) from error
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise ImageError(where, f"is a file that gives {type(data).__name__}, not bytes: open it with 'rb'")
    if len(data) > MAX_BYTES:
        raise ImageError(where, f"is larger than {MAX_BYTES >> 20} MiB")
    return bytes(data)


def _of_array(array: NDArray[Any], where: str) -> Picture:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))):
        raise ImageError(where, f"has {array.dtype} of shape {array.shape}, not uint8 (h, w), (h, w, 3 or 4)")
    if 0 in array.shape:
        raise ImageError(where, f"has no pixels: its shape is {array.shape}")
    if array.ndim == 3 and array.shape[2] == 3:
        return Picture(array)
    from PIL import Image

    return from_pil(Image.fromarray(array), orient=False, where=where)
