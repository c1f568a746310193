"""From taps to context vectors: the formula, the precision that travels, and only the tensors that it needs."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dspark.config import DrafterConfig
from dspark.errors import ModelLoadError
from dspark.runtime.fingerprints import model_fingerprint
from dspark.runtime.projection import PROJECTION_TENSORS, FeatureProjection, load_projection
from tests.runtime.tiny_drafters import EAGLE, SPEC, SPECS, random_tensors

FIXTURE = Path(__file__).parents[1] / "fixtures" / "deepspec_checkpoint" / "vanilla"
TAPS = torch.randn(7, 3 * SPEC.hidden_size, generator=torch.Generator().manual_seed(3))


def loaded(name: str) -> tuple[FeatureProjection, dict[str, torch.Tensor]]:
    spec = EAGLE if name == "eagle" else SPECS[name]
    tensors = random_tensors(spec)
    projection = FeatureProjection(spec).requires_grad_(False)
    projection.load(tensors, "tiny")
    return projection, tensors


def norm_of(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight


@pytest.mark.parametrize(("name", "offset"), [("vanilla", 0.0), ("gemma", 1.0)])
def test_a_block_drafters_features_are_projected_and_normed_as_its_family_norms(name: str, offset: float) -> None:
    projection, tensors = loaded(name)
    expected = norm_of(TAPS @ tensors["fc.weight"].T, tensors["hidden_norm.weight"] + offset)
    torch.testing.assert_close(projection.project(TAPS), expected)
    assert torch.equal(projection(TAPS), projection.project(TAPS).bfloat16())


def test_an_eagle_drafters_features_are_projected_only() -> None:
    projection, tensors = loaded("eagle")
    torch.testing.assert_close(projection.project(TAPS), TAPS @ tensors["fc.weight"].T)


def test_taps_of_a_bfloat16_target_are_computed_with_in_the_projections_precision() -> None:
    projection, _ = loaded("vanilla")
    taps = TAPS.bfloat16()
    assert torch.equal(projection.project(taps), projection.project(taps.float()))
    assert projection(taps).dtype == torch.bfloat16


@pytest.mark.parametrize("name", PROJECTION_TENSORS)
def test_a_missing_or_misshapen_tensor_is_named(name: str) -> None:
    tensors = random_tensors(SPEC)
    for spoilt in ({key: value for key, value in tensors.items() if key != name}, tensors | {name: torch.zeros(3)}):
        with pytest.raises(ModelLoadError, match=f"tiny: tensor '{name}' is missing or not"):
            FeatureProjection(SPEC).load(spoilt, "tiny")


def test_a_checkpoints_projection_is_loaded_in_float32_and_frozen() -> None:
    projection = load_projection(DrafterConfig(kind="block", model=str(FIXTURE)), torch.device("cpu"))
    stored = load_file(FIXTURE / "model.safetensors")
    assert torch.equal(projection.fc.weight, stored["fc.weight"].float())
    assert torch.equal(projection.hidden_norm.weight, stored["hidden_norm.weight"].float())
    assert (projection.tap_layers, projection.width) == ((1, 3, 5), 64)
    assert projection.fingerprint == model_fingerprint(FIXTURE)
    assert not any(parameter.requires_grad for parameter in projection.parameters())


def test_the_width_is_the_targets_whatever_the_number_of_taps() -> None:
    projection = FeatureProjection(replace(SPEC, tap_layers=(2,)))
    assert projection.project(torch.randn(4, SPEC.hidden_size)).shape == (4, SPEC.hidden_size)
