"""Growing answers: what is given out never changes, and nothing is lost."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxstate.errors import InvalidInput
from jaxstate.testing.byte_tokenizer import ByteTokenizer
from jaxstate.text import IncrementalDecoder, StopText, Tokenizer


@settings(deadline=None, max_examples=100)
@given(data=st.data())
def test_any_ids_give_the_text_of_decode(all_kinds: list[Tokenizer], data: st.DataObject) -> None:
    for tokenizer in all_kinds:
        ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=40))
        decoder = IncrementalDecoder(tokenizer)
        parts = [decoder.push(token) for token in ids]
        assert "".join(parts) + decoder.flush() == tokenizer.decode(ids)


@settings(deadline=None, max_examples=100)
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581\ufffd")))
def test_real_text_is_given_out_in_whole_characters(all_kinds: list[Tokenizer], text: str) -> None:
    for tokenizer in all_kinds:
        decoder = IncrementalDecoder(tokenizer)
        grown = ""
        for token in tokenizer.encode(text):
            grown += decoder.push(token)
            assert text.startswith(grown)
        assert decoder.flush() == "" and grown == text


@pytest.mark.gemma
@settings(deadline=None, max_examples=100)
@given(ids=st.lists(st.one_of(st.integers(0, 262_143), st.integers(238, 493)), max_size=60))
def test_any_ids_of_gemma(gemma: Tokenizer, ids: list[int]) -> None:
    decoder = IncrementalDecoder(gemma)
    assert "".join(map(decoder.push, ids)) + decoder.flush() == gemma.decode(ids)


def test_an_emoji_comes_with_its_last_byte() -> None:
    decoder = IncrementalDecoder(ByteTokenizer())
    assert [decoder.push(byte) for byte in "a😀b".encode()] == ["a", "", "", "", "😀", "b"]


def test_invalid_bytes_come_as_soon_as_they_are_certain() -> None:
    decoder = IncrementalDecoder(ByteTokenizer())
    assert [decoder.push(token) for token in (0xF0, 0x9F, 256, 97)] == ["", "", "", "\ufffda"]
    assert decoder.push(0xFF) == "\ufffd"
    assert decoder.push(0xE4) == "" and decoder.flush() == "\ufffd"


def test_only_the_first_space_goes(pieces_prefixed: Tokenizer) -> None:
    decoder = IncrementalDecoder(pieces_prefixed)
    ids = pieces_prefixed.encode(" the price")
    assert "".join(map(decoder.push, [pieces_prefixed.bos_id or 0, *ids])) == " the price"


def test_a_wrong_id_changes_nothing() -> None:
    decoder = IncrementalDecoder(ByteTokenizer())
    decoder.push(0xC3)
    with pytest.raises(InvalidInput):
        decoder.push(999)
    assert decoder.push(0xA9) == "é"


def test_cost_does_not_grow_with_the_text() -> None:
    decoder = IncrementalDecoder(ByteTokenizer())

    def seconds(count: int) -> float:
        begin = time.process_time()
        for _ in range(count):
            decoder.push(97)
        return time.process_time() - begin

    first = seconds(20_000)
    seconds(100_000)
    assert seconds(20_000) < 5 * first + 0.05


def cut_by_hand(text: str, stops: tuple[str, ...]) -> str:
    """Reads one character after the other and stops where some stop string is complete."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            return text[: end - max(map(len, complete))]
    return text


STOPS = st.lists(st.text("abc", min_size=1, max_size=4), max_size=3).map(tuple)


@settings(deadline=None, max_examples=500)
@given(pieces=st.lists(st.text("abc", max_size=4), max_size=12), stops=STOPS)
def test_stop_strings_however_the_text_is_cut(pieces: list[str], stops: tuple[str, ...]) -> None:
    text = "".join(pieces)
    stopper = StopText(stops)
    grown = ""
    for piece in pieces:
        grown += stopper.push(piece)
        assert cut_by_hand(text, stops).startswith(grown)
    assert grown + stopper.flush() == cut_by_hand(text, stops)
    assert stopper.stopped == any(stop in text for stop in stops)


def test_stop_text_holds_back_only_what_may_be_a_stop() -> None:
    stopper = StopText(("\nUser:", "\n\n"))
    assert [stopper.push(piece) for piece in ("yes", ".\n", "Use", "d\n", "\nx")] == [
        "yes",
        ".",
        "",
        "\nUsed",
        "",
    ]
    assert stopper.stopped and stopper.push("more") == "" and stopper.flush() == ""


def test_no_stops_let_everything_through_at_once() -> None:
    stopper = StopText(())
    assert stopper.push("a\n") == "a\n" and stopper.flush() == "" and not stopper.stopped


def test_an_empty_stop_is_refused() -> None:
    with pytest.raises(InvalidInput, match="empty"):
        StopText(("a", ""))
