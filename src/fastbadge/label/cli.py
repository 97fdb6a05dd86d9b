"""fastbadge label: a project from the command line."""

from __future__ import annotations

import os
import shlex
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any
from uuid import uuid4

from cyclopts import App, Parameter
from rich.console import Console
from rich.table import Table

from fastbadge.errors import InputError

app = App(name="label", help="Label your own data, every batch chosen by BADGE.")

Flag = Annotated[bool, Parameter(negative=())]


@app.command
def init(
    source: Path,
    /,
    *,
    classes: str = "",
    project: Path | None = None,
    text_column: str | None = None,
    features: str | None = None,
    encoder: str | None = None,
    labels: Annotated[Path | None, Parameter(name="--import")] = None,
    strategy: str | None = None,
    batch: int | None = None,
    validation: float | None = None,
    overlap: int | None = None,
    hidden: int | None = None,
    seed: int | None = None,
) -> None:
    """Make a project of a folder of images, a table of texts or rows of features.

    Called again, it adds what is new in the source, tells what has gone, and leaves all labels as
    they are. Settings that are not passed are those of the first call; others are refused.

    Args:
        source: A folder of images (and folders in it), a .csv or .jsonl, or an .npy file.
        classes: Names, comma-separated, in the order of the page; more may be added later.
        project: Directory of the project. Default: labels/ and the name of the source.
        text_column: The column of the table that has the texts. Default: text.
        features: What the model sees: of images hog+colour, hog or pixels, of texts tfidf; or an
            .npy file with a row for each image in the order of their paths (sorted as text), or for
            each row of the table. Default: hog+colour or tfidf.
        encoder: In place of features: MODULE:FUNCTION of yours, from a list of PIL images or of
            texts to one row of numbers each; or timm:NAME, transformers:NAME,
            sentence-transformers:NAME, each with the extra of that name.
        labels: Labels there are already: a CSV that export wrote, or one with a column label and
            one that says of which item: path (of an image), text, name (the number of the row from
            0) or item (the id in this project).
        strategy: What chooses the batches (see: fastbadge strategies). Default: badge.
        batch: Items in a batch. Default: 20.
        validation: Share of every batch that is drawn uniformly and only used to measure the
            accuracy. Default: 0.15.
        overlap: How many people answer each item. Default: 1.
        hidden: Width of the model's hidden layer; 0 for a linear model. Default: 128.
        seed: Every random number derives from it. Default: 0.
    """
    from fastbadge.label.exchange import import_labels
    from fastbadge.label.initialise import init_project
    from fastbadge.label.project import Config, is_made, read_config, read_status
    from fastbadge.label.rounds import check_strategy
    from fastbadge.label.sources import kind_of

    if labels is not None and not labels.is_file():  # before features are made, for hours maybe
        raise InputError(f"--import {labels} is not there or is not a file; check the path")
    if features and encoder:
        raise InputError(f"got --features {features} and --encoder {encoder}; pass one of them")
    if strategy is not None:
        check_strategy(strategy)
    kind = kind_of(source)
    names = [name.strip() for name in classes.split(",") if name.strip()]
    directory = project or Path("labels", source.resolve().stem)
    settings = {
        "text_column": text_column if kind == "texts" else None,
        "features": _features(kind, encoder or features),
        "strategy": strategy,
        "batch": batch,
        "share": validation,
        "overlap": overlap,
        "hidden": hidden,
        "seed": seed,
    }
    given: dict[str, Any] = {name: value for name, value in settings.items() if value is not None}
    given |= {"kind": kind, "source": str(source.resolve())}
    if is_made(directory):
        config = replace(read_config(directory), **given)
    else:
        own = {"features": _FEATURES[kind][0], "text_column": "text" if kind == "texts" else ""}
        config = Config(**own | given)
    report = init_project(directory, config, names, progress=True)
    print(f"{directory}: {report.added:,} items added, {read_status(directory).items:,} in all")
    if report.repeated:
        print(f"{report.repeated:,} texts are repeated in the table; each is one item")
    if report.moved or report.back:
        where = "in another row" if kind == "texts" else "under another name"
        print(f"{report.moved:,} found {where}, {report.back:,} there again")
    _some(f"{len(report.missing):,} no longer in the source", report.missing)
    _some(
        f"{len(report.skipped):,} left out",
        [f"{each.name} ({each.reason})" for each in report.skipped],
    )
    if labels is not None:
        imported = import_labels(directory, labels)
        print(f"{imported.added:,} labels imported, {imported.known:,} known")
        _some(f"{len(imported.unknown):,} of items that are not in the project", imported.unknown)
        _some(f"{len(imported.conflicts):,} conflicts, not imported", imported.conflicts)
    if not read_status(directory).per_class:
        again = shlex.join([str(source), *(["--project", str(project)] if project else [])])
        print(f"No classes yet: fastbadge label init {again} --classes a,b,c")


