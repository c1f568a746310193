"""Feature-reading drafters with random weights, as they are served, and what each of them should say by its own training pass."""

from copy import copy
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from dspark.drafting.batch import CachedDrafter
from dspark.drafting.block import BlockDrafter
from dspark.drafting.block_model import BLOCK_ATTENTION, BlockModel
from dspark.drafting.eagle import EagleDrafter
from dspark.drafting.eagle_model import EAGLE_ATTENTION, EagleModel
from dspark.drafting.shared_weights import SharedWeights
from dspark.messages import ContextFeatures, DraftReport, DraftRequest, SessionOpen
from dspark.runtime.attention import ATTENTION_NAME, register
from dspark.runtime.draft_formats import DraftCheckpoint
from dspark.runtime.draft_spec import DraftSpec
from dspark.runtime.projection import FeatureProjection
from dspark.sampling import RowSampling, Sampler
from dspark.types import SamplingParams, SessionId
from tests.runtime.tiny_drafters import EAGLE, SPECS, random_tensors
from tests.runtime.tiny_layers import FAMILY_LAYERS

GREEDY = SamplingParams(temperature=0.0)
NOISY = SamplingParams(temperature=0.9, top_k=20, top_p=0.95, seed=12, choice=1)
MAX_LENGTH = 96
DEPTH = 4
"""Drafted where a test does not say: what every drafter here has been made for."""
A, B, C = (SessionId(name) for name in "abc")

ALL_SPECS: dict[str, DraftSpec] = (
    {name: SPECS[name] for name in ("vanilla", "gated", "rnn", "dflash", "reduced")}
    | {f"vanilla {family}": replace(SPECS["vanilla"], layers=layers) for family, layers in FAMILY_LAYERS.items()}
    | {"eagle": EAGLE, "eagle whole": replace(EAGLE, draft_vocab_size=EAGLE.vocab_size)}
    | {
        f"eagle {family}": replace(EAGLE, layers=FAMILY_LAYERS[family] | {"num_hidden_layers": 1})
        for family in ("llama", "qwen2", "mistral", "gemma")
    }
)


@dataclass(frozen=True)
class Text:
    """Tokens, and what the target saw at each of them."""

    token_ids: list[int]
    taps: torch.Tensor  # [n, m * d] bfloat16

    def __len__(self) -> int:
        return len(self.token_ids)


@dataclass
class Desk:
    """One drafter as it is served, and requests to it."""

    drafter: CachedDrafter[Any]
    projection: FeatureProjection

    def features(self, text: Text, start: int, stop: int, *, raw: bool = False) -> ContextFeatures:
        """Of the positions start..stop-1, as a target sends them."""
        taps = text.taps[start:stop]
        return ContextFeatures(start, bits_of(taps if raw else self.projection(taps)), not raw)

    def open(self, name: SessionId, text: Text, sampling: SamplingParams = GREEDY, length: int | None = None) -> None:
        """A session that starts with the text's first `length` tokens."""
        self.drafter.open(SessionOpen(name, tuple(text.token_ids[:length]), sampling))

    def request(
        self,
        name: SessionId,
        text: Text,
        start: int | None,
        *,
        stop: int | None = None,
        length: int | None = None,
        depth: int = DEPTH,
        new: int = 0,
        raw: bool = False,
        nodes: int = 64,
        width: int = 1,
    ) -> DraftRequest:
        """A draft after the first `length` tokens, the last `new` of them news, with features from `start` on; None: without any."""
        length = len(text) if length is None else length
        features = None if start is None else self.features(text, start, length - 1 if stop is None else stop, raw=raw)
        return DraftRequest(name, length, tuple(text.token_ids[length - new : length]), depth, nodes, features, width)

    def draft(self, name: SessionId, text: Text, start: int | None = 0, **options: Any) -> DraftReport:
        """One session's draft by itself."""
        return self.drafter.draft([self.request(name, text, start, **options)])


