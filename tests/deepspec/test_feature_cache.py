"""A bounded cache: gives what the target gave, within the error of its format and the same each time; never passes its limit; survives
kills."""

from pathlib import Path

import pytest
import torch

from dspark.deepspec.feature_cache import DATA, INDEX, CachedFeatures, CacheOptions
from dspark.deepspec.features import TargetView
from dspark.deepspec.job import JobOptions
from dspark.deepspec.run_state import RunFolder
from dspark.deepspec.train import RunOptions, StepRecord, run
from dspark.deepspec.workers import OneWorker
from dspark.errors import ConfigError
from tests.deepspec.limits import file_size_limit
from tests.deepspec.tiny_training import losses_of, tiny_recipe, trainer_of, write_samples, write_target

WIDTH, TAP_WIDTH, LENGTH = 12, 8, 20
LIMIT_BYTES = 10**6


class Features:
    """A FeatureSource that counts, and whose numbers depend on the ids: standard normal, with one outlier per position."""

    def __init__(self) -> None:
        self.calls = 0

    def view(self, token_ids: torch.Tensor, lengths: torch.Tensor) -> TargetView:
        self.calls += 1
        rows = []
        for ids in token_ids:
            draw = torch.Generator().manual_seed(int(ids.sum()))
            values = torch.randn(len(ids), WIDTH, generator=draw)
            values[:, 3] *= 50
            rows.append(values)
        values = torch.stack(rows)
        return TargetView(values[..., :TAP_WIDTH], values[..., TAP_WIDTH:])


def batch(*starts: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Texts of different lengths, padded."""
    lengths = torch.tensor([LENGTH - 3 * (start % 3) for start in starts])
    ids = torch.stack([torch.arange(start, start + LENGTH) for start in starts])
    return ids * (torch.arange(LENGTH) < lengths.unsqueeze(1)), lengths


def opened(folder: Path, online: Features, limit: int = LIMIT_BYTES, dtype: str = "bfloat16", identity: str = "a") -> CachedFeatures:
    return CachedFeatures(online, identity, CacheOptions(folder, limit, dtype))


def on_disk(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*"))


#: Half a step of each format's mantissa, relative: 8 bits and 4 bits. Eight-bit floats have a scale for each position, so that what
#: is small beside the largest is off by a part of that.
ERRORS = {"bfloat16": (2.0**-8, 0.0), "float8": (2.0**-4, 2.0**-10 / 448.0)}


@pytest.mark.parametrize("dtype", ERRORS)
def test_a_hit_gives_what_was_stored_within_the_error_of_the_format(tmp_path: Path, dtype: str) -> None:
    online = Features()
    cache = opened(tmp_path, online, dtype=dtype)
    given = batch(1, 2, 3)
    cache.view(*given)
    first, second = Features().view(*given), cache.view(*given)
    assert online.calls == 1
    relative, of_largest = ERRORS[dtype]
    for row, length in enumerate(given[1].tolist()):
        exact = torch.cat((first.taps, first.hidden), -1)[row, :length]
        stored = torch.cat((second.taps, second.hidden), -1)[row, :length]
        largest = exact.abs().amax(-1, keepdim=True)
        assert ((stored - exact).abs() <= exact.abs() * relative * 1.001 + largest * of_largest).all()
        assert (stored - exact).abs().max() > 0


@pytest.mark.parametrize("limit", [LIMIT_BYTES, 1000, 0], ids=["all kept", "one kept", "none kept"])
@pytest.mark.parametrize("dtype", ERRORS)
def test_what_comes_out_does_not_tell_whether_it_was_kept(tmp_path: Path, dtype: str, limit: int) -> None:
    given = batch(1, 2, 3)
    roomy, scarce = opened(tmp_path / "roomy", Features(), dtype=dtype), opened(tmp_path / "scarce", Features(), limit, dtype)
    wanted = roomy.view(*given)
    for cache in (roomy, scarce, opened(tmp_path / "scarce", Features(), limit, dtype)):
        for _ in range(2):
            found = cache.view(*given)
            assert torch.equal(found.taps, wanted.taps)
            assert torch.equal(found.hidden, wanted.hidden)


class CompanyFeatures(Features):
    """As a real target's: the last digits depend on what else is in the batch."""

    def view(self, token_ids: torch.Tensor, lengths: torch.Tensor) -> TargetView:
        view = super().view(token_ids, lengths)
        factor = 1 + 0.01 * float(token_ids.float().mean())
        return TargetView(view.taps * factor, view.hidden * factor)


@pytest.mark.parametrize("limit", [LIMIT_BYTES, 1000])
@pytest.mark.parametrize("killed_after", range(5))
def test_steps_repeated_after_a_kill_see_the_same_features(tmp_path: Path, limit: int, killed_after: int) -> None:
    """The cache then holds entries of later steps than the one that the run goes on from."""
    steps = [batch(*starts) for starts in ((1, 2), (3, 1), (2, 4), (4, 3), (5, 1))]
    cache = opened(tmp_path, CompanyFeatures(), limit)
    wanted = [cache.view(*step).taps for step in steps[: killed_after + 1]]
    reopened = opened(tmp_path, CompanyFeatures(), limit)
    found = [reopened.view(*step).taps for step in steps[: killed_after + 1]]
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


@pytest.mark.parametrize("dtype", ERRORS)
def test_the_limit_holds_on_disk_for_all_files_together(tmp_path: Path, dtype: str) -> None:
    online, limit = Features(), 5000
    cache = opened(tmp_path, online, limit, dtype)
    for start in range(1, 40):
        cache.view(*batch(start))
        assert on_disk(tmp_path) == cache.used_bytes <= limit
    assert cache.used_bytes > limit / 2
    before = online.calls
    cache.view(*batch(1))
    assert online.calls == before
    reopened = opened(tmp_path, online, limit, dtype)
    assert reopened.used_bytes == cache.used_bytes


def test_a_batch_with_one_new_text_is_computed(tmp_path: Path) -> None:
    online = Features()
    cache = opened(tmp_path, online)
    cache.view(*batch(1, 2))
    found = cache.view(*batch(1, 3))
    assert online.calls == 2
    exact, (_, lengths) = Features().view(*batch(1, 3)), batch(1, 3)
    for row, length in enumerate(lengths.tolist()):
        assert torch.allclose(found.taps[row, :length], exact.taps[row, :length], rtol=2.0**-8)


def test_features_of_another_target_are_never_taken(tmp_path: Path) -> None:
    online = Features()
    opened(tmp_path, online).view(*batch(1))
    opened(tmp_path, online, identity="b").view(*batch(1))
    assert online.calls == 2
    opened(tmp_path, online, identity="b").view(*batch(1))
    opened(tmp_path, online).view(*batch(1))
    assert online.calls == 2


@pytest.mark.parametrize(("file", "lost"), [(DATA, 1), (DATA, 700), (INDEX, 1), (INDEX, 30)])
def test_a_file_that_a_kill_cut_off_loses_no_whole_entry(tmp_path: Path, file: str, lost: int) -> None:
    online = Features()
    cache = opened(tmp_path, online)
    for start in (3, 6, 9):
        cache.view(*batch(start))
    path = tmp_path / file
    path.write_bytes(path.read_bytes()[:-lost])
    for _ in range(2):  # what is added after the repair must be found again too
        reopened = opened(tmp_path, online)
        expected, online.calls = Features().view(*batch(3)), 0
        found = reopened.view(*batch(3))
        assert online.calls == 0
        assert torch.allclose(found.taps, expected.taps, rtol=0.01)
        reopened.view(*batch(9))
    assert online.calls == 0
    assert on_disk(tmp_path) == reopened.used_bytes


def test_a_full_disk_is_no_error_and_leaves_whole_entries(tmp_path: Path) -> None:
    online = Features()
    cache = opened(tmp_path, online)
    cache.view(*batch(3))
    with file_size_limit(cache.used_bytes + 100):
        for start in (6, 9):
            cache.view(*batch(start))
    assert on_disk(tmp_path) == cache.used_bytes
    online.calls = 0
    opened(tmp_path, online).view(*batch(3))
    assert online.calls == 0


def test_a_cache_of_another_format_is_refused(tmp_path: Path) -> None:
    opened(tmp_path, Features()).view(*batch(1))
    with pytest.raises(ConfigError, match="holds bfloat16, not float8"):
        opened(tmp_path, Features(), dtype="float8")


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="no feature cache can be kept"):
        opened(tmp_path / "file", Features())


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 0.01), ("float8", 0.05)])
def test_training_from_the_cache_is_training(tmp_path: Path, dtype: str, tolerance: float) -> None:
    recipe = tiny_recipe(write_target(tmp_path / "target"), write_samples(tmp_path / "samples.jsonl", 8), learning_rate=5e-3)
    options = JobOptions(cache=CacheOptions(tmp_path / "cache", LIMIT_BYTES, dtype))
    cached, online = trainer_of(recipe, options), trainer_of(recipe)
    losses = [(cached.train_step().loss, online.train_step().loss) for _ in range(12)]
    assert any(one != other for one, other in losses)  # the features are rounded
    assert all(one == pytest.approx(other, rel=tolerance) for one, other in losses)


