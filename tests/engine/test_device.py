"""The executor on a real device, through the protocol alone: one session, and what is not steps.

Steps that serve several sessions: `test_grouped`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import pytest
from numpy.typing import NDArray

import jaxstate
from jaxstate.cells.tables import GroupBlock
from jaxstate.engine.executor.device import DeviceExecutor
from jaxstate.engine.executor.protocol import (
    HostCells,
    Lost,
    Pending,
    StepOutput,
)
from jaxstate.errors import CapacityExceeded, FingerprintMismatch, InvalidInput
from jaxstate.model.bundle import Model
from jaxstate.records import QueryResult, Sampling
from jaxstate.steps import engine_steps
from jaxstate.steps.functional import session_steps
from jaxstate.steps.packing import Row
from jaxstate.steps.spec import StepSpec
from jaxstate.testing import TINY_CONFIG, TINY_STEPS
from tests.engine.device_sessions import DeviceSessions
from tests.reference import log_softmax, random_model
from tests.test_compile_once import counting_compilations

CELLS = 61  # as in the tests of rows: the same steps
POOL_CELLS = 512
STREAM = np.random.default_rng(50).integers(0, 256, CELLS).astype(np.int32)
ASKED = [np.array(tokens, np.int32) for tokens in ([1, 2, 3], [9], [200, 4, 5, 6])]


@functools.cache
def model() -> Model:
    return random_model(TINY_CONFIG, TINY_STEPS, seed=50)


def executor(
    own: Model | None = None, session_cells: int = CELLS, *, poison: bool = True
) -> DeviceExecutor:
    return DeviceExecutor(
        own or model(),
        session_cells=session_cells,
        cells=POOL_CELLS,
        sessions=8,
        poison=poison,
    )


def push(device: DeviceSessions, name: int, tokens: NDArray[np.int32]) -> None:
    """All chunks are launched before the first is waited for."""
    size = device.executor.limits.extend_tokens
    waiting = [
        device.executor.run("extend", [device.chunk(name, tokens[start : start + size].tolist())])
        for start in range(0, len(tokens), size)
    ]
    for pending in waiting:
        assert pending.get().finite.all()


def filled(length: int, name: int = 0) -> DeviceSessions:
    device = DeviceSessions(executor())
    device.open(name)
    push(device, name, STREAM[:length])
    return device


def reading(
    device: DeviceSessions,
    index: int,
    tokens: NDArray[np.int32],
    used: int = 0,
    *,
    name: int = 0,
    seen: int | None = None,
    seed: int = 0,
) -> Row:
    """The row in blocks 8 * index and following."""
    return Row(
        seen=device.seen(name, seen),
        blocks=tuple(range(8 * index, 8 * index + 8)),
        used_cells=used,
        tokens=tokens,
        sampling=Sampling(temperature=0.8 if seed else 0.0, seed=seed),
    )


def stepping(row: Row, used: int) -> Row:
    return dataclasses.replace(row, tokens=np.zeros(0, np.int32), used_cells=used)


def session(tokens: NDArray[np.int32]) -> jaxstate.SessionState:
    """What a session of the engine holds, as the functional core builds it."""
    state = session_steps(model(), CELLS, TINY_STEPS.extend_tokens[-1]).open()
    return jaxstate.extend(model(), state, tokens) if len(tokens) else state


def alone(length: int, tokens: NDArray[np.int32], max_tokens: int = 5) -> QueryResult:
    return jaxstate.query(model(), session(STREAM[:length]), tokens, max_tokens=max_tokens)


def answers(device: DeviceSessions, name: int, seen: int, count: int = 5) -> list[list[int]]:
    """What each of `ASKED` gets, all in one batch; after a stop token, -1."""
    rows = [reading(device, n, tokens, name=name, seen=seen) for n, tokens in enumerate(ASKED)]
    chosen = [device.executor.run("start", rows).get()]
    for more in range(count - 1):
        steps = [stepping(row, len(row.tokens) + more) for row in rows]
        chosen.append(device.executor.run("decode", steps).get())
    return [[-1 if c.done[i] else int(c.tokens[i]) for c in chosen] for i in range(len(ASKED))]


def expected(length: int, count: int = 5) -> list[list[int]]:
    found = [alone(length, tokens, count).tokens.tolist() for tokens in ASKED]
    return [tokens + [-1] * (count - len(tokens)) for tokens in found]


def test_limits_are_those_of_the_step_config() -> None:
    limits = executor().limits
    assert (limits.session_cells, limits.max_context) == (CELLS, TINY_CONFIG.max_context)
    assert (limits.sessions, limits.itemsize) == (8, 4)
    assert (limits.extend_tokens, limits.question_tokens, limits.choice_tokens) == (16, 16, 8)
    assert limits.chunk_rows == ((4, (1, 4)), (16, (1, 4)))
    assert (limits.step_sessions, limits.session_rows) == (4, 2)
    assert (limits.rows, limits.start_rows) == (4, ((4, 4), (16, 4)))
    assert (limits.tail_cells, limits.tail_blocks, limits.tail_block_cells) == (32, 32, 4)


def test_the_bytes_of_a_pool_are_those_of_its_arrays() -> None:
    """512 cells of the layer that sees everything; 8 rings of 7 blocks of the other one."""
    device = executor()
    layout, itemsize = device.limits.layout, device.limits.itemsize
    assert layout.group_blocks == (8 * 7, POOL_CELLS // 4)
    leaves = jax.tree.leaves(device._pool.cells)
    assert layout.pool_bytes(itemsize) == sum(leaf.nbytes for leaf in leaves)


@pytest.mark.parametrize("length", [0, 1, 16, 30])
def test_a_batch_is_answered_as_questions_alone(length: int) -> None:
    device = filled(length)
    assert answers(device, 0, length) == expected(length)


def test_results_may_be_fetched_late_and_in_any_order() -> None:
    """Steps are launched on each other's results; also past an extend that takes the cells over."""
    device = filled(20)
    row = reading(device, 0, ASKED[0])
    pending, written = [device.executor.run("start", [row])], list[Pending[StepOutput]]()
    for used in range(3, 7):
        pending.append(device.executor.run("decode", [stepping(row, used)]))
        chunk = device.chunk(0, STREAM[20 + used : 21 + used].tolist())
        written.append(device.executor.run("extend", [chunk]))
    written[-1].get()
    found = [int(one.get().tokens[0]) for one in reversed(pending)][::-1]
    assert [*found, *[-1] * (5 - len(found))] == expected(20)[0]
    assert pending[0].get().tokens.tolist() == found[:1]


