"""Tables: numbers are standardised by the pool, texts become one column a category.

A missing number is the pool's mean, which is 0 once standardised; a missing text is a category
like any other.
"""

from __future__ import annotations

import csv
import difflib
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastbadge.errors import DataError

MISSING = ("", "?", "na", "n/a", "nan", "null")  # whatever the case
_TARGET = ":target="
# One-hot, a column of names or of identifiers would fill the memory, and no model learns from it.
_MOST_CATEGORIES = 1000
# A column is one of numbers, with strays, if no more than this share of it is anything else, and it
# has more different numbers than codes of categories would.
_STRAY_SHARE, _MOST_CODES = 0.05, 20


class Table(NamedTuple):
    """A table in numbers, as read.

    Args:
        x_NF: float64 [N, F]; a missing number is NaN.
        y_N: int64 [N], classes from 0.
        numeric_F: bool [F]; False for the 0 or 1 of a category.
        classes: what each is called.
    """

    x_NF: NDArray[np.float64]
    y_N: NDArray[np.int64]
    numeric_F: NDArray[np.bool_]
    classes: tuple[str, ...]


def read_csv(argument: str) -> Table:
    """Read a table of comma-separated values under a header.

    Args:
        argument: the path; or PATH:target=NAME where the class is not the last column.

    Raises:
        DataError: no such file or column, a row of another length, a row without a class; the
            message names file and line.
    """
    given, target = argument, None
    if _TARGET in argument:
        given, _, target = argument.rpartition(_TARGET)
    path = Path(given).expanduser()
    header, rows, lines = _cells(path)
    if target is not None and header.count(target) != 1:
        near = difflib.get_close_matches(target, header, n=1)
        hint = f"did you mean {near[0]}?" if near else f"expected one of {_listed(header)}"
        raise DataError(f"{path} has {header.count(target)} columns named {target!r}; {hint}")
    position = len(header) - 1 if target is None else header.index(target)
    columns = dict(enumerate(zip(*rows, strict=True)))
    labels = [cell.strip() for cell in columns.pop(position)]
    for line, label in zip(lines, labels, strict=True):
        if _is_missing(label):
            raise DataError(
                f"{path}, line {line}: no class in column {header[position]!r}; remove the row, or "
                "name the column of classes: csv:PATH:target=NAME"
            )
    parts = [_encoded(column, lines, header[i], path) for i, column in columns.items()]
    return table_of(parts, labels, f"{path}: column {header[position]!r}")


def table_of(
    parts: Sequence[tuple[NDArray[np.float64], bool]], labels: Sequence[str], source: str
) -> Table:
    """A table from its encoded columns, classes numbered in the order of their texts.

    Args:
        parts: for each column float64 [N, X], and whether it holds numbers.
        labels: the class of each row.
        source: what messages call the column of classes.

    Raises:
        DataError: a single class, or one that one row only has, which cannot be in pool and test
            set both.

    >>> table_of([(np.array([[0.5], [1.5], [0.5], [1.5]]), True)], list("bbaa"), "d.csv").y_N
    array([1, 1, 0, 0])
    """
    label, count = min(Counter(labels).items(), key=lambda item: (item[1], item[0]))
    if count < 2:
        raise DataError(
            f"{source}: class {label!r} has one row; expected two or more of each, for pool and "
            "test set (is this the column of classes?)"
        )
    classes, y_N = np.unique(np.array(labels), return_inverse=True)
    if len(classes) < 2:
        raise DataError(
            f"{source}: every row has class {label!r}; expected at least two classes (is this the "
            "column of classes?)"
        )
    return Table(
        np.hstack([part for part, _ in parts]),
        y_N.astype(np.int64),
        np.repeat([numeric for _, numeric in parts], [part.shape[1] for part, _ in parts]),
        tuple(classes.tolist()),
    )


