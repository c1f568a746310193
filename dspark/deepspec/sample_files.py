"""A folder of training samples on disk: the format, and the writer that can be killed at any time.

    folder/dataset.json          who made it, for which tokenizer and target, and how far it got; replaced as a whole
    folder/samples-00000.jsonl   one sample per line, appended in order; only the very last line may be cut off

Samples come in the order of the jobs that make them, so the last complete one says where to go on. Knows neither prompts nor
models, and never reads a sample's tokens except to count them.
"""

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import orjson
from pydantic import ValidationError

from dspark.config import StrictModel
from dspark.deepspec.files import write_atomically
from dspark.errors import ConfigError

VERSION = 1
INDEX_NAME = "dataset.json"
SHARD_PATTERN = "samples-*.jsonl"
LOCK_NAME = ".lock"
SAMPLES_PER_SHARD = 20_000
FSYNC_EVERY = 32
"""Samples: what a power cut may cost at most."""
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Shard(StrictModel):
    """One complete shard."""

    name: str
    samples: int
    tokens: int


class DatasetIndex(StrictModel):
    """What dataset.json holds."""

    version: int = VERSION
    arguments: dict[str, Any]
    """All that the samples depend on; a run with others is refused."""
    tokenizer_fingerprint: str
    target_fingerprint: str
    """Empty where no target ran in this process: a server does not tell it, and given texts need none."""
    vocab_size: int
    samples: int = 0
    tokens: int = 0
    skipped: int = 0
    """Bad records left out, with --skip-bad."""
    complete: bool = False
    shards: tuple[Shard, ...] = ()
    """Those that will not grow any more."""


@dataclass(frozen=True, slots=True)
class SampleRecord:
    """One line of a shard."""

    sample_id: str
    """What stands before a `#` names the prompt or document: all its samples fall on the same side of a split."""
    token_ids: list[int]
    prompt_tokens: int
    source: str
    """`given`, or who answered: `engine` or `server`."""
    temperature: float | None = None
    """None for given texts."""

    def line(self) -> bytes:
        """The record as JSON with its line end."""
        fields = {
            "id": self.sample_id,
            "token_ids": self.token_ids,
            "prompt_tokens": self.prompt_tokens,
            "source": self.source,
            "temperature": self.temperature,
        }
        return orjson.dumps(fields, option=orjson.OPT_APPEND_NEWLINE)


def read_index(folder: Path) -> DatasetIndex | None:
    """The folder's index; None if it has none. Raises ConfigError if it cannot be used."""
    path = folder / INDEX_NAME
    if not path.is_file():
        return None
    try:
        index = DatasetIndex.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise ConfigError(f"{path}: not an index of samples ({error.errors()[0]['msg']})") from error
    if index.version != VERSION:
        raise ConfigError(f"{path}: is of format version {index.version}, this program reads {VERSION}")
    return index


def shard_paths(folder: Path) -> list[Path]:
    """The shards in their order."""
    return sorted(folder.glob(SHARD_PATTERN))


