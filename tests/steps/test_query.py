"""What a question returns: ends, stop strings, log-probabilities. Answers come from scripts."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxstate
from jaxstate.config import MAX_STOP_IDS
from jaxstate.errors import InvalidInput, PromptTooLong, TextUnavailable
from jaxstate.model.bundle import Model
from jaxstate.records import QueryResult
from jaxstate.testing import ByteTokenizer
from tests.reference import bits, log_softmax
from tests.steps.scripted import BOS, EOS, VOCAB, scripted, session, table_model


def says(
    answer: str | bytes, *, stop: list[str] | None = None, max_tokens: int = 40
) -> QueryResult:
    data = answer.encode() if isinstance(answer, str) else answer
    model = scripted(list(data))
    return jaxstate.query(model, session(model), [BOS], max_tokens=max_tokens, stop=stop)


def check_parts(result: QueryResult) -> None:
    assert result.tokens.dtype == np.int32
    assert result.logprobs.dtype == np.float32
    assert result.logits.dtype == np.float32
    assert result.logits.shape == (VOCAB,)
    assert result.tokens.shape == result.logprobs.shape == (len(result.tokens),)
    for array in (result.tokens, result.logits, result.logprobs):
        assert isinstance(array, np.ndarray)


def test_an_end_token_ends_the_answer_and_is_not_part_of_it() -> None:
    result = says("hi")
    check_parts(result)
    assert result.tokens.tolist() == list(b"hi")
    assert (result.text, result.finish_reason) == ("hi", "stop")


@pytest.mark.parametrize("max_tokens", [1, 2, 3, 4, 5])
def test_max_tokens_is_exact(max_tokens: int) -> None:
    result = says("abcd", max_tokens=max_tokens)
    check_parts(result)
    assert result.text == "abcd"[:max_tokens]
    assert result.tokens.tolist() == list(b"abcd"[:max_tokens])
    # With as many tokens as the answer has, nobody has seen the end token yet.
    assert result.finish_reason == ("length" if max_tokens <= 4 else "stop")


def test_an_answer_may_be_empty_and_the_session_lives_on() -> None:
    """The end token comes first: no tokens, but the logits that say so."""
    model = scripted([])
    state = session(model)
    before = bits(state)
    for max_tokens in (1, 7):
        result = jaxstate.query(model, state, [BOS], max_tokens=max_tokens)
        check_parts(result)
        assert (result.tokens.size, result.logprobs.size) == (0, 0)
        assert (result.text, result.finish_reason) == ("", "stop")
        assert result.logits.argmax() == EOS
    assert bits(state) == before
    other = scripted(list(b"yes"))
    assert jaxstate.query(other, state, [BOS]).text == "yes"
    state = jaxstate.extend(model, state, [5])
    assert int(state.length) == 4


def test_every_end_token_ends() -> None:
    model = scripted(list(b"ab"), then=259)
    state = session(model)
    assert jaxstate.query(model, state, [BOS], max_tokens=6).finish_reason == "length"
    ends = (*range(200, 200 + MAX_STOP_IDS - 1), 259)
    config = dataclasses.replace(model.config, eos_ids=ends)
    result = jaxstate.query(dataclasses.replace(model, config=config), state, [BOS])
    assert (result.text, result.finish_reason) == ("ab", "stop")


def test_too_many_end_tokens_are_refused() -> None:
    model = scripted(list(b"ab"))
    config = dataclasses.replace(model.config, eos_ids=tuple(range(200, 201 + MAX_STOP_IDS)))
    with pytest.raises(InvalidInput, match=str(MAX_STOP_IDS)):
        jaxstate.query(dataclasses.replace(model, config=config), session(model), [BOS])


def test_a_template_may_end_answers_too() -> None:
    """A model whose files name only one end token must stop at its template's turn end."""
    model = scripted(list(b"ab"), then=EOS)
    config = dataclasses.replace(model.config, eos_ids=())
    state = session(model)
    endless = dataclasses.replace(model, config=config)
    assert jaxstate.query(endless, state, [BOS], max_tokens=6).finish_reason == "length"
    template = dataclasses.replace(model.template, answer_end="<eos>\n")
    ended = dataclasses.replace(endless, template=template)
    assert jaxstate.query(ended, state, [BOS], max_tokens=6).text == "ab"


def test_an_end_token_that_is_padding_of_the_stop_list_is_none() -> None:
    """The list is padded with -1, which no token may be taken for; token 0 is like any other."""
    result = says(bytes([3, 0, 5]))
    assert result.tokens.tolist() == [3, 0, 5]


