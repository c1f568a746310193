"""Ways to spoil a model folder, for the tests of its checks."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from dspark.config import ModelSource
from dspark.runtime.loading import load_causal_lm

WEIGHTS = "model.safetensors"


def edit_json(path: Path, **changes: Any) -> None:
    """Set keys of a JSON object."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    """Change the tensors of the one weight file in place."""
    tensors = load_file(folder / WEIGHTS)
    edit(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def write_raw(path: Path, header: bytes, data: bytes = b"") -> None:
    """A file in the outer form of safetensors, whatever the header says."""
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)


def load(folder: Path, **options: Any) -> Any:
    """The folder's model with the plainest attention."""
    return load_causal_lm(ModelSource(model=str(folder), **options), attention="eager")