def one_hot(value_N: NDArray[Any], source: str) -> NDArray[np.float64]:
    """A column for each different value, in their order: 1 where the row has it.

    Raises:
        DataError: so many values that they are no categories.

    >>> one_hot(np.array(["b", "a"]), "d.csv: column 'x'")
    array([[0., 1.],
           [1., 0.]])
    """
    categories, code_N = np.unique(value_N, return_inverse=True)
    if len(categories) > _MOST_CATEGORIES:
        raise DataError(
            f"{source} has {len(categories)} different texts; expected numbers or at most "
            f"{_MOST_CATEGORIES} categories; leave the column out"
        )
    return np.eye(len(categories))[code_N]


def _cells(path: Path) -> tuple[list[str], list[list[str]], list[int]]:
    """Header, rows, and the line that each row ends on; lines without any cell are left out."""
    if not path.is_file():
        raise DataError(f"{path} is not a file; expected csv:PATH of a table with a header")
    rows: list[list[str]] = []
    lines: list[int] = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            for row in reader:
                if row:
                    rows.append(row)
                    lines.append(reader.line_num)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as CSV: {error}; expected UTF-8 text") from error
    if len(rows) < 2:
        raise DataError(f"{path} has {len(rows)} rows; expected a header and rows below it")
    header = [name.strip() for name in rows.pop(0)]
    if len(header) < 2:
        raise DataError(
            f"{path} has one column; expected comma-separated values, the class in one of them"
        )
    if _numbers(header) is not None:
        raise DataError(
            f"{path} begins with {_listed(header)}, numbers only; expected a header with the "
            "columns' names"
        )
    for line, row in zip(lines[1:], rows, strict=True):
        if len(row) != len(header):
            raise DataError(
                f"{path}, line {line} has {len(row)} cells; expected {len(header)}, as in the "
                "header"
            )
    _check_header(header, rows, path)
    return header, rows, lines[1:]


def _check_header(header: list[str], rows: list[list[str]], path: Path) -> None:
    """Refuse a row in place of a header; columns may be called 0, 1, 2, or by years."""
    numbers = [name for name in header if _is_number(name)]
    start = int(numbers[0]) if numbers and numbers[0].isdecimal() else 0
    if numbers == [str(start + i) for i in range(len(numbers))]:
        return
    for name, column in zip(header, zip(*rows, strict=True), strict=True):
        if name in numbers and _numbers(column) is not None:
            raise DataError(
                f"{path} begins with {_listed(header)}, where {name} stands above numbers; "
                "expected a header with the columns' names, no numbers (but for 0, 1, 2 ...)"
            )


def _check_not_nearly_numbers(
    column: Sequence[str], lines: Sequence[int], name: str, path: Path
) -> None:
    """Refuse a stray text or inf among numbers, which would make a category of each of them."""
    known = [i for i, cell in enumerate(column) if not _is_missing(cell)]
    odd = [i for i in known if not _is_number(column[i])]
    different = len({column[i] for i in known}) - len({column[i] for i in odd})
    if len(odd) <= _STRAY_SHARE * len(known) and different > _MOST_CODES:
        raise DataError(
            f"{path}, line {lines[odd[0]]}: column {name!r} has {column[odd[0]].strip()!r} among "
            "numbers; correct it, or leave it empty if it is missing"
        )


def _encoded(
    column: Sequence[str], lines: Sequence[int], name: str, path: Path
) -> tuple[NDArray[np.float64], bool]:
    """A column in numbers, and whether it was one of numbers."""
    number_N = _numbers(column)
    if number_N is not None:
        return number_N[:, None], True
    _check_not_nearly_numbers(column, lines, name, path)
    texts = ["" if _is_missing(cell) else cell.strip() for cell in column]
    return one_hot(np.array(texts), f"{path}: column {name!r}"), False


def _numbers(column: Sequence[str]) -> NDArray[np.float64] | None:
    """The column as numbers, NaN for what is missing; None if a cell is neither."""
    try:
        number_N = np.array(column).astype(np.float64)  # all at once, as a rule
    except ValueError:
        try:
            number_N = np.array([np.nan if _is_missing(c) else float(c) for c in column])
        except ValueError:
            return None
    return None if np.isinf(number_N).any() else number_N


def _is_number(cell: str) -> bool:
    try:
        return math.isfinite(float(cell))
    except ValueError:
        return False


def _is_missing(cell: str) -> bool:
    return cell.strip().casefold() in MISSING


def _listed(names: Sequence[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
