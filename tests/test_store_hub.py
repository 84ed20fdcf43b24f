"""The hub's models, through a server of our own and the cache.

Covers store/watched.py and store/hub_errors.py.
"""

from __future__ import annotations

import errno
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from store_build import cache_file

from pyllamacpu.errors import Abandoned, OptionError, StoreError
from pyllamacpu.store.hub import HubRef, download, parse_hub_ref
from pyllamacpu.store.paths import hub_cache_dir
from pyllamacpu.store.quants import part_names
from pyllamacpu.store.resolve import list_models, resolve_model
from pyllamacpu.store.watched import watched

pytestmark = pytest.mark.usefixtures("home")


@pytest.mark.parametrize(
    "name, reference",
    [
        ("hf.co/user/repo", HubRef("user/repo")),
        ("HF.co/user/repo:Q8_0", HubRef("user/repo", quant="Q8_0")),
        ("huggingface.co/user/repo/", HubRef("user/repo")),
        ("hf://user/repo/a/b.gguf", HubRef("user/repo", filename="a/b.gguf")),
        ("https://huggingface.co/u/r", HubRef("u/r")),
        ("https://huggingface.co/u/r/tree/main", HubRef("u/r")),
        ("https://hf.co/u/r:q4_k_m", HubRef("u/r", quant="q4_k_m")),
        (
            "https://huggingface.co/u/r/resolve/main/x%20y.gguf?download=true",
            HubRef("u/r", filename="x y.gguf"),
        ),
        (
            "https://huggingface.co/u/r/blob/abc123/x.gguf",
            HubRef("u/r", filename="x.gguf", revision="abc123"),
        ),
        ("https://mirror.example/u/r", HubRef("u/r")),
        ("https://other.example/u/r", None),
        ("user/repo", None),
        ("model.gguf", None),
    ],
)
def test_parse_hub_ref(name: str, reference: HubRef | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example")
    assert parse_hub_ref(name) == reference


class FakeHub(BaseHTTPRequestHandler):
    """The part of the hub's HTTP interface that downloads use."""

    commit = "d" * 40
    files: dict[str, bytes]
    asked: list[tuple[str, str, str | None]]
    status = 200
    file_status = 200  # of the contents of files
    damaged = False
    seconds = 0.0  # after each piece

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        path = self.path.split("?")[0]
        self.asked.append((self.command, path, self.headers.get("Authorization")))
        if self.status != 200:
            self._send(self.status, b"", {"X-Error-Code": "GatedRepo"} if self.status == 403 else {}, body)
        elif path.startswith("/api/models/user/repo/tree/"):
            listing = [
                {"type": "file", "path": name, "size": len(content), "oid": "0" * 40}
                for name, content in self.files.items()
            ]
            self._send(200, json.dumps(listing).encode(), {"Content-Type": "application/json"}, body)
        elif path.startswith("/user/repo/resolve/") and (name := path.split("/", 5)[5]) in self.files:
            content = self.files[name]
            headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": self.commit}
            if body and self.damaged:
                content = content[::-1]
            status = self.file_status if body else 200
            self._send(status, content if status == 200 else b"", headers, body)
        else:
            self._send(404, b"", {"X-Error-Code": "RepoNotFound"}, body)

    def _send(self, status: int, content: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        for i in range(0, len(content) if body else 0, 1 << 17):
            self.wfile.write(content[i : i + (1 << 17)])
            time.sleep(self.seconds)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[FakeHub]]:
    """A hub on this machine, with one repository."""

    class Handler(FakeHub):
        pass

    Handler.files = {"x-Q4_K_M.gguf": b"four bits", "x-Q8_0.gguf": b"eight bits", "README.md": b"hello"}
    Handler.asked = []
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{httpd.server_port}")
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    yield Handler
    httpd.shutdown()
    httpd.server_close()
    thread.join()


def test_hub_download_and_reuse(server: type[FakeHub], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    path = resolve_model("hf.co/user/repo")
    assert path.read_bytes() == b"four bits"
    assert path.is_relative_to(hub_cache_dir())
    tokens = [token for _, asked, token in server.asked if "/user/repo/" in asked]
    assert tokens and set(tokens) == {"Bearer hf_secret"}
    before = len(server.asked)
    assert resolve_model("hf.co/user/repo") == path
    assert resolve_model("hf.co/user/repo:q4_k_m") == path
    assert len(server.asked) == before  # the cache was enough
    assert resolve_model("hf.co/user/repo", refresh=True) == path
    assert len(server.asked) > before
    assert resolve_model("hf.co/user/repo:q8_0").read_bytes() == b"eight bits"
    assert [model.name for model in list_models()] == [
        "hf.co/user/repo/x-Q4_K_M.gguf",
        "hf.co/user/repo/x-Q8_0.gguf",
    ]


def test_a_download_is_watched(server: type[FakeHub], monkeypatch: pytest.MonkeyPatch) -> None:
    """True bytes, under the digest of the content."""
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1 << 17)
    content = bytes(range(256)) * 4096
    server.files, server.seconds = {"x-Q4_K_M.gguf": content}, 0.05
    seen: list[tuple[str, int, int]] = []
    resolve_model("hf.co/user/repo", on_download=lambda *told: seen.append(told))
    assert {told[0] for told in seen} == {f"sha256:{hashlib.sha256(content).hexdigest()}"}
    assert {told[2] for told in seen} == {len(content)} and seen[-1][1] == len(content)
    counts = [told[1] for told in seen]
    assert counts == sorted(counts) and any(0 < count < len(content) for count in counts)

    def leave(*_: object) -> None:
        raise Abandoned

    server.files = {"y-Q4_K_M.gguf": content[::-1]}
    with pytest.raises(Abandoned):
        resolve_model("hf.co/user/repo/y-Q4_K_M.gguf", on_download=leave)


def test_what_is_told_of_a_download_never_gets_less(tmp_path: Path) -> None:
    """A finished file loses its name `….incomplete` before the download returns; another may begin anew."""
    etag, told, calls = "e" * 64, list[int](), threading.Semaphore(0)
    unfinished = tmp_path / f"{etag}.incomplete"

    def tell(_: str, here: int, __: int) -> None:
        told.append(here)
        calls.release()

    def download() -> str:
        for size in (40, 90, None, 10):
            unfinished.unlink() if size is None else unfinished.write_bytes(bytes(size))
            while calls.acquire(blocking=False):
                pass
            for _ in range(2):  # the first may have looked before
                assert calls.acquire(timeout=30)
        return "done"

    assert watched(download, tmp_path, etag, 100, tell) == "done"
    assert told == sorted(told) and {40, 90, 100} <= set(told)


def test_all_parts_are_downloaded(server: type[FakeHub]) -> None:
    server.files = {f"big-Q4_K_M-0000{n}-of-00003.gguf": bytes([n]) for n in (1, 2, 3)}
    path = resolve_model("hf.co/user/repo")
    assert [path.with_name(name).read_bytes() for name in part_names(path.name)] == [b"\1", b"\2", b"\3"]
    server.files = {f"big-Q8_0-0000{n}-of-00003.gguf": b"" for n in (1, 2)}
    with pytest.raises(StoreError, match="lacks big-Q8_0-00003-of-00003"):
        resolve_model("hf.co/user/repo:Q8_0")


@pytest.mark.parametrize(
    "status, name, says",
    [
        (200, "hf.co/user/other", "no such repository"),
        (200, "hf.co/user/repo:Q2_K", "has no Q2_K; it has Q4_K_M, Q8_0"),
        (403, "hf.co/user/repo", "set HF_TOKEN"),
        (418, "hf.co/user/repo", "cannot download"),
    ],
)
def test_hub_errors_are_one_line(server: type[FakeHub], status: int, name: str, says: str) -> None:
    server.status = status
    with pytest.raises(StoreError) as caught:
        resolve_model(name)
    assert says in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("watch", [False, True])
def test_a_file_that_came_damaged_is_refused_and_removed(server: type[FakeHub], watch: bool) -> None:
    """Of the right size, with bytes of something else: the hub's client would keep it."""
    server.damaged = True
    on_download = (lambda *_: None) if watch else None
    with pytest.raises(StoreError, match=r"x-Q4_K_M\.gguf: SHA-256 is [0-9a-f]{64}, expected .*again"):
        resolve_model("hf.co/user/repo", on_download=on_download)
    assert list_models() == [] and not [*hub_cache_dir().rglob("blobs/*")]
    server.damaged = False
    assert resolve_model("hf.co/user/repo", on_download=on_download).read_bytes() == b"four bits"


def test_a_file_that_came_damaged_into_a_folder(server: type[FakeHub], tmp_path: Path) -> None:
    server.damaged = True
    with pytest.raises(StoreError, match="SHA-256"):
        download("user/repo", ["x-Q8_0.gguf"], local_dir=tmp_path)
    assert not (tmp_path / "x-Q8_0.gguf").exists()
    server.damaged = False
    assert download("user/repo", ["x-Q8_0.gguf"], local_dir=tmp_path).read_bytes() == b"eight bits"


def test_only_what_came_now_is_compared(server: type[FakeHub]) -> None:
    """Reading all of a large file that is there already takes long, and nobody asked for it."""
    path = resolve_model("hf.co/user/repo")
    path.resolve().write_bytes(b"4444 bits")
    assert resolve_model("hf.co/user/repo", refresh=True).read_bytes() == b"4444 bits"


@pytest.mark.parametrize(
    "status, says",
    [
        (401, "wants to know who asks; set HF_TOKEN"),
        (403, "set HF_TOKEN"),
        (404, "no such file or revision"),
        (500, "the hub is out of order .*; try again later"),
        (503, "the hub is out of order .*; try again later"),
    ],
)
def test_what_a_server_answers_is_not_the_network(server: type[FakeHub], status: int, says: str) -> None:
    server.file_status = status
    with pytest.raises(StoreError, match=says) as caught:
        resolve_model("hf.co/user/repo")
    assert "check the network" not in str(caught.value)


def test_a_refusal_is_not_answered_from_the_cache(
    server: type[FakeHub], capsys: pytest.CaptureFixture[str]
) -> None:
    """Another file of the repository is taken when the hub cannot be asked, and only then, and said."""
    path = cache_file("user/repo", "x-Q8_0.gguf")
    server.file_status = 401
    with pytest.raises(StoreError, match="HF_TOKEN"):
        resolve_model("hf.co/user/repo")
    server.file_status = 500
    assert resolve_model("hf.co/user/repo") == path
    assert "x-Q8_0.gguf is taken from the cache" in capsys.readouterr().err


def test_a_full_disk_is_not_the_network(server: type[FakeHub], monkeypatch: pytest.MonkeyPatch) -> None:
    cache_file("user/repo", "x-Q8_0.gguf")

    def full(*_: object, **__: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("huggingface_hub.HfApi.hf_hub_download", full)
    with pytest.raises(StoreError, match=r"cannot write .*: No space left on device; set HF_HOME"):
        resolve_model("hf.co/user/repo")


def test_download_by_patterns(server: type[FakeHub], tmp_path: Path) -> None:
    """Each pattern means one model, with all its parts; the path is that of the first."""
    server.files = {f"big/m-F16-0000{n}-of-00002.gguf": bytes([n]) for n in (1, 2)} | server.files
    path = download("user/repo", ["big/*F16*.gguf", "README*"])
    assert path.is_relative_to(hub_cache_dir()) and path.read_bytes() == b"\1"
    assert path.with_name("m-F16-00002-of-00002.gguf").read_bytes() == b"\2"
    assert (path.parents[1] / "README.md").read_bytes() == b"hello"
    path = download("user/repo", ["x-Q8_0.gguf"], local_dir=tmp_path / "here")
    assert path == tmp_path / "here" / "x-Q8_0.gguf" and path.read_bytes() == b"eight bits"
    path = download("user/repo", [None], cache_dir=tmp_path / "cache")
    assert path.is_relative_to(tmp_path / "cache") and path.read_bytes() == b"four bits"


def test_a_name_without_a_pattern_is_taken_from_the_cache(server: type[FakeHub]) -> None:
    path = cache_file("user/repo", "x-Q8_0.gguf")
    server.status = 418
    assert download("user/repo", ["x-Q8_0.gguf"]) == path and server.asked == []
    assert download("user/repo", [None]) == path, "the hub does not answer: what is there is taken"


@pytest.mark.parametrize(
    "status, repo, patterns, says",
    [
        (200, "user/other", ["*.gguf"], "no such repository"),
        (403, "user/repo", ["*.gguf"], "set HF_TOKEN"),
        (418, "user/repo", ["*.gguf"], r"user/repo: cannot download \("),
    ],
)
def test_errors_of_a_download_by_pattern(
    server: type[FakeHub], status: int, repo: str, patterns: list[str | None], says: str
) -> None:
    server.status = status
    with pytest.raises(StoreError, match=says):
        download(repo, patterns)


@pytest.mark.parametrize(("pattern", "says"), [("x-*.gguf", "2 files match"), ("no*", "no file matches")])
def test_patterns_that_mean_no_file_or_many(server: type[FakeHub], pattern: str, says: str) -> None:
    with pytest.raises(OptionError, match=says):
        download("user/repo", [pattern])
    assert not [asked for method, asked, _ in server.asked if "/resolve/" in asked]


def test_offline_takes_what_is_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    path = cache_file("user/repo", "x-Q8_0.gguf")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert resolve_model("hf.co/user/repo") == path
    assert resolve_model("hf.co/user/repo/x-Q8_0.gguf") == path
    with pytest.raises(StoreError, match="HF_HUB_OFFLINE"):
        resolve_model("hf.co/user/repo:Q4_K_M")


def test_an_unfinished_download_is_not_a_model() -> None:
    base = cache_file("user/repo", "x-Q4_K_M.gguf").parent
    (base / "y-Q8_0.gguf").symlink_to(base / "nowhere")
    assert [model.path.name for model in list_models()] == ["x-Q4_K_M.gguf"]
