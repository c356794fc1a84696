"""The token log: what was read, and where each version ends in it."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from jaxstate.engine.sessions.ingest_queue import IngestQueue
from jaxstate.engine.sessions.token_log import TokenLog

ENTRIES = st.lists(st.lists(st.integers(0, 255), max_size=5), max_size=12)


def read(opening: list[int], entries: list[list[int]], sizes: list[int]) -> TokenLog:
    """A log that took those entries from a queue, so many tokens at a time."""
    queue, log = IngestQueue(64, "block"), TokenLog()
    queue.open_with(np.array(opening, np.int32))
    if entries:
        offer = queue.offer([(np.array(one, np.int32), None) for one in entries], 0.0, 1000)
        assert offer is not None
        queue.accept(offer)
    turn = 0
    while (taken := queue.take(sizes[turn % len(sizes)])) is not None:
        log.append(taken.tokens, taken.ends)
        turn += 1
    return log


@given(
    st.lists(st.integers(0, 255), max_size=5),
    ENTRIES,
    st.lists(st.integers(1, 7), min_size=1, max_size=4),
)
def test_a_version_ends_where_its_entries_do(
    opening: list[int], entries: list[list[int]], sizes: list[int]
) -> None:
    log = read(opening, entries, sizes)
    whole = [*opening, *(token for one in entries for token in one)]
    assert log.tokens(0, len(log)).tolist() == whole
    for version in range(len(entries) + 1):
        expected = len(opening) + sum(map(len, entries[:version]))
        assert log.version_end(version) == expected
        twin = log.copy(expected)
        assert twin.tokens(0, 1000).tolist() == whole[:expected]
        assert twin.version_end(version) == expected
    assert log.version_end(-1) is None


@given(ENTRIES, st.integers(0, 60), st.integers(0, 60))
def test_pieces_put_together_are_the_whole(entries: list[list[int]], a: int, b: int) -> None:
    log = read([1, 2], entries, [3])
    cuts = sorted({0, min(a, len(log)), min(b, len(log)), len(log)})
    again = TokenLog()
    for start, end in itertools.pairwise(cuts):
        again.append(log.tokens(start, end - start), log.ends(start, end))
    assert again.tokens(0, 1000).tolist() == log.tokens(0, 1000).tolist()
    for version in range(len(entries) + 1):
        assert again.version_end(version) == log.version_end(version)


def test_displaced_entries_end_where_the_one_before_them_does() -> None:
    log = TokenLog()
    log.append(np.array([1, 2, 3, 4], np.int32), [(0, 1), (3, 4)])
    assert [log.version_end(version) for version in range(4)] == [1, 1, 1, 4]
