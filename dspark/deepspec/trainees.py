"""What is trained: each kind of drafter as one module that turns a batch into loss sums, and into a checkpoint.

Symbols: B samples, S positions, A anchors, K draft positions, V / Vd target / draft vocabulary, m taps, d hidden size.
"""

import copy
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dspark.deepspec.batches import Batch
from dspark.deepspec.checkpoints import write_draft_checkpoint
from dspark.deepspec.features import TargetView
from dspark.deepspec.folder_swap import replaced_folder
from dspark.deepspec.losses import Judged, LossSums, LossWeights, loss_sums
from dspark.drafting.block_model import BlockModel
from dspark.drafting.eagle_model import EagleModel
from dspark.drafting.vocabulary import DraftVocabulary
from dspark.runtime.draft_spec import DraftSpec

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "generation_config.json")


class Trainee(nn.Module, ABC):
    """A drafter in training."""

    block_size: int

    def __init__(self, weights: LossWeights, vocabulary: DraftVocabulary) -> None:
        super().__init__()
        self.weights = weights
        self.vocabulary = vocabulary

    @abstractmethod
    def guesses(self, view: TargetView, batch: Batch) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(draft logits [B, A, K, Vd], confidence logits [B, A, K] or None), given the text's own tokens before each position."""

    @abstractmethod
    def trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The parameters that learn, by name."""

    @abstractmethod
    def save(self, folder: Path, dtype: torch.dtype) -> None:
        """Write the checkpoint, atomically."""

    def forward(self, view: TargetView, batch: Batch, target_logits: torch.Tensor) -> LossSums:
        """Loss sums of a micro-batch; `target_logits` [B, A, K, V] are the target's for the same positions."""
        draft, confidence = self.guesses(view, batch)
        judged = Judged(
            draft.flatten(0, 1),
            None if confidence is None else confidence.flatten(0, 1),
            target_logits.flatten(0, 1),
            batch.tokens_drafted.flatten(0, 1),
            batch.valid.flatten(0, 1),
        )
        return loss_sums(judged, self.weights, self.vocabulary)


class BlockTrainee(Trainee):
    """DSpark, and DFlash where the specification names no sequential head."""

    def __init__(self, model: BlockModel, weights: LossWeights) -> None:
        super().__init__(weights, model.vocabulary)
        self.model = model
        self.block_size = model.spec.block_size

    def guesses(self, view: TargetView, batch: Batch) -> tuple[torch.Tensor, torch.Tensor | None]:
        """See Trainee."""
        anchor_ids = batch.token_ids.gather(1, batch.anchors)
        logits = self.model.teacher_forced(view.taps, anchor_ids, batch.anchors, batch.tokens_before)
        return logits.draft, logits.confidence

    def trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        """See Trainee."""
        return self.model.own_parameters()

    def save(self, folder: Path, dtype: torch.dtype) -> None:
        """See Trainee."""
        save_drafter(folder, self.model.spec, self.model.own_tensors(), dtype)


class EagleTrainee(Trainee):
    """An EAGLE-3-style drafter."""

    def __init__(self, model: EagleModel, weights: LossWeights) -> None:
        super().__init__(weights, model.vocabulary)
        self.model = model
        self.block_size = model.spec.block_size

    def guesses(self, view: TargetView, batch: Batch) -> tuple[torch.Tensor, torch.Tensor | None]:
        """See Trainee."""
        return self.model.teacher_forced(view.taps, batch.token_ids, batch.anchors, batch.tokens_before), None

    def trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        """See Trainee. The embedding is the target's and stays."""
        return self.model.own_parameters()

    def save(self, folder: Path, dtype: torch.dtype) -> None:
        """See Trainee."""
        save_drafter(folder, self.model.spec, self.model.own_tensors(), dtype)


class LanguageModelTrainee(Trainee):
    """A small causal LM with the target's tokenizer: it reads tokens only, and learns one position after each anchor."""

    block_size = 1

    def __init__(self, model: Any, tokenizer_folder: Path, weights: LossWeights) -> None:
        super().__init__(weights, DraftVocabulary.whole(model.config.vocab_size))
        self.model = model
        self._tokenizer_folder = tokenizer_folder

    def guesses(self, view: TargetView, batch: Batch) -> tuple[torch.Tensor, torch.Tensor | None]:
        """See Trainee."""
        hidden = self.model.get_decoder()(input_ids=batch.token_ids, use_cache=False).last_hidden_state
        return self.model.get_output_embeddings()(batch.gather(hidden)), None

    def trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        """See Trainee."""
        named: Iterator[tuple[str, nn.Parameter]] = self.model.named_parameters()
        return named

    def save(self, folder: Path, dtype: torch.dtype) -> None:
        """See Trainee. A folder that transformers, and so the service, loads as any other model."""
        with replaced_folder(folder) as partial:
            copy.deepcopy(self.model).to(dtype).save_pretrained(partial)
            for file in TOKENIZER_FILES:
                if (self._tokenizer_folder / file).is_file():
                    shutil.copy(self._tokenizer_folder / file, partial / file)


def save_drafter(folder: Path, spec: DraftSpec, tensors: dict[str, torch.Tensor], dtype: torch.dtype) -> None:
    """Floats in `dtype`, on the CPU."""
    write_draft_checkpoint(
        folder, spec, {name: (t.to(dtype) if t.is_floating_point() else t).cpu().contiguous() for name, t in tensors.items()}
    )
