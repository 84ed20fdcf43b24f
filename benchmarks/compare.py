"""Runs pyllamacpu and other programs side by side, on the same files and tests, and prints the ratios.

    python benchmarks/compare.py --model 1B:Q4_K_M --model model.gguf -p 512 -n 128 \\
        --peer llama.cpp="/path/to/llama-bench -fa 1" --peer llama-cpp-python --rounds 3

A peer is NAME=COMMAND for any program with llama-bench's options and JSON, extra options in the command, or
the word llama-cpp-python when that package is installed. Programs run in turn (A B B A …), so that a slow
minute of the machine hits all of them. A ratio is our median over the peer's.
Models are files, or SHAPE:TYPE of synthetic.py, made on demand and kept.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import synthetic

from pyllamacpu.bench.formats import markdown_table
from pyllamacpu.bench.ranges import numbers, pairs
from pyllamacpu.errors import OptionError, PyllamacpuError

OURS = "pyllamacpu"
BINDING = "llama-cpp-python"
Key = tuple[str, int, int, int]  # model, prompt, generated tokens, depth


@dataclass(frozen=True)
class Program:
    """`command` takes llama-bench's options and prints its JSON with -o json."""

    name: str
    command: tuple[str, ...]


@dataclass(frozen=True)
class Test:
    """One cell of a comparison; tokens."""

    n_prompt: int
    n_gen: int
    n_depth: int

    @property
    def name(self) -> str:
        parts = [f"{kind}{n}" for kind, n in (("pp", self.n_prompt), ("tg", self.n_gen)) if n]
        return "+".join(parts) + (f" @ d{self.n_depth}" if self.n_depth else "")

    def options(self) -> list[str]:
        if self.n_prompt and self.n_gen:
            sizes = ["-p", "0", "-n", "0", "-pg", f"{self.n_prompt},{self.n_gen}"]
        else:
            sizes = ["-p", str(self.n_prompt), "-n", str(self.n_gen)]
        return [*sizes, *(["-d", str(self.n_depth)] if self.n_depth else [])]


@dataclass(frozen=True)
class Job:
    """What every program is asked to do."""

    models: tuple[Path, ...]
    tests: tuple[Test, ...]
    options: tuple[str, ...]  # for all programs
    repetitions: int
    rounds: int
    timeout: float  # seconds of one run of a program


class Failure(Exception):
    """A program that did not run; the comparison goes on without that cell."""


def parse_program(text: str) -> Program:
    """NAME=COMMAND, or the name of the binding. Raises OptionError."""
    name, mark, command = text.partition("=")
    if text == BINDING:
        return Program(BINDING, (sys.executable, str(Path(__file__).resolve()), "--serve-binding"))
    words = shlex.split(command)
    if not mark or not name or not words:
        raise OptionError(f"--peer {text}: write NAME=COMMAND, or {BINDING}")
    if name == OURS:
        raise OptionError(f"--peer {text}: {OURS} is always there; take another name")
    return Program(name, tuple(words))


def our_program(extra: str) -> Program:
    return Program(OURS, (sys.executable, "-m", "pyllamacpu", "bench", *shlex.split(extra)))


def run_program(program: Program, model: Path, test: Test, job: Job) -> dict[str, Any]:
    """The row that the program prints for the test. Raises Failure."""
    command = [*program.command, "-m", str(model), *test.options(), *job.options, "-r", str(job.repetitions)]
    try:
        done = subprocess.run(
            [*command, "-o", "json"], check=False, capture_output=True, text=True, timeout=job.timeout
        )
    except subprocess.TimeoutExpired:
        raise Failure(f"took more than {job.timeout:g} s") from None
    except OSError as error:
        raise Failure(f"{program.command[0]}: {error.strerror}") from None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise Failure(f"exit code {done.returncode}: {lines[-1][:200] if lines else 'no message'}")
    return matching_row(done.stdout, test)


