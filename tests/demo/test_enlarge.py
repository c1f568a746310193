"""Larger copies of a target: more work, the same words, and a drafter that does not notice."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from dspark.bench.prompts import load_prompts
from dspark.config import DrafterConfig, ModelSource
from dspark.demo.enlarge import enlarge, retarget_drafter, spread_layers
from dspark.drafting.build import load_drafter
from dspark.errors import ConfigError, FingerprintMismatch, ModelLoadError, UnsupportedModel
from dspark.messages import ContextFeatures, DraftRequest, SessionOpen
from dspark.runtime.draft_formats import check_target, read_draft_spec
from dspark.runtime.fingerprints import tokenizer_fingerprint
from dspark.runtime.hub import resolve_folder
from dspark.runtime.loading import load_tokenizer
from dspark.types import SamplingParams, SessionId
from tests.drafting.feature_drafters import bits_of

PARAMETERS = 10e6
NUM_PROMPTS = 2


@pytest.fixture(scope="module")
def original() -> Path:
    return resolve_folder(ModelSource(model="demo:target"))


@pytest.fixture(scope="module")
def copy(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("enlarged") / "copy"
    enlarge(original, PARAMETERS, out)
    return out


@pytest.fixture(scope="module")
def drafter(copy: Path) -> Path:
    out = copy.with_name("drafter")
    retarget_drafter(resolve_folder(ModelSource(model="demo:dspark")), copy, out)
    return out


def model_of(folder: Path) -> Any:
    load: Any = AutoModelForCausalLM.from_pretrained
    return load(folder, dtype=torch.float32).eval()


@torch.inference_mode()
def test_the_logits_are_the_originals_on_real_prompts(original: Path, copy: Path) -> None:
    tokenizer, one, other = load_tokenizer(original), model_of(original), model_of(copy)
    for prompt in load_prompts(None, NUM_PROMPTS):
        ids = torch.tensor([tokenizer.encode(prompt)])
        assert float((one(ids).logits - other(ids).logits).abs().max()) < 1e-5


@torch.inference_mode()
def test_the_hidden_states_at_old_layers_are_the_originals(original: Path, copy: Path) -> None:
    ids = torch.tensor([load_tokenizer(original).encode(load_prompts(None, 1)[0])])
    old = model_of(original)(ids, output_hidden_states=True).hidden_states
    new = model_of(copy)(ids, output_hidden_states=True).hidden_states
    indices = json.loads((copy / "enlarged.json").read_text())["layer_indices"]
    assert len(new) > len(old)
    for layer, index in enumerate(indices[:-1]):  # transformers puts the last one through the final norm
        torch.testing.assert_close(new[index + 1], old[layer + 1], rtol=0, atol=1e-4)


@torch.inference_mode()
def test_the_work_is_real(original: Path, copy: Path) -> None:
    model = model_of(copy)
    size = sum(parameter.numel() for parameter in model.parameters())
    assert abs(size / PARAMETERS - 1) < 0.03
    old_width = model_of(original).config.intermediate_size
    added = set(range(model.config.num_hidden_layers)) - set(json.loads((copy / "enlarged.json").read_text())["layer_indices"])
    for index, layer in enumerate(model.model.layers):
        assert float(layer.mlp.up_proj.weight[old_width:].std()) > 0.01
        assert float(layer.mlp.gate_proj.weight[old_width:].std()) > 0.01
        assert float(layer.mlp.down_proj.weight[:, old_width:].abs().max()) == 0
        assert (float(layer.self_attn.o_proj.weight.abs().max()) == 0) is (index in added)
        assert float(layer.self_attn.q_proj.weight.std()) > 0.01


def test_the_tokenizer_comes_along_and_the_same_seed_gives_the_same_copy(original: Path, copy: Path, tmp_path: Path) -> None:
    assert tokenizer_fingerprint(copy) == tokenizer_fingerprint(original)
    assert (copy / "generation_config.json").read_bytes() == (original / "generation_config.json").read_bytes()
    enlarge(original, PARAMETERS, tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (copy / "model.safetensors").read_bytes()


@torch.inference_mode()
def test_greedy_text_is_the_originals(original: Path, copy: Path) -> None:
    prompt = torch.tensor([load_tokenizer(original).encode(load_prompts(None, 1)[0])])
    options = {"attention_mask": torch.ones_like(prompt), "max_new_tokens": 24, "do_sample": False, "eos_token_id": -1, "pad_token_id": 0}
    assert torch.equal(model_of(copy).generate(prompt, **options), model_of(original).generate(prompt, **options))


def test_a_retargeted_drafter_drafts_the_same_for_the_copy(original: Path, copy: Path, drafter: Path) -> None:
    shipped = resolve_folder(ModelSource(model="demo:dspark"))
    check_target(drafter, read_draft_spec(drafter), copy)
    assert read_draft_spec(drafter).tap_layers != read_draft_spec(shipped).tap_layers
    for prompt in load_prompts(None, NUM_PROMPTS):
        token_ids = load_tokenizer(original).encode(prompt)
        tokens, scores = drafted(shipped, original, token_ids)
        again, other_scores = drafted(drafter, copy, token_ids)
        assert again == tokens
        assert len(tokens) == 7
        assert other_scores == pytest.approx(scores, abs=1e-3)


@torch.inference_mode()
def drafted(checkpoint: Path, target: Path, token_ids: list[int]) -> tuple[list[int], list[float]]:
    """Tokens and scores of a greedy chain after a prompt, from the target's own hidden states."""
    states = model_of(target)(torch.tensor([token_ids]), output_hidden_states=True).hidden_states
    taps = torch.cat([states[layer + 1][0, :-1] for layer in read_draft_spec(checkpoint).tap_layers], dim=-1)
    drafter = load_drafter(DrafterConfig(kind="block", model=str(checkpoint), num_threads=1), ModelSource(model=str(target))).drafter
    session_id = SessionId("a")
    drafter.open(SessionOpen(session_id, tuple(token_ids), SamplingParams(temperature=0.0)))
    features = ContextFeatures(0, bits_of(taps.bfloat16()), projected=False)
    report = drafter.draft([DraftRequest(session_id, len(token_ids), (), max_depth=7, max_nodes=7, features=features)])
    assert report.failures == ()
    tree = report.results[0].tree
    return tree.token_ids.tolist(), tree.scores.tolist()


