"""Files that users hand over, and files they get."""

import os
from pathlib import Path

import numpy as np
import pytest

from fastbadge.errors import InputError
from fastbadge.files import check_new, check_not_input, read_array, read_positions, write_whole


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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: b"", "is empty; write an array"),
        (lambda file: b"0.5,0.5\n", "is not an .npy file; write"),
        (lambda file: file[:5], "is not an .npy file; write"),
        (lambda file: file[:7], "is cut short or holds .*8 bytes got 7"),
        (lambda file: file[:100], "is cut short or holds .*reading array header"),
        (lambda file: file[:-1], "is cut short or holds .*greater than file size"),
        (lambda file: file.replace(b"<f8", b"<q8"), "is cut short or holds other things"),
        (lambda file: file.replace(b"(2, 3)", b"(-2,3)"), "is cut short or holds other things"),
        (lambda file: file.replace(b"), }", b", }} "), "is cut short or holds other things"),
        (lambda file: b"PK\x03\x04", "is an .npz archive"),
    ],
)
def test_what_is_no_array_is_refused_for_what_it_is(tmp_path, change, message):
    path = tmp_path / "a.npy"
    np.save(path, np.ones((2, 3)))
    assert change(path.read_bytes()) != path.read_bytes()
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(InputError, match=message) as caught:
        read_array(path)
    assert "\n" not in str(caught.value)


def test_objects_are_not_unpickled(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(InputError, match=r"holds other things than numbers .*Python objects"):
        read_array(tmp_path / "a.npy")


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
    write_whole(tmp_path / "out.csv", b"position\n1\n")
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


def test_a_link_to_itself_is_no_traceback(tmp_path):
    link = tmp_path / "loop"
    link.symlink_to(link)
    check_not_input(link, [link.with_name("other"), None])
    with pytest.raises(InputError, match="is an input"):
        check_not_input(link, [link])
    check_new(link)
    write_whole(link, "1")
    assert link.read_text() == "1"


def test_check_new(tmp_path):
    path = tmp_path / "out.csv"
    check_new(path)
    assert not list(tmp_path.iterdir())
    path.touch()
    with pytest.raises(InputError, match="--force"):
        check_new(path)
    check_new(path, force=True)
    with pytest.raises(InputError, match="is not a file"):
        check_new(tmp_path, force=True)
    with pytest.raises(InputError, match="make it first"):
        check_new(tmp_path / "none" / "out.csv")


def test_check_new_tries_whether_a_file_can_be_made(tmp_path, monkeypatch):
    long = tmp_path / ("x" * 250)  # fits, but its draft does not
    with pytest.raises(InputError, match="cannot be written: File name too long; pass another"):
        check_new(long)
    with pytest.raises(InputError, match="cannot be written: File name too long"):
        write_whole(long, "1")

    def denied(_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "touch", denied)
    with pytest.raises(InputError, match=r"out\.csv cannot be written: Permission denied; pass"):
        check_new(tmp_path / "out.csv")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(
    not os.access("/proc/self", os.F_OK), reason="no directory that takes no file from anyone"
)
def test_check_new_refuses_a_directory_that_takes_no_file():
    with pytest.raises(InputError, match=r"picks\.csv cannot be written: .*; pass another name"):
        check_new(Path("/proc/self/picks.csv"))
