"""Embedding and LM head from a target's folder: tied or not, in one file or several."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dspark.drafting.shared_weights import SharedWeights
from dspark.errors import ModelLoadError
from tests.conftest import tiny_qwen3


def saved(folder: Path, **options: object) -> dict[str, torch.Tensor]:
    model = tiny_qwen3(64, tie_word_embeddings=options.pop("tied", False))
    model.save_pretrained(folder, **options)  # type: ignore[arg-type]
    return {name: tensor.detach() for name, tensor in model.state_dict().items()}


def test_an_untied_head_is_its_own(tmp_path: Path) -> None:
    weights = saved(tmp_path)
    shared = SharedWeights.from_folder(tmp_path, torch.float32)
    assert torch.equal(shared.embedding, weights["model.embed_tokens.weight"])
    assert torch.equal(shared.lm_head, weights["lm_head.weight"])
    assert not torch.equal(shared.embedding, shared.lm_head)


def test_a_tied_head_is_the_embedding_and_takes_no_memory_of_its_own(tmp_path: Path) -> None:
    saved(tmp_path, tied=True)
    shared = SharedWeights.from_folder(tmp_path, torch.bfloat16)
    assert shared.lm_head is shared.embedding
    assert shared.embedding.dtype == torch.bfloat16


def test_weights_in_several_files_are_found_through_the_index(tmp_path: Path) -> None:
    weights = saved(tmp_path, max_shard_size="20KB")
    assert not (tmp_path / "model.safetensors").exists()
    shared = SharedWeights.from_folder(tmp_path, torch.float32)
    assert torch.equal(shared.embedding, weights["model.embed_tokens.weight"])
    assert torch.equal(shared.lm_head, weights["lm_head.weight"])


def test_a_target_without_an_embedding_of_a_usual_name_is_refused(tmp_path: Path) -> None:
    saved(tmp_path / "target")
    shutil.copytree(tmp_path / "target", tmp_path / "odd")
    file = tmp_path / "odd" / "model.safetensors"
    save_file({name.replace("embed_tokens", "tokens"): t for name, t in load_file(file).items()}, file, metadata={"format": "pt"})
    with pytest.raises(ModelLoadError, match="odd: holds no token embedding named model.embed_tokens.weight or"):
        SharedWeights.from_folder(tmp_path / "odd", torch.float32)


def test_a_drafters_own_weights_replace_the_shared_ones_in_the_same_precision() -> None:
    shared = SharedWeights(torch.zeros(4, 2, dtype=torch.bfloat16), torch.ones(4, 2, dtype=torch.bfloat16))
    own = shared.replaced_by({"lm_head.weight": torch.full((3, 2), 2.0)})
    assert own.embedding is shared.embedding
    assert (own.lm_head.shape, own.lm_head.dtype, own.lm_head.unique().tolist()) == ((3, 2), torch.bfloat16, [2.0])
