"""The training loop: one step is a batch that depends on the step's number alone, so a run that was killed goes on as if it had not been.

One process or several (workers.py), the same loop.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from dspark.deepspec.batches import AnchoredSample, Batch, collate, with_anchors
from dspark.deepspec.data import SampleSet, order
from dspark.deepspec.features import FeatureSource, OnlineFeatures
from dspark.deepspec.losses import LossSums
from dspark.deepspec.optimizers import Optimizers
from dspark.deepspec.recipe import TrainingConfig
from dspark.deepspec.run_state import RunFolder, disk_errors_told
from dspark.deepspec.trainees import Trainee
from dspark.deepspec.workers import Workers
from dspark.errors import ConfigError, ModelLoadError

HELD_OUT_SAMPLES = 64
CHECKPOINT = "checkpoint"
BEST = "best"


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One step's line in metrics.jsonl. Means over all positions of the batch, weighted as in the loss."""

    step: int
    loss: float
    cross_entropy: float
    l1: float
    confidence: float
    acceptance: list[float]
    """[K] mean 1 - TV by draft position."""
    rate_share: float
    num_tokens: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over micro-batches and workers."""

    values: torch.Tensor  # [4 + 2 K]: total, cross entropy, l1, confidence, acceptance by position, counts

    @staticmethod
    def of(sums: Sequence[LossSums]) -> "Totals":
        """Of one worker's micro-batches."""
        rows = [
            torch.cat((torch.stack((s.total.detach(), s.cross_entropy, s.l1, s.confidence)), s.acceptance, s.count.float()))
            for s in sums
        ]
        return Totals(torch.stack(rows).sum(0))

    def acceptance(self) -> list[float]:
        """[K] mean 1 - TV by draft position."""
        sums, counts = self.values[4:].chunk(2)
        means: list[float] = (sums / counts.clamp(min=1)).tolist()
        return means


