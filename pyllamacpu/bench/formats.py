"""Results as text: markdown with llama-bench's columns, CSV, JSON, JSON lines and SQL.

A writer takes one result after the other and says what text each one adds, so that rows show as they come.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

from pyllamacpu.bench.cases import Setup
from pyllamacpu.bench.machine import Limits
from pyllamacpu.bench.result import OpTime, Result, Share
from pyllamacpu.files import FileKind, read_start

FORMATS = ("md", "csv", "json", "jsonl", "sql")
_LISTS = ("samples_ns", "samples_ts")  # too long for columns
_UNITS = {"read": "B/s", "int8": "op/s int8", "fp32": "op/s fp32"}

_RESULTS = re.compile(
    rb"CREATE TABLE IF NOT EXISTS llama_b|(?:build_commit|n_kv_max)[,\"]|\[\]\n|"
    rb"[\[\n ]*\{\s*\"(?:build_commit|n_kv_max)\"|\| *(?:model|PP) .*\|\n\| *[-:]"
)
RESULTS_FILE = FileKind("a file of results", lambda path: _RESULTS.match(read_start(path, 4096)) is not None)
"""What is written here, and what llama-bench and llama-batched-bench write, in any of FORMATS."""

Column = tuple[str, bool, Callable[[Any], str]]  # title, to the right, cell


class HasRow(Protocol):
    """A result: `row()` gives its keys and values, the same keys for every result of a kind."""

    def row(self) -> dict[str, Any]: ...


class Writer(Protocol):
    """`add` gives the text of one more result, `end` the text after the last one."""

    def add(self, result: Any) -> str: ...

    def end(self) -> str: ...


def writer(name: str, table: str, columns: Callable[[Any], list[Column]], width: int | None = None) -> Writer:
    """The writer of one of FORMATS. `table`: its name in SQL. `columns`: those of a markdown table, chosen by
    the first result; `width`: what it must fit into.
    """
    if name == "md":
        return Markdown(columns, width)
    if name == "sql":
        return Sql(table)
    kinds: dict[str, Callable[[], Writer]] = {"json": Json, "jsonl": JsonLines, "csv": Csv}
    return kinds[name]()


class Json:
    """One array."""

    def __init__(self) -> None:
        self._empty = True

    def add(self, result: HasRow) -> str:
        text = "\n".join("  " + line for line in json.dumps(result.row(), indent=2).splitlines())
        before, self._empty = "[\n" if self._empty else ",\n", False
        return before + text

    def end(self) -> str:
        return "[]\n" if self._empty else "\n]\n"


class JsonLines:
    """One object a line."""

    def add(self, result: HasRow) -> str:
        return json.dumps(result.row()) + "\n"

    def end(self) -> str:
        return ""


def _single_values(result: HasRow) -> dict[str, Any]:
    return {key: value for key, value in result.row().items() if key not in _LISTS}


class Csv:
    """A line of keys, then a line of quoted values for each result."""

    def __init__(self) -> None:
        self._empty = True

    def add(self, result: HasRow) -> str:
        row = _single_values(result)
        text = io.StringIO()
        if self._empty:
            text.write(",".join(row) + "\n")
            self._empty = False
        values = ["" if value is None else value for value in row.values()]
        csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n").writerow(values)
        return text.getvalue()

    def end(self) -> str:
        return ""


class Sql:
    """Statements that make the table if it is not there, and insert a row for each result."""

    def __init__(self, table: str) -> None:
        self._table = table
        self._empty = True

    def add(self, result: HasRow) -> str:
        row, text = _single_values(result), ""
        if self._empty:
            kinds = ",\n".join(f"  {key} {_sql_type(key, value)}" for key, value in row.items())
            text = f"CREATE TABLE IF NOT EXISTS {self._table} (\n{kinds}\n);\n\n"
            self._empty = False
        values = ", ".join(_sql_value(value) for value in row.values())
        return text + f"INSERT INTO {self._table} ({', '.join(row)}) VALUES ({values});\n"

    def end(self) -> str:
        return ""


def _sql_type(key: str, value: Any) -> str:
    if isinstance(value, str) or key == "limited_by":
        return "TEXT"
    return "INTEGER" if isinstance(value, int) else "REAL"


def _sql_value(value: Any) -> str:
    if value is None:
        return "NULL"
    return "'" + value.replace("'", "''") + "'" if isinstance(value, str) else repr(value)


# Markdown

_LEAVE_OUT = (
    *("load", "median", "params", "memory", "size", "backend", "threads", "rate"),
    *("T_PP s", "T_TG s", "T s", "N_KV"),
)
"""What a table does without first where it does not fit."""

_LEAST_WIDTH = {"model": 30, "test": 15, "t/s": 20, "median": 8, "rate": 16, "memory": 10}


class Markdown:
    """A table; columns are as wide as title and first cell, some wider, and later rows may stand out.

    Where that is more than `width`, columns are left out; `left_out` has their titles then.
    """

    def __init__(self, columns: Callable[[Any], list[Column]], width: int | None = None) -> None:
        self._choose = columns
        self._width = width
        self.left_out: list[str] = []
        self._columns: list[Column] = []
        self._widths: list[int] = []

    def add(self, result: Any) -> str:
        text = ""
        if not self._columns:
            self._columns = self._choose(result)
            self._widths = [_column_width(column, result) for column in self._columns]
            self._fit(result)
            titles = [title for title, _, _ in self._columns]
            text = _line(titles, self._columns, self._widths) + _rule(self._columns, self._widths)
        return text + _line([cell(result) for _, _, cell in self._columns], self._columns, self._widths)

    def _fit(self, result: Any) -> None:
        """Leaves room for later rows out, and then columns, until the table fits."""
        wanted = self._width
        if wanted is None or _table_width(self._widths) <= wanted:
            return
        self._widths = [_column_width(column, result, least=False) for column in self._columns]
        for title in _LEAVE_OUT:
            if _table_width(self._widths) <= wanted:
                break
            at = next((i for i, c in enumerate(self._columns) if c[0].strip() == title), None)
            if at is not None:
                self.left_out.append(title)
                del self._columns[at], self._widths[at]

    def end(self) -> str:
        return ""


def _column_width(column: Column, result: Any, least: bool = True) -> int:
    title, _, cell = column
    return max(len(title), len(cell(result)), _LEAST_WIDTH.get(title, 0) if least else 0)


def _table_width(widths: Sequence[int]) -> int:
    return sum(widths) + 3 * len(widths) + 1


def _line(cells: Sequence[str], columns: Sequence[Column], widths: Sequence[int]) -> str:
    padded = [
        cell.rjust(width) if right else cell.ljust(width)
        for cell, (_, right, _), width in zip(cells, columns, widths, strict=True)
    ]
    return "| " + " | ".join(padded) + " |\n"


def _rule(columns: Sequence[Column], widths: Sequence[int]) -> str:
    rules = ["-" * (width - 1) + (":" if c[1] else "-") for c, width in zip(columns, widths, strict=True)]
    return _line(rules, columns, widths)


def markdown_table(titles: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A markdown table of finished rows; the first `left` columns stand to the left."""
    columns: list[Column] = [(title, i >= left, str) for i, title in enumerate(titles)]
    widths = [max(len(row[i]) for row in [titles, *rows]) for i in range(len(titles))]
    lines = [_line(row, columns, widths) for row in [titles, *rows]]
    return lines[0] + _rule(columns, widths) + "".join(lines[1:])


