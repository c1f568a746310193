"""The writer of samples: what is left on disk after a kill, a full disk, another run, or other arguments."""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dspark.deepspec.sample_files import DatasetIndex, SampleRecord, SampleWriter, read_index, shard_paths
from dspark.errors import ConfigError

INDEX = DatasetIndex(arguments={"seed": 1, "limit": None}, tokenizer_fingerprint="abc", target_fingerprint="def", vocab_size=1000)


def _record(number: int) -> SampleRecord:
    return SampleRecord(f"{number:04d}#0", [number, number + 1, number + 2], 1, "engine", 0.7)


def _writer(folder: Path, index: DatasetIndex = INDEX) -> SampleWriter:
    return SampleWriter(folder, index, samples_per_shard=10, fsync_every=3)


def _write(folder: Path, numbers: range, *, finish: bool = True) -> DatasetIndex:
    with _writer(folder) as writer:
        for number in numbers:
            writer.append(_record(number))
        if finish:
            writer.finish(skipped=2)
    return writer.index


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in [*shard_paths(folder), folder / "dataset.json"]}


def test_samples_lie_in_shards_of_the_asked_size_and_are_counted(tmp_path: Path) -> None:
    index = _write(tmp_path, range(25))
    assert [len(path.read_text().splitlines()) for path in shard_paths(tmp_path)] == [10, 10, 5]
    assert (index.samples, index.tokens, index.skipped, index.complete) == (25, 75, 2, True)
    assert read_index(tmp_path) == index
    line = json.loads(shard_paths(tmp_path)[1].read_text().splitlines()[0])
    assert line == {"id": "0010#0", "token_ids": [10, 11, 12], "prompt_tokens": 1, "source": "engine", "temperature": 0.7}


@pytest.mark.parametrize("stopped_after", [0, 1, 3, 10, 14, 20])
def test_a_run_in_two_parts_writes_the_same_files_as_one(tmp_path: Path, stopped_after: int) -> None:
    _write(tmp_path / "once", range(25))
    _write(tmp_path / "twice", range(stopped_after), finish=False)
    with _writer(tmp_path / "twice") as writer:
        assert writer.last_id == (f"{stopped_after - 1:04d}#0" if stopped_after else None)
        for number in range(stopped_after, 25):
            writer.append(_record(number))
        writer.finish(skipped=2)
    assert _contents(tmp_path / "twice") == _contents(tmp_path / "once")


@pytest.mark.parametrize("cut_bytes", range(1, 60, 7))
def test_a_line_cut_off_by_a_kill_is_dropped_and_written_again(tmp_path: Path, cut_bytes: int) -> None:
    _write(tmp_path / "once", range(16))
    _write(tmp_path / "cut", range(15), finish=False)
    shard = shard_paths(tmp_path / "cut")[-1]
    os.truncate(shard, shard.stat().st_size - cut_bytes)
    with _writer(tmp_path / "cut") as writer:
        assert writer.last_id is not None
        for number in range(int(writer.last_id[:4]) + 1, 16):
            writer.append(_record(number))
        writer.finish(skipped=2)
    assert _contents(tmp_path / "cut") == _contents(tmp_path / "once")


def test_a_process_killed_while_it_writes_leaves_whole_samples_that_a_second_one_continues(tmp_path: Path) -> None:
    program = (
        "import os, sys\nfrom pathlib import Path\nfrom tests.deepspec.test_sample_files import _record, _writer\n"
        "with _writer(Path(sys.argv[1])) as writer:\n"
        "    for number in range(17):\n        writer.append(_record(number))\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "cut")], cwd=Path(__file__).parents[2], check=False)
    assert done.returncode == -9
    _write(tmp_path / "once", range(25))
    with _writer(tmp_path / "cut") as writer:
        assert writer.last_id == "0015#0", "of 17 samples 10 filled a shard and two groups of 3 were flushed"
        for number in range(16, 25):
            writer.append(_record(number))
        writer.finish(skipped=2)
    assert _contents(tmp_path / "cut") == _contents(tmp_path / "once")


@contextmanager
def _file_size_limit(num_bytes: int) -> Iterator[None]:
    """No file may grow beyond this: the kernel writes a part and then refuses, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_a_clear_error_and_keeps_what_was_complete(tmp_path: Path) -> None:
    _write(tmp_path / "once", range(12))
    line_bytes = len(_record(1000).line())
    with pytest.raises(ConfigError, match="disk is full .* after 6 complete samples"), _file_size_limit(8 * line_bytes):
        _write(tmp_path / "full", range(12))
    assert len((tmp_path / "full" / "samples-00000.jsonl").read_bytes().splitlines()) == 6
    with _writer(tmp_path / "full") as writer:
        assert (writer.last_id, writer.index.samples) == ("0005#0", 6)
        for number in range(6, 12):
            writer.append(_record(number))
        writer.finish(skipped=2)
    assert _contents(tmp_path / "full") == _contents(tmp_path / "once")


def test_an_error_of_the_caller_does_not_lose_the_samples_before_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="bad line"), _writer(tmp_path) as writer:
        writer.append(_record(0))
        raise ConfigError("bad line")
    with _writer(tmp_path) as writer:
        assert writer.last_id == "0000#0"


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"arguments": {"seed": 2, "limit": None}}, "seed"),
        ({"arguments": {"seed": 1, "limit": 5}}, "limit"),
        ({"tokenizer_fingerprint": "other"}, "tokenizer_fingerprint"),
        ({"target_fingerprint": "other"}, "target_fingerprint"),
    ],
)
def test_other_arguments_or_another_model_in_the_same_folder_are_refused_by_name(
    tmp_path: Path, changes: dict[str, object], named: str
) -> None:
    _write(tmp_path, range(3), finish=False)
    before = _contents(tmp_path)
    with pytest.raises(ConfigError, match=f"other arguments.*{named}"), _writer(tmp_path, INDEX.model_copy(update=changes)):
        pass
    assert _contents(tmp_path) == before


def test_a_folder_without_samples_yet_takes_any_arguments(tmp_path: Path) -> None:
    _write(tmp_path, range(0), finish=False)
    other = INDEX.model_copy(update={"arguments": {"seed": 2}})
    with _writer(tmp_path, other):
        pass
    assert read_index(tmp_path) == other


def test_two_writers_in_one_folder_are_refused(tmp_path: Path) -> None:
    with _writer(tmp_path), pytest.raises(ConfigError, match="another process"), _writer(tmp_path):
        pass


def test_samples_without_an_index_and_an_index_of_another_kind_are_refused(tmp_path: Path) -> None:
    _write(tmp_path, range(3))
    index = tmp_path / "dataset.json"
    index.write_text(index.read_text().replace('"version": 1', '"version": 9'))
    with pytest.raises(ConfigError, match="version 9"), _writer(tmp_path):
        pass
    index.write_text("{}")
    with pytest.raises(ConfigError, match=r"dataset\.json: not an index"), _writer(tmp_path):
        pass
    index.unlink()
    with pytest.raises(ConfigError, match="no dataset.json"), _writer(tmp_path):
        pass