def matching_row(text: str, test: Test) -> dict[str, Any]:
    """The row of `test` in a JSON array; a program may print other lines before it. Raises Failure."""
    start = text.find("[\n") if "[\n" in text else text.find("[")
    try:
        rows = json.loads(text[max(start, 0) :])
    except ValueError:
        raise Failure(f"printed no JSON: {text[:80]!r}") from None
    for row in rows if isinstance(rows, list) else []:
        found = (row.get("n_prompt"), row.get("n_gen"), row.get("n_depth", 0))
        if found == (test.n_prompt, test.n_gen, test.n_depth) and samples(row):
            return dict(row)
    raise Failure(f"printed no result for {test.name}")


def samples(row: dict[str, Any]) -> list[float]:
    """Tokens per second of the row's repetitions."""
    return [float(x) for x in row.get("samples_ts") or [row[key] for key in ("avg_ts",) if key in row]]


@dataclass
class Cell:
    """What one program did in one test: tokens/s of all repetitions of all rounds, a row of each round."""

    speeds: list[float]
    rows: list[dict[str, Any]]
    failure: str = ""

    @property
    def row(self) -> dict[str, Any]:
        """The last row."""
        return self.rows[-1] if self.rows else {}

    @property
    def median(self) -> float:
        return statistics.median(self.speeds)

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles, as share of the median; 0 for less than three samples."""
        if len(self.speeds) < 3:
            return 0.0
        low, _, high = statistics.quantiles(self.speeds, n=4, method="inclusive")
        return (high - low) / 2 / self.median


Cells = dict[tuple[Path, Test, str], Cell]


def compare(programs: Sequence[Program], job: Job, say: Any = lambda text: None) -> Cells:
    """Runs everything, the programs in turn within each round, backwards in every second one."""
    cells: Cells = {}
    for model in job.models:
        for test in job.tests:
            for turn in range(job.rounds):
                for program in programs if turn % 2 == 0 else list(reversed(programs)):
                    cell = cells.setdefault((model, test, program.name), Cell([], []))
                    if cell.failure:
                        continue
                    say(f"{model.name} {test.name} round {turn + 1}/{job.rounds}: {program.name}")
                    try:
                        cell.rows.append(run_program(program, model, test, job))
                        cell.speeds += samples(cell.row)
                    except Failure as failure:
                        cell.failure = str(failure)
                        say(f"  {program.name}: {failure}")
    return cells


# Showing


def table(cells: Cells, programs: Sequence[Program], job: Job) -> str:
    """Medians in tokens/s with their spread, ratios of ours to each peer's, and our share of the limit."""
    peers = [program.name for program in programs if program.name != OURS]
    head = [
        "model",
        "test",
        f"{OURS} t/s",
        *(f"{name} t/s" for name in peers),
        *(f"ratio to {name}" for name in peers),
    ]
    rows = []
    for model in job.models:
        for test in job.tests:
            ours = cells[model, test, OURS]
            others = [cells[model, test, name] for name in peers]
            name = str(ours.row.get("model_type") or model.stem)
            ratios = [_ratio(ours, other) for other in others]
            rows.append([name, test.name, *map(_speed, [ours, *others]), *ratios, *_limit(ours)])
    return markdown_table([*head, "rate", "of limit"], rows, left=2)


def _speed(cell: Cell) -> str:
    return "failed" if not cell.speeds else f"{cell.median:.2f} ± {100 * cell.spread:.1f} %"


def _ratio(ours: Cell, other: Cell) -> str:
    return f"{ours.median / other.median:.2f}" if ours.speeds and other.speeds else "–"


_RESOURCES = {
    "read": ("read_bytes", "GB/s"),
    "int8": ("int8_ops", "Gop/s int8"),
    "fp32": ("fp32_ops", "Gflop/s"),
}


