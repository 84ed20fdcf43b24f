"""Images in chats and completions of the command line: options, files on the line, saved chats.

Covers cli/images.py, cli/image.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama4_vision_models import llama4_vision, opened, with_words
from PIL import Image
from test_cli_terminal import Person
from tiny_model import write_model

from pyllamacpu.cli.chat_engine import ChatEngine
from pyllamacpu.cli.commands import run_command
from pyllamacpu.cli.images import ImageFile, dropped_images
from pyllamacpu.cli.main import main
from pyllamacpu.cli.output import Screen
from pyllamacpu.cli.repl import Repl
from pyllamacpu.cli.session import ChatSession, Text
from pyllamacpu.errors import ContextError, ImageError, OptionError, OutputError
from pyllamacpu.sampling.options import SamplingOptions

__all__ = ["llama4_vision"]

GREEDY = SamplingOptions(temperature=0.0)


@pytest.fixture(scope="module")
def folder(llama4_vision: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """words.gguf with its tower, a photo and a drawing."""
    folder = tmp_path_factory.mktemp("images")
    with_words(llama4_vision, folder)
    rng = np.random.default_rng(1)
    Image.fromarray(rng.integers(0, 256, (60, 100, 3), np.uint8)).save(folder / "a photo.png")
    Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(folder / "drawing.webp")
    return folder


@pytest.fixture
def session(folder: Path) -> Iterator[ChatSession]:
    with opened(folder / "words.gguf", chat_format="llama4") as llm:
        yield ChatSession(ChatEngine(llm), GREEDY, max_tokens=8)


def said(session: ChatSession, text: str) -> str:
    return "".join(event.text for event in session.ask(text) if isinstance(event, Text))


def test_paths_that_were_dropped_on_a_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photo, drawing = folder / "a photo.png", folder / "drawing.webp"
    escaped = str(photo).replace(" ", "\\ ")
    for word in (f"'{photo}'", f'"{photo}"', escaped, photo.as_uri()):
        assert dropped_images(f"{word} ") == ([photo], "")
        assert dropped_images(f"{word} what's this?") == ([photo], "what's this?")
        assert dropped_images(f"it isn't\tclear: {word}") == ([photo], "it isn't\tclear:")
    assert dropped_images(f"{drawing} {escaped} both? {drawing}") == ([drawing, photo, drawing], "both?")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(folder))
    assert dropped_images("./drawing.webp x ~/drawing.webp") == ([Path("drawing.webp"), drawing], "x")
    for line in (
        "drawing.webp",
        f"in {drawing} there",
        f"{folder}/none.png",
        "/help",
        "/undo",
        "'",
        "",
        "it's",
        "file://[abc what is this?",
        "what is this? file://[abc]/x.png",
    ):
        assert dropped_images(line) == ([], line)
    (folder / "text.png").write_text("no image")
    assert dropped_images(f"{folder}/text.png") == ([], f"{folder}/text.png")


class _Notes(Screen):
    """A screen that keeps what is noted."""

    def __init__(self) -> None:
        super().__init__(markdown=False)
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    error = note


def test_files_that_are_not_shown_are_said(session: ChatSession, folder: Path, tmp_path: Path) -> None:
    """In place of an unknown command, or beside the message that has their path."""
    for name, data in (
        ("a.heic", b"\0\0\0\x18ftypheic"),
        ("b.png", b"GGUF"),
        ("c.txt", b"hello"),
        ("d", b""),
    ):
        (tmp_path / name).write_bytes(data)
    screen = _Notes()
    repl = Repl(session, lambda _: "", screen)
    for line, says in (
        (f"{tmp_path}/a.heic what?", "a.heic: is a HEIC photo; JPEG, PNG"),
        (f"{tmp_path}/c.txt", "c.txt: is not an image"),
        (f"{tmp_path}/none.png what?", "none.png: no such file"),
        (f"{tmp_path} what?", "is a directory"),
    ):
        assert repl.handle(line)
        assert says in screen.notes[-1] and "a space in front sends" in screen.notes[-1]
    assert not session.turns
    session.max_tokens = 1
    for line, says in (
        (f"'{tmp_path}/a.heic' what?", "[the model is sent the path alone: "),
        (f"what is in {tmp_path}/b.png", "b.png: is a model"),
    ):
        screen.notes.clear()
        repl.handle(line)
        assert says in screen.notes[0]
    for line in (f"'{tmp_path}/c.txt' what?", f"in {tmp_path}/none.png", "and/or ./d"):
        screen.notes.clear()
        repl.handle(line)
        assert not any("path" in note or "image" in note for note in screen.notes)


def test_paths_behind_a_command_are_its_own(session: ChatSession, folder: Path) -> None:
    screen = _Notes()
    repl = Repl(session, lambda _: "", screen)
    photo = folder / "a photo.png"
    repl.handle(f"/system look at '{photo}'")
    assert session.system == f"look at '{photo}'" and not session.images
    repl.handle(f"/save '{photo}'")
    assert "is not a saved conversation" in screen.notes[-1] and not session.images
    repl.handle(f"/IMAGE '{photo}'")
    assert [image.name for image in session.images] == ["a photo.png"]


def test_a_model_without_a_tower_is_sent_paths(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "alone.gguf").write_bytes((folder / "words.gguf").read_bytes())
    screen = _Notes()
    with opened(tmp_path / "alone.gguf", chat_format="llama4") as llm:
        session = ChatSession(ChatEngine(llm), GREEDY, max_tokens=1)
        Repl(session, lambda _: "", screen).handle(f"'{folder}/a photo.png' what?")
    assert screen.notes[0] == "[the model reads no images: it is sent the path of a photo.png]"
    assert session.turns[0].user.startswith("'")


def test_images_go_with_the_next_message(session: ChatSession, folder: Path) -> None:
    without = said(session, "what is this?")
    session.clear()
    reply = run_command(session, f"/image {folder}/a photo.png")
    assert reply.text == "a photo.png: 2 x 2 tiles and the whole picture, 27 tokens, with the next message"
    assert run_command(session, "/image").text == "with the next message: a photo.png"
    first = said(session, "what is this?")
    assert first != without and session.images == [] and len(session.turns[0].images) == 1
    assert run_command(session, "/image").text == "with the next message: no image"
    said(session, "and that?")
    assert session.last.n_cached > 40  # the image is read once
    run_command(session, "/regen")
    assert session.context_used() > 60
    assert run_command(session, f"/image {(folder / 'drawing.webp').as_uri()}").text.startswith(
        "drawing.webp: "
    )
    with pytest.raises(OutputError, match="is an input too"):
        session.save(folder / "drawing.webp", force=True)
    with pytest.raises(ImageError, match=r"http://x/y\.png: URLs are not fetched here"):
        run_command(session, "/image http://x/y.png")
    run_command(session, "/image none")
    assert session.images == []
    for bad, reason in ((f"{folder}/none.png", "no such file"), (f"{folder}/words.gguf", "is a model")):
        with pytest.raises(ImageError, match=reason):
            run_command(session, f"/image {bad}")


def test_an_answer_again_sees_the_image(session: ChatSession, folder: Path) -> None:
    session.attach(folder / "drawing.webp")
    first = said(session, "what is this?")
    again = "".join(event.text for event in session.regenerate() if isinstance(event, Text))
    assert again == first and session.turns[0].images


def test_an_image_is_looked_at_once(session: ChatSession, folder: Path) -> None:
    looked: list[int] = []
    session.engine.on_image = lambda: looked.append(len(session.turns))
    session.attach(folder / "drawing.webp")
    for _ in range(2):
        said(session, "what is this?")
    session.attach(folder / "a photo.png")
    said(session, "and this?")
    assert looked == [0, 2]


def test_a_message_that_does_not_fit_keeps_its_images(session: ChatSession, folder: Path) -> None:
    session.attach(folder / "drawing.webp")
    with pytest.raises(ContextError):
        said(session, "x y " * 300)
    assert len(session.images) == 1 and session.turns == []


def test_saved_chats_hold_their_images(session: ChatSession, folder: Path, tmp_path: Path) -> None:
    session.attach(folder / "a photo.png")
    first, path = said(session, "what is this?"), tmp_path / "chat.json"
    session.save(path)
    session.load(path)
    (image,) = session.turns[0].images
    assert image.data == (folder / "a photo.png").read_bytes()
    assert session.turns[0].user == "what is this?" and session.turns[0].assistant == first
    again = "".join(event.text for event in session.regenerate() if isinstance(event, Text))
    assert again == first
    content = json.loads(path.read_text())["messages"][0]["content"]
    assert content[0]["image_url"]["url"].startswith("data:image/png;base64,")
    for bad in ([{"type": "image_url", "image_url": "http://x/y.png"}], [{"type": "audio"}], [3], {}):
        path.write_text(json.dumps([{"role": "user", "content": bad}]))
        with pytest.raises(OptionError, match="message 1"):
            session.load(path)


def test_a_saved_chat_never_replaces_an_image(session: ChatSession, folder: Path) -> None:
    session.attach(folder / "drawing.webp")
    with pytest.raises(Exception, match="is an input too"):
        session.save(folder / "drawing.webp", force=True)


def run(capsys: pytest.CaptureFixture[str], *args: Any) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main([str(arg) for arg in args])
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def test_options(folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    usual = ("-m", folder / "words.gguf", "-c", "256", "-n", "6", "--temp", "0")
    photo, drawing = folder / "a photo.png", folder / "drawing.webp"
    chat = ("chat", *usual, "-st", "-p", "what is this?")
    found = [run(capsys, *chat, *more) for more in ((), ("--image", photo), ("--image", drawing))]
    assert [code for code, _, _ in found] == [0, 0, 0] and len({out for _, out, _ in found}) == 3
    both = run(capsys, *chat, "--image", photo, "--image", drawing)
    assert run(capsys, *chat, "--image", f"{photo},{drawing}") == both
    complete = ("complete", *usual, "--image", drawing, "--no-display-prompt", "-p")
    first = run(capsys, *complete, "abc")
    assert first[0] == 0 and first == run(capsys, *complete, "<__media__>abc")
    assert run(capsys, *complete, "abc<|image|>")[1] != first[1]
    assert run(capsys, *complete, "abc", "--suffix", "x")[0] == 2

    assert run(capsys, *chat, "--image", photo.as_uri())[1] == found[1][1]
    for odd, why in (
        ("http://example.com/x.png", "http://example.com/x.png: URLs are not fetched here; download it"),
        ("s3://bucket/x.png", "s3://bucket/x.png: s3:// is not read"),
        ("", "'': no such file"),
    ):
        code, _, err = run(capsys, *chat, "--image", odd)
        assert code == 1 and err.startswith(f"error: {why}"), err
        code, _, err = run(capsys, "image", "-m", folder / "words.gguf", odd)
        assert code == 1 and err.startswith(f"error: {why}"), err
    code, _, err = run(capsys, *chat, "--image", folder / "words.gguf")
    assert code == 1 and "words.gguf: is a model; JPEG, PNG" in err
    text = write_model(tmp_path / "text.gguf")
    code, _, err = run(capsys, "chat", "-m", text, "-st", "-p", "x", "--image", photo)
    assert code == 1 and "llama models read no images" in err
    alone = tmp_path / "alone.gguf"
    alone.write_bytes((folder / "words.gguf").read_bytes())
    code, _, err = run(capsys, "chat", "-m", alone, "-st", "-p", "x", "--image", photo)
    assert code == 1 and "vision tower is missing" in err and "mmproj" in err
    named = ("--mmproj", folder / "mmproj-words.gguf")
    assert run(capsys, *chat[:2], alone, *chat[3:], "--image", photo, *named)[1] == found[1][1]


def test_a_tower_elsewhere_is_named_to_every_command(
    folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """With the same words where it is missing or another model's."""
    model, photo, tower = tmp_path / "words.gguf", folder / "a photo.png", tmp_path / "tower.gguf"
    model.write_bytes((folder / "words.gguf").read_bytes())
    tower.write_bytes((folder / "mmproj-words.gguf").read_bytes())
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    commands = [
        ("image", photo),
        ("complete", "-p", "a", "-n", 1, "--image", photo),
        ("chat", "-st", "-p", "a", "-n", 1, "--image", photo, "--chat-template", template),
        ("bench", "--image", "-r", 1, "--no-limits", "--no-progress"),
        ("guard", "-p", "a", "--image", photo),
        ("serve", "--port", 0),
        ("batch", write_lines(tmp_path / "in.jsonl", photo), tmp_path / "out.jsonl"),
    ]
    for command, *given in commands:
        args = [command, *given, "-m", model]
        for wrong in (tmp_path / "none.gguf", folder / "words.gguf"):
            says = "no such file" if wrong.name == "none.gguf" else "holds no vision tower"
            code, _, error = run(capsys, *args, "--mmproj", wrong)
            assert code == 1 and f"{wrong}" in error and says in error, (command, error)
        if command in ("image", "complete", "chat", "bench"):
            assert "its vision tower is missing: put the file" in run(capsys, *args)[2]
            assert run(capsys, *args, "--mmproj", tower)[0] == 0, command
    code, _, error = run(capsys, "bench", "-m", model, "--mmproj", tower)
    assert code == 2 and "--mmproj is the tower that --image measures" in error
    code, _, error = run(capsys, "bench", "-m", tower, "--image", "--mmproj", tower)
    assert code == 1 and "is a vision tower itself" in error


