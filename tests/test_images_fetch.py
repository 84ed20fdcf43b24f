"""Images at URLs: which hosts and addresses, and what a server may do. All on this machine.

Covers images/addresses.py.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from pyllamacpu.errors import ImageError, OptionError
from pyllamacpu.images.addresses import is_disguised, is_public
from pyllamacpu.images.fetch import Fetcher, parse_hosts

CONTENT = bytes(range(256)) * 1000


class Handler(BaseHTTPRequestHandler):
    seen: list[tuple[str, str | None]]

    def do_GET(self) -> None:
        self.seen.append((self.path, self.headers["Host"]))
        kind = self.path.partition("?")[0].strip("/")
        if kind == "redirect":
            self.answer(302, b"", Location="/image")
        elif kind == "missing":
            self.answer(404, b"not here")
        elif kind == "packed":
            self.answer(200, CONTENT, **{"Content-Encoding": "gzip"})
        elif kind == "short":
            self.answer(200, CONTENT, **{"Content-Length": str(len(CONTENT) + 5)})
        elif kind in ("endless", "drip", "headers"):
            self.without_end(kind)
        else:
            self.answer(200, CONTENT)

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True

    def without_end(self, kind: str) -> None:
        piece = {"endless": CONTENT, "drip": b"x", "headers": b"X"}[kind]
        self.wfile.write(b"HTTP/1.1 200 OK\r\n" + (b"" if kind == "headers" else b"\r\n"))
        try:
            while True:
                self.wfile.write(piece)
                if kind != "endless":
                    time.sleep(0.02)
        except OSError:
            self.close_connection = True

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[ThreadingHTTPServer]:
    Handler.seen = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def fetcher(server: ThreadingHTTPServer, **more: Any) -> Fetcher:
    options: dict[str, Any] = {"resolve": lambda host, port: ["127.0.0.1"], "allowed": lambda address: True}
    return Fetcher(
        (f"images.test:{server.server_port}",), **{"max_bytes": 1 << 20, "max_seconds": 5.0} | options | more
    )


def url(server: ThreadingHTTPServer, path: str) -> str:
    return f"http://images.test:{server.server_port}/{path}"


def test_an_image_is_fetched_once_from_the_checked_address(server: ThreadingHTTPServer) -> None:
    asked: list[tuple[str, int]] = []

    def resolve(host: str, port: int) -> Sequence[str]:
        asked.append((host, port))
        return ["127.0.0.1"]

    Handler.seen.clear()
    get = fetcher(server, resolve=resolve)
    assert get(url(server, "image?a=1#part")) == CONTENT
    assert Handler.seen == [("/image?a=1", f"images.test:{server.server_port}")]
    assert asked == [("images.test", server.server_port)]


@pytest.mark.parametrize(
    "path, reason",
    [
        ("redirect", "a redirect, which is not followed"),
        ("missing", "answered 404"),
        ("packed", "compressed"),
        ("short", "ended 5 bytes early"),
        ("endless", "larger than 1 MiB"),
    ],
)
def test_answers_that_are_refused(server: ThreadingHTTPServer, path: str, reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        fetcher(server)(url(server, path))
    with pytest.raises(ImageError, match="larger than 0 MiB"):
        fetcher(server, max_bytes=1000)(url(server, "image"))


@pytest.mark.parametrize("path", ["drip", "headers"])
def test_a_server_that_sends_slowly_gets_no_more_time(server: ThreadingHTTPServer, path: str) -> None:
    started = time.monotonic()
    with pytest.raises(ImageError, match=r"did not arrive within 0\.3 s"):
        fetcher(server, max_seconds=0.3)(url(server, path))
    assert time.monotonic() - started < 3


def test_a_resolver_that_hangs(server: ThreadingHTTPServer) -> None:
    with pytest.raises(ImageError, match="did not arrive"):
        fetcher(server, resolve=lambda *_: time.sleep(2), max_seconds=0.1)(url(server, "image"))

    def fails(host: str, port: int) -> Sequence[str]:
        raise OSError(-2, "Name or service not known")

    with pytest.raises(ImageError, match="cannot be fetched: Name or service not known"):
        fetcher(server, resolve=fails)(url(server, "image"))


def test_only_listed_hosts_and_ports() -> None:
    def refuse(host: str, port: int) -> Sequence[str]:
        raise AssertionError("is not asked for")

    get = Fetcher(parse_hosts("example.com, *.Example.org,a.net:8080"), resolve=refuse)
    for other in [
        "example.com.evil.net",
        "evil-example.com",
        "example.org",
        "a.net",
        "example.com:81",
        "x.a.net:8080",
    ]:
        with pytest.raises(ImageError, match="are not fetched here"):
            get(f"http://{other}/x.png")
    found = Fetcher(get.hosts, resolve=lambda host, port: [])
    for same in ("EXAMPLE.com", "example.com.", "example.com:80", "a.b.example.org", "a.net:8080"):
        with pytest.raises(ImageError, match="has no address"):
            found(f"http://{same}/x.png")
    listed = parse_hosts("b\u00fccher.de,*.B\u00dcCHER.at,a.com:80,b.com:443,c.com.")
    assert listed[:2] == ("xn--bcher-kva.de", "*.xn--bcher-kva.at") and listed[4] == "c.com"
    found = Fetcher(listed, resolve=lambda host, port: [])
    for same in ("b\u00fccher.de", "x.xn--bcher-kva.at", "a.com", "c.com."):
        with pytest.raises(ImageError, match="has no address"):
            found(f"http://{same}/x.png")
    with pytest.raises(ImageError, match="has no address"):
        found("https://b.com/x.png")
    for other in ("http://b.com/x.png", "https://a.com/x.png"):
        with pytest.raises(ImageError, match="are not fetched here"):
            found(other)
    for bad in ("", " , ", "http://x", "a/b", "*.", "u@h", "a:b", "a:99999", "[::1", "*.*", "a..b"):
        with pytest.raises(OptionError, match="--allow-image-hosts"):
            parse_hosts(bad)


PRIVATE = """
    127.0.0.1 127.8.8.8 0.0.0.0 0.1.2.3 10.0.0.1 172.16.0.1 172.31.255.255 192.168.1.1 169.254.169.254
    100.64.0.1 192.0.0.192 198.18.0.1 224.0.0.1 239.255.255.250 240.0.0.1 255.255.255.255 168.63.129.16
    192.88.99.1 :: ::1 ::127.0.0.1 ::ffff:127.0.0.1 ::ffff:8.8.8.8 64:ff9b::7f00:1 64:ff9b:1::1 fe80::1
    fe80::1%eth0 fec0::1 fc00::1 fd00:ec2::254 ff02::1 2001::1 2001:db8::1 2002:7f00:1:: 100::1 3fff::1
    5f00::1 nonsense 1.2.3 1.2.3.4.5
