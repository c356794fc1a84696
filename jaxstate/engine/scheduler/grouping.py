"""Which questions that begin, and which chunks, go into one step. Pure.

Comes in: what the planned step wants, and what other sessions would have done in the same step, the
most urgent first. Goes out: those that go, in that order. A step's cost follows its padded shape,
so what joins must fit the shape of what was planned, or be free. Does not know: records, devices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from jaxstate.engine.executor.protocol import Limits, RowSizes, size_for

Kind = Literal["ask", "flash", "chunk"]


@dataclass(frozen=True, slots=True)
class BatchCandidate:
    """One row of a step.

    Attributes:
        kind: what it is.
        session: whose it is.
        number: which of those that the caller knows.
        tokens: that it reads.
        blocks: tail blocks that it needs.
    """

    kind: Kind
    session: int
    number: int
    tokens: int
    blocks: int = 0


def go_together(
    planned: Sequence[BatchCandidate],
    joining: Sequence[BatchCandidate],
    limits: Limits,
    free_blocks: int,
) -> list[BatchCandidate]:
    """What goes into one step.

    Args:
        planned: what was planned, of one kind and one session.
        joining: of other sessions, the most urgent first.
        limits: of the executor.
        free_blocks: tail blocks that nobody holds.

    Returns:
        Some of `planned`, from the first, and of `joining`; chunks may be cut to the step's tokens.
    """
    kind = planned[0].kind
    alike = [want for want in joining if want.kind == kind]
    others = [want for want in joining if want.kind != kind]
    shares = limits.step_sessions > 1 and len(planned) <= limits.session_rows
    if kind == "chunk":
        chosen, tokens = _chunks(planned, alike if shares else [], limits)
    else:
        chosen, tokens = _starts(planned, alike if shares else [], limits, free_blocks)
    if not shares or len(chosen) < len(planned):
        return chosen
    return _with_riders(chosen, others, tokens, limits, free_blocks)


def _chunks(
    planned: Sequence[BatchCandidate], alike: Sequence[BatchCandidate], limits: Limits
) -> tuple[list[BatchCandidate], int]:
    """As many chunks as make a token cheapest, in the size of the planned one."""
    tokens, sizes = size_for(planned[0].tokens, limits.chunk_rows)
    waiting = _each_session([*planned, *alike], 1)
    by_cost = RowSizes(sizes=sizes, overhead_tokens=limits.row_sizes.overhead_tokens)
    return waiting[: by_cost.take(len(waiting), tokens, sizes[-1])], tokens


def _starts(
    planned: Sequence[BatchCandidate],
    alike: Sequence[BatchCandidate],
    limits: Limits,
    free_blocks: int,
) -> tuple[list[BatchCandidate], int]:
    """As many questions as make one cheapest. Idle work keeps its steps short."""
    idle = planned[0].kind != "ask"
    longest, fitting = 1, list[BatchCandidate]()
    for want in planned:
        longest = max(longest, want.tokens)
        if len(fitting) >= _most(longest, limits, idle=idle)[1]:
            break
        fitting.append(want)
    tokens, most = _most(max(want.tokens for want in fitting), limits, idle=idle)
    joining = [want for want in alike if want.tokens <= tokens]
    waiting = _within_blocks([*fitting, *joining], free_blocks)
    if joining:
        waiting = _few_sessions(_each_session(waiting, limits.session_rows), limits)
    return waiting[: limits.row_sizes.take(len(waiting), tokens, most)], tokens


def _most(tokens: int, limits: Limits, *, idle: bool) -> tuple[int, int]:
    """To how many tokens a question is padded, and how many may begin together."""
    if idle:
        return limits.idle_start(tokens)
    return size_for(tokens, limits.start_rows)


def _with_riders(
    chosen: list[BatchCandidate],
    others: Sequence[BatchCandidate],
    tokens: int,
    limits: Limits,
    free_blocks: int,
) -> list[BatchCandidate]:
    """What else goes along for nothing: as long as all rows cost less than a step without any."""
    if tokens > limits.question_tokens:
        return chosen
    size, most = size_for(tokens, limits.start_rows)
    alone = len(chosen)
    left = free_blocks - sum(want.blocks for want in chosen)
    for want in others:
        more = len(chosen) + 1
        padded = next((rows for rows in limits.row_sizes.sizes if rows >= more), None)
        free = padded is not None and padded * size <= limits.row_sizes.overhead_tokens
        if not free or more > most:
            break
        if want.blocks <= left and (want.tokens <= size or want.kind == "chunk"):
            chosen, left = [*chosen, want], left - want.blocks
    if len(chosen) == alone:
        return chosen
    return _few_sessions(_each_session(chosen, limits.session_rows), limits)


def _each_session(wants: Sequence[BatchCandidate], most: int) -> list[BatchCandidate]:
    """At most so many of each session."""
    counts: dict[int, int] = {}
    chosen: list[BatchCandidate] = []
    for want in wants:
        counts[want.session] = counts.get(want.session, 0) + 1
        if counts[want.session] <= most:
            chosen.append(want)
    return chosen


def _few_sessions(wants: Sequence[BatchCandidate], limits: Limits) -> list[BatchCandidate]:
    """Of no more sessions than a step serves."""
    sessions = list(dict.fromkeys(want.session for want in wants))[: limits.step_sessions]
    return [want for want in wants if want.session in sessions]


def _within_blocks(wants: Sequence[BatchCandidate], free_blocks: int) -> list[BatchCandidate]:
    """Those that find tail blocks, from the first on."""
    chosen: list[BatchCandidate] = []
    for want in wants:
        free_blocks -= want.blocks
        if free_blocks < 0:
            break
        chosen.append(want)
    return chosen