def test_tokens_past_the_tokenizer_have_no_text() -> None:
    model = scripted([97, 258, 98, 259])
    result = jaxstate.query(model, session(model), [BOS], stop=["ab!"])
    assert result.tokens.tolist() == [97, 258, 98, 259]
    assert (result.text, result.finish_reason) == ("ab", "stop")
    cut = jaxstate.query(model, session(model), [BOS], stop=["b"])
    assert (cut.text, cut.finish_reason) == ("a", "stop")
    assert cut.tokens.tolist() in ([97], [97, 258])


def test_special_tokens_have_no_text_either() -> None:
    model = scripted([97, 255, 98], then=EOS)
    config = dataclasses.replace(model.config, eos_ids=())
    model = dataclasses.replace(model, config=config)
    result = jaxstate.query(model, session(model), [BOS], max_tokens=6)
    assert result.tokens.tolist() == [97, 255, 98, EOS, EOS, EOS]
    assert result.text == "a\N{REPLACEMENT CHARACTER}b"


def test_log_probabilities_and_logits_are_those_of_the_table() -> None:
    logits = np.random.default_rng(0).normal(0, 2, (VOCAB, VOCAB))
    model = table_model(logits)
    state = session(model)
    result = jaxstate.query(model, state, [9, BOS], max_tokens=12)
    check_parts(result)
    np.testing.assert_allclose(result.logits, logits[BOS], atol=1e-4)
    last, expected = BOS, []
    for token in result.tokens:
        assert token == logits[last].argmax()
        expected.append(log_softmax(logits[last])[token])
        last = token
    np.testing.assert_allclose(result.logprobs, expected, atol=1e-4)
    np.testing.assert_allclose(result.logprobs.sum(), np.sum(expected), atol=1e-3)
    assert (result.logprobs <= 0).all()


def test_ready_logits_are_those_after_the_last_token_read() -> None:
    logits = np.random.default_rng(1).normal(0, 2, (VOCAB, VOCAB))
    model = table_model(logits)
    state = session(model)
    for last in (3, 0, 77, 259):
        if last != 3:
            state = jaxstate.extend(model, state, [5, last])
        found = jaxstate.ready_logits(model, state)
        assert (found.dtype, found.shape) == (np.float32, (VOCAB,))
        np.testing.assert_allclose(found, logits[last], atol=1e-4)


def test_an_empty_session_has_no_ready_logits() -> None:
    model = scripted([1])
    state = jaxstate.init_state(model, 16)
    with pytest.raises(InvalidInput, match="extend"):
        jaxstate.ready_logits(model, state)


# Stop strings


@pytest.mark.parametrize(
    ("answer", "stop", "text"),
    [
        ("one, tw", ["one"], ""),
        ("one, tw", ["ne"], "o"),
        ("one, tw", [", t"], "one"),
        ("one, tw", ["w"], "one, t"),
        ("one, tw", ["two", "w"], "one, t"),
        ("abcdef", ["de", "bcde"], "a"),
        ("abcdef", ["cd", "bcd", "d"], "a"),
        ("abcdef", ["def", "cd"], "ab"),
        ("abcdef", ["x", "f", "g"], "abcde"),
        ("caf\u00e9 x", ["\u00e9"], "caf"),
        ("\u20ac1,5", ["1"], "\u20ac"),
        ("1\u20ac5", ["\u20ac5"], "1"),
    ],
)
def test_a_stop_string_is_cut_with_all_its_tokens(answer: str, stop: list[str], text: str) -> None:
    """It spans tokens; characters span tokens too; what ends first, begins first, decides."""
    result = says(answer, stop=stop)
    assert result.text == text
    assert result.tokens.tolist() == list(text.encode())
    assert result.finish_reason == "stop"
    check_parts(result)


def test_the_beginning_of_a_stop_string_is_text_when_the_answer_ends_there() -> None:
    ended = says("ab", stop=["abc"])
    assert (ended.text, ended.tokens.tolist(), ended.finish_reason) == ("ab", [97, 98], "stop")
    full = says("abd", stop=["abc"], max_tokens=2)
    assert (full.text, full.tokens.tolist(), full.finish_reason) == ("ab", [97, 98], "length")


@pytest.mark.parametrize("max_tokens", [2, 3])
def test_a_stop_string_that_is_complete_with_the_last_token_stops(max_tokens: int) -> None:
    result = says("abc", stop=["abc"[1:max_tokens]], max_tokens=max_tokens)
    assert (result.text, result.finish_reason) == ("a", "stop")


