"""Parquet files and data sets, with the real libraries; and what is told where they are not installed."""

import subprocess
import sys
from pathlib import Path

import pytest

from dspark.deepspec.sources import Source
from dspark.errors import ConfigError

ROWS = [{"prompt": f"text {i}", "n": i} for i in range(600)]


def _texts(source: Source) -> list[str]:
    return [record.fields["prompt"] for record in source.records() if record.fields]


def test_a_parquet_file_is_read_row_by_row(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="an optional library: pip install 'dspark[data]'")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "prompts.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), path, row_group_size=100)
    source = Source(str(path))
    assert _texts(source) == _texts(source) == [row["prompt"] for row in ROWS]
    assert [record.place for record in source.records()][599] == f"{path}:row 600"


def test_a_broken_parquet_file_is_named(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow.parquet", reason="an optional library: pip install 'dspark[data]'")
    path = tmp_path / "prompts.parquet"
    path.write_bytes(b"PAR1 nothing PAR1")
    with pytest.raises(ConfigError, match=r"prompts\.parquet.*Parquet"):
        list(Source(str(path)).records())


def test_a_saved_data_set_is_read_by_its_split(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="an optional library: pip install 'dspark[data]'")
    datasets.disable_progress_bars()
    table = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict({"train": table, "test": table.select(range(2))}).save_to_disk(str(tmp_path / "saved"))
    assert len(_texts(Source(str(tmp_path / "saved")))) == 600
    source = Source(str(tmp_path / "saved"), split="test")
    assert _texts(source) == ["text 0", "text 1"]
    assert source.fingerprint() == Source(str(tmp_path / "saved"), split="test").fingerprint()
    with pytest.raises(ConfigError, match="no split 'dev', only train, test"):
        Source(str(tmp_path / "saved"), split="dev")


@pytest.mark.parametrize(("library", "name"), [("pyarrow.parquet", "prompts.parquet"), ("datasets", "someone/something")])
def test_a_missing_library_is_named_with_the_extra_that_brings_it(tmp_path: Path, library: str, name: str) -> None:
    (tmp_path / "prompts.parquet").write_bytes(b"PAR1")
    program = (
        f"import sys\nsys.modules[{library!r}] = None  # as if not installed\n"
        "from dspark.deepspec.sources import Source\nfrom dspark.errors import ConfigError\n"
        f"try:\n    list(Source({name!r}).records())\nexcept ConfigError as error:\n    print(error)\n"
    )
    root = Path(__file__).parents[2]
    told = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env={"PYTHONPATH": str(root)}, capture_output=True, text=True, check=True
    )
    assert library.split(".")[0] in told.stdout
    assert "pip install 'dspark[data]'" in told.stdout
