"""Files that users hand over, and files they get."""

import numpy as np
import pytest

from fastbadge.errors import InputError
from fastbadge.files import check_new, read_array, read_positions, write_whole


def test_a_byte_order_mark_is_no_position(tmp_path):
    marked = tmp_path / "marked.txt"
    marked.write_text("position\n3\n", encoding="utf-8-sig")
    assert read_positions(marked).tolist() == [3]


def test_an_array_is_mapped_and_the_file_stays_as_it_is(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, np.arange(6.0).reshape(2, 3))
    array = read_array(path)
    assert isinstance(array, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        array[0, 0] = 7


def test_positions_from_text_as_people_write_it(tmp_path):
    path = tmp_path / "done.csv"
    path.write_text("position\r\n3\r\n\r\n 12 \n0")
    assert read_positions(path).tolist() == [3, 12, 0]
    path.write_text("")
    assert read_positions(path).tolist() == []


@pytest.mark.parametrize("text", ["-1", "1.0", "1,2", "²", "x", "1\nposition"])
def test_positions_that_are_none(tmp_path, text):
    path = tmp_path / "done.txt"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=r"done\.txt, line \d: .* is no position"):
        read_positions(path)


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "out.csv"
    write_whole(path, "position\n1\n")
    assert path.read_bytes() == b"position\n1\n"

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(InputError, match=r"out\.csv cannot be written: No space left"):
        write_whole(path, "other")
    assert path.read_bytes() == b"position\n1\n"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_stays_a_link(tmp_path):
    path, link = tmp_path / "real.csv", tmp_path / "link.csv"
    link.symlink_to(path)
    write_whole(link, "1")
    assert link.is_symlink()
    assert path.read_text() == "1"


def test_check_new(tmp_path):
    path = tmp_path / "out.csv"
    check_new(path)
    path.touch()
    with pytest.raises(InputError, match="--force"):
        check_new(path)
    check_new(path, force=True)
    with pytest.raises(InputError, match="is not a file"):
        check_new(tmp_path, force=True)
    with pytest.raises(InputError, match="make it first"):
        check_new(tmp_path / "none" / "out.csv")
