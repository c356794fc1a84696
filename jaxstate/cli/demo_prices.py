"""`jaxstate demo`: real daily prices into the embedded model, its answers beside the truth.

Comes in: a model's name. Goes out: flash answers that change as days come in, each beside what
plain Python says of the same bars; how many were right; and what an answer costs when everything is
read again, when a session has read it, and when it was answered ahead of time. Does not know: how
the table of costs is made (`jaxstate.cli.comparison`).

The prices are those of the package `bokeh-sampledata` (extra 'demo'); no model of ours was trained
on them.
"""

from __future__ import annotations

import csv
import gzip
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources

from rich.table import Table

from jaxstate.cli.comparison import Comparison, compare, comparison_table, stateless_specs
from jaxstate.cli.runtime import Needs, engine_for, open_model
from jaxstate.cli.show import Show, visible
from jaxstate.config import StepConfig
from jaxstate.engine.api.session import Session
from jaxstate.engine.types.options import EngineConfig
from jaxstate.errors import UnsupportedModel

CELLS = 8192
SYMBOLS = ("AAPL", "IBM", "MSFT")
DAYS = 40
COMPARED = (5, 10, 20, 40)
MAX_TOKENS = 12
# Only what the demo's lines and questions need: a first start compiles all of them.
STEPS = StepConfig(
    extend_tokens=(64, 256),
    step_sessions=(1,),
    question_tokens=(32,),
    question_rows=(1, 8),
    tail_cells=(128,),
    choice_tokens=(4,),
)
_FILE = "stocks.csv.gz"


@dataclass(frozen=True)
class Bar:
    """A day of a company; prices as they are written."""

    symbol: str
    date: str
    open: str
    high: str
    low: str
    close: str

    def entry(self) -> str:
        """The line that is pushed."""
        return (
            f"{self.date} {self.symbol} open {self.open} high {self.high} low {self.low} "
            f"close {self.close}"
        )


@dataclass(frozen=True)
class Watched:
    """A question that is kept answered, and its truth over one company's bars so far."""

    symbol: str
    text: str
    truth: Callable[[Sequence[Bar]], str]
    choices: tuple[str, ...] | None = None


WATCHED = (
    Watched("MSFT", "What is the last close of MSFT?", lambda bars: bars[-1].close),
    Watched("AAPL", "What was the previous close of AAPL?", lambda bars: bars[-2].close),
    Watched(
        "IBM",
        "What is the highest high of IBM over the last 5 bars?",
        lambda bars: max(bars[-5:], key=lambda bar: float(bar.high)).high,
    ),
    Watched(
        "AAPL",
        "Is the last close of AAPL above 620?",
        lambda bars: "yes" if float(bars[-1].close) > 620 else "no",
        ("yes", "no"),
    ),
    Watched(
        "IBM",
        "Was the last bar of IBM bullish or bearish?",
        lambda bars: "bullish" if float(bars[-1].close) > float(bars[-1].open) else "bearish",
        ("bullish", "bearish"),
    ),
)


def read_bars() -> list[list[Bar]]:
    """The bars of each day, oldest first.

    Raises:
        UnsupportedModel: the package with the prices is not installed.
    """
    try:
        data = resources.files("bokeh_sampledata") / "_data" / _FILE
    except ModuleNotFoundError as error:
        raise UnsupportedModel(
            "the demo's prices are in another package: pip install 'jaxstate[demo]'"
        ) from error
    of: dict[str, list[Bar]] = {symbol: [] for symbol in SYMBOLS}
    with data.open("rb") as raw, gzip.open(raw, "rt", encoding="utf-8") as text:
        for row in csv.DictReader(text):
            if row["Ticker"] in of:
                prices = [f"{float(row[name]):.2f}" for name in ("Open", "High", "Low", "Close")]
                of[row["Ticker"]].append(Bar(row["Ticker"], row["Date"], *prices))
    days = zip(*(bars[-DAYS - 60 : -60] for bars in of.values()), strict=True)
    return [list(day) for day in days]


