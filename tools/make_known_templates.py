"""Adds chat templates to pyllamacpu/text/known_templates.txt: read each one before.

    python tools/make_known_templates.py NAME=template.jinja model.gguf …

A template is given as a file (with and without its last line break, since files of templates often have one
that the model's config has not), or taken from a GGUF file. The list says which templates render without a
child process.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path

from pyllamacpu.gguf import GGUFFile
from pyllamacpu.text.known_templates import LIST


def templates(argument: str) -> Iterator[tuple[str, str]]:
    """(source, name) of each template that an argument means."""
    name, _, path = argument.rpartition("=")
    if path.endswith(".gguf"):
        with GGUFFile.open(path) as file:
            for key, value in file.metadata.items():
                if key.startswith("tokenizer.chat_template") and isinstance(value, str):
                    yield value, name or Path(path).stem
        return
    source = Path(path).read_text(encoding="utf-8")
    yield source, name or Path(path).stem
    if source.endswith("\n"):
        yield source.removesuffix("\n"), name or Path(path).stem


def main() -> None:
    if not sys.argv[1:]:
        raise SystemExit(__doc__)
    lines = LIST.read_text(encoding="ascii").splitlines()
    head = [line for line in lines if line.startswith("#")]
    rows = {line.split()[0]: line.split(maxsplit=1)[1] for line in lines if line and not line.startswith("#")}
    for argument in sys.argv[1:]:
        for source, name in templates(argument):
            rows.setdefault(hashlib.sha256(source.encode()).hexdigest(), name)

    def by_name(row: tuple[str, str]) -> tuple[str, str]:
        return row[1].lower(), row[0]

    body = [f"{digest} {name}" for digest, name in sorted(rows.items(), key=by_name)]
    LIST.write_text("\n".join([*head, *body]) + "\n", encoding="ascii")


if __name__ == "__main__":
    main()
