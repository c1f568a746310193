"""`deepspec prepare`: from prompts or texts to a folder of training samples for one target.

    survey (counts, disk) -> jobs in a fixed order -> answers, many in flight -> samples appended in that order

A sample depends on its prompt, its number and the options, never on timing, so a run that was killed goes on after its last complete
sample. Does not know formats of prompt files (sources.py), templates (prompts.py) or servers (answers.py).
"""

import asyncio
import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

from rich.console import Console

from dspark.config import DrafterConfig, TargetConfig
from dspark.deepspec.answers import Answerer, EngineAnswerer, Job, ServerAnswerer, engine_config, sample_seed
from dspark.deepspec.estimates import Estimate, TokenMeter
from dspark.deepspec.in_order import answer_in_order
from dspark.deepspec.prepare_progress import PrepareProgress
from dspark.deepspec.prompts import Content, Prompt, Rendering, ends_of
from dspark.deepspec.sample_files import DatasetIndex, SampleRecord, SampleWriter, read_index, shard_paths
from dspark.deepspec.sources import Source
from dspark.deepspec.time_probe import PROBE_S, probe_time
from dspark.errors import ConfigError, InvalidRequest
from dspark.runtime.architecture import load_config
from dspark.runtime.fingerprints import eos_token_ids, model_fingerprint, vocabulary_fingerprint
from dspark.runtime.loading import load_tokenizer, resolve_folder
from dspark.serving.text_codec import TextCodec

Answers = Literal["regenerate", "keep"]
Result = TypeVar("Result")

SURVEYED_RECORDS = 256
"""Records that are tokenised for the estimate; the rest goes by characters."""
DEFAULT_MAX_LENGTH = 4096
"""Unless the model's own limit is lower."""


@dataclass(frozen=True, slots=True)
class PrepareOptions:
    """All of a run. What `arguments` leaves out changes speed, not samples."""

    prompts: str
    out: Path
    target: TargetConfig = field(default_factory=TargetConfig)
    drafter: DrafterConfig = field(default_factory=lambda: DrafterConfig(kind="none"))
    """Speeds the answers up; they stay the target's own."""
    rendering: Rendering = field(default_factory=Rendering)
    subset: str | None = None
    split: str = "train"
    answers: Answers = "regenerate"
    server: str | None = None
    model: str | None = None
    temperatures: tuple[float, ...] = (0.7, 1.0)
    max_tokens: int = 512
    samples_per_prompt: int = 1
    max_length: int | None = None
    seed: int = 0
    ignore_eos: bool = False
    skip_bad: bool = False
    limit: int | None = None
    concurrency: int = 32
    max_minutes: float | None = None
    dry_run: bool = False

    def arguments(self, source_fingerprint: str, max_length: int) -> dict[str, object]:
        """What the samples depend on."""
        regenerated: dict[str, object] = {
            "by": "engine" if self.server is None else "server",
            "model": self.model,
            "temperatures": list(self.temperatures),
            "max_tokens": self.max_tokens,
            "samples_per_prompt": self.samples_per_prompt,
            "seed": self.seed,
            "ignore_eos": self.ignore_eos,
            "dtype": self.target.dtype,
        }
        return {
            "prompts": self.prompts,
            "prompts_fingerprint": source_fingerprint,
            "split": self.split,
            "subset": self.subset,
            "field": self.rendering.field,
            "chat": self.rendering.chat,
            "thinking": self.rendering.thinking,
            "answers": self.answers,
            "max_length": max_length,
            "skip_bad": self.skip_bad,
            "limit": self.limit,
            **(regenerated if self.answers == "regenerate" else {}),
        }


def prepare_samples(options: PrepareOptions, console: Console) -> DatasetIndex | None:
    """Run it; returns the folder's index, None for a dry run. Raises ConfigError, ModelLoadError, TargetUnavailable."""
    return Preparation(options, console).run()