def _limit(cell: Cell) -> list[str]:
    """The median rate, and its share of the limit in the same run: on a shared machine limits change."""
    resource = cell.row.get("limited_by")
    if not resource:
        return ["", ""]
    key, unit = _RESOURCES[resource]
    rates = [float(row[f"{key}_per_second"]) for row in cell.rows]
    shares = [rate / row[f"limit_{key}_per_second"] for rate, row in zip(rates, cell.rows, strict=True)]
    return [f"{statistics.median(rates) / 1e9:.1f} {unit}", f"{100 * statistics.median(shares):.1f} %"]


def _our_rows(cells: Cells) -> list[dict[str, Any]]:
    return [row for (_, _, name), cell in cells.items() if name == OURS for row in cell.rows]


def limits_line(cells: Cells) -> str:
    """The limits in words."""
    rows = _our_rows(cells)
    keys = [f"limit_{key}_per_second" for key, _ in _RESOURCES.values()]
    if not rows or not all(row.get(key) for row in rows for key in keys):
        return "The machine's limits were not measured."
    cpu, threads, isa = (rows[0].get(key) for key in ("cpu_info", "n_threads", "isa"))
    read, int8, fp32 = (
        _range([row[key] / scale for row in rows]) for key, scale in zip(keys, (1e9, 1e12, 1e12), strict=True)
    )
    return (
        f"Limits of this machine ({cpu}, {threads} threads, {isa}), lowest and highest of the runs: "
        f"reading {read} GB/s, int8 {int8} Top/s, float32 {fp32} Tflop/s."
    )


def _range(values: list[float]) -> str:
    return f"{min(values):.2f} to {max(values):.2f}"


def as_json(cells: Cells, programs: Sequence[Program], job: Job) -> dict[str, Any]:
    """Everything, for machines."""
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "programs": {program.name: list(program.command) for program in programs},
        "options": list(job.options),
        "results": [
            {
                "model": str(model),
                "test": test.name,
                "n_prompt": test.n_prompt,
                "n_gen": test.n_gen,
                "n_depth": test.n_depth,
                "program": name,
                "samples_ts": cell.speeds,
                "median_ts": cell.median if cell.speeds else None,
                "failure": cell.failure or None,
                "row": cell.row,
            }
            for (model, test, name), cell in cells.items()
        ],
    }


# llama-cpp-python with llama-bench's options


def serve_binding(arguments: Sequence[str]) -> None:
    """Measures with llama-cpp-python's low-level calls and prints one row of JSON."""
    parser = argparse.ArgumentParser(add_help=False)
    for option, usual in (
        ("-p", 512),
        ("-n", 128),
        ("-d", 0),
        ("-t", 0),
        ("-b", 2048),
        ("-ub", 512),
        ("-r", 5),
    ):
        parser.add_argument(option, type=int, default=usual)
    parser.add_argument("-m", required=True)
    parser.add_argument("-pg", default="")
    parser.add_argument("-o", default="json")
    args = parser.parse_args(arguments)
    try:
        import llama_cpp
    except ImportError as error:
        sys.exit(f"{BINDING} is not installed: {error}")
    import numpy as np

    n_prompt, n_gen = pairs([args.pg], "-pg")[0] if args.pg else (args.p, args.n)
    n_threads = args.t or len(os.sched_getaffinity(0))
    llama = llama_cpp.Llama(
        args.m,
        n_ctx=args.d + n_prompt + n_gen,
        n_batch=args.b,
        n_ubatch=args.ub,
        n_threads=n_threads,
        n_threads_batch=n_threads,
        flash_attn=True,
        verbose=False,
    )
    random = np.random.default_rng(0)
    tokens = random.integers(0, llama.n_vocab(), args.d + n_prompt + n_gen).tolist()
    times = [_binding_run(llama, tokens, args.d, n_prompt, n_gen) for _ in range(args.r + 1)][1:]
    speeds = [(n_prompt + n_gen) / seconds for seconds in times]
    row = {"model_type": Path(args.m).stem, "n_prompt": n_prompt, "n_gen": n_gen, "n_depth": args.d}
    row |= {"n_threads": n_threads, "samples_ts": speeds, "avg_ts": statistics.fmean(speeds)}
    print(json.dumps([row]))


