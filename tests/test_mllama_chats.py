"""Llama 3.2 Vision in conversations and as a guard (3 11B Vision): images in messages, at the command line.


Covers api/vision.py, api/chat_images.py, safety/guard.py, safety/conversation.py, cli/guard.py.
"""

# ruff: noqa: F811 (fixtures are imported and then used as arguments)

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_letters import Result, run  # noqa: F401
from mllama_files import mllama, opened, with_words
from mllama_models import IMAGE_TOKEN, VISION
from PIL import Image

from pyllamacpu import Llama
from pyllamacpu.api.tools import NO_TOOLS
from pyllamacpu.errors import OptionError, TokenizerError
from pyllamacpu.safety import Guard
from pyllamacpu.safety.conversation import judged_part
from pyllamacpu.safety.guard_prompts import BEGIN, END
from pyllamacpu.safety.shield import Conversation, Shield, ShieldOptions
from pyllamacpu.sampling.options import SamplingOptions
from pyllamacpu.server.errors import as_http_error
from pyllamacpu.server.images import content_parts, with_pictures

__all__ = ["mllama"]
SIZE = VISION["image_size"]
PICTURE = np.random.default_rng(7).integers(0, 256, (SIZE, 2 * SIZE, 3), np.uint8)
OTHER = PICTURE[:, ::-1].copy()
GUARD = (
    "{% set role = 'Agent' if messages|length % 2 == 0 else 'User' %}<|begin_of_text|>"
    "{% set ns = namespace(contains_image=false) %}{% for message in messages %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{% set ns.contains_image = true %}{% endfor %}{% endfor %}"
    "{% if ns.contains_image %}<|image|> {% endif %}Task: '{{ role }}'\n\n"
    + BEGIN + "S1: Crimes.\n{% if not ns.contains_image %}S2: Code.\n{% endif %}" + END + "\n\n"
    "{% for message in messages %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ message['role'] }}: {{ content['text'] | trim }}\n\n{% endfor %}{% endfor %}<|eot_id|>"
)  # fmt: skip


@pytest.fixture(scope="module")
def llm(mllama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Llama]:
    with opened(with_words(mllama, tmp_path_factory.mktemp("words") / "words.gguf")) as model:
        yield model


