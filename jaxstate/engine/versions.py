"""Versions before a session's newest: where they end, whether their cells are there, and errors
that say so.

Comes in: a session's books and the version that somebody names. Goes out: a `Border`, or an error.
Cells are only ever added, so an earlier version is a beginning of the session's cells, and all of
them are there, but for those that a sliding window's ring has used again. Does not know: threads,
devices, what is done with a version.
"""

from __future__ import annotations

from jaxstate.engine.books import Book
from jaxstate.engine.ledger import Ledger
from jaxstate.engine.residence import Border
from jaxstate.errors import InvalidInput, VersionUnavailable
from jaxstate.records import checked_int


def border_of(book: Book, name: str, version: int) -> Border:
    """Where a version of a session ends.

    Args:
        book: the session's.
        name: of the argument, for errors.
        version: as it was given.

    Raises:
        InvalidInput: the session has no such version.
        VersionUnavailable: whoever saved the session did not say where it ends.
    """
    number = checked_int(name, version)
    if book.version < 0:
        raise InvalidInput(
            f"{name}={version}: session {book.id!r} has no version before its opening is read; "
            "wait(0) waits for that"
        )
    if not 0 <= number <= book.version:
        raise InvalidInput(
            f"{name}={version}: session {book.id!r} has versions 0 to {book.version}; min_version= "
            "of ask, and wait(version), wait for later ones"
        )
    if number == book.version:
        return book.border
    cells = book.residence.log.border(number)
    if cells is None:
        raise VersionUnavailable(
            f"session {book.id!r} does not know where version {number} ends: it was restored from "
            f"a later one. The oldest version that it knows is {_oldest_known(book)}"
        )
    return Border(number, cells)


def check_rebuild(
    ledger: Ledger, book: Book, border: Border, rebuild_tokens: int, *, forks: bool = False
) -> None:
    """Refuses to compute a version again that takes more than the caller allows, or whose tokens
    nobody knows.

    Args:
        ledger: of the engine.
        book: the session's.
        border: the version, which the session no longer holds.
        rebuild_tokens: that may be computed.
        forks: it was to be forked.

    Raises:
        VersionUnavailable: with what is held, and what would help.
    """
    if not book.residence.log.complete or border.cells > rebuild_tokens:
        raise unavailable(ledger, book, border, forks=forks)


def unavailable(
    ledger: Ledger, book: Book, border: Border, *, forks: bool = False
) -> VersionUnavailable:
    """The error for a version that the session does not hold."""
    what = "be forked at" if forks else "be asked about"
    held = f"it can {what} {_oldest_held(ledger, book, forks=forks)} now"
    takes = (
        f"Computing it again takes {border.cells} tokens: rebuild_tokens={border.cells}, or more, "
        "allows that"
        if book.residence.log.complete
        else "It was saved without its tokens, so it cannot be computed again"
    )
    return VersionUnavailable(
        f"session {book.id!r} no longer holds version {border.version} ({border.cells} cells); "
        f"{held}. {takes}"
    )


def may_be_shared(ledger: Ledger, book: Book, border: Border) -> bool:
    """Whether a fork at that version can share the session's cells. Where it ends sooner than they
    do, its last token is read again, as a session's own always is: what the model had in mind after
    it (`SessionState.ready`) is kept only of the last cell."""
    residence = book.residence
    if border.cells in (0, residence.cells):
        return True
    return residence.log.complete and ledger.holds(residence, border.cells - 1)


def shared_cells(book: Book, border: Border) -> int:
    """How many cells such a fork shares."""
    whole = border.cells == book.residence.cells
    return border.cells if whole else max(0, border.cells - 1)


def _oldest_known(book: Book) -> int:
    first = book.residence.log.first_version(0)
    return book.version if first is None else min(first, book.version)


def _oldest_held(ledger: Ledger, book: Book, *, forks: bool) -> str:
    """The versions that it holds, in words."""
    residence = book.residence
    oldest = residence.log.first_version(ledger.oldest_held(residence) + forks)
    if oldest == book.version or (forks and not residence.log.complete):
        return f"version {book.version} alone"
    if oldest is None or oldest > book.version:
        return "none but its newest"
    return f"versions {oldest} to {book.version}"