def _binding_run(llama: Any, tokens: list[int], depth: int, n_prompt: int, n_gen: int) -> float:
    """Seconds of one run after `depth` tokens."""
    llama.reset()
    if depth:
        llama.eval(tokens[:depth])
    start = time.perf_counter()
    if n_prompt:
        llama.eval(tokens[depth : depth + n_prompt])
    for token in tokens[depth + n_prompt : depth + n_prompt + n_gen]:
        llama.eval([token])
    return time.perf_counter() - start


# The command


def tests_of(args: argparse.Namespace) -> Iterator[Test]:
    for depth in numbers(args.depth or ["0"], "-d"):
        for n in numbers(args.n_prompt or ["512"], "-p"):
            if n:
                yield Test(n, 0, depth)
        for n in numbers(args.n_gen or ["128"], "-n"):
            if n:
                yield Test(0, n, depth)
        for both in pairs(args.prompt_gen or [], "-pg"):
            yield Test(*both, depth)


def find_model(name: str) -> Path:
    path = Path(name)
    if path.exists():
        return path
    if ":" in name:
        return synthetic.cached(name)
    raise OptionError(f"--model {name}: no such file, and not SHAPE:TYPE of synthetic.py")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    many: dict[str, Any] = {"action": "append", "metavar": "N"}
    made.add_argument(
        "-m", "--model", action="append", required=True, help="file, or SHAPE:TYPE such as 1B:Q4_0"
    )
    made.add_argument("--peer", action="append", default=[], help=f"NAME=COMMAND, or {BINDING}")
    made.add_argument(
        "-p", "--n-prompt", **many, help="tokens of prompts (512; lists and ranges as in bench)"
    )
    made.add_argument("-n", "--n-gen", **many, help="tokens to generate (128)")
    made.add_argument("-pg", dest="prompt_gen", action="append", metavar="PP,TG", help="both, timed together")
    made.add_argument("-d", "--depth", **many, help="tokens before the test (0)")
    made.add_argument("-t", "--threads", type=int, help="threads of every program")
    made.add_argument(
        "--options", default="", help="more options for every program, as in --options='-ctk q8_0'"
    )
    made.add_argument("--ours", default="", help="more options for pyllamacpu only")
    made.add_argument("-r", "--repetitions", type=int, default=3, help="within each run of a program (3)")
    made.add_argument("--rounds", type=int, default=2, help="runs of each program (2)")
    made.add_argument("--timeout", type=float, default=1800, help="seconds of one run (1800)")
    made.add_argument("--json", type=Path, metavar="FILE", help="save everything here too")
    return made


def main() -> None:
    if sys.argv[1:2] == ["--serve-binding"]:
        return serve_binding(sys.argv[2:])
    args = parser().parse_args()
    try:
        programs = [our_program(args.ours), *map(parse_program, args.peer)]
        if len({program.name for program in programs}) < len(programs):
            raise OptionError("--peer: two programs have the same name")
        options = [*(["-t", str(args.threads)] if args.threads else []), *shlex.split(args.options)]
        tests = tuple(tests_of(args))
        models = tuple(find_model(name) for name in args.model)
    except PyllamacpuError as error:
        sys.exit(f"error: {error}")
    job = Job(models, tests, tuple(options), max(1, args.repetitions), max(1, args.rounds), args.timeout)
    cells = compare(programs, job, lambda text: print(text, file=sys.stderr, flush=True))
    print(table(cells, programs, job))
    print(limits_line(cells))
    if args.json:
        temporary = args.json.with_name(f".{args.json.name}.{os.getpid()}.part")
        temporary.write_text(json.dumps(as_json(cells, programs, job), indent=2))
        os.replace(temporary, args.json)
    if any(cell.failure for cell in cells.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
