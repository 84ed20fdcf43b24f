"""Images in requests of every dialect. Covers server/images.py, engine/leaving.py, api/chat_images.py."""

from __future__ import annotations

import json
import re
import socket
import threading
from base64 import b64encode
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama4_vision_models import llama4_vision, with_words
from PIL import Image
from serving import Running, head, serving, wait_until
from tiny_model import write_model

from pyllamacpu.engine import tower
from pyllamacpu.engine.tower import Tower
from pyllamacpu.errors import Abandoned, ImageError, UnseenImageError
from pyllamacpu.images.fetch import Fetcher
from pyllamacpu.safety.shield import judged_messages
from pyllamacpu.server.images import ImageAccess, SentImage, content_parts
from pyllamacpu.server.prompts import Text, conversation_of

__all__ = ["llama4_vision"]

PICTURE = np.random.default_rng(7).integers(0, 256, (60, 100, 3), np.uint8)
TEXT = "what is this?"


def png(pixels: np.ndarray[Any, Any] = PICTURE) -> bytes:
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


BASE64 = b64encode(png()).decode()
URL = f"data:image/png;base64,{BASE64}"


@pytest.fixture(scope="module")
def running(llama4_vision: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("served")
    words, text = with_words(llama4_vision, folder), write_model(folder / "text.gguf")
    with serving(("words", words), ("text", text)) as found:
        wait_until(lambda: found.get("/health").status_code == 200)
        yield found


def asked(part: Any, text: str = TEXT) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [part, {"type": "text", "text": text}]}]


def openai_part(url: Any = URL, **more: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url, **more}}


def answer(running: Running, path: str, **body: Any) -> Any:
    response = running.post(path, **body)
    assert response.status_code == 200, response.text
    return response.json()


def chat(running: Running, messages: Any) -> tuple[str, int]:
    """(text, tokens of the prompt) of an answer."""
    found = answer(running, "/v1/chat/completions", messages=messages, max_tokens=6, temperature=0)
    return found["choices"][0]["message"]["content"], found["usage"]["prompt_tokens"]


def test_every_dialect_shows_the_model_the_same_image(running: Running) -> None:
    text, n_prompt = chat(running, asked(openai_part()))
    other, _ = chat(running, asked(openai_part(f"data:;base64,{b64encode(png(255 - PICTURE)).decode()}")))
    assert text != other and n_prompt == chat(running, asked(openai_part(detail="low")))[1]
    assert n_prompt > chat(running, [{"role": "user", "content": TEXT}])[1] + 20
    greedy = {"temperature": 0.0}

    block = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": BASE64}}
    found = answer(running, "/v1/messages", messages=asked(block), max_tokens=6, **greedy)
    usage = found["usage"]
    assert found["content"][0]["text"] == text
    assert usage["input_tokens"] + usage["cache_read_input_tokens"] == n_prompt
    assert answer(running, "/v1/messages/count_tokens", messages=asked(block)) == {"input_tokens": n_prompt}

    items = [{"type": "input_image", "image_url": URL}, {"type": "input_text", "text": TEXT}]
    item = {"role": "user", "content": items}
    found = answer(running, "/v1/responses", input=[item], max_output_tokens=6, **greedy)
    assert found["output"][0]["content"][0]["text"] == text
    counted = answer(running, "/v1/responses/input_tokens", input=[item])
    assert counted["input_tokens"] == n_prompt == found["usage"]["input_tokens"]

    options = {"temperature": 0, "num_predict": 6}
    message = {"role": "user", "content": TEXT, "images": [BASE64]}
    found = answer(running, "/api/chat", model="words", messages=[message], stream=False, options=options)
    assert found["message"]["content"] == text and found["prompt_eval_count"] == n_prompt
    alone = [{"role": "user", "images": [BASE64]}, {"role": "user", "content": "", "images": [BASE64]}]
    shown = [
        answer(running, "/api/chat", model="words", messages=[own], stream=False, options=options)
        for own in alone
    ]
    assert shown[0]["message"] == shown[1]["message"]
    assert shown[0]["prompt_eval_count"] == n_prompt - len(TEXT)
    body = {"model": "words", "prompt": TEXT, "images": [BASE64], "stream": False, "options": options}
    assert answer(running, "/api/generate", **body)["response"] == text

    prompt = answer(running, "/apply-template", messages=asked(openai_part()))["prompt"]
    media = {"prompt_string": prompt.replace("<|image|>", "<__media__>"), "multimodal_data": [BASE64]}
    found = answer(running, "/completion", prompt=media, n_predict=6, **greedy)
    assert found["content"] == text and found["tokens_evaluated"] == n_prompt
    assert found["prompt"].count("<|patch|>") == 20