class KilledError(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize("limit", [LIMIT_BYTES, 40_000], ids=["all kept", "some kept"])
@pytest.mark.parametrize("dtype", ERRORS)
def test_a_killed_run_with_a_cache_goes_on_with_the_losses_of_an_unkilled_one(tmp_path: Path, dtype: str, limit: int) -> None:
    """It is killed in its second epoch, steps after its last state: what it repeats then comes from the cache."""
    recipe = tiny_recipe(write_target(tmp_path / "target"), write_samples(tmp_path / "samples.jsonl"), num_steps=16)

    def go(out: Path, kill_at: int | None) -> None:
        def stop(record: StepRecord) -> None:
            if record.step == kill_at:
                raise KilledError

        trainer = trainer_of(recipe, JobOptions(cache=CacheOptions(out / "features", limit, dtype)))
        run(trainer, RunFolder(out), recipe.training, OneWorker(), RunOptions(save_every_s=1e9, held_out_every=4, on_step=stop))

    for out in (tmp_path / "whole", tmp_path / "killed"):
        RunFolder(out).claim(recipe)
    go(tmp_path / "whole", None)
    for kill_at in (3, 10):  # no state is saved before the end: each begins at step 1, with all that the earlier ones left
        with pytest.raises(KilledError):
            go(tmp_path / "killed", kill_at)
    go(tmp_path / "killed", None)
    assert losses_of(tmp_path / "killed") == losses_of(tmp_path / "whole")
    assert (on_disk(tmp_path / "whole" / "features") > limit / 2) == (limit < LIMIT_BYTES)


def test_online_training_writes_nothing(tmp_path: Path) -> None:
    recipe = tiny_recipe(write_target(tmp_path / "target"), write_samples(tmp_path / "samples.jsonl"))
    before = sorted(tmp_path.rglob("*"))
    trainer_of(recipe).train_step()
    assert sorted(tmp_path.rglob("*")) == before
