"""`jaxstate inspect`: what a model, a saved session or a journal is.

Comes in: a path or a known name. Goes out: a table, or one JSON line.
"""

from __future__ import annotations

from pathlib import Path

from rich.table import Table

from jaxstate.cells.layout import plan_layout
from jaxstate.cli.inspect_journal import Audit, is_export, is_journal, run_inspect_journal
from jaxstate.cli.show import Show
from jaxstate.config import ModelConfig, StepConfig
from jaxstate.errors import InvalidInput
from jaxstate.model.backends import choose_backend
from jaxstate.model.loading import read_source, resolve_dtype
from jaxstate.model.params import abstract_params
from jaxstate.persist.files import RECORD_NAME, inspect_snapshot
from jaxstate.records import JsonValue
from jaxstate.weights import known_names


def run_inspect(show: Show, source: str, audit: Audit | None = None) -> int:
    """Shows what is there; `audit` is for journals."""
    if is_journal(source) or (audit is None and is_export(source)):
        return run_inspect_journal(show, source, audit)
    if audit is not None:
        raise InvalidInput(f"{source} is no journal: only a journal can be verified")
    if not Path(source).exists() and "/" not in source and source not in known_names():
        raise InvalidInput(
            f"{source} is no path here: give a model (a path, or {', '.join(known_names())}), a "
            "saved session, a journal or an exported session"
        )
    is_session = (Path(source) / RECORD_NAME).exists()
    facts = _session_facts(source) if is_session else _model_facts(source)
    show.event("session" if is_session else "model", source=source, **facts)
    table = Table(title=source, show_header=False)
    for name, value in facts.items():
        shown = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else value
        table.add_row(name.replace("_", " "), str(shown))
    show.table(table)
    return 0


def _session_facts(path: str) -> dict[str, JsonValue]:
    info = inspect_snapshot(path)
    size = sum(file.stat().st_size for file in Path(path).rglob("*") if file.is_file())
    return {
        "cells": info.length,
        "capacity_cells": info.cells,
        "bytes_on_disk": size,
        **{f"{name}_fingerprint": value[:16] for name, value in info.fingerprints.items()},
        **info.notes,
    }


def _model_facts(source: str) -> dict[str, JsonValue]:
    files = read_source(source)
    tokenizer, template = files.read_text()
    dtype = resolve_dtype(None)
    params = abstract_params(files.config, dtype).values()
    return {
        "family": files.config.family,
        "parameters": sum(leaf.size for leaf in params),
        "parameter_bytes": sum(leaf.size * leaf.dtype.itemsize for leaf in params),
        "dtype": str(dtype),
        "attention": choose_backend(files.config, dtype, StepConfig()),
        "layers": files.config.num_layers,
        "windows": _windows(files.config),
        "heads": f"{files.config.num_heads} query, {files.config.num_kv_heads} key/value",
        "vocabulary": files.config.vocab_size,
        "max_context": files.config.max_context,
        "bytes_for_4096_cells": _session_bytes(files.config, dtype.itemsize),
        "tokenizer": "none" if tokenizer is None else f"{tokenizer.vocab_size:,} tokens",
        "template": "question and answer" if template.is_text else "chat",
    }


def _windows(config: ModelConfig) -> str:
    counts = {window: 0 for window in config.windows}
    for layer in config.layers:
        counts[layer.window] += 1
    return ", ".join(
        f"{count} layers see {'all' if window is None else f'{window} tokens'}"
        for window, count in counts.items()
    )


def _session_bytes(config: ModelConfig, itemsize: int) -> int:
    cells = min(4096, config.max_context)
    layout = plan_layout(config, cells=cells, block_cells=StepConfig().block_cells)
    return layout.bytes_per_session(itemsize)
