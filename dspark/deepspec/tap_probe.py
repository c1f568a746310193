"""Which target layers a drafter's tap numbers mean, found by trying: programs disagree by one on where the count begins.

    probe = probe_taps(checkpoint, target_folder)
    probe.shift  # 0: as read; -1 or 1: all taps one layer lower or higher; None: undecided

The drafter runs on the target's real hidden states, teacher-forced on real text, once for each way of counting. It was trained on
one of them; on the others its draft_probs move away from target_probs. The measure is the expected acceptance
1 - TV(draft_probs, target_probs), which is what training drives up. Ways of counting are compared text by text, so that what makes
a text hard drops out; a win counts only if it is far beyond its standard error and large enough to matter: a drafter that has
learned nothing gives tiny differences that are sure and mean nothing.

It is evidence, not proof. On text that a drafter guesses badly, a deeper layer can help it more than its own ones: a drafter of
0.19 expected acceptance was once beaten by the wrong layers with six standard errors. So nothing is decided below MIN_ACCEPTANCE,
the text should be of the drafter's domain, and no program should act on a verdict against the file without being told to.

Symbols: S positions of a text, A anchors, K block size, V target vocabulary, d hidden size.
"""

import importlib.resources
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

import torch

from dspark.deepspec.features import OnlineFeatures, TargetView
from dspark.drafting.block_model import BlockModel
from dspark.drafting.shared_weights import SharedWeights
from dspark.errors import ConfigError, ModelLoadError
from dspark.runtime.architecture import load_config
from dspark.runtime.draft_formats import DraftCheckpoint
from dspark.runtime.draft_spec import EMBEDDING
from dspark.runtime.tokenizers import load_tokenizer

SHIFTS = (0, -1, 1)
MIN_ACCEPTANCE = 0.3
"""Expected acceptance of the best way of counting: below it the drafter knows too little of this text to be asked."""
MIN_MARGIN = 0.01
"""Share of the best expected acceptance."""
MIN_STANDARD_ERRORS = 3.0
"""At 24 texts or more, two ways of counting of equal merit come out as decided in less than 1 case in 150."""
MIN_TEXTS = 4
NUM_TEXTS = 64
MAX_TOKENS = 160
MAX_ANCHORS = 24
"""Blocks per text."""
FIRST_ANCHOR = 8
MAX_CHARACTERS = 200_000
"""Of a text file: several times what the pieces need, so that a huge file is not tokenised to the end."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way of counting, and how the drafter does with it."""

    shift: int
    tap_layers: tuple[int, ...]
    acceptance: float
    """Mean over texts of 1 - TV(draft_probs, target_probs)."""
    standard_error: float


@dataclass(frozen=True, slots=True)
class TapProbe:
    """The outcome."""

    candidates: tuple[Candidate, ...]
    """Best first."""
    margin: float
    """Of the best over the second, mean of the differences per text; infinite with one legal candidate only."""
    margin_error: float
    """Its standard error."""

    @property
    def shift(self) -> int | None:
        """What must be added to the tap layers as read; None: undecided."""
        best = self.candidates[0]
        is_clear = self.margin >= max(MIN_MARGIN * best.acceptance, MIN_STANDARD_ERRORS * self.margin_error)
        return best.shift if is_clear and self.knows_the_text else None

    @property
    def knows_the_text(self) -> bool:
        """Whether the drafter does well enough on it for the comparison to mean something."""
        return self.candidates[0].acceptance >= MIN_ACCEPTANCE

    def summary(self) -> str:
        """One line with the numbers."""
        found = ", ".join(f"{list(item.tap_layers)} ({item.shift:+d}) {item.acceptance:.4f}" for item in self.candidates)
        unclear = "undecided" if self.knows_the_text else "undecided (the drafter guesses this text badly; take some of its domain)"
        verdict = unclear if self.shift is None else "as read" if self.shift == 0 else f"off by one: add {self.shift:+d}"
        return f"{verdict}; expected acceptance by tap layers: {found}; margin {self.margin:.4f} +- {self.margin_error:.4f}"


def probe_taps(checkpoint: DraftCheckpoint, target: Path, texts: Sequence[Sequence[int]] | None = None) -> TapProbe:
    """Try every legal way of counting. `texts`: token ids, the shipped prompts by default; text of the drafter's domain decides sooner.

    Raises ModelLoadError for a drafter that is no block drafter, ConfigError for texts too few or too short.
    """
    spec = checkpoint.spec
    if spec.kind != "block":
        raise ModelLoadError(f"{checkpoint.folder}: a drafter of kind {spec.kind!r} cannot be probed")
    texts = _usable(default_texts(target) if texts is None else texts, spec.block_size)
    choices = candidates(spec.tap_layers, int(load_config(target).num_hidden_layers))
    layers = tuple(sorted({layer for taps in choices.values() for layer in taps}))
    features = OnlineFeatures(target, layers, "cpu")
    model = BlockModel.from_checkpoint(checkpoint, SharedWeights.from_folder(target, torch.float32))
    scores: dict[int, list[float]] = {shift: [] for shift in choices}
    for text in texts:
        view, target_probs = _target_side(features, text)
        for shift, taps in choices.items():
            chosen = _columns(view.taps, layers, taps)
            scores[shift].append(_acceptance(model, chosen, text, target_probs))
    return _compare(scores, choices)