def test_a_stop_string_ends_decoding_at_once() -> None:
    """No token after it is computed: the script would go on into an infinite answer."""
    result = says("abcdefgh", stop=["c"], max_tokens=3)
    assert (result.text, result.finish_reason) == ("ab", "stop")


class WordTokenizer(ByteTokenizer):
    """Tokens 0 .. 9 are whole pieces, as in real vocabularies."""

    PIECES = (
        b"the ",
        b"price",
        b" is",
        b" 10",
        b"0.\nQ",
        b"uestion: x",
        b"\xe2\x82",
        b"\xac\n",
        b"",
        b"!",
    )

    def token_bytes(self, token: int) -> bytes:
        return self.PIECES[token] if token < 10 else super().token_bytes(token)

    def decode(self, ids: object) -> str:
        return b"".join(self.token_bytes(i) for i in ids).decode("utf-8", "replace")  # pyright: ignore


def words(tokens: list[int], stop: list[str], max_tokens: int = 40) -> QueryResult:
    model = dataclasses.replace(scripted(tokens), tokenizer=WordTokenizer())
    return jaxstate.query(model, session(model), [BOS], max_tokens=max_tokens, stop=stop)


@pytest.mark.parametrize(
    ("tokens", "stop", "text", "kept"),
    [
        ([0, 1, 2, 3, 4, 5], ["\n"], "the price is 100.", [0, 1, 2, 3, 4]),
        ([0, 1, 2, 3, 4, 5], ["\nQuestion:"], "the price is 100.", [0, 1, 2, 3, 4]),
        ([0, 1, 2, 3, 4, 5], ["price is"], "the ", [0]),
        ([0, 1, 2, 3, 4, 5], ["ice"], "the pr", [0, 1]),
        ([0, 1, 2, 3, 4, 5], ["the "], "", []),
        ([0, 1, 2, 3, 4, 5], ["he p"], "t", [0]),
        ([1, 8, 2, 9], [" is"], "price", [1]),
        ([3, 6, 7, 9], ["\u20ac"], " 10", [3]),
        ([3, 6, 7, 9], ["\n"], " 10\u20ac", [3, 6, 7]),
        ([3, 6, 7, 9], ["!"], " 10\u20ac\n", [3, 6, 7]),
    ],
)
def test_a_stop_string_may_begin_in_the_middle_of_a_token(
    tokens: list[int], stop: list[str], text: str, kept: list[int]
) -> None:
    """A token whose beginning belongs to the text stays; one that is all stop string goes."""
    result = words(tokens, stop)
    assert (result.text, result.tokens.tolist()) == (text, kept)
    assert result.finish_reason == "stop"
    check_parts(result)


def test_a_token_of_the_stop_string_goes_even_behind_a_broken_character() -> None:
    """A lone first byte becomes U+FFFD only when the next token shows that it is broken."""
    result = says(b"a\xc3X", stop=["X"])
    assert (result.text, result.finish_reason) == ("a\N{REPLACEMENT CHARACTER}", "stop")
    assert result.tokens.tolist() == [0x61, 0xC3]


ALPHABET = "abcdefgh\u00e9\u20ac"


@settings(deadline=None, max_examples=60)
@given(
    answer=st.permutations(ALPHABET).map("".join),
    size=st.integers(1, 10),
    stop=st.lists(st.text(ALPHABET, min_size=1, max_size=3), max_size=3),
    max_tokens=st.integers(1, 16),
)
def test_any_stop_strings(answer: str, size: int, stop: list[str], max_tokens: int) -> None:
    """Against the definition: decode everything at every step and look."""
    # The euro sign and the e acute share no byte, so all tokens of a script differ.
    data = answer[:size].encode()
    result = says(data, stop=stop, max_tokens=max_tokens)
    expected, reason = None, "stop"
    for count in range(1, min(len(data), max_tokens) + 1):
        text = data[:count].decode("utf-8", "ignore")
        found = [(text.find(s) + len(s), text.find(s)) for s in stop if s in text]
        if found:
            expected = text[: min(found)[1]]
            break
    if expected is None:
        seen = data[:max_tokens]
        expected, reason = seen.decode("utf-8", "replace"), "stop"
        if max_tokens <= len(data):
            reason = "length"
        assert result.tokens.tolist() == list(seen)
    else:
        assert result.tokens.tolist() == list(expected.encode())
    assert (result.text, result.finish_reason) == (expected, reason)


# Arguments