def test_a_drafter_for_something_else_is_refused(copy: Path, drafter: Path, original: Path, tmp_path: Path) -> None:
    with pytest.raises(FingerprintMismatch, match="another target"):
        retarget_drafter(drafter, copy, tmp_path / "twice")
    shipped = resolve_folder(ModelSource(model="demo:dspark"))
    with pytest.raises(ModelLoadError, match="no copy made by this script"):
        retarget_drafter(shipped, original, tmp_path / "no-copy")
    shallow = Path(shutil.copytree(shipped, tmp_path / "shallow"))
    config = json.loads((shallow / "config.json").read_text())
    (shallow / "config.json").write_text(json.dumps(config | {"num_target_layers": 9}))
    with pytest.raises(ModelLoadError, match="other than 6 layers"):
        retarget_drafter(shallow, copy, tmp_path / "of-nine")


def test_what_cannot_be_enlarged_is_refused(original: Path, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has 5.8 M parameters already"):
        enlarge(original, 5e6, tmp_path / "small")
    with pytest.raises(ConfigError, match="exists already"):
        enlarge(original, PARAMETERS, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "gpt2"}))
    with pytest.raises(UnsupportedModel, match="not 'gpt2'"):
        enlarge(folder, PARAMETERS, tmp_path / "other")


@torch.inference_mode()
def test_a_llama_without_a_list_of_layer_kinds_can_be_enlarged(folder: Path, tmp_path: Path) -> None:
    sizes = {"vocab_size": 99, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    build: Any = AutoModelForCausalLM
    with torch.random.fork_rng():
        torch.manual_seed(2)
        build.from_config(LlamaConfig(**sizes, num_key_value_heads=2)).save_pretrained(tmp_path / "llama")
    shape = enlarge(tmp_path / "llama", 2e5, tmp_path / "copy")
    ids = torch.arange(50).view(1, -1)
    assert shape.num_layers > 3
    torch.testing.assert_close(model_of(tmp_path / "copy")(ids).logits, model_of(tmp_path / "llama")(ids).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("old", "new", "places"), [(6, 6, (0, 1, 2, 3, 4, 5)), (3, 7, (0, 3, 6)), (6, 9, (0, 2, 3, 5, 6, 8)), (1, 4, (0,))]
)
def test_old_layers_stand_evenly_among_the_new(old: int, new: int, places: tuple[int, ...]) -> None:
    assert spread_layers(old, new) == places
