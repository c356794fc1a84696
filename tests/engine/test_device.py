"""The executor on a real device, through the protocol alone."""

from __future__ import annotations

import functools
from pathlib import Path

import jax
import numpy as np
import pytest
from numpy.typing import NDArray

import jaxstate
from jaxstate.engine.device import DeviceExecutor
from jaxstate.engine.executor import Candidate, Executor, RowStep, RowTokens
from jaxstate.errors import CapacityExceeded, FingerprintMismatch, InvalidInput
from jaxstate.model.bundle import Model
from jaxstate.records import QueryResult, Sampling
from jaxstate.steps import engine_steps
from jaxstate.steps.functional import session_steps
from jaxstate.steps.spec import StepSpec
from jaxstate.testing import TINY_CONFIG, TINY_STEPS
from tests.reference import log_softmax, random_model
from tests.test_compile_once import counting_compilations

CELLS = 61  # as in the tests of rows: the same steps
STREAM = np.random.default_rng(50).integers(0, 256, CELLS).astype(np.int32)
ASKED = [np.array(tokens, np.int32) for tokens in ([1, 2, 3], [9], [200, 4, 5, 6])]


@functools.cache
def model() -> Model:
    return random_model(TINY_CONFIG, TINY_STEPS, seed=50)


def executor() -> Executor:
    return DeviceExecutor(model(), session_cells=CELLS)


def push(device: Executor, session: int, tokens: NDArray[np.int32]) -> None:
    size = device.limits.extend_tokens
    waiting = [
        device.extend(session, tokens[start : start + size])
        for start in range(0, len(tokens), size)
    ]
    for pending in waiting:
        assert pending.get() is None


def filled(length: int, session: int = 0) -> Executor:
    device = executor()
    device.open(session)
    push(device, session, STREAM[:length])
    return device


def reading(index: int, tokens: NDArray[np.int32], used: int = 0, seed: int = 0) -> RowTokens:
    """The row in blocks 8 * index and following."""
    sampling = Sampling(temperature=0.8 if seed else 0.0, seed=seed)
    blocks = tuple(range(8 * index, 8 * index + 8))
    return RowTokens(blocks=blocks, used_cells=used, tokens=tokens, sampling=sampling)


def stepping(row: RowTokens, used: int) -> RowStep:
    return RowStep(blocks=row.blocks, used_cells=used, sampling=row.sampling)


def session(tokens: NDArray[np.int32]) -> jaxstate.SessionState:
    """What a session of the engine holds, as the functional core builds it."""
    state = session_steps(model(), CELLS, TINY_STEPS.extend_tokens[-1]).open()
    return jaxstate.extend(model(), state, tokens) if len(tokens) else state


def alone(length: int, tokens: NDArray[np.int32], max_tokens: int = 5) -> QueryResult:
    return jaxstate.query(model(), session(STREAM[:length]), tokens, max_tokens=max_tokens)


def answers(device: Executor, session: int, seen: int, count: int = 5) -> list[list[int]]:
    """What each of `ASKED` gets, all in one batch; after a stop token, -1."""
    rows = [reading(index, tokens) for index, tokens in enumerate(ASKED)]
    chosen = [device.start(session, seen, rows).get()]
    for more in range(count - 1):
        steps = [stepping(row, len(row.tokens) + more) for row in rows]
        chosen.append(device.decode(session, seen, steps).get())
    return [[-1 if c.done[i] else int(c.tokens[i]) for c in chosen] for i in range(len(ASKED))]


def expected(length: int, count: int = 5) -> list[list[int]]:
    found = [alone(length, tokens, count).tokens.tolist() for tokens in ASKED]
    return [tokens + [-1] * (count - len(tokens)) for tokens in found]


def test_limits_are_those_of_the_step_config() -> None:
    limits = executor().limits
    assert (limits.session_cells, limits.max_context) == (CELLS, TINY_CONFIG.max_context)
    assert (limits.extend_tokens, limits.question_tokens, limits.choice_tokens) == (16, 16, 8)
    assert (limits.rows, limits.start_rows) == (4, ((4, 4), (16, 1)))
    assert (limits.tail_cells, limits.tail_blocks, limits.tail_block_cells) == (32, 32, 4)


def test_the_bytes_of_a_session_are_those_of_its_pool() -> None:
    device = DeviceExecutor(model(), session_cells=CELLS)
    device.open(0)
    state = device._sessions[0].state
    assert device.session_bytes() == sum(leaf.nbytes for leaf in jax.tree.leaves(state.pool))


@pytest.mark.parametrize("length", [0, 1, 16, 30])
def test_a_batch_is_answered_as_questions_alone(length: int) -> None:
    device = filled(length)
    assert answers(device, 0, length) == expected(length)