"""


def test_addresses_that_are_not_public() -> None:
    assert [address for address in PRIVATE.split() if is_public(address)] == []
    for address in ("8.8.8.8", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "2a00:1450::1", "192.167.0.1"):
        assert is_public(address)


TRICKS = """
    127.0.0.1 localhost [::1] [::ffff:127.0.0.1] [::ffff:7f00:1] [::] [64:ff9b::7f00:1] 2130706433
    0x7f000001 017700000001 0x7F.0.0.1 0177.0.0.1 127.1 127.0.1 0 0.0.0.0 169.254.169.254
    127.0.0.1. ①②⑦.0.0.1 127。0。0。1
    1.2.3.256 0xa9fea9fe [fe80::1%25lo] 127.0.0.01 %31%32%37.0.0.1 user@127.0.0.1 a:b@localhost
"""


@pytest.mark.parametrize("host", TRICKS.split())
def test_private_addresses_by_every_trick(host: str) -> None:
    """Also where any host is allowed; nothing is asked of the network for these."""
    with pytest.raises(ImageError) as caught:
        Fetcher(("*",), max_seconds=3.0)(f"http://{host}/x.png")
    assert "cannot be fetched" not in str(caught.value) and "did not arrive" not in str(caught.value)


def test_names_that_resolve_to_private_addresses(server: ThreadingHTTPServer) -> None:
    Handler.seen.clear()
    for addresses in (["10.0.0.1"], ["8.8.8.8", "127.0.0.1"], ["::ffff:10.0.0.1"], ["fe80::1%lo"]):
        get = fetcher(server, resolve=lambda *_, found=addresses: found, allowed=is_public)
        with pytest.raises(ImageError, match="is not a public address"):
            get(url(server, "image"))
    assert Handler.seen == []


NO_URLS = ("http://", "http:///x", "ftp://h/x", "file:///etc/passwd", "http://h:99999/", "http://[::1/")
NO_URLS += ("http://a b/", "http://h/\r\nX: y", "http://h\\@g/", "http://h/ä", "http://" + "a" * 70 + ".de/")


@pytest.mark.parametrize("bad", NO_URLS)
def test_urls_that_are_none(bad: str) -> None:
    with pytest.raises(ImageError):
        Fetcher(("*",))(bad)


def test_disguised_addresses() -> None:
    for host in ("1", "0x7f.1", "127.1", "1.2.3.4.5", "01.2.3.4", "a.0x1", "999.1.1.1", "1.2.3.4."):
        assert is_disguised(host), host
    for host in ("1.2.3.4", "example.com", "1.com", "0x1.de", "::1", "a1", ""):
        assert not is_disguised(host), host
