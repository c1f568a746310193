"""Writing and converting drafters: read back as they were, replaced as a whole, off-by-one tap layers found."""

import json
import resource
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dspark.deepspec.checkpoints import convert, target_copies, write_draft_checkpoint
from dspark.drafting.block_model import BlockModel
from dspark.drafting.shared_weights import SharedWeights
from dspark.errors import ConfigError, DSparkError, ModelLoadError
from dspark.runtime.draft_configs import DraftFormat
from dspark.runtime.draft_formats import read_draft_checkpoint
from dspark.runtime.draft_spec import DraftSpec
from tests.deepspec.tiny_pair import TinyPair, trained_pair, write_target
from tests.runtime.folders import edit_json
from tests.runtime.tiny_drafters import EAGLE, SPEC, SPECS, random_tensors

FIXTURES = Path(__file__).parents[1] / "fixtures" / "deepspec_checkpoint"
BLOCK_FORMATS: list[DraftFormat] = ["deepspec", "specforge", "speculators"]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> TinyPair:
    return trained_pair(tmp_path_factory.getbasetemp())


def assert_same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name in wanted:
        assert found[name].dtype == wanted[name].dtype, name
        assert torch.equal(found[name], wanted[name]), name


@pytest.mark.parametrize("draft_format", BLOCK_FORMATS)
@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_written_is_read_back(tmp_path: Path, name: str, draft_format: DraftFormat, dtype: torch.dtype) -> None:
    spec = SPECS[name]
    tensors = {key: value.to(dtype) if value.is_floating_point() else value for key, value in random_tensors(spec).items()}
    write_draft_checkpoint(tmp_path / "drafter", spec, tensors, draft_format)
    checkpoint = read_draft_checkpoint(tmp_path / "drafter")
    assert (checkpoint.format, checkpoint.spec) == (draft_format, spec)
    assert_same(checkpoint.tensors, tensors)


def test_an_eagle_drafter_is_written_without_naming_its_format(tmp_path: Path) -> None:
    write_draft_checkpoint(tmp_path / "drafter", EAGLE, random_tensors(EAGLE))
    checkpoint = read_draft_checkpoint(tmp_path / "drafter")
    assert (checkpoint.format, checkpoint.spec) == ("eagle", EAGLE)
    assert_same(checkpoint.tensors, random_tensors(EAGLE))


@pytest.mark.parametrize(("spec", "draft_format"), [(EAGLE, "deepspec"), (SPEC, "eagle")])
def test_a_format_that_cannot_say_it_is_refused(tmp_path: Path, spec: DraftSpec, draft_format: DraftFormat) -> None:
    with pytest.raises(ModelLoadError, match="cannot be written"):
        write_draft_checkpoint(tmp_path / "drafter", spec, random_tensors(spec), draft_format)
    assert not (tmp_path / "drafter").exists()


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'gguf' is no checkpoint format"):
        write_draft_checkpoint(tmp_path, SPEC, random_tensors(SPEC), "gguf")


def test_keys_of_the_target_that_shape_no_layer_are_not_kept(tmp_path: Path) -> None:
    spec = replace(SPEC, layers=SPEC.layers | {"eos_token_id": 3, "architectures": ["Qwen3ForCausalLM"], "dtype": "bfloat16"})
    write_draft_checkpoint(tmp_path / "drafter", spec, random_tensors(SPEC))
    assert read_draft_checkpoint(tmp_path / "drafter").spec == SPEC


def test_tensors_that_share_memory_are_written_twice(tmp_path: Path) -> None:
    tensors = random_tensors(SPEC)
    tensors["norm.weight"] = tensors["hidden_norm.weight"]
    tensors["markov_head.markov_w2.weight"] = tensors["markov_head.markov_w1.weight"].t().contiguous().t()  # not laid out row by row
    write_draft_checkpoint(tmp_path / "drafter", SPEC, tensors)
    assert_same(read_draft_checkpoint(tmp_path / "drafter").tensors, tensors)


