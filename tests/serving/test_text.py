import random

import pytest
from tokenizers import Tokenizer, decoders, models

from dspark.serving.text import IncrementalText
from tests.serving.echo_service import tiny_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return tiny_tokenizer()


def blocks(token_ids: list[int], rng: random.Random) -> list[list[int]]:
    cut: list[list[int]] = []
    while token_ids:
        size = rng.randint(1, 6)
        cut.append(token_ids[:size])
        token_ids = token_ids[size:]
    return cut


def read_all(text: IncrementalText, cut: list[list[int]]) -> list[str]:
    return [text.push(block).text for block in cut] + [text.finish().text]


@pytest.mark.parametrize("seed", range(200))
def test_the_pieces_of_random_ids_are_the_decoding_of_all_ids(tokenizer: Tokenizer, seed: int) -> None:
    rng = random.Random(seed)
    token_ids = [rng.randrange(tokenizer.get_vocab_size()) for _ in range(60)]
    pieces = read_all(IncrementalText(tokenizer), blocks(token_ids, rng))
    assert "".join(pieces) == tokenizer.decode(token_ids, skip_special_tokens=True)


def test_no_piece_holds_half_a_character(tokenizer: Tokenizer) -> None:
    written = "日本語 😀🇫🇷 Ωμέγα"
    token_ids = tokenizer.encode(written).ids
    pieces = read_all(IncrementalText(tokenizer), [[token_id] for token_id in token_ids])
    assert len(token_ids) > len(written)  # characters do take several tokens here
    assert not any("�" in piece for piece in pieces)
    assert "".join(pieces) == written


def test_what_never_becomes_a_character_is_told_at_the_end(tokenizer: Tokenizer) -> None:
    half = tokenizer.encode("漢").ids[:-1]
    text = IncrementalText(tokenizer)
    assert text.push(half).text == ""
    assert text.finish().text == tokenizer.decode(half)


def test_special_tokens_are_no_text_even_inside_a_character(tokenizer: Tokenizer) -> None:
    token_ids = tokenizer.encode("🙂").ids
    text = IncrementalText(tokenizer)
    pieces = read_all(text, [[*token_ids[:1], 0, *token_ids[1:], 0]])
    assert "".join(pieces) == "🙂"


def test_a_long_run_of_broken_bytes_stays_exact_and_is_let_go_in_time(tokenizer: Tokenizer) -> None:
    rng = random.Random(5)
    broken = [tokenizer.token_to_id(character) for character in "ĢĤÂãĥðŁ"]
    token_ids = [rng.choice(broken) for _ in range(1000)] + tokenizer.encode("fox 漢").ids
    text = IncrementalText(tokenizer)
    pieces = [text.push([token_id]).text for token_id in token_ids]
    longest_silence = max(len(run) for run in "".join("x" if piece else "." for piece in pieces).split("x"))
    assert "".join(pieces) + text.finish().text == tokenizer.decode(token_ids)
    assert longest_silence < 100


def test_a_byte_fallback_tokenizer_that_takes_text_back_does_not_break_the_stream() -> None:
    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)} | {"é": 256, "a": 257}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    text = IncrementalText(tokenizer)
    pieces = read_all(text, [[0x44], [0xFF], [256, 257], [0xC3], [0xA9]])
    assert pieces[0] == "D"
    assert "".join(pieces).endswith("éaé")


@pytest.mark.parametrize("block_size", [1, 2, 3, 7, 100])
def test_a_stop_string_never_leaks_however_the_blocks_fall(tokenizer: Tokenizer, block_size: int) -> None:
    token_ids = tokenizer.encode("one two three, stop here. And more").ids
    cut = [token_ids[at : at + block_size] for at in range(0, len(token_ids), block_size)]
    text = IncrementalText(tokenizer, ["stop here"])
    shown, used, hit = "", 0, False
    for block in cut:
        piece = text.push(block)
        shown, used, hit = shown + piece.text, used + piece.tokens_used, hit or piece.hit_stop
        assert "one two three, ".startswith(shown)
    assert (shown, hit) == ("one two three, ", True)
    # The last token used is the one that completes the stop string: one fewer does not hold it.
    assert "stop here" in tokenizer.decode(token_ids[:used])
    assert "stop here" not in tokenizer.decode(token_ids[: used - 1])


def test_what_only_looked_like_a_stop_string_is_shown(tokenizer: Tokenizer) -> None:
    token_ids = tokenizer.encode("aab aabc aab").ids
    text = IncrementalText(tokenizer, ["aabd", "b aax"])
    pieces = read_all(text, [[token_id] for token_id in token_ids])
    assert "".join(pieces) == "aab aabc aab"


def test_the_end_of_the_text_is_held_back_only_as_far_as_it_may_become_a_stop_string(tokenizer: Tokenizer) -> None:
    text = IncrementalText(tokenizer, ["aaab"])
    assert text.push(tokenizer.encode("xaaaa").ids).text == "xa"
    assert text.finish().text == "aaa"


def test_the_earliest_of_several_stop_strings_ends_the_text(tokenizer: Tokenizer) -> None:
    text = IncrementalText(tokenizer, ["lazy", "fox", "quick brown fox j"])
    piece = text.push(tokenizer.encode("The quick brown fox jumps over the lazy dog. ").ids)
    assert (piece.text, piece.hit_stop) == ("The quick brown ", True)


def test_a_stop_string_in_the_text_held_back_to_the_end_counts(tokenizer: Tokenizer) -> None:
    half = tokenizer.encode("漢").ids[:-1]
    text = IncrementalText(tokenizer, ["�"])
    text.push(half)
    assert text.finish().hit_stop


def test_nothing_is_taken_after_the_stop_string(tokenizer: Tokenizer) -> None:
    text = IncrementalText(tokenizer, ["fox"])
    text.push(tokenizer.encode("The quick brown fox").ids)
    later = text.push(tokenizer.encode(" jumps").ids)
    assert (later.text, later.tokens_used, text.finish().text) == ("", 0, "")