class Preparation:
    """One run over one source."""

    def __init__(self, options: PrepareOptions, console: Console) -> None:
        self._options = options
        self._console = console
        self._folder = resolve_folder(options.target)
        tokenizer = load_tokenizer(self._folder)
        config = load_config(self._folder)
        self._codec = TextCodec(tokenizer)
        self._ends = ends_of(tokenizer, eos_token_ids(self._folder))
        self._vocab_size = int(config.vocab_size)
        self._tokenizer_fingerprint = vocabulary_fingerprint(tokenizer)
        self._max_length = _max_length(options.max_length, getattr(config, "max_position_embeddings", None))
        self._source = Source(options.prompts, subset=options.subset, split=options.split)
        self._skipped = 0
        options.rendering.modes(self._codec)  # refuses --thinking here, or every record would be a bad one
        if options.rendering.chat and not self._codec.has_template:
            raise ConfigError("the model has no chat template; use --no-chat", "chat")

    def run(self) -> DatasetIndex | None:
        """See prepare_samples."""
        options = self._options
        deadline_s = None if options.max_minutes is None else time.monotonic() + 60 * options.max_minutes
        estimate = self._estimate()
        before = read_index(options.out) if options.out.is_dir() else None
        present_bytes = sum(path.stat().st_size for path in shard_paths(options.out))
        self._console.print(estimate.table(options.out, present_bytes, before.samples if before else 0))
        estimate.check_disk(options.out, present_bytes)
        if options.dry_run:
            if options.answers == "regenerate":
                asyncio.run(self._dry_run(estimate))
            return None
        with SampleWriter(options.out, self._new_index()) as writer:
            self._fill(writer, estimate, deadline_s)
        self._tell_end(writer.index)
        return writer.index

    def _fill(self, writer: SampleWriter, estimate: Estimate, deadline_s: float | None) -> None:
        if writer.index.complete:
            return
        if self._options.answers == "keep":
            done = self._keep(writer, estimate, deadline_s)
        else:
            done = asyncio.run(self._regenerate(writer, estimate, deadline_s))
        if done:
            writer.finish(skipped=self._skipped)

    def _progress(self, writer: SampleWriter, estimate: Estimate) -> PrepareProgress:
        return PrepareProgress(self._console, total=estimate.samples, present=writer.index.samples)

    def _keep(self, writer: SampleWriter, estimate: Estimate, deadline_s: float | None) -> bool:
        """True if all are written."""
        with self._progress(writer, estimate) as progress:
            for record in _after(writer.last_id, self._given(), lambda record: record.sample_id):
                if deadline_s is not None and time.monotonic() >= deadline_s:
                    return False
                writer.append(record)
                progress.add(len(record.token_ids))
        return True

    async def _dry_run(self, estimate: Estimate) -> None:
        async with self._answerer(estimate) as answerer:
            await self._tell_time(answerer, estimate, PROBE_S, estimate.samples)

    async def _tell_time(self, answerer: Answerer, estimate: Estimate, limit_s: float, samples_to_go: int) -> None:
        """From a trial on the first prompts."""
        jobs = list(itertools.islice(self._jobs(), min(self._options.concurrency, estimate.samples)))
        if not jobs or limit_s <= 0:
            return
        with self._console.status("timing a trial"):
            found = await probe_time(answerer, jobs, limit_s)
        self._console.print(found.summary(estimate.max_answer_tokens * samples_to_go // estimate.samples))

    async def _regenerate(self, writer: SampleWriter, estimate: Estimate, deadline_s: float | None) -> bool:
        """True if all jobs are answered."""
        async with self._answerer(estimate) as answerer:
            limit_s = PROBE_S if deadline_s is None else min(PROBE_S, deadline_s - time.monotonic())
            await self._tell_time(answerer, estimate, limit_s, estimate.samples - writer.index.samples)
            jobs = _after(writer.last_id, self._jobs(), lambda job: job.sample_id)
            answered = answer_in_order(jobs, answerer, concurrency=self._options.concurrency, deadline_s=deadline_s)
            with self._progress(writer, estimate) as progress:
                async with aclosing(answered):
                    async for job, answer in answered:
                        if answer is None:
                            return False
                        if isinstance(answer, InvalidRequest):
                            self._refused(job, answer)
                            continue
                        prompt_ids = list(job.prompt.token_ids)
                        record = SampleRecord(job.sample_id, prompt_ids + answer, len(prompt_ids), answerer.source, job.temperature)
                        writer.append(record)
                        progress.add(len(answer))
        return next(jobs, None) is None

    def _refused(self, job: Job, error: InvalidRequest) -> None:
        if not self._options.skip_bad:
            raise ConfigError(f"{job.prompt.place}: {error}; --skip-bad leaves such records out", "prompts") from error
        self._skipped += 1

    def _contents(self) -> Iterator[Content]:
        """Texts and conversations of all usable records, up to the limit."""
        rendering = self._options.rendering
        every = (self._or_skip(partial(rendering.content, record, self._codec)) for record in self._source.records())
        return itertools.islice((content for content in every if content is not None), self._options.limit)

    def _jobs(self) -> Iterator[Job]:
        """In their fixed order; temperatures go round over all of them."""
        options = self._options
        self._skipped = 0
        temperatures = itertools.cycle(options.temperatures)
        for number, content in enumerate(self._contents()):
            for prompt in self._or_skip(partial(self._checked_prompts, content)) or ():
                for sample in range(options.samples_per_prompt):
                    mode = {None: "", True: "t", False: "f"}[prompt.thinking]
                    sample_id = f"{prompt.prompt_id}#{number}{mode}.{sample}"
                    room = self._max_length - len(prompt.token_ids)
                    yield Job(sample_id, prompt, next(temperatures), min(options.max_tokens, room), sample_seed(options.seed, sample_id))

    def _checked_prompts(self, content: Content) -> list[Prompt]:
        prompts = self._options.rendering.prompts(content, self._codec)
        for prompt in prompts:
            if not 0 < len(prompt.token_ids) < self._max_length:
                raise ConfigError(f"{prompt.place}: has {len(prompt.token_ids)} tokens; --max-length is {self._max_length}", "prompts")
            self._check_vocabulary(prompt.place, prompt.token_ids)
        return prompts

    def _given(self) -> Iterator[SampleRecord]:
        """Samples of given texts, in their fixed order."""
        self._skipped = 0
        for number, content in enumerate(self._contents()):
            windows = self._or_skip(partial(self._windows, content))
            for window, (token_ids, prompt_tokens) in enumerate(windows or ()):
                yield SampleRecord(f"{number}#{window}", token_ids, prompt_tokens, "given")

    def _windows(self, content: Content) -> list[tuple[list[int], int]]:
        windows = list(self._options.rendering.given(content, self._codec, self._ends, self._max_length))
        for token_ids, _ in windows:
            self._check_vocabulary(content.place, token_ids)
        return windows

    def _check_vocabulary(self, place: str, token_ids: list[int] | tuple[int, ...]) -> None:
        if max(token_ids) >= self._vocab_size:
            raise ConfigError(f"{place}: token id {max(token_ids)} is outside the model's vocabulary of {self._vocab_size} ids", "target")

    def _or_skip(self, make: Callable[[], Result]) -> Result | None:
        try:
            return make()
        except ConfigError:
            if not self._options.skip_bad:
                raise
            self._skipped += 1
            return None

    def _estimate(self) -> Estimate:
        """Reads all records, so that a bad one is found before hours of work."""
        options, meter = self._options, TokenMeter()
        records = samples = characters = 0
        with self._console.status("reading prompts"):
            for records, content in enumerate(self._contents(), start=1):
                repeats = self._variants(content) * (options.samples_per_prompt if options.answers == "regenerate" else 1)
                samples += repeats
                characters += content.num_characters * repeats
                if records <= SURVEYED_RECORDS:
                    self._measure(meter, content)
        if not records:
            raise ConfigError(f"{options.prompts}: no usable record ({self._skipped} bad ones)", "prompts")
        tokens = meter.tokens_of(characters)
        if options.answers == "keep":
            return Estimate(records, self._skipped, samples + tokens // self._max_length, tokens, 0, meter.bytes_per_token)
        return Estimate(records, self._skipped, samples, tokens, samples * options.max_tokens, meter.bytes_per_token)

    def _variants(self, content: Content) -> int:
        """Samples that one conversation makes: thinking, not thinking, or both."""
        return len(self._options.rendering.modes(self._codec)) if content.messages is not None else 1

    def _measure(self, meter: TokenMeter, content: Content) -> None:
        if self._options.answers == "keep":
            windows = self._or_skip(partial(self._windows, content))
            characters = content.num_characters * self._variants(content)
            meter.add(characters, [token_id for ids, _ in windows or () for token_id in ids])
        else:
            for prompt in (self._or_skip(partial(self._checked_prompts, content)) or ())[:1]:
                meter.add(content.num_characters, list(prompt.token_ids))

    def _answerer(self, estimate: Estimate) -> Answerer:
        options = self._options
        if options.server is not None:
            return ServerAnswerer(
                options.server, options.model, self._codec, self._vocab_size, ends=self._ends, ignore_eos=options.ignore_eos
            )
        typical = 3 * estimate.prompt_tokens // (2 * estimate.samples) + options.max_tokens
        target = options.target.model_copy(update={"max_length": self._max_length})
        tokens_per_sample = min(self._max_length, typical)
        config = engine_config(target, options.drafter, concurrency=options.concurrency, tokens_per_sample=tokens_per_sample)
        return EngineAnswerer(config, ignore_eos=options.ignore_eos)

    def _new_index(self) -> DatasetIndex:
        options = self._options
        in_process = options.answers == "regenerate" and options.server is None
        return DatasetIndex(
            arguments=options.arguments(self._source.fingerprint(), self._max_length),
            tokenizer_fingerprint=self._tokenizer_fingerprint,
            target_fingerprint=model_fingerprint(self._folder) if in_process else "",
            vocab_size=self._vocab_size,
        )

    def _tell_end(self, index: DatasetIndex) -> None:
        state = "complete" if index.complete else "not complete; the same command goes on"
        skipped = f", {index.skipped:,} bad records skipped" if index.skipped else ""
        self._console.print(f"{self._options.out}: {index.samples:,} samples, {index.tokens:,} tokens{skipped}: {state}")


def _max_length(wanted: int | None, limit: int | None) -> int:
    if wanted is not None and limit is not None and wanted > limit:
        raise ConfigError(f"max_length {wanted} is above the model's own limit of {limit} tokens", "max_length")
    return wanted or min(DEFAULT_MAX_LENGTH, limit or DEFAULT_MAX_LENGTH)


def _after(last_id: str | None, items: Iterator[Result], id_of: Callable[[Result], str]) -> Iterator[Result]:
    """What follows the last complete sample; reads on to it at once."""
    if last_id is not None and not any(id_of(item) == last_id for item in items):
        raise ConfigError(f"sample {last_id} of the folder is not among those that these arguments make; name another folder", "out")
    return items
