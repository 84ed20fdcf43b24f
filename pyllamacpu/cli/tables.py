"""Tables on a terminal of any width, and as plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Container, Sequence

import click

from pyllamacpu.cli.wrapping import columns, terminal_width, wrap_words

_GAP = "  "
_LAST_COLUMN = 40  # columns of the terminal that a long cell gets at least beside the others, else below them
_INDENT = "    "


def print_table(
    title: str, head: Sequence[str], rows: Sequence[Sequence[str]], right: Container[int] = ()
) -> None:
    """A table whose long last cells go on below; stacked rows where the terminal is too narrow for it.

    One line per row when the output is not a terminal. Columns in `right` stand to the right.
    """
    width = terminal_width(sys.stdout) if sys.stdout.isatty() else None
    click.echo("\n".join(table_lines(title, head, rows, right, width)))
    click.echo()


def table_lines(
    title: str,
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    right: Container[int] = (),
    width: int | None = None,
) -> list[str]:
    """The lines of a table; `width` None is any."""
    shown = [*([head] if any(head) else []), *rows]
    widths = [max((columns(row[i]) for row in shown), default=0) for i in range(len(head))]
    before = sum(widths[:-1]) + len(_GAP) * (len(widths) - 1)
    if width is None or before + widths[-1] <= width:
        return [title, *(_line(row, widths, right) for row in shown)]
    if len(head) - 1 not in right and before <= width:
        return [title, *(line for row in shown for line in _wrapped(row, widths, before, right, width))]
    return [title, *(line for row in rows for line in _stacked(head, row, width))]


def _line(row: Sequence[str], widths: Sequence[int], right: Container[int]) -> str:
    cells = []
    for i, (cell, width) in enumerate(zip(row, widths, strict=True)):
        space = " " * (width - columns(cell))
        cells.append(space + cell if i in right else cell + space)
    return _GAP.join(cells).rstrip()


def _wrapped(
    row: Sequence[str], widths: Sequence[int], before: int, right: Container[int], width: int
) -> list[str]:
    """A row whose last cell goes on below itself, or stands below the others where there is no room."""
    if width - before < min(_LAST_COLUMN, columns(row[-1])):
        below = _pieces(row[-1], max(width - len(_INDENT), 1))
        return [_line([*row[:-1], ""], [*widths[:-1], 0], right), *(_INDENT + piece for piece in below)]
    first, *more = _pieces(row[-1], width - before)
    return [
        _line([*row[:-1], first], [*widths[:-1], columns(first)], right),
        *(" " * before + p for p in more),
    ]


def _stacked(head: Sequence[str], row: Sequence[str], width: int) -> list[str]:
    """The first cell, and below it the others with their titles."""
    lines = _pieces(row[0], width)
    for name, cell in zip(head[1:], row[1:], strict=True):
        text = f"{name}: {cell}" if name else cell
        lines += [_INDENT + piece for piece in _pieces(text, max(width - len(_INDENT), 1))]
    return lines


def _pieces(text: str, width: int) -> list[str]:
    """`text` on lines of at most `width`, between words; a word that no line holds is cut."""
    pieces: list[str] = []
    for line in wrap_words(text, width).split("\n"):
        while columns(line) > width:
            cut = next(n for n in range(len(line), 0, -1) if columns(line[:n]) <= width or n == 1)
            pieces.append(line[:cut])
            line = line[cut:]
        pieces.append(line)
    return pieces
