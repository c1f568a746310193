"""The way of counting tap layers is found from what the drafter makes of them, and not found where it makes nothing of them."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dspark.config import ModelSource
from dspark.deepspec.tap_probe import Candidate, TapProbe, candidates, default_texts, probe_taps, texts_of_file
from dspark.errors import ConfigError, ModelLoadError
from dspark.runtime.draft_formats import DraftCheckpoint
from dspark.runtime.hub import resolve_folder
from tests.deepspec.tiny_pair import TinyPair, trained_pair
from tests.runtime.tiny_drafters import EAGLE, random_tensors


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> TinyPair:
    return trained_pair(tmp_path_factory.getbasetemp())


def checkpoint(pair: TinyPair, tap_layers: tuple[int, ...]) -> DraftCheckpoint:
    return DraftCheckpoint(Path("drafter"), "speculators", replace(pair.spec, tap_layers=tap_layers), pair.tensors, "")


@pytest.mark.parametrize(("stated", "shift"), [((1, 3), 0), ((2, 4), -1), ((0, 2), 1)])
def test_the_layers_that_the_drafter_was_trained_on_win(pair: TinyPair, stated: tuple[int, ...], shift: int) -> None:
    probe = probe_taps(checkpoint(pair, stated), pair.target, pair.texts)
    assert probe.shift == shift
    assert probe.candidates[0].tap_layers == (1, 3)
    assert probe.margin > 0.01
    assert ("as read" in probe.summary()) == (shift == 0)


def test_a_drafter_that_learned_nothing_decides_nothing(pair: TinyPair) -> None:
    tensors = pair.tensors | {"layers.0.self_attn.o_proj.weight": torch.zeros_like(pair.tensors["layers.0.self_attn.o_proj.weight"])}
    deaf = replace(checkpoint(pair, (1, 3)), tensors=tensors)
    probe = probe_taps(deaf, pair.target, pair.texts)
    assert probe.shift is None
    assert probe.margin == 0
    assert "undecided" in probe.summary()


def test_only_legal_layers_are_tried() -> None:
    assert candidates((-1, 2), 6) == {0: (-1, 2), 1: (0, 3)}
    assert candidates((0, 4), 6) == {0: (0, 4), -1: (-1, 3)}
    assert candidates((-1, 4), 6) == {0: (-1, 4)}


@pytest.mark.parametrize(
    ("margin", "error", "shift"), [(0.02, 0.004, 1), (0.02, 0.01, None), (0.004, 0.0001, None), (float("inf"), 0.0, 1)]
)
def test_a_win_must_be_sure_and_large(margin: float, error: float, shift: int | None) -> None:
    best, second = Candidate(1, (2,), 0.5, 0.1), Candidate(0, (1,), 0.4, 0.1)
    assert TapProbe((best, second), margin, error).shift == shift


def test_a_drafter_that_guesses_the_text_badly_is_not_asked() -> None:
    """The numbers of a real run: the layers it was trained on lost by six standard errors."""
    wrong, trained = Candidate(1, (2, 4), 0.1890, 0.01), Candidate(0, (1, 3), 0.1849, 0.01)
    probe = TapProbe((wrong, trained), 0.0041, 0.0007)
    assert probe.shift is None
    assert "guesses this text badly" in probe.summary()


def test_a_text_file_is_cut_into_pieces(tmp_path: Path) -> None:
    target = resolve_folder(ModelSource(model="demo:target"))
    (tmp_path / "text").write_text("def add(a, b):\n    return a + b\n" * 200)
    pieces = texts_of_file(tmp_path / "text", target)
    assert [len(piece) for piece in pieces[:-1]] == [160] * (len(pieces) - 1)
    assert len(pieces) > 4
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\xff")
    for name in ("bytes", "missing"):
        with pytest.raises(ConfigError, match=f"{name}: cannot be read as text"):
            texts_of_file(tmp_path / name, target)


def test_texts_that_are_too_few_or_too_short_are_refused(pair: TinyPair) -> None:
    with pytest.raises(ConfigError, match="texts"):
        probe_taps(checkpoint(pair, (1, 3)), pair.target, [*pair.texts[:3], *([0] * 10 for _ in range(20))])


def test_an_eagle_drafter_is_not_probed(pair: TinyPair) -> None:
    eagle = DraftCheckpoint(Path("drafter"), "eagle", EAGLE, random_tensors(EAGLE), "")
    with pytest.raises(ModelLoadError, match="eagle"):
        probe_taps(eagle, pair.target, pair.texts)


def test_the_shipped_prompts_are_there_by_default() -> None:
    texts = default_texts(resolve_folder(ModelSource(model="demo:target")))
    assert len(texts) == 64
    assert sum(len(text) > 50 for text in texts) > 50
