"""Images at URLs, for servers that allow it: from listed hosts and public addresses only.

The name is resolved once, every address that it has is checked, and the connection goes to a checked one: a
name that resolves otherwise a moment later changes nothing. Redirects are not followed, and bytes and time
are limited. Proxies of the environment are not used.
"""

from __future__ import annotations

import http.client
import io
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import SplitResult, urlsplit

from pyllamacpu.errors import ImageError, OptionError
from pyllamacpu.images.addresses import is_disguised, is_public, resolve
from pyllamacpu.units import exact

MAX_BYTES = 32 << 20
MAX_SECONDS = 15.0
_PORTS = {"http": 80, "https": 443}
_CHUNK = 1 << 16


@dataclass(frozen=True)
class Fetcher:
    """Fetches images. hosts: names as `parse_hosts` gives them; resolve and allowed: for tests."""

    hosts: tuple[str, ...]
    max_bytes: int = MAX_BYTES
    max_seconds: float = MAX_SECONDS
    resolve: Callable[[str, int], Sequence[str]] = resolve
    allowed: Callable[[str], bool] = is_public
    context: ssl.SSLContext | None = field(default=None, repr=False)  # None: the system's certificates

    def __call__(self, url: str) -> bytes:
        """The content at `url`. Raises ImageError."""
        where = url if len(url) <= 80 else f"{url[:77]}..."
        parts = _parts(url, where)
        host, port = _host(parts, where), _port(parts, where)
        self._check_host(host, port, parts.scheme, where)
        deadline = time.monotonic() + self.max_seconds
        try:
            return self._fetch(parts, host, port, deadline, where)
        except TimeoutError as error:
            raise ImageError(where, f"did not arrive within {exact(self.max_seconds)} s") from error
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise ImageError(where, f"cannot be fetched: {reason}") from error

    def _check_host(self, host: str, port: int, scheme: str, where: str) -> None:
        if is_disguised(host):
            raise ImageError(where, f"{host} is an address in disguise, which is not fetched from")
        usual = port == _PORTS[scheme]
        names = [host, f"{host}:{port}"] if usual else [f"{host}:{port}"]
        allowed = any(_matches(name, pattern) for name in names for pattern in self.hosts)
        if not allowed and not (usual and "*" in self.hosts):
            raise ImageError(where, f"images of {names[0]} are not fetched here (--allow-image-hosts)")

    def _fetch(self, parts: SplitResult, host: str, port: int, deadline: float, where: str) -> bytes:
        address = self._address(host, port, deadline, where)
        connection = http.client.HTTPConnection(host, port)
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as plain:
            plain.settimeout(_left(deadline))
            plain.connect((address, port))
            secure = parts.scheme == "https"
            plain.settimeout(_left(deadline))
            used = self._secured(plain, host) if secure else plain
            with used:
                connection.sock = _Timed(used, deadline)
                connection.default_port = _PORTS[parts.scheme]  # which the Host header leaves out
                target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
                headers = {"Accept": "image/*", "Accept-Encoding": "identity", "User-Agent": "pyllamacpu"}
                connection.request("GET", target, headers=headers)
                return self._content(connection.getresponse(), where)

    def _secured(self, plain: socket.socket, host: str) -> ssl.SSLSocket:
        context = self.context or ssl.create_default_context()
        return context.wrap_socket(plain, server_hostname=host)

    def _address(self, host: str, port: int, deadline: float, where: str) -> str:
        """One of the host's addresses, all of which are allowed."""
        addresses: Sequence[str] = _within(deadline, self.resolve, host, port)
        if not addresses:
            raise ImageError(where, f"{host} has no address")
        if refused := [address for address in addresses if not self.allowed(address)]:
            raise ImageError(where, f"{host} is at {refused[0]}, which is not a public address")
        return addresses[0]

    def _content(self, response: http.client.HTTPResponse, where: str) -> bytes:
        if response.status in range(300, 400):
            raise ImageError(
                where, "is elsewhere (a redirect, which is not followed); give the image's own URL"
            )
        if response.status != 200:
            raise ImageError(where, f"the server answered {response.status}")
        if response.getheader("Content-Encoding", "identity").lower() != "identity":
            raise ImageError(where, "the server compressed its answer, which was not asked for")
        if (response.length or 0) > self.max_bytes:
            raise self._too_large(where)
        data = bytearray()
        while piece := response.read1(_CHUNK):
            data += piece
            if len(data) > self.max_bytes:
                raise self._too_large(where)
        if response.length:
            raise ImageError(where, f"ended {response.length} bytes early")
        return bytes(data)

    def _too_large(self, where: str) -> ImageError:
        return ImageError(where, f"is larger than {self.max_bytes >> 20} MiB, the most that is fetched")