BAD: dict[str, tuple[str, torch.Tensor | None, str]] = {
    "missing": ("fc.weight", None, "'fc.weight' .* is missing"),
    "extra": ("verifier_norm.weight", torch.zeros(16), "'verifier_norm.weight' is not part of"),
    "misshapen": ("norm.weight", torch.zeros(17), r"'norm.weight' is \[17\]"),
    "not finite": ("norm.weight", torch.full((16,), float("nan")), "'norm.weight' holds NaN"),
}


@pytest.mark.parametrize(("name", "tensor", "message"), BAD.values(), ids=BAD)
def test_what_could_not_be_read_back_is_not_written(tmp_path: Path, name: str, tensor: torch.Tensor | None, message: str) -> None:
    tensors = random_tensors(SPEC)
    del tensors["fc.weight"]
    tensors |= {} if name == "fc.weight" else {"fc.weight": random_tensors(SPEC)["fc.weight"]}
    tensors |= {} if tensor is None else {name: tensor}
    with pytest.raises(ModelLoadError, match=message):
        write_draft_checkpoint(tmp_path / "drafter", SPEC, tensors)
    assert list(tmp_path.iterdir()) == []


def test_an_older_checkpoint_is_replaced_with_all_its_files(tmp_path: Path) -> None:
    write_draft_checkpoint(tmp_path / "drafter", SPEC, random_tensors(SPEC))
    (tmp_path / "drafter" / "calibration.json").write_text("{}")
    write_draft_checkpoint(tmp_path / "drafter", SPEC, random_tensors(SPEC, seed=1))
    assert_same(read_draft_checkpoint(tmp_path / "drafter").tensors, random_tensors(SPEC, seed=1))
    assert sorted(path.name for path in (tmp_path / "drafter").iterdir()) == ["config.json", "model.safetensors"]


def test_a_folder_that_is_no_checkpoint_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="holds something else"):
        write_draft_checkpoint(tmp_path, SPEC, random_tensors(SPEC))
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