_SETTINGS: tuple[tuple[str, Any], ...] = (  # key, usual value
    ("n_batch", 2048),
    ("n_ubatch", 512),
    ("type_k", "f16"),
    ("type_v", "f16"),
    ("precision", "fast"),
)


def setting_columns(first: Setup, of: Callable[[Any], Setup], varied: Sequence[str] = ()) -> list[Column]:
    """The settings that vary, or are not the usual ones in the first result. of: a result's."""
    shown = (key for key, usual in _SETTINGS if key in varied or getattr(first, key) != usual)
    return [(key, True, partial(_setting, of, key)) for key in shown]


def _setting(of: Callable[[Any], Setup], key: str, result: Any) -> str:
    return str(getattr(of(result), key))


def result_columns(first: Result, varied: Sequence[str] = ()) -> list[Column]:
    """Of a table of results like the first: a setting is shown when it varies or is not the usual one."""
    columns: list[Column] = [
        ("model", False, lambda r: r.model.type),
        ("size", True, lambda r: size(r.model.size)),
        ("params", True, lambda r: count(r.model.n_params)),
        ("backend", False, lambda r: f"CPU {r.isa}"),
        ("threads", True, lambda r: str(r.n_threads)),
    ]
    columns += setting_columns(first.case.setup, lambda r: r.case.setup, varied)
    columns += [("test", True, lambda r: r.case.name), ("t/s", True, _speed)]
    columns.append(("median", True, lambda r: f"{r.median_ts:.2f}"))
    if first.limits:
        columns += [("rate", True, lambda r: _rate(r.share)), ("of limit", True, lambda r: _percent(r.share))]
    columns += [
        ("memory", True, lambda r: size(r.peak_memory)),
        ("load", True, lambda r: f"{r.load_ns / 1e9:.2f} s"),
    ]
    return columns


