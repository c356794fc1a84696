"""A process that is there to be killed: an engine on a journal, and clients that say what they do.

    python -m tests.harness.crash_child      reads orders, one line of JSON each; for each, forks
                                                a process that carries it out

Comes in: orders. Goes out: reports on standard output, one line of JSON each, written at once.
Whoever forks has imported everything and started nothing, so a new process is there in no time. It
reports the end of a process behind everything that the process wrote. Does not know: when it will
be killed, what is checked.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import random
import sqlite3
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from jaxstate.engine.api.engine import Engine
from jaxstate.engine.api.session import Session
from jaxstate.engine.executor.device import DeviceExecutor
from jaxstate.engine.executor.protocol import Executor
from jaxstate.errors import UnknownSession
from jaxstate.persist.places import DATABASE, connect
from tests.harness.crash_clients import STUCK_S, Client, Tell
from tests.harness.crash_devices import config_of, device_of, model_of
from tests.harness.crash_shown import ANSWER_TOKENS, QUESTION

Order: TypeAlias = Mapping[str, Any]

CLIENTS = tuple(f"c{number}" for number in range(4))
# Whoever waits for it to be killed is gone.
_LONGEST_S = 300.0
_HELD_UP_S = 0.02


def main() -> None:
    """Carries out orders, each in a process of its own, until there are no more."""
    # It is true that threads do not survive a fork; JAX has not started any here.
    warnings.filterwarnings("ignore", message=r"os\.fork\(\) was called", category=RuntimeWarning)
    last = 0
    for line in sys.stdin:
        if last:
            # Not before: as long as it is not waited for, nobody else can get its number.
            os.waitpid(last, 0)
        last = os.fork()
        if last == 0:
            _carry_out(json.loads(line))
        _tell({"born": last})
        found = os.waitid(os.P_PID, last, os.WEXITED | os.WNOWAIT)
        assert found is not None
        # It may have been killed in the middle of a line.
        os.write(1, b"\n")
        _tell(
            {"ended": last, "status": found.si_status, "by_itself": found.si_code == os.CLD_EXITED}
        )


_ONE_LINE = threading.Lock()


def _tell(report: Mapping[str, object]) -> None:
    """Written at once, so that what was told before a kill is there after it."""
    line = json.dumps(report, separators=(",", ":")).encode() + b"\n"
    with _ONE_LINE:
        while line:
            line = line[os.write(1, line) :]


def _carry_out(order: Order) -> None:
    """Never returns."""
    try:
        logging.getLogger("jaxstate").addHandler(_Told(logging.WARNING))
        threading.excepthook = lambda args: _tell_broken(args.exc_value)
        threading.Timer(_LONGEST_S, os._exit, (3,)).start()
        live(order, _tell)
    except BaseException as error:
        _tell_broken(error)
        os._exit(1)
    os._exit(0)


def _tell_broken(error: BaseException | None) -> None:
    told = "" if error is None else "".join(traceback.format_exception(error))
    _tell({"broken": f"{error!r}\n{told}"})


class _Told(logging.Handler):
    """Whatever an engine logs is news: a kill is no reason for it to complain."""

    def emit(self, record: logging.LogRecord) -> None:
        _tell({"broken": f"it was logged: {self.format(record)}"})


def live(order: Order, tell: Tell) -> None:
    """One life of an engine: comes back, repeats pushes, shows what sessions hold, serves clients.

    Args:
        order: what `CrashTest` wants.
        tell: takes reports.
    """
    model = model_of(order["device"])
    device = device_of(order["device"], model, lambda: tell({"saving": True}))
    if order["warm_up"] and isinstance(device, DeviceExecutor):
        device.warm_up()
    engine = Engine(
        model,
        executor=device,
        config=config_of(order["device"]),
        journal=order["path"],
        durability=order["level"],
    )
    if order["hold_up"]:
        threading.Thread(target=_hold_up, args=(Path(order["path"]),), daemon=True).start()
    _tell_of_recovery(engine, tell)
    clients = {name: _client(engine, tell, order, name) for name in CLIENTS}
    for name, client, seq, texts in order["repeat"]:
        with contextlib.suppress(UnknownSession):  # a repeat before this one filled and closed it
            clients[client].repeat(engine.session(name), seq, texts)
    show = _show_cells if order["device"] == "fake" else _show_answer
    if order["show"]:
        for session in engine.sessions():
            show(session, device, tell)
    tell({"ready": True})
    threads = _acting(clients.values(), order["act_s"])
    tell({"closing": True})
    engine.close()
    for thread in threads:
        thread.join(STUCK_S)
        assert not thread.is_alive(), "a client is stuck after the engine was closed"
    tell({"closed": True})


def _acting(clients: Iterable[Client], seconds: float) -> list[threading.Thread]:
    """Clients that act, so many seconds later; they go on while the engine is closed."""
    if seconds == 0:
        return []
    threads = [threading.Thread(target=client.run) for client in clients]
    for thread in threads:
        thread.start()
    time.sleep(seconds)
    return threads


def _hold_up(journal: Path) -> None:
    """A slow disk: now and then nobody can write to the database for a moment, so that what is not
    written yet is there to be seen, if anything shows it."""
    pause = random.Random()
    with contextlib.closing(connect(journal / DATABASE)) as other:
        while True:
            time.sleep(pause.random() * _HELD_UP_S)
            with contextlib.suppress(sqlite3.OperationalError):  # the engine was first
                other.execute("BEGIN IMMEDIATE")
                time.sleep(pause.random() * _HELD_UP_S)
                other.execute("ROLLBACK")


def _client(engine: Engine, tell: Tell, order: Order, name: str) -> Client:
    seed = f"{order['seed']} {order['life']} {name}"
    return Client(engine, tell, name, order["seqs"].get(name, 0), order["life"], seed)


def _tell_of_recovery(engine: Engine, tell: Tell) -> None:
    flashes = {one.id: [query.question for query in one.flashes()] for one in engine.sessions()}
    tell({"up": dataclasses.asdict(engine.recovery), "flashes": flashes})


def _show_cells(session: Session, device: Executor, tell: Tell) -> None:
    """The tokens that lie in its cells once everything is read."""
    version = session.wait(timeout=STUCK_S)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "saved"
        session.save(path)
        cells = device.load(path).cells.arrays["cells"]
    tokens = np.asarray(cells).tolist()
    tell({"shown": session.id, "version": version, "tokens": tokens, "visible": _visible(session)})


def _visible(session: Session) -> list[tuple[int, int]] | None:
    """Entries that a session with a window says it sees."""
    visible = session.info().visible
    return None if visible is None else [(one.first, one.last) for one in visible]


def _show_answer(session: Session, device: Executor, tell: Tell) -> None:
    """What it answers once everything is read."""
    version = session.wait(timeout=STUCK_S)
    answer = session.ask(QUESTION, max_tokens=ANSWER_TOKENS, timeout=STUCK_S)
    tell(
        {
            "shown": session.id,
            "version": version,
            "cells": answer.usage.context_tokens,
            "answer": answer.token_ids,
            "logprob": answer.logprob,
            "visible": _visible(session),
        }
    )


if __name__ == "__main__":
    main()
