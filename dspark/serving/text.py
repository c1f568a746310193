"""From token ids to text, in pieces: whole code points only, and nothing of a stop string.

Knows the tokenizer and the stop strings of one choice. Does not know sessions, rounds or end-of-text rules: those are ids,
and ids are decided before they come here.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

_MAX_HELD_IDS = 64
"""A code point needs 4 bytes at most: a longer run without text is broken UTF-8, and re-reading it all the time costs."""
_SPLIT_WINDOW = 8


@dataclass(frozen=True, slots=True)
class TextPiece:
    """What some tokens added to the text."""

    text: str
    hit_stop: bool
    """A stop string is complete: `text` ends before it, and nothing may follow."""
    tokens_used: int
    """Tokens of the block up to and with the one that completed the stop string; all of them where none did."""


class IncrementalText:
    """The text of one choice, growing token by token.

    All pieces together are `tokenizer.decode(ids, skip_special_tokens=True)`, cut before the first stop string. The
    result does not depend on how the tokens were cut into blocks.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Iterable[str] = ()) -> None:
        self._decoder = _Decoder(tokenizer)
        self._stops = _StopStrings(tuple(stop))
        self._over = False

    def push(self, token_ids: Iterable[int]) -> TextPiece:
        """Add a block of committed tokens; after a stop string every further token is dropped."""
        pieces: list[str] = []
        used = 0
        for token_id in token_ids:
            if self._over:
                break
            used += 1
            text, self._over = self._stops.push(self._decoder.push(token_id))
            pieces.append(text)
        return TextPiece("".join(pieces), self._over, used)

    def finish(self) -> TextPiece:
        """What was held back, now that no token follows; it may still complete a stop string."""
        if self._over:
            return TextPiece("", True, 0)
        text, hit_stop = self._stops.push(self._decoder.finish())
        self._over = True
        return TextPiece(text if hit_stop else text + self._stops.held, hit_stop, 0)


class _Decoder:
    """The library's stream decoder, with an end, and with a bound on what it re-reads."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._special_ids = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        self._restart()

    def _restart(self) -> None:
        self._stream = DecodeStream(skip_special_tokens=True)
        self._ids: list[int] = []
        self._text_length = 0  # characters of decode(self._ids) that were given out
        self._held_ids = 0

    def push(self, token_id: int) -> str:
        # Special tokens are no text; left in, a run of them would be re-read at every step.
        if token_id in self._special_ids:
            return ""
        self._ids.append(token_id)
        text = self._step(token_id)
        self._held_ids = 0 if text else self._held_ids + 1
        if self._held_ids > _MAX_HELD_IDS:
            text = self._let_go()
        self._text_length += len(text)
        return text

    def _step(self, token_id: int) -> str:
        try:
            return self._stream.step(self._tokenizer, token_id) or ""
        except Exception as error:  # the library raises nothing finer
            if "Invalid prefix" not in str(error):
                raise
            # A byte-fallback tokenizer re-reads a whole run of bytes when a later one breaks it. What is out stays out.
            self._restart()
            self._ids.append(token_id)
            return self._stream.step(self._tokenizer, token_id) or ""

    def _let_go(self) -> str:
        """The text of a broken run up to a place where cutting changes nothing; the rest starts a new stream."""
        whole = self._decode(self._ids)
        for cut in range(len(self._ids) - 1, len(self._ids) - _SPLIT_WINDOW, -1):
            head, tail_ids = self._decode(self._ids[:cut]), self._ids[cut:]
            if head + self._decode(tail_ids) == whole:
                text = head[self._text_length :]
                self._restart()
                return text + "".join(self.push(token_id) for token_id in tail_ids)
        return ""

    def finish(self) -> str:
        return self._decode(self._ids)[self._text_length :] if self._held_ids else ""

    def _decode(self, token_ids: list[int]) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=True)


class _StopStrings:
    """Holds back the end of the text for as long as it may become a stop string."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self.held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """The text that is safe to show, and whether a stop string is complete."""
        if not self._stops or not text:
            return text, False
        text = self.held + text
        found = [at for at in (text.find(stop) for stop in self._stops) if at >= 0]
        if found:
            return text[: min(found)], True
        safe = min(_possible_start(text, stop) for stop in self._stops)
        self.held = text[safe:]
        return text[:safe], False


def _possible_start(text: str, stop: str) -> int:
    """Where the longest end of `text` starts that is a beginning of `stop`; len(text) if there is none."""
    at = text.find(stop[0], max(0, len(text) - len(stop) + 1))
    while at >= 0 and not stop.startswith(text[at:]):
        at = text.find(stop[0], at + 1)
    return at if at >= 0 else len(text)
