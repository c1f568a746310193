"""Train one small language model on a stream of token ids: resumable, deterministic in its data order, no pickle on disk.

Symbols: B batch, S sequence length, V vocabulary.
"""

import json
import math
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional
from transformers import Qwen3Config, Qwen3ForCausalLM

HELD_OUT_WINDOWS = 64


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides a training run, so that a resumed run can be checked against it."""

    model_config: dict[str, Any]
    num_steps: int
    batch_size: int = 8
    sequence_length: int = 512
    matrix_learning_rate: float = 1e-2
    other_learning_rate: float = 6e-3
    warmup_steps: int = 100
    decay_fraction: float = 0.4
    """The last part of the run in which the learning rate falls linearly to zero."""
    weight_decay: float = 0.05
    seed: int = 20261123
    device: str = "cpu"
    compile: bool = False
    """torch.compile of the forward: 1.5 times as fast on the CPU this was written on, a minute to start."""


@dataclass(frozen=True, slots=True)
class TrainingText:
    """Token ids as one stream per side of the split."""

    train: np.ndarray  # [num_train_tokens] uint16
    held_out: np.ndarray  # [num_held_out_tokens] uint16


def train(recipe: Recipe, text: TrainingText, folder: Path, *, save_every_s: float = 120.0) -> nn.Module:
    """Run the recipe to its end, from the last checkpoint in `folder` if there is one.

    Writes `metrics.jsonl`, `state.safetensors` (model, optimizer, step) and returns the trained model in float32.
    """
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.seed)
    model: Any = Qwen3ForCausalLM(Qwen3Config(**recipe.model_config))
    model.to(recipe.device)
    optimizers = _optimizers(model, recipe)
    step = _restore(folder, recipe, model, optimizers)
    if recipe.compile and step < recipe.num_steps:
        model.forward = torch.compile(model.forward)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        task = progress.add_task(folder.name, total=recipe.num_steps, completed=step)
        last_save = time.monotonic()
        while step < recipe.num_steps:
            loss = _train_step(model, optimizers, recipe, text.train, step)
            step += 1
            progress.update(task, completed=step, description=f"{folder.name} loss {loss:.3f}")
            if step % 50 == 0:
                _log(folder, {"step": step, "loss": loss, "time_s": time.time()})
            if time.monotonic() - last_save > save_every_s or step == recipe.num_steps:
                _log(folder, {"step": step, "held_out_loss": held_out_loss(model, text.held_out, recipe)})
                _save(folder, recipe, model, optimizers, step)
                last_save = time.monotonic()
    trained: nn.Module = model
    return trained


def held_out_loss(model: nn.Module, tokens: np.ndarray, recipe: Recipe) -> float:
    """Mean cross entropy per token (nats) on evenly spread windows of the held-out stream."""
    starts = np.linspace(0, len(tokens) - recipe.sequence_length - 1, HELD_OUT_WINDOWS).astype(int)
    model.eval()
    with torch.no_grad():
        groups = [starts[i : i + recipe.batch_size] for i in range(0, len(starts), recipe.batch_size)]
        losses = [_loss(model, _windows(tokens, group, recipe), recipe).item() for group in groups]
    model.train()
    return sum(losses) / len(losses)


def _train_step(
    model: nn.Module, optimizers: list[torch.optim.Optimizer], recipe: Recipe, tokens: np.ndarray, step: int
) -> float:
    draw = np.random.default_rng((recipe.seed, step))  # the batch depends on the step alone: resume sees the same data
    starts = draw.integers(0, len(tokens) - recipe.sequence_length - 1, recipe.batch_size)
    loss = _loss(model, _windows(tokens, starts, recipe), recipe)
    torch.autograd.backward(loss)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * _schedule(step, recipe)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return loss.item()


def _loss(model: nn.Module, windows: torch.Tensor, recipe: Recipe) -> torch.Tensor:
    # windows [B, S+1]
    with torch.autocast(recipe.device, dtype=torch.bfloat16):
        logits = model(windows[:, :-1], use_cache=False).logits  # [B, S, V]
    return functional.cross_entropy(logits.float().flatten(0, 1), windows[:, 1:].flatten())


def _windows(tokens: np.ndarray, starts: Any, recipe: Recipe) -> torch.Tensor:
    rows = np.stack([tokens[start : start + recipe.sequence_length + 1] for start in starts]).astype(np.int64)
    return torch.from_numpy(rows).to(recipe.device)


def _schedule(step: int, recipe: Recipe) -> float:
    """Warm-up, constant, linear decay."""
    decay_steps = recipe.num_steps * recipe.decay_fraction
    return min(1.0, (step + 1) / recipe.warmup_steps, (recipe.num_steps - step) / decay_steps)


def _optimizers(model: nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the hidden matrices, AdamW for embeddings and norms."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    muon = torch.optim.Muon(
        matrices, lr=recipe.matrix_learning_rate, weight_decay=recipe.weight_decay, adjust_lr_fn="match_rms_adamw"
    )
    adamw = torch.optim.AdamW(others, lr=recipe.other_learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    for optimizer in (muon, adamw):
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return [muon, adamw]


def _save(
    folder: Path, recipe: Recipe, model: nn.Module, optimizers: list[torch.optim.Optimizer], step: int
) -> None:
    """One safetensors file, written beside and renamed: a kill leaves the old checkpoint whole."""
    tensors = {f"model.{name}": p.detach().clone().contiguous() for name, p in model.named_parameters()}
    for number, optimizer in enumerate(optimizers):
        for index, state in optimizer.state_dict()["state"].items():
            for name, value in state.items():
                tensors[f"optimizer.{number}.{index}.{name}"] = torch.as_tensor(value).clone().contiguous()
    partial = folder / "state.safetensors.partial"
    save_file(tensors, partial, metadata={"step": str(step), "recipe": json.dumps(asdict(recipe), sort_keys=True)})
    os.replace(partial, folder / "state.safetensors")


def _restore(folder: Path, recipe: Recipe, model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> int:
    """Load the checkpoint and return its step; 0 without one. A checkpoint of another recipe is refused."""
    path = folder / "state.safetensors"
    if not path.exists():
        return 0
    from safetensors import safe_open

    with safe_open(path, "pt") as handle:
        metadata = handle.metadata()
    if metadata["recipe"] != json.dumps(asdict(recipe), sort_keys=True):
        raise ValueError(f"{path} was written by another recipe; remove it or choose another output folder")
    tensors = load_file(path, device=recipe.device)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[f"model.{name}"])
    for number, optimizer in enumerate(optimizers):
        state: dict[int, dict[str, torch.Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith(f"optimizer.{number}."):
                _, _, index, name = key.split(".", 3)
                state.setdefault(int(index), {})[name] = value
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return int(metadata["step"])


def perplexity(loss: float) -> float:
    """exp of a mean loss in nats."""
    return math.exp(loss)


def _log(folder: Path, record: dict[str, Any]) -> None:
    with (folder / "metrics.jsonl").open("a") as log:
        log.write(json.dumps(record) + "\n")