def run_demo(show: Show, name: str) -> int:
    """Streams the prices, shows answers and truth, compares costs."""
    days = read_bars()
    needs = Needs(asks=True, flashes=len(WATCHED))
    model = open_model(
        show, name, cells=CELLS, dtype=None, steps=STEPS, needs=needs, also=stateless_specs
    )
    show.say(f"streaming {len(days)} days of {', '.join(SYMBOLS)} into {name}")
    rows: list[Comparison] = []
    with engine_for(model, CELLS, EngineConfig()) as engine:
        session = engine.open()
        board = _Board(show, session)
        with show.live(lambda _: board.table()):
            for number, day in enumerate(days, start=1):
                board.day(day)
                if number in COMPARED:
                    rows.append(compare(model, session, board.entries, WATCHED[0].text, MAX_TOKENS))
        show.say(board.summary())
        show.table(comparison_table(rows))
        same = all(row.same for row in rows)
        right, asked = board.right, board.asked
        show.event("done", version=session.version, same_answers=same, right=right, asked=asked)
    if not same:
        show.error("answers differ where they must not: please report this")
    return 0 if same else 1


class _Board:
    """What is pushed, what is answered, and what is true.

    Attributes:
        entries: pushed so far.
        right, asked: answers that were compared with the truth.
    """

    def __init__(self, show: Show, session: Session) -> None:
        self._show, self._session = show, session
        self._bars: dict[str, list[Bar]] = {symbol: [] for symbol in SYMBOLS}
        self._date = ""
        self.entries: list[str] = []
        self.right, self.asked = 0, 0

    def day(self, bars: Sequence[Bar]) -> None:
        """Pushes a day, waits until every question is answered at that version, and compares."""
        for bar in bars:
            self._bars[bar.symbol].append(bar)
            self.entries.append(bar.entry())
            self._session.push(bar.entry())
        self._date = bars[0].date
        self._session.wait()
        if len(self._bars[SYMBOLS[0]]) < 2:
            return
        if not self._session.flashes():
            for one in WATCHED:
                self._session.flash(one.text, max_tokens=MAX_TOKENS, choices=one.choices)
        self._session.wait_fresh()
        for one in WATCHED:
            said, truth = self._said(one), one.truth(self._bars[one.symbol])
            self.asked += 1
            self.right += said == truth
            self._show.event("flash", date=self._date, question=one.text, answer=said, truth=truth)
        if not self._show.err.is_terminal and len(self._bars[SYMBOLS[0]]) % 10 == 0:
            self._show.say(f"\n{self._date}", *(self._line(one) for one in WATCHED))

    def _said(self, one: Watched) -> str:
        """What the model says now; nothing while it has not been asked."""
        answers = {query.question: query.answer for query in self._session.flashes()}
        answer = answers.get(one.text)
        return "" if answer is None else answer.text.strip()

    def _line(self, one: Watched) -> str:
        said, truth = self._said(one), one.truth(self._bars[one.symbol])
        return f"   {one.text} {said} ({'right' if said == truth else f'wrong: {truth}'})"

    def table(self) -> Table:
        """The questions as they stand now."""
        table = Table(title=f"{self._date}: {self.right} of {self.asked} answers right")
        for name in ("kept answered", "model", "truth"):
            table.add_column(name)
        for one in WATCHED if self.asked else ():
            said, truth = self._said(one), one.truth(self._bars[one.symbol])
            colour = "green" if said == truth else "red"
            table.add_row(one.text, f"[{colour}]{visible(said)}[/{colour}]", truth)
        return table

    def summary(self) -> str:
        """How many answers were right."""
        return (
            f"{self.right} of {self.asked} flash answers were right "
            f"({100 * self.right / max(1, self.asked):.0f} %)"
        )