def candidates(tap_layers: tuple[int, ...], num_target_layers: int) -> dict[int, tuple[int, ...]]:
    """Shift -> tap layers, for each shift that leaves all of them above -1 and below the last layer."""
    shifted = {shift: tuple(layer + shift for layer in tap_layers) for shift in SHIFTS}
    return {shift: taps for shift, taps in shifted.items() if taps[0] >= EMBEDDING and taps[-1] < num_target_layers - 1}


def texts_of_file(path: Path, target: Path) -> list[list[int]]:
    """Pieces of a plain text file, in the target's tokens: some of the drafter's domain. Raises ConfigError for an unreadable file."""
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as text ({error})", "text") from error
    ids = load_tokenizer(target).encode(content[:MAX_CHARACTERS], add_special_tokens=False)
    return [ids[start : start + MAX_TOKENS] for start in range(0, min(len(ids), NUM_TEXTS * MAX_TOKENS), MAX_TOKENS)]


def default_texts(target: Path) -> list[list[int]]:
    """The shipped prompts (sources and prose), in the target's tokens."""
    tokenizer = load_tokenizer(target)
    path = Path(str(importlib.resources.files("dspark.demo"))) / "weights" / "prompts.jsonl"
    prompts = [json.loads(line)["prompt"] for line in path.read_text(encoding="utf-8").splitlines()]
    return [tokenizer.encode(prompt, add_special_tokens=False)[:MAX_TOKENS] for prompt in prompts[:NUM_TEXTS]]


def _usable(texts: Sequence[Sequence[int]], block_size: int) -> list[list[int]]:
    """Long enough for one block; more than a handful, or there is no standard error worth the name."""
    usable = [list(text[:MAX_TOKENS]) for text in texts if len(text[:MAX_TOKENS]) > FIRST_ANCHOR + block_size]
    if len(usable) < MIN_TEXTS:
        wanted = f"{MIN_TEXTS} texts of more than {FIRST_ANCHOR + block_size} tokens"
        raise ConfigError(f"the tap probe needs {wanted}; there are {len(usable)}", "texts")
    return usable


def _target_side(features: OnlineFeatures, text: Sequence[int]) -> tuple[TargetView, torch.Tensor]:
    """Hidden states, and target_probs [S, V] of the token after each position."""
    view = features.view(torch.tensor([text]), torch.tensor([len(text)]))
    return view, features.logits(view.hidden)[0].float().softmax(-1)


def _columns(taps: torch.Tensor, layers: tuple[int, ...], chosen: tuple[int, ...]) -> torch.Tensor:
    """[1, S, m * d] of the chosen layers, out of [1, S, len(layers) * d]."""
    parts = taps.chunk(len(layers), dim=-1)
    return torch.cat([parts[layers.index(layer)] for layer in chosen], dim=-1)


@torch.inference_mode()
def _acceptance(model: BlockModel, taps: torch.Tensor, text: Sequence[int], target_probs: torch.Tensor) -> float:
    """Mean of 1 - TV over anchors and block positions of one text."""
    block_size = model.spec.block_size
    last = len(text) - block_size
    anchors = torch.arange(FIRST_ANCHOR, last, max(1, math.ceil((last - FIRST_ANCHOR) / MAX_ANCHORS)))  # [A]
    places = anchors.unsqueeze(-1) + torch.arange(block_size)  # [A, K] position of the token before each draft
    ids = torch.tensor(text)
    logits = model.teacher_forced(taps, ids[anchors].unsqueeze(0), anchors.unsqueeze(0), ids[places].unsqueeze(0)).draft[0]
    draft_probs = model.vocabulary.to_target_logits(logits.float()).softmax(-1)  # [A, K, V]
    return float(torch.minimum(draft_probs, target_probs[places]).sum(-1).mean())  # 1 - TV is the mass that both share


def _compare(scores: dict[int, list[float]], choices: dict[int, tuple[int, ...]]) -> TapProbe:
    ranked = sorted(scores, key=lambda shift: -fmean(scores[shift]))
    found = tuple(Candidate(shift, choices[shift], fmean(scores[shift]), _standard_error(scores[shift])) for shift in ranked)
    if len(ranked) == 1:
        return TapProbe(found, math.inf, 0.0)
    differences = [best - second for best, second in zip(scores[ranked[0]], scores[ranked[1]], strict=True)]
    return TapProbe(found, fmean(differences), _standard_error(differences))


def _standard_error(values: list[float]) -> float:
    return stdev(values) / math.sqrt(len(values))