def test_long_questions_go_on() -> None:
    device = filled(20)
    tokens = np.arange(30, dtype=np.int32)
    device.executor.run("start", [reading(device, 1, tokens[:16])])
    chosen = device.executor.run("more", [reading(device, 1, tokens[16:], used=16)]).get()
    result = alone(20, tokens, 1)
    assert chosen.tokens.tolist() == result.tokens.tolist()
    np.testing.assert_allclose(chosen.logprobs, result.logprobs, atol=1e-5)
    assert chosen.gaps.dtype == chosen.logprobs.dtype == np.float32
    assert (chosen.tokens.dtype, chosen.done.dtype) == (np.int32, np.bool_)


def test_sampled_rows_are_those_of_query() -> None:
    device = filled(20)
    rows = [reading(device, n, tokens, seed=n + 1) for n, tokens in enumerate(ASKED)]
    chosen = device.executor.run("start", rows).get()
    state = session(STREAM[:20])
    for index, row in enumerate(rows):
        result = jaxstate.query(model(), state, row.tokens, 1, sampling=row.sampling)
        assert result.tokens.tolist() == [int(chosen.tokens[index])] or chosen.done[index]


def test_candidates_are_scored_after_their_question() -> None:
    device = filled(20)
    asked = np.array([1, 2, 3, 4, 5, 6], np.int32)
    row = reading(device, 2, asked[:-1])
    device.executor.run("start", [row])
    choices = [np.array(tokens, np.int32) for tokens in ([7], [7, 8], [200])]
    candidates = [
        dataclasses.replace(row, used_cells=5, tokens=np.append(asked[-1:], tokens))
        for tokens in choices
    ]
    totals = device.executor.run("score", candidates).get().logprobs
    assert (totals.shape, totals.dtype) == ((3,), np.float32)
    first = log_softmax(alone(20, asked, 1).logits.astype(np.float64))
    second = log_softmax(alone(20, np.append(asked, 7), 1).logits.astype(np.float64))
    np.testing.assert_allclose(totals, [first[7], first[7] + second[8], first[200]], atol=1e-4)


def test_a_copy_is_its_own() -> None:
    device = filled(20)
    device.fork(0, into=1)
    push(device, 0, STREAM[20:25])
    push(device, 1, STREAM[40:44])
    assert answers(device, 0, 25) == expected(25)
    device.fork(1, into=2)
    device.close(1)
    state = session(np.concatenate([STREAM[:20], STREAM[40:44]]))
    result = jaxstate.query(model(), state, ASKED[0], max_tokens=1)
    assert answers(device, 2, 24, 1)[0] == (result.tokens.tolist() or [-1])


