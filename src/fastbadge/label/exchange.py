"""Labels into and out of a project: CSV, JSON lines, folders by class, and the model's weights."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain, count
from pathlib import Path
from typing import Any

from fastbadge.errors import InputError
from fastbadge.files import check_new, check_not_input
from fastbadge.label.project import (
    Config,
    Item,
    config_in,
    read_classes,
    read_config,
    read_items,
    settle,
)
from fastbadge.label.schema import connected
from fastbadge.label.sources import read_image
from fastbadge.sqlitefile import now_utc

IMPORTER = "import"  # the annotator of imported labels

_LONGEST_FIELD = 2 << 20  # of a CSV, in characters: as long as texts may be in a source, and more
_MOST_BYTES = 200  # of a name in an export; file systems take 255

_COLUMNS = (
    "item, name, label, annotators, disputed, validation, batch, reason, gradient_norm, predicted, "
    "confidence, created, seconds, text, sha256"
).split(", ")


@dataclass(slots=True)
class Imported:
    """What importing labels did.

    Args:
        added: labels that are new.
        known: labels that were imported before.
        conflicts: lines about items with two labels, in the file or against the project; for these
            nothing was imported.
        unknown: what the rows say that are of no item of the project.
    """

    added: int = 0
    known: int = 0
    conflicts: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)


def import_labels(directory: Path, table: Path) -> Imported:
    """Take labels from a CSV with a column `label`, and one that says which item it is of.

    See `_keys` for that. What people have labelled in the project stays. Labels of items in the
    reserve count for validation when their turn comes, not before, and never for training.

    Raises:
        InputError: no such columns, or classes that the project lacks (the message lists them).
    """
    config, items = read_config(directory), read_items(directory)
    key, rows = _labels_in(table, _keys(config))
    classes = {name: id for id, name in read_classes(directory).items()}
    lacking = sorted({row["label"] for row in rows} - set(classes))
    if lacking:
        raise InputError(
            f"{table} has labels that are no classes of the project: {', '.join(lacking[:5])}"
            f"{' and more' if len(lacking) > 5 else ''}; add them to --classes"
        )
    id_of = _ids(items, key, config)
    report, wanted = Imported(), dict[int, str]()
    contradicted: set[int] = set()
    for row in rows:
        # Of several with the same content, the one of that name.
        item = id_of.get((row[key], row["name"])) or id_of.get((row[key], None))
        label = row["label"]
        if item is None:
            says = row["name"] if key == "sha256" else row[key]
            report.unknown.append(_in_a_line(says or row[key]))
        elif wanted.setdefault(item, label) != label and item not in contradicted:
            contradicted.add(item)
            report.conflicts.append(
                f"{_shown(items[item - 1])}: {wanted[item]} and {label} in {table.name}"
            )
    for item in contradicted:
        del wanted[item]
    with connected(directory, write=True) as connection:
        overlap = config_in(connection, directory).overlap
        name_of = {id: name for name, id in classes.items()}
        standing = {
            item: name_of[label]
            for item, label in connection.execute("SELECT item, class FROM settled")
        }
        for item, label in wanted.items():
            if item in standing:
                report.known += standing[item] == label
                if standing[item] != label:
                    report.conflicts.append(
                        f"{_shown(items[item - 1])}: {standing[item]} in the project, {label} in "
                        f"{table.name}"
                    )
                continue
            connection.execute(
                "INSERT INTO label (item, annotator, kind, class, created) "
                "VALUES (?, ?, 'label', ?, ?)",
                (item, IMPORTER, classes[label], now_utc()),
            )
            settle(connection, item, overlap)
            report.added += 1
    return report


def export_rows(directory: Path) -> list[dict[str, Any]]:
    """One row for each item with a class, in order of ids, with all that is known of it.

    `label` is what most annotators say (of equally many, the latest); `annotators` what each says;
    `reason` to `confidence` are why it was chosen, and the model's guess at the time.
    """
    with connected(directory) as connection:
        name_of = dict(connection.execute("SELECT id, name FROM class"))
        said: dict[int, dict[str, str]] = {}
        for item, annotator, label in connection.execute(
            "SELECT item, annotator, class FROM answer ORDER BY item, annotator"
        ):
            said.setdefault(item, {})[annotator] = name_of.get(label, "cannot tell")
        found = connection.execute(
            "SELECT item.id, item.name, settled.class, settled.opinions, item.reserved, b.batch, "
            "b.reason, b.gradient_norm, b.predicted, b.confidence, label.created, label.seconds, "
            "item.text, item.digest FROM settled JOIN item ON item.id = settled.item "
            "LEFT JOIN batch_item AS b ON b.item = item.id "
            # The rank is the votes above and the id of the deciding click below 2^40.
            "JOIN label ON label.id = settled.rank & 0xFFFFFFFFFF ORDER BY item.id"
        ).fetchall()
    rows = []
    for item, name, label, opinions, reserved, batch, reason, norm, predicted, *rest in found:
        values = (
            *(item, name, name_of[label], said[item], opinions > 1),
            *(bool(reserved and batch), batch, reason, norm, name_of.get(predicted), *rest),
        )
        rows.append(dict(zip(_COLUMNS, values, strict=True)))
    return rows


def as_csv(rows: list[dict[str, Any]]) -> str:
    """The rows as CSV; `annotators` is JSON."""
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, _COLUMNS)
    writer.writeheader()
    for row in rows:
        annotators = json.dumps(row["annotators"], ensure_ascii=False)
        writer.writerow(row | {"annotators": annotators})
    return file.getvalue()


def as_jsonl(rows: list[dict[str, Any]]) -> str:
    """The rows as JSON, one a line."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def check_target(directory: Path, path: Path, *, folder: bool, force: bool) -> None:
    """Refuse, before anything is written, where an export may not or cannot go.

    Args:
        directory: of the project.
        path: of a file, or of a folder for images by class.
        folder: whether it is that.
        force: whether a file that is there may be overwritten. The project and its source, which is
            only read, never are.

    Raises:
        InputError: such a place, or a folder of a project without images.
    """
    config = read_config(directory)
    source, real = os.path.realpath(config.source), Path(os.path.realpath(path))
    given = Path(config.features) if config.features.endswith(".npy") else None
    check_not_input(path, [Path(source), given])
    if real.is_relative_to(os.path.realpath(directory)):
        raise InputError(f"{path} is in the project; pass a name outside it")
    # A table of labels may lie beside the images; copies of them would become items.
    if real.is_relative_to(source) and (folder or path.exists()):
        raise InputError(f"{path} is in the source, which is only read; pass another name")
    if folder and config.kind != "images":
        raise InputError(f"items are {config.kind}, not images; use --csv or --jsonl")
    if folder and path.exists():
        raise InputError(f"{path} is there already; pass another name")
    check_new(path, force=force)


