"""A folder is replaced as a whole or not at all."""

import ctypes
from pathlib import Path
from typing import Any

import pytest

from dspark.deepspec.folder_swap import replaced_folder


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


@pytest.fixture(params=["exchange", "two renames"])
def system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A system that can exchange two names, and one whose C library lacks that call."""
    if request.param == "two renames":
        monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())
    return request.param


@pytest.mark.usefixtures("system")
def test_the_new_folder_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    place = tmp_path / "deep" / "place"
    for text in ("first", "second"):
        with replaced_folder(place) as folder:
            (folder / text).write_text(text)
            assert not (place / text).exists()
        assert contents(place) == {text: text}
        assert list(place.parent.iterdir()) == [place]


@pytest.mark.usefixtures("system")
def test_after_an_error_the_old_folder_is_whole_and_nothing_else_is_left(tmp_path: Path) -> None:
    place = tmp_path / "place"
    with replaced_folder(place) as folder:
        (folder / "old").write_text("old")
    with pytest.raises(OSError, match="broken"), replaced_folder(place) as folder:
        (folder / "new").write_text("new")
        raise OSError("broken")
    assert contents(place) == {"old": "old"}
    assert list(tmp_path.iterdir()) == [place]


def test_what_a_killed_writer_left_is_swept_away(tmp_path: Path) -> None:
    left = tmp_path / ".place.partial"
    left.mkdir()
    (left / "half").write_text("ha")
    with replaced_folder(tmp_path / "place") as folder:
        (folder / "whole").write_text("whole")
    assert contents(tmp_path / "place") == {"whole": "whole"}
    assert list(tmp_path.iterdir()) == [tmp_path / "place"]
