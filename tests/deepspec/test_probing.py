"""`deepspec probe` against the reference implementation's own numbers, and inputs that cannot be used."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from dspark.deepspec.cli import app
from tests.deepspec.limits import file_size_limit

FIXTURE = Path(__file__).parents[1] / "fixtures" / "deepspec_checkpoint"
CHECKPOINT, GOLDEN = FIXTURE / "vanilla", FIXTURE / "vanilla_golden.safetensors"
WIDTH = 3 * 64


def probe(inputs: Path, out: Path, checkpoint: Path = CHECKPOINT) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["probe", str(checkpoint), "--inputs", str(inputs), "--out", str(out)])
    return result.exit_code, result.output


def test_it_agrees_with_the_reference_implementation(tmp_path: Path) -> None:
    code, _ = probe(GOLDEN, tmp_path / "out.safetensors")
    assert code == 0
    found, golden = load_file(tmp_path / "out.safetensors"), load_file(GOLDEN)
    for case in ("case0", "case1"):
        assert found[f"{case}.draft_ids"].tolist() == golden[f"{case}.draft_ids"].tolist()
        for name in ("base_logits", "draft_logits", "confidence_logits"):
            wanted = golden[f"{case}.{name}"]
            assert found[f"{case}.{name}"].shape == wanted.shape
            assert (found[f"{case}.{name}"] - wanted).abs().max() < 1e-4, (case, name)


GOOD = {"case0.taps": torch.zeros(4, WIDTH), "case0.anchor_id": torch.tensor([5])}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"case0.taps": torch.zeros(4, WIDTH + 1)}, "case0.taps must be"),
        ({"case0.taps": torch.full((4, WIDTH), float("nan"))}, "case0.taps must be finite"),
        ({"case0.taps": torch.zeros(WIDTH)}, "case0.taps must be"),
        ({"case0.anchor_id": torch.tensor([160])}, "case0.anchor_id must be one token id below 160"),
        ({"case0.anchor_id": torch.tensor([1, 2])}, "case0.anchor_id"),
        ({"case0.anchor_id": torch.tensor([1.0])}, "case0.anchor_id"),
    ],
)
def test_inputs_that_do_not_fit_name_the_tensor(tmp_path: Path, change: dict[str, torch.Tensor], message: str) -> None:
    save_file(GOOD | change, tmp_path / "in.safetensors")
    code, output = probe(tmp_path / "in.safetensors", tmp_path / "out.safetensors")
    assert code == 2
    assert message in output
    assert output.count("\n") == 1
    assert not (tmp_path / "out.safetensors").exists()


def test_a_disk_that_refuses_leaves_the_old_results_whole(tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    assert probe(GOLDEN, out)[0] == 0
    before = out.read_bytes()
    with file_size_limit(100):
        code, output = probe(GOLDEN, out)
    assert (code, "cannot be written" in output) == (2, True)
    assert out.read_bytes() == before
    assert list(tmp_path.iterdir()) == [out]


def test_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no tensors")
    assert probe(tmp_path / "text", tmp_path / "out")[0] == 2
    assert probe(tmp_path / "missing", tmp_path / "out")[0] == 2
    save_file({"x": torch.zeros(1)}, tmp_path / "in.safetensors")
    code, output = probe(tmp_path / "in.safetensors", tmp_path / "out")
    assert (code, "holds no tensor caseN.taps" in output) == (2, True)
    (tmp_path / "file").write_text("")
    code, output = probe(GOLDEN, tmp_path / "file" / "out")
    assert (code, "cannot be written" in output) == (2, True)
    code, output = probe(GOLDEN, tmp_path / "out", tmp_path)
    assert code == 3