def export_folder(directory: Path, rows: list[dict[str, Any]], folder: Path) -> int:
    """Copy the labelled images into folders by class; how many, without those that have gone.

    A file that is no longer the one that was labelled has gone, too.

    The name of an image is its id and its own name, so that none meets another's.

    Raises:
        InputError: as `check_target`.
    """
    check_target(directory, folder, folder=True, force=False)
    config = read_config(directory)
    items, folder_of = read_items(directory), _folders(read_classes(directory).values())
    copied = 0
    for row in rows:
        try:
            content = read_image(Path(config.source), items[row["item"] - 1])
        except InputError:
            continue
        place = folder / folder_of[row["label"]]
        place.mkdir(parents=True, exist_ok=True)
        own_name = _shortened(Path(row["name"]).name, slice(-_MOST_BYTES, None))  # with its suffix
        (place / f"{row['item']:06}-{own_name}").write_bytes(content)
        copied += 1
    return copied


def _folders(names: Iterable[str]) -> dict[str, str]:
    """Names of folders for those of classes: none leads anywhere else, or is another's.

    >>> _folders(["../a", "a/b", "a_b", "A_B", "."])
    {'../a': '_a', 'a/b': 'a_b', 'a_b': 'a_b-2', 'A_B': 'A_B-3', '.': '_'}
    """
    folder_of: dict[str, str] = {}
    taken = set[str]()  # in one case: not all file systems tell Cat from cat
    for name in names:
        plain = "".join("_" if character in '<>:"/\\|?*' else character for character in name)
        plain = _shortened(plain.strip(". "), slice(_MOST_BYTES)) or "_"
        others = (f"{plain}-{i}" for i in count(2))
        folder_of[name] = next(each for each in chain([plain], others) if each.lower() not in taken)
        taken.add(folder_of[name].lower())
    return folder_of


def _shortened(name: str, part: slice) -> str:
    """The part of a name in bytes, which is what file systems count."""
    return name.encode()[part].decode(errors="ignore")


def _keys(config: Config) -> list[str]:
    """Columns that may say which item a row is of, best first.

    What an item is stays when files are renamed and rows move, and `sha256`, as exports have it,
    stays when a program for tables has changed the text. A row of features is told by its number:
    features may be made anew. An id is of one project; another may have found the same items in
    another order.
    """
    keys = {
        "images": ["sha256", "path", "name", "item"],
        "texts": ["sha256", config.text_column, "text", "name", "item"],
        "features": ["name", "item"],
    }
    return list(dict.fromkeys(keys[config.kind]))


def _labels_in(table: Path, keys: Sequence[str]) -> tuple[str, list[dict[str, str]]]:
    """The column that names items, and of each row with a label that column, `name` and `label`."""
    csv.field_size_limit(_LONGEST_FIELD)
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or []
            key = next((name for name in keys if name in columns), None)
            if key is None or "label" not in columns:
                raise InputError(
                    f"{table} has the columns {_in_a_line(', '.join(columns)) or 'none'}; expected "
                    f"a CSV with label and one of {', '.join(keys)}"
                )
            rows = (
                {name: (row.get(name) or "").strip() for name in (key, "name", "label")}
                for row in reader
            )
            return key, [row for row in rows if row["label"]]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{table} cannot be read as CSV: {error}") from error


def _ids(items: Iterable[Item], key: str, config: Config) -> dict[tuple[str, str | None], int]:
    """Ids of items by what a column says of them, both with their name and without."""
    id_of: dict[tuple[str, str | None], int] = {}
    for item in sorted(items, key=lambda item: not item.missing):  # those that are there count
        text = (item.text or "").strip()
        says = {"path": item.name, "name": item.name, "item": str(item.id), "text": text}
        value = (says | {config.text_column: text, "sha256": item.digest})[key]
        id_of[value, None] = id_of[value, item.name] = item.id
    return id_of


def _shown(item: Item) -> str:
    return f"item {item.id} ({_in_a_line(item.text or item.name)})"


def _in_a_line(text: str) -> str:
    return " ".join(text[:1000].split())[:60]
