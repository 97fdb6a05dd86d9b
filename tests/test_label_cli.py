"""fastbadge label on the command line: settings of a first call and of later ones."""

import numpy as np
import pytest
from PIL import Image

from fastbadge.cli import main
from fastbadge.label.project import read_config, read_status


@pytest.fixture
def called(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pics").mkdir()
    for grey in (0, 90, 200):
        Image.new("L", (4, 4), grey).save(tmp_path / "pics" / f"{grey}.png")

    def called(*words):
        status = main(["label", *words])
        printed = capsys.readouterr()
        return status, printed.out + printed.err

    return called


def test_settings_that_are_not_passed_again_are_those_of_the_first_call(called, tmp_path):
    first = ("--features", "pixels", "--batch", "7", "--validation", "0.3", "--strategy", "margin")
    assert called("init", "pics", *first, "--project", "p")[0] == 0
    config = read_config(tmp_path / "p")
    assert (config.features, config.batch, config.share) == ("pixels", 7, 0.3)
    Image.new("L", (4, 4), 250).save(tmp_path / "pics" / "n.png")
    assert called("init", "pics", "--classes", "a,b", "--project", "p")[0] == 0
    assert read_config(tmp_path / "p") == config and read_status(tmp_path / "p").items == 4
    assert called("init", "pics", *first, "--project", "p")[0] == 0
    status, printed = called("init", "pics", "--batch", "8", "--project", "p")
    assert status == 2 and "(batch 7 -> 8)" in printed
    status, printed = called("init", "pics", "--features", "hog", "--project", "p")
    assert status == 2 and "(features 'pixels' -> 'hog')" in printed


def test_what_is_not_passed_at_first_is_the_default(called, tmp_path):
    assert called("init", "pics")[0] == 0
    config = read_config(tmp_path / "labels" / "pics")
    assert (config.features, config.text_column, config.batch) == ("hog+colour", "", 20)
    (tmp_path / "t.csv").write_text("text\nred apple\ngreen pear\n")
    assert called("init", "t.csv")[0] == 0
    config = read_config(tmp_path / "labels" / "t")
    assert (config.features, config.text_column, config.strategy) == ("tfidf", "text", "badge")
    np.save(tmp_path / "x.npy", np.eye(3))
    assert called("init", "x.npy")[0] == 0
    assert read_config(tmp_path / "labels" / "x").features == "given"
