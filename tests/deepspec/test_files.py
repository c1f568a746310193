"""Files are replaced as a whole; columns come back as they went, and what does not fit is named."""

import os
from pathlib import Path

import numpy as np
import pytest

from dspark.deepspec.files import read_columns, write_atomically, write_columns
from dspark.errors import ConfigError

TYPES = {"height": np.float32, "seen": np.bool_}


def write(path: Path, **changes: np.ndarray) -> None:
    columns = {"height": np.array([1.5, 2.5], np.float32), "seen": np.array([True, False])} | changes
    write_columns(path, columns, "towers-1")


def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_missing_folder_is_made(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a" / "b" / "file", b"new")
    assert (tmp_path / "a" / "b" / "file").read_bytes() == b"new"


def test_columns_come_back_as_they_were_written(tmp_path: Path) -> None:
    write(tmp_path / "towers")
    columns = read_columns(tmp_path / "towers", TYPES, "towers-1", "list of towers")
    assert columns["height"].tolist() == [1.5, 2.5]
    assert columns["seen"].tolist() == [True, False]


@pytest.mark.parametrize(
    ("changes", "file_format", "said"),
    [
        ({}, "towers-2", "format is \"towers-1\", not towers-2"),
        ({"width": np.zeros(2, np.float32)}, "towers-1", "missing columns [], unknown columns ['width']"),
        ({"height": np.zeros(2)}, "towers-1", "column 'height' is float64 [2], not float32 [n]"),
        ({"seen": np.zeros((1, 2), bool)}, "towers-1", "column 'seen' is bool [1, 2], not bool [n]"),
    ],
)
def test_what_does_not_fit_is_named_with_its_file(tmp_path: Path, changes: dict[str, np.ndarray], file_format: str, said: str) -> None:
    write(tmp_path / "towers", **changes)
    with pytest.raises(ConfigError) as caught:
        read_columns(tmp_path / "towers", TYPES, file_format, "list of towers")
    assert caught.value.message == f"{tmp_path / 'towers'}: {said}"


def test_what_is_no_such_file_is_refused_by_its_kind(tmp_path: Path) -> None:
    (tmp_path / "towers").write_bytes(b"no tensors")
    with pytest.raises(ConfigError, match="cannot be read as a list of towers"):
        read_columns(tmp_path / "towers", TYPES, "towers-1", "list of towers")
