"""Reading samples: the three forms, cuts, splits, orders, and what bad files are told."""

import json
from pathlib import Path

import numpy as np
import pytest

from dspark.deepspec.data import SampleSet, order
from dspark.deepspec.sample_files import DatasetIndex, SampleRecord, SampleWriter
from dspark.errors import ConfigError

INDEX = DatasetIndex(arguments={}, tokenizer_fingerprint="abc", target_fingerprint="def", vocab_size=1000)


def _folder(path: Path, count: int = 20, per_prompt: int = 2) -> Path:
    with SampleWriter(path, INDEX, samples_per_shard=7) as writer:
        for i in range(count):
            ids = [*range(i, i + 3), 500 + i, 501 + i]
            writer.append(SampleRecord(f"prompt{i // per_prompt}#{i % per_prompt}", ids, 3, "engine", 0.7))
        writer.finish(skipped=0)
    return path


def _jsonl(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def _open(*paths: Path, max_length: int = 100, vocab_size: int | None = None) -> SampleSet:
    return SampleSet.open(paths, max_length=max_length, tokenizer_fingerprint="abc", vocab_size=vocab_size)


def test_samples_come_back_as_they_were_written_across_shards(tmp_path: Path) -> None:
    samples = _open(_folder(tmp_path / "set"))
    assert len(samples) == 20
    assert samples.num_tokens == 100
    for i in (0, 6, 7, 19):
        sample = samples[i]
        assert sample.sample_id == f"prompt{i // 2}#{i % 2}"
        assert sample.token_ids.tolist() == [i, i + 1, i + 2, 500 + i, 501 + i]
        assert sample.token_ids.dtype == np.int32
        assert sample.prompt_tokens == 3


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_a_token_stream_is_cut_into_windows_that_together_are_the_stream(tmp_path: Path, dtype: type) -> None:
    stream = np.arange(23, dtype=dtype)
    np.save(tmp_path / "train.npy", stream)
    samples = _open(tmp_path / "train.npy", max_length=5)
    assert np.concatenate([samples[i].token_ids for i in range(len(samples))]).tolist() == stream.tolist()
    assert samples.lengths.tolist() == [5, 5, 5, 5, 3]
    assert {samples[i].prompt_tokens for i in range(len(samples))} == {1}


def test_a_last_window_of_one_token_is_left_out(tmp_path: Path) -> None:
    np.save(tmp_path / "train.npy", np.arange(11, dtype=np.uint16))
    assert _open(tmp_path / "train.npy", max_length=5).lengths.tolist() == [5, 5]


def test_plain_lines_of_ids_need_nothing_but_the_ids(tmp_path: Path) -> None:
    samples = _open(_jsonl(tmp_path / "ids.jsonl", {"token_ids": [1, 2, 3]}, {"token_ids": [4, 5], "id": "mine", "prompt_tokens": 1}))
    assert samples[0].token_ids.tolist() == [1, 2, 3]
    assert samples[0].prompt_tokens == 1
    assert samples[1].sample_id == "mine"


def test_long_samples_are_cut_and_those_without_an_answer_left_out(tmp_path: Path) -> None:
    path = _jsonl(
        tmp_path / "ids.jsonl",
        {"token_ids": [1, 2, 3, 4, 5, 6], "prompt_tokens": 2, "id": "cut"},
        {"token_ids": [1, 2, 3, 4, 5, 6], "prompt_tokens": 4, "id": "only prompt left"},
        {"token_ids": [1, 2, 3], "prompt_tokens": 3, "id": "no answer"},
        {"token_ids": [7], "id": "one token"},
    )
    samples = _open(path, max_length=4)
    assert [samples[i].sample_id for i in range(len(samples))] == ["cut"]
    assert samples[0].token_ids.tolist() == [1, 2, 3, 4]


def test_several_paths_are_one_set(tmp_path: Path) -> None:
    np.save(tmp_path / "train.npy", np.arange(10, dtype=np.uint16))
    samples = _open(_folder(tmp_path / "set"), tmp_path / "train.npy", max_length=5)
    assert len(samples) == 22
    assert samples[20].token_ids.tolist() == [0, 1, 2, 3, 4]
    assert samples[19].sample_id == "prompt9#1"


def test_a_split_has_every_sample_once_and_keeps_a_prompts_samples_together(tmp_path: Path) -> None:
    samples = _open(_folder(tmp_path / "set", count=300))
    train, held_out = samples.split(0.2, seed=1)
    ids = [[part[i].sample_id for i in range(len(part))] for part in (train, held_out)]
    assert sorted(ids[0] + ids[1]) == sorted(samples[i].sample_id for i in range(300))
    assert not {name.split("#")[0] for name in ids[0]} & {name.split("#")[0] for name in ids[1]}
    assert 30 <= len(held_out) <= 90  # 150 prompts at 0.2, fixed seed: nothing random is left
    assert train.num_tokens + held_out.num_tokens == samples.num_tokens


def test_a_split_does_not_move_when_samples_are_added(tmp_path: Path) -> None:
    few, many = (_open(_folder(tmp_path / name, count)) for name, count in (("few", 100), ("many", 300)))
    held = [{part[i].sample_id for i in range(len(part))} for part in (few.split(0.3, 5)[1], many.split(0.3, 5)[1])]
    assert held[0] < held[1]


def test_a_split_depends_on_its_seed_and_may_be_empty(tmp_path: Path) -> None:
    samples = _open(_folder(tmp_path / "set", count=200))
    one, two = (samples.split(0.5, seed)[1] for seed in (1, 2))
    assert [s.sample_id for s in map(one.__getitem__, range(len(one)))] != [s.sample_id for s in map(two.__getitem__, range(len(two)))]
    train, held_out = samples.split(0.0, seed=1)
    assert (len(train), len(held_out)) == (200, 0)
    assert held_out.num_tokens == 0


def test_windows_of_a_stream_are_split_one_by_one(tmp_path: Path) -> None:
    np.save(tmp_path / "train.npy", np.zeros(2000, dtype=np.uint16))
    train, held_out = _open(tmp_path / "train.npy", max_length=10).split(0.5, seed=0)
    assert len(train) > 50
    assert len(held_out) > 50


def test_an_order_is_a_permutation_that_changes_with_seed_and_epoch_only() -> None:
    first = order(1000, 3, 0)
    assert sorted(first.tolist()) == list(range(1000))
    assert first.tolist() == order(1000, 3, 0).tolist()
    assert first.tolist() != order(1000, 3, 1).tolist()
    assert first.tolist() != order(1000, 4, 0).tolist()
    assert order(8, 0, 0).tolist() == EIGHT, "a killed run could not be resumed with this version"


EIGHT = [3, 2, 1, 6, 0, 7, 4, 5]


def test_an_unfinished_last_line_of_a_folder_is_dropped(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "set")
    with (folder / "samples-00002.jsonl").open("a") as file:
        file.write('{"id": "half", "token_ids": [1, 2')
    assert len(_open(folder)) == 20


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{nope", "not JSON"),
        ("[1, 2]", "no list `token_ids`"),
        ('{"text": "x"}', "no list `token_ids`"),
        ('{"token_ids": []}', "empty"),
        ('{"token_ids": ["a"]}', "integers"),
        ('{"token_ids": [1.5, 2.0]}', "integers"),
        ('{"token_ids": [[1], [2, 3]]}', "integers"),
        ('{"token_ids": [1, -2]}', "token id -2 is outside"),
        ('{"token_ids": [1, 1000]}', "token id 1000 is outside the vocabulary of 1000"),
        ('{"token_ids": [1, 2], "prompt_tokens": 3}', "prompt_tokens is 3"),
        ('{"token_ids": [1, 2], "prompt_tokens": true}', "prompt_tokens is True"),
    ],
)
def test_a_bad_line_is_named_with_file_and_line(tmp_path: Path, line: str, words: str) -> None:
    path = tmp_path / "ids.jsonl"
    path.write_text('{"token_ids": [1, 2]}\n\n' + line + "\n")
    with pytest.raises(ConfigError, match=words) as caught:
        _open(path, vocab_size=1000)
    assert f"{path}:3" in str(caught.value)


