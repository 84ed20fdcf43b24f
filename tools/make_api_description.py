"""Writes pyllamacpu/server/body_fields.json: the fields that the endpoints of `serve` read of a body.

    python tools/make_api_description.py

A server of a tiny model answers one request for each endpoint while every call of an accessor of `Fields` is
noted: name, type, range. A test compares the file with what is read today.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from pyllamacpu.server.description import FIELDS_FILE  # noqa: E402
from pyllamacpu.server.fields import Fields  # noqa: E402

Shape = dict[str, Any]

_QUESTION = [{"role": "user", "content": "hello"}]
_OPTIONS = {"options": {"num_predict": 1}, "stream": False, "model": "tiny"}
REQUESTS: dict[str, Shape] = {
    "/v1/chat/completions": {"messages": _QUESTION, "max_tokens": 1, "parallel_tool_calls": True},
    "/v1/completions": {"prompt": "hello", "max_tokens": 1},
    "/v1/embeddings": {"input": "hello"},
    "/v1/responses": {"input": "hello", "max_output_tokens": 1, "parallel_tool_calls": True},
    "/v1/responses/input_tokens": {"input": "hello", "parallel_tool_calls": True},
    "/v1/messages": {"messages": _QUESTION, "max_tokens": 1},
    "/v1/messages/count_tokens": {"messages": _QUESTION},
    "/api/generate": {"prompt": "hello", **_OPTIONS},
    "/api/chat": {"messages": _QUESTION, "parallel_tool_calls": True, **_OPTIONS},
    "/api/embed": {"model": "tiny", "input": "hello"},
    "/api/embeddings": {"model": "tiny", "prompt": "hello"},
    "/api/create": {"model": "new", "from": "tiny", "stream": False},
    "/api/show": {"model": "tiny"},
    "/api/pull": {"model": "../none"},
    "/api/push": {"model": "tiny"},
    "/api/copy": {"source": "tiny", "destination": "copied"},
    "/api/delete": {"model": "copied"},
    "/completion": {"prompt": "hello", "n_predict": 1},
    "/infill": {"input_prefix": "a", "input_suffix": "b", "n_predict": 1},
    "/tokenize": {"content": "hello"},
    "/detokenize": {"tokens": [1]},
    "/apply-template": {"messages": _QUESTION, "parallel_tool_calls": True},
    "/embedding": {"content": "hello"},
    "/rerank": {},
}


def key(fields: Fields, name: str) -> str:
    """`options/seed` is within `options`; a name may have dots itself."""
    return fields.where.replace(".", "/") + name


def noted(found: dict[str, Shape], name: str, shape: Shape) -> None:
    """A type goes before none, and what is refused before what is ignored."""
    if "[" not in name and (shape or name not in found):
        found[name] = shape


def _strings(at_most: int) -> Shape:
    text = {"type": "string", "minLength": 1}
    return {"anyOf": [text, {"type": "array", "items": text, "maxItems": at_most}]}


SHAPES: dict[str, Callable[..., Shape]] = {
    "raw": lambda: {},
    "text": lambda default=None: {"type": "string"},
    "flag": lambda default=False: {"type": "boolean"},
    "integer": lambda low, high, default=None: {"type": "integer", "minimum": low, "maximum": high},
    "number": lambda low, high, default=None: {"type": "number", "minimum": low, "maximum": high},
    "strings": lambda at_most=64: _strings(at_most),
    "choice": lambda known, default=None: {"type": "string", "enum": sorted(known)},
    "items": lambda: {"type": "array"},
    "nested": lambda: {"type": "object"},
    "refuse": lambda why, *quiet: {"enum": [*quiet]},
}


@contextmanager
def recording() -> Iterator[dict[str, Shape]]:
    """What is read of bodies while the block runs, by name."""
    found: dict[str, Shape] = {}
    kept = {name: getattr(Fields, name) for name in (*SHAPES, "ignore")}

    def wrapped(method: str) -> Any:
        def call(self: Fields, name: str, *arguments: Any, **named: Any) -> Any:
            try:
                return kept[method](self, name, *arguments, **named)
            finally:
                noted(found, key(self, name), SHAPES[method](*arguments, **named))

        return call

    def ignore(self: Fields, *names: str) -> None:
        for name in names:
            noted(found, key(self, name), {})
        kept["ignore"](self, *names)

    for method in SHAPES:
        setattr(Fields, method, wrapped(method))
    Fields.ignore = ignore  # type: ignore[method-assign]
    try:
        yield found
    finally:
        for name, method in kept.items():
            setattr(Fields, name, method)


def read_fields(folder: Path) -> dict[str, dict[str, Shape]]:
    """By path, what each endpoint reads; `folder` is for the model and its store."""
    from serving import serving, wait_until
    from tiny_model import write_model

    fields: dict[str, dict[str, Shape]] = {}
    with serving(("tiny", write_model(folder / "tiny.gguf"))) as running, running.client() as client:
        wait_until(lambda: running.get("/health").status_code == 200)
        for path, body in REQUESTS.items():
            with recording() as found:
                method = "DELETE" if path == "/api/delete" else "POST"
                response = client.request(method, path, json=body)
            refused = path in ("/api/pull", "/api/push", "/rerank")
            assert (response.status_code == 400) == refused, f"{path}: {response.text}"
            fields[path] = dict(sorted(found.items()))
    return fields


def written(fields: dict[str, dict[str, Shape]]) -> str:
    """A line for each field."""
    blocks = []
    for path, own in fields.items():
        rows = ",\n".join(f"  {json.dumps(name)}: {json.dumps(shape)}" for name, shape in own.items())
        blocks.append(f" {json.dumps(path)}: {{\n{rows}\n }}" if rows else f" {json.dumps(path)}: {{}}")
    return "{\n" + ",\n".join(blocks) + "\n}\n"


def main() -> None:
    import os

    with tempfile.TemporaryDirectory() as folder:
        os.environ["PYLLAMACPU_HOME"] = folder
        FIELDS_FILE.write_text(written(read_fields(Path(folder))), encoding="utf-8")


if __name__ == "__main__":
    main()
