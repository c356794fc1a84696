"""How a session's window moves: its context without what has left is read beside it, and then is
its context.

Comes in: the engine's state, a session with a window, the entries that stay. Goes out: a `Rebuild`,
bookkeeping of its own that is read like a session whose cells were given up; and the moment at
which it takes the session's place. Every version has one context: the move comes with the first
entry that is read behind it. Does not know: when a window is to move (`window_keeper`), devices,
threads.
"""

from __future__ import annotations

from collections.abc import Sequence

from jaxstate.engine.core.state import EngineState
from jaxstate.engine.sessions.context_window import ContextWindow
from jaxstate.engine.sessions.record import Rebuild, SavedCells, SessionRecord
from jaxstate.engine.sessions.residence import Residence, ResidencyState
from jaxstate.engine.sessions.token_log import TokenLog, merged, spans_of
from jaxstate.errors import BudgetExceeded
from jaxstate.persist.changes import window_kept
from jaxstate.persist.journal import Change


def begin_rebuild(
    state: EngineState, record: SessionRecord, stays: Sequence[int], *, waits: bool
) -> bool:
    """Begins to read a session's context without the entries that do not stay.

    Args:
        state: the engine's.
        record: the session's, on the device.
        stays: entries that stay, ascending.
        waits: whether it may stand in line for room on the device.

    Returns:
        False if there is no room for it beside the session.
    """
    log = record.residence.log.only(stays, record.version, record.frozen_cells)
    shadow = _admitted(state, record, log)
    if shadow is None:
        return False
    shared = _shared_cells(state, record, stays)
    if not state.budget.has_line and state.budget.has_room_for(shadow):
        _arrive(state, record, shadow, shared)
    elif waits:
        shadow.residence.coming = True
        state.budget.update(shadow)
    else:
        _forget(state, shadow)
        return False
    record.rebuild = Rebuild(record=shadow, copied_cells=record.seen_cells)
    state.touch(record)
    return True


def _admitted(state: EngineState, record: SessionRecord, log: TokenLog) -> SessionRecord | None:
    """Bookkeeping of a rebuild, which has read nothing; None if the pool never has room for it."""
    assert record.window is not None
    key, old = state.new_key(), record.residence
    residence = Residence(
        name=key,
        table=state.tables.new(),
        log=log,
        tenant=old.tenant,
        chain=old.chain,
        used_s=old.used_s,
        landed_cells=len(log),
    )
    shadow = SessionRecord(key, record.id, record.queue.policy, state.config, residence)
    shadow.rebuilds, shadow.opened, shadow.seen_cells = record, True, len(log)
    state.records[key] = shadow
    state.touch(shadow)
    try:
        state.budget.admit(shadow, 0, record.window.most_cells)
    except BudgetExceeded:
        _forget(state, shadow)
        return None
    return shadow


def _shared_cells(state: EngineState, record: SessionRecord, stays: Sequence[int]) -> int:
    """How many cells of the session's table it can have: those before the first entry that left."""
    log, residence = record.residence.log, record.residence
    kept, cells = set(stays), record.frozen_cells
    for number in log.numbers:
        if number not in kept or residence.slid_cells or log.begins_with:
            break
        cells = log.start_of(number) + log.tokens_of(number)
    cells = min(cells, residence.there_cells)
    return cells if cells and state.holds(residence, cells) else 0


def _arrive(
    state: EngineState, record: SessionRecord, shadow: SessionRecord, shared_cells: int
) -> None:
    """It is on the device, with cells that it shares, as a fork has them."""
    residence, source = shadow.residence, record.residence
    if shared_cells and state.budget.has_room(state.tables.fork_blocks(shared_cells)):
        residence.table = state.tables.fork(source.table, shared_cells)
    state.budget.arrive(shadow, state.steps)
    residence.there_cells = residence.table.cells
    if residence.table.cells:
        residence.oldest_cells = min(state.oldest_held(source), residence.table.cells)
    state.budget.update(record)


