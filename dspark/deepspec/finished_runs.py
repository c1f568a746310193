"""Finished parts of an evaluation or a calibration, so that one that was killed goes on: each is a file named by a hash of everything
that its content depends on, whole or not there at all.

    runs = FinishedRuns(out / "traces")
    trace = runs.once(CHAINS, {"drafter": ..., "temperature": 0.7}, decode)

The hash covers weights, calibration, prompts, plan and versions, but not the code of a working tree: who changes it takes another folder.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from pydantic import TypeAdapter, ValidationError

from dspark import __version__
from dspark.config import MODEL_KINDS, DrafterConfig
from dspark.deepspec.files import write_atomically
from dspark.deepspec.node_traces import NodeTrace
from dspark.deepspec.results import EvaluationResult
from dspark.deepspec.traces import DecodingTrace
from dspark.errors import ConfigError, ModelLoadError
from dspark.runtime.checkpoint import CONFIG
from dspark.runtime.fingerprints import model_fingerprint
from dspark.runtime.hub import resolve_folder
from dspark.runtime.loading import dtype_of
from dspark.scheduling.calibration import CALIBRATION_FILE

Part = TypeVar("Part")

_RESULT: TypeAdapter[EvaluationResult] = TypeAdapter(EvaluationResult)


@dataclass(frozen=True, slots=True)
class PartKind(Generic[Part]):
    """How one kind of part is stored."""

    name: str
    """Of its files; the star stands for the hash."""
    read: Callable[[Path], Part]
    """Raises ConfigError for a file that is none."""
    write: Callable[[Part, Path], None]


def _read_result(path: Path) -> EvaluationResult:
    try:
        return _RESULT.validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise ConfigError(f"{path}: is no result of an evaluation ({error})") from error


def _write_result(result: EvaluationResult, path: Path) -> None:
    write_atomically(path, _RESULT.dump_json(result, indent=2))


RESULTS: PartKind[EvaluationResult] = PartKind("result-*.json", _read_result, _write_result)
CHAINS: PartKind[DecodingTrace] = PartKind("trace-*.safetensors", DecodingTrace.read, DecodingTrace.write)
TREES: PartKind[NodeTrace] = PartKind("nodes-*.safetensors", NodeTrace.read, NodeTrace.write)
KINDS: tuple[PartKind[Any], ...] = (RESULTS, CHAINS, TREES)


class FinishedRuns:
    """A folder of parts. Written by one process only."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.reused = 0
        """Parts that were there already."""
        self._used: set[Path] = set()

    def once(self, kind: PartKind[Part], facts: Mapping[str, object], make: Callable[[], Part]) -> Part:
        """The part that `facts` lead to: as it was stored, else made and stored. A file that cannot be read is made again."""
        path = self.folder / kind.name.replace("*", _hash(facts))
        self._used.add(path)
        if path.is_file():
            with suppress(ConfigError):
                found = kind.read(path)
                self.reused += 1
                return found
        part = make()
        kind.write(part, path)
        return part

    def drop_others(self) -> None:
        """Remove parts that were not asked for since this began: of other plans, prompts or weights."""
        for kind in KINDS:
            for path in self.folder.glob(kind.name):
                if path not in self._used:
                    path.unlink()

    def clear(self) -> None:
        """Remove all parts, and the folder if nothing else is in it."""
        self._used.clear()
        self.drop_others()
        with suppress(OSError):
            self.folder.rmdir()


def drafter_facts(config: DrafterConfig) -> dict[str, object]:
    """What a drafter's answers depend on: its configuration, its weights, and the estimator stored with them. Raises ModelLoadError."""
    facts: dict[str, object] = {"config": config.model_dump(mode="json")}
    if config.kind not in MODEL_KINDS:
        return facts
    folder = resolve_folder(config)
    if not (folder / CONFIG).is_file():
        raise ModelLoadError(f"{folder}: holds no {CONFIG}")
    calibration = folder / CALIBRATION_FILE
    stored = hashlib.blake2b(calibration.read_bytes()).hexdigest() if calibration.is_file() else None
    return facts | {"weights": model_fingerprint(folder), "calibration": stored, "dtype": str(dtype_of(config))}


def _hash(facts: Mapping[str, object]) -> str:
    versions = {"dspark": __version__, "torch": torch.__version__}
    return hashlib.blake2b(json.dumps([facts, versions], sort_keys=True).encode(), digest_size=8).hexdigest()
