"""A picture of tokens per second over whatever varies: depth, sequences, batch size, threads or length."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pyllamacpu.errors import OptionError
from pyllamacpu.files import check_output, picture_kind, write_whole

# What can lie along the x axis, in order of preference: key, and its title.
_AXES = (
    ("n_depth", "tokens before the test"),
    ("pl", "sequences at once"),
    ("n_ubatch", "tokens of a step"),
    ("n_batch", "tokens of a step"),
    ("n_threads", "threads"),
)
Point = tuple[float, float, float]  # x, tokens/s, standard deviation


def check_path(path: Path, inputs: Sequence[Path] = (), force: bool = False) -> None:
    """Raises OptionError when `path` cannot be a picture's, OutputError when it must not be written to."""
    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise OptionError(f"--plot {path}: the name must end in .png, .svg or .pdf")
    if not path.absolute().parent.is_dir():
        raise OptionError(f"--plot {path}: there is no folder {path.absolute().parent}")
    check_output(path, inputs, picture_kind(path.suffix), force)


def check_library() -> None:
    """Raises OptionError when pictures cannot be drawn here."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise OptionError(
            f"--plot needs matplotlib ({error}); install it with: pip install 'pyllamacpu[plot]'"
        ) from None


def series(rows: Sequence[dict[str, Any]]) -> tuple[str, dict[str, list[Point]]]:
    """The title of the x axis, and the lines by their names. `rows` are of results, or of batched results."""
    points = [point for row in rows for point in _points(row)]
    key, title = next(
        ((key, title) for key, title in _AXES if len({row.get(key) for row in rows if key in row}) > 1),
        ("length", "tokens of the test"),
    )
    constant = {
        name for name in ("model", "type_k", "type_v", "n_threads", "n_ubatch") if _same(points, name)
    }
    lines: dict[str, list[Point]] = {}
    for point in points:
        named = [str(point[name]) for name in ("model", "type_k", "type_v") if name not in constant]
        named += [f"{point[name]} threads" for name in ("n_threads",) if name not in constant and name != key]
        kind = point["kind"] if key == "length" else point["test"]
        lines.setdefault(" ".join([kind, *named]), []).append((point[key], point["speed"], point["spread"]))
    return title, {name: sorted(line) for name, line in lines.items()}


def _points(row: dict[str, Any]) -> list[dict[str, Any]]:
    """One point for a result; two (prompts and generation) for a batched one."""
    if "pl" in row:
        both = (("pp", row["pp"], "speed_pp"), ("tg", row["tg"], "speed_tg"))
        return [
            {
                **row,
                "model": "",
                "kind": kind,
                "test": f"{kind}{n}",
                "length": n,
                "speed": row[key],
                "spread": 0.0,
            }
            for kind, n, key in both
            if n
        ]
    n_prompt, n_gen = row["n_prompt"], row["n_gen"]
    kind = "pp+tg" if n_prompt and n_gen else "pp" if n_prompt else "tg"
    test = "+".join(f"{name}{n}" for name, n in (("pp", n_prompt), ("tg", n_gen)) if n)
    point = {**row, "model": row["model_type"], "kind": kind, "test": test, "length": n_prompt + n_gen}
    return [point | {"speed": row["median_ts"], "spread": row["stddev_ts"]}]


def _same(points: Sequence[dict[str, Any]], name: str) -> bool:
    return len({point.get(name) for point in points}) <= 1


def plot(rows: Sequence[dict[str, Any]], path: Path, title: str) -> None:
    """Writes the picture to `path`, whole or not at all."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    x_title, lines = series(rows)
    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name, line in lines.items():
        x, y, spread = zip(*line, strict=True)
        axes.errorbar(x, y, yerr=spread, marker="o", capsize=3, label=name)
    axes.set(xlabel=x_title, ylabel="tokens/s", title=title)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    image = io.BytesIO()
    figure.savefig(image, format=path.suffix[1:].lower(), dpi=150)
    write_whole(path, image.getvalue())
