"""Numbers that are not numbers: whatever the cause, nothing of them is kept, and the session stays
usable at its last good version."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import pytest

import jaxstate
from jaxstate.engine.executor.protocol import Limits
from jaxstate.errors import InvalidInput, NotFinite, StepFailed, UnsupportedModel
from jaxstate.model.loading import load
from jaxstate.testing import FAKE_LIMITS, ByteTokenizer, tiny_config, tiny_model
from tests.engine.rig import AHEAD, Rig
from tests.tiny_directory import write_directory

BAD = "!"


@pytest.fixture(params=[FAKE_LIMITS, AHEAD], ids=["0 ahead", "1 ahead"])
def rig(request: pytest.FixtureRequest) -> Rig:
    limits: Limits = request.param
    rig = Rig(limits=limits)
    rig.executor.spoils = {ord(BAD)}
    return rig


def test_an_entry_that_cannot_be_read_stops_reading_and_nothing_else(rig: Rig) -> None:
    session, other = rig.open("abcd"), rig.open("efgh")
    waiting = session.submit("xyz", min_version=2)
    session.push(["ok", "b!d", "late"])
    other.push("fine")
    rig.engine.run()
    assert session.version == 2 and other.version == 2
    assert waiting.result().version == 2
    info = session.info()
    assert info.stopped is not None and "entry 3 cannot be read" in info.stopped
    assert (info.tokens, info.pending, info.dropped) == (len("abcd\nok\n"), 0, 2)
    assert rig.cells(session) == list(b"abcd\nok\n")
    asked = session.submit("xyz")
    rig.engine.run()
    assert (asked.result().text, asked.result().version) == ("8:3", 2)
    for refused in (
        lambda: session.push("more"),
        lambda: session.submit("xyz", min_version=3),
        lambda: session.waiting(3),
        session.wait,
        session.waiting_fresh,
    ):
        with pytest.raises(StepFailed, match="stays at version 2"):
            refused()
    rig.at_rest()


def test_who_waits_for_what_cannot_be_read_hears_of_it(rig: Rig) -> None:
    session = rig.open("abcd")
    session.push("b!d")
    asked, waited = session.submit("xyz", min_version=2), session.waiting(2)
    fresh = session.waiting_fresh()
    rig.engine.run()
    for future in (asked, waited, fresh):
        with pytest.raises(NotFinite, match=r"entry 2 cannot be read.*Likely causes"):
            future.result(timeout=0)
    assert session.version == 1 and not session.record.closed
    rig.at_rest()


def test_a_long_entry_that_goes_bad_at_its_end_leaves_nothing_of_it(rig: Rig) -> None:
    session = rig.open("abcd")
    session.push("e" * 40 + BAD)
    rig.engine.run()
    assert session.version == 1 and rig.cells(session) == list(b"abcd\n")
    asked = session.submit("xyz")
    rig.engine.run()
    assert asked.result().text == "5:3"


def test_a_question_that_comes_to_nothing_fails_alone(rig: Rig) -> None:
    session = rig.open("abcd")
    good, bad = session.submit("xyz"), session.submit("x!z")
    rig.engine.run()
    assert good.result().text == "5:3"
    with pytest.raises(NotFinite):
        bad.result()
    query = session.flash("y!y")
    rig.engine.run()
    assert query.answer is None and "not finite" in str(query.error)
    rig.at_rest()


def test_cells_that_may_be_why_are_computed_again_once(rig: Rig) -> None:
    """A device that has spoiled the cells: the question fails, the next one is answered."""
    session = rig.open("abcd")
    bad = session.submit("x!z")
    rig.engine.run()
    with pytest.raises(NotFinite):
        bad.result()
    assert session.info().residency == "log"
    again = session.submit("x!z")
    rig.engine.run()
    with pytest.raises(NotFinite):
        again.result()
    assert "extend s1 5" in rig.news()
    assert session.info().residency == "device", "once for a version"


def spoiled(name: str) -> jaxstate.Model:
    """A model with NaN in its embedding of one byte."""
    model = tiny_model(tiny_config(tied_embeddings=False))
    flat = jax.tree_util.tree_flatten_with_path(model.params)[0]
    (path,) = [path for path, _ in flat if "embed" in jax.tree_util.keystr(path).lower()]
    params = jax.tree_util.tree_map_with_path(
        lambda at, leaf: leaf.at[ord(name)].set(jnp.nan) if at == path else leaf, model.params
    )
    return dataclasses.replace(model, params=params)


def test_on_a_real_device() -> None:
    model = spoiled(BAD)
    with jaxstate.Engine(model, warm_up=False, cells=256, sessions=4) as engine:
        session, other = engine.open(prefix="p"), engine.open(prefix="q")
        session.push("good")
        session.wait(timeout=60)
        before = session.ask("Q", max_tokens=4).token_ids
        session.push("b!d")
        with pytest.raises(StepFailed, match="cannot be read"):
            session.wait(timeout=60)
        with pytest.raises(StepFailed):
            session.ask("what!", max_tokens=2)
        with pytest.raises(StepFailed):
            session.ask("what!", choices=["a", "b"])
        assert session.ask("Q", max_tokens=4).token_ids == before
        other.push("fine")
        assert other.ask("Q", min_version=1, max_tokens=2).version == 1


def test_in_the_functional_core(tmp_path: object) -> None:
    model = spoiled(BAD)
    state = jaxstate.extend(model, jaxstate.init_state(model, 64), [1, 2, ord(BAD)])
    for call in (
        lambda: jaxstate.query(model, state, [1, 2], 2),
        lambda: jaxstate.ready_logits(model, state),
        lambda: jaxstate.save_state(f"{tmp_path}/never", model, state),
    ):
        with pytest.raises(NotFinite):
            call()


class _OneTooMany(ByteTokenizer):
    """Makes a token that the model has no row for."""

    def encode(self, text: str, place: object = "start") -> list[int]:
        return [300 if byte == ord(BAD) else byte for byte in text.encode()]


def test_tokens_that_the_model_has_not_are_refused_at_every_entrance() -> None:
    model = dataclasses.replace(tiny_model(), tokenizer=_OneTooMany())
    with jaxstate.Engine(model, warm_up=False, cells=256, sessions=2) as engine:
        with pytest.raises(InvalidInput, match="token 300"):
            engine.open(prefix="a!")
        session = engine.open()
        for refused in (
            lambda: session.push("a!"),
            lambda: session.ask("a!"),
            lambda: session.ask("a", choices=["!", "b"]),
            lambda: session.flash("a!"),
        ):
            with pytest.raises(InvalidInput, match="token 300"):
                refused()
    with pytest.raises(InvalidInput):
        jaxstate.extend(model, jaxstate.init_state(model, 64), [300])


def test_a_tokenizer_that_makes_them_is_refused_at_load(tmp_path_factory: object) -> None:
    import json
    import tempfile
    from pathlib import Path

    path = write_directory(Path(tempfile.mkdtemp()) / "m")
    spec = json.loads((path / "tokenizer.json").read_text(encoding="utf-8"))
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    entry = {"id": 258, "content": "ACME", "special": True, **flags}
    (path / "tokenizer.json").write_text(
        json.dumps({**spec, "added_tokens": [*spec["added_tokens"], entry]}), encoding="utf-8"
    )
    load(path)  # a special token: no text becomes it
    entry["special"] = False
    (path / "tokenizer.json").write_text(
        json.dumps({**spec, "added_tokens": [*spec["added_tokens"], entry]}), encoding="utf-8"
    )
    with pytest.raises(UnsupportedModel, match=r"258 \('ACME'\); the model has 258"):
        load(path)


def test_a_range_that_a_family_exceeds_is_refused() -> None:
    from jaxstate.model.loading import _checked_range  # pyright: ignore[reportPrivateUsage]

    gemma = dataclasses.replace(tiny_config(), family="gemma3")
    with pytest.raises(InvalidInput, match="bfloat16"):
        _checked_range(gemma, jnp.dtype(jnp.float16))
    for kind in (jnp.bfloat16, jnp.float32):
        assert _checked_range(gemma, jnp.dtype(kind)) == kind
