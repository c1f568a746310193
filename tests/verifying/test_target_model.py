"""load_target with drafters: their projections come from real checkpoints, and one that does not fit is told at the start."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dspark.config import DrafterConfig, TargetConfig
from dspark.errors import ConfigError
from dspark.messages import ContextFeatures, FeatureSpec, SessionOpen, VerifyRequest
from dspark.runtime.draft_formats import feature_spec
from dspark.runtime.draft_spec import DraftSpec
from dspark.runtime.projection import load_projection
from dspark.tree import CandidateTree
from dspark.types import SessionId
from dspark.verifying.target_model import LoadedTarget, load_target, target_card
from tests.runtime.draft_folders import write
from tests.runtime.tiny_drafters import LAYERS, SPEC
from tests.verifying.rounds import GREEDY

TAPS = (-1, 0)
PROMPT = (5, 9, 11, 6, 8)
NAME = SessionId("s")


def spec_for(target: Path, tap_layers: tuple[int, ...] = TAPS) -> DraftSpec:
    """A block drafter as wide as the tiny target, with as many tokens."""
    vocab_size = target_card(TargetConfig(model=str(target))).vocab_size
    return replace(
        SPEC,
        layers=LAYERS | {"hidden_size": 32},
        num_target_layers=0,  # the checkpoint does not say
        tap_layers=tap_layers,
        vocab_size=vocab_size,
        draft_vocab_size=vocab_size,
        target_fingerprint="",
    )


@pytest.fixture
def drafter(tiny_folder: Path, tmp_path: Path) -> DrafterConfig:
    return DrafterConfig(kind="block", model=str(write(tmp_path / "drafter", spec_for(tiny_folder))))


def features_of(target: LoadedTarget, spec: FeatureSpec | None) -> ContextFeatures:
    target.verifier.open(SessionOpen(NAME, PROMPT, GREEDY, features=spec))
    target.verifier.submit(VerifyRequest(NAME, 0, len(PROMPT), CandidateTree.empty(), 0))
    (result,) = target.verifier.step().results
    assert result.features is not None
    return result.features


def floats(features: ContextFeatures) -> torch.Tensor:
    return torch.from_numpy(features.values).view(torch.bfloat16).float()


def test_a_drafters_projection_runs_on_the_target(tiny_folder: Path, drafter: DrafterConfig) -> None:
    target = TargetConfig(model=str(tiny_folder))
    spec = feature_spec(drafter)
    projected = features_of(load_target(target, [drafter]), spec)
    raw = features_of(load_target(target), spec)
    assert (projected.projected, projected.values.shape) == (True, (5, 32))
    assert (raw.projected, raw.values.shape) == (False, (5, 64))
    expected = load_projection(drafter, torch.device("cpu"))(floats(raw)).float()
    torch.testing.assert_close(floats(projected), expected, rtol=0.03, atol=0.05)


def test_another_cache_of_the_same_weights_keeps_the_projections(tiny_folder: Path, drafter: DrafterConfig) -> None:
    target = load_target(TargetConfig(model=str(tiny_folder)), [drafter])
    assert features_of(target.with_own_cache(), feature_spec(drafter)).projected
    plain = load_target(TargetConfig(model=str(tiny_folder)))
    assert features_of(plain.with_own_cache([drafter]), feature_spec(drafter)).projected


def test_drafters_that_read_tokens_have_no_projection(tiny_folder: Path) -> None:
    drafters = [DrafterConfig(kind=kind, model="no/such/folder") for kind in ("none", "lookup", "language_model")]
    assert load_target(TargetConfig(model=str(tiny_folder)), drafters)._projections == ()


def test_a_drafter_of_a_deeper_target_is_refused_when_the_target_starts(tiny_folder: Path, tmp_path: Path) -> None:
    deep = DrafterConfig(kind="block", model=str(write(tmp_path / "deep", spec_for(tiny_folder, (0, 9)))))
    with pytest.raises(ConfigError, match=r"reads layers \[0, 9\] of a target with 2") as caught:
        load_target(TargetConfig(model=str(tiny_folder)), [deep])
    assert caught.value.field == "drafter.model"


def test_a_checkpoint_that_cannot_be_read_here_means_raw_taps(
    tiny_folder: Path, drafter: DrafterConfig, caplog: pytest.LogCaptureFixture
) -> None:
    spec = feature_spec(drafter)
    (Path(drafter.model) / "model.safetensors").write_bytes(b"rubbish")
    with caplog.at_level(logging.WARNING):
        target = load_target(TargetConfig(model=str(tiny_folder)), [drafter])
    assert not features_of(target, spec).projected
    assert "raw taps will travel" in caplog.text


def test_cudnn_takes_no_part_in_attention() -> None:
    """It makes a plan for every new shape, and each step's contexts are a token longer than the last one's."""
    torch.backends.cuda.enable_cudnn_sdp(True)
    load_target(TargetConfig())
    assert not torch.backends.cuda.cudnn_sdp_enabled()
