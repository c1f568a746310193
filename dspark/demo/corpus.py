"""The demo pair's training text: Python sources that every installation of this project already has.

What it reads: the standard library and a fixed list of pinned, permissively licensed dependencies. What it does not know:
tokens, models, training. The list of files is deterministic (sorted, filtered by rules on content, hashed), and a file is held
out by a hash of its name, so that every machine agrees on the split.
"""

import ast
import hashlib
import importlib.util
import json
import sysconfig
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

STANDARD_LIBRARY = "stdlib"

#: package -> sub-folders read ("" = all of it). All are MIT, BSD, Apache-2.0 or PSF licensed.
PACKAGES: dict[str, tuple[str, ...]] = {
    "click": ("",),
    "fastapi": ("",),
    "grpc": ("",),
    "huggingface_hub": ("",),
    "jinja2": ("",),
    "numpy": ("",),
    "pydantic": ("",),
    "ray": ("serve", "data", "util", "_private", "train"),
    "rich": ("",),
    "starlette": ("",),
    "torch": ("nn", "optim", "utils", "distributed", "distributions", "fx", "ao"),
    "transformers": ("generation", "utils", "pipelines", "integrations", "quantizers"),
    "typer": ("",),
    "uvicorn": ("",),
}
SKIPPED_FOLDERS = {"test", "tests", "testing", "site-packages", "__pycache__", "encodings", "idle_test", "_vendor", "thirdparty_files"}
MAX_FILE_BYTES = 150_000
MIN_FILE_BYTES = 200
MAX_MEAN_LINE_CHARS = 100
HELD_OUT_ONE_IN = 20


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file of the corpus."""

    name: str
    """Package and path inside it, with forward slashes: the same on every machine."""
    sha256: str
    """Hash of the file's bytes."""
    num_bytes: int
    held_out: bool
    """True for the files that training never sees."""


def corpus_files() -> list[tuple[SourceFile, str]]:
    """All files of the corpus with their text, in a fixed order, without duplicates by content."""
    seen: set[str] = set()
    chosen = []
    for name, path in sorted(_candidates()):
        raw = path.read_bytes()
        digest = hashlib.sha256(raw).hexdigest()
        text = _usable_text(raw)
        if text is None or digest in seen:
            continue
        seen.add(digest)
        chosen.append((SourceFile(name, digest, len(raw), is_held_out(name)), text))
    return chosen


def is_held_out(name: str) -> bool:
    """About one file in twenty, decided by its name alone so that edits of a file do not move it across the split."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") % HELD_OUT_ONE_IN == 0


def write_manifest(files: list[SourceFile], path: Path) -> None:
    """One JSON line per file: what exactly the weights were trained on."""
    path.write_text("".join(json.dumps(asdict(file)) + "\n" for file in files))


def instruction_pairs(text: str) -> list[tuple[str, str]]:
    """(docstring's first sentence, function source without the docstring) for each documented function of a module.

    Gives the small model a notion of the chat template; it does not make it a chat model.
    """
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return []
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    return [pair for function in functions if (pair := _instruction_pair(function))]


def _instruction_pair(function: ast.FunctionDef) -> tuple[str, str] | None:
    docstring = ast.get_docstring(function)
    if not docstring or not 3 <= len(function.body) <= 20:
        return None
    summary = " ".join(docstring.split("\n\n")[0].split())
    if not 20 <= len(summary) <= 200:
        return None
    function.body = function.body[1:]
    return f"Write a function: {summary}", ast.unparse(function)


def _candidates() -> Iterator[tuple[str, Path]]:
    """(name, path) of every Python file below the corpus roots."""
    for package, root, folders in _roots():
        for folder in folders:
            for path in (root / folder).rglob("*.py"):
                relative = path.relative_to(root)
                if not SKIPPED_FOLDERS.intersection(relative.parts[:-1]):
                    yield f"{package}/{relative.as_posix()}", path


def _roots() -> Iterator[tuple[str, Path, tuple[str, ...]]]:
    yield STANDARD_LIBRARY, Path(sysconfig.get_paths()["stdlib"]), ("",)
    for package, folders in PACKAGES.items():
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise FileNotFoundError(f"the corpus needs the package {package!r}, which is not installed")
        yield package, Path(next(iter(spec.submodule_search_locations))), folders


def _usable_text(raw: bytes) -> str | None:
    """The file's text, or None for tables, generated files and files that are not UTF-8."""
    if not MIN_FILE_BYTES <= len(raw) <= MAX_FILE_BYTES:
        return None
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        return None
    mean_line_chars = len(text) / max(1, text.count("\n"))
    return None if mean_line_chars > MAX_MEAN_LINE_CHARS or "DO NOT EDIT" in text[:2000] else text
