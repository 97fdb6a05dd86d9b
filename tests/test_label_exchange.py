"""Labels that leave a project and come back, to it or to another: each to its own item."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from fastbadge.cli import main
from fastbadge.errors import InputError
from fastbadge.label import clicks, project
from fastbadge.label.exchange import as_csv, as_jsonl, export_rows, import_labels
from fastbadge.label.initialise import init_project
from fastbadge.label.project import Config, read_items

CLASSES = ["m", "n", "o", "a"]
TEXTS = ["m is  here", 'n, quoted "and"\ntwo lines', "o", "a " + "w" * 200_000]


def make(directory, source, kind, **changes):
    """A project of the source, by features that cost nothing."""
    features = {"images": "pixels", "texts": "tfidf", "features": "given"}[kind]
    column = "text" if kind == "texts" else ""
    settings = {"features": features, "text_column": column} | changes
    init_project(directory, Config(kind=kind, source=str(source), **settings), CLASSES)
    return directory


def draw(path, grey):
    path.parent.mkdir(exist_ok=True)
    Image.new("L", (8, 8), grey).save(path)


def write_table(path, texts, **columns):
    """A table of texts, and of what else is told of them."""
    rows = [{"text": text} | {name: of[text] for name, of in columns.items()} for text in texts]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def content_of(path, item):
    """What the item is, and which class is right for it."""
    config = project.read_config(path)
    if config.kind == "images":
        content = Image.open(f"{config.source}/{item.name}").getpixel((0, 0))
        return content, CLASSES[content // 50]
    if config.kind == "texts":
        return item.text, item.text[0]
    row = np.load(config.source)[int(item.name)]
    return row.tolist(), CLASSES[int(row[0])]


def label_all(path):
    id_of = {name: id for id, name in project.read_classes(path).items()}
    for item in read_items(path):
        label = id_of[content_of(path, item)[1]]
        clicks.record_label(path, item.id, label, "ann", request=str(item.id))


def check_all_right(path, items):
    """As many items are labelled, each by what it is and not by where it was."""
    rows = export_rows(path)
    there = {item.id: item for item in read_items(path)}
    for row in rows:
        assert row["label"] == content_of(path, there[row["item"]])[1]
    assert len(rows) == items


# --- there and back


@pytest.fixture(params=["images", "texts", "features"])
def labelled(request, tmp_path):
    """A project whose ids are not in the order of its source, all labelled; and its source."""
    kind, path = request.param, tmp_path / "p"
    if kind == "images":
        source = tmp_path / "images"
        for number, name in enumerate("mno"):
            draw(source / f"{name}.png", 50 * number)
        make(path, source, kind)
        draw(source / "a.png", 150)  # before the others, where the next project finds it
    elif kind == "texts":
        source = tmp_path / "t.csv"
        write_table(source, TEXTS[:3])
        make(path, source, kind)
        write_table(source, TEXTS[::-1])
    else:
        source = tmp_path / "x.npy"
        np.save(source, [[0, 1], [1, 2], [2, 4]])
        make(path, source, kind)
        np.save(source, [*np.load(source), [3, 8]])
    make(path, source, kind)
    label_all(path)
    return path, source, kind


def test_exported_labels_come_to_their_own_items_of_another_project(labelled, tmp_path):
    path, source, kind = labelled
    rows = export_rows(path)
    (tmp_path / "labels.csv").write_text(as_csv(rows), encoding="utf-8", newline="")
    assert [json.loads(line) for line in as_jsonl(rows).splitlines()] == rows
    moved = source.rename(tmp_path / f"moved{source.suffix}")
    there = make(tmp_path / "q", moved, kind)
    imported = import_labels(there, tmp_path / "labels.csv")
    assert (imported.added, imported.unknown, imported.conflicts) == (4, [], [])
    check_all_right(there, 4)
    ids = [{item.digest: item.id for item in read_items(each)} for each in (path, there)]
    assert (ids[0] == ids[1]) == (kind == "features")
    again = import_labels(there, tmp_path / "labels.csv")
    assert (again.added, again.known) == (0, 4)


@pytest.mark.parametrize("kept", ["sha256", "name", "text", "item"])
def test_each_column_of_an_export_is_enough_in_the_same_project(labelled, tmp_path, kept):
    path, _, kind = labelled
    rows = export_rows(path)
    lines = [{"label": row["label"], kept: row[kept]} for row in rows]
    with (tmp_path / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["label", kept])
        writer.writeheader()
        writer.writerows(lines)
    if (kept, kind) in {("text", "images"), ("text", "features"), ("sha256", "features")}:
        with pytest.raises(InputError, match=f"has the columns label, {kept}; expected a CSV"):
            import_labels(path, tmp_path / "labels.csv")
        return
    while clicks.undo(path, request=f"undo {len(export_rows(path))}"):
        pass
    assert import_labels(path, tmp_path / "labels.csv").added == 4
    check_all_right(path, 4)


def test_of_pictures_that_are_the_same_each_keeps_its_label_and_renamed_ones_theirs(tmp_path):
    source, path = tmp_path / "images", tmp_path / "p"
    for name in ("1.png", "2.png"):
        draw(source / name, 7)
    draw(source / "3.png", 100)
    make(path, source, "images")
    for item, label in ((1, 1), (2, 2), (3, 3)):
        clicks.record_label(path, item, label, "ann", request=str(item))
    (tmp_path / "labels.csv").write_text(as_csv(export_rows(path)))
    (source / "3.png").rename(source / "0.png")
    draw(source / "3.png", 200)  # another picture under the name of a labelled one
    there = make(tmp_path / "q", source, "images")
    assert import_labels(there, tmp_path / "labels.csv").added == 3
    assert {row["name"]: row["label"] for row in export_rows(there)} == {
        "0.png": "o",
        "1.png": "m",
        "2.png": "n",
    }


# --- tables of others


def test_an_item_that_means_something_else_is_not_taken_for_ours(tmp_path):
    texts = ["m lamp", "n chair", "o sofa", "a desk"]
    foreign = {"item": dict(zip(texts, "3124", strict=True)), "label": {t: t[0] for t in texts}}
    foreign["name"] = dict(zip(texts, "2301", strict=True))
    write_table(tmp_path / "t.csv", texts, **foreign)
    path = make(tmp_path / "p", tmp_path / "t.csv", "texts")
    assert import_labels(path, tmp_path / "t.csv").added == 4
    check_all_right(path, 4)
    body = (tmp_path / "t.csv").read_text().replace("text,", "body,", 1)
    (tmp_path / "b.csv").write_text(body)
    path = make(tmp_path / "q", tmp_path / "b.csv", "texts", text_column="body")
    assert import_labels(path, tmp_path / "b.csv").added == 4
    check_all_right(path, 4)


def test_texts_may_be_as_long_as_in_a_source(tmp_path):
    """Of a .jsonl, for which init has no need to tell Python's csv so."""
    csv.field_size_limit(1 << 17)  # as it is in a process of its own
    text = "w " * 500_000
    lines = [json.dumps({"text": each}) + "\n" for each in (text, "a b")]
    (tmp_path / "t.jsonl").write_text("".join(lines))
    path = make(tmp_path / "p", tmp_path / "t.jsonl", "texts")
    (tmp_path / "labels.csv").write_text(f'text,label\n"{text}",a\n')
    assert import_labels(path, tmp_path / "labels.csv").added == 1


def test_rows_of_nothing_here_and_conflicts_are_told_in_a_line_each(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_table(tmp_path / "t.csv", TEXTS[:3])
    label = {TEXTS[1]: "n", "not\nthere": "m", TEXTS[2]: "o"}
    write_table(tmp_path / "labels.csv", label, label=label)
    with (tmp_path / "labels.csv").open("a", newline="") as file:
        csv.writer(file).writerow([TEXTS[1], "a"])
    words = ["label", "init", "t.csv", "--classes", ",".join(CLASSES), "--import", "labels.csv"]
    assert main(words) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        "1 labels imported, 0 known",
        "1 of items that are not in the project:",
        "  not there",
        "1 conflicts, not imported:",
        '  item 2 (n, quoted "and" two lines): n and a in labels.csv',
    ]
