"""The window that a session's user gives it: checked, kept in the journal, and then in force.

Comes in: a `Window`, at the opening or later. Goes out: the session's `ContextWindow`, or a refusal
with the numbers. Does not know: when it moves (`window_keeper`), how (`window_moves`).
"""

from __future__ import annotations

from collections.abc import Callable

from jaxstate.engine.core.engine_core import EngineCore
from jaxstate.engine.core.window_moves import window_change
from jaxstate.engine.executor.protocol import Tokens
from jaxstate.engine.sessions.context_window import ContextWindow
from jaxstate.engine.sessions.record import SessionRecord
from jaxstate.engine.types.window import Window
from jaxstate.errors import CapacityExceeded, InvalidInput, JournalError
from jaxstate.persist.journal import PendingWrite

# The longest question and answer have room behind a context, unless that is more than this part of
# the model's positions.
_TAILS_SHARE = 4


def new_window(
    core: EngineCore, window: Window | None, tenant: str, frozen_cells: int
) -> ContextWindow | None:
    """The window of a session.

    Args:
        core: of the engine.
        window: as its user gave it; None for none.
        tenant: whose the session is.
        frozen_cells: of what it begins with.

    Raises:
        InvalidInput: the session has no cells for it, or the model's layers do not let it slide.
    """
    if window is None:
        return None
    limits, quota_cells = core.limits, core.state.shares.of(tenant).quota_cells
    reach_cells = limits.max_context - min(limits.tail_cells, limits.max_context // _TAILS_SHARE)
    quota_cells = limits.session_cells if quota_cells is None else quota_cells
    capacity_cells = min(limits.session_cells, reach_cells, quota_cells)
    slides = window.mode == "slide"
    if slides and any(group.window is not None for group in limits.layout.groups):
        raise InvalidInput(
            'mode="slide" is for models whose layers all see everything; this one has layers with '
            'windows of their own: mode="exact"'
        )
    cut_cells = limits.layout.block_cells if slides else 0
    bounds = (frozen_cells, capacity_cells - cut_cells, reach_cells, cut_cells)
    made = ContextWindow(window, *bounds, core.clock())
    made.check()
    return made


def set_window(
    core: EngineCore,
    record: SessionRecord,
    window: Window | None,
    text_of: Callable[[Tokens], str],
) -> PendingWrite | None:
    """Another window for a session, or none.

    Args:
        core: of the engine.
        record: the session's.
        window: what is to stay in its context; None for all that is there.
        text_of: an entry, of its tokens.

    Returns:
        What to wait for until it is in force.

    Raises:
        InvalidInput: the session has no cells for it, or an entry that waits is longer.
        CapacityExceeded: without one, what waits could not be read.
        JournalError, ClosedError: as `Session.set_window`.
    """
    with core.changing(record):
        core.journal_writer.check()
        record.check_open()
        made = new_window(core, window, record.residence.tenant, record.frozen_cells)
        if made is None:
            _check_needs_none(core, record)
        else:
            made.check_waiting(len(tokens) for _, tokens in record.queue.waiting)
        change = window_change(record.log_key, made, record.residence.log)
        record.windows_to_come.append(made)
        try:
            return core.journal_writer.append(change, lambda: _apply(core, record, made, text_of))
        except JournalError:
            record.windows_to_come.pop()
            raise


def _check_needs_none(core: EngineCore, record: SessionRecord) -> None:
    """Refuses to take the window of a session that could not read on without it."""
    waits = record.queue.unread_tokens
    cells = record.residence.cells + waits
    most = min(core.limits.session_cells, core.state.budget.most_cells(record))
    if cells > most:
        raise CapacityExceeded(
            f"session {record.id!r} has {cells - waits} cells, {waits} tokens wait, and without a "
            f"window it holds {most}; wait until they are read"
        )


def _apply(
    core: EngineCore,
    record: SessionRecord,
    made: ContextWindow | None,
    text_of: Callable[[Tokens], str],
) -> None:
    before = record.window
    record.windows_to_come.popleft()
    core.results.settle_rebuild(record)
    record.window = made
    if made is not None:
        _tell(made, before, record, text_of)
    _order(core, record)
    core.state.touch(record)
    core.tell_loop()


def _tell(
    made: ContextWindow,
    before: ContextWindow | None,
    record: SessionRecord,
    text_of: Callable[[Tokens], str],
) -> None:
    """What a window has to know of the entries that are there, or wait."""
    log = record.residence.log
    if before is not None:
        made.note_all(before.noted)
    if before is None or before.window.key != made.window.key:
        read = [
            (number, log.tokens(log.start_of(number), log.tokens_of(number)))
            for number in log.numbers
        ]
        made.note_keys(
            (number, made.window.key_of(text_of(tokens)))
            for number, tokens in (*read, *record.queue.waiting)
        )
    made.read(log)


def _order(core: EngineCore, record: SessionRecord) -> None:
    """The cells that the session may need now."""
    cells, window = record.residence.cells, record.window
    wanted_cells = cells + record.queue.unread_tokens
    if window is not None:
        begun_cells = cells + record.queue.rest_tokens  # what is begun is read to its end
        wanted_cells = min(wanted_cells, max(begun_cells, window.most_cells))
    core.state.budget.order(record, min(wanted_cells, core.state.budget.most_cells(record)))