def parse_hosts(text: str) -> tuple[str, ...]:
    """The hosts in a list with commas: names, with a port where it is not the usual one; *.example.com for
    all below a name; * for any. In ASCII and without a last dot, as URLs' hosts are compared with them.
    Raises OptionError.
    """
    hosts = tuple(_listed_host(part.strip()) for part in text.split(",") if part.strip())
    if not hosts:
        raise OptionError("--allow-image-hosts: give at least one host, or * for any")
    return hosts


def _listed_host(text: str) -> str:
    if text == "*":
        return text
    below = "*." if text.startswith("*.") else ""
    name = text.removeprefix("*.")
    try:
        parts = urlsplit(f"http://{name}")
        host, port = _ascii_host(parts), parts.port
    except ValueError:  # UnicodeError too
        host, port, parts = "", None, urlsplit("")
    if not host or parts.netloc != name or set(name) & set("@*\\% "):
        raise OptionError(f"--allow-image-hosts {text}: give names such as example.com, *.example.com or *")
    return f"{below}{host}" if port is None else f"{below}{host}:{port}"


def _matches(host: str, pattern: str) -> bool:
    if pattern.startswith("*."):
        return host.endswith(pattern[1:])
    return host == pattern


def _parts(url: str, where: str) -> SplitResult:
    if any(letter <= " " or letter in "\\\x7f" for letter in url):
        raise ImageError(where, "has spaces, backslashes or control characters; write them as %20")
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise ImageError(where, f"is not a URL: {error}") from error
    if parts.scheme not in _PORTS:
        raise ImageError(where, "is not http or https")
    if "@" in parts.netloc:
        raise ImageError(where, "has a user's name in it, which is not sent")
    if not url.isascii() and not (parts.path + parts.query).isascii():
        raise ImageError(where, "has letters that must be written as %xx")
    return parts


def _host(parts: SplitResult, where: str) -> str:
    try:
        host = _ascii_host(parts)
    except UnicodeError as error:
        raise ImageError(where, "has a host's name that cannot be") from error
    if not host or "%" in host or "*" in host:
        raise ImageError(where, "has a host's name that cannot be")
    return host


def _ascii_host(parts: SplitResult) -> str:
    """In small letters and ASCII, without a last dot. Raises UnicodeError."""
    return (parts.hostname or "").encode("idna").decode().lower().rstrip(".")


def _port(parts: SplitResult, where: str) -> int:
    try:
        port = parts.port
    except ValueError as error:
        raise ImageError(where, "has a port that cannot be") from error
    return _PORTS[parts.scheme] if port is None else port


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _within(deadline: float, call: Callable[..., Any], *arguments: Any) -> Any:
    """What `call` gives, or TimeoutError: the system's resolver knows no limit."""
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(call(*arguments))
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=run, daemon=True, name="resolve")
    thread.start()
    thread.join(_left(deadline))
    if not found:
        raise TimeoutError
    if isinstance(found[0], Exception):
        raise found[0]
    return found[0]


class _Timed:
    """A socket for `http.client`, of which all reading and writing ends at one moment: a server that sends a
    byte now and then gets no more time.
    """

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._sock, self._deadline = sock, deadline

    def sendall(self, data: bytes) -> None:
        self._sock.settimeout(_left(self._deadline))
        self._sock.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_TimedReader(self._sock, self._deadline))

    def close(self) -> None:
        """Of the connection; the answer is still to be read, and who opened the socket closes it."""


class _TimedReader(io.RawIOBase):
    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._sock, self._deadline = sock, deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._sock.settimeout(_left(self._deadline))
        return self._sock.recv_into(buffer)