@pytest.fixture(scope="module")
def guard_file(mllama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_words(mllama, tmp_path_factory.mktemp("guard") / "guard.gguf", GUARD)


def asked(image: Any, text: str = "what is this?") -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": text}]}]


def test_answers_are_those_of_the_image(llm: Llama) -> None:
    def answer(image: Any) -> str:
        found = llm.create_chat_completion(asked(image), max_tokens=12, temperature=0.0)
        return str(found["choices"][0]["message"]["content"])

    first, other = answer(PICTURE), answer(OTHER)
    assert first != other  # the prefix cache has told them apart
    assert answer(PICTURE) == first
    prompt = "<|start_header_id|>user<|end_header_id|>\n\n<|image|>what is this?<|eot_id|>"
    prompt += "<|start_header_id|>assistant<|end_header_id|>\n\n"
    ids = llm.tokenize(prompt.encode(), special=True)
    assert ids.count(IMAGE_TOKEN) == 1
    written: list[int] = []
    while len(written) < 12:
        token = int(llm.logits([*ids, *written], images=[PICTURE])[-1].argmax())
        if token == 2:
            break
        written.append(token)
    assert llm.detokenize(written).decode() == first


def test_the_memory_of_an_image_counts_its_keys_and_bounds_what_is_kept(llm: Llama) -> None:
    vision, keys = llm.vision, llm.engine.image_keys
    assert keys is not None

    def answered(picture: Any) -> int:
        """The bytes that it takes, of what is kept."""
        llm.create_chat_completion(asked(picture), max_tokens=1)  # type: ignore[arg-type]
        image, own = vision.embed(picture), list(keys._recent.values())[-1]
        assert image.states is not None
        return int(vision.tiles(picture).pixels.nbytes + image.states.nbytes + own.n_bytes)

    page = keys.cache.space_page_bytes[keys.space]
    for picture in (PICTURE, OTHER):
        assert vision.image_bytes(vision.tiles(picture)) == answered(picture) + page
    assert len(keys._recent) > 1 and len(llm.engine.images._recent) > 1
    vision.keep_at_most(1)
    answered(PICTURE)
    assert len(keys._recent) == len(llm.engine.images._recent) == 1
    vision.keep_at_most(1 << 40)
    for picture in (PICTURE, OTHER):
        answered(picture)
    assert len(keys._recent) == len(llm.engine.images._recent) == 2
    assert keys.limit_bytes == 1 << 30 and llm.engine.images.limit_bytes == 512 << 20


def test_a_guard_judges_words_beside_an_image(guard_file: Path) -> None:
    with opened(guard_file, n_ctx=512) as model:
        guard = Guard(model)
        assert guard.reads_images
        plain, first, other = (
            guard.check(conversation) for conversation in ("what is this?", asked(PICTURE), asked(OTHER))
        )
        assert len({plain.probability, first.probability, other.probability}) == 3
        again = guard.check([*asked(PICTURE), {"role": "assistant", "content": "a b"}], "user")
        assert again == first
        ids, images = guard.question(judged_part(asked(PICTURE)))
        assert len(images) == 1 and sum(token < 0 for token in ids) == 1
        row = model.logits([IMAGE_TOKEN if token < 0 else token for token in ids], images=[PICTURE])[-1]
        safe, unsafe = (guard._tokenizer.encode(word)[0] for word in ("safe", "unsafe"))
        if int(row[[safe, unsafe, *guard._blanks]].argmax()) < 2:
            assert first.probability == pytest.approx(1 / (1 + np.exp(row[safe] - row[unsafe])), abs=1e-6)
        model_says = Guard(model, threshold=1e-9).check(asked(PICTURE))
        assert model_says.verdict == "unsafe" and set(model_says.categories) == {"S1"}
        with pytest.raises(OptionError, match="one image at a time"):
            guard.check(
                [{"role": "user", "content": [*asked(PICTURE)[0]["content"], *asked(OTHER)[0]["content"]]}]
            )
        with pytest.raises(OptionError, match="with words beside it"):
            guard.check([{"role": "user", "content": [{"type": "image", "image": PICTURE}]}])
        with pytest.raises(OptionError, match="with words beside it"):
            guard.check(
                [
                    {"role": "user", "content": [{"type": "image", "image": PICTURE}]},
                    {"role": "assistant", "content": "hello"},
                ]
            )


def test_a_guard_without_its_tower_says_what_is_missing(guard_file: Path) -> None:
    with opened(guard_file, n_ctx=512, mmproj=False) as model:
        guard = Guard(model)
        assert not guard.reads_images
        with pytest.raises(OptionError, match="vision tower is missing"):
            guard.check(asked(PICTURE))


def test_guard_image_at_the_command_line(run: Any, guard_file: Path, tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    Image.fromarray(PICTURE).save(picture)
    options = ["guard", "-m", str(guard_file), "-p", "what is this?", "--json", "-c", "512", "-t", "1"]
    found: Result = run(*options, "--image", str(picture))
    with Guard(str(guard_file), n_ctx=512, n_threads=1) as guard:
        assert json.loads(found.out)["probability"] == guard.check(asked(PICTURE)).probability
    missing: Result = run(*options, "--image", str(tmp_path / "no.png"))
    assert missing.code == 1 and "no.png" in missing.err


def test_a_servers_guard_judges_images(guard_file: Path, tmp_path: Path) -> None:
    data = io.BytesIO()
    Image.fromarray(PICTURE).save(data, "PNG")
    url = "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()
    part = {"type": "image_url", "image_url": {"url": url}}
    parts = content_parts([part, {"type": "text", "text": "what is this?"}], "messages[0].content", "user")
    shield = Shield(ShieldOptions(guard=str(guard_file)), partial(with_pictures, fetch=None))
    shield.load()
    try:
        assert shield._guard is not None
        shield._guard.threshold = 1e-9
        asked_of = [{"role": "system", "content": "x"}, {"role": "user", "content": parts}]
        (found,) = asyncio.run(shield.judge_prompt(Conversation(asked_of, "")))
        expected = shield._guard.check(asked(PICTURE))
        assert (found.scanner, found.score) == ("guard", expected.probability)
        alone = content_parts([part], "messages[0].content", "user")
        with pytest.raises(OptionError, match="with words beside it") as refused:
            asyncio.run(shield.judge_prompt(Conversation([{"role": "user", "content": alone}], "")))
        assert as_http_error(refused.value).status == 400
    finally:
        shield.close()


def test_a_saved_state_goes_on(llm: Llama) -> None:
    first = llm.create_chat_completion(asked(PICTURE), max_tokens=4, temperature=0.0)
    state = llm.save_state()
    assert IMAGE_TOKEN in state.input_ids
    llm.reset()
    llm.load_state(state)
    assert llm.n_tokens == state.n_tokens
    penalised = llm.create_chat_completion(asked(PICTURE), max_tokens=4, repeat_penalty=1.2, temperature=0.0)
    assert penalised["usage"]["prompt_tokens"] == first["usage"]["prompt_tokens"]


def test_a_session_that_gave_its_pages_away_goes_on(llm: Llama) -> None:
    llm.create_chat_completion(asked(PICTURE), max_tokens=3, temperature=0.0)
    llm.eval([9])
    expected = llm.scores[-1].copy()
    llm.n_tokens -= 1
    assert llm._session.park()
    llm.eval([9])
    assert np.array_equal(llm.scores[-1], expected)


def test_a_state_that_is_loaded_asks_for_its_image(llm: Llama) -> None:
    """Tokens behind an image read its states, which are not part of a saved state."""
    ids, held = llm.chat_prompt(llm._text(), llm._chat_template(), asked(PICTURE), NO_TOOLS)
    list(llm.stream(ids, max_tokens=2, images=held))
    state = llm.save_state()
    path, missing = Path(llm.model_path), "without its vision tower"
    with opened(path, mmproj=False) as other, pytest.raises(OptionError, match=missing):
        other.load_state(state)
    with opened(path) as other:
        other.load_state(state)
        with pytest.raises(OptionError, match="give the prompt with its image again"):
            other.eval([20, 21])
        assert other.n_tokens == state.n_tokens
        other.vision.embed(PICTURE)
        other.eval([20, 21])
        llm.eval([20, 21])
        assert np.array_equal(other.scores[-1], llm.scores[-1])


def test_prompts_with_a_place_for_an_image_and_none_given(llm: Llama) -> None:
    """Also after an image was read, when ids below zero are looked at too."""
    llm.vision.embed(PICTURE)
    for prompt in ([3, IMAGE_TOKEN, 5], "<|image|> what is this?"):
        with pytest.raises(TokenizerError, match=f"id {IMAGE_TOKEN} stands for an image, and no image is"):
            llm.create_completion(prompt)


def test_ids_behind_the_vocabulary_stand_for_images_alone(llm: Llama) -> None:
    """Placeholders are taken with images; functions of the caller's own see ids that have logits."""
    ids, held = llm.chat_prompt(llm._text(), llm._chat_template(), asked(PICTURE), NO_TOOLS)
    placed = llm.engine.images.visible(ids)
    assert IMAGE_TOKEN in placed and llm.n_vocab() <= IMAGE_TOKEN

    def answer(tokens: list[int], images: Any) -> list[int]:
        def processor(seen: Any, row: Any) -> Any:
            row[seen] -= 0.1
            return row

        def criterion(seen: Any, row: Any) -> bool:
            return not np.isfinite(row[seen]).all()

        given = {"logits_processors": (processor,), "stopping_criteria": (criterion,)}
        options = SamplingOptions(temperature=0.0)
        events = llm.stream(tokens, options, 6, images=images, **given)
        return [token for event in events for token in event.tokens]

    assert answer(placed, [PICTURE]) == answer(placed, PICTURE) == answer(ids, held) != []
    llm.input_ids = llm.input_ids
    assert min(llm._session.tokens) < 0
