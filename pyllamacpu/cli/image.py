"""`pyllamacpu image`: what an image is to a model: tiles, tokens, and what it costs."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pyllamacpu.cli.images import ImageFile, mmproj_option, tiles_text
from pyllamacpu.cli.loading_options import override_option, pack_option
from pyllamacpu.cli.options import model_option
from pyllamacpu.cli.param_types import THREADS
from pyllamacpu.units import decimal_bytes

if TYPE_CHECKING:
    from pyllamacpu.engine.tower import Tower
    from pyllamacpu.gguf.overrides import Overrides
    from pyllamacpu.gguf.reader import GGUFFile
    from pyllamacpu.images.tiles import Tiles
    from pyllamacpu.store.paths import PackFolder


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=click.Path())
@model_option
@mmproj_option
@click.option("-t", "--threads", type=THREADS, help="CPU threads; without it the machine's cores.")
@click.option("--run/--no-run", default=True, help="Run the tower, for the cost and the time.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, one object for each image.")
@override_option
@pack_option
def image(
    files: tuple[str, ...],
    model: str | None,
    mmproj: Path | None,
    threads: int | None,
    run: bool,
    as_json: bool,
    kv_overrides: Overrides | None,
    pack_cache: PackFolder | None,
) -> None:
    """Show what images are to a model: how they are cut into tiles, the tokens that they take in a prompt,
    and what the vision tower computes for them.

    \b
    Examples:
      pyllamacpu image photo.jpg -m vision.gguf
      pyllamacpu image *.png -m vision.gguf --no-run
    """
    from pyllamacpu.gguf.reader import GGUFFile
    from pyllamacpu.store import resolve_model

    images = [ImageFile.read(path) for path in files]
    with GGUFFile.open(resolve_model(model), kv_overrides) as file:
        if kv_overrides:
            _check_read(file)
        measure = _Measure(file, mmproj, threads, run, pack_cache)
        try:
            for one in images:
                facts = measure.facts(one)
                click.echo(json.dumps(facts.as_json()) if as_json else facts.text())
        finally:
            measure.close()


def _check_read(file: GGUFFile) -> None:
    """Raises OptionError for overridden keys that nothing reads, as where the text model is loaded."""
    from pyllamacpu.model.config import ModelConfig
    from pyllamacpu.text.load import load_tokenizer

    ModelConfig.from_metadata(file.metadata, file.tensors)
    load_tokenizer(file.metadata)


@dataclass(frozen=True)
class Facts:
    """Of one image. seconds, int8_ops, float_ops: of the tower, if it was run."""

    name: str
    format: str
    n_bytes: int
    width: int  # pixels, as the model sees it
    height: int
    tiles: Tiles
    tile_size: int
    n_tokens: int
    tower: str
    seconds: float | None = None
    int8_ops: float = 0.0
    float_ops: float = 0.0

    def as_json(self) -> dict[str, Any]:
        names = ("name", "format", "n_bytes", "width", "height", "tile_size", "n_tokens", "tower")
        found = {name: getattr(self, name) for name in names}
        tiles = {"rows": self.tiles.rows, "cols": self.tiles.cols, "n_tiles": len(self.tiles.pixels)}
        cost = {"seconds": self.seconds, "int8_ops": self.int8_ops, "float_ops": self.float_ops}
        return {**found, **tiles, **(cost if self.seconds is not None else {})}

    def text(self) -> str:
        size = self.tile_size
        lines = [
            f"{self.name}: {self.format}, {decimal_bytes(self.n_bytes)}, {self.width} x {self.height} pixels",
            f"  tiles   {tiles_text(self.tiles)}, of {size} x {size} pixels",
            f"  tokens  {self.n_tokens} in the prompt",
            f"  tower   {self.tower}",
        ]
        if self.seconds is not None:
            parts = [(self.int8_ops, "int8"), (self.float_ops, "float32")]
            cost = " and ".join(f"{ops / 1e9:.4g} Gop {kind}" for ops, kind in parts if ops)
            lines.append(f"  cost    {cost}; {self.seconds:.2f} s here")
        return "\n".join(lines)


class _Measure:
    """A model's tower; the text model itself is not loaded."""

    def __init__(
        self,
        file: GGUFFile,
        mmproj: Path | None,
        threads: int | None,
        run: bool,
        pack_cache: PackFolder | None,
    ) -> None:
        """Raises GGUFError, ModelError, OptionError."""
        from pyllamacpu.engine.tower_files import missing_tower, open_tower

        arch = str(file.metadata.get("general.architecture"))
        dim = file.metadata.get(f"{arch}.embedding_length")
        found = open_tower(file, dim if isinstance(dim, int) else 0, mmproj)
        if found is None:
            raise missing_tower(file.paths[0], arch, file)
        self._text, self._opened, self._run, self._threads = file, found, run, threads
        self._pack_cache = pack_cache
        self._tower: Tower | None = None

    def facts(self, image: ImageFile) -> Facts:
        from pyllamacpu.images.decode import decode
        from pyllamacpu.images.headers import image_format

        opened, picture = self._opened, decode(image.data, where=image.where)
        tiles = opened.cut(picture)
        tower = f"{opened.file.paths[0].name}: {opened.kind}"
        kind = image_format(image.data, image.where)
        ids = dict.fromkeys(opened.architecture.IMAGE_TOKENS, 0)  # how many is what counts
        n_tokens, size = len(opened.placeholders(ids, tiles)), opened.config.image_size
        width, height = picture.width, picture.height
        found = Facts(image.name, kind, len(image.data), width, height, tiles, size, n_tokens, tower)
        return self._with_cost(found) if self._run else found

    def _with_cost(self, facts: Facts) -> Facts:
        tower, runs = self._loaded(), Counter[str]()
        run = tower.run

        def counted(part: str, rows: Any, wanted: Sequence[int] | None = None) -> Any:
            runs[part] += 1
            return run(part, rows, wanted)

        started = time.perf_counter()
        tower.opened.architecture.encode(tower.config, tower.weights, counted, facts.tiles)
        seconds = time.perf_counter() - started
        costs = [tuple(n * x for x in cost) for part, n in runs.items() for cost in part_costs(tower, part)]
        int8, floats = (sum(cost[i] for cost in costs) for i in (1, 2))
        return replace(facts, seconds=seconds, int8_ops=int8, float_ops=floats)

    def _loaded(self) -> Tower:
        from pyllamacpu.engine.tower import Tower
        from pyllamacpu.model.pack_cache import open_pack_cache
        from pyllamacpu.native import thread_pool
        from pyllamacpu.topology import threads_usable

        if self._tower is None:
            n_threads = threads_usable() if self._threads in (None, 0, -1) else self._threads
            kept = open_pack_cache(self._pack_cache)
            self._tower = Tower(self._opened, thread_pool(n_threads), nullcontext, pack_cache=kept)
        return self._tower

    def close(self) -> None:
        if self._tower is not None:
            self._tower.release()
        if self._opened.file is not self._text:
            self._opened.file.close()


def part_costs(tower: Tower, part: str) -> list[tuple[float, float, float]]:
    """Of each op in a run of a part: bytes read, int8 and float operations."""
    plan, _ = tower.part(part)
    return [tower.cost(part, op)[:3] for op in range(len(plan.ops))]
