"""Times every kernel of every tier of this CPU, on one thread, against what the tier can do at best.

    python benchmarks/kernels.py                     # all tiers, all tensor types
    python benchmarks/kernels.py --tier avx2 --json kernels.json

Builds the check program of tests/csrc with the C compiler (CC), and reads its figures. A tier's limits are
measured by this package in a process of its own. Weights are 64 MB: where caches are larger, one token can be
faster than memory; with --quick (8 MB) it is, so the share of reading is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pyllamacpu.bench.formats import markdown_table
from pyllamacpu.bench.machine import CODE_WIDTHS
from pyllamacpu.gguf.types import TensorType
from pyllamacpu.native import ISA_VARIABLE, isa_names

ROOT = Path(__file__).resolve().parent.parent
CSRC, CHECKS = ROOT / "csrc", ROOT / "tests" / "csrc"
FLAGS = (f"-I{CSRC}", "-std=c11", "-O3", "-ffp-contract=off", "-fno-math-errno")

_MATMUL = re.compile(
    r"\s+(?P<name>\S+)\s+(?P<gbs>[\d.]+) GB/s\s+(?P<one>[\d.]+) Gop/s one token"
    r"\s+(?P<many>[\d.]+) Gop/s (?P<n>\d+) tokens"
)
_SMALL_BATCHES = re.compile(r"\s+(?P<name>\S+)\s+Gop/s of small batches:(?P<rates>.*)")
_RATE = re.compile(r"(?P<n>\d+): (?P<ops>[\d.]+)")
_ATTENTION = re.compile(
    r"\s+(?P<name>\S+)\s+(?P<gbs>[\d.]+) GB/s\s+(?P<ops>[\d.]+) Gop/s attention, "
    r"(?P<rows>\d+) rows, (?P<unit>\w+)"
)
_ROW_KERNEL = re.compile(r"(?P<name>[a-z_]+) (?P<ns>\d+)(?=\s|$)")


class BuildError(Exception):
    """The check program could not be built, or it failed."""


@dataclass(frozen=True)
class Timing:
    """One kernel on one thread: bytes and operations per second (0: not known), `ns` of one call."""

    tier: str
    kernel: str
    bytes_per_second: float = 0.0
    ops_per_second: float = 0.0
    unit: str = ""  # which arithmetic limits it: "int8", "int16", "fp32", or "" for none
    ns: float = 0.0


@dataclass(frozen=True)
class TierLimits:
    """Per second, of one thread."""

    read_bytes: float
    int8_ops: float
    fp32_ops: float
    ops_of_type: dict[str, float] = field(default_factory=dict)  # int8, by the width of the type's codes
    int16_ops: float = 0.0


def build(folder: Path, compiler: str) -> Path:
    """The check program. Raises BuildError."""
    library = (CHECKS / "sources.txt").read_text().split()
    sources = [*CHECKS.glob("*.c"), *(CSRC / "isa").glob("*.c"), *(CSRC / name for name in library)]
    objects = [folder / f"{source.stem}.o" for source in sources]

    def compile_one(source: Path, target: Path) -> None:
        _command([*compiler.split(), *FLAGS, "-c", str(source), "-o", str(target)])

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compile_one, sources, objects))
    program = folder / "check"
    _command([*compiler.split(), *map(str, objects), "-o", str(program), "-lm"])
    return program


def _command(words: list[str]) -> str:
    try:
        done = subprocess.run(words, check=False, capture_output=True, text=True)
    except OSError as error:
        raise BuildError(f"{words[0]}: {error.strerror}") from None
    if done.returncode:
        raise BuildError(f"{' '.join(words[:1])} failed: {(done.stderr or done.stdout).strip()[-2000:]}")
    return done.stdout


def measure_limits(tier: str, seconds: float) -> TierLimits:
    """By a process in which the tier is forced. Raises BuildError."""
    code = (
        "import json, sys; from dataclasses import asdict; from pyllamacpu.gguf.types import TensorType; "
        "from pyllamacpu.bench.machine import code_bits, measure; "
        "found = asdict(measure(1, float(sys.argv[1]))); "
        "bits = {kind.name: code_bits(kind) for kind in TensorType}; "
        "print(json.dumps(found | {'bits': bits}))"
    )
    environment = {**os.environ, ISA_VARIABLE: tier}
    done = subprocess.run(
        [sys.executable, "-c", code, str(seconds)],
        check=False,
        capture_output=True,
        text=True,
        env=environment,
    )
    if done.returncode:
        raise BuildError(f"measuring the limits of {tier}: {done.stderr.strip()[-500:]}")
    found = json.loads(done.stdout)
    of_codes = dict(zip(CODE_WIDTHS, found["code_ops"], strict=True))
    types = {name: of_codes[bits] for name, bits in found["bits"].items() if bits}
    return TierLimits(found["read_bytes"], found["int8_ops"], found["fp32_ops"], types, of_codes[16])


def parse(text: str, tiers: Iterable[str]) -> Iterator[Timing]:
    """The figures that the check program prints after a tier's name."""
    known, tier = set(tiers), ""
    for line in text.splitlines():
        if line.strip() in known and not line.startswith(" "):
            tier = line.strip()
        elif tier and (match := _MATMUL.match(line)):
            yield from _matmul(tier, match)
        elif tier and (match := _SMALL_BATCHES.match(line)):
            yield from _small_batches(tier, match)
        elif tier and (match := _ATTENTION.match(line)):
            kernel = f"attention {match['name']}, {match['rows']} rows"
            yield Timing(tier, kernel, float(match["gbs"]) * 1e9, float(match["ops"]) * 1e9, match["unit"])
        elif tier and line.strip().startswith("ns per"):
            for row in _ROW_KERNEL.finditer(line.partition(":")[2]):
                yield Timing(tier, row["name"], ns=float(row["ns"]))


