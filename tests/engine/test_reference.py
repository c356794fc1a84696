"""What the engine is compared with lets a tie pass, and nothing else."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import jaxstate
from jaxstate.engine.requests.encoding import PromptEncoder, settings_of
from jaxstate.testing import reference
from jaxstate.testing.reference import Reference
from jaxstate.testing.tiny import tiny_model


def test_a_tie_is_let_pass_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    with jaxstate.Engine(model, cells=256, session_cells=64, warm_up=False) as engine:
        session = engine.open()
        session.push("ab")
        session.wait()
        answer = session.ask("x", max_tokens=4, stop=[])
        encoder: PromptEncoder = session._encoder
        asked = encoder.ask("x", settings_of(max_tokens=4, stop=[]))
        log = session.record.residence.log
        read = tuple(int(token) for token in log.tokens(0, len(log)))
    one = Reference(model, 64)
    one.check(answer, read, asked)
    other = (answer.token_ids[0] + 1) % 256
    wrong = dataclasses.replace(answer, token_ids=(other, *answer.token_ids[1:]))
    with pytest.raises(AssertionError, match="behind the likeliest"):
        one.check(wrong, read, asked)
    monkeypatch.setattr(reference, "_TIE", np.inf)
    one.check(wrong, read, asked)
    with pytest.raises(AssertionError, match="longer or shorter"):
        one.check(dataclasses.replace(answer, token_ids=answer.token_ids[:-1]), read, asked)