def whole_lines(path: Path, *, may_be_cut: bool) -> Iterator[tuple[int, bytes]]:
    """(line number, line) of every line that is not blank; with `may_be_cut`, without a last line that lacks its end."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if may_be_cut and not line.endswith(b"\n"):
                return
            if line.strip():
                yield number, line


class SampleWriter:
    """Appends samples to a folder; one process at a time. Use as a context manager: leaving it writes the index."""

    def __init__(self, folder: Path, index: DatasetIndex, *, samples_per_shard: int = SAMPLES_PER_SHARD, fsync_every: int = FSYNC_EVERY):
        self.index = index
        self.last_id: str | None = None
        """The last complete sample's, from this run or an earlier one."""
        self._folder = folder
        self._samples_per_shard = samples_per_shard
        self._fsync_every = fsync_every
        self._waiting: list[bytes] = []
        self._waiting_tokens = 0
        self._open_samples = 0
        self._open_tokens = 0
        self._failed = False
        self._lock: IO[bytes] | None = None
        self._shard: IO[bytes] | None = None

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(self._folder)
        try:
            self._resume()
        except BaseException:
            self._close_files()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if not self._failed:  # what could not be written once is made anew by the next run
                self.flush()
                self._write_index()
        finally:
            self._close_files()

    def append(self, record: SampleRecord) -> None:
        """Take one sample; it is safe on disk after the next `flush`. Raises ConfigError when the disk is full."""
        self._waiting.append(record.line())
        self._waiting_tokens += len(record.token_ids)
        self.last_id = record.sample_id
        if len(self._waiting) >= self._fsync_every or self._open_samples + len(self._waiting) >= self._samples_per_shard:
            self.flush()

    def flush(self) -> None:
        """Bring all samples taken so far to the disk, and start another shard where this one is full."""
        if not self._waiting:
            return
        assert self._shard is not None, "a writer is entered before it is used"
        with self._clear_when_full():
            _append(self._shard, b"".join(self._waiting))
        self._open_samples += len(self._waiting)
        self._open_tokens += self._waiting_tokens
        self._count(len(self._waiting), self._waiting_tokens)
        self._waiting, self._waiting_tokens = [], 0
        if self._open_samples >= self._samples_per_shard:
            self._next_shard()

    def finish(self, *, skipped: int) -> None:
        """Mark the folder as complete."""
        self.flush()
        self.index = self.index.model_copy(update={"complete": True, "skipped": skipped})
        self._write_index()

    def _resume(self) -> None:
        """Compare the arguments, cut off an unfinished line, and count what is there."""
        known = read_index(self._folder)
        if known is None and shard_paths(self._folder):
            raise ConfigError(f"{self._folder}: holds samples but no {INDEX_NAME}; name another folder", "out")
        if known is not None and known.samples + sum(path.stat().st_size for path in shard_paths(self._folder)):
            _check_same(self._folder, known, self.index)
            self.index = known
        closed = self.index.shards
        total = {"samples": sum(shard.samples for shard in closed), "tokens": sum(shard.tokens for shard in closed)}
        self.index = self.index.model_copy(update=total)
        self._open_shard()
        if not self.index.samples:
            self._write_index()

    def _open_shard(self) -> None:
        closed = self.index.shards
        path = self._folder / f"samples-{len(closed):05d}.jsonl"
        self._shard = path.open("ab", buffering=0)  # a buffer would try again what a full disk refused
        self._open_samples = self._open_tokens = 0
        last = _last_line(self._folder / closed[-1].name) if closed and self.last_id is None else None
        end = 0
        for _, line in whole_lines(path, may_be_cut=True):  # the writer writes no blank line, so the lengths add up
            self._open_samples += 1
            self._open_tokens += len(_parsed(path, line)["token_ids"])
            last, end = line, end + len(line)
        os.ftruncate(self._shard.fileno(), end)
        if last is not None:
            self.last_id = str(_parsed(path, last)["id"])
        self._count(self._open_samples, self._open_tokens)

    def _next_shard(self) -> None:
        assert self._shard is not None, "only a full shard is closed"
        done = Shard(name=Path(self._shard.name).name, samples=self._open_samples, tokens=self._open_tokens)
        self._shard.close()
        self.index = self.index.model_copy(update={"shards": (*self.index.shards, done)})
        self._write_index()
        self._open_shard()

    @contextmanager
    def _clear_when_full(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._failed = True
            if error.errno not in DISK_FULL:
                raise
            free_bytes = shutil.disk_usage(self._folder).free
            raise ConfigError(
                f"{self._folder}: the disk is full ({free_bytes} bytes free) after {self.index.samples} complete samples, which are "
                "kept; make room and run the same command again",
                "out",
            ) from error

    def _count(self, samples: int, tokens: int) -> None:
        total = {"samples": self.index.samples + samples, "tokens": self.index.tokens + tokens}
        self.index = self.index.model_copy(update=total)

    def _write_index(self) -> None:
        content = orjson.dumps(self.index.model_dump(mode="json"), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
        with self._clear_when_full():
            write_atomically(self._folder / INDEX_NAME, content)

    def _close_files(self) -> None:
        for file in (self._shard, self._lock):
            if file is not None:
                file.close()
        self._shard = self._lock = None


def _append(file: IO[bytes], content: bytes) -> None:
    """All or nothing: a failed write leaves the file as it was."""
    end = os.fstat(file.fileno()).st_size
    rest = memoryview(content)
    try:
        while rest:
            rest = rest[file.write(rest) :]
        os.fsync(file.fileno())
    except OSError:
        os.ftruncate(file.fileno(), end)
        raise


def _locked(folder: Path) -> IO[bytes]:
    lock = (folder / LOCK_NAME).open("ab")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise ConfigError(f"{folder}: another process is writing samples there", "out") from error
    return lock


def _check_same(folder: Path, known: DatasetIndex, wanted: DatasetIndex) -> None:
    before, now = ({**index.arguments, **_models(index)} for index in (known, wanted))
    differing = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    if differing:
        key = differing[0]
        raise ConfigError(
            f"{folder}: was begun with other arguments ({', '.join(differing)}; {key} was {before.get(key)!r}, is now {now.get(key)!r}); "
            "give the same ones to go on, or another folder",
            "out",
        )


def _models(index: DatasetIndex) -> dict[str, Any]:
    return {name: getattr(index, name) for name in ("tokenizer_fingerprint", "target_fingerprint", "vocab_size")}


def _last_line(path: Path) -> bytes:
    """Of a complete shard."""
    last = b""
    for _, line in whole_lines(path, may_be_cut=False):
        last = line
    return last


def _parsed(path: Path, line: bytes) -> Any:
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise ConfigError(f"{path}: a line is not JSON ({error}); the file was changed by hand or the disk lost data") from error
