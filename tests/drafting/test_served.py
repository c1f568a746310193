"""Block and eagle drafters serving sessions: the chain that the network gives step by step, whatever way its features came."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dspark.drafting.block_model import BlockModel
from dspark.drafting.eagle_model import EagleModel
from dspark.drafting.shared_weights import SharedWeights
from dspark.messages import ContextFeatures
from dspark.runtime.draft_formats import read_draft_checkpoint
from dspark.sampling import RowSampling, Sampler
from dspark.scheduling.calibration import Calibration, TemperatureFit
from dspark.types import SamplingParams
from tests.drafting.served import GREEDY, NOISY, Bench, chains, online, taps_of, text_of
from tests.warm_drafters import write_drafter

KINDS = {"block": "dspark", "eagle": "eagle3"}
DEPTH = 7


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: write_drafter(tmp_path_factory.mktemp(kind) / kind, made) for kind, made in KINDS.items()}  # type: ignore[arg-type]


@pytest.fixture(params=KINDS)
def bench(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Bench:
    return Bench(folders[request.param], request.param)


def teacher(bench: Bench) -> Callable[[list[int], list[int], int], torch.Tensor]:
    """Logits [V] of draft position k after `tokens` and the drafted ones, by the network's whole-sequence path."""
    checkpoint = read_draft_checkpoint(bench.folder)
    shared = SharedWeights(online().embedding, online().lm_head)

    def logits(tokens: list[int], drafted: list[int], k: int) -> torch.Tensor:
        anchor = len(tokens) - 1
        before = torch.tensor([[[*tokens[-1:], *drafted, *[0] * DEPTH][:DEPTH]]])
        # The served context is rounded to bfloat16 on its way; the reference has to start from the same numbers.
        context = bench.projection(taps_of(tuple(tokens)).float()).float().unsqueeze(0)
        if bench.kind == "block":
            block = BlockModel.from_checkpoint(checkpoint, shared)
            block.project = lambda taps: taps  # type: ignore[method-assign]
            return block.teacher_forced(context[:, :anchor], before[:, :, 0], torch.tensor([[anchor]]), before).draft[0, 0, k]
        eagle = EagleModel.from_checkpoint(checkpoint, shared)
        eagle.fc = torch.nn.Identity()  # type: ignore[assignment]
        return eagle.teacher_forced(context, torch.tensor([tokens]), torch.tensor([[anchor]]), before)[0, 0, k]

    return logits


@pytest.mark.parametrize("sampling", [GREEDY, NOISY], ids=["greedy", "sampled"])
@pytest.mark.parametrize("length", [2, 40])
def test_the_served_chain_is_what_the_network_chooses_step_by_step(bench: Bench, sampling: SamplingParams, length: int) -> None:
    tokens, reference, sampler = text_of(length), teacher(bench), Sampler(4096, torch.device("cpu"))
    expected: list[int] = []
    for k in range(DEPTH):
        logits = reference(tokens, expected, k)
        expected.append(int(sampler.choose(logits.unsqueeze(0), [RowSampling(sampling, length + k)])))
    assert bench.chain(tokens, sampling) == expected


def test_sessions_of_a_batch_draft_as_they_would_alone(bench: Bench) -> None:
    texts = [text_of(length, seed) for seed, length in enumerate((3, 60, 17))]
    alone = [bench.chain(text, NOISY) for text in texts]
    ids = [bench.open(f"s{i}", text, NOISY) for i, text in enumerate(texts)]
    assert chains(bench.ask(*(bench.request(i, text) for i, text in zip(ids, texts, strict=True)))) == alone


def test_features_may_come_in_pieces_and_overlap_and_in_rounds_without_a_draft(bench: Bench) -> None:
    tokens = text_of(50)
    session_id = bench.open("pieces", tokens[:20])
    bench.ask(bench.request(session_id, tokens[:20], depth=0))
    chains(bench.ask(bench.request(session_id, tokens[:24], 19, new=4)))
    bench.ask(bench.request(session_id, tokens[:37], 15, new=13, depth=0))  # an answer was lost: some features come twice
    chains(bench.ask(bench.request(session_id, tokens[:37], 30)))
    bench.ask(bench.request(session_id, tokens[:48], 36, new=11, depth=0))
    assert chains(bench.ask(bench.request(session_id, tokens, 47, new=2))) == [bench.chain(tokens)]


