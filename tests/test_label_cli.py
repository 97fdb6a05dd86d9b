"""The label commands as users call them: what is refused, and what is then still as it was."""

import numpy as np
import pytest
from PIL import Image

from fastbadge.cli import main
from fastbadge.label import clicks


@pytest.fixture(scope="module")
def projects(tmp_path_factory):
    """A directory with two projects, each with a label, and their sources."""
    path = tmp_path_factory.mktemp("here")
    (path / "t.csv").write_text("text\nwarm day\ncold day\n")
    (path / "link.csv").symlink_to("t.csv")
    (path / "loop").symlink_to("loop")
    np.save(path / "x.npy", np.eye(2))
    (path / "photos").mkdir()
    for number in range(2):
        Image.new("L", (8, 8), 90 * number).save(path / "photos" / f"{number}.png")
    for name, source, features in (
        ("texts", "t.csv", str(path / "x.npy")),
        ("images", "photos", "pixels"),
    ):
        init = ["label", "init", str(path / source), "--features", features, "--classes", "a,b"]
        assert main([*init, "--project", str(path / name)]) == 0
        clicks.record_label(path / name, 1, 1, "ann", request="r")
    return path


@pytest.fixture
def here(projects, monkeypatch):
    monkeypatch.chdir(projects)
    return projects


def contents(directory):
    """All files in a directory, but for those that SQLite keeps while one is open."""
    return {
        path.relative_to(directory): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and not path.name.endswith(("-wal", "-shm"))
    }


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("texts --csv t.csv --force", "t.csv is an input of this command; pass another name"),
        ("texts --csv link.csv --force", "link.csv is an input of this command"),
        ("texts --model x.npy --force", "x.npy is an input of this command"),
        ("texts --jsonl texts/features.npy --force", "features.npy is in the project; pass"),
        ("texts --csv texts/project.sqlite --force", "project.sqlite is in the project; pass"),
        ("images --csv photos/0.png --force", "0.png is in the source, which is only read; pass"),
        ("images --csv l.csv --folder photos/out", "photos/out is in the source, which is only"),
        ("images --csv l.csv --folder images/out", "images/out is in the project; pass"),
        ("images --csv l.csv --folder texts", "texts is there already; pass another name"),
        ("images --csv l.csv --folder none/out", "none is not a directory; make it first"),
        ("images --csv out --folder out", "two of the files have the same name"),
        ("images --csv l.csv --jsonl none/l.jsonl", "none is not a directory; make it first"),
        ("texts --csv l.csv --folder out", "items are texts, not images; use --csv or --jsonl"),
        ("texts --csv l.csv --model m.npz", "there is no model yet; label a batch, then: fastb"),
        ("texts --csv loop --jsonl loop", "two of the files have the same name"),
        ("nowhere --csv l.csv", "nowhere holds no project.sqlite"),
    ],
)
def test_a_refused_export_writes_nothing(here, capsys, words, expected):
    before = contents(here)
    capsys.readouterr()
    assert main(["label", "export", *words.split()]) == 2
    printed = capsys.readouterr()
    assert expected in printed.err and printed.err.count("\n") == 1 and printed.out == ""
    assert contents(here) == before


def test_labels_may_lie_beside_the_images_and_models_are_written_whole(here, monkeypatch, capsys):
    assert main(["label", "export", "images", "--csv", "photos/labels.csv"]) == 0
    assert (here / "photos" / "labels.csv").read_text().startswith("item,name,label")
    clicks.record_label(here / "images", 2, 2, "ann", request="s")
    assert main(["label", "advance", "images"]) == 0
    (here / "m.npz").write_bytes(b"before")

    def full(_):
        raise OSError(28, "No space left on device")

    export = ["label", "export", "images", "--model", "m.npz", "--force"]
    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", full)
        assert main(export) == 2
    assert "m.npz cannot be written: No space left" in capsys.readouterr().err
    assert (here / "m.npz").read_bytes() == b"before"
    assert main(export) == 0
    with np.load(here / "m.npz", allow_pickle=False) as weights:
        assert weights["weight_2"].shape == (2, 128)


def test_a_table_of_labels_that_is_not_there_is_told_before_a_project_is_made(here, capsys):
    init = ["label", "init", "t.csv", "--classes", "a,b", "--project", "new"]
    assert main([*init, "--import", "labels.csv"]) == 2
    assert "--import labels.csv is not there or is not a file" in capsys.readouterr().err
    assert not (here / "new").exists()


def test_the_command_that_adds_classes_is_that_of_the_same_project(here, capsys):
    assert main(["label", "init", "t.csv", "--project", "no classes"]) == 0
    hint = capsys.readouterr().out.splitlines()[-1]
    assert hint.endswith("label init t.csv --project 'no classes' --classes a,b,c")
    assert main(["label", "status", "no classes"]) == 0
    assert "recall" not in capsys.readouterr().out  # no table without rows


def test_so_many_doubts_cannot_be_shown(here, capsys):
    assert main(["label", "audit", "texts", "--most", "-1"]) == 2
    assert "--most is -1; expected at least 1" in capsys.readouterr().err
