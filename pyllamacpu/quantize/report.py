"""What quantizing to a size chose and what it cost: as a table, as JSON, as a picture."""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyllamacpu.evaluate import Divergence
from pyllamacpu.files import FileKind, begins_with, check_output, picture_kind, read_start, write_whole
from pyllamacpu.gguf.reader import TensorInfo
from pyllamacpu.quantize.allocate import Candidate
from pyllamacpu.quantize.recipes import layer_of
from pyllamacpu.quantize.target import Chosen, Measured, curve

MIB = 1 << 20


@dataclass(frozen=True, eq=False)
class Report:
    """All there is to tell. `found`: the divergence of the file that was written, on the same text."""

    source: str
    output: str
    n_bytes: int  # of the file
    text: str  # what was read
    chosen: Chosen
    measured: Measured
    found: Divergence

    @property
    def rows(self) -> list[tuple[TensorInfo, Candidate, float, float]]:
        """Of each tensor: description, type, share of energy lost, divergence per such share."""
        return [
            (
                item.info,
                self.chosen.types[item.info.name],
                item.of[self.chosen.types[item.info.name].kind],
                self.measured.cost[item.info.name],
            )
            for item in self.measured.errors
        ]

    @property
    def bits(self) -> float:
        """Per weight, of the tensors that types were chosen for."""
        n_bytes = sum(candidate.n_bytes for candidate in self.chosen.types.values())
        return 8 * n_bytes / sum(item.info.n_elements for item in self.measured.errors)


def as_json(report: Report) -> dict[str, Any]:
    """Divergences in nats, sizes in bytes."""
    return {
        "source": report.source,
        "output": report.output,
        "bytes": report.n_bytes,
        "bits_per_weight": report.bits,
        "text": report.text,
        "predicted_kld": report.chosen.predicted,
        "measured": report.found.row(),
        "tensors": [
            {
                "name": info.name,
                "shape": list(info.shape),
                "source_type": info.type.name,
                "type": candidate.kind.name,
                "bytes": candidate.n_bytes,
                "error": error,
                "kld_per_error": cost,
                "predicted_kld": candidate.cost,
            }
            for info, candidate, error, cost in report.rows
        ],
        "curve": [{"bytes": n, "predicted_kld": kld} for n, kld in curve(report.measured)],
    }


def by_kind(report: Report) -> list[list[str]]:
    """A row per kind of tensor: its types with their numbers of tensors, bits per weight, divergence."""
    kinds: dict[str, list[tuple[TensorInfo, Candidate]]] = {}
    for info, candidate, _, _ in report.rows:
        kinds.setdefault(re.sub(r"^blk\.\d+\.", "", info.name).removesuffix(".weight"), []).append(
            (info, candidate)
        )
    table = []
    for kind, items in kinds.items():
        types = Counter(candidate.kind for _, candidate in items)
        shown = ", ".join(
            f"{name.name} x {n}" for name, n in sorted(types.items(), key=lambda t: t[0].bits_per_weight)
        )
        n_bytes = sum(candidate.n_bytes for _, candidate in items)
        bits = 8 * n_bytes / sum(info.n_elements for info, _ in items)
        cost = sum(candidate.cost for _, candidate in items)
        table.append([kind, shown, f"{n_bytes / MIB:.1f}", f"{bits:.2f}", f"{cost:.6f}"])
    return table


_KINDS = (
    FileKind("a report", lambda path: b"\nMade of " in read_start(path, 4096)),
    FileKind("a report", begins_with(b'{\n "source": ')),
    picture_kind(".png"),
)
KIND_HEAD = ("tensors", "types", "MiB", "bits", "predicted KLD")


def as_markdown(report: Report) -> str:
    found = report.found
    kld, ratio = found.mean_kld, found.ln_ppl_ratio.exp()
    tensors = [
        [
            info.name,
            candidate.kind.name,
            f"{candidate.n_bytes / MIB:.2f}",
            f"{error:.2e}",
            f"{cost:.3f}",
            f"{candidate.cost:.2e}",
        ]
        for info, candidate, error, cost in report.rows
    ]
    sizes = [[f"{n / MIB:.1f}", f"{cost:.6f}"] for n, cost in curve(report.measured)]
    parts = [
        f"# {Path(report.output).name}",
        f"Made of {report.source}: {report.n_bytes / MIB:.1f} MiB, {report.bits:.2f} bits per weight.",
        f"Measured on {report.text}, {found.n_tokens} tokens, of which {found.kld.size} were compared: mean "
        f"KL divergence {kld.value:.6f} ± {kld.error:.6f} nats (predicted: {report.chosen.predicted:.6f}), "
        f"the same most likely token in {100 * found.same_top_share.value:.2f} %, perplexity times "
        f"{ratio.value:.4f}.",
        "## What was chosen",
        _markdown(KIND_HEAD, by_kind(report)),
        "## What other sizes would cost",
        _markdown(("MiB of tensors", "predicted KLD"), sizes),
        "## Tensors",
        "Error: the share of the weighted energy that is lost. KLD per error: how much the model minds.",
        _markdown(("tensor", "type", "MiB", "error", "KLD per error", "predicted KLD"), tensors),
    ]
    return "\n\n".join(parts) + "\n"


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def check_reports(stem: Path, inputs: Sequence[Path], force: bool) -> None:
    """Raises OutputError when a file of the report must not be written."""
    for kind, path in zip(_KINDS, _paths(stem), strict=True):
        check_output(path, inputs, kind, force)


def write(report: Report, stem: Path) -> list[Path]:
    """STEM.md and STEM.json, and STEM.png where matplotlib is installed; the files written."""
    text, data, picture = _paths(stem)
    write_whole(text, as_markdown(report))
    write_whole(data, json.dumps(as_json(report), indent=1) + "\n")
    return [text, data, picture] if _draw(report, picture) else [text, data]


def _paths(stem: Path) -> list[Path]:
    return [stem.with_name(stem.name + suffix) for suffix in (".md", ".json", ".png")]


def _draw(report: Report, path: Path) -> bool:
    """The curve of divergence over size, and the bits of each tensor by layer; False without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    points = [(n / MIB, kld) for n, kld in curve(report.measured) if kld > 0]
    left.plot(*zip(*points, strict=True), color="tab:blue", label="predicted")
    here = (report.chosen.n_bytes / MIB, report.found.mean_kld.value)
    left.plot(*here, "o", color="tab:red", label="this file, measured")
    left.set(xlabel="MiB of tensors", ylabel="mean KL divergence, nats", yscale="log")
    left.legend()
    kinds: dict[str, list[tuple[int, float]]] = {}
    for info, candidate, _, _ in report.rows:
        if (layer := layer_of(info.name)) >= 0:
            kinds.setdefault(info.name.split(".")[2], []).append((layer, candidate.kind.bits_per_weight))
    for kind, items in kinds.items():
        right.plot(*zip(*sorted(items), strict=True), drawstyle="steps-mid", label=kind)
    right.set(xlabel="layer", ylabel="bits per weight")
    right.legend(fontsize="small")
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=120)
    write_whole(path, image.getvalue())
    return True
