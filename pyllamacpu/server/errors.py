"""What is answered to a request that cannot be served: a status, and each dialect's own shape of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pyllamacpu.errors import (
    ImageError,
    NoTokenError,
    PyllamacpuError,
    StoreError,
    TextSizeError,
    UnseenImageError,
)

_FIELD = re.compile(r"([A-Za-z_]\w*(?:\.\w+|\[\d+\])*):", re.ASCII)
_OPENAI_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "invalid_request_error",
    500: "server_error",
    503: "unavailable_error",
}
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    500: "api_error",
    503: "overloaded_error",
}


class HTTPError(PyllamacpuError):
    """A refusal. `param` names the field that is wrong, `code` is a word for programs, `retry_after` is in
    seconds.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code, self.retry_after = status, param, code, retry_after

    @property
    def headers(self) -> dict[str, str]:
        return {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}


_NO_TOKEN = (
    "logit_bias: it forbids (or ignore_eos does) every token that may come next in an answer of this form"
)


def too_long(n_tokens: str, n_ctx: int) -> HTTPError:
    """The refusal of a prompt of so many tokens."""
    return HTTPError(
        f"the prompt has {n_tokens} tokens; the context of {n_ctx} tokens must hold it and an answer",
        code="context_length_exceeded",
    )


def as_http_error(error: BaseException) -> HTTPError:
    """The refusal that stands for any error. What is not the client's fault is a 500."""
    if isinstance(error, HTTPError):
        return error
    if isinstance(error, UnseenImageError):
        return HTTPError(str(error), param=error.where, code="images_not_supported")
    if isinstance(error, ImageError):
        return HTTPError(str(error), param=error.where, code="invalid_image")
    if isinstance(error, TextSizeError):
        return HTTPError(str(error), status=413, code="text_too_large")
    if isinstance(error, StoreError):
        return HTTPError(str(error), status=404, code="model_not_found")
    if isinstance(error, NoTokenError):
        return HTTPError(_NO_TOKEN, param="logit_bias")
    if isinstance(error, PyllamacpuError) and isinstance(error, ValueError):  # an argument's fault
        return HTTPError(str(error), param=_param_of(str(error)))
    if isinstance(error, PyllamacpuError):
        return HTTPError(str(error), status=500)
    if isinstance(error, MemoryError):
        return HTTPError("out of memory", status=503, retry_after=5)
    return HTTPError(f"internal error ({type(error).__name__}); the log says more", status=500)


def _param_of(message: str) -> str | None:
    """The option or field that a message begins with: `top_k: …`, `response_format.schema: …`."""
    found = _FIELD.match(message)
    return None if found is None else found[1]


_NO_HEADERS: Mapping[str, str] = {}


def error_body(path: str, error: HTTPError, headers: Mapping[str, str] = _NO_HEADERS) -> dict[str, Any]:
    """The body in the shape of the dialect that `path` belongs to; below /v1, which two of them share, in
    Anthropic's where the request's `headers` (lower case) are those of its client.
    """
    is_anthropic = path.startswith("/v1/") and "anthropic-version" in headers
    if is_anthropic or path.startswith("/v1/messages"):
        kind = _ANTHROPIC_TYPES.get(error.status, "invalid_request_error")
        return {"type": "error", "error": {"type": kind, "message": str(error)}}
    if path.startswith("/api/"):
        return {"error": str(error)}
    return openai_error(error)


def openai_error(error: HTTPError) -> dict[str, Any]:
    fields: Mapping[str, Any] = {
        "message": str(error),
        "type": _OPENAI_TYPES.get(error.status, "invalid_request_error"),
        "param": error.param,
        "code": error.code or error.status,
    }
    return {"error": dict(fields)}
