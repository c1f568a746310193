"""PackedModel: a transformers causal LM, its paged cache, and one call that runs a packed batch through both."""

import contextlib
from typing import Any

import torch

from dspark.runtime.attention import PackedContext
from dspark.runtime.deterministic import FixedRowTiles
from dspark.runtime.kv_cache import BlockPool, KvTensors
from dspark.runtime.packed import PackedBatch, Segment, pack
from dspark.runtime.taps import TapPoints
from dspark.runtime.weight_layout import lay_out_linears


class PackedModel:
    """Weights and cache of one model on one device. Not thread-safe: one thread runs the forwards. Takes the model over: on a CPU, its
    weights are laid out anew."""

    def __init__(self, model: Any, *, num_cache_tokens: int, block_tokens: int, deterministic: bool = False) -> None:
        lay_out_linears(model, pack=not deterministic)  # deterministic products are of tiles, which replace plain ones only
        self._model = model
        self.device: torch.device = model.get_input_embeddings().weight.device
        self.vocab_size: int = model.config.get_text_config().vocab_size
        num_blocks = max(1, num_cache_tokens // block_tokens)
        self.pool = BlockPool(num_blocks, block_tokens)
        self.cache = KvTensors(num_blocks * block_tokens)
        self.taps = TapPoints(model)
        self._deterministic = deterministic
        # A mask of four dimensions is taken as final: the models skip making one of their own, and packed_attention needs none.
        self._no_mask = torch.zeros((1, 1, 1, 1), device=self.device)
        if deterministic:
            _use_plain_experts(model)

    @torch.inference_mode()
    def forward(self, segments: list[Segment]) -> torch.Tensor:
        """Logits [sum of num_logits, V] of the rows that the segments ask for, segment by segment; fills the cache."""
        batch = pack(segments, self.device)
        context = PackedContext(batch, self.cache, self._deterministic)
        with self.arithmetic():
            logits: torch.Tensor = self._run(batch, context)
        return logits

    def arithmetic(self) -> contextlib.AbstractContextManager[Any]:
        """For more products of rows with weights than the forward's own: inside, they are as deterministic as the model is."""
        return FixedRowTiles() if self._deterministic else contextlib.nullcontext()

    def warm_up(self) -> None:
        """Run one row, so that the cache's memory is taken, and any misfit shows, before the first request."""
        block = self.pool.take(1)
        slot = block[0] * self.pool.block_tokens
        self.forward([Segment([0], [0], None, [slot], 0, 1)])
        self.pool.give_back(block)

    def _run(self, batch: PackedBatch, context: PackedContext) -> torch.Tensor:
        if len(batch.logit_rows) == 0:
            self._backbone(batch, context)
            return torch.empty((0, self.vocab_size), device=self.device)
        output = self._model(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            attention_mask=self._no_mask,
            use_cache=False,
            logits_to_keep=batch.logit_rows,
            packed=context,
        )
        return output.logits[0]  # type: ignore[no-any-return]

    def _backbone(self, batch: PackedBatch, context: PackedContext) -> None:
        """A batch of prompt chunks alone: nobody wants logits."""
        self._model.get_decoder()(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            attention_mask=self._no_mask,
            use_cache=False,
            packed=context,
        )


def _use_plain_experts(model: Any) -> None:
    """Mixture layers one expert after the other: grouped kernels let rows share products."""
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")