def text_of(spec: DraftSpec, length: int, seed: int = 0) -> Text:
    """Random tokens (never the mask) and random taps."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, spec.vocab_size - 1, (length,), generator=generator).tolist()
    width = len(spec.tap_layers) * spec.hidden_size
    return Text(tokens, torch.randn(length, width, generator=generator).bfloat16())


def bits_of(values: torch.Tensor) -> np.ndarray[Any, np.dtype[np.uint16]]:
    """[k, w] bfloat16 as it travels."""
    return values.contiguous().view(torch.uint16).numpy()


def checkpoint_of(spec: DraftSpec) -> DraftCheckpoint:
    """Random weights; those of an eagle drafter with its own LM head."""
    tensors = random_tensors(spec)
    if spec.kind == "eagle" and "lm_head.weight" not in tensors:
        tensors["lm_head.weight"] = torch.randn(spec.vocab_size, spec.hidden_size, generator=torch.Generator().manual_seed(9))
    return DraftCheckpoint(Path("tiny"), "eagle" if spec.kind == "eagle" else "deepspec", spec, tensors, "tiny")


def shared_weights(spec: DraftSpec) -> SharedWeights:
    """Of a target that exists only for this."""
    generator = torch.Generator().manual_seed(8)
    size = (spec.vocab_size, spec.hidden_size)
    return SharedWeights(torch.randn(size, generator=generator), torch.randn(size, generator=generator))


def model_of(spec: DraftSpec, attention: str) -> BlockModel | EagleModel:
    """The network with the weights of `checkpoint_of`."""
    kind: Any = BlockModel if spec.kind == "block" else EagleModel
    model: BlockModel | EagleModel = kind.from_checkpoint(checkpoint_of(spec), shared_weights(spec), attention)
    return model


def desk_of(spec: DraftSpec, *, num_cache_tokens: int = 512, max_length: int = MAX_LENGTH, **options: Any) -> Desk:
    """A drafter that holds no session yet."""
    register()
    projection = FeatureProjection(spec).requires_grad_(False)
    projection.load(checkpoint_of(spec).tensors, "tiny")
    kind: Any = BlockDrafter if spec.kind == "block" else EagleDrafter
    model = model_of(spec, ATTENTION_NAME)
    drafter = kind(model, projection, max_length=max_length, num_cache_tokens=num_cache_tokens, block_tokens=8, **options)
    return Desk(drafter, projection)


@cache
def reference_model(name: str) -> BlockModel | EagleModel:
    """The network as it is trained, with features rounded to bfloat16 on their way: what travels."""
    spec = ALL_SPECS[name]
    model = model_of(spec, BLOCK_ATTENTION if spec.kind == "block" else EAGLE_ATTENTION)
    last: nn.Module = model.hidden_norm if isinstance(model, BlockModel) else model.fc
    last.register_forward_hook(lambda _module, _inputs, output: output.bfloat16().float())
    return model


@torch.inference_mode()
def chain_by_teacher_forcing(name: str, text: Text, sampling: SamplingParams, depth: int) -> list[int]:
    """The training pass run anew for each position, its token chosen as the target chooses. A shallow draft is one of a short block."""
    model = _with_blocks_of(reference_model(name), depth)
    spec = model.spec
    sampler = Sampler(spec.vocab_size, torch.device("cpu"))
    chain: list[int] = []
    for k in range(depth):
        before = [text.token_ids[-1], *chain, *[0] * spec.block_size][: spec.block_size]
        logits = model.vocabulary.to_target_logits(_teacher_forced(model, text, before)[k : k + 1])
        chain.append(int(sampler.choose(logits, [RowSampling(sampling, len(text) + k)])))
    return chain


def _with_blocks_of(model: BlockModel | EagleModel, depth: int) -> BlockModel | EagleModel:
    """The same weights."""
    shorter = copy(model)
    shorter.spec = replace(model.spec, block_size=min(depth, model.spec.block_size))
    return shorter


@torch.inference_mode()
def best_by_teacher_forcing(name: str, text: Text, sampling: SamplingParams, path: list[int], count: int) -> list[int]:
    """The training pass's best tokens after `path`, chosen as the target chooses."""
    spec, model = ALL_SPECS[name], reference_model(name)
    sampler = Sampler(spec.vocab_size, torch.device("cpu"))
    before = [text.token_ids[-1], *path, *[0] * spec.block_size][: spec.block_size]
    logits = model.vocabulary.to_target_logits(_teacher_forced(model, text, before)[len(path) : len(path) + 1])
    best: list[int] = sampler.noised_scores(logits, [RowSampling(sampling, len(text) + len(path))])[0].topk(count).indices.tolist()
    return best


def _teacher_forced(model: BlockModel | EagleModel, text: Text, tokens_before: list[int]) -> torch.Tensor:
    """[K, Vd] for the block after the last token of `text`."""
    anchors, before = torch.tensor([[len(text) - 1]]), torch.tensor([[tokens_before]])
    if isinstance(model, BlockModel):
        taps = text.taps[:-1].float().unsqueeze(0)
        return model.teacher_forced(taps, torch.tensor([[text.token_ids[-1]]]), anchors, before).draft[0, 0]
    return model.teacher_forced(text.taps.float().unsqueeze(0), torch.tensor([text.token_ids]), anchors, before)[0, 0]


def chain_of(report: DraftReport, index: int = 0) -> list[int]:
    """Tokens drafted, of a report without failures."""
    assert report.failures == (), report.failures
    tokens: list[int] = report.results[index].tree.token_ids.tolist()
    return tokens


def failures_of(report: DraftReport) -> list[tuple[SessionId, str]]:
    """(session, error) of each."""
    return [(failure.session_id, failure.error) for failure in report.failures]