def test_results_may_be_fetched_late_and_in_any_order() -> None:
    """Steps are launched on each other's results; also past an extend that takes the cells over."""
    device = filled(20)
    row = reading(0, ASKED[0])
    pending = [device.start(0, 20, [row])]
    for used in range(3, 7):
        pending.append(device.decode(0, 20, [stepping(row, used)]))
        written = device.extend(0, STREAM[20 + used : 21 + used])
    written.get()
    found = [int(one.get().tokens[0]) for one in reversed(pending)][::-1]
    assert [*found, *[-1] * (5 - len(found))] == expected(20)[0]
    assert pending[0].get().tokens.tolist() == found[:1]


def test_long_questions_go_on() -> None:
    device = filled(20)
    tokens = np.arange(30, dtype=np.int32)
    device.start(0, 20, [reading(1, tokens[:16])])
    chosen = device.more(0, 20, reading(1, tokens[16:], used=16)).get()
    result = alone(20, tokens, 1)
    assert chosen.tokens.tolist() == result.tokens.tolist()
    np.testing.assert_allclose(chosen.logprobs, result.logprobs, atol=1e-5)
    assert chosen.gaps.dtype == chosen.logprobs.dtype == np.float32
    assert (chosen.tokens.dtype, chosen.done.dtype) == (np.int32, np.bool_)


def test_sampled_rows_are_those_of_query() -> None:
    device = filled(20)
    rows = [reading(index, tokens, seed=index + 1) for index, tokens in enumerate(ASKED)]
    chosen = device.start(0, 20, rows).get()
    state = session(STREAM[:20])
    for index, row in enumerate(rows):
        result = jaxstate.query(model(), state, row.tokens, 1, sampling=row.sampling)
        assert result.tokens.tolist() == [int(chosen.tokens[index])] or chosen.done[index]


def test_logits_need_no_blocks_and_disturb_no_row() -> None:
    device = filled(20)
    row = reading(0, ASKED[0])
    device.start(0, 20, [row])
    bare = [RowTokens(blocks=(), used_cells=0, tokens=t, sampling=Sampling()) for t in ASKED]
    found = device.logits(0, 20, bare).get()
    assert (found.shape, found.dtype) == ((3, TINY_CONFIG.vocab_size), np.float32)
    for tokens, logprobs in zip(ASKED, found, strict=True):
        logits = log_softmax(alone(20, tokens, 1).logits.astype(np.float64))
        np.testing.assert_allclose(logprobs, logits, atol=1e-5)
    second = device.decode(0, 20, [stepping(row, 3)]).get()
    assert second.tokens[0] == expected(20)[0][1] or second.done[0]


def test_candidates_are_scored_after_their_question() -> None:
    device = filled(20)
    asked = np.array([1, 2, 3, 4, 5, 6], np.int32)
    row = reading(2, asked[:-1])
    device.start(0, 20, [row])
    choices = [np.array(tokens, np.int32) for tokens in ([7], [7, 8], [200])]
    candidates = [
        Candidate(blocks=row.blocks, used_cells=5, last_token=6, tokens=tokens)
        for tokens in choices
    ]
    totals = device.score(0, 20, candidates).get()
    assert (totals.shape, totals.dtype) == ((3,), np.float32)
    first = log_softmax(alone(20, asked, 1).logits.astype(np.float64))
    second = log_softmax(alone(20, np.append(asked, 7), 1).logits.astype(np.float64))
    np.testing.assert_allclose(totals, [first[7], first[7] + second[8], first[200]], atol=1e-4)


def test_a_copy_is_its_own() -> None:
    device = filled(20)
    device.copy(0, into=1)
    push(device, 0, STREAM[20:25])
    push(device, 1, STREAM[40:44])
    assert answers(device, 0, 25) == expected(25)
    device.copy(1, into=2)
    device.close(1)
    state = session(np.concatenate([STREAM[:20], STREAM[40:44]]))
    result = jaxstate.query(model(), state, ASKED[0], max_tokens=1)
    assert answers(device, 2, 24, 1)[0] == (result.tokens.tolist() or [-1])


def test_an_old_version_can_be_asked_until_its_cells_go() -> None:
    device = filled(24)
    until = device.readable_until(24)
    assert until >= 24 + device.limits.extend_tokens
    push(device, 0, STREAM[24:until])
    assert answers(device, 0, 24) == expected(24)
    push(device, 0, STREAM[until : until + 1])
    with pytest.raises(AssertionError, match="24 cells are to be seen"):
        answers(device, 0, 24)
    with pytest.raises(AssertionError, match="are to be seen"):
        answers(device, 0, CELLS)


