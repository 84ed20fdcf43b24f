"""What an image may be given as, and images among the parts of messages."""

from __future__ import annotations

from base64 import b64encode
from copy import deepcopy
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pyllamacpu.errors import ImageError
from pyllamacpu.images import sources
from pyllamacpu.images.parts import image_source, take_images
from pyllamacpu.images.picture import Picture
from pyllamacpu.images.sources import decode_base64, open_picture, open_url

PIXELS = np.random.default_rng(2).integers(0, 256, (3, 4, 3), np.uint8)


def png() -> bytes:
    file = BytesIO()
    Image.fromarray(PIXELS).save(file, "PNG")
    return file.getvalue()


DATA = b64encode(png()).decode()
URL = f"data:image/png;base64,{DATA}"


class _Stream:
    """Can be read once, like a response of the network."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def read(self, n: int) -> bytes:
        data, self._data = self._data[:n], self._data[n:]
        return data


def test_every_source_gives_the_same_picture(tmp_path: Path) -> None:
    path = tmp_path / "odd name.jpg"  # what a file is called decides nothing
    path.write_bytes(png())
    urls = [URL, URL.replace("data:image", "DATA:IMAGE"), f"data:;base64,{DATA}", path.as_uri()]
    urls.append(URL.rstrip("=").replace("+", "%2B").replace("/", "%2F").replace("image%2Fpng", "image/png"))
    arrays = [PIXELS, np.dstack([PIXELS, np.full((3, 4), 255, np.uint8)])]
    sources = [path, str(path), png(), bytearray(png()), memoryview(png()), *urls, *arrays, Image.open(path)]
    for source in sources:
        assert np.array_equal(open_picture(source).pixels, PIXELS), source
    with path.open("rb") as opened:
        opened.read(5)
        for file in (BytesIO(png()), opened, opened, _Stream(png())):
            assert np.array_equal(open_picture(file).pixels, PIXELS), file
    picture = open_picture(path)
    assert open_picture(picture) is picture and deepcopy(picture) is picture
    for grey in (PIXELS[..., 0], PIXELS[..., :1]):
        assert (open_picture(grey).pixels == PIXELS[..., :1]).all()


@pytest.mark.parametrize(
    "source, reason",
    [
        ("missing.png", "missing.png: no such file"),
        (".", "cannot be read"),
        ("x\0y", "cannot be read"),
        ("x" * 5000, "cannot be read"),
        ("", "'': no such file"),
        (5, "is of type int"),
        (StringIO("x"), "image: is a file that gives str, not bytes: open it with 'rb'"),
        (BytesIO(), "image: is empty"),
        (np.zeros((3, 4, 3), np.float32), "float32"),
        (np.zeros((3, 4, 5), np.uint8), "(3, 4, 5)"),
        (np.zeros((0, 4), np.uint8), "no pixels"),
        ("data:image/png,abc", "is not base64"),
        ("data:image/png;base64,a!b", "is not base64"),
        (f"data:text/plain;base64,{DATA}", "is text/plain, not an image"),
        ("data:image/png;base64,", "is empty"),
        ("https://example.com/x.png", "not fetched here"),
        ("http://example.com/x.png", "download it and give the file"),
        ("ftp://example.com/x.png", "ftp:// is not read; give the path"),
        (Path("x.png"), "x.png: no such file"),
        ("file://[x/y.png", "is not a URL"),
        ("file://[x]/y.png", "is not a URL"),
        ("file://elsewhere/y.png", "is on another machine (elsewhere)"),
    ],
)
def test_what_is_refused(source: Any, reason: str) -> None:
    with pytest.raises(ImageError) as caught:
        open_picture(source)
    assert reason in str(caught.value) and len(str(caught.value)) < 400


def test_a_file_that_is_too_large_is_named_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MAX_BYTES", 4)
    (tmp_path / "x.png").write_bytes(png())
    with pytest.raises(ImageError) as caught:
        open_picture(tmp_path / "x.png", where="x")
    assert str(caught.value) == "x: is larger than 0 MiB"


def test_arrays_of_other_classes() -> None:
    assert np.array_equal(open_picture(np.ma.masked_array(PIXELS)).pixels, PIXELS)


def test_urls_read_no_files(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(png())
    for url in (str(tmp_path / "x.png"), (tmp_path / "x.png").as_uri(), "ftp://x/y", "x.png", ""):
        with pytest.raises(ImageError, match="is not a URL of an image"):
            open_url(url)
    assert np.array_equal(open_url("https://h/x.png", fetch=lambda url: png()).pixels, PIXELS)


def test_base64_of_both_alphabets() -> None:
    data = b"\xfb\xef\xff\xfe" * 9
    plain = b64encode(data).decode()
    safe = plain.replace("+", "-").replace("/", "_")
    assert plain != safe
    for text in (plain, safe, safe.rstrip("="), f" {safe[:7]}\r\n{safe[7:]}\n"):
        assert decode_base64(text, "x") == data
    for text, said in (
        (plain[:4] + "-" + plain[5:], "both of its alphabets"),
        ("AAAAA", "last letter"),
        ("AAAA@", "has '@' in it"),
        ("AA\u00e4A", "in it"),
    ):
        with pytest.raises(ImageError, match=said):
            decode_base64(text, "x")
    quoted = plain.replace("+", "%2b").replace("/", "%2F").replace("A", "%41")
    for url in (quoted, safe, plain.rstrip("=")):
        with pytest.raises(ImageError, match="is not an image"):  # and base64 that can be read
            open_url(f"data:image/png;base64,{url}")


def test_drawings_are_called_so_however_they_begin() -> None:
    for data in (b"<svg/>", b" \n<SVG/>", b"\xef\xbb\xbf<svg/>"):
        with pytest.raises(ImageError, match="is an SVG drawing"):
            open_picture(data)


def test_details_that_nobody_knows() -> None:
    for detail in (None, "auto", "low", "high"):
        image_source({"type": "image_url", "image_url": {"url": URL, "detail": detail}}, "x")
    for part in (
        {"type": "image_url", "image_url": {"url": URL, "detail": "foo"}},
        {"type": "input_image", "image_url": URL, "detail": ["high"]},
    ):
        with pytest.raises(ImageError, match=r"detail: is .*; allowed: auto, low, high"):
            image_source(part, "x")


def test_base64_may_be_broken_into_lines() -> None:
    lines = "\n".join(DATA[i : i + 20] for i in range(0, len(DATA), 20))
    assert decode_base64(lines, "x") == png()


FORMS: list[dict[str, Any]] = [
    {"type": "image_url", "image_url": {"url": URL, "detail": "low"}},
    {"type": "image_url", "image_url": URL},
    {"type": "input_image", "image_url": URL, "detail": "auto"},
    {"type": "image", "image": Picture(PIXELS)},
    {"type": "image", "url": URL},
    {"type": "image", "base64": DATA},
    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": DATA}},
    {"type": "image", "source": {"type": "url", "url": URL}},
]


@pytest.mark.parametrize("part", FORMS)
def test_parts_of_messages(part: dict[str, Any]) -> None:
    plain = {"role": "assistant", "content": "yes"}
    text = {"type": "text", "text": "What is this?"}
    given = [plain, {"role": "user", "content": [text, part]}]
    messages, pictures = take_images(given, lambda source, where: open_picture(source))
    assert messages == [plain, {"role": "user", "content": [text, {"type": "image"}]}]
    assert len(pictures) == 1 and np.array_equal(pictures[0].pixels, PIXELS)
    assert given[1]["content"][1] is part  # not changed


@pytest.mark.parametrize(
    "part, reason",
    [
        ({"type": "image"}, "holds no image"),
        ({"type": "image_url", "image_url": {"url": ""}}, "holds no image"),
        ({"type": "input_image", "file_id": "file-1"}, "files are not kept"),
        ({"type": "image", "source": {"type": "file", "file_id": "f"}}, "must be"),
        ({"type": "image", "source": "iVBORw0KGgo="}, "must be {type: base64"),
        ({"type": "image", "base64": "?"}, "not base64"),
        ({"type": "image", "base64": 5}, "must be text: an image in base64"),
    ],
)
def test_parts_without_an_image(part: dict[str, Any], reason: str) -> None:
    with pytest.raises(ImageError, match=reason) as caught:
        image_source(part, "messages[3].content[0]")
    assert caught.value.where.startswith("messages[3].content[0]")