def test_an_old_version_can_be_asked_until_its_cells_go() -> None:
    device = filled(24)
    until = device.executor.readable_until(24)
    assert 24 + device.executor.limits.extend_tokens <= until < CELLS
    push(device, 0, STREAM[24:until])
    assert answers(device, 0, 24) == expected(24)
    fetched = device.executor.fetch(device.seen(0), readable_cells=24)
    push(device, 0, STREAM[until : until + 1])
    with pytest.raises(AssertionError, match="overwritten"):
        device.executor.fetch(device.seen(0), readable_cells=24)
    # Even elsewhere, what was copied is enough for the old version and for the newest.
    device.open(1)
    device.tables.grow(device.of[1], until)
    device.executor.place(device.seen(1), fetched)
    assert answers(device, 1, 24) == expected(24)
    assert answers(device, 1, until) == expected(until)


@pytest.mark.parametrize("length", [0, 1, 24, CELLS - 4])
def test_saving_and_restoring(tmp_path: Path, length: int) -> None:
    """Into another executor, and into sessions without slack; pinned rows work after it."""
    device = filled(length)
    cells = device.executor.fetch(device.seen(0), length)
    assert cells.cells == length
    device.close(0)  # what was fetched does not need it any more
    # As a session of the engine is saved: with what its cells were made of.
    also = HostCells(cells=length, arrays={**cells.arrays, "tokens": STREAM[:length]})
    device.executor.save(tmp_path / "s", also if length else cells, {"entries": 3})
    assert jaxstate.inspect_snapshot(tmp_path / "s").notes == {"entries": 3}
    other = DeviceSessions(executor())
    saved = other.executor.load(tmp_path / "s")
    assert saved.notes == {"entries": 3} and saved.cells.cells == length
    assert not length or saved.cells.arrays["tokens"].tolist() == STREAM[:length].tolist()
    placed(other, 7, saved.cells)
    assert answers(other, 7, length, 3) == expected(length, 3)
    push(other, 7, STREAM[length : length + 4])
    assert answers(other, 7, length, 3) == expected(length, 3)
    assert answers(other, 7, length + 4, 3) == expected(length + 4, 3)
    state = jaxstate.restore_state(tmp_path / "s", model())
    assert int(state.length) == length
    assert state.layout.slack_cells == 0
    jaxstate.save_state(tmp_path / "t", model(), state)
    saved = other.executor.load(tmp_path / "t")
    assert saved.cells.cells == length
    placed(other, 8, saved.cells)
    assert answers(other, 8, length, 2) == expected(length, 2)


def placed(device: DeviceSessions, name: int, cells: HostCells) -> None:
    """A session anew, from cells on the host."""
    device.open(name)
    device.tables.grow(device.of[name], cells.cells)
    device.executor.place(device.seen(name), cells)


def test_what_cannot_be_restored_is_refused(tmp_path: Path) -> None:
    device = filled(20)
    device.executor.save(tmp_path / "s", device.executor.fetch(device.seen(0), 20), {})
    with pytest.raises(CapacityExceeded):
        executor(session_cells=19).load(tmp_path / "s")
    with pytest.raises(FingerprintMismatch):
        executor(random_model(TINY_CONFIG, TINY_STEPS, seed=51)).load(tmp_path / "s")
    assert executor().load(tmp_path / "s").cells.cells == 20


def test_a_step_that_fails_after_it_took_the_rows_over() -> None:
    """The pool of all rows is donated to the step; without a new one nobody could ask again."""
    device = filled(9)
    assert device.executor.recover() == Lost(rows=False, cells=False), "nothing is lost yet"
    rows = [reading(device, 0, STREAM[:3])]
    expected = device.executor.run("start", rows).get()
    jax.tree.map(lambda leaf: leaf.delete(), device.executor._rows)
    with pytest.raises(RuntimeError, match="deleted"):
        device.executor.run("start", rows)
    assert device.executor.recover() == Lost(rows=True, cells=False)
    again = device.executor.run("start", rows).get()
    np.testing.assert_array_equal(again.tokens, expected.tokens)
    assert device.executor.recover() == Lost(rows=False, cells=False)


def test_a_step_that_fails_after_it_took_the_cells_over() -> None:
    """Those of all sessions: they are read again, into a new pool."""
    device = filled(9)
    jax.tree.map(lambda leaf: leaf.delete(), device.executor._pool)
    with pytest.raises(RuntimeError, match="deleted"):
        push(device, 0, STREAM[9:12])
    assert device.executor.recover() == Lost(rows=False, cells=True)
    device.close(0)
    device.open(0)
    push(device, 0, STREAM[:12])
    assert answers(device, 0, 12) == expected(12)
    assert device.executor.recover() == Lost(rows=False, cells=False)


