"""The page's routes, headers and files. (What it does is tested in a browser: test_page_browser.py.)"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import Running, serving
from tiny_model import write_model

from pyllamacpu.server.access import AccessOptions
from pyllamacpu.server.page_routes import FOLDER, page_files

# As they are in the packages marked 18.2.1 and dompurify 3.5.0 of the npm registry.
VENDORED = {
    "vendor/marked.esm.js": "5371fea86fd0656b4fc7bea7c94c663109d82789b69433eeee78d42895aa44de",
    "vendor/purify.min.js": "f69a46022ab1f53e969c8ebbca98172c8995785a9b3be72ea4a12d25b1a1bf67",
}
OWN = [name for name in page_files() if not name.startswith("vendor/")]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    path = write_model(tmp_path_factory.mktemp("tiny") / "tiny.gguf")
    with serving(("tiny", path), access=AccessOptions(keys=("secret",))) as found:
        yield found


def policy(text: str) -> dict[str, list[str]]:
    return {name: values for name, *values in (part.split() for part in text.split(";"))}


def test_page_comes_without_a_key_and_under_a_strict_policy(running: Running) -> None:
    answer = running.get("/")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.content == (FOLDER / "index.html").read_bytes()
    rules = policy(answer.headers["content-security-policy"])
    assert rules["default-src"] == ["'none'"]
    assert rules["script-src"] == rules["style-src"] == rules["connect-src"] == ["'self'"]
    assert rules["frame-ancestors"] == rules["base-uri"] == rules["form-action"] == ["'none'"]
    assert not {"'unsafe-inline'", "'unsafe-eval'", "*", "https:", "http:"} & {
        v for r in rules.values() for v in r
    }
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize("name", page_files())
def test_files_have_their_types(running: Running, name: str) -> None:
    answer = running.get(f"/page/{name}")
    assert answer.status_code == 200
    types = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".txt": "text/plain"}
    assert answer.headers["content-type"] == f"{types[Path(name).suffix]}; charset=utf-8"
    assert answer.content == page_files()[name].read_bytes()
    assert "content-security-policy" in answer.headers


def test_a_file_that_has_not_changed_is_not_sent_again(running: Running) -> None:
    etag = running.get("/page/main.js").headers["etag"]
    with running.client(headers={"If-None-Match": f'"other", W/{etag}'}) as client:
        again = client.get("/page/main.js")
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
        assert client.get("/page/style.css").status_code == 200


def test_head_has_the_headers_alone(running: Running) -> None:
    with running.client() as client:
        answer = client.head("/")
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-length"] == str((FOLDER / "index.html").stat().st_size)


@pytest.mark.parametrize(
    "path",
    [
        "/page/",
        "/page/nothing.js",
        "/page/main.js/",
        "/page/vendor",
        "/page/../app.py",
        "/page/..%2fapp.py",
        "/page/%2e%2e/app.py",
        "/page/....//app.py",
        "/page//etc/passwd",
        "/page/main.js%00",
        "/page/MAIN.JS",
        "/main.js",
    ],
)
def test_other_paths_are_not_found(running: Running, path: str) -> None:
    head = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nX-Api-Key: secret\r\nConnection: close\r\n\r\n"
    answer = running.raw(head.encode())
    assert answer.startswith(b"HTTP/1.1 404"), answer[:200]
    assert b"def " not in answer


def test_only_the_page_is_free_of_the_key(running: Running) -> None:
    assert running.get("/v1/models").status_code == 401
    assert running.get("/pages/main.js").status_code == 401


def test_other_methods_are_refused(running: Running) -> None:
    assert running.post("/").status_code == 405
    assert running.post("/page/main.js").status_code == 405


@pytest.mark.parametrize("name", OWN)
def test_our_files_name_no_other_server(name: str) -> None:
    text = (FOLDER / name).read_text(encoding="utf-8")
    assert not re.search(
        r"""(?:https?:|wss?:)?//[\w-]+\.[\w.-]+""", re.sub(r"^\s*//.*|\s//\s.*", "", text, flags=re.M)
    )
    assert not re.search(r"<script(?![^>]*\bsrc=)|\son\w+=|\sstyle=|javascript:", text) or name.endswith(
        ".js"
    )


@pytest.mark.parametrize("name", [name for name in page_files() if name.endswith((".html", ".js", ".css"))])
def test_what_files_load_is_served(name: str) -> None:
    """Every import, script and style sheet is one of the page's own files; nothing else is loaded."""
    text = (FOLDER / name).read_text(encoding="utf-8")
    if name.endswith(".html"):
        targets = [
            t.removeprefix("page/") for t in re.findall(r'(?:src|href)="([^"#]+)"', text) if t != "data:,"
        ]
    elif name.startswith("vendor/"):
        targets = re.findall(r"""\bimport\s*["']([^"']+)["']|\bfrom\s*["']([^"']+)["']|@import""", text)
        assert targets == []
    else:
        targets = re.findall(r"""^(?:import|\}).*["']\./([^"']+)["'];""", text, re.M)
        assert len(targets) == len(re.findall(r"^import\b", text, re.M))
        assert "@import" not in text
        assert "url(" not in text
    assert set(targets) <= set(page_files())


@pytest.mark.parametrize("name", VENDORED)
def test_vendored_files_are_whole_and_have_their_licences(name: str) -> None:
    assert hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() == VENDORED[name]
    licence = FOLDER / f"{name.split('.')[0]}.LICENSE.txt"
    assert len(licence.read_text(encoding="utf-8")) > 1000


@pytest.mark.parametrize("name", OWN)
def test_files_are_short(name: str) -> None:
    assert len((FOLDER / name).read_text(encoding="utf-8").splitlines()) <= 500


def test_files_are_in_the_package() -> None:
    """Every file matches a pattern of package-data in pyproject.toml."""
    project = (Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8")
    patterns = re.findall(r'"(server/page/[^"]+)"', project)
    package = FOLDER.parent.parent
    packed = {path for pattern in patterns for path in package.glob(pattern)}
    assert {path for path in FOLDER.rglob("*") if path.is_file()} <= packed
