"""A GenerationService without models: it says the prompt's tokens over and over, a block per round, through the real text layer.

The port is faked, nothing around it: tokenizer, stop strings, block cutting and closing are the real thing.
"""

import asyncio
from collections.abc import AsyncIterator

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from dspark.errors import RequestAborted
from dspark.serving.generation import GenerationChunk, GenerationRequest, Usage
from dspark.serving.text import IncrementalText
from dspark.types import FinishReason, ModelCard

END_OF_TEXT = "<|endoftext|>"
BLOCK_TOKENS = 3
CORPUS = (
    "The quick brown fox jumps over the lazy dog. ",
    "Grüße, naïve café, 漢字かな, 🙂👩‍👩‍👧!\n",
    "one two three, stop here.",
)


def tiny_tokenizer() -> Tokenizer:
    """A byte-level BPE of 320 tokens: most characters outside ASCII take several tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=[END_OF_TEXT], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


class EchoService:
    """Counts open streams and rounds. After `pause_after` chunks a stream waits for `go_on`, or raises `failure` if set."""

    def __init__(self, max_length: int = 256) -> None:
        self.tokenizer = tiny_tokenizer()
        self.max_length = max_length
        self.open_streams = 0
        self.rounds = 0
        self.requests: list[GenerationRequest] = []
        self.pause_after: int | None = None
        self.go_on = asyncio.Event()
        self.failure: Exception | None = None
        self.is_ready = True

    @property
    def card(self) -> ModelCard:
        size = self.tokenizer.get_vocab_size()
        return ModelCard("echo/tiny", size, self.max_length, (0,), "0123456789abcdef", "fedcba9876543210")

    @property
    def drafters(self) -> tuple[str, ...]:
        return ("code", "general")

    def encode(self, text: str) -> list[int]:
        # encode_special_tokens: what looks like a special token in a client's text is only text.
        self.tokenizer.encode_special_tokens = True
        return self.tokenizer.encode(text).ids

    def encode_chat(self, messages: list[dict[str, str]]) -> list[int]:
        return self.encode("".join(f"{message['role']}: {message['content']}\n" for message in messages))

    async def stream(self, request: GenerationRequest) -> AsyncIterator[GenerationChunk]:
        self.requests.append(request)
        self.open_streams += 1
        try:
            async for chunk in self._chunks(request):
                yield chunk
        finally:
            self.open_streams -= 1

    async def _chunks(self, request: GenerationRequest) -> AsyncIterator[GenerationChunk]:
        text = IncrementalText(self.tokenizer, request.stop)
        said: list[int] = []
        rounds = 0
        while True:
            await self._pause(rounds)
            rounds += 1
            self.rounds += 1
            start = request.sampling.choice + len(said)  # choices differ: each starts one token later
            block = [request.prompt_ids[at % len(request.prompt_ids)] for at in range(start, start + BLOCK_TOKENS)]
            block = block[: request.max_tokens - len(said)]
            piece = text.push(block)
            said += block[: piece.tokens_used]
            reason = FinishReason.STOP if piece.hit_stop else FinishReason.LENGTH if len(said) == request.max_tokens else None
            shown = piece.text + (text.finish().text if reason is FinishReason.LENGTH else "")
            yield GenerationChunk(shown, tuple(block[: piece.tokens_used]), reason, self._usage(request, said, rounds))
            if reason is not None:
                return

    async def _pause(self, rounds: int) -> None:
        if self.pause_after is None or rounds < self.pause_after:
            await asyncio.sleep(0)
            return
        if self.failure is not None:
            raise self.failure
        await self.go_on.wait()

    def _usage(self, request: GenerationRequest, said: list[int], rounds: int) -> Usage:
        speculative = request.speculation_enabled
        return Usage(
            prompt_tokens=len(request.prompt_ids),
            completion_tokens=len(said),
            drafted_tokens=4 * rounds if speculative else 0,
            selected_tokens=3 * rounds if speculative else 0,
            accepted_tokens=2 * rounds if speculative else 0,
            rounds=rounds,
            drafter=(request.drafter or "general") if speculative else None,
            max_nodes=request.max_nodes,
            min_tokens_per_second=request.min_tokens_per_second,
            priority=request.priority,
        )

    def abort(self, request_id: str) -> bool:
        found = any(request.request_id == request_id for request in self.requests)
        if found:
            self.failure = RequestAborted("aborted")
        return found

    async def ready(self) -> bool:
        return self.is_ready
