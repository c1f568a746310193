"""What the target says of a batch: as transformers says it, padding or not."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from dspark.deepspec.features import OnlineFeatures
from dspark.errors import ModelLoadError
from tests.deepspec.tiny_training import write_target


@pytest.mark.parametrize("family", ["qwen3", "llama", "gemma3"])
def test_taps_and_logits_are_transformers_own(tmp_path: Path, family: str) -> None:
    folder = write_target(tmp_path, family)
    features = OnlineFeatures(folder, (-1, 1), "cpu")
    load: Any = AutoModelForCausalLM
    model = load.from_pretrained(folder, attn_implementation="eager").eval()
    ids, lengths = torch.randint(10, 40, (2, 12), generator=torch.Generator().manual_seed(1)), torch.tensor([12, 7])
    ids[1, 7:] = 0
    view = features.view(ids, lengths)
    for row, length in enumerate(lengths.tolist()):
        with torch.no_grad():
            alone = model(ids[row : row + 1, :length], output_hidden_states=True)
        wanted = torch.cat((alone.hidden_states[0], alone.hidden_states[2]), -1)
        assert torch.allclose(view.taps[row : row + 1, :length], wanted, atol=1e-4)
        assert torch.allclose(features.logits(view.hidden[row : row + 1, :length]), alone.logits, atol=1e-3)


def test_no_taps_are_an_empty_row(tmp_path: Path) -> None:
    view = OnlineFeatures(write_target(tmp_path), (), "cpu").view(torch.zeros(1, 4, dtype=torch.long), torch.tensor([4]))
    assert view.taps.shape == (1, 4, 0)


def test_a_pickle_file_is_refused(tmp_path: Path) -> None:
    folder = write_target(tmp_path)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelLoadError):
        OnlineFeatures(folder, (), "cpu")
