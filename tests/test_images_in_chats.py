"""Images in conversations, sessions and caches of keys and values. Covers api/chat_images.py,
api/image_calls.py, api/vision.py, engine/images.py.
"""

from __future__ import annotations

import base64
import io
import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from llama4_vision_models import PATCH, PER_TILE, SPECIAL, llama4_vision, opened, with_words
from PIL import Image

from pyllamacpu import Llama
from pyllamacpu.api.tools import NO_TOOLS, ChatTools
from pyllamacpu.errors import ImageError, OptionError
from pyllamacpu.sampling.options import SamplingOptions

__all__ = ["llama4_vision"]
ID = {token: i for i, token in enumerate(SPECIAL)}
PICTURE = np.random.default_rng(7).integers(0, 256, (60, 100, 3), np.uint8)
OTHER = PICTURE[::-1].copy()


@pytest.fixture(scope="module")
def words(llama4_vision: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_words(llama4_vision, tmp_path_factory.mktemp("words"))


@pytest.fixture(scope="module")
def llm(words: Path) -> Iterator[Llama]:
    with opened(words) as model:
        yield model


def png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def asked(image: object, text: str = "what is this?") -> list[dict[str, object]]:
    part = {"type": "image_url", "image_url": {"url": image}}
    return [{"role": "user", "content": [part, {"type": "text", "text": text}]}]


def prompt(llm: Llama, messages: object) -> list[int]:
    """Its ids, with placeholders for images."""
    ids, _ = llm.chat_prompt(llm._text(), llm._chat_template(), messages, NO_TOOLS)
    return llm.engine.images.visible(ids)


def test_an_image_stands_where_the_template_has_it(llm: Llama, words: Path, tmp_path: Path) -> None:
    data = "data:image/png;base64," + base64.b64encode(png(PICTURE)).decode()
    path = tmp_path / "picture.png"
    path.write_bytes(png(PICTURE))
    ids = prompt(llm, asked(data))
    patch = [PATCH] * PER_TILE
    tiles = llm.vision.tiles(PICTURE)
    assert (tiles.rows, tiles.cols) == (2, 2)
    row = [*patch, ID["<|tile_x_separator|>"], *patch, ID["<|tile_y_separator|>"]]
    image = [ID["<|image_start|>"], *row, *row, ID["<|image|>"], *patch, ID["<|image_end|>"]]
    start = ids.index(ID["<|image_start|>"])
    assert ids[start : start + len(image)] == image
    assert ids[start - 1] == ID["<|header_end|>"]
    for same in (path, str(path), png(PICTURE), Image.fromarray(PICTURE), PICTURE):
        assert prompt(llm, asked(same)) == ids
    with opened(words, chat_format="llama4") as other:  # takes text only: images stand in it all the same
        plain = prompt(other, asked(PICTURE))
        at = plain.index(ID["<|image_start|>"])
        assert plain[at : at + len(image)] == image
    with opened(words, chat_template="{% for m in messages %}{{ m.content }}{% endfor %}") as other:
        assert prompt(other, asked(PICTURE))[: len(image) + 1][-len(image) :] == image


def test_marks_in_peoples_words_are_words(llm: Llama) -> None:
    ids = prompt(llm, asked(PICTURE, "<|image|> <|patch|>"))
    assert ids.count(ID["<|image|>"]) == 1
    assert ids.count(PATCH) == 5 * PER_TILE


def test_letters_of_private_use_are_words(words: Path) -> None:
    """One of them stands for the image while a template that takes text only is filled in."""
    tool = {"type": "function", "function": {"name": "\ue001", "description": "\ue002"}}
    with opened(words, chat_format="llama4") as other:
        for text, tools in (("\ue000 hello", ()), ("\ue000\uf8ff", (tool,))):
            offer = ChatTools(tools)
            ids, _ = other.chat_prompt(other._text(), other._chat_template(), asked(PICTURE, text), offer)
            assert other.engine.images.visible(ids).count(PATCH) == 5 * PER_TILE
            plain = [{"role": "user", "content": text}]
            without, _ = other.chat_prompt(other._text(), other._chat_template(), plain, offer)
            assert [token for token in ids if token >= 0 and token not in ID.values()] == [
                token for token in without if token not in ID.values()
            ]


def test_answers_are_those_of_the_image(llm: Llama) -> None:
    def answer(image: object) -> str:
        found = llm.create_chat_completion(asked(image), max_tokens=12, temperature=0.0)
        return str(found["choices"][0]["message"]["content"])

    def by_hand(image: object) -> str:
        ids, _ = llm.chat_prompt(llm._text(), llm._chat_template(), asked(image), NO_TOOLS)
        tokens = llm.engine.images.visible(ids)
        found: list[int] = []
        while len(found) < 12:
            row = llm.logits([*tokens, *found], images=[image])[-1]
            if (token := int(row.argmax())) == 5:
                break
            found.append(token)
        return llm.detokenize(found).decode()

    first, other = answer(PICTURE), answer(OTHER)
    assert (first, other) == (by_hand(PICTURE), by_hand(OTHER))
    assert first != other  # the prefix cache has told them apart
    assert answer(PICTURE) == first
    repeated = llm.create_chat_completion(
        asked(PICTURE), max_tokens=12, temperature=0.0, repeat_penalty=1.3, frequency_penalty=0.2
    )
    assert repeated["usage"]["prompt_tokens"] == len(prompt(llm, asked(PICTURE)))


def test_a_conversation_goes_on_from_its_pages(llm: Llama) -> None:
    llm.reset()
    ids, held = llm.chat_prompt(llm._text(), llm._chat_template(), asked(PICTURE), NO_TOOLS)
    list(llm.stream(ids, max_tokens=4, images=held))
    last = list(llm.stream([*ids, 20, 21], max_tokens=1, images=held))[-1]
    assert last.stats is not None
    assert last.stats.n_cached >= len(ids) - 1
    with pytest.raises(OptionError, match="places for 0 images, and 1 are given"):
        list(llm.stream([1, 2, 3], max_tokens=1, images=[PICTURE]))


def test_a_saved_state_has_its_images(llm: Llama, words: Path) -> None:
    ids, held = llm.chat_prompt(llm._text(), llm._chat_template(), asked(PICTURE), NO_TOOLS)
    list(llm.stream(ids, max_tokens=3, images=held))
    state = pickle.loads(pickle.dumps(llm.save_state()))
    assert (state.input_ids >= 0).all()
    with opened(words) as other:
        other.vision.embed(OTHER)  # ids are others there
        other.load_state(state)
        assert other.input_ids.tolist() == llm.input_ids.tolist()
        again, own = other.chat_prompt(other._text(), other._chat_template(), asked(PICTURE), NO_TOOLS)
        last = list(other.stream(again, max_tokens=1, images=own))[-1]
        assert last.stats is not None
        assert last.stats.n_cached >= len(ids) - 1
        different, others = other.chat_prompt(other._text(), other._chat_template(), asked(OTHER), NO_TOOLS)
        last = list(other.stream(different, max_tokens=1, images=others))[-1]
        assert last.stats is not None
        assert last.stats.n_cached < 20
    data = bytearray(state.llama_state)
    with opened(words) as other:
        at = 24 + 4 * state.n_tokens + 8 + 4  # the number of an image's rows
        data[at : at + 4] = (1).to_bytes(4, "little")
        state.llama_state = bytes(data)
        with pytest.raises(OptionError, match="damaged"):
            other.load_state(state)


def test_pages_on_the_disk_go_by_what_images_show(words: Path, tmp_path: Path) -> None:
    found = []
    for before in (None, OTHER):
        with opened(words, cache_disk=tmp_path / "pages") as llm:
            if before is not None:
                llm.vision.embed(before)
            for image in (PICTURE, OTHER):
                ids, held = llm.chat_prompt(llm._text(), llm._chat_template(), asked(image), NO_TOOLS)
                events = list(llm.stream(ids, SamplingOptions(temperature=0.0), 8, images=held))
                stats = events[-1].stats
                assert stats is not None
                found.append(("".join(event.text for event in events), stats.n_cached))
    assert [text for text, _ in found[:2]] == [text for text, _ in found[2:]]
    assert found[0][1] == 0
    assert found[1][1] < 32
    assert min(found[2][1], found[3][1]) >= 32


def test_wrong_images(llm: Llama) -> None:
    with pytest.raises(ImageError, match=r"messages\[0\]\.content\[0\]"):
        llm.create_chat_completion(asked("data:image/png;base64,AAAA"))
    with pytest.raises(ImageError):
        llm.create_chat_completion(asked("http://127.0.0.1/x.png"))
