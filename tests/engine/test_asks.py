"""Single asks and given choices, step by step.

`tests.engine.rig` says how the numbers come about.
"""

from __future__ import annotations

import numpy as np
import pytest

from tests.engine.rig import Rig, said

# --- one ask ------------------------------------------------------------------------------------


def test_an_ask_step_by_step() -> None:
    rig = Rig()
    session = rig.open("abcd")  # 5 cells
    future = session.submit("xyz")
    rig.engine.run()
    assert rig.news(times=True) == [
        "1 start s1 x1",
        "1.5 decode s1 x1",
        "1.6 decode s1 x1",
        "1.7 decode s1 x1",
    ]
    answer = future.result(timeout=0)
    assert (answer.text, answer.version, answer.source) == ("5:3", 1, "computed")
    assert answer.token_ids == tuple(b"5:3")
    assert answer.logprob == -3.0  # three tokens of -1; the one that ended it is not counted
    assert answer.confidence == pytest.approx(0.05)  # 5 cells / 100
    assert answer.finish_reason == "stop"
    assert answer.latency_s == pytest.approx(0.8)
    usage = answer.usage
    assert (usage.context_tokens, usage.question_tokens, usage.answer_tokens) == (5, 3, 3)
    assert answer.probability is None and answer.choice_logprobs is None
    rig.at_rest()


@pytest.mark.parametrize(
    ("max_tokens", "text", "reason", "decodes"),
    [
        (1, "5", "length", 0),
        (2, "5:", "length", 1),
        (3, "5:3", "length", 2),
        (4, "5:3", "stop", 3),
        (5, "5:3", "stop", 3),
    ],
)
def test_the_answers_length(max_tokens: int, text: str, reason: str, decodes: int) -> None:
    rig = Rig()
    session = rig.open("abcd")
    future = session.submit("xyz", max_tokens=max_tokens)
    rig.engine.run()
    answer = future.result(timeout=0)
    assert (answer.text, answer.finish_reason) == (text, reason)
    assert rig.news() == ["start s1 x1"] + ["decode s1 x1"] * decodes


def test_a_long_question_is_read_in_several_steps() -> None:
    """40 tokens are read as 32 and 8; two such questions never share a `more`."""
    rig = Rig()
    session = rig.open("abcd")
    futures = [session.submit("q" * 40, max_tokens=n) for n in (2, 3)]
    rig.engine.run()
    assert [said(one) for one in futures] == ["5: v1", "5:4 v1"]
    assert rig.news() == [
        "start s1 x2",
        "more s1 x1",
        "more s1 x1",
        "decode s1 x2",
        "decode s1 x1",
    ]
    rig.at_rest()


def test_a_question_of_one_token() -> None:
    rig = Rig()
    session = rig.open("abcd")
    future = session.submit("?")
    rig.engine.run()
    assert said(future) == "5:1 v1"


def test_an_ask_of_an_empty_session() -> None:
    """Version 0: the opening, of no tokens, was read."""
    rig = Rig()
    session = rig.engine.open()
    future = session.submit("xyz")
    rig.engine.run()
    assert said(future) == "0:3 v0"


# --- choices ------------------------------------------------------------------------------------


def test_choices_by_total_log_probability() -> None:
    """At 13 cells a choice of n tokens has -|n - 3|: ab -1, abc 0, abcde -2."""
    rig = Rig()
    session = rig.open("a" * 12)
    future = session.submit("xyz", choices=["ab", "abc", "abcde"])
    rig.engine.run()
    answer = future.result(timeout=0)
    assert rig.news(times=True) == ["1 start s1 x1", "1.5 score s1 x3"]
    assert answer.choice_logprobs == (-1.0, 0.0, -2.0)
    assert (answer.text, answer.token_ids) == ("abc", tuple(b"abc"))
    assert (answer.logprob, answer.confidence) == (0.0, 1.0)
    share = 1 / (1 + np.exp(-1) + np.exp(-2))
    assert answer.probability == pytest.approx(share)
    assert answer.finish_reason == "stop"
    assert answer.usage.question_tokens == 3
    assert answer.usage.answer_tokens == 10  # all that were scored


def test_one_choice_is_certain() -> None:
    rig = Rig()
    session = rig.open("abcd")
    future = session.submit("xyz", choices=["yes"])
    rig.engine.run()
    answer = future.result(timeout=0)
    assert (answer.text, answer.probability, answer.confidence) == ("yes", 1.0, np.inf)


def test_equal_choices_the_first_wins() -> None:
    rig = Rig()
    session = rig.open("abcd")
    future = session.submit("xyz", choices=["no", "to", "up"])
    rig.engine.run()
    answer = future.result(timeout=0)
    assert (answer.text, answer.confidence) == ("no", 0.0)
    assert answer.probability == pytest.approx(1 / 3)


def test_more_choices_than_rows_and_a_question_of_one_token() -> None:
    """A question of one token reads nothing before its choices; 10 choices need two steps."""
    rig = Rig()
    session = rig.open("abcd")  # 5 cells: a choice of 5 tokens wins
    choices = [chr(ord("a") + n) * (n % 6 + 1) for n in range(10)]
    future = session.submit("?", choices=choices)
    rig.engine.run()
    answer = future.result(timeout=0)
    assert rig.news() == ["score s1 x8", "score s1 x2"]
    assert answer.choice_logprobs == tuple(-float(abs(n % 6 + 1 - 5)) for n in range(10))
    assert answer.text == "eeeee"
    rig.at_rest()


def test_choices_of_two_asks_share_a_step() -> None:
    rig = Rig()
    session = rig.open("abcd")
    first = session.submit("one", choices=[str(n) * 3 for n in range(5)])
    second = session.submit("two", choices=[str(n) * 5 for n in range(6)])
    rig.engine.run()
    assert rig.news() == ["start s1 x2", "score s1 x8", "score s1 x3"]
    assert first.result(timeout=0).choice_logprobs == (-2.0,) * 5
    assert second.result(timeout=0).choice_logprobs == (0.0,) * 6


def test_a_long_question_with_choices() -> None:
    """39 of 40 tokens are read before; the last is read with each choice."""
    rig = Rig()
    session = rig.open("abcd")
    future = session.submit("q" * 40, choices=["aaaa", "bbbbb"])
    rig.engine.run()
    assert [(step.call, step.tokens) for step in rig.executor.steps[-3:]] == [
        ("start", 32),
        ("more", 7),
        ("score", 9),
    ]
    assert future.result(timeout=0).text == "bbbbb"