class Trainer:
    """Steps of one run. `step` counts those done."""

    def __init__(
        self,
        trainee: Trainee,
        online: OnlineFeatures,
        source: FeatureSource,
        samples: tuple[SampleSet, SampleSet],
        config: TrainingConfig,
        workers: Workers,
        device: str,
    ) -> None:
        """`samples` are those to learn from and those held out; `source` may be a cache before `online`.

        Raises ConfigError where nothing is left to learn from.
        """
        if len(samples[0]) == 0:
            raise ConfigError("all samples are held out; give more of them or a smaller held_out_fraction", "training.held_out_fraction")
        self.trainee = trainee.to(device)
        self.step = 0
        self._online = online
        self._source = source
        self._samples, self._held_out = samples
        self._config = config
        self._workers = workers
        self._device = device
        self._optimizers = Optimizers(trainee.trained(), config)
        self._epoch, self._order = 0, order(len(self._samples), config.seed, 0)

    @property
    def held_out_samples(self) -> SampleSet:
        """Never trained on."""
        return self._held_out

    def train_step(self) -> StepRecord:
        """Forward, backward and move."""
        started = time.perf_counter()
        chosen = self._batch(self.step)
        norm = self._weight_of(chosen)
        self.trainee.train()
        sums = [self._backward(batch, norm) for batch in self._micro_batches(self._workers.share(chosen))]
        self._workers.add_up(p.grad for _, p in self.trainee.trained() if p.grad is not None)
        totals = Totals.of(sums)
        self._workers.add_up([totals.values])
        share = self._optimizers.step(self.step)
        self.step += 1
        loss, cross_entropy, l1, confidence = (totals.values[:4] / norm).tolist()
        num_tokens = sum(len(anchored.sample.token_ids) for anchored in chosen)
        seconds = time.perf_counter() - started
        return StepRecord(self.step, loss, cross_entropy, l1, confidence, totals.acceptance(), share, num_tokens, seconds)

    @torch.no_grad()
    def held_out(self) -> list[float]:
        """[K] mean 1 - TV by draft position on samples never trained on, always the same anchors."""
        count = min(HELD_OUT_SAMPLES, len(self._held_out))
        if count == 0:
            return []
        chosen = [self._anchored(self._held_out, index, (self._config.seed, index)) for index in range(count)]
        self.trainee.eval()
        # Online, so that the numbers of two runs compare whatever their caches hold.
        sums = [self._sums(batch, self._online) for batch in self._micro_batches(chosen)]
        return Totals.of(sums).acceptance()

    def tensors(self) -> dict[str, torch.Tensor]:
        """Weights and optimizer state, for RunFolder."""
        weights = {f"model.{name}": p.detach().cpu().clone() for name, p in self.trainee.trained()}
        return weights | {f"optimizer.{name}": tensor.cpu() for name, tensor in self._optimizers.tensors()}

    def restore(self, step: int, tensors: dict[str, torch.Tensor]) -> None:
        """Go on after `step` steps of an earlier run. Raises ModelLoadError for the state of another drafter."""
        with torch.no_grad():
            for name, parameter in self.trainee.trained():
                stored = tensors.get(f"model.{name}")
                if stored is None or stored.shape != parameter.shape:
                    raise ModelLoadError(f"the saved state is not this drafter's: tensor {name!r} is missing or of another shape")
                parameter.copy_(stored)
        prefix = "optimizer."
        self._optimizers.load({name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)})
        self.step = step

    def _batch(self, step: int) -> list[AnchoredSample]:
        """The samples of a step: epochs are shuffled anew, and a batch may reach over their border."""
        size, total = self._config.batch_size, len(self._samples)
        chosen = []
        for place in range(step * size, (step + 1) * size):
            epoch, offset = divmod(place, total)
            if epoch != self._epoch:
                self._epoch, self._order = epoch, order(total, self._config.seed, epoch)
            chosen.append(self._anchored(self._samples, int(self._order[offset]), (self._config.seed, place)))
        return chosen

    def _anchored(self, samples: SampleSet, index: int, seed: tuple[int, ...]) -> AnchoredSample:
        return with_anchors(samples[index], self._config.num_anchors, seed)

    def _weight_of(self, chosen: Sequence[AnchoredSample]) -> float:
        """Sum of position weights over the whole batch, all workers' parts included: what the gradient is divided by."""
        size = self.trainee.block_size
        weights = self.trainee.weights.positions(size).double().numpy()
        return max(1.0, float(sum((anchored.num_valid(size) * weights).sum() for anchored in chosen)))

    def _micro_batches(self, chosen: Sequence[AnchoredSample]) -> Iterator[Batch]:
        size = self._config.micro_batch_size or self._config.batch_size
        for start in range(0, len(chosen), size):
            part = chosen[start : start + size]
            yield collate(part, self._config.num_anchors, self.trainee.block_size, self._device)

    def _backward(self, batch: Batch, norm: float) -> LossSums:
        sums = self._sums(batch, self._source)
        torch.autograd.backward(sums.total / norm)
        return sums

    def _sums(self, batch: Batch, source: FeatureSource) -> LossSums:
        view = source.view(batch.token_ids, batch.lengths)
        target_logits = self._online.logits(batch.gather(view.hidden))
        with torch.autocast(self._device.split(":")[0], torch.bfloat16, enabled=self._config.precision == "bfloat16"):
            sums: LossSums = self.trainee(view, batch, target_logits)
        return sums


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What may differ between a run and its resumption."""

    save_every_s: float = 300.0
    held_out_every: int = 200
    """Steps between looks at the held-out samples."""
    decode: Callable[[Path], float] | None = None
    """tau of a checkpoint by real decoding, at every save; None leaves it out."""
    on_step: Callable[[StepRecord], None] = lambda _: None
    on_value: Callable[[int, str, float], None] = lambda *_: None
    """Numbers that come now and then: step, name, value."""


def run(trainer: Trainer, folder: RunFolder, config: TrainingConfig, workers: Workers, options: RunOptions) -> None:
    """All steps that are left, from the last state in the folder if there is one; then the checkpoint."""
    state = folder.load()
    if state is not None:
        trainer.restore(*state)
    writes = workers.rank == 0
    if writes:
        folder.forget_after(trainer.step)
    saved_s = time.monotonic()
    while trainer.step < config.num_steps:
        record = trainer.train_step()
        last = trainer.step == config.num_steps
        if writes:
            folder.log(_line(record))
            options.on_step(record)
        if writes and (last or trainer.step % options.held_out_every == 0):
            _keep_best(trainer, folder, options)
        if writes and (last or time.monotonic() - saved_s >= options.save_every_s):
            save(trainer, folder, options)
            saved_s = time.monotonic()
        if last:
            workers.wait()


def save(trainer: Trainer, folder: RunFolder, options: RunOptions) -> None:
    """The drafter as it is now, then the state: a kill between the two repeats some steps, and no run ends without its checkpoint."""
    _save_drafter(trainer, folder, CHECKPOINT)
    folder.save(trainer.step, trainer.tensors())
    if options.decode is not None:
        tau = options.decode(folder.folder / CHECKPOINT)
        folder.log({"step": trainer.step, "held_out_tau": tau})
        options.on_value(trainer.step, "held_out_tau", tau)


def _keep_best(trainer: Trainer, folder: RunFolder, options: RunOptions) -> None:
    """Log the held-out acceptance; a drafter better than all before is kept."""
    acceptance = trainer.held_out()
    if not acceptance:
        return
    expected = expected_tau(acceptance)
    earlier = [record["held_out_expected_tau"] for record in folder.records() if "held_out_expected_tau" in record]
    folder.log({"step": trainer.step, "held_out_acceptance": acceptance, "held_out_expected_tau": expected})
    options.on_value(trainer.step, "held_out_expected_tau", expected)
    if expected > max(earlier, default=0.0):
        _save_drafter(trainer, folder, BEST)


def _save_drafter(trainer: Trainer, folder: RunFolder, name: str) -> None:
    with disk_errors_told(folder.folder / name):
        trainer.trainee.save(folder.folder / name, torch.bfloat16)


def expected_tau(acceptance: Sequence[float]) -> float:
    """1 + sum of running products: what a chain would commit per round if positions were independent."""
    tau, survival = 1.0, 1.0
    for probability in acceptance:
        survival *= probability
        tau += survival
    return tau


def _line(record: StepRecord) -> dict[str, object]:
    return {name: getattr(record, name) for name in record.__slots__}