@contextmanager
def largest_file(num_bytes: int) -> Iterator[None]:
    """The kernel refuses to let a file grow further, as it does on a full disk. Python ignores the signal that goes with it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_refuses_leaves_the_old_checkpoint_whole(tmp_path: Path) -> None:
    write_draft_checkpoint(tmp_path / "drafter", SPEC, random_tensors(SPEC))
    with largest_file(2000), pytest.raises(DSparkError, match="cannot be written: .* what was there before is unchanged"):
        write_draft_checkpoint(tmp_path / "drafter", SPEC, random_tensors(SPEC, seed=1))
    assert_same(read_draft_checkpoint(tmp_path / "drafter").tensors, random_tensors(SPEC))
    assert list(tmp_path.iterdir()) == [tmp_path / "drafter"]


def test_a_folder_without_permission_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DSparkError, match="cannot be written"):
        write_draft_checkpoint(tmp_path / "file" / "drafter", SPEC, random_tensors(SPEC))


def golden_logits(folder: Path) -> list[torch.Tensor]:
    """[K, Vd] draft logits of both cases of the published golden file."""
    checkpoint, golden = read_draft_checkpoint(folder), load_file(FIXTURES / "vanilla_golden.safetensors")
    shared = SharedWeights(checkpoint.tensors["embed_tokens.weight"], checkpoint.tensors["lm_head.weight"])
    model = BlockModel.from_checkpoint(checkpoint, shared)
    return [model.greedy(golden[f"{case}.taps"], int(golden[f"{case}.anchor_id"]))[0].draft[0, 0] for case in ("case0", "case1")]


@pytest.mark.parametrize("draft_format", BLOCK_FORMATS)
def test_a_converted_checkpoint_gives_identical_draft_logits(tmp_path: Path, draft_format: DraftFormat) -> None:
    convert(FIXTURES / "vanilla", tmp_path / "there", draft_format)
    convert(tmp_path / "there", tmp_path / "back", "deepspec")
    wanted, golden = golden_logits(FIXTURES / "vanilla"), load_file(FIXTURES / "vanilla_golden.safetensors")
    torch.testing.assert_close(wanted[0], golden["case0.draft_logits"], atol=1e-4, rtol=0)
    for folder in ("there", "back"):
        assert all(torch.equal(found, logits) for found, logits in zip(golden_logits(tmp_path / folder), wanted, strict=True))


def test_small_files_beside_the_weights_come_along(tmp_path: Path) -> None:
    write_draft_checkpoint(tmp_path / "source", SPEC, random_tensors(SPEC))
    (tmp_path / "source" / "calibration.json").write_text('{"temperatures": [1.5]}')
    (tmp_path / "source" / "calibration.json").chmod(stat.S_IRUSR)
    convert(tmp_path / "source", tmp_path / "new", "specforge")
    assert (tmp_path / "new" / "calibration.json").read_text() == '{"temperatures": [1.5]}'


def test_an_existing_destination_is_not_touched(tmp_path: Path) -> None:
    write_draft_checkpoint(tmp_path / "source", SPEC, random_tensors(SPEC))
    with pytest.raises(ConfigError, match="exists already"):
        convert(tmp_path / "source", tmp_path / "source", "specforge")


@pytest.mark.parametrize(
    ("draft_format", "names"),
    [
        ("deepspec", ["embed_tokens.weight", "lm_head.weight"]),
        ("speculators", ["embed_tokens.weight", "lm_head.weight", "verifier_lm_head.weight", "verifier_norm.weight"]),
        ("specforge", []),
    ],
)
def test_copies_that_a_format_wants_are_filled_in_from_the_target(
    pair: TinyPair, tmp_path: Path, draft_format: DraftFormat, names: list[str]
) -> None:
    write_draft_checkpoint(tmp_path / "source", pair.spec, pair.tensors)
    done = convert(tmp_path / "source", tmp_path / "new", draft_format, target=pair.target)
    assert (sorted(done.copied), done.tap_shift, done.probe) == (names, 0, None)
    stored, target = load_file(tmp_path / "new" / "model.safetensors"), load_file(pair.target / "model.safetensors")
    origins = {"verifier_lm_head.weight": "lm_head.weight", "lm_head.weight": "lm_head.weight", "verifier_norm.weight": "model.norm.weight"}
    for name in names:
        assert torch.equal(stored[name], target[origins.get(name, "model.embed_tokens.weight")]), name
    assert stored.keys() == pair.tensors.keys() | set(names)


def test_speculators_is_told_which_model_verifies(pair: TinyPair, tmp_path: Path) -> None:
    write_draft_checkpoint(tmp_path / "source", pair.spec, pair.tensors)
    convert(tmp_path / "source", tmp_path / "new", "speculators", target=pair.target, target_name="some/target")
    config = json.loads((tmp_path / "new" / "config.json").read_text())
    assert config["speculators_config"]["verifier"] == {"name_or_path": "some/target", "architectures": ["Qwen3ForCausalLM"]}


def test_the_head_of_a_target_with_tied_weights_is_its_embedding(tmp_path: Path) -> None:
    write_target(tmp_path, tie_word_embeddings=True)
    copies = target_copies(tmp_path, ["lm_head.weight", "verifier_lm_head.weight"])
    embedding = load_file(tmp_path / "model.safetensors")["model.embed_tokens.weight"]
    assert all(torch.equal(copy, embedding) for copy in copies.values())


def test_a_verifier_head_has_the_rows_of_the_reduced_vocabulary(tmp_path: Path) -> None:
    write_target(tmp_path / "target", vocab_size=40, hidden_size=16)
    spec = replace(SPECS["reduced"], target_fingerprint="")
    tensors = random_tensors(spec)
    write_draft_checkpoint(tmp_path / "source", spec, tensors)
    convert(tmp_path / "source", tmp_path / "new", "speculators", target=tmp_path / "target")
    stored, head = load_file(tmp_path / "new" / "model.safetensors"), load_file(tmp_path / "target" / "model.safetensors")["lm_head.weight"]
    assert torch.equal(stored["verifier_lm_head.weight"], head[1:35:3])
    assert_same(read_draft_checkpoint(tmp_path / "new").tensors, tensors | {"embed_tokens.weight": stored["embed_tokens.weight"]})


def test_tap_layers_that_the_probe_confirms_are_kept(pair: TinyPair, tmp_path: Path) -> None:
    write_draft_checkpoint(tmp_path / "source", pair.spec, pair.tensors, "speculators")
    done = convert(tmp_path / "source", tmp_path / "new", "deepspec", target=pair.target, texts=pair.texts)
    assert (done.tap_shift, done.probe and done.probe.shift) == (0, 0)
    assert read_draft_checkpoint(tmp_path / "new").spec == pair.spec


@pytest.mark.parametrize(("stated", "shift"), [([1, 3], 1), ([3, 5], -1)])
def test_tap_layers_that_are_counted_differently_are_caught_and_put_right_on_demand(
    pair: TinyPair, tmp_path: Path, stated: list[int], shift: int
) -> None:
    write_draft_checkpoint(tmp_path / "source", pair.spec, pair.tensors, "speculators")
    edit_json(tmp_path / "source" / "config.json", aux_hidden_state_layer_ids=stated)
    with pytest.raises(ModelLoadError, match=rf"config\.json: .*not confirmed: off by one: add \{shift:+d};"):
        convert(tmp_path / "source", tmp_path / "new", "deepspec", target=pair.target, texts=pair.texts)
    assert not (tmp_path / "new").exists()
    convert(tmp_path / "source", tmp_path / "new", "deepspec", target=pair.target, tap_shift=shift)
    assert read_draft_checkpoint(tmp_path / "new").spec == pair.spec


def test_tap_layers_that_stay_undecided_are_refused_unless_stated(pair: TinyPair, tmp_path: Path) -> None:
    name = "layers.0.self_attn.o_proj.weight"
    deaf = pair.tensors | {name: torch.zeros_like(pair.tensors[name])}  # the context never reaches the block
    write_draft_checkpoint(tmp_path / "source", pair.spec, deaf, "specforge")
    with pytest.raises(ModelLoadError, match=r"config\.json: the tap layers as read are not confirmed: undecided"):
        convert(tmp_path / "source", tmp_path / "new", "deepspec", target=pair.target, texts=pair.texts)
    assert not (tmp_path / "new").exists()
    convert(tmp_path / "source", tmp_path / "new", "deepspec", target=pair.target, tap_shift=1)
    assert read_draft_checkpoint(tmp_path / "new").spec.tap_layers == (2, 4)


def test_a_shift_onto_the_last_layer_is_refused(tmp_path: Path) -> None:
    write_draft_checkpoint(tmp_path / "source", SPEC, random_tensors(SPEC))
    with pytest.raises(ModelLoadError, match="last layer"):
        convert(tmp_path / "source", tmp_path / "new", "deepspec", tap_shift=1)


def test_a_drafter_of_another_target_is_not_converted(pair: TinyPair, tmp_path: Path) -> None:
    write_draft_checkpoint(tmp_path / "source", SPEC, random_tensors(SPEC))
    with pytest.raises(ModelLoadError, match="vocab_size"):
        convert(tmp_path / "source", tmp_path / "new", "speculators", target=pair.target)


def test_the_number_of_target_layers_comes_from_the_target(pair: TinyPair, tmp_path: Path) -> None:
    write_draft_checkpoint(tmp_path / "source", pair.spec, pair.tensors, "speculators")
    path = tmp_path / "source" / "config.json"
    config = json.loads(path.read_text())
    del config["num_target_layers"]
    path.write_text(json.dumps(config))
    with pytest.raises(ModelLoadError, match="name the target"):
        convert(tmp_path / "source", tmp_path / "new", "deepspec")
    convert(tmp_path / "source", tmp_path / "new", "deepspec", target=pair.target, tap_shift=0)
    assert read_draft_checkpoint(tmp_path / "new").spec == pair.spec
