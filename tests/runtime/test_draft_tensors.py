"""Tensors of a drafter's checkpoint: one that does not fit is refused by file and name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dspark.errors import ModelLoadError
from dspark.runtime.draft_formats import read_draft_checkpoint
from dspark.runtime.draft_spec import DraftSpec
from dspark.runtime.draft_tensors import target_ids
from tests.runtime.draft_folders import Tensors, write
from tests.runtime.folders import edit_weights
from tests.runtime.tiny_drafters import SPEC, SPECS, random_tensors


def resize(name: str) -> Callable[[Tensors], Any]:
    return lambda tensors: tensors.update({name: torch.zeros(3, 3)})


BAD_TENSORS: dict[str, tuple[DraftSpec, Callable[[Tensors], Any], str]] = {
    "missing": (SPEC, lambda tensors: tensors.pop("layers.1.mlp.up_proj.weight"), "'layers.1.mlp.up_proj.weight' .* is missing"),
    "extra": (SPEC, lambda tensors: tensors.update({"layers.2.extra": torch.zeros(1)}), "'layers.2.extra' is not part of"),
    "misshapen": (SPEC, resize("fc.weight"), r"'fc.weight' is \[3, 3\] instead of \[16, 48\]"),
    "embedding of another vocabulary": (SPEC, resize("embed_tokens.weight"), "'embed_tokens.weight' is"),
    "head of another vocabulary": (SPEC, resize("lm_head.weight"), "'lm_head.weight' is"),
    "infinite": (SPEC, lambda tensors: tensors["fc.weight"].view(-1)[7:8].fill_(float("-inf")), "'fc.weight' holds NaN or infinity"),
    "whole numbers": (
        SPEC,
        lambda tensors: tensors.update({"norm.weight": torch.ones(16, dtype=torch.int32)}),
        "'norm.weight' holds torch.int32",
    ),
    "gated without its gate": (SPECS["gated"], lambda tensors: tensors.pop("markov_head.gate_proj.weight"), "gate_proj.weight' .* missing"),
    "rnn without its cell": (SPECS["rnn"], lambda tensors: tensors.pop("markov_head.joint_proj.bias"), "joint_proj.bias' .* missing"),
    "a gate on a vanilla head": (
        SPEC,
        lambda tensors: tensors.update({"markov_head.gate_proj.bias": torch.zeros(4)}),
        "not part of .*vanilla",
    ),
    "a sequential head on DFlash": (
        SPECS["dflash"],
        lambda tensors: tensors.update({"markov_head.markov_w1.weight": torch.zeros(40, 4)}),
        "not part",
    ),
    "no confidence head": (SPEC, lambda tensors: tensors.pop("confidence_head.proj.bias"), "confidence_head.proj.bias' .* missing"),
    "a reduced vocabulary without its head": (
        SPECS["reduced"],
        lambda tensors: tensors.pop("lm_head.weight"),
        "lm_head.weight' .* missing",
    ),
    "a reduced vocabulary without its map": (SPECS["reduced"], lambda tensors: tensors.pop("d2t"), "'d2t' .* missing"),
    "a map on a whole vocabulary": (
        SPEC,
        lambda tensors: tensors.update({"d2t": torch.zeros(40, dtype=torch.int64)}),
        "'d2t' is not part of",
    ),
    "d2t of floats": (SPECS["reduced"], lambda tensors: tensors.update({"d2t": tensors["d2t"].float()}), "'d2t' holds torch.float32"),
    "t2d of numbers": (SPECS["reduced"], lambda tensors: tensors.update({"t2d": tensors["t2d"].long()}), "'t2d' holds torch.int64"),
    "d2t beyond the target": (SPECS["reduced"], lambda tensors: tensors["d2t"][-1:].fill_(40), "'d2t' maps draft id 11 to 51"),
    "d2t below zero": (SPECS["reduced"], lambda tensors: tensors["d2t"][:1].fill_(-1), "'d2t' maps draft id 0 to -1"),
    "d2t falls": (SPECS["reduced"], lambda tensors: tensors["d2t"][1:2].fill_(-1), "'d2t' maps draft id 1 no higher"),
    "d2t holds target ids": (SPECS["reduced"], lambda tensors: tensors["d2t"].add_(torch.arange(12)), "'d2t' maps draft id"),
    "t2d marks another token": (SPECS["reduced"], lambda tensors: tensors["t2d"].logical_not_(), "'t2d' marks other target ids"),
}


@pytest.mark.parametrize(("spec", "edit", "message"), BAD_TENSORS.values(), ids=BAD_TENSORS)
def test_a_tensor_that_does_not_fit_is_refused_by_file_and_name(
    tmp_path: Path, spec: DraftSpec, edit: Callable[[Tensors], Any], message: str
) -> None:
    edit_weights(write(tmp_path, spec), edit)
    with pytest.raises(ModelLoadError, match=rf"model\.safetensors: tensor .*{message}"):
        read_draft_checkpoint(tmp_path)


def test_d2t_holds_offsets_and_not_ids() -> None:
    assert target_ids(torch.tensor([1, 3, 3])).tolist() == [1, 4, 5]


def test_a_map_that_leaves_ids_out_does_not_pass_for_a_whole_vocabulary(tmp_path: Path) -> None:
    d2t = torch.zeros(40, dtype=torch.int64)
    d2t[-1] = 1
    write(tmp_path, SPEC, random_tensors(SPEC) | {"d2t": d2t}, "speculators")
    with pytest.raises(ModelLoadError, match="tensor 'd2t' leaves ids out"):
        read_draft_checkpoint(tmp_path)