def _speed(result: Result) -> str:
    row = result.row()
    return f"{row['avg_ts']:.2f} ± {row['stddev_ts']:.2f}"


def _rate(share: Share | None) -> str:
    return f"{quantity(share.rate)}{_UNITS[share.resource]}" if share else ""


def _percent(share: Share | None) -> str:
    return f"{100 * share.share:.1f} %" if share else ""


def quantity(value: float) -> str:
    """Three digits and a prefix: `45.3 G`."""
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g} {prefix}"
    return f"{value:.3g} "


def size(n_bytes: float) -> str:
    return f"{n_bytes / 2**30:.2f} GiB" if n_bytes >= 2**30 else f"{n_bytes / 2**20:.2f} MiB"


def count(n: int) -> str:
    return f"{n / 1e9:.2f} B" if n >= 1e9 else f"{n / 1e6:.2f} M"


class Profiled(Protocol):
    """A result with the time of each op."""

    @property
    def name(self) -> str: ...
    @property
    def limits(self) -> Limits | None: ...
    @property
    def profile(self) -> Sequence[OpTime]: ...


def profile_table(result: Profiled) -> str:
    """The ops of one test by the wall time spent in them, with their bytes and operations."""
    total = sum(op.seconds for op in result.profile) or 1.0
    rows = []
    for op in sorted(result.profile, key=lambda op: -op.seconds):
        ops = op.cost.int8 + op.cost.fp32
        per_second = 1 / op.seconds if op.seconds else 0.0
        rows.append(
            [
                op.name,
                f"{op.seconds * 1e3:.3f}",
                f"{100 * op.seconds / total:.1f} %",
                f"{op.cost.read / 1e6:.1f}",
                f"{op.cost.read * per_second / 1e9:.2f}",
                f"{ops / 1e9:.3f}",
                f"{ops * per_second / 1e9:.1f}",
                _op_share(op.cost.least_seconds(result.limits) * per_second) if result.limits else "",
            ]
        )
    titles = ["op", "ms", "share", "MB", "GB/s", "Gop", "Gop/s", "of limit"]
    return f"{result.name}: {total * 1e3:.2f} ms\n\n" + markdown_table(titles, rows)


def _op_share(share: float) -> str:
    return f"{100 * share:.0f} %"