def begin_slide(state: EngineState, record: SessionRecord, stays: Sequence[int]) -> bool:
    """Begins a context that has the session's cells but for those of the oldest entries, as far as
    they fill blocks; nothing of it has to be read. The session is at rest.

    Returns:
        False if it cannot be had: no block would go, the positions come to their end, or there is
        no room for what comes next.
    """
    window, residence, size = record.window, record.residence, state.limits.layout.block_cells
    assert window is not None
    log = residence.log
    first = -(-log.first_end() // size)
    last = (log.start_of(stays[0]) if stays else len(log)) // size
    slid_cells = residence.slid_cells + (last - first) * size
    if last <= first or slid_cells + window.most_cells + size > window.reach_cells:
        return False
    kept = log.without(first * size, last * size, record.version)
    shadow = _admitted(state, record, kept)
    if shadow is None:
        return False
    if not state.budget.has_room_for(shadow):
        _forget(state, shadow)
        return False
    shadow.residence.table = state.tables.without(residence.table, first, last)
    shadow.residence.slid_cells = slid_cells
    state.budget.arrive(shadow, state.steps)
    shadow.residence.there_cells = shadow.residence.table.cells
    state.budget.update(record)
    record.rebuild = Rebuild(record=shadow, copied_cells=record.seen_cells)
    state.touch(record)
    return True


def copy_committed(state: EngineState, record: SessionRecord) -> None:
    """A rebuild gets what its session has read since it began."""
    rebuild, log = record.rebuild, record.residence.log
    assert rebuild is not None
    if rebuild.copied_cells >= record.seen_cells:
        return
    shadow, start = rebuild.record, rebuild.copied_cells
    new = shadow.residence.log
    new.append(log.tokens(start, record.seen_cells - start), log.ends(start, record.seen_cells))
    new.base_version = record.version
    rebuild.copied_cells = record.seen_cells
    shadow.seen_cells = shadow.residence.landed_cells = len(new)
    state.touch(shadow)


def move_window(
    state: EngineState, shadow: SessionRecord, now_s: float, token_s: float | None
) -> None:
    """A rebuild takes its session's place, which has the cells of the other from now on; the
    rebuild keeps those before for the questions that look at them.

    Args:
        state: the engine's.
        shadow: the rebuild.
        now_s: the time.
        token_s: that reading one token takes; None if that was not measured.
    """
    record = shadow.rebuilds
    assert record is not None and record.window is not None and record.rebuild is not None
    new, old = shadow.residence, record.residence
    new.reserve_blocks, new.pinned = old.reserve_blocks, old.pinned
    new.used_s, new.served, new.placed_at = old.used_s, old.served, old.placed_at
    old.reserve_blocks, old.pinned = 0, False
    if old.state is ResidencyState.LEAVING:  # its user has suspended it meanwhile
        old.become(ResidencyState.DEVICE)
        new.become(ResidencyState.LEAVING)
    record.residence, shadow.residence = new, old
    record.landing, shadow.landing = shadow.landing, record.landing
    record.seen_cells, record.stranded = shadow.seen_cells, shadow.stranded
    record.saved = SavedCells()
    record.rebuild.takes, record.rebuild.moved, record.ahead = False, True, True
    record.window.moved(new.log, now_s, token_s)
    state.budget.update(shadow)
    wanted_cells = min(new.cells + record.queue.unread_tokens, record.window.most_cells)
    state.budget.order(record, max(new.cells, wanted_cells))


def drop_rebuild(state: EngineState, record: SessionRecord) -> None:
    """A rebuild goes, and its cells with it; the session stays as it is. One that has taken entries
    in the session's place has to take that first (`move_window`)."""
    rebuild, record.rebuild = record.rebuild, None
    if rebuild is not None:
        _forget(state, rebuild.record)
        state.touch(record)


def _forget(state: EngineState, shadow: SessionRecord) -> None:
    shadow.closed_because = "its session has what it was made for"
    state.records.pop(shadow.key, None)
    state.touch(shadow)
    state.stop_computing(shadow)
    state.budget.forget(shadow)


def is_looked_at(record: SessionRecord) -> bool:
    """Whether questions of a session still look at the context that it had before its window
    moved."""
    rebuild = record.rebuild
    assert rebuild is not None and rebuild.moved
    name = rebuild.record.residence.name
    flash = (request for request, _ in record.flash_requests.values())
    asks = (ask.request for ask in record.asks_begun.values())
    return any(request.seen.session == name for request in (*asks, *flash))


def move_in_place(
    state: EngineState, record: SessionRecord, now_s: float, token_s: float | None
) -> None:
    """A session's cells are given up where they are, and computed again without what has left its
    window, the entry that comes next along with them. Nothing may look at them. The arguments as
    for `move_window`."""
    window, residence, queue = record.window, record.residence, record.queue
    assert window is not None and not record.landing and not any(record.holding())
    next_tokens = queue.next_tokens
    assert next_tokens is not None, "a window moves with an entry"
    stays = window.stays(residence.log, record.seen_cells, now_s, next_tokens)
    log = residence.log.only(stays, record.version, record.frozen_cells)
    record.seen_cells = residence.landed_cells = len(log)
    taken = queue.take(next_tokens, entries=1)
    assert taken is not None and taken.completes is not None
    log.append(taken.tokens, taken.ends)
    record.landing.append((len(log), taken))
    record.ahead = True
    state.stop_computing(record)
    state.tables.drop(residence.table)
    residence.log, residence.there_cells, residence.oldest_cells = log, 0, 0
    residence.slid_cells = 0
    residence.name = state.new_key()
    record.saved = SavedCells()
    window.moved(log, now_s, token_s)
    state.budget.update(record)


def window_change(key: int, window: ContextWindow | None, log: TokenLog) -> Change:
    """A session's window as the journal keeps it.

    Args:
        key: of the session there.
        window: its window; None for none.
        log: what is in its context; of entries behind its base, that is all.
    """
    settings = None if window is None else window.window.as_json()
    numbers = [number for number in log.numbers if number <= log.base_version]
    kept = merged([*log.begins_with, *spans_of(numbers)])
    ranges = [(one.first, one.last) for one in kept]
    return window_kept(key, settings, log.base_version, ranges)