def write_lines(path: Path, photo: Path) -> Path:
    """A file of a batch with one request, which shows the photo."""
    parts = [{"type": "image_url", "image_url": {"url": ImageFile.read(photo).url}}]
    body = {"messages": [{"role": "user", "content": parts}], "max_tokens": 2, "temperature": 0}
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
    path.write_text(json.dumps(line) + "\n")
    return path


def test_a_batch_with_images(folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The model sees them, within --image-memory; of hosts that are listed, they may be URLs."""
    source = write_lines(tmp_path / "in.jsonl", folder / "a photo.png")
    text = source.read_text()
    url = {"url": "http://127.0.0.1:9/x.png"}
    elsewhere = json.loads(text.replace('"a"', '"b"'))
    elsewhere["body"]["messages"][0]["content"][0]["image_url"] = url
    source.write_text(text + json.dumps(elsewhere) + "\n")

    def answers(*more: Any) -> dict[str, Any]:
        target = tmp_path / "out.jsonl"
        target.unlink(missing_ok=True)
        args = ("batch", source, target, "-m", folder / "words.gguf", "-c", 200, *more)
        assert run(capsys, *args)[0] == 0
        lines = map(json.loads, target.read_text().splitlines())
        return {line["custom_id"]: line["response"]["body"] for line in lines}

    found = answers()
    assert found["a"]["usage"]["prompt_tokens_details"]["image_tokens"] == 5 * 4
    assert "allow the host with --allow-image-hosts" in found["b"]["error"]["message"]
    found = answers("--allow-image-hosts", "127.0.0.1:9", "--image-memory", "1KB")
    assert "--image-memory" in found["a"]["error"]["message"]
    assert "not a public address" in found["b"]["error"]["message"]


def test_what_an_image_is_to_a_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo, drawing, model = folder / "a photo.png", folder / "drawing.webp", folder / "words.gguf"
    code, out, _ = run(capsys, "image", photo, drawing, "-m", model, "-t", "1")
    assert code == 0 and out.startswith("a photo.png: PNG, ")
    for line in ("100 x 60 pixels", "2 x 2 tiles and the whole picture, of 56 x 56", "27 in the prompt"):
        assert line in out
    costs = [float(line.split()[1]) for line in out.splitlines() if line.split()[0] == "cost"]
    assert costs[0] == pytest.approx(5 * costs[1], rel=0.01)  # tiles
    code, out, _ = run(capsys, "image", photo, "-m", model, "--no-run", "--json")
    facts = json.loads(out)
    assert (facts["rows"], facts["cols"], facts["n_tiles"], facts["n_tokens"]) == (2, 2, 5, 27)
    assert "seconds" not in facts
    assert run(capsys, "image", model, "-m", model)[0] == 1


def test_an_image_is_shown_to_a_model_with_other_metadata(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    usual = ("image", folder / "drawing.webp", "-m", folder / "words.gguf", "--no-run")
    expected = run(capsys, *usual)
    assert expected[0] == 0
    assert run(capsys, *usual, "--override-kv", "llama4.rope.freq_base=float:5e5") == expected
    for key, value, says in (
        ("llama4.embedding_length", "int:192", "width"),
        ("llama4.rope.freq_bsae", "float:5e5", "nothing reads it"),
        ("tokenizer.ggml.bos_tokn", "int:1", "nothing reads it"),
        ("llama4.vision.block_count", "int:1", "vision tower cannot be changed"),
    ):
        code, _, err = run(capsys, *usual, "--override-kv", f"{key}={value}")
        assert code == 1 and says in err, (key, err)


def test_what_a_chat_has_read_is_never_saved_over(folder: Path, tmp_path: Path) -> None:
    """Also what no option names as a path: an image by its URL, and the tower beside the model."""
    args = ["chat", "-m", str(folder / "words.gguf"), "-c", "256", "-n", "4", "--chat-template", "llama4"]
    photo, tower = folder / "a photo.png", folder / "mmproj-words.gguf"
    before = photo.read_bytes(), tower.read_bytes()
    person = Person([*args, "--image", photo.as_uri()], 300, tmp_path / "home")
    try:
        for path in (photo, tower):
            person.wait_for(">>>")
            person.type(f"/save --force '{path}'\r")
            person.wait_for("is an input too")
    finally:
        person.process.kill()
        person.process.wait()
    assert (photo.read_bytes(), tower.read_bytes()) == before


def test_a_file_dropped_on_a_terminal(folder: Path, tmp_path: Path) -> None:
    args = ["chat", "-m", str(folder / "words.gguf"), "-c", "256", "-n", "4", "--temp", "0"]
    person = Person([*args, "--chat-template", "llama4"], 100, tmp_path / "home")
    try:
        person.wait_for(">>>")
        person.type(f"'{folder}/a photo.png' \r")
        person.wait_for("2 x 2 tiles and the whole picture, 27 tokens")
        person.wait_for(">>>")
        person.type("what is this?\r")
        person.wait_for("tokens/s")
        person.wait_for(">>>")
        assert person.leave() == 0
    finally:
        person.process.kill()
        person.process.wait()


def test_names_of_images() -> None:
    assert ImageFile("/a/b.png", b"x").name == "b.png"
    assert "data" not in repr(ImageFile("b.png", b"x" * 1000))
