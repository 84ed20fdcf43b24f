"""Making a named model: from another one, or from files; as they are, converted, or quantized."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyllamacpu.errors import Abandoned, OptionError, OutputError, PyllamacpuError, StoreError
from pyllamacpu.files import GGUF_FILE
from pyllamacpu.gguf.file_kinds import stored_kind
from pyllamacpu.gguf.metadata import architecture_of
from pyllamacpu.gguf.reader import GGUFFile
from pyllamacpu.server.errors import HTTPError
from pyllamacpu.server.fields import wrong
from pyllamacpu.server.ollama_shapes import Report, downloads
from pyllamacpu.store.blobs import remove_unused
from pyllamacpu.store.created import ModelCard, link_files, make_model, names_like
from pyllamacpu.store.resolve import model_files, own_sampling, resolve_model
from pyllamacpu.text.chat import choose_template
from pyllamacpu.text.go_template import is_go_template, to_jinja

if TYPE_CHECKING:
    from pyllamacpu.quantize.plan import QuantizePlan
    from pyllamacpu.weights.output import Progress

_OF_A_FIELD = re.compile(r"(quantize|adapters|template|files):")
_FOLDERS = re.compile(r"(?<![\w.])/(?:[^/\s:]+/)+")  # of a path, as far as its last part


@dataclass(frozen=True)
class Source:
    """Where the weights come from: a model by its name (a path and a card when it is here), or files that
    were sent, by the names that they had.
    """

    name: str = ""
    path: Path | None = None
    card: ModelCard | None = None
    files: Mapping[str, Path] = field(default_factory=dict)
    adapters: Sequence[Path] = ()

    @property
    def sampling(self) -> dict[str, Any]:
        """What the model brings along, without a card of its own."""
        return own_sampling(str(self.path)) if self.path is not None and self.card is None else {}

    @property
    def gguf_files(self) -> list[Path]:
        """The files of the model, when it needs no conversion."""
        if self.path is not None:
            return model_files(self.path)
        return [self.files[name] for name in sorted(self.files) if GGUF_FILE.recognise(self.files[name])]


@dataclass(frozen=True)
class Recipe:
    """What is to be made of what. quantize: the name of a file type."""

    card: ModelCard
    source: Source
    quantize: str | None = None
    adapters: Sequence[Path] = ()  # those of the source, and more

    def check(self) -> None:
        """Raises OptionError for what cannot be made, as far as that is known before a download."""
        from pyllamacpu.quantize.file_types import parse_file_type

        if self.quantize:
            try:
                parse_file_type(self.quantize)
            except OptionError as error:
                raise OptionError(f"quantize: {error}") from None
        with sent_files_named(self.source, self.adapters):
            files = self.source.gguf_files
            if self.source.files and files and len(files) < len(self.source.files):
                raise OptionError("files: a GGUF file is a whole model: other files do not go with it")
            if files:
                with opened(files) as file:
                    self.check_file(file)

    def check_file(self, file: GGUFFile) -> ModelCard:
        """The card with a template that is Jinja or the name of a format. Raises OptionError."""
        from pyllamacpu.quantize.source import check_kind

        template = self.card.template
        check_kind(file)
        for adapter in self.adapters:
            _check_adapter(adapter, file)
        if self.quantize:
            _quantize_plan(file, self.quantize)
        if template:
            template = to_jinja(template) if is_go_template(template) else template
            try:
                choose_template(file.metadata, template)
            except PyllamacpuError as error:
                raise OptionError(f"template: {error}") from None
        return replace(self.card, template=template)


def make(recipe: Recipe, report: Report) -> Path:
    """The model, whole or not at all; its first file. Raises PyllamacpuError."""
    source = recipe.source
    if source.path is None and not source.files:
        report("pulling manifest")
        path = resolve_model(source.name, paths=False, on_download=downloads(report))
        source = replace(source, path=path)
    with sent_files_named(source, recipe.adapters):
        made = _made(recipe, source, report)
    report("writing manifest")
    remove_unused()
    return made


def _made(recipe: Recipe, source: Source, report: Report) -> Path:
    files = source.gguf_files
    if not files:
        return make_model(
            recipe.card, lambda target: _convert(recipe, source, target, report), recipe.adapters
        )
    report("reading model metadata")
    with opened(files) as file:
        card = recipe.check_file(file)
        return make_model(card, lambda target: _weights(recipe, file, files, target, report), recipe.adapters)


@contextlib.contextmanager
def sent_files_named(source: Source, adapters: Sequence[Path]) -> Iterator[None]:
    """What is wrong with files that were sent is a 400 that calls them by their names; where the server keeps
    them is nobody's business.
    """
    try:
        yield
    except (HTTPError, Abandoned, OutputError, StoreError):
        raise
    except PyllamacpuError as error:
        if isinstance(error, OptionError) and _OF_A_FIELD.match(str(error)):
            raise
        path = Path(getattr(error, "path", ""))
        if path in adapters:
            raise wrong("adapters", str(getattr(error, "reason", error))) from error
        if not source.files:
            raise
        name = _name_of(path, source.files)
        reason = str(getattr(error, "reason", error))
        for sent, kept in source.files.items():
            reason = reason.replace(str(kept), sent)
        words = _FOLDERS.sub("", reason)
        raise wrong("files" if name is None else f"files.{name[:80]}", words) from error


def _name_of(path: Path, files: Mapping[str, Path]) -> str | None:
    """What the file at `path` was called: it stands there, or a link of its name does."""
    places = {str(kept): name for name, kept in files.items()}
    if str(path) in places or path.name in files:
        return places.get(str(path), path.name)
    if path.is_symlink():
        return places.get(os.readlink(path))
    return next(iter(files)) if len(files) == 1 else None


def _check_adapter(path: Path, model: GGUFFile) -> None:
    """Raises OptionError for a file that is not an adapter of this kind of model."""
    if not GGUF_FILE.recognise(path) or stored_kind(path) != "adapter":
        raise OptionError("adapters: this is not a LoRA adapter in GGUF (`pyllamacpu convert` makes one)")
    with GGUFFile.open(path) as adapter:
        own, wanted = (architecture_of(file.metadata) for file in (adapter, model))
        if own != wanted:
            raise OptionError(f"adapters: the adapter is for {own} models, the model is {wanted}")


@contextlib.contextmanager
def opened(files: Sequence[Path]) -> Iterator[GGUFFile]:
    """A model of these files, whatever their names are: several are the parts of one that is split."""
    if len(files) == 1 or files == model_files(files[0]):
        with GGUFFile.open(files[0]) as file:
            yield file
        return
    with tempfile.TemporaryDirectory(prefix="pyllamacpu-") as folder:
        named = [Path(folder) / name for name in names_like(files, "model.gguf")]
        for name, path in zip(named, files, strict=True):
            os.symlink(path.absolute(), name)
        with GGUFFile.open(named[0]) as file:
            yield file


def _weights(recipe: Recipe, file: GGUFFile, files: list[Path], target: Path, report: Report) -> None:
    if recipe.quantize:
        from pyllamacpu.quantize.driver import run

        plan = _quantize_plan(file, recipe.quantize)
        _follow(run(plan, target), f"quantizing to {recipe.quantize.upper()}", report)
        return
    link_files(files, target, lambda done, total: report("copying weights", completed=done, total=total))


def _quantize_plan(file: GGUFFile, kind: str) -> QuantizePlan:
    """Raises OptionError for a model that is quantized already, and for types that need importance."""
    from pyllamacpu.quantize.file_types import parse_file_type
    from pyllamacpu.quantize.plan import Settings, check_importance, make_plan

    blocks = {info.type.name for info in file.tensors.values() if info.type.block_size > 1}
    if blocks:
        names = ", ".join(sorted(blocks))
        raise OptionError(f"quantize: the model is quantized already ({names}); start from F32, F16 or BF16")
    plan = make_plan(file, Settings(parse_file_type(kind)))
    try:
        check_importance(plan)
    except OptionError as error:
        raise OptionError(f"quantize: {error}") from None
    return plan


def _convert(recipe: Recipe, source: Source, target: Path, report: Report) -> None:
    """A checkpoint's files (safetensors, config.json, a tokenizer) to GGUF."""
    from pyllamacpu.convert.conversion import ConvertOptions
    from pyllamacpu.convert.sources import plan_conversion

    folder = target.with_name("checkpoint")
    folder.mkdir()
    for name, path in source.files.items():
        os.symlink(path, folder / name)
    out = str(target).replace("{", "{{").replace("}", "}}")
    report("converting model")
    try:
        options = ConvertOptions(
            outfile=out, outtype=(recipe.quantize or "auto").lower(), name=recipe.card.name
        )
        _follow(plan_conversion(folder, options).write(), "converting model", report)
    finally:
        shutil.rmtree(folder)
    with opened([target]) as file:
        replace(recipe, quantize=None).check_file(file)


def _follow(steps: Generator[Progress, None, None], status: str, report: Report) -> None:
    with contextlib.closing(steps):
        for step in steps:
            report(status, completed=step.done, total=step.total)