@pytest.mark.parametrize("length", [0, 1, 24, CELLS - 4])
def test_saving_and_restoring(tmp_path: Path, length: int) -> None:
    """Into another executor, and into sessions without slack; pinned rows work after it."""
    device = filled(length)
    write = device.capture(0, {"entries": 3})
    device.close(0)  # what was captured does not need it any more
    write(tmp_path / "s")
    assert jaxstate.inspect_snapshot(tmp_path / "s").notes == {"entries": 3}
    other = executor()
    saved = other.load(tmp_path / "s")
    assert saved.notes == {"entries": 3}
    assert saved.place(7) == length
    assert answers(other, 7, length, 3) == expected(length, 3)
    push(other, 7, STREAM[length : length + 4])
    assert answers(other, 7, length, 3) == expected(length, 3)
    assert answers(other, 7, length + 4, 3) == expected(length + 4, 3)
    state = jaxstate.restore_state(tmp_path / "s", model())
    assert int(state.length) == length
    assert state.layout.slack_cells == 0
    jaxstate.save_state(tmp_path / "t", model(), state)
    assert other.load(tmp_path / "t").place(8) == length
    assert answers(other, 8, length, 2) == expected(length, 2)


def test_what_cannot_be_restored_makes_no_session(tmp_path: Path) -> None:
    filled(20).capture(0, {})(tmp_path / "s")
    small = DeviceExecutor(model(), session_cells=19)
    with pytest.raises(CapacityExceeded):
        small.load(tmp_path / "s")
    foreign = DeviceExecutor(random_model(TINY_CONFIG, TINY_STEPS, seed=51), session_cells=CELLS)
    with pytest.raises(FingerprintMismatch):
        foreign.load(tmp_path / "s")
    for device in (small, foreign):
        device.open(0)


def test_a_step_that_fails_after_it_took_the_rows_over() -> None:
    """The pool of all rows is donated to the step; without a new one nobody could ask again."""
    device = DeviceExecutor(model(), session_cells=CELLS)
    device.open(0)
    push(device, 0, STREAM[:9])
    assert not device.recover(), "nothing is lost yet"
    expected = device.start(0, 9, [reading(0, STREAM[:3])]).get()
    jax.tree.map(lambda leaf: leaf.delete(), device._pool)
    with pytest.raises(RuntimeError, match="deleted"):
        device.start(0, 9, [reading(0, STREAM[:3])])
    assert device.recover()
    again = device.start(0, 9, [reading(0, STREAM[:3])]).get()
    np.testing.assert_array_equal(again.tokens, expected.tokens)
    assert not device.recover()


def test_impossible_capacities_are_refused() -> None:
    with pytest.raises(InvalidInput, match="cells="):
        DeviceExecutor(model(), session_cells=TINY_CONFIG.max_context + 1)


def life(device: Executor, path: Path) -> None:
    """Everything that the protocol offers, in every shape that the limits allow."""
    limits = device.limits
    device.open(0)
    for size in range(1, limits.extend_tokens + 1):
        device.copy(0, into=size)
        push(device, size, STREAM[:size])
        device.close(size)
    push(device, 0, STREAM[:22])
    for tokens, rows in limits.start_rows:
        for count in range(1, rows + 1):
            for size in range(1, tokens + 1):
                batch = [reading(i % 4, STREAM[: max(size - i, 1)]) for i in range(count)]
                device.start(0, 22, batch).get()
                device.logits(0, 21, batch).get()
                steps = [stepping(row, len(row.tokens)) for row in batch]
                device.decode(0, 22, steps).get()
    for used in range(1, limits.tail_cells):
        for count in (1, limits.rows):
            batch = [stepping(reading(i, STREAM[:1]), used) for i in range(count)]
            device.decode(0, 22, batch).get()
        for size in {1, min(limits.question_tokens, limits.tail_cells - used)}:
            device.more(0, 22, reading(0, STREAM[:size], used=used)).get()
    for used in range(limits.tail_cells):
        blocks = tuple(range(8))
        for sizes in ([1], [1, 2], range(limits.choice_tokens - 3, limits.choice_tokens + 1)):
            choices = [
                Candidate(blocks=blocks, used_cells=used, last_token=1, tokens=STREAM[:n])
                for n in sizes
            ]
            device.score(0, 20, choices).get()
    device.capture(0, {"entries": 1})(path)
    device.load(path).place(99)
    device.close(0)


def test_after_warm_up_nothing_compiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is used is in the list, and all that is in the list is used."""
    device, used = DeviceExecutor(model(), session_cells=CELLS), set[StepSpec]()

    def noted(spec: StepSpec) -> object:
        used.add(spec)
        return compiled_step(spec)

    compiled_step = engine_steps.compiled
    monkeypatch.setattr(engine_steps, "compiled", noted)
    seen: list[tuple[int, int]] = []
    device.warm_up(progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (len(device.specs()), len(device.specs()))
    assert len(set(device.specs())) == len(device.specs())
    before = device.compilations()
    jax.clear_caches()
    with counting_compilations() as compiled:
        life(device, tmp_path / "s")
    assert compiled == []
    assert device.compilations() == before
    of_session = {"open", "rows", "read", "write"}
    assert used == {spec for spec in device.specs() if spec.kind not in of_session}


def test_every_upload_is_explicit(tmp_path: Path) -> None:
    device = DeviceExecutor(model(), session_cells=CELLS)
    device.warm_up()
    with jax.transfer_guard_host_to_device("disallow"):
        life(device, tmp_path / "s")
