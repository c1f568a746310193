"""How much a `prepare` will make, before it makes it: samples, tokens, bytes on disk; and time, from a short trial (time_probe.py).

Counts all records, tokenises the first ones only, and extrapolates by characters. Disk is refused on the upper bound, where every
answer has full length: half a data set is found out too late. Does not know who answers.
"""

import itertools
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson
from rich.filesize import decimal
from rich.table import Table

from dspark.errors import ConfigError

BYTES_AROUND_SAMPLE = 120
"""Keys, id, source and temperature of one line."""
RESERVE_BYTES = 32 * 1024 * 1024
"""Left free for the index and for others on the same disk."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """Of the whole data set, what an earlier run has made included."""

    records: int
    skipped: int
    samples: int
    prompt_tokens: int
    max_answer_tokens: int
    """If no answer ends early."""
    bytes_per_token: float

    @property
    def max_tokens(self) -> int:
        """Upper bound of the tokens on disk."""
        return self.prompt_tokens + self.max_answer_tokens

    @property
    def max_disk_bytes(self) -> int:
        """Upper bound of the shards' size."""
        return round(self.max_tokens * self.bytes_per_token) + self.samples * BYTES_AROUND_SAMPLE

    def table(self, folder: Path, present_bytes: int, present_samples: int) -> Table:
        """What a user decides on."""
        table = Table(show_header=False, title="deepspec prepare", title_justify="left")
        table.add_row("records", f"{self.records:,}" + (f" ({self.skipped:,} bad ones skipped)" if self.skipped else ""))
        table.add_row("samples", f"{self.samples:,}" + (f" ({present_samples:,} there already)" if present_samples else ""))
        table.add_row("prompt tokens", f"about {self.prompt_tokens:,}")
        if self.max_answer_tokens:
            table.add_row("answer tokens", f"at most {self.max_answer_tokens:,}")
        needed = max(0, self.max_disk_bytes - present_bytes)
        table.add_row("disk", f"at most {decimal(needed)} more; {decimal(free_bytes(folder))} free")
        return table

    def check_disk(self, folder: Path, present_bytes: int) -> None:
        """Raises ConfigError if what is still to come does not fit the disk."""
        needed = max(0, self.max_disk_bytes - present_bytes)
        free = free_bytes(folder)
        if needed + RESERVE_BYTES > free:
            raise ConfigError(
                f"{folder}: needs up to {needed} bytes ({decimal(needed)}) and a reserve of {RESERVE_BYTES}, but only {free} bytes "
                f"({decimal(free)}) are free; take fewer prompts (--limit) or tokens (--max-tokens), or another disk",
                "out",
            )


@dataclass(slots=True)
class TokenMeter:
    """Tokens per character and bytes per token, from the texts tokenised so far."""

    characters: int = 0
    tokens: int = 0
    json_bytes: int = 0

    def add(self, characters: int, token_ids: Sequence[int]) -> None:
        """One tokenised text."""
        self.characters += characters
        self.tokens += len(token_ids)
        self.json_bytes += len(orjson.dumps(token_ids)) - 1

    def tokens_of(self, characters: int) -> int:
        """Extrapolated."""
        return round(characters * self.tokens / self.characters) if self.characters else 0

    @property
    def bytes_per_token(self) -> float:
        """In a shard: digits and a comma."""
        return self.json_bytes / self.tokens if self.tokens else 6.0


def free_bytes(folder: Path) -> int:
    """Of the disk that the folder is on, or will be on."""
    existing = next(parent for parent in itertools.chain([folder.absolute()], folder.absolute().parents) if parent.exists())
    return shutil.disk_usage(existing).free


def shown_seconds(seconds: float) -> str:
    """3700 -> 1 h 02 min"""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