@app.command
def status(project: Path, /) -> None:
    """Show how far the labelling is, and what the validation slice says.

    Args:
        project: Directory of the project, such as labels/photos.
    """
    from fastbadge.label.numbers import Rate, read_numbers
    from fastbadge.label.project import read_status

    now, numbers = read_status(project), read_numbers(project)
    print(
        f"{now.labelled:,} of {now.items:,} items labelled, {now.waiting:,} waiting, "
        f'{now.cannot_tell:,} "cannot tell", {now.disputed:,} disputed, {now.missing:,} missing'
    )

    def shown(rate: Rate | None) -> str:
        if rate is None:
            return "-"
        return f"{100 * rate.value:.0f} % ({100 * rate.low:.0f} to {100 * rate.high:.0f})"

    rows = [
        [name, f"{count:,}", shown(numbers.recall[name])] for name, count in now.per_class.items()
    ]
    if rows:
        _table(["class", "labels", "recall (95 %)"], rows)
    for annotator, count in now.per_annotator.items():
        print(f"{annotator}: {count:,} answers")
    print(numbers.words)


@app.command
def serve(
    project: Path,
    /,
    *,
    host: str = "127.0.0.1",
    port: int = 8765,
    open: Flag = False,
) -> None:
    """Label in the browser: prints the address to open, and serves until Ctrl-C.

    The address holds a token, which is kept in the project and stays the same; whoever has it may
    label. Every click is saved when the page says so.

    Args:
        project: Directory of the project, such as labels/photos.
        host: Where to listen. Default: 127.0.0.1, for this machine alone; 0.0.0.0 also for other
            machines and telephones of the network, over plain HTTP.
        port: 0 for any that is free. Default: 8765.
        open: Open the address in the browser of this machine.
    """
    try:
        from fastbadge.label.server import serve
    except ImportError as error:
        raise InputError(
            f"the page needs packages that are not installed ({error}): "
            "pip install 'fastbadge[label]'"
        ) from error

    def ready(address: str) -> None:
        print(address, flush=True)
        if open:
            import webbrowser

            webbrowser.open(address)

    try:
        serve(project, host=host, port=port, ready=ready)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("stopped; every click is saved") from None


@app.command
def advance(project: Path, /) -> None:
    """Train on the labels there are and choose the next batch; the server does so by itself.

    Args:
        project: Directory of the project, such as labels/photos.
    """
    from fastbadge.label.project import count_waiting
    from fastbadge.label.rounds import advance

    batch = advance(project)
    waiting = count_waiting(project)
    print("nothing left to do" if batch is None else f"batch {batch}: {waiting:,} items waiting")


@app.command
def studio(
    project: Path,
    /,
    *,
    url: str,
    token_file: Path,
    prelabel: Flag = False,
    image_url: str | None = None,
    poll: float = 5.0,
    webhook: str | None = None,
    new_project: Flag = False,
) -> None:
    """Label in Label Studio: push each batch, take the answers back, train, push the next.

    May be stopped and started again at any moment, and Label Studio too. Answers are changed and
    taken back there.

    Args:
        project: Directory of the project, such as labels/photos.
        url: Address at which the page of Label Studio opens, such as http://localhost:8080.
        token_file: File with a token from its Account & Settings, of either kind.
        prelabel: Show people the model's guesses, but for those of validation items. Who sees a
            guess tends to agree with it.
        image_url: Address of an image, with {name} for its path below the source, such as
            /data/local-files/?d=pictures/{name}. Default: images go into the tasks.
        poll: Seconds between two looks at what was answered. Default: 5.
        webhook: HOST:PORT of this machine where Label Studio may call to say so at once.
        new_project: Make another project there, in place of the one used so far, such as one that
            was deleted. The labels stay.
    """
    from fastbadge.label.studio.loop import Options, run
    from fastbadge.label.studio.server import Server, read_token

    options = Options(
        prelabel=prelabel,
        image_url=image_url,
        poll_seconds=poll,
        webhook=webhook,
        new_project=new_project,
    )
    with closing(Server(url, read_token(token_file))) as server:
        run(project, server, options, say=partial(print, flush=True))


