"""What has no effect, what is of a wrong type, and what is far too long: refused, in the caller's
words, before anything is done for it."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

import jaxstate
from jaxstate.errors import CapacityExceeded, InvalidInput, PromptTooLong
from jaxstate.testing import FAKE_LIMITS, tiny_model
from tests.engine.rig import Rig

CHOICES = ("a", "bc")


class TestChoices:
    """They are scored as whole answers: what draws or cuts has no place beside them."""

    @pytest.mark.parametrize(
        "idle", [{"temperature": 0.5}, {"top_p": 0.5}, {"seed": 0}, {"stop": ["x"]}, {"stop": []}]
    )
    def test_what_has_no_effect_is_refused(self, idle: dict[str, object]) -> None:
        rig = Rig()
        session = rig.open("abcd")
        name = next(iter(idle))
        asking = [session.ask, session.submit, rig.engine.submit_many]
        for ask in [*asking, *([session.flash] if name == "stop" else [])]:
            with pytest.raises(InvalidInput, match=rf"^{name}=.* with choices"):
                ask("q", choices=CHOICES, **idle)  # pyright: ignore
        assert rig.engine.run() == 0

    def test_max_tokens_bounds_each_choice(self) -> None:
        rig = Rig()
        session = rig.open("abcd")
        with pytest.raises(InvalidInput, match=r"max_tokens=1: the choice 'bc' has 2 tokens"):
            session.ask("q", choices=CHOICES, max_tokens=1)
        future = session.submit("q", choices=CHOICES, max_tokens=2)
        rig.engine.run()
        assert future.result(timeout=0).text in CHOICES

    @pytest.mark.parametrize(("max_tokens", "source"), [(2, "flash"), (1, "computed")])
    def test_max_tokens_bounds_a_hit_too(self, max_tokens: int, source: str) -> None:
        rig = Rig()
        session = rig.open("abcd")
        session.flash("q", choices=CHOICES, max_tokens=5)
        rig.engine.run()
        future = session.submit("q", max_tokens=max_tokens)
        rig.engine.run()
        answer = future.result(timeout=0)
        assert answer.source == source
        assert len(answer.token_ids) <= max_tokens

    def test_registered_choices_outlive_a_restart(self, tmp_path: pytest.TempPathFactory) -> None:
        """Whatever bound they were registered with."""
        rig = Rig(journal=tmp_path / "kept")  # pyright: ignore
        session = rig.open("abcd", id="s")
        session.flash("q", choices=CHOICES, max_tokens=8)
        rig.engine.run()
        rig.engine.close()
        again = Rig(journal=tmp_path / "kept")  # pyright: ignore
        assert not again.engine.recovery.unasked
        session = again.engine.session("s")
        (kept,) = session.flashes()
        assert session.flash("q", choices=CHOICES, max_tokens=9).id == kept.id


class TestSeeds:
    def test_none_draws_a_fresh_one_and_says_which(self) -> None:
        model = tiny_model()
        with jaxstate.Engine(model, warm_up=False, cells=256, session_cells=256) as engine:
            session = engine.open()
            session.push("abc")
            drawn = [session.ask("q", max_tokens=6, temperature=5.0) for _ in range(4)]
            assert len({answer.seed for answer in drawn}) == 4
            assert len({answer.token_ids for answer in drawn}) > 1
            first = drawn[0]
            again = session.ask("q", max_tokens=6, temperature=5.0, seed=first.seed)
            assert (again.token_ids, again.seed) == (first.token_ids, first.seed)
            greedy = session.ask("q", max_tokens=6, seed=7)
            assert greedy.seed is None
            assert greedy.token_ids == session.ask("q", max_tokens=6).token_ids


class TestTexts:
    @pytest.mark.parametrize(
        ("entries", "message"),
        [
            (b"abc", r"entry is bytes, and must be a str: decode it first"),
            (bytearray(b"abc"), "entry is bytearray"),
            (3, r"entry=3 is int, and must be a str"),
            (None, r"entry=None is NoneType"),
            (["a", b"b"], r"entries\[1\] is bytes"),
            (["a", 3], r"entries\[1\]=3 is int, and must be a str"),
            ({"a": 1}, r"entries is dict, and must be a str or a list of them"),
            (iter("ab"), r"list\(entries\) makes one"),
        ],
    )
    def test_what_is_no_text_is_called_what_it_is(self, entries: object, message: str) -> None:
        rig = Rig()
        session = rig.open("abcd")
        with pytest.raises(InvalidInput, match=message):
            session.push(entries)  # pyright: ignore
        assert session.info().pending == 0

    def test_what_no_session_holds_costs_no_tokens(self, monkeypatch: pytest.MonkeyPatch) -> None:
        rig = Rig()
        session = rig.open("abcd")
        most = 64 * FAKE_LIMITS.session_cells
        made: list[str] = []
        monkeypatch.setattr(
            "jaxstate.text.Template.entry_tokens", lambda *given: made.append(str(given)) or []
        )
        for entries in ("x" * (most + 1), ["x" * most, "x"]):
            with pytest.raises(CapacityExceeded, match=r"no tokens were made of it"):
                session.push(entries)
        assert not made
        session.push("x" * most)
        assert made
        with pytest.raises(CapacityExceeded, match="prefix has"):
            rig.engine.open(prefix="x" * (most + 1))
        with pytest.raises(PromptTooLong, match="question has"):
            session.ask("x" * (64 * FAKE_LIMITS.tail_cells + 1))

    def test_a_question_is_checked_without_being_asked(self) -> None:
        rig = Rig()
        session = rig.open("abcd")
        assert session.check("xyz", max_tokens=4) == 3
        with pytest.raises(PromptTooLong):
            session.check("xyz", max_tokens=10_000)
        assert rig.engine.run() == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: jaxstate.load(None), "source=None is NoneType"),
        (lambda m: jaxstate.load(""), "source is empty"),
        (lambda m: jaxstate.load("gemma3-270m", steps=3), "steps=3 is int"),
        (lambda m: jaxstate.load("gemma3-270m", ignore="a"), "ignore='a' must be a list"),
        (lambda m: jaxstate.load("gemma3-270m", template=3), "template=3 must be"),
        (lambda m: jaxstate.init_state(3), "model=3 is int"),
        (lambda m: jaxstate.extend(m, 3, [1]), "state=3 is int"),
        (lambda m: jaxstate.query(m, None, [1]), "state=None is NoneType"),
        (lambda m: jaxstate.save_state(3, m, jaxstate.init_state(m, 32)), "path=3 is int"),
        (lambda m: jaxstate.restore_state("", m), "path is empty"),
        (lambda m: jaxstate.Engine(3), "model=3 is int"),
        (lambda m: jaxstate.Engine(m, config=3), "config=3 is int"),
        (lambda m: jaxstate.Engine(m, progress=3), "progress=3 must be a function"),
        (lambda m: jaxstate.Engine(m, journal=3), "journal=3 is int"),
        (lambda m: jaxstate.StepConfig(extend_tokens=64), "extend_tokens=64 must be a tuple"),
        (lambda m: jaxstate.StepConfig(block_cells="a"), "block_cells='a' must be a positive"),
    ],
)
def test_wrong_types_in_the_callers_words(call: object, message: str) -> None:
    with pytest.raises(InvalidInput, match=re.escape(message)):
        call(tiny_model())  # pyright: ignore


def test_wrong_types_of_an_engine() -> None:
    rig = Rig()
    session = rig.open("abcd")
    for call, message in (
        (lambda: rig.engine.open(flash="what?"), "flash='what?' must be a list of questions"),
        (lambda: rig.engine.submit_many("q", 3), "sessions=3 must be a list of sessions"),
        (lambda: rig.engine.submit_many("q", session), "must be a list of sessions"),
        (lambda: rig.engine.submit_many("q", ["s"]), "sessions[0]='s' is str"),
        (lambda: rig.engine.restore(3), "path=3 is int"),
        (lambda: session.save(3), "path=3 is int"),
        (lambda: session.flash("q", when=3), "when=3 must be one of"),
        (lambda: session.flash("q", on_fire=3), "on_fire=3 must be a function"),
        (lambda: session.ask(b"q"), "question is bytes"),
    ):
        with pytest.raises(InvalidInput, match=re.escape(message)):
            call()  # pyright: ignore


class TestPending:
    """What was pushed is committed or pending, at every moment."""

    @given(
        entries=st.lists(st.text("ab", min_size=0, max_size=30), min_size=1, max_size=12),
        turns=st.lists(st.integers(0, 3), min_size=1, max_size=12),
    )
    def test_version_and_pending_are_all_that_was_pushed(
        self, entries: list[str], turns: list[int]
    ) -> None:
        rig = Rig()
        session, pushed = rig.open(), 0
        for number, text in enumerate(entries):
            receipt = session.push(text)
            pushed += 1
            assert max(0, session.version) + receipt.pending == pushed
            for _ in range(turns[number % len(turns)]):
                rig.engine.turn()
                info = session.info()
                assert info.version + info.pending == pushed
                gauges = rig.engine.metrics().gauges
                assert (gauges.pending_entries, gauges.pending_tokens) == (
                    info.pending,
                    info.pending_tokens,
                )
                assert (info.pending == 0) == (info.lag_s == 0.0) or rig.clock() == 0
                assert info.pending > 0 or info.pending_tokens == 0
        rig.engine.run()
        info = session.info()
        assert (info.version, info.pending, info.pending_tokens) == (pushed, 0, 0)


class TestRecords:
    """Everything that callers get back has a form that JSON takes."""

    def test_answers_receipts_and_facts(self) -> None:
        rig = Rig()
        session = rig.open("abcd")
        future = session.submit("q", choices=["a"])
        rig.engine.run()
        answer = future.result(timeout=0)
        kept = json.loads(json.dumps(answer.as_dict(), allow_nan=False))
        assert kept["confidence"] is None  # infinite: there was one choice
        assert (kept["text"], kept["version"], kept["token_ids"]) == ("a", 1, [97])
        assert kept["usage"] == answer.usage.as_dict()
        receipt = session.push("x")
        assert receipt.as_dict() == {
            "first": 2, "last": 2, "pending": 1, "durable": "memory", "dropped": [],
        }  # fmt: skip
        assert session.info().as_dict()["id"] == session.id
        json.dumps(rig.engine.recovery.as_dict(), allow_nan=False)

    def test_events_are_named(self) -> None:
        rig = Rig()
        session = rig.open("abcd")
        heard = session.subscribe()
        session.flash("q")
        session.push("x")
        rig.engine.run()
        session.close()
        rig.engine.run()
        told = []
        while (event := heard.poll()) is not None:
            told.append(json.loads(json.dumps(event.as_dict(), allow_nan=False)))
        assert {"connected", "data_updated", "flash_ready", "closed"} == {t["event"] for t in told}
        flash = next(one for one in told if one["event"] == "flash_ready")
        assert flash["answer"]["version"] == session.version

    def test_the_functional_result(self) -> None:
        model = tiny_model()
        state = jaxstate.extend(model, jaxstate.init_state(model, 32), [1, 2])
        kept = jaxstate.query(model, state, [3], max_tokens=2).as_dict()
        json.dumps(kept, allow_nan=False)
        assert len(kept["logits"]) == model.config.vocab_size  # pyright: ignore

    def test_what_people_see_of_objects(self) -> None:
        model = tiny_model()
        state = jaxstate.init_state(model, 32)
        assert "32 cells" in repr(state) and len(repr(state)) < 120
        assert len(repr(model)) < 160 and "parameters" in repr(model)
        with jaxstate.Engine(model, warm_up=False, cells=64) as engine:
            engine.open("web")
            assert "1 sessions" in repr(engine) and "of 64 cells" in repr(engine)
            assert len(repr(engine.metrics())) < 300
        assert "closed" in repr(engine)
        assert repr(jaxstate.AsyncEngine(model)) == "AsyncEngine(not entered)"


def test_an_option_that_there_is_not_is_named_in_the_callers_words() -> None:
    rig = Rig()
    session = rig.open("abcd")
    for call, name in (
        (session.ask, "Session.ask"),
        (session.submit, "Session.submit"),
        (session.check, "Session.check"),
        (session.flash, "Session.flash"),
        (rig.engine.ask_many, "Engine.ask_many"),
        (rig.engine.submit_many, "Engine.submit_many"),
        (rig.engine.open, "Engine.open"),
        (jaxstate.AsyncEngine, "AsyncEngine"),
    ):
        with pytest.raises(TypeError, match=rf"^{name}\(\) got .*'maxtokens'; it takes ") as error:
            call("q", maxtokens=1)  # pyright: ignore
        known = "prefix" if "open" in name else "cells" if name == "AsyncEngine" else "max_tokens"
        assert known in str(error.value)
    assert [one.id for one in rig.engine.sessions()] == [session.id] and session.flashes() == []
