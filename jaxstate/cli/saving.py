"""A place to save to: found out about before, and not given up when it fails.

Comes in: what saves a session to a path. Goes out: where it lies in the end. Does not know:
sessions.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from jaxstate.cli.show import Show
from jaxstate.errors import InvalidInput


def check_writable(place: Path) -> None:
    """Refuses a place where nothing can be written, before anything is read. Nothing stays.

    Raises:
        InvalidInput: with the reason.
    """
    there = place.absolute().parent
    while not there.exists() and there != there.parent:
        there = there.parent
    try:
        with tempfile.TemporaryDirectory(prefix=".jaxstate-", dir=there):
            pass
    except OSError as error:
        raise InvalidInput(
            f"--save {place}: nothing can be written in {there} ({error.strerror}); choose another "
            "place (nothing was read)"
        ) from error


def save_somewhere(show: Show, save: Callable[[Path], None], place: Path) -> Path | None:
    """Saves to a place; if that fails, to one that is asked for, or to one beside.

    Args:
        show: where it is said.
        save: writes to a path, or raises; what it saves stays as it is.
        place: where it is to be.

    Returns:
        Where it is; None if it could be saved nowhere.
    """
    for one in itertools.chain([place], _others(show, place)):
        try:
            save(one)
        except Exception as error:  # whatever a disk or a library throws
            reason = str(error).strip().splitlines() or [type(error).__name__]
            show.error(f"the session could not be saved to {one}: {reason[0]}")
        else:
            return one
    show.error("the session was saved nowhere")
    return None


def _others(show: Show, place: Path) -> Iterator[Path]:
    """Places that are asked for where there is somebody to ask; else one beside, and one of the
    system's for what is temporary."""
    while _somebody_is_there(show):
        show.note("another place to save it to (nothing gives it up):")
        answer = sys.stdin.readline().strip()
        if not answer:
            return
        yield Path(answer).expanduser()
    name = f"{place.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    yield place.absolute().parent / name
    yield Path(tempfile.gettempdir()) / f"jaxstate-{name}"


def _somebody_is_there(show: Show) -> bool:
    return not show.as_json and show.err.is_terminal and sys.stdin.isatty()