@app.command
def undo(project: Path, /, *, annotator: str | None = None) -> None:
    """Take back the latest click; imported labels stay.

    Args:
        project: Directory of the project, such as labels/photos.
        annotator: Whose click. Default: anybody's.
    """
    from fastbadge.label.clicks import undo
    from fastbadge.label.project import read_classes, read_item

    click = undo(project, annotator, request=str(uuid4()))
    if click is None:
        print("nothing to take back")
        return
    what = click.kind if click.label is None else read_classes(project)[click.label]
    print(f"taken back: {click.annotator}, {read_item(project, click.item).name}: {what}")


@app.command
def export(
    project: Path,
    /,
    *,
    csv: Path | None = None,
    jsonl: Path | None = None,
    folder: Path | None = None,
    model: Path | None = None,
    force: Flag = False,
) -> None:
    """Write the labels, one row an item, or the images in folders by class.

    Args:
        project: Directory of the project, such as labels/photos.
        csv: File for the rows.
        jsonl: File for the same rows as JSON, one a line.
        folder: New directory, for copies of the labelled images in a folder for each class.
        model: .npz file for the weights of the latest model.
        force: Overwrite files that are there, but never the source or the project.
    """
    from fastbadge.files import write_whole
    from fastbadge.label.exchange import (
        as_csv,
        as_jsonl,
        check_target,
        export_folder,
        export_rows,
    )
    from fastbadge.label.project import as_npz, read_weights

    targets = [path for path in (csv, jsonl, model, folder) if path]
    if not targets:
        raise InputError("nothing to write; pass --csv, --jsonl, --folder or --model")
    if len({os.path.realpath(path) for path in targets}) < len(targets):
        raise InputError("two of the files have the same name; pass different ones")
    for path in targets:
        check_target(project, path, folder=path is folder, force=force)
    weights = read_weights(project)
    if model and weights is None:
        raise InputError("there is no model yet; label a batch, then: fastbadge label advance")
    rows = export_rows(project)
    if csv:
        write_whole(csv, as_csv(rows))
    if jsonl:
        write_whole(jsonl, as_jsonl(rows))
    if model and weights is not None:
        write_whole(model, as_npz(weights))
    print(f"{len(rows):,} labels")
    if folder:
        copied = export_folder(project, rows, folder)
        print(f"{copied:,} images in {folder}")
        if copied < len(rows):
            print(f"{len(rows) - copied:,} left out: no longer in the source, or changed there")


@app.command
def audit(project: Path, /, *, most: Annotated[int, Parameter(name=["--most", "-n"])] = 20) -> None:
    """List the labels that the model doubts most, for a second look.

    Each is judged by a model trained without it. Validation labels are left out: corrected only
    where the model disagrees, they would flatter it.

    Args:
        project: Directory of the project, such as labels/photos.
        most: How many to show. Default: 20.
    """
    from fastbadge.label.audit import find_doubts
    from fastbadge.label.project import read_item

    if most < 1:
        raise InputError(f"--most is {most}; expected at least 1")
    doubts, judged = find_doubts(project)
    print(f"{len(doubts):,} of {judged:,} labels are doubted; not all of these are wrong")
    _table(
        ["item", "name", "label", "suggested", "probability of each"],
        [
            [
                str(doubt.item),
                read_item(project, doubt.item).name,
                doubt.label,
                doubt.suggested,
                f"{100 * doubt.label_probability:.0f} %, {100 * doubt.suggested_probability:.0f} %",
            ]
            for doubt in doubts[:most]
        ],
    )


# What makes features without more than the package; the default first.
_FEATURES = {"images": ("hog+colour", "hog", "pixels"), "texts": ("tfidf",), "features": ("given",)}


def _features(kind: str, given: str | None) -> str | None:
    """What is to make the features of items of this kind, if it was told."""
    if given is None:
        return None
    own = _FEATURES[kind]
    if kind != "features" and given.endswith(".npy"):
        return str(Path(given).resolve())
    if given not in own and (kind == "features" or ":" not in given):
        raise InputError(
            f"features are {given!r} but items are {kind}; expected {' or '.join(own)}"
            + ("" if kind == "features" else ", an .npy file, or --encoder MODULE:FUNCTION")
        )
    return given


def _some(title: str, lines: list[str], most: int = 5) -> None:
    """A title and the first few lines; nothing where there are none."""
    if lines:
        more = [f"... and {len(lines) - most:,} more"] if len(lines) > most else []
        print("\n  ".join([f"{title}:", *lines[:most], *more]))


def _table(header: list[str], rows: list[list[str]]) -> None:
    table = Table(*header, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    Console().print(table, highlight=False, markup=False)
