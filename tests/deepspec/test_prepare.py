"""`deepspec prepare` as its user runs it: the real engine on a tiny model, killed, resumed, refused, on a full disk."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from dspark.config import TargetConfig
from dspark.deepspec import estimates
from dspark.deepspec.data import SampleSet
from dspark.deepspec.prepare import Preparation, PrepareOptions, prepare_samples
from dspark.deepspec.prepare_command import parse_temperatures, prepare
from dspark.deepspec.prompts import Rendering
from dspark.deepspec.sample_files import DatasetIndex, read_index, shard_paths
from dspark.errors import ConfigError
from dspark.runtime.loading import load_tokenizer, model_fingerprint, tokenizer_fingerprint
from dspark.serving.text_codec import TextCodec

WORDS = ["def", "return", "self", "value", "name"]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    lines = [json.dumps({"prompt": f"{WORDS[i % 5]} {WORDS[i // 5 % 5]} ( {i}"}) for i in range(25)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path / "prompts.jsonl"


def _options(tiny_folder: Path, prompts: Path, out: str, **changes: Any) -> PrepareOptions:
    usual: dict[str, Any] = {"temperatures": (0.0, 0.7), "max_tokens": 8, "concurrency": 8, "ignore_eos": True}
    target = TargetConfig(model=str(tiny_folder), num_threads=1)
    return PrepareOptions(str(prompts), prompts.parent / out, target, **(usual | changes))


def _run(options: PrepareOptions) -> DatasetIndex:
    index = prepare_samples(options, Console(quiet=True))
    assert index is not None
    return index


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in [*shard_paths(folder), folder / "dataset.json"]}


def _records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in shard_paths(folder) for line in path.read_text().splitlines()]


def test_the_samples_are_the_prompts_in_order_with_the_targets_own_answers(tiny_folder: Path, prompts: Path) -> None:
    from dspark.config import DrafterConfig, EngineConfig
    from dspark.engine import Engine

    options = _options(tiny_folder, prompts, "out", samples_per_prompt=2)
    index = _run(options)
    assert (index.samples, index.complete) == (50, True)
    assert index.target_fingerprint == model_fingerprint(tiny_folder)
    records = _records(options.out)
    codec = TextCodec(load_tokenizer(tiny_folder))
    asked = [json.loads(line)["prompt"] for line in prompts.read_text().splitlines() for _ in range(2)]
    assert [record["token_ids"][: record["prompt_tokens"]] for record in records] == [codec.encode(text) for text in asked]
    assert [record["temperature"] for record in records] == [0.0, 0.7] * 25
    assert len({record["id"] for record in records}) == 50
    assert records[0]["id"].split("#")[0] == records[1]["id"].split("#")[0]
    engine = Engine.from_config(EngineConfig(target=options.target, drafter=DrafterConfig(kind="none")))
    greedy = engine.generate(asked[::2], max_tokens=8, temperature=0, ignore_eos=True)
    assert [record["token_ids"][record["prompt_tokens"] :] for record in records[::2]] == [list(a.token_ids) for a in greedy]


def test_training_opens_what_prepare_wrote(tiny_folder: Path, prompts: Path) -> None:
    options = _options(tiny_folder, prompts, "out")
    _run(options)
    samples = SampleSet.open([options.out], max_length=256, tokenizer_fingerprint=tokenizer_fingerprint(tiny_folder))
    assert len(samples) == 25
    assert samples[3].token_ids.tolist() == _records(options.out)[3]["token_ids"]


def test_how_many_run_together_and_how_often_it_stops_does_not_change_the_files(tiny_folder: Path, prompts: Path) -> None:
    _run(_options(tiny_folder, prompts, "once"))
    for minutes in (0.0, 0.0005, 0.001, None):
        index = _run(_options(tiny_folder, prompts, "often", concurrency=3, max_minutes=minutes))
        assert index.complete == (minutes is None)
    once, often = (_records(prompts.parent / name) for name in ("once", "often"))
    # Different company in a batch moves logits by 1e-5, which may turn a near-tie of a random model; ids and prompts never move.
    fixed = ("id", "prompt_tokens", "temperature")
    assert [[record[key] for key in fixed] for record in once] == [[record[key] for key in fixed] for record in often]
    assert sum(a != b for a, b in zip(once, often, strict=True)) <= 1


@pytest.mark.slow
def test_a_killed_process_is_continued_by_the_same_command(tiny_folder: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "many.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"def self {i}"}) + "\n" for i in range(400)))
    program = "import typer\nfrom dspark.deepspec.prepare_command import prepare\napp = typer.Typer()\napp.command()(prepare)\napp()\n"
    command = [sys.executable, "-c", program, str(prompts), "--out", str(tmp_path / "out"), "--target", str(tiny_folder)]
    command += ["--max-tokens", "8", "--threads", "1", "--ignore-eos", "--temperatures", "1"]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[2], stderr=subprocess.DEVNULL)
    shard = tmp_path / "out" / "samples-00000.jsonl"
    deadline_s = time.monotonic() + 60
    while not (shard.exists() and shard.stat().st_size) and time.monotonic() < deadline_s:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    killed = _records(tmp_path / "out")
    assert 0 < len(killed) < 400
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True)
    assert "400 samples" in done.stderr
    records = _records(tmp_path / "out")
    assert records[: len(killed)] == killed
    assert [int(record["id"].split("#")[1].split(".")[0]) for record in records] == list(range(400))


def test_other_arguments_or_changed_prompts_are_refused_in_the_same_folder(tiny_folder: Path, prompts: Path) -> None:
    _run(_options(tiny_folder, prompts, "out"))
    before = _files(prompts.parent / "out")
    with pytest.raises(ConfigError, match=r"other arguments \(seed"):
        _run(_options(tiny_folder, prompts, "out", seed=1))
    with prompts.open("a") as file:
        file.write('{"prompt": "one more"}\n')
    with pytest.raises(ConfigError, match="prompts_fingerprint"):
        _run(_options(tiny_folder, prompts, "out"))
    assert _files(prompts.parent / "out") == before


def test_a_complete_folder_is_left_as_it_is(tiny_folder: Path, prompts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _run(_options(tiny_folder, prompts, "out"))
    before = _files(prompts.parent / "out")
    monkeypatch.setattr(Preparation, "_answerer", lambda *_: pytest.fail("nothing is left to answer"))
    assert _run(_options(tiny_folder, prompts, "out")).complete
    assert _files(prompts.parent / "out") == before


def test_what_will_not_fit_the_disk_is_refused_with_both_numbers_before_anything_is_written(
    tiny_folder: Path, prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = estimates.RESERVE_BYTES + 2000
    monkeypatch.setattr(estimates, "free_bytes", lambda folder: free)
    with pytest.raises(ConfigError) as caught:
        _run(_options(tiny_folder, prompts, "out", max_tokens=200))
    needed, told_free = re.search(r"needs up to (\d+) bytes .* but only (\d+) bytes", str(caught.value)).groups()
    assert int(told_free) == free
    assert 25 * 200 * 2 < int(needed) < 25 * 260 * 5 + 25 * 200
    assert not (prompts.parent / "out").exists()
    _run(_options(tiny_folder, prompts, "out", max_tokens=8, limit=5))


def test_the_estimate_bounds_what_is_written_and_is_near_it(tiny_folder: Path, prompts: Path) -> None:
    console = Console(file=io.StringIO(), width=120)
    options = _options(tiny_folder, prompts, "out", max_tokens=100)
    assert prepare_samples(_options(tiny_folder, prompts, "out", max_tokens=100, dry_run=True), console) is None
    assert not options.out.exists()
    text = console.file.getvalue()
    told_kb = float(re.search(r"at most ([\d.]+) kB more", text).group(1))
    assert re.search(r"samples +│ 25 ", text)
    assert re.search(r"answer tokens +│ at most 2,500 ", text)
    assert re.search(r"estimated time: about .* if no answer ends early; extrapolated from a trial of \d+ tokens in [\d.]+ s", text)
    _run(options)
    written_kb = sum(path.stat().st_size for path in shard_paths(options.out)) / 1000
    assert 0.6 * told_kb < written_kb < 1.1 * told_kb


def test_the_time_is_told_before_the_first_sample_and_for_what_is_left(tiny_folder: Path, prompts: Path) -> None:
    console = Console(file=io.StringIO(), width=160)
    assert prepare_samples(_options(tiny_folder, prompts, "out"), console) is not None
    text = console.file.getvalue()
    assert text.index("estimated time") < text.index("25 samples; this run")
    again = Console(file=io.StringIO(), width=160)
    assert prepare_samples(_options(tiny_folder, prompts, "kept", answers="keep"), again) is not None
    assert "estimated time" not in again.file.getvalue()


def test_a_bad_record_is_found_before_anything_is_generated(tiny_folder: Path, prompts: Path) -> None:
    with prompts.open("a") as file:
        file.write('{"nothing": 1}\n')
    with pytest.raises(ConfigError, match=re.escape(f"{prompts}:26")):
        _run(_options(tiny_folder, prompts, "out"))
    assert not (prompts.parent / "out").exists()


def test_bad_records_are_counted_and_left_out_if_asked(tiny_folder: Path, prompts: Path) -> None:
    lines = prompts.read_text().splitlines()
    bad = ["{nope", '{"prompt": ""}', json.dumps({"prompt": "self " * 400})]
    prompts.write_text("\n".join([*lines[:3], *bad, *lines[3:]]) + "\n")
    index = _run(_options(tiny_folder, prompts, "out", skip_bad=True, limit=10))
    assert (index.samples, index.skipped, index.complete) == (9, 3, True)  # the long one is known as too long only with its tokens
    with pytest.raises(ConfigError, match=r":6: has \d+ tokens"):
        _run(_options(tiny_folder, _without(prompts, 3, 4), "strict"))


def _without(path: Path, *numbers: int) -> Path:
    """Blank lines in place of some, so that the others keep their numbers."""
    lines = path.read_text().splitlines()
    path.write_text("\n".join("" if number in numbers else line for number, line in enumerate(lines)) + "\n")
    return path


def test_answers_are_cut_to_the_room_that_the_prompt_leaves(tiny_folder: Path, prompts: Path) -> None:
    options = _options(tiny_folder, prompts, "out", max_length=14, limit=8, max_tokens=50)
    _run(options)
    assert {len(record["token_ids"]) for record in _records(options.out)} == {14}


def test_given_texts_are_kept_as_windows_closed_by_the_end_of_text(tiny_folder: Path, prompts: Path) -> None:
    options = _options(tiny_folder, prompts, "out", answers="keep", max_length=5)
    index = _run(options)
    codec = TextCodec(load_tokenizer(tiny_folder))
    text = json.loads(prompts.read_text().splitlines()[0])["prompt"]
    records = _records(options.out)
    first = [token_id for record in records if record["id"].startswith("0#") for token_id in record["token_ids"]]
    assert first in ([*codec.encode(text), 0], codec.encode(text))
    assert {record["temperature"] for record in records} == {None}
    assert index.complete
    assert index.target_fingerprint == ""
    assert max(len(record["token_ids"]) for record in records) == 5


def test_kept_conversations_end_as_the_target_ends_its_turn(folder: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(folder)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, end]}))
    chat = [{"role": "user", "content": "self"}, {"role": "assistant", "content": "value name"}]
    (tmp_path / "chats.jsonl").write_text(json.dumps({"messages": chat}) + "\n")
    options = _options(folder, tmp_path / "chats.jsonl", "out", answers="keep")
    _run(options)
    (record,) = _records(options.out)
    codec = TextCodec(tokenizer)
    assert record["token_ids"] == [*codec.encode_chat(chat[:1]), *codec.encode("value name"), end]


def test_keeping_texts_goes_on_after_a_stop(tiny_folder: Path, prompts: Path) -> None:
    whole = _run(_options(tiny_folder, prompts, "whole", answers="keep", max_length=5))
    assert not _run(_options(tiny_folder, prompts, "out", answers="keep", max_length=5, max_minutes=0.0)).complete
    shard = prompts.parent / "out" / "samples-00000.jsonl"
    shard.write_bytes((prompts.parent / "whole" / "samples-00000.jsonl").read_bytes()[:777])
    assert _run(_options(tiny_folder, prompts, "out", answers="keep", max_length=5)) == whole
    assert _files(prompts.parent / "out") == _files(prompts.parent / "whole")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rendering": Rendering(thinking="on"), "skip_bad": True}, "enable_thinking"),
        ({"max_length": 1000}, "above the model's own limit of 256"),
        ({"rendering": Rendering(field="nothing"), "skip_bad": True}, "no usable record .25 bad ones"),
    ],
)
def test_options_that_cannot_work_are_refused_by_name(tiny_folder: Path, prompts: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        _run(_options(tiny_folder, prompts, "out", **changes))


def test_the_command_tells_errors_without_a_traceback_and_ends_with_a_status(tiny_folder: Path, prompts: Path) -> None:
    app = typer.Typer()
    app.command()(prepare)
    arguments = [str(prompts), "--out", str(prompts.parent / "out"), "--target", str(tiny_folder), "--max-tokens", "4"]
    result = CliRunner().invoke(app, [*arguments, "--temperatures", "0,hot"])
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "error: --temperatures 0,hot" in result.stderr
    result = CliRunner().invoke(app, [*arguments, "--temperatures", "0,1", "--threads", "1", "--limit", "3"])
    assert result.exit_code == 0, result.stderr
    assert read_index(prompts.parent / "out").samples == 3
    assert "3 samples" in result.stderr


def test_temperatures_are_numbers_that_the_service_takes() -> None:
    assert parse_temperatures("0,0.7, 1") == (0.0, 0.7, 1.0)
    for text in ("", "1,", "-1", "2.1", "nan"):
        with pytest.raises(ConfigError, match="--temperatures"):
            parse_temperatures(text)
