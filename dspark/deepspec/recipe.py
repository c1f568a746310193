"""Everything that decides a training run: frozen, written beside its results, and compared when a run is resumed."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from dspark.config import Positive, StrictModel

DrafterKind = Literal["dspark", "dflash", "eagle3", "language_model"]
Fraction = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]


class LossConfig(StrictModel):
    """Weights of the loss (losses.py)."""

    cross_entropy: Weight = 0.1
    l1: Weight = 0.9
    confidence: Weight = 1.0
    decay: Rate = 4.0
    """Draft position k counts exp(-(k - 1) / decay)."""


class DrafterShape(StrictModel):
    """How large the drafter is. What is not said is the target's."""

    kind: DrafterKind = "dspark"
    num_layers: Positive = 2
    intermediate_size: Positive | None = None
    """Width of the MLPs; None: the target's."""
    hidden_size: Positive | None = None
    """Of a `language_model` only: the others share the target's embedding."""
    num_attention_heads: Positive | None = None
    num_key_value_heads: Positive | None = None
    block_size: Annotated[int, Field(ge=1, le=64)] = 7
    tap_layers: tuple[int, ...] | None = None
    """Target layers read; None: five of them (or all there are), evenly spread, never the last."""
    head: Literal["vanilla", "gated", "rnn"] = "vanilla"
    """Sequential head of a `dspark` drafter."""
    markov_rank: Positive = 256
    confidence: bool = True
    start: Literal["target", "random"] = "target"
    """First weights: copied from the target's own layers where they fit (warm_start.py), or drawn at random."""
    mask_token: str | None = None
    """A token that text never holds; None: the tokenizer's mask, else its pad token."""
    draft_vocab_size: Positive | None = None
    """`eagle3`: the most frequent tokens of the training samples; None: all."""


class TrainingConfig(StrictModel):
    """The schedule."""

    num_steps: Positive = 3000
    batch_size: Positive = 8
    """Samples per step, over all workers and micro-batches."""
    micro_batch_size: Positive | None = None
    """Samples per forward; None: the worker's whole share. Smaller takes less memory for the same gradient."""
    max_length: Annotated[int, Field(ge=8)] = 512
    """Samples are cut there, in tokens."""
    num_anchors: Positive = 64
    """Blocks per sample and step (the paper's 512 for samples of 4096 tokens)."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """`muon`: for the matrices inside layers and projections, AdamW for the rest."""
    learning_rate: Rate = 6e-4
    muon_learning_rate: Rate = 1e-2
    weight_decay: Weight = 0.0
    warmup_fraction: Fraction = 0.04
    final_rate_fraction: Fraction = 0.0
    """The cosine ends at this share of the peak rate."""
    gradient_clip: Rate = 1.0
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16: autocast of the drafter's forward; weights and optimizer stay float32."""
    seed: Annotated[int, Field(ge=0)] = 0
    held_out_fraction: Fraction = 0.02
    loss: LossConfig = LossConfig()


class DataSource(StrictModel):
    """Samples, and how much they count."""

    path: str
    """A folder of `deepspec prepare`, a token stream (.npy) or JSONL of token ids."""
    repeat: Positive = 1
    """So many times in each epoch: a small set of the target's own answers beside a large corpus."""


class Recipe(StrictModel):
    """One run."""

    target: str = "demo:target"
    target_revision: str | None = None
    data: tuple[DataSource | str, ...]
    """What is learned from; a plain string is a path."""
    drafter: DrafterShape = DrafterShape()
    training: TrainingConfig = TrainingConfig()
    init_from: str | None = None
    """A checkpoint to start from instead of random weights."""

    @property
    def data_paths(self) -> list[Path]:
        """Each as often as it counts."""
        sources = [DataSource(path=item) if isinstance(item, str) else item for item in self.data]
        return [Path(source.path) for source in sources for _ in range(source.repeat)]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        shape = self.drafter
        if shape.draft_vocab_size is not None and shape.kind != "eagle3":
            raise ValueError(f"drafter.draft_vocab_size is for kind 'eagle3', not {shape.kind!r}")
        if shape.hidden_size is not None and shape.kind != "language_model":
            raise ValueError(f"drafter.hidden_size is for kind 'language_model', not {shape.kind!r}")
        if self.training.micro_batch_size is not None and self.training.micro_batch_size > self.training.batch_size:
            raise ValueError(
                f"training.micro_batch_size ({self.training.micro_batch_size}) is above "
                f"training.batch_size ({self.training.batch_size})"
            )
        return self
