"""Sessions on disk: bit for bit back, or one clear error; where files go, and whose they are."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import jaxstate
from jaxstate.config import LayerAttention, Rope
from jaxstate.errors import (
    CapacityExceeded,
    FingerprintMismatch,
    InvalidInput,
    SnapshotDamaged,
    StaleState,
)
from jaxstate.model.bundle import Model
from jaxstate.testing import TINY_CONFIG, ByteTokenizer
from tests.persist.sessions import (
    CELLS,
    STEPS,
    STREAM,
    check_equal,
    contents,
    kept,
    model_of,
    names_in,
    read,
)
from tests.reference import bits, random_model

LENGTHS = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 63, 64, 65, 74, 75)


class OtherTokenizer(ByteTokenizer):
    fingerprint = "c8" * 32


# Round trips


@pytest.mark.parametrize("length", LENGTHS)
def test_a_round_trip_is_bit_for_bit_and_goes_on_as_if_nothing_had_been(
    tmp_path: Path, length: int
) -> None:
    model, live = model_of(), read(length)
    before = bits(live)
    jaxstate.save_state(tmp_path / "s", model, live)
    assert bits(live) == before
    back = jaxstate.restore_state(tmp_path / "s", model)
    assert back.layout == live.layout
    check_equal(back, live, model)
    assert bits(live) == before
    rest = STREAM[length : length + 9]
    if rest:
        # What was read before is not read again: only the rest, and then all is equal.
        check_equal(jaxstate.extend(model, back, rest), jaxstate.extend(model, live, rest), model)


@pytest.mark.parametrize("length", [0, 5, 16, 65])
def test_bfloat16_cells_come_back_bit_for_bit(tmp_path: Path, length: int) -> None:
    model = model_of(ml_dtypes.bfloat16)
    live = read(length, model)
    assert live.pool.groups[0].dtype == ml_dtypes.bfloat16
    jaxstate.save_state(tmp_path / "s", model, live)
    check_equal(jaxstate.restore_state(tmp_path / "s", model), live, model)


def test_a_restored_session_can_be_saved_again(tmp_path: Path) -> None:
    model, live = model_of(), read(30)
    for name in ("a", "b", "c"):
        jaxstate.save_state(tmp_path / name, model, live)
        back = jaxstate.restore_state(tmp_path / name, model)
        check_equal(back, live, model)
        live = back


def test_two_restored_sessions_are_independent(tmp_path: Path) -> None:
    model, live = model_of(), read(30)
    jaxstate.save_state(tmp_path / "s", model, live)
    one, two = (jaxstate.restore_state(tmp_path / "s", model) for _ in range(2))
    one = jaxstate.extend(model, one, [9, 9, 9])
    check_equal(two, live, model)
    assert int(one.length) == 33


def test_a_restored_session_no_longer_needs_its_files(tmp_path: Path) -> None:
    model, live = model_of(), read(30)
    jaxstate.save_state(tmp_path / "s", model, live)
    back = jaxstate.restore_state(tmp_path / "s", model)
    shutil.rmtree(tmp_path / "s")
    check_equal(back, live, model)


@pytest.mark.parametrize("length", [0, 8, 9])
@pytest.mark.parametrize("cells", [9, 200])
def test_a_session_fits_into_any_capacity_that_holds_it(
    tmp_path: Path, length: int, cells: int
) -> None:
    model, live = model_of(), read(length)
    jaxstate.save_state(tmp_path / "s", model, live)
    back = jaxstate.restore_state(tmp_path / "s", model, cells=cells)
    assert back.layout.cells == cells
    assert kept(back) == kept(live)
    if length == 9:
        mine, theirs = (jaxstate.query(model, state, [4], max_tokens=3) for state in (back, live))
        assert mine.tokens.tolist() == theirs.tokens.tolist()
        np.testing.assert_allclose(mine.logits, theirs.logits, atol=1e-5)
        if cells == 9:
            with pytest.raises(CapacityExceeded):
                jaxstate.extend(model, back, [1])


@pytest.mark.parametrize("cells", [1, 8])
def test_a_capacity_that_is_too_small_is_refused(tmp_path: Path, cells: int) -> None:
    model, live = model_of(), read(9)
    jaxstate.save_state(tmp_path / "s", model, live)
    with pytest.raises(CapacityExceeded, match="cells=9"):
        jaxstate.restore_state(tmp_path / "s", model, cells=cells)
    check_equal(jaxstate.restore_state(tmp_path / "s", model), live, model)


@pytest.mark.parametrize("cells", [0, -1, TINY_CONFIG.max_context + 1])
def test_an_impossible_capacity_is_refused(tmp_path: Path, cells: int) -> None:
    jaxstate.save_state(tmp_path / "s", model_of(), read(0))
    with pytest.raises((InvalidInput, CapacityExceeded)):
        jaxstate.restore_state(tmp_path / "s", model_of(), cells=cells)


def test_only_cells_in_use_are_written(tmp_path: Path) -> None:
    """A file follows the length, not the capacity; a window keeps its last cells only."""
    model = model_of()

    def size(length: int, cells: int) -> int:
        path = tmp_path / f"{length}-{cells}"
        jaxstate.save_state(path, model, read(length, cells=cells))
        return sum(len(data) for data in contents(path).values())

    small, full = size(4, CELLS), size(CELLS, CELLS)
    cell = 2 * TINY_CONFIG.kv_dim * 4  # one layer's keys and values
    assert small < 20_000
    # The layer that sees everything grows by its cells; that with window 7 from 4 to 6 cells.
    grown = (CELLS - 4) * cell + 2 * cell
    assert grown * 0.8 < full - small < grown * 1.3
    # A capacity of 500 cells would be 128,000 bytes in the one layer alone.
    assert abs(size(4, 500) - small) < 2_000


# What is written where


def test_a_snapshot_says_what_it_is(tmp_path: Path) -> None:
    model = model_of()
    notes = {"entries": 17, "last": "\u20ac \U0001f600", "ratio": 0.5, "open": True, "none": None}
    jaxstate.save_state(tmp_path / "s", model, read(9), notes=notes)
    info = jaxstate.inspect_snapshot(tmp_path / "s")
    assert (info.length, info.cells, dict(info.notes)) == (9, CELLS, notes)
    assert info.fingerprints["model"] == model.fingerprint
    assert info.fingerprints["tokenizer"] == ByteTokenizer.fingerprint
    assert {"model", "tokenizer", "layout"} <= set(info.fingerprints)
    arrays = {f"{kind}_{layer:03d}" for kind in ("keys", "values") for layer in range(2)}
    assert set(info.checksums) == arrays | {"ready"}


def test_notes_that_cannot_be_kept_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="notes"):
        jaxstate.save_state(
            tmp_path / "s",
            model_of(),
            read(3),
            notes={"what": object()},  # pyright: ignore[reportArgumentType]
        )
    assert names_in(tmp_path) == []


def test_folders_on_the_way_are_made_and_nothing_else_is_left(tmp_path: Path) -> None:
    jaxstate.save_state(tmp_path / "a" / "b" / "s", model_of(), read(3))
    assert names_in(tmp_path) == ["a"]
    assert names_in(tmp_path / "a" / "b") == ["s"]


@pytest.mark.parametrize("as_text", [False, True])
def test_relative_paths_and_strings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_text: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    path = "s" if as_text else Path("s")
    live = read(3)
    jaxstate.save_state(path, model_of(), live)
    check_equal(jaxstate.restore_state(path, model_of()), live, model_of())
    assert names_in(tmp_path) == ["s"]


def test_a_snapshot_is_replaced_as_a_whole(tmp_path: Path) -> None:
    model = model_of()
    for length in (40, 3, 0, 64):
        live = read(length)
        jaxstate.save_state(tmp_path / "s", model, live, notes={"length": length})
        assert jaxstate.inspect_snapshot(tmp_path / "s").notes == {"length": length}
        check_equal(jaxstate.restore_state(tmp_path / "s", model), live, model)
        assert names_in(tmp_path) == ["s"]


def test_a_link_to_a_snapshot_is_replaced_too(tmp_path: Path) -> None:
    model, live = model_of(), read(9)
    jaxstate.save_state(tmp_path / "real", model, read(3))
    (tmp_path / "link").symlink_to(tmp_path / "real")
    jaxstate.save_state(tmp_path / "link", model, live)
    check_equal(jaxstate.restore_state(tmp_path / "link", model), live, model)
    assert names_in(tmp_path) == ["link", "real"]


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_what_is_no_snapshot_is_not_written_over(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "s"
    if kind == "file":
        path.write_text("a diary")
    elif kind == "link":
        (tmp_path / "real").mkdir()
        (tmp_path / "real" / "diary.txt").write_text("dear")
        path.symlink_to(tmp_path / "real")
    else:
        path.mkdir()
        (path / "diary.txt").write_text("dear")
    before, listed = contents(tmp_path), names_in(tmp_path)
    live = read(3)
    with pytest.raises(InvalidInput, match="not a snapshot"):
        jaxstate.save_state(path, model_of(), live)
    assert contents(tmp_path) == before
    assert names_in(tmp_path) == listed
    assert int(jaxstate.extend(model_of(), live, [1]).length) == 4


@pytest.mark.parametrize(
    "name", ["cells.csv", "cells.2026.parquet", "session.jsonl", "session.json.bak", "cells."]
)
@pytest.mark.parametrize("beside", ["nothing", "a snapshot"])
def test_a_users_file_is_never_removed(tmp_path: Path, name: str, beside: str) -> None:
    """Whatever it is called: files that we did not write are not ours to remove."""
    path = tmp_path / "s"
    if beside == "a snapshot":
        jaxstate.save_state(path, model_of(), read(5))
    path.mkdir(exist_ok=True)
    (path / name).write_text("dear diary")
    with contextlib.suppress(InvalidInput):
        jaxstate.save_state(path, model_of(), read(3))
    assert (path / name).read_text() == "dear diary"


@pytest.mark.parametrize("kind", ["nothing", "file", "empty folder", "folder"])
def test_what_is_no_snapshot_cannot_be_restored(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "s"
    if kind == "file":
        path.write_text("a diary")
    elif kind != "nothing":
        path.mkdir()
        if kind == "folder":
            (path / "diary.txt").write_text("dear")
    for use in (
        lambda: jaxstate.restore_state(path, model_of()),
        lambda: jaxstate.inspect_snapshot(path),
    ):
        with pytest.raises(SnapshotDamaged, match="s is not a readable snapshot"):
            use()


def test_a_state_that_was_taken_over_cannot_be_saved(tmp_path: Path) -> None:
    state = read(3)
    jaxstate.extend(model_of(), state, [1])
    with pytest.raises(StaleState):
        jaxstate.save_state(tmp_path / "s", model_of(), state)
    assert names_in(tmp_path) == []


# Other models


def changed_model(kind: str) -> Model:
    model = model_of()

    def other(**changes: object) -> Model:
        config = dataclasses.replace(TINY_CONFIG, **changes)  # pyright: ignore
        return random_model(config, STEPS, seed=5, tokenizer=ByteTokenizer())

    if kind == "weights":
        return random_model(TINY_CONFIG, STEPS, seed=6, tokenizer=ByteTokenizer())
    if kind == "one bit of the weights":
        import jax

        norm = np.array(model.params["final_norm"]["scale"])
        norm.view(np.uint32)[3] ^= 1
        params = {**model.params, "final_norm": {"scale": jax.device_put(norm)}}
        return dataclasses.replace(model, params=params)
    if kind == "dtype":
        return random_model(
            TINY_CONFIG, STEPS, seed=5, dtype=ml_dtypes.bfloat16, tokenizer=ByteTokenizer()
        )
    if kind == "tokenizer":
        return dataclasses.replace(model, tokenizer=OtherTokenizer())
    if kind == "no tokenizer":
        return dataclasses.replace(model, tokenizer=None)
    if kind == "rope":
        layers = (TINY_CONFIG.layers[0], LayerAttention(rope=Rope(base=9_999.0)))
        config = dataclasses.replace(TINY_CONFIG, layers=layers)
        return dataclasses.replace(model, config=config)
    if kind == "softcap":
        config = dataclasses.replace(TINY_CONFIG, attention_softcap=30.0)
        return dataclasses.replace(model, config=config)
    if kind == "window":
        layers = (LayerAttention(rope=Rope(base=1e3), window=6), TINY_CONFIG.layers[1])
        config = dataclasses.replace(TINY_CONFIG, layers=layers)
        return dataclasses.replace(model, config=config)
    if kind == "heads":
        return other(num_kv_heads=4)
    if kind == "layers":
        return other(layers=(*TINY_CONFIG.layers, TINY_CONFIG.layers[1]))
    if kind == "width":
        return other(model_dim=40)
    if kind == "fewer positions":
        return other(model_dim=40, max_context=CELLS - 1)
    raise AssertionError(kind)


@pytest.mark.parametrize(
    "kind",
    [
        "weights",
        "one bit of the weights",
        "dtype",
        "tokenizer",
        "no tokenizer",
        "rope",
        "softcap",
        "window",
        "heads",
        "layers",
        "width",
        "fewer positions",
    ],
)
def test_a_snapshot_of_another_model_is_refused(tmp_path: Path, kind: str) -> None:
    model, live, other = model_of(), read(20), changed_model(kind)
    jaxstate.save_state(tmp_path / "s", model, live)
    before = contents(tmp_path)
    with pytest.raises(FingerprintMismatch, match="another"):
        jaxstate.restore_state(tmp_path / "s", other)
    assert contents(tmp_path) == before
    check_equal(jaxstate.restore_state(tmp_path / "s", model), live, model)


@pytest.mark.parametrize("kind", ["dtype", "heads", "layers", "width", "window"])
def test_a_state_cannot_be_saved_as_another_models(tmp_path: Path, kind: str) -> None:
    """Its cells would be filed under a fingerprint that is not theirs."""
    live = read(20)
    before = bits(live)
    with pytest.raises(InvalidInput, match="another model"):
        jaxstate.save_state(tmp_path / "s", changed_model(kind), live)
    assert names_in(tmp_path) == []
    assert bits(live) == before


def test_what_does_not_change_cells_does_not_matter(tmp_path: Path) -> None:
    """The same weights with another reach, or loaded a second time."""
    model, live = model_of(), read(20)
    jaxstate.save_state(tmp_path / "s", model, live)
    config = dataclasses.replace(TINY_CONFIG, max_context=100)
    shorter = dataclasses.replace(model, config=config, source="elsewhere")
    assert kept(jaxstate.restore_state(tmp_path / "s", shorter)) == kept(live)
    again = random_model(TINY_CONFIG, STEPS, seed=5, tokenizer=ByteTokenizer())
    check_equal(jaxstate.restore_state(tmp_path / "s", again), live, again)


def test_another_block_size_is_refused_or_exact(tmp_path: Path) -> None:
    model, live = model_of(), read(20)
    jaxstate.save_state(tmp_path / "s", model, live)
    steps = dataclasses.replace(STEPS, block_cells=5)
    try:
        back = jaxstate.restore_state(tmp_path / "s", dataclasses.replace(model, steps=steps))
    except FingerprintMismatch:
        return
    assert kept(back) == kept(live)


def test_sessions_of_one_process_are_saved_at_the_same_time(tmp_path: Path) -> None:
    """Orbax counts its saves for the whole process: two at once used to wait for each other's
    files, for minutes, and failed."""
    model, states = model_of(), [read(n) for n in (5, 12, 21, 33)]
    with ThreadPoolExecutor(4) as threads:
        saving = [
            threads.submit(jaxstate.save_state, tmp_path / str(number), model, state)
            for number, state in enumerate(states)
        ]
        for one in saving:
            one.result(timeout=60)
    for number, state in enumerate(states):
        check_equal(jaxstate.restore_state(tmp_path / str(number), model), state, model)
