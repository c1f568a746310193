"""What a drafter's checkpoint is and what is wrong with it: everything found, not the first thing only.

    report = inspect_checkpoint(folder, target_folder)
    print_report(console, report)

Knows the reader's checks (runtime/draft_formats.py) and the tap probe. Never repairs anything: `convert` writes a new folder.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from safetensors import SafetensorError

from dspark.deepspec.checkpoints import COPIES, target_copies
from dspark.deepspec.tap_probe import TapProbe, probe_taps
from dspark.errors import DSparkError, ModelLoadError
from dspark.runtime.checkpoint import check_folder
from dspark.runtime.draft_configs import DraftFormat
from dspark.runtime.draft_formats import (
    DraftCheckpoint,
    check_target,
    drop_copies,
    read_draft_checkpoint,
    read_draft_config,
    stored_tensors,
    weights_place,
)
from dspark.runtime.draft_spec import DraftSpec
from dspark.runtime.draft_tensors import StoredTensor, describe_heads, tensor_problems

SHARED_NAMES = ("embed_tokens.weight", "lm_head.weight")


@dataclass(slots=True)
class CheckpointReport:
    """Parts that could not be read are None or empty, and `problems` says why."""

    folder: Path
    format: DraftFormat | None = None
    spec: DraftSpec | None = None
    stored: dict[str, StoredTensor] = field(default_factory=dict)
    checkpoint: DraftCheckpoint | None = None
    """Only of a checkpoint that can be used."""
    shared: dict[str, str] = field(default_factory=dict)
    """Tensor -> how it stands to the target's own."""
    probe: TapProbe | None = None
    problems: list[str] = field(default_factory=list)

    @property
    def num_bytes(self) -> int:
        """Size of all tensors."""
        return sum(tensor.num_bytes for tensor in self.stored.values())


def inspect_checkpoint(folder: Path, target: Path | None = None, texts: Sequence[Sequence[int]] | None = None) -> CheckpointReport:
    """Look at all of it; with a target also whether they fit, what they share, and how the tap layers are counted (`probe_taps`)."""
    report = CheckpointReport(folder)
    _read_config(report)
    _read_headers(report)
    _read_values(report)
    if target is not None and report.spec is not None:
        _meet_target(report, report.spec, target, texts)
    report.problems = list(dict.fromkeys(report.problems))
    return report


def print_report(console: Console, report: CheckpointReport) -> None:
    """For people: what it is, its tensors, the verdicts."""
    console.print(f"[bold]{report.folder}[/bold]: {report.format or 'not a drafter that can be read'}")
    if report.spec is not None:
        for name, value in _facts(report, report.spec):
            console.print(Text.assemble((f"  {name:<14}", "dim"), value))
    if report.stored:
        console.print(_table(report))
        console.print(f"  {len(report.stored)} tensors, {report.num_bytes / 1e6:.2f} MB")
    if report.probe is not None:
        console.print(Text(f"  tap layers: {report.probe.summary()}"))
    for problem in report.problems:
        console.print(Text.assemble(("  problem: ", "red"), problem))
    if not report.problems:
        console.print("  [green]no problems found[/green]")


def _read_config(report: CheckpointReport) -> None:
    try:
        report.format, report.spec = read_draft_config(report.folder)
    except ModelLoadError as error:
        report.problems.append(str(error))


def _read_headers(report: CheckpointReport) -> None:
    """Shapes of everything, whatever the configuration is like."""
    try:
        report.stored = stored_tensors(report.folder)
        if report.spec is not None and report.format is not None:
            own = dict(report.stored)
            drop_copies(report.format, report.spec, own)
            report.problems += tensor_problems(report.spec, own, weights_place(report.folder))
    except ModelLoadError as error:
        report.problems.append(str(error))
    except (SafetensorError, OSError) as error:
        report.problems.append(f"{weights_place(report.folder)}: not a sound safetensors file ({error})")


def _read_values(report: CheckpointReport) -> None:
    """NaN, infinity, links, the vocabulary map: what only the numbers and the folder tell."""
    try:
        check_folder(report.folder)
        if not report.problems:
            report.checkpoint = read_draft_checkpoint(report.folder)
    except ModelLoadError as error:
        report.problems.append(str(error))


def _meet_target(report: CheckpointReport, spec: DraftSpec, target: Path, texts: Sequence[Sequence[int]] | None) -> None:
    try:
        check_target(report.folder, spec, target)
        if report.checkpoint is None:
            return
        report.shared = _shared(report.checkpoint, target)
        if spec.kind == "block":
            report.probe = probe_taps(report.checkpoint, target, texts)
    except DSparkError as error:
        report.problems.append(str(error))
    if report.probe is not None and report.probe.shift:
        report.problems.append(f"{report.folder}: the tap layers seem to be off by one: add {report.probe.shift:+d}")


def _shared(checkpoint: DraftCheckpoint, target: Path) -> dict[str, str]:
    found = {}
    for name, own in target_copies(target, SHARED_NAMES).items():
        mine = checkpoint.tensors.get(name)
        if mine is None:
            found[name] = "left out: the target's"
        elif mine.shape != own.shape:
            found[name] = "its own: a reduced vocabulary"
        else:
            same = torch.equal(mine.float(), own.to(mine.dtype).float())
            found[name] = "a copy of the target's" if same else "its own: differs from the target's"
    return found


def _facts(report: CheckpointReport, spec: DraftSpec) -> list[tuple[str, str]]:
    mask = "" if spec.mask_token_id is None else f", mask token {spec.mask_token_id}"
    missing = [name for name in COPIES.get(report.format or "eagle", ()) if name in SHARED_NAMES and name not in report.stored]
    facts = [
        ("drafter", f"{describe_heads(spec)}, rank {spec.markov_rank}"),
        ("layers", f"{spec.layers['model_type']}, hidden size {spec.hidden_size}"),
        ("target", f"{spec.num_target_layers or 'unknown number of'} layers, fingerprint {spec.target_fingerprint[:16] or 'not stated'}"),
        ("tap layers", f"{list(spec.tap_layers)} (outputs of decoder layers; -1: embeddings)"),
        ("vocabulary", f"{spec.draft_vocab_size} of {spec.vocab_size} tokens"),
        ("block", f"{spec.block_size} positions{mask}"),
        ("target's own", ", ".join(missing) + " left out" if missing else ""),
        ("fingerprint", report.checkpoint.fingerprint if report.checkpoint else ""),
    ]
    return [(name, value) for name, value in facts if value]


def _table(report: CheckpointReport) -> Table:
    table = Table(box=None, padding=(0, 2), show_edge=False)
    for name in ("tensor", "shape", "dtype", "kB", ""):
        table.add_column(name, justify="right" if name == "kB" else "left")
    for name in sorted(report.stored | dict.fromkeys(report.shared)):
        tensor = report.stored.get(name)
        cells = _cells(tensor) if tensor else ("", "", "")
        table.add_row(Text(name), *cells, report.shared.get(name, ""))
    return table


def _cells(tensor: StoredTensor) -> tuple[str, str, str]:
    """Shape, dtype, kB."""
    return str(list(tensor.shape)), str(tensor.dtype).removeprefix("torch."), f"{tensor.num_bytes / 1e3:.1f}"