def _unit(name: str) -> str:
    """What limits the products of a type."""
    return "fp32" if name in (T.name for T in (TensorType.F32, TensorType.F16, TensorType.BF16)) else "int8"


def _small_batches(tier: str, match: re.Match[str]) -> Iterator[Timing]:
    name = match["name"].upper()
    for rate in _RATE.finditer(match["rates"]):
        yield Timing(tier, f"{name}, {rate['n']} tokens", 0.0, float(rate["ops"]) * 1e9, _unit(name))


def _matmul(tier: str, match: re.Match[str]) -> Iterator[Timing]:
    name = match["name"].upper()
    unit = _unit(name)
    yield Timing(tier, f"{name}, 1 token", float(match["gbs"]) * 1e9, float(match["one"]) * 1e9, unit)
    yield Timing(tier, f"{name}, {match['n']} tokens", 0.0, float(match["many"]) * 1e9, unit)


def table(timings: Iterable[Timing], limits: dict[str, TierLimits], from_memory: bool = True) -> str:
    """Rates, and the share of the tier's limits (of reading only if the weights came `from_memory`)."""
    rows = []
    for timing in timings:
        of_reading, of_arithmetic = _shares(timing, limits[timing.tier])
        shares = [of_reading if from_memory else "", of_arithmetic]
        rows.append([timing.tier, timing.kernel, *_rates(timing), *shares])
    return markdown_table(
        ["tier", "kernel", "GB/s", "Gop/s", "ns", "of reading", "of arithmetic"], rows, left=2
    )


def _rates(timing: Timing) -> list[str]:
    scaled = (timing.bytes_per_second / 1e9, timing.ops_per_second / 1e9)
    return [*(f"{value:.1f}" if value else "" for value in scaled), f"{timing.ns:.0f}" if timing.ns else ""]


def _shares(timing: Timing, limits: TierLimits) -> list[str]:
    int8 = limits.ops_of_type.get(timing.kernel.partition(",")[0], limits.int8_ops)
    peaks = {"int8": int8, "int16": limits.int16_ops, "fp32": limits.fp32_ops}
    peak = peaks.get(timing.unit, 0.0)
    shares = (timing.bytes_per_second / limits.read_bytes, timing.ops_per_second / peak if peak else 0.0)
    return [f"{100 * share:.0f} %" if share else "" for share in shares]


def limits_table(limits: dict[str, TierLimits]) -> str:
    rows = [
        [tier, f"{found.read_bytes / 1e9:.1f}", f"{found.int8_ops / 1e9:.0f}", f"{found.fp32_ops / 1e9:.0f}"]
        for tier, found in limits.items()
    ]
    return markdown_table(["tier (1 thread)", "reading GB/s", "int8 Gop/s", "float32 Gop/s"], rows)


def time_kernels(program: Path, tiers: list[str], quick: bool) -> list[Timing]:
    """Raises BuildError when the program fails."""
    options = ["--only", "elementwise", "--bench", *(["--quick"] if quick else [])]
    if len(tiers) > 1:  # all of them are timed then
        return list(parse(_command([str(program), *options]), isa_names()))
    return list(parse(_command([str(program), *options, "--tier", tiers[0]]), tiers))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tier", action="append", choices=isa_names(), help="only this one (repeatable)")
    parser.add_argument("--quick", action="store_true", help="smaller matrices: rough figures in less time")
    parser.add_argument("--seconds", type=float, default=1.0, help="for measuring the limits of a tier (1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="save everything here too")
    args = parser.parse_args()
    tiers = args.tier or isa_names()
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if not compiler or not CHECKS.is_dir():
        sys.exit("error: this needs the source tree and a C compiler (CC)")
    try:
        with tempfile.TemporaryDirectory() as folder:
            program = build(Path(folder), compiler)
            limits = {tier: measure_limits(tier, args.seconds) for tier in tiers}
            timings = [t for t in time_kernels(program, tiers, args.quick) if t.tier in tiers]
    except BuildError as error:
        sys.exit(f"error: {error}")
    print(limits_table(limits))
    print(table(timings, limits, from_memory=not args.quick))
    if args.json:
        found = {
            "limits": {tier: asdict(limit) for tier, limit in limits.items()},
            "kernels": [asdict(timing) for timing in timings],
        }
        temporary = args.json.with_name(f".{args.json.name}.{os.getpid()}.part")
        temporary.write_text(json.dumps(found, indent=2))
        os.replace(temporary, args.json)


if __name__ == "__main__":
    main()