def test_raw_taps_give_the_same_drafts_as_projected_features(bench: Bench) -> None:
    tokens = text_of(30)
    session_id = bench.open("raw", tokens)
    assert chains(bench.ask(bench.request(session_id, tokens, projected=False))) == [bench.chain(tokens)]


def test_missing_features_are_stale_and_harm_nobody_else(bench: Bench) -> None:
    tokens = text_of(30)
    gap, short, good = (bench.open(name, tokens) for name in ("gap", "short", "good"))
    short_request = bench.request(short, tokens)
    cut = ContextFeatures(0, bench.features(tokens, 0, 25).values, True)
    report = bench.ask(
        bench.request(gap, tokens, 5),
        type(short_request)(short, 30, (), 7, 7, cut),
        bench.request(good, tokens),
    )
    assert {failure.session_id: failure.error for failure in report.failures} == {gap: "StaleRound", short: "StaleRound"}
    assert report.results[0].tree.token_ids.tolist() == bench.chain(tokens)
    assert chains(bench.ask(bench.request(gap, tokens))) == [bench.chain(tokens)], "sent again from the start, it goes on"


def test_features_of_another_width_are_refused(bench: Bench) -> None:
    tokens = text_of(10)
    session_id = bench.open("wide", tokens)
    request = bench.request(session_id, tokens)
    forged = ContextFeatures(0, request.features.values[:, :100], True)  # type: ignore[union-attr]
    report = bench.ask(type(request)(session_id, 10, (), 7, 7, forged))
    assert [failure.error for failure in report.failures] == ["InvalidMessage"]


def test_a_session_that_lost_its_blocks_asks_for_all_features_again(folders: dict[str, Path]) -> None:
    bench = Bench(folders["block"], "block", num_tokens=64)
    first, second = text_of(40, 1), text_of(40, 2)
    a, b = bench.open("a", first), bench.open("b", second)
    chains(bench.ask(bench.request(a, first)))
    chains(bench.ask(bench.request(b, second)))  # takes a's blocks
    report = bench.ask(bench.request(a, [*first, 7], 39, new=1))
    assert [failure.error for failure in report.failures] == ["StaleRound"]
    assert chains(bench.ask(bench.request(a, [*first, 7]))) == [bench.chain([*first, 7])]


def test_depth_is_bounded_by_the_request_and_the_models_length(bench: Bench) -> None:
    tokens = text_of(12)
    session_id = bench.open("shallow", tokens)
    assert len(chains(bench.ask(bench.request(session_id, tokens, depth=3)))[0]) == 3
    assert chains(bench.ask(bench.request(session_id, tokens, 11, depth=0))) == [[]]


def test_scores_never_rise_and_low_ones_are_not_proposed(bench: Bench, folders: dict[str, Path]) -> None:
    tokens = text_of(25)
    session_id = bench.open("scores", tokens, NOISY)
    (result,) = bench.ask(bench.request(session_id, tokens)).results
    scores = result.tree.scores.tolist()
    assert scores == sorted(scores, reverse=True)
    threshold = scores[2] - 1e-6
    strict = Bench(bench.folder, bench.kind, min_survival=threshold)
    session_id = strict.open("scores", tokens, NOISY)
    (kept,) = strict.ask(strict.request(session_id, tokens)).results
    assert kept.tree.scores.tolist() == [score for score in scores if score >= threshold]


def test_a_calibration_beside_the_checkpoint_is_what_survival_is_computed_with(tmp_path: Path) -> None:
    folder = write_drafter(tmp_path / "block", "dspark")
    tokens = text_of(25)

    def scores() -> list[float]:
        bench = Bench(folder, "block")
        return bench.ask(bench.request(bench.open("s", tokens), tokens)).results[0].tree.scores.tolist()

    (folder / "calibration.json").write_text(Calibration.identity().to_json())
    plain = scores()
    hot = Calibration((TemperatureFit(0.0, (10.0,) * 7, (True,) * 7),))
    (folder / "calibration.json").write_text(hot.to_json())
    assert scores() != plain
    assert scores()[0] == pytest.approx(0.5, abs=0.2), "a logit over ten is near even odds"