def test_impossible_capacities_are_refused() -> None:
    with pytest.raises(InvalidInput, match="cells="):
        executor(session_cells=TINY_CONFIG.max_context + 1)
    with pytest.raises(InvalidInput, match="a pool of 15 blocks of 4 cells"):
        DeviceExecutor(model(), session_cells=CELLS, cells=60, sessions=8)
    with pytest.raises(InvalidInput, match="sessions=0"):
        DeviceExecutor(model(), session_cells=CELLS, cells=POOL_CELLS, sessions=0)


def life(device: DeviceSessions, path: Path) -> None:
    """Everything that the protocol offers, in every shape that the limits allow."""
    read_in_every_shape(device)
    ask_in_every_shape(device)
    score_in_every_shape(device)
    cells = device.executor.fetch(device.seen(0), device.of[0].cells)
    device.executor.save(path, cells, {"entries": 1})
    placed(device, 99, device.executor.load(path).cells)
    for name in tuple(device.of):
        device.close(name)
    device.executor.wipe([GroupBlock(0, 0)])


def read_in_every_shape(device: DeviceSessions) -> None:
    """Chunks of every length, alone and together; forks, which copy blocks. Leaves sessions 0, 1
    and 2 with 22 cells."""
    limits = device.executor.limits
    for name in range(3):
        device.open(name)
    for size in range(1, limits.extend_tokens + 1):
        for name in (3, 4):
            device.fork(0, into=name)
        push(device, 3, STREAM[:size])
        device.extend({4: STREAM[:size].tolist(), 3: STREAM[: -(-size // 2)].tolist()})
        for name in (3, 4):
            device.close(name)
    for name in range(3):
        push(device, name, STREAM[:22])
    device.fork(0, into=3)
    push(device, 3, STREAM[:1])  # into a block that is half full, and the other's
    device.close(3)


def mixtures(rows: int, session_rows: int) -> Sequence[Sequence[int]]:
    """Of which sessions rows may be: of one, each of another, and some of the same."""
    several = [n // session_rows for n in range(rows)]
    return [[0] * rows] if rows == 1 else [[0] * rows, [0, 1], several]


def ask_in_every_shape(device: DeviceSessions) -> None:
    limits = device.executor.limits
    for tokens, rows in limits.start_rows:
        for names in (
            names for count in range(1, rows + 1) for names in mixtures(count, limits.session_rows)
        ):
            for size in range(1, tokens + 1):
                lengths = [max(size - n, 1) for n in range(len(names))]
                batch = [
                    reading(device, n % 4, STREAM[: lengths[n]], name=name, seed=n * size % 3)
                    for n, name in enumerate(names)
                ]
                device.executor.run("start", batch).get()
                device.executor.run("decode", [stepping(r, len(r.tokens)) for r in batch]).get()
    for used in range(1, limits.tail_cells):
        for count in (1, limits.rows):
            for names in mixtures(count, limits.session_rows):
                batch = [
                    stepping(reading(device, n, STREAM[:1], name=name, seed=used % 2), used)
                    for n, name in enumerate(names)
                ]
                device.executor.run("decode", batch).get()
        for size in {1, min(limits.question_tokens, limits.tail_cells - used)}:
            device.executor.run("more", [reading(device, 0, STREAM[:size], used=used)]).get()
    for chunks in (1, 2):  # beside a question, and the question's session among them
        row = reading(device, 0, STREAM[:3])
        riding = [device.chunk(n, [1, 2]) for n in range(chunks)]
        device.executor.run("start", [row, *riding]).get()


def score_in_every_shape(device: DeviceSessions) -> None:
    """Choices of one session, of two with several each, and of three with one each."""
    limits = device.executor.limits
    owners = ([0, 0, 0, 0], [n // limits.session_rows for n in range(4)], [0, 1, 2])
    for used in range(limits.tail_cells):
        for sizes in ([1], [1, 2], range(limits.choice_tokens - 3, limits.choice_tokens + 1)):
            for names in owners:
                choices = [
                    Row(
                        seen=device.seen(name),
                        blocks=tuple(range(8)),
                        used_cells=used,
                        tokens=STREAM[: size + 1],
                    )
                    for name, size in zip(names, [*sizes] * 4, strict=False)
                ]
                device.executor.run("score", choices).get()


def test_after_warm_up_nothing_compiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is used is in the list, and all that is in the list is used."""
    device, used = executor(poison=False), set[StepSpec]()

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
        life(DeviceSessions(device), tmp_path / "s")
    assert compiled == []
    assert device.compilations() == before
    # Empty pools are made once, at the start; what copies a session is of its own steps.
    elsewhere = {"pool", "rows", "read", "write"}
    assert used == {spec for spec in device.specs() if spec.kind not in elsewhere}


def test_every_upload_is_explicit(tmp_path: Path) -> None:
    device = executor(poison=False)
    device.warm_up()
    with jax.transfer_guard_host_to_device("disallow"):
        life(DeviceSessions(device), tmp_path / "s")