def test_another_tokenizer_is_refused_unless_nobody_asks(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "set")
    with pytest.raises(ConfigError, match="another tokenizer"):
        SampleSet.open([folder], max_length=10, tokenizer_fingerprint="other")
    assert len(SampleSet.open([folder], max_length=10, tokenizer_fingerprint=None)) == 20


def test_what_is_not_a_set_of_samples_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "square.npy", np.zeros((2, 2), dtype=np.int32))
    np.save(tmp_path / "real.npy", np.zeros(4, dtype=np.float32))
    np.save(tmp_path / "large.npy", np.array([1, 70_000], dtype=np.int32))
    (tmp_path / "junk.npy").write_bytes(b"\x93NUMPY junk")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.jsonl").write_text("")
    for name in ("square.npy", "real.npy", "large.npy", "junk.npy", "empty", "missing.jsonl", "empty.jsonl"):
        with pytest.raises(ConfigError, match=name):
            _open(tmp_path / name, vocab_size=65_536)


def test_a_pickled_array_is_not_loaded(tmp_path: Path) -> None:
    np.save(tmp_path / "objects.npy", np.array([{}, []], dtype=object), allow_pickle=True)
    with pytest.raises(ConfigError, match="objects.npy"):
        _open(tmp_path / "objects.npy")
