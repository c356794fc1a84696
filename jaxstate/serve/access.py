"""What a server writes down of its requests: one JSON object a line, and no user's text.

Comes in: requests as they end, and whatever is logged. Goes out: lines on standard error. Does not
know: what requests hold; neither bodies, nor queries, nor names of sessions are in it.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Literal

from starlette.types import Scope

from jaxstate.serve.keys import ServedTenant

LogForm = Literal["text", "json", "off"]
_access = logging.getLogger("jaxstate.serve.access")


def log_access(
    scope: Scope, route: str, status: int, took_s: float, tenant: ServedTenant | None
) -> None:
    """One request has ended."""
    if not _access.isEnabledFor(logging.INFO):
        return
    facts = {
        "method": scope["method"],
        "route": route,
        "status": status,
        "took_ms": round(took_s * 1000, 3),
        "tenant": None if tenant is None else tenant.name,
    }
    shown = f"{facts['method']} {route} {status} {facts['took_ms']} ms"
    _access.info(shown, extra={"facts": facts})


class _AsJson(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """A record as one line."""
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, object] = {"at": at, "level": record.levelname.lower()}
        facts = getattr(record, "facts", None)
        line |= facts if isinstance(facts, dict) else {"message": record.getMessage()}
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def write_log(form: LogForm) -> None:
    """Lets the server's log go to standard error: all of it, or with "off" only what went wrong."""
    handler = logging.StreamHandler(sys.stderr)
    plain = logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    handler.setFormatter(_AsJson() if form == "json" else plain)
    for name in ("jaxstate", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.propagate = False
        logger.setLevel(logging.WARNING if form == "off" or name == "uvicorn" else logging.INFO)
