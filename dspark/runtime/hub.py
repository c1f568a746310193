"""Where a model's folder is: shipped with the package, on this disk, or fetched from the Hugging Face hub.

Knows names and files' names. Does not open weights and does not import torch, so that a command can fetch a model ahead of time.
"""

import importlib.resources
import logging
import os
import re
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils._validators import validate_repo_id
from huggingface_hub.utils.tqdm import tqdm

from dspark.config import ModelSource
from dspark.errors import ModelLoadError

logger = logging.getLogger(__name__)

DEMO_MODELS = {"demo:target": "target", "demo:drafter": "drafter", "demo:dspark": "dspark"}

#: Weights as safetensors, configuration, tokenizer. Never a pickle, never code.
ALLOWED_FILES = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.txt", "*.model", "*.jinja")

_COMMIT = re.compile(r"[0-9a-f]{40}")


class _SilentBars(tqdm):
    """Progress bars that are never drawn."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **(kwargs | {"disable": True}))  # type: ignore[no-untyped-call]


def resolve_folder(source: ModelSource, *, show_progress: bool = True) -> Path:
    """The folder of `source.model`, downloaded first if it is a hub name that the cache does not hold.

    With `show_progress`, a download draws bars where stderr is a terminal. The hub's address comes from HF_ENDPOINT.
    Raises ModelLoadError: no such folder, repository or revision; no access; hub not reachable.
    """
    name = source.model
    if name.startswith("demo:"):
        return _demo_folder(name)
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise ModelLoadError(f"{name}: is a file; give the model's folder", "model")
    if _looks_like_a_path(name):
        raise ModelLoadError(f"{name}: no such folder", "model")
    return _download(name, source.revision, show_progress)


def _demo_folder(name: str) -> Path:
    if name not in DEMO_MODELS:
        raise ModelLoadError(f"{name}: no such demo model; there are {', '.join(DEMO_MODELS)}", "model")
    folder = Path(str(importlib.resources.files("dspark.demo"))) / "weights" / DEMO_MODELS[name]
    if not folder.is_dir():
        raise ModelLoadError(
            f"{name}: this installation came without the demo weights; `python -m dspark.demo.build` makes them", "model"
        )
    return folder


def _looks_like_a_path(name: str) -> bool:
    """True where a hub name is out of the question, so that a typing error does not turn into a network request."""
    if name.startswith(("/", ".", "~")) or "\\" in name:
        return True
    try:
        validate_repo_id(name)
    except HFValidationError:
        return True
    return False


def _download(name: str, revision: str | None, show_progress: bool) -> Path:
    logger.info("looking up %s (revision %s) on the hub", name, revision or "main")
    try:
        folder = snapshot_download(
            name,
            revision=revision,
            allow_patterns=list(ALLOWED_FILES),
            endpoint=os.environ.get("HF_ENDPOINT"),
            tqdm_class=None if show_progress else _SilentBars,
        )
    except Exception as error:  # the hub's own errors, and whatever its HTTP library raises in mid-transfer
        raise ModelLoadError(f"{name}: {_reason(error, revision)}", "model") from error
    commit = Path(folder).name
    if revision is None or not _COMMIT.fullmatch(revision):
        logger.warning("%s is not pinned; it is commit %s now: set `revision: %s` to keep it", name, commit, commit)
    return Path(folder)


def _reason(error: Exception, revision: str | None) -> str:
    """What an operator can act on. The order matters: the hub's errors are subclasses of each other."""
    match error:
        case GatedRepoError():
            return "the repository is gated; ask for access on the hub and set HF_TOKEN"
        case RevisionNotFoundError():
            return f"the repository has no revision {revision!r}"
        case RepositoryNotFoundError():
            return "no such folder here and no such repository on the hub, or a private one without HF_TOKEN"
        case LocalEntryNotFoundError():
            return f"the hub cannot be reached and the cache does not hold the whole model ({_cause(error)})"
        case HfHubHTTPError():
            return f"the hub answered with an error ({_cause(error)})"
        case _:
            return f"the download failed ({_cause(error)})"


def _cause(error: Exception) -> str:
    root = error.__cause__ or error
    return f"{type(root).__name__}: {str(root).strip().splitlines()[0] if str(root).strip() else 'no details'}"
