"""Where a conversion is written: --outfile with the model's name and type filled in."""

from __future__ import annotations

import re
from pathlib import Path

from pyllamacpu.errors import OptionError

DEFAULT_NAME = "{name}-{ftype}.gguf"


def target_path(pattern: str | None, name: str, ftype: str) -> Path:
    """The output's path. `{name}` and `{ftype}` ({FTYPE}) stand for the model's name and the type.

    A folder gets a file of the default name. Raises OptionError for other braces.
    """
    text = pattern or DEFAULT_NAME
    if text.endswith("/") or Path(text).is_dir():
        text = str(Path(text) / DEFAULT_NAME)
    plain = re.sub(r"[\s/\\]+", "-", name.strip()).strip(".-") or "model"
    values = {"name": plain, "NAME": plain.upper(), "ftype": ftype.lower(), "FTYPE": ftype.upper()}
    values |= {"outtype": values["ftype"], "OUTTYPE": values["FTYPE"]}
    try:
        path = Path(text.format(values["ftype"], **values))
    except (KeyError, IndexError, ValueError, AttributeError):
        raise OptionError(f"--outfile {text!r}: only {{name}} and {{ftype}} can stand in braces") from None
    if not path.absolute().parent.is_dir():
        raise OptionError(f"--outfile: the folder {path.parent} does not exist")
    if path.is_dir():
        raise OptionError(f"--outfile: {path} is a folder")
    return path
