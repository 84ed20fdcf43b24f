"""Names of models as Ollama has them: `model`, `user/model` or `host/user/model`, and `:tag` behind it.

Source: https://github.com/ollama/ollama/blob/main/docs/api.md, "Model names". A name is not a path: nothing
is written to, or read from, a folder that it names.
"""

from __future__ import annotations

import re

_PART = r"[A-Za-z0-9_][\w.:-]*"
_NAME = re.compile(rf"(?=.{{1,200}}\Z)(?:{_PART}/){{0,2}}{_PART}\Z", re.ASCII)
_UNSAID = ("registry.ollama.ai/", "library/")  # what Ollama takes where a name has no host or user
_TAG = ":latest"

NAME_RULE = "a name is model, user/model or host/user/model with letters, digits and . _ - and a :tag"


def is_name(name: str) -> bool:
    """Whether a model may have this name."""
    return _NAME.match(name) is not None


def short_name(name: str) -> str:
    """Without what says the same as nothing: Ollama's own host and user, and the tag `latest`."""
    for part in _UNSAID:
        if name.lower().startswith(part):
            name = name[len(part) :]
    return name[: -len(_TAG)] if name.lower().endswith(_TAG) else name


def same_name(name: str) -> str:
    """The same for all names of one model: case does not tell names apart, nor does a file's suffix."""
    return short_name(name).lower().removesuffix(".gguf")


def file_stem(name: str) -> str:
    """For the files of a model of this name: a plain name that does not look like part of a split file."""
    return re.sub(r"-of-(\d{5})\Z", r"-\1", re.sub("[:/]", "-", name))
