"""Names of GGUF files: their quantization, their parts, and which one of many is meant."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from pyllamacpu.errors import OptionError, StoreError

_FOUR_BITS = ("Q4_K_M", "Q4_K_S", "Q4_K_L", "Q4_K", "IQ4_XS", "IQ4_NL", "Q4_0", "Q4_1", "MXFP4")
_MORE_BITS = ("Q5_K_M", "Q5_K_S", "Q5_K", "Q5_0", "Q5_1", "Q6_K", "Q8_0")
_LESS_BITS = ("Q3_K_L", "Q3_K_M", "Q3_K_S", "IQ3_M", "IQ3_S", "IQ3_XXS", "Q2_K", "IQ2_M", "IQ2_S", "IQ2_XS")
PREFERRED = (*_FOUR_BITS, *_MORE_BITS, *_LESS_BITS, "BF16", "F16", "F32")
"""What to take when no quantization is named: four bits first, as others do, then the nearest better ones."""

_PART = re.compile(r"-(\d{5})-of-(\d{5})$")
_QUANT = re.compile(
    r"(?:^|[-._/])((?:UD-)?(?:I?Q\d(?:_(?:\d|K|NL|XXS|XS|XL|S|M|L))+|TQ[12]_0|MXFP4(?:_MOE)?|BF16|F16|FP16|F32|FP32))"
    r"(?=$|[-._/])",
    re.IGNORECASE,
)
_NO_MODEL = re.compile(r"(?:^|[-._/])(?:mmproj|imatrix|mtp|ggml-vocab)(?=$|[-._])", re.IGNORECASE)


@dataclass(frozen=True)
class Part:
    """Place of a file in a split model: part `number` of `count`, both from 1."""

    stem: str
    number: int
    count: int


def split_part(filename: str) -> Part:
    """The model name and part number of a file name; an unsplit file is part 1 of 1."""
    stem = filename[: -len(".gguf")] if filename.lower().endswith(".gguf") else filename
    if match := _PART.search(stem):
        return Part(stem[: match.start()], int(match[1]), int(match[2]))
    return Part(stem, 1, 1)


def part_names(filename: str) -> list[str]:
    """All file names of the model that `filename` is a part of, in order."""
    part = split_part(filename)
    if part.count == 1 and not _PART.search(filename[: -len(".gguf")]):
        return [filename]
    return [f"{part.stem}-{number:05d}-of-{part.count:05d}.gguf" for number in range(1, part.count + 1)]


def quant_of(filename: str) -> str | None:
    """The quantization in a file's name, in capitals, or None."""
    found = _QUANT.findall(split_part(filename).stem)
    return found[-1].upper() if found else None


def is_model(filename: str) -> bool:
    """True for the first (or only) file of a language model; vision projectors and the like are not one."""
    name = PurePosixPath(filename).name
    return name.lower().endswith(".gguf") and split_part(filename).number == 1 and not _NO_MODEL.search(name)


def choose_file(filenames: Iterable[str], quant: str | None, where: str) -> str:
    """The one model file of a repository that is meant by `quant` (any case), or the best default.

    Raises StoreError, naming what there is, when nothing fits.
    """
    models = sorted((name for name in filenames if is_model(name)), key=lambda name: (len(name), name))
    if not models:
        raise StoreError(f"{where} holds no GGUF model; look for a repository with GGUF files")
    if quant is None:
        return _default_file(models)
    fitting = _fitting(models, quant)
    if not fitting:
        there = ", ".join(sorted({quant_of(name) or name for name in models}))
        raise StoreError(f"{where} has no {quant}; it has {there}")
    return fitting[0]


def matching_files(there: Sequence[str], pattern: str | None, where: str) -> list[str]:
    """The files of a repository that a name or glob means: one file, or all parts of one model in
    order. None means the best four-bit model. Raises OptionError when no file or several fit.
    """
    if pattern is None:
        return part_names(choose_file(there, None, where))
    found = [name for name in there if fnmatch.fnmatch(name, pattern)]
    fitting = {tuple(part_names(name)) if name.lower().endswith(".gguf") else (name,) for name in found}
    if len(fitting) != 1:
        what = "no file matches" if not fitting else f"{len(fitting)} files match"
        listing = ", ".join(sorted(found or there)[:40])
        raise OptionError(f"{where}: {what} {pattern!r}; choose one of: {listing}")
    return list(fitting.pop())


def _fitting(models: Sequence[str], quant: str) -> list[str]:
    """The files of a quantization; one that is exactly this is before one that merely contains the name."""
    wanted = quant.upper()
    exact = [name for name in models if quant_of(name) == wanted]
    by_name = [name for name in models if wanted in (name.upper(), split_part(name).stem.upper())]
    pattern = re.compile(rf"(?:^|[-._/]){re.escape(quant)}(?=$|[-._/])", re.IGNORECASE)
    return exact or by_name or [name for name in models if pattern.search(split_part(name).stem)]


def _default_file(models: Sequence[str]) -> str:
    """The first file in the order of preference; of unknown quantizations the shortest name."""
    ranks = {quant: rank for rank, quant in enumerate(PREFERRED)}
    return min(models, key=lambda name: ranks.get(quant_of(name) or "", len(ranks)))