@pytest.mark.parametrize("max_tokens", [0, -1, True, 2.0, "3", None])
def test_impossible_max_tokens_are_refused(max_tokens: object) -> None:
    model = scripted([1])
    with pytest.raises(InvalidInput, match="max_tokens"):
        jaxstate.query(model, session(model), [BOS], max_tokens=max_tokens)  # pyright: ignore


@pytest.mark.parametrize("stop", ["end", [""], ["a", ""], [1], [None], [b"x"], b"x", 5, [["a"]]])
def test_impossible_stop_strings_are_refused(stop: object) -> None:
    model = scripted([1])
    with pytest.raises(InvalidInput, match="stop"):
        jaxstate.query(model, session(model), [BOS], stop=stop)  # pyright: ignore


@pytest.mark.parametrize("stop", [None, [], (), ["x"], ("x", "y"), ["x", "x"]])
def test_possible_stop_strings_are_taken(stop: object) -> None:
    model = scripted(list(b"ab"))
    assert jaxstate.query(model, session(model), [BOS], stop=stop).text == "ab"  # pyright: ignore


@pytest.mark.parametrize("sampling", [{"temperature": 1.0}, 0.5, "greedy"])
def test_only_a_sampling_is_a_sampling(sampling: object) -> None:
    model = scripted([1])
    with pytest.raises(InvalidInput, match="sampling"):
        jaxstate.query(model, session(model), [BOS], sampling=sampling)  # pyright: ignore


def test_stop_strings_need_a_tokenizer_and_nothing_else_does() -> None:
    model = scripted(list(b"ab"))
    bare = dataclasses.replace(model, tokenizer=None)
    state = session(model)
    result = jaxstate.query(bare, state, [BOS])
    assert (result.text, result.tokens.tolist()) == (None, [97, 98])
    assert result.finish_reason == "stop"
    assert jaxstate.query(bare, state, [BOS], stop=[]).text is None
    with pytest.raises(TextUnavailable):
        jaxstate.query(bare, state, [BOS], stop=["b"])


def same(a: QueryResult, b: QueryResult) -> bool:
    return (a.tokens.tobytes(), a.logits.tobytes(), a.logprobs.tobytes(), a.text) == (
        b.tokens.tobytes(),
        b.logits.tobytes(),
        b.logprobs.tobytes(),
        b.text,
    )


def test_settings_of_one_question_do_not_reach_the_next() -> None:
    """Stop strings, sampling and lengths alternate; each answer is what it is alone."""
    model: Model = table_model(np.random.default_rng(2).normal(0, 2, (VOCAB, VOCAB)))
    state = session(model)
    hot = jaxstate.Sampling(temperature=1.5, seed=3)

    def ask(kind: int) -> QueryResult:
        if kind == 0:
            return jaxstate.query(model, state, [BOS], max_tokens=9)
        if kind == 1:
            return jaxstate.query(model, state, [BOS, 7], max_tokens=9, sampling=hot)
        return jaxstate.query(model, state, [BOS], max_tokens=9, stop=["e", "a"])

    alone = [ask(kind) for kind in range(3)]
    for kind in (1, 0, 2, 0, 1, 2, 2, 1, 0):
        assert same(ask(kind), alone[kind])


def test_results_are_the_callers_own() -> None:
    """Nothing that the next question does reaches into an earlier result."""
    model = table_model(np.random.default_rng(3).normal(0, 2, (VOCAB, VOCAB)))
    state = session(model)
    first = jaxstate.query(model, state, [BOS], max_tokens=5)
    copies = [array.copy() for array in (first.tokens, first.logits, first.logprobs)]
    for token in range(20):
        jaxstate.query(model, state, [token], max_tokens=5)
    state = jaxstate.extend(model, state, [1, 2, 3])
    for array, copy in zip((first.tokens, first.logits, first.logprobs), copies, strict=True):
        np.testing.assert_array_equal(array, copy)


@pytest.mark.parametrize(("question", "max_tokens"), [(64, 1), (1, 64), (33, 32), (60, 5)])
def test_the_largest_tail_is_exact(question: int, max_tokens: int) -> None:
    """64 cells: the question and all answer tokens but the last."""
    model = scripted(list(range(64)), then=5)
    state = session(model)
    result = jaxstate.query(model, state, [BOS] * question, max_tokens=max_tokens)
    assert len(result.tokens) == max_tokens
    for more in ((question + 1, max_tokens), (question, max_tokens + 1)):
        before = bits(state)
        with pytest.raises(PromptTooLong, match="64"):
            jaxstate.query(model, state, [BOS] * more[0], max_tokens=more[1])
        assert bits(state) == before