def test_what_images_cost_is_told(running: Running) -> None:
    """The tower's seconds by the first answer to an image, its tokens by all of them."""
    part = openai_part(f"data:image/png;base64,{b64encode(png(PICTURE // 2)).decode()}")
    body = {"messages": asked(part), "max_tokens": 2, "temperature": 0}
    details = answer(running, "/v1/chat/completions", **body)["usage"]["prompt_tokens_details"]
    assert details["image_tokens"] == 20
    shown = running.get("/metrics").text.splitlines()
    told = {name: float(value) for name, value in (line.split() for line in shown if line.count(" ") == 1)}
    assert told["pyllamacpu_image_tokens_total"] >= 20 and told["pyllamacpu_image_seconds_total"] > 0

    sent = b64encode(png(PICTURE // 3)).decode()
    media = {"prompt_string": "<__media__> a", "multimodal_data": [sent]}
    first, again = (answer(running, "/completion", prompt=media, n_predict=2)["timings"] for _ in range(2))
    assert first["image_n"] == again["image_n"] > 0
    assert first["image_ms"] > 0 == again["image_ms"]
    assert "image_n" not in answer(running, "/completion", prompt="a", n_predict=2)["timings"]


def test_who_leaves_ends_the_tower(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two slices of its ops, also when it waits for another image's."""
    monkeypatch.setattr(tower, "_SLICE_OPERATIONS", 1)
    monkeypatch.setattr(tower, "_PAUSE", 0.5)  # a run takes long
    began, ended = threading.Event(), []
    run = Tower._run

    def noted(self: Tower, *arguments: Any) -> Any:
        began.set()
        try:
            return run(self, *arguments)
        except Abandoned:
            ended.append(True)
            raise

    monkeypatch.setattr(Tower, "_run", noted)
    sent = []
    for shade in (4, 5):
        url = f"data:image/png;base64,{b64encode(png(PICTURE // shade)).decode()}"
        body = json.dumps({"messages": asked(openai_part(url)), "stream": True}).encode()
        lines = ("Host: localhost", "Content-Type: application/json", f"Content-Length: {len(body)}")
        connection = socket.create_connection(("127.0.0.1", running.port))
        connection.sendall(head(*lines, path="/v1/chat/completions", method="POST") + body)
        sent.append(connection)
    assert began.wait(60)
    for connection in sent:
        connection.close()
    running.wait_idle()
    wait_until(lambda: bool(ended))
    monkeypatch.undo()
    assert chat(running, asked(openai_part()))  # the threads for images are free again


def test_images_in_results_of_tools(running: Running) -> None:
    """They are what the user shows after the results."""
    block = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": BASE64}}
    sun, words = {"type": "text", "text": "sun"}, {"type": "text", "text": TEXT}
    result = {"type": "tool_result", "tool_use_id": "a"}

    def told(*last: Any) -> tuple[str, int]:
        turns = [
            {"role": "user", "content": TEXT},
            {"role": "assistant", "content": "so"},
            {"role": "user", "content": [*last]},
        ]
        found = answer(running, "/v1/messages", messages=turns, max_tokens=6, temperature=0.0)
        n_prompt = answer(running, "/v1/messages/count_tokens", messages=turns)["input_tokens"]
        return found["content"][0]["text"], n_prompt

    inside = told({**result, "content": [sun, block]}, words)
    assert inside == told({**result, "content": [sun]}, block, words)
    assert told({**result, "content": [block]}) == told({**result, "content": ""}, block)
    assert inside != told({**result, "content": [sun]}, words)
    body = {"role": "user", "content": [{**result, "content": [sun, block, {"type": "video"}]}]}
    refused = running.post("/v1/messages", messages=[body], max_tokens=6)
    assert refused.status_code == 400 and "video" in refused.text


def test_images_in_results_of_tools_in_other_dialects(running: Running) -> None:
    """As in Anthropic's: they begin what the user says after the results, or are all that is said."""
    asks = [{"role": "user", "content": TEXT}, {"role": "assistant", "content": "so"}]
    sun, more = {"type": "text", "text": "sun"}, {"role": "user", "content": "more"}

    def result(content: Any, **fields: Any) -> dict[str, Any]:
        return {"role": "tool", "tool_call_id": "a", "content": content, **fields}

    inside = [*asks, result([sun, openai_part()]), result("moon")]
    alone = [*asks, result("sun"), result("moon"), {"role": "user", "content": [openai_part()]}]
    with_more = [*alone[:-1], {"role": "user", "content": [openai_part(), {"type": "text", "text": "more"}]}]
    assert chat(running, inside) == chat(running, alone) != chat(running, alone[:-1])
    assert chat(running, [*inside, more]) == chat(running, with_more)
    later = {"role": "assistant", "content": "x"}
    assert chat(running, [*inside, later, more]) == chat(running, [*alone, later, more])

    options = {"temperature": 0, "num_predict": 6}
    own = [*asks, result("sun", images=[BASE64]), result("moon")]
    found = answer(running, "/api/chat", model="words", messages=own, stream=False, options=options)
    assert (found["message"]["content"], found["prompt_eval_count"]) == chat(running, alone)

    output = {"type": "function_call_output", "call_id": "a"}
    image, words = {"type": "input_image", "image_url": URL}, {"type": "input_text", "text": "sun"}
    moved = [{**output, "output": "sun"}, {"role": "user", "content": [image]}]
    answers = [
        answer(running, "/v1/responses", input=[*asks, *last], max_output_tokens=6, temperature=0)
        for last in ([{**output, "output": [words, image]}], moved, moved[:1])
    ]
    prompts = [found["usage"]["input_tokens"] for found in answers]
    assert prompts[0] == prompts[1] > prompts[2]
    assert answers[0]["output"][0]["content"] == answers[1]["output"][0]["content"]


def test_where_images_stand_in_a_text(running: Running) -> None:
    """Before it, unless it says where."""
    body = {"model": "words", "stream": False, "raw": True, "options": {"temperature": 0, "num_predict": 5}}
    first = answer(running, "/api/generate", **body, prompt="abc", images=[BASE64])
    assert (
        answer(running, "/api/generate", **body, prompt="<__media__>abc", images=[BASE64])["response"]
        == (first["response"])
    )
    later = answer(running, "/api/generate", **body, prompt="abc<|image|>", images=[BASE64])
    assert later["prompt_eval_count"] == first["prompt_eval_count"]
    body["prompt"] = "<|image|> and <|image|>"
    assert running.post("/api/generate", **body, images=[BASE64]).status_code == 400


def test_a_stream(running: Running) -> None:
    with running.client() as client:
        body = {"messages": asked(openai_part()), "max_tokens": 4, "stream": True}
        with client.stream("POST", "/v1/chat/completions", json=body) as response:
            assert response.status_code == 200
            assert list(response.iter_lines())[-2] == "data: [DONE]"


def test_what_models_read_is_shown(running: Running) -> None:
    assert answer(running, "/api/show", model="words")["capabilities"][-1] == "vision"
    assert "vision" not in answer(running, "/api/show", model="text")["capabilities"]
    assert running.get("/props").json()["modalities"]["vision"] is True


REFUSED = [
    (openai_part("data:image/png;base64,AAAA"), "messages[0].content[0]: is not an image"),
    (openai_part(URL[:-400]), "messages[0].content[0]: is damaged"),
    (openai_part("http://127.0.0.1:1/x.png"), "URLs are not fetched here"),
    (openai_part("/etc/passwd"), "is not a URL of an image"),
    (openai_part("file:///etc/passwd"), "is not a URL of an image"),
    (openai_part(["x"]), "must be text"),
    ({"type": "image", "path": "/etc/passwd"}, "is not a URL of an image"),
    ({"type": "image", "source": {"type": "base64", "data": "?"}}, "is not base64"),
    (
        {"type": "image", "source": {"type": "base64", "media_type": "application/pdf", "data": BASE64}},
        "source.media_type: is application/pdf, not an image",
    ),
    ({"type": "image", "source": {"type": "base64", "media_type": 5, "data": BASE64}}, "must be text"),
    (
        {"type": "image", "source": {"type": "base64", "data": URL}},
        "is a data URL, where base64 alone belongs",
    ),
    ({"type": "image_url"}, "holds no image"),
    ({"type": "input_audio"}, "texts and images can be read"),
    ({"type": "text"}, "messages[0].content[0].text: must be a string"),
]


@pytest.mark.parametrize("part, reason", REFUSED)
def test_what_is_refused(running: Running, part: Any, reason: str) -> None:
    response = running.post("/v1/chat/completions", messages=asked(part), max_tokens=2)
    error = response.json()["error"]
    assert response.status_code == 400 and reason in error["message"], error
    assert error["param"].startswith("messages[0].content[0]")


def test_places_where_images_do_not_belong(running: Running) -> None:
    system = {"role": "system", "content": [openai_part()]}
    response = running.post("/v1/chat/completions", messages=[system, *asked(openai_part())])
    assert response.status_code == 400 and "messages of the user" in response.text
    message = {"role": "assistant", "content": "x", "images": [BASE64]}
    response = running.post("/api/chat", model="words", messages=[message])
    assert response.status_code == 400 and "messages[0].images" in response.text
    body = {"prompt_string": "x", "multimodal_data": [BASE64]}
    assert "as many as <__media__>" in running.post("/completion", prompt=body).text
    for url in ("/v1/chat/completions", "/v1/messages/count_tokens"):
        response = running.post(url, model="text", messages=asked(openai_part()))
        assert response.status_code == 400 and "llama models read no images" in response.text


@pytest.mark.parametrize("name", ["images", "image_data"])
def test_images_in_fields_that_nobody_reads_are_refused(running: Running, name: str) -> None:
    """They would be lost; an empty list is none."""
    texts = {"/api/embed": "input", "/api/embeddings": "prompt", "/v1/embeddings": "input"}
    texts |= {"/completion": "prompt", "/v1/completions": "prompt"}
    for path, text in texts.items():
        body: dict[str, Any] = {"model": "words", text: "x", "n_predict": 1, "max_tokens": 1}
        response = running.post(path, **body, **{name: [BASE64]})
        assert response.status_code == 400 and f"{name}: images are not read here" in response.text, path
        assert running.post(path, **body, **{name: []}).status_code == 200, path
    message = {"role": "user", "content": "x", name: [BASE64]}
    if name == "images":  # Ollama's form of a message in another dialect
        response = running.post("/v1/chat/completions", messages=[message])
        assert response.status_code == 400 and "messages[0].images: images are not read here" in response.text


def test_too_many_images_and_pixels(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    many = [{"role": "user", "content": [openai_part()] * 65}]
    assert "64 images at the most" in running.post("/v1/chat/completions", messages=many).text
    monkeypatch.setattr("pyllamacpu.server.images.MAX_REQUEST_PIXELS", PICTURE.size // 3 * 2)
    three = [{"role": "user", "content": [openai_part()] * 3}]
    assert "million pixels together" in running.post("/v1/chat/completions", messages=three).text
    monkeypatch.undo()
    long = [{"role": "user", "content": [openai_part()] * 20}]
    response = running.post("/v1/chat/completions", messages=long)
    assert response.json()["error"]["code"] == "context_length_exceeded"
    cut: list[int] = []
    service = running.server.service
    assert service is not None
    vision = service.models.loaded["words"].vision("")
    tiles = vision.tiles
    monkeypatch.setattr(vision, "tiles", lambda picture: cut.append(1) or tiles(picture))
    assert running.post("/v1/chat/completions", messages=long).status_code == 400
    assert 0 < len(cut) < 20  # the rest is not even cut


def test_memory_of_images_is_limited(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """By their tiles and rows, before the tower works for any of them."""
    service = running.server.service
    assert service is not None
    vision = service.models.loaded["words"].vision("")
    n = vision.image_bytes(vision.tiles(PICTURE))
    assert n == 4 * (vision.tiles(PICTURE).pixels.size + vision.embed(PICTURE).rows.size)
    monkeypatch.setattr(service, "images", ImageAccess(None, 2 * n))
    assert chat(running, asked(openai_part()))
    assert vision.engine.images.limit_bytes == 2 * n  # the model keeps no more for images that may come again
    three = [openai_part(f"data:image/png;base64,{b64encode(png(PICTURE - i)).decode()}") for i in (1, 2, 3)]
    monkeypatch.setattr(Tower, "_run", None)
    response = running.post("/v1/chat/completions", messages=[{"role": "user", "content": three}])
    said = response.json()["error"]["message"]
    assert response.status_code == 400 and "--image-memory" in said
    assert re.search(r"take [0-9.]+ KB of memory or more .* [0-9.]+ KB \(--image", said), said


def test_large_bodies_are_taken_where_images_are(running: Running) -> None:
    pad = " " * (17 << 20)
    for path in ("/v1/chat/completions", "/v1/responses", "/v1/messages", "/api/chat", "/completion"):
        assert running.post(path, model="words", pad=pad).status_code != 413, path
    assert running.post("/v1/embeddings", input="x", pad=pad).status_code == 413


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(png())))
        self.end_headers()
        self.wfile.write(png())

    def log_message(self, *_: Any) -> None:
        pass


def test_images_at_urls(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of hosts that are allowed."""
    server = HTTPServer(("127.0.0.1", 0), _Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        service = running.server.service
        assert service is not None
        host = f"images.test:{server.server_port}"
        fetch = Fetcher((host,), resolve=lambda *_: ["127.0.0.1"], allowed=lambda _: True)
        monkeypatch.setattr(service, "images", ImageAccess(fetch))
        found = chat(running, asked(openai_part(f"http://{host}/x.png")))
        block = {"type": "image", "source": {"type": "url", "url": f"http://{host}/x.png"}}
        assert found == chat(running, asked(openai_part())) == chat(running, asked(block))
        response = running.post("/v1/chat/completions", messages=asked(openai_part("http://other.test/x")))
        assert response.status_code == 400 and "are not fetched here" in response.text
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_guard_that_reads_no_images_lets_none_pass() -> None:
    messages = [{"role": "user", "content": content_parts([openai_part()], "messages[0].content", "user")}]
    with pytest.raises(UnseenImageError, match=r"messages\[0\]\.content\[0\]: the guard reads no images"):
        judged_messages(messages)


def test_images_of_a_text_are_judged_too(running: Running) -> None:
    service = running.server.service
    assert service is not None
    model = service.models.loaded["words"]
    image = SentImage({"base64": BASE64}, "prompt.multimodal_data[0]")
    said = conversation_of(model, Text("<__media__> x", images=[image])).messages
    with pytest.raises(UnseenImageError, match=r"prompt\.multimodal_data\[0\]: the guard reads no images"):
        judged_messages(said)


def test_what_is_at_a_url_is_fetched_once() -> None:
    """The guard and the model see the same image, whatever a server gives next."""
    file = BytesIO()
    Image.new("RGB", (3, 2)).save(file, "PNG")
    contents = [b"another", file.getvalue()]
    image = SentImage({"url": "http://images.example/x.png"}, "image")
    pictures = [image.open(lambda url: contents.pop()) for _ in range(2)]
    assert [(picture.width, picture.height) for picture in pictures] == [(3, 2)] * 2
    with pytest.raises(ImageError, match="not fetched here"):
        image.open(None)
