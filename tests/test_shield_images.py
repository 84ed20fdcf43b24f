"""Images before a shield: a guard that sees judges them, wherever it is asked; without one that is told.

Covers safety/shield.py.
"""

# ruff: noqa: F811 (fixtures are imported and then used as arguments)

from __future__ import annotations

import asyncio
import base64
import io
from pathlib import Path
from typing import Any

import pytest
from cli_letters import Result, run  # noqa: F401
from llama4_vision_models import llama4_vision
from llama4_vision_models import with_words as llama4_with_words
from mllama_files import mllama, with_words
from PIL import Image
from serving import serving, wait_until
from test_cli_terminal import Person
from test_llama4_guard import GUARD as GUARD_4
from test_mllama_chats import GUARD, PICTURE, asked
from test_server_batch import answers, request, write
from test_server_batch import run as run_batch
from tiny_model import write_model

from pyllamacpu.errors import UnseenImageError
from pyllamacpu.safety import Guard, Verdict
from pyllamacpu.safety.shield import Conversation, Shield, ShieldOptions

__all__ = ["llama4_vision", "mllama"]


@pytest.fixture(scope="module")
def guard_file(mllama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_words(mllama, tmp_path_factory.mktemp("guard") / "guard.gguf", GUARD)


@pytest.fixture(scope="module")
def model(mllama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_words(mllama, tmp_path_factory.mktemp("words") / "words.gguf")


def png() -> bytes:
    data = io.BytesIO()
    Image.fromarray(PICTURE).save(data, "PNG")
    return data.getvalue()


def sent() -> list[dict[str, Any]]:
    url = "data:image/png;base64," + base64.b64encode(png()).decode()
    image = {"type": "image_url", "image_url": {"url": url}}
    return [{"role": "user", "content": [image, {"type": "text", "text": "what is this?"}]}]


def test_a_server_and_a_batch_judge_images(model: Path, guard_file: Path, tmp_path: Path) -> None:
    """`--shield guard=MODEL` is the same as `--guard MODEL`."""
    with Guard(str(guard_file), threshold=1e-9) as guard:
        expected = guard.check(asked(PICTURE))
    assert expected == ("unsafe", ("S1",), expected.probability)
    options = ShieldOptions(("regex",), guard=str(guard_file), threshold=1e-9)
    with serving(("words", model), shield=options) as found:
        wait_until(lambda: found.get("/health").status_code == 200)
        choice = found.post("/v1/chat/completions", messages=sent(), max_tokens=2).json()["choices"][0]
        assert choice["finish_reason"] == "content_filter"
        (finding,) = choice["shield"]
        assert (finding["scanner"], finding["reason"]) == ("guard", "S1")
        assert finding["score"] == pytest.approx(expected.probability, abs=1e-6)
        found.wait_idle()
    source = write(tmp_path / "in.jsonl", request("one", messages=sent(), max_tokens=2))
    given = f"guard={guard_file}"
    result = run_batch(model, source, tmp_path / "out.jsonl", "--shield", given, "--guard-threshold", "1e-9")
    assert result.exit_code == 0, result.output
    (line,) = answers(tmp_path / "out.jsonl")
    assert line["response"]["body"]["choices"][0]["shield"][0]["score"] == finding["score"]


@pytest.mark.parametrize("command", ["chat", "complete"])
def test_images_at_the_command_line(
    run: Any, model: Path, guard_file: Path, tmp_path: Path, command: str
) -> None:
    picture = tmp_path / "picture.png"
    picture.write_bytes(png())
    usual = [command, "-m", str(model), "-c", "256", "-t", "1", "-n", "2", "--image", str(picture)]
    usual += ["-p", "what is this?"]
    refused: Result = run(*usual, "--guard", str(guard_file), "--guard-threshold", "1e-9")
    assert refused.code == 3 and "the message is not answered (guard: S1)" in refused.err
    unseen: Result = run(*usual, "--shield", "regex")
    assert unseen.code == 0 and "shield: not scanned: images" in unseen.err
    without = [word for word in usual if word not in ("--image", str(picture))]
    alone: Result = run(*without, "--shield", "regex")
    assert alone.code == 0 and "not scanned" not in alone.err  # no image can come


def test_a_conversation_says_what_is_not_scanned_of_what_its_model_reads(model: Path, tmp_path: Path) -> None:
    text = write_model(tmp_path / "text.gguf", n_ctx=256)
    for path, notes in ((model, 1), (text, 0)):
        args = ["chat", "-m", str(path), "-c", "256", "-t", "1", "--shield", "regex"]
        person = Person([*args, "--chat-template", "llama3"], 100, tmp_path / "home")
        try:
            shown = person.wait_for(">>>")
            assert shown.count("shield: not scanned: images") == notes, shown
            assert person.leave() == 0
        finally:
            person.process.kill()
            person.process.wait()


def test_guard_4_is_shown_the_image(llama4_vision: Path, tmp_path: Path) -> None:
    path = llama4_with_words(llama4_vision, tmp_path, GUARD_4)
    shield = Shield(ShieldOptions(guard=str(path), threshold=1 - 1e-9))
    shield.load()
    seen: list[Verdict] = []
    assert shield._guard is not None
    check = shield._guard.check

    def spy(messages: Any) -> Verdict:
        seen.append(check(messages))
        return seen[-1]

    shield._guard.check = spy  # type: ignore[assignment,method-assign]
    for messages in (asked(PICTURE), asked(PICTURE[::-1].copy()), asked(PICTURE)):
        assert asyncio.run(shield.judge_prompt(Conversation(messages))) == ()
    assert seen[0] == seen[2] != seen[1]
    shield.close()


def test_images_that_nobody_looks_at_are_noted_once_when_they_come(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "pyllamacpu")
    shield = Shield(ShieldOptions(("regex",)))
    shield.load()
    for conversation in ([{"role": "user", "content": "hello"}], asked(PICTURE), asked(PICTURE)):
        assert asyncio.run(shield.judge_prompt(Conversation(conversation))) == ()
        has_image = conversation[0]["content"] != "hello"
        assert caplog.text.count("shield: not scanned: images") == has_image
    shield.close()


@pytest.mark.parametrize("reads_images", [True, False])
def test_a_server_notes_images_at_its_start_where_its_model_reads_them(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, reads_images: bool
) -> None:
    caplog.set_level("INFO", "pyllamacpu")
    path = model if reads_images else write_model(tmp_path / "text.gguf")
    with serving(("own", path), shield=ShieldOptions(("regex",))) as running:
        wait_until(lambda: running.get("/health").status_code == 200)
        assert caplog.text.count("shield: not scanned") == reads_images


def test_what_a_guard_does_not_read_is_refused(tmp_path: Path) -> None:
    own = write_model(
        tmp_path / "g.gguf", general__name="Llama Guard 3", tokenizer__chat_template=None, n_ctx=2048
    )
    shield = Shield(ShieldOptions(guard=str(own)))
    shield.load()
    with pytest.raises(UnseenImageError, match="reads no images"):
        asyncio.run(shield.judge_prompt(Conversation(asked(PICTURE))))
    assert shield.not_scanned(with_images=True) == []  # such an image does not pass
    shield.close()
    assert "images" in Shield(ShieldOptions(("regex",))).not_scanned(with_images=True)[0]
    assert Shield(ShieldOptions(("regex",))).not_scanned(with_images=False) == []
