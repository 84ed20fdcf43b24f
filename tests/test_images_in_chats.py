"""Images in conversations, sessions and caches of keys and values. Covers api/chat_images.py,
api/image_calls.py, api/vision.py, engine/images.py.
"""

from __future__ import annotations

import base64
import io
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
    with opened(words, mmproj=False) as other, pytest.raises(OptionError, match="without its vision tower"):
        other.load_state(state)
    data = bytearray(state.llama_state)
    with opened(words) as other:
        at = 24 + 4 * state.n_tokens + 8 + 4  # the number of an image's rows
        data[at : at + 4] = (1).to_bytes(4, "little")
        state.llama_state = bytes(data)
        with pytest.raises(OptionError, match="damaged"):
            other.load_state(state)


def test_a_session_that_gave_its_pages_away_reads_its_images_again(llm: Llama) -> None:
    ids, held = llm.chat_prompt(llm._text(), llm._chat_template(), asked(PICTURE), NO_TOOLS)
    list(llm.stream(ids, max_tokens=3, images=held))
    seen = llm.input_ids.tolist()
    llm.eval([20])
    expected = llm.scores[-1].copy()
    llm.n_tokens -= 1
    assert llm._session.park() and llm.input_ids.tolist() == seen
    llm.eval([20])
    assert np.array_equal(llm.scores[-1], expected)


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


def test_criteria_and_processors_see_ids_of_the_vocabulary(llm: Llama) -> None:
    """The same ids: those of text, which may index an array of logits."""
    ids, held = llm.chat_prompt(llm._text(), llm._chat_template(), asked(PICTURE), NO_TOOLS)
    seen: list[list[int]] = []

    def processor(tokens: np.ndarray, row: np.ndarray) -> np.ndarray:
        seen.append(tokens.tolist())
        row[tokens] -= 0.1
        return row

    def criterion(tokens: np.ndarray, row: np.ndarray) -> bool:
        seen.append(tokens.tolist())
        return False

    list(
        llm.stream(
            ids, max_tokens=3, images=held, logits_processors=(processor,), stopping_criteria=(criterion,)
        )
    )
    text = [token for token in ids if token >= 0]
    assert len(seen) >= 2
    assert seen[0] == seen[1] == text
    assert all(found[: len(text)] == text for found in seen)
    seen.clear()
    next(llm.generate([20, 21], reset=False, stopping_criteria=criterion))
    assert min(seen[0]) >= 0
    assert seen[0][-2:] == [20, 21]


def test_input_ids_written_back_keep_their_images(llm: Llama) -> None:
    ids, held = llm.chat_prompt(llm._text(), llm._chat_template(), asked(PICTURE), NO_TOOLS)
    list(llm.stream(ids, max_tokens=3, images=held))
    before = list(llm._session.tokens)
    changed = llm.input_ids
    assert changed.min() >= 0
    changed[llm.n_tokens - 1] = 20
    llm.input_ids = changed
    assert llm._session.tokens == [*before[:-1], 20]


def test_methods_of_a_programs_own_are_given_no_images(words: Path) -> None:
    class OwnSample(Llama):
        def sample(self, *args: Any, **kwargs: Any) -> int:
            return super().sample(*args, **kwargs)

    class OwnCompletion(Llama):
        def create_completion(self, *args: Any, **kwargs: Any) -> Any:
            return super().create_completion(*args, **kwargs)

    for kind in (OwnSample, OwnCompletion):
        with kind(str(words), n_ctx=256) as own, pytest.raises(OptionError, match="a method that replaces"):
            own.create_chat_completion(asked(PICTURE), max_tokens=2)


def test_an_image_that_was_let_go_is_read_again(words: Path) -> None:
    with opened(words, n_ctx=512) as llm:
        engine = llm.engine
        engine.images.limit_bytes = 1  # none but the newest
        first = llm.create_chat_completion(asked(PICTURE), max_tokens=4, temperature=0.0)
        digest = llm.vision.embed(PICTURE).digest
        llm.create_chat_completion(asked(OTHER), max_tokens=4, temperature=0.0)
        llm._driver.prefixes.clear()
        assert engine.images.get(digest) is None
        assert (
            llm.create_chat_completion(asked(PICTURE), max_tokens=4, temperature=0.0)["choices"]
            == (first["choices"])
        )


def test_drafts_are_not_made_behind_images(words: Path) -> None:
    """Those who make them know the vocabulary's ids only."""
    asked_for: list[int] = []

    def draft(ids: np.ndarray, **_: object) -> np.ndarray:
        asked_for.append(int(ids.min()))
        return np.array([20], np.intc)

    with opened(words, draft_model=draft) as llm:
        ids, held = llm.chat_prompt(llm._text(), llm._chat_template(), asked(PICTURE), NO_TOOLS)
        list(llm.stream(ids, max_tokens=4, images=held))
        list(llm.stream(ids, max_tokens=4))  # its rows are here
        assert asked_for == []
        list(llm.stream([1, 20, 21], max_tokens=4))
        assert asked_for


def test_images_of_another_model(llm: Llama, words: Path) -> None:
    ids, held = llm.chat_prompt(llm._text(), llm._chat_template(), asked(PICTURE), NO_TOOLS)
    with opened(words) as other:
        other.vision.embed(OTHER)
        with pytest.raises(OptionError, match="embedded by another model"):
            list(other.stream(ids, max_tokens=2, images=held))


def test_arrays_of_tiles_in_conversations(llm: Llama) -> None:
    tiles = llm.vision.tiles(PICTURE)
    given = {"pixel_values": tiles.pixels, "aspect_ratios": [[tiles.rows, tiles.cols]]}
    assert prompt(llm, asked(given)) == prompt(llm, asked(PICTURE))
    for ratio in ([[2, 3]], [[-2, -2]], "ab", [[1], [2, 3]]):
        with pytest.raises(ImageError, match="aspect_ratios"):
            prompt(llm, asked({**given, "aspect_ratios": ratio}))
    one = {"pixel_values": tiles.pixels[:1], "aspect_ratios": [[1, 1]]}
    assert prompt(llm, asked(one)) == prompt(llm, asked(tiles.pixels[:1]))
    with pytest.raises(ImageError, match="rows and columns of 1 tiles"):
        prompt(llm, asked({**one, "aspect_ratios": [[2, 2]]}))
    with pytest.raises(ImageError, match="must say how its 5 tiles lie"):
        prompt(llm, asked(tiles.pixels))


def test_wrong_images(llm: Llama) -> None:
    with pytest.raises(ImageError, match=r"messages\[0\]\.content\[0\]"):
        llm.create_chat_completion(asked("data:image/png;base64,AAAA"))
    with pytest.raises(ImageError):
        llm.create_chat_completion(asked("http://127.0.0.1/x.png"))
