"""At the speed of the memory? What an answer takes on a GPU, against what reading the bytes takes.

    python scripts/bench_gpu.py [--shape 8b] [--contexts 2816 19456 65536] [--peer] [--out FILE]

A model of a known shape with random weights, made on the card. Measured in one run: how fast the
card reads memory; from that the floor of each line (the weights and the session's cells read once);
our times through the functional core (`query`) and through `Engine`; kernels a step, and how long
the GPU was busy; and with --peer transformers with a kept cache, on the same weights. Milliseconds,
medians after warm-up. The last line is JSON; --out writes it to a file, and a plot beside it where
matplotlib is installed.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Room for a peer beside our own pools.
os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.6")

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray
from profile_gpu import median_ms, profiled
from random_models import SHAPES, random_model
from rich.console import Console
from rich.table import Table

import jaxstate
from jaxstate.model.compile_cache import use_compilation_cache

QUESTION_TOKENS, ANSWER_TOKENS, TICK_TOKENS, QUESTIONS = 16, 17, 17, 8
READ_BYTES = 4 << 30
STEPS = jaxstate.StepConfig(
    extend_tokens=(32, 1024, 2048),
    question_tokens=(16,),
    tail_cells=(128,),
    question_rows=(1, 8, 32),
    step_sessions=(1, 32),
    step_tokens=2048,
    tail_blocks=256,
)
Figures = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Line:
    """One measured figure.

    Attributes:
        what: its name.
        context: cells of the session.
        found: milliseconds, or tokens a second.
        floor: milliseconds that reading the bytes takes; None where that says nothing.
    """

    what: str
    context: int
    found: float
    floor: float | None = None


def main() -> int:
    """Measures, prints a table and the JSON."""
    options = _options()
    use_compilation_cache()
    bandwidth = read_bandwidth()
    print(f"{jax.devices()[0].device_kind} reads {bandwidth / 1e12:.2f} TB/s", flush=True)
    model = bare(random_model(options.shape, "bfloat16", STEPS))
    lines: list[Line] = []

    def add(line: Line) -> None:
        lines.append(line)
        print(f"{line.context:>7} {line.what}: {line.found:.2f}", flush=True)

    floors = Floors(model, bandwidth)
    for context in options.contexts:
        for line in core_lines(model, context, floors):
            add(line)
    if not options.core_only:
        for context in options.contexts:
            for line in engine_lines(model, context, floors):
                add(line)
        for line in many_sessions_lines(model, floors):
            add(line)
    if options.peer:
        for line in peer_lines(model, options.contexts):
            add(line)
    report = {
        "device": jax.devices()[0].device_kind,
        "shape": options.shape,
        "read_bytes_per_s": bandwidth,
        "jax": jax.__version__,
        "lines": [vars(line) for line in lines],
    }
    Console(width=140).print(_table(lines, options))
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        _plot(lines, options)
    print(json.dumps(report))
    return 0


def bare(model: jaxstate.Model) -> jaxstate.Model:
    """Questions are their own tokens (bytes) and nothing else; nothing ends an answer early."""
    template = dataclasses.replace(model.template, asking=("", ""), stop=())
    config = dataclasses.replace(model.config, eos_ids=())
    return dataclasses.replace(model, template=template, config=config)


def read_bandwidth() -> float:
    """Bytes a second of a kernel that reads memory and writes next to nothing."""
    x = jnp.ones((READ_BYTES // 2,), jnp.bfloat16)

    @jax.jit
    def total(x: jax.Array) -> jax.Array:
        return jnp.sum(x.astype(jnp.float32))

    for _ in range(3):
        jax.block_until_ready(total(x))
    return READ_BYTES / (profiled(lambda: total(x)).busy_ms / 1e3)


class Floors:
    """Milliseconds that reading weights and cells once takes."""

    def __init__(self, model: jaxstate.Model, bandwidth: float) -> None:
        config, itemsize = model.config, model.dtype.itemsize
        embedding = 0 if config.tied_embeddings else config.vocab_size * config.model_dim
        self._weights_ms = (model.num_params - embedding) * itemsize / bandwidth * 1e3
        self._cell_ms = 2 * config.kv_dim * itemsize / bandwidth * 1e3
        self._windows = [layer.window for layer in config.layers]

    def step(self, cells: int, sessions: int = 1) -> float:
        """Of one step over sessions of that many cells each."""
        seen = sum(min(cells, window or cells) for window in self._windows)
        return self._weights_ms + sessions * seen * self._cell_ms


def core_lines(model: jaxstate.Model, context: int, floors: Floors) -> Iterator[Line]:
    """Through `extend` and `query`."""
    random = np.random.default_rng(0)

    def tokens(count: int) -> NDArray[np.int32]:
        return random.integers(300, 100_000, count).astype(np.int32)

    question, tick, stream = tokens(QUESTION_TOKENS), tokens(TICK_TOKENS), tokens(context)
    cells = context + 60 * TICK_TOKENS
    held = [jaxstate.extend(model, jaxstate.init_state(model, cells=cells), stream)]  # compiles
    held[0] = jax.block_until_ready(jaxstate.init_state(model, cells=cells))
    began = time.perf_counter()
    held[0] = jax.block_until_ready(jaxstate.extend(model, held[0], stream))
    ingested = context / (time.perf_counter() - began)

    def read() -> object:
        held[0] = jaxstate.extend(model, held[0], tick)
        return held[0]

    def answer(count: int) -> Callable[[], object]:
        return lambda: jaxstate.query(model, held[0], question, max_tokens=count).tokens

    floor = floors.step(context)
    first, whole = median_ms(answer(1)), median_ms(answer(ANSWER_TOKENS))
    yield Line(what="query, first token", context=context, found=first, floor=floor)
    yield Line(what="query, 17 tokens", context=context, found=whole, floor=ANSWER_TOKENS * floor)
    yield Line(what="17-token tick", context=context, found=median_ms(read), floor=floor)
    yield Line(what="cold ingest, tokens/s", context=context, found=ingested)
    first_profile, whole_profile = profiled(answer(1)), profiled(answer(ANSWER_TOKENS))
    steps = ANSWER_TOKENS - 1
    for what, found in {
        "query, first token, GPU busy": first_profile.busy_ms,
        "query, 17 tokens, GPU busy": whole_profile.busy_ms,
        "kernels of a first token": first_profile.kernels,
        "kernels of a decode step": (whole_profile.kernels - first_profile.kernels) / steps,
    }.items():
        yield Line(what=what, context=context, found=found)


@contextmanager
def engine_of(model: jaxstate.Model, cells: int, session_cells: int) -> Iterator[jaxstate.Engine]:
    """An engine that compiles what is used; everything here is run before it is timed."""
    config = jaxstate.EngineConfig(host_bytes=32 << 30)
    engine = jaxstate.Engine(
        model, cells=cells, session_cells=session_cells, config=config, warm_up=False
    )
    with engine:
        yield engine
    gc.collect()


def engine_lines(model: jaxstate.Model, context: int, floors: Floors) -> Iterator[Line]:
    """Through `Engine`: one session, alone."""
    questions = [_question(model, number) for number in range(QUESTIONS + 1)]
    room = context + 2048
    with engine_of(model, room, room) as engine:
        session = engine.open()
        fill(session, context)
        floor, steps = floors.step(context), ANSWER_TOKENS

        def alone(count: int) -> Callable[[], object]:
            return lambda: session.ask(questions[0], max_tokens=count)

        def together(count: int) -> Callable[[], object]:
            def call() -> None:
                asked = [session.submit(one, max_tokens=count) for one in questions[:QUESTIONS]]
                for one in asked:
                    one.result()

            return call

        for what, call, lowest in (
            ("ask, first token", alone(1), floor),
            ("ask, 17 tokens", alone(steps), steps * floor),
            ("8 asks, first tokens", together(1), floor),
            ("8 asks, 17 tokens each", together(steps), steps * floor),
        ):
            yield Line(what=what, context=context, found=median_ms(call), floor=lowest)
        session.flash(questions[-1], max_tokens=ANSWER_TOKENS)
        session.wait_fresh(timeout=60)
        hit = median_ms(lambda: session.ask(questions[-1], max_tokens=ANSWER_TOKENS), repeats=200)
        yield Line(what="flash hit", context=context, found=hit)
        for what, found in moved(session):
            yield Line(what=what, context=context, found=found)


def moved(session: jaxstate.Session) -> Iterator[tuple[str, float]]:
    """A session's cells to the host and back, once each way before it is timed."""
    for repeat in range(2):
        began = time.perf_counter()
        session.suspend(timeout=120)
        left = time.perf_counter()
        session.resume(timeout=120)
        back = time.perf_counter()
        if repeat:
            yield "suspend", (left - began) * 1e3
            yield "resume", (back - left) * 1e3


def many_sessions_lines(model: jaxstate.Model, floors: Floors) -> Iterator[Line]:
    """32 sessions of 4,096 cells, one question each; and flash hits beside their work."""
    count, context = 32, 4096
    with engine_of(model, count * (context + 512), context + 512) as engine:
        sessions = [engine.open() for _ in range(count)]
        for session in sessions:
            fill(session, context)
        question = _question(model, 0)

        def asked(tokens: int) -> Callable[[], object]:
            def call() -> None:
                futures = [one.submit(question, max_tokens=tokens) for one in sessions]
                for future in futures:
                    future.result()

            return call

        few, many = median_ms(asked(9), repeats=7), median_ms(asked(41), repeats=7)
        yield Line(
            what="32 sessions, one decode step for all",
            context=context,
            found=(many - few) / 32,
            floor=floors.step(context, count),
        )
        yield from _hits_beside_work(sessions, question, context)


def _hits_beside_work(
    sessions: list[jaxstate.Session], question: str, context: int
) -> Iterator[Line]:
    first, *others = sessions
    first.flash("And now?", max_tokens=4)
    first.wait_fresh(timeout=60)
    ended = threading.Event()

    def work() -> None:
        while not ended.is_set():
            for future in [one.submit(question, max_tokens=32) for one in others]:
                future.result()

    worker = threading.Thread(target=work)
    worker.start()
    taken: list[float] = []
    for _ in range(300):
        time.sleep(0.005)
        began = time.perf_counter()
        answer = first.ask("And now?", max_tokens=4)
        taken.append((time.perf_counter() - began) * 1e3)
        assert answer.source == "flash", answer
    ended.set()
    worker.join()
    taken.sort()
    yield Line(what="flash hit beside 31 busy sessions, p50", context=context, found=taken[150])
    yield Line(what="flash hit beside 31 busy sessions, p99", context=context, found=taken[297])


def fill(session: jaxstate.Session, cells: int) -> None:
    """Pushes about that many tokens (bytes) and waits for them."""
    entry, left = 511, cells
    entries: list[str] = []
    while left > entry:
        entries.append("x" * (entry - 1))
        left -= entry
    receipt = session.push([*entries, "y" * max(left - 1, 1)])
    session.wait(receipt.last, timeout=300)


def _question(model: jaxstate.Model, number: int) -> str:
    """A question of 16 tokens with what makes the model begin an answer."""
    text = f"{number}".rjust(QUESTION_TOKENS, "?")
    assert len(model.template.question_tokens(model.text, text)) == QUESTION_TOKENS
    return text


def peer_lines(model: jaxstate.Model, contexts: list[int]) -> Iterator[Line]:
    """transformers with a kept cache, on the same weights.

    Raises:
        ImportError: torch or transformers is not installed.
    """
    import torch
    from transformers import DynamicCache

    peer = _transformers_model(model)
    ids = torch.randint(300, 100_000, (1, max(contexts)), device="cuda")
    question = ids[:, :QUESTION_TOKENS]
    with torch.inference_mode():
        for context in contexts:
            cache = DynamicCache()
            for start in range(0, context, 2048):
                peer(
                    ids[:, start : min(start + 2048, context)],
                    past_key_values=cache,
                    logits_to_keep=1,
                )

            def answer(count: int, cache: DynamicCache = cache, context: int = context) -> None:
                token = question
                for _ in range(count):
                    logits = peer(token, past_key_values=cache, logits_to_keep=1).logits
                    token = logits[:, -1:].argmax(-1)
                token.item()
                cache.crop(context)

            for what, count in (("first token", 1), ("17 tokens", ANSWER_TOKENS)):
                found = median_ms(lambda count=count, answer=answer: answer(count), repeats=7)
                yield Line(what=f"transformers, {what}", context=context, found=found)


def _transformers_model(model: jaxstate.Model) -> Callable[..., Any]:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = model.config
    assert config.family == "llama", "the peer is measured with Llama shapes"
    settings = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.model_dim,
        "intermediate_size": config.mlp_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "max_position_embeddings": config.max_context,
        "rope_theta": 500_000.0,
        "tie_word_embeddings": config.tied_embeddings,
    }
    with torch.device("meta"):
        peer = LlamaForCausalLM(LlamaConfig.from_dict(settings))
    flat = {path: torch.from_dlpack(leaf) for path, leaf in _flat(model.params).items()}
    state = {"model.embed_tokens.weight": flat["embed/embedding"]}
    state["model.norm.weight"] = flat["final_norm/scale"].to(torch.bfloat16)
    head = flat["embed/embedding"] if config.tied_embeddings else flat["head/kernel"].t()
    state["lm_head.weight"] = head.contiguous()
    cuts = [config.query_dim, config.kv_dim, config.kv_dim]
    for number in range(config.num_layers):
        ours, theirs = f"layers_{number}/", f"model.layers.{number}."
        q, k, v = flat[ours + "attention/wqkv"].split(cuts, dim=1)
        gate, up = flat[ours + "mlp/w_gate_up"].chunk(2, dim=1)
        for name, weight in {
            "self_attn.q_proj": q,
            "self_attn.k_proj": k,
            "self_attn.v_proj": v,
            "self_attn.o_proj": flat[ours + "attention/wo"],
            "mlp.gate_proj": gate,
            "mlp.up_proj": up,
            "mlp.down_proj": flat[ours + "mlp/w_down"],
        }.items():
            state[f"{theirs}{name}.weight"] = weight.t().contiguous()
        for name, norm in {
            "input_layernorm": "attention_norm",
            "post_attention_layernorm": "mlp_norm",
        }.items():
            state[f"{theirs}{name}.weight"] = flat[f"{ours}{norm}/scale"].to(torch.bfloat16)
    peer.load_state_dict(state, assign=True)
    # Buffers that were made on "meta" are made again.
    peer.model.rotary_emb = type(peer.model.rotary_emb)(peer.config).to("cuda")
    return peer.eval()


def _flat(tree: object, prefix: str = "") -> dict[str, jax.Array]:
    if not isinstance(tree, dict):
        return {prefix[:-1]: tree}  # pyright: ignore[reportReturnType]
    return {k: v for name, part in tree.items() for k, v in _flat(part, f"{prefix}{name}/").items()}


def _table(lines: list[Line], options: argparse.Namespace) -> Table:
    table = Table(title=f"{options.shape}, bfloat16: milliseconds (x floor)")
    contexts = sorted({line.context for line in lines})
    table.add_column("")
    for context in contexts:
        table.add_column(f"{context:,}", justify="right")
    found = {(line.what, line.context): line for line in lines}
    for what in dict.fromkeys(line.what for line in lines):
        cells: list[str] = []
        for context in contexts:
            line = found.get((what, context))
            if line is None:
                cells.append("")
            elif line.floor is None:
                cells.append(f"{line.found:,.3f}" if line.found < 1 else f"{line.found:,.1f}")
            else:
                cells.append(f"{line.found:,.1f} ({line.found / line.floor:.2f})")
        table.add_row(what, *cells)
    return table


def _plot(lines: list[Line], options: argparse.Namespace) -> None:
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        print("no plot: matplotlib is not installed (pip install 'jaxstate[bench]')")
        return
    figure, axes = plt.subplots(figsize=(7, 4))
    for what in ("query, first token", "ask, first token", "transformers, first token"):
        points = [(line.context, line.found) for line in lines if line.what == what]
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", label=what)
    floors = [(x.context, x.floor) for x in lines if x.what == "query, first token" and x.floor]
    axes.plot(*zip(*floors, strict=True), "--", color="gray", label="weights and cells read once")
    axes.set(xlabel="cells of the session", ylabel="ms", ylim=(0, None))
    axes.set_title(f"a 16-token question, {options.shape}, {jax.devices()[0].device_kind}")
    axes.legend()
    figure.tight_layout()
    figure.savefig(options.out.with_suffix(".png"), dpi=120)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, default="8b")
    parser.add_argument("--contexts", type=int, nargs="+", default=[2816, 19456, 65536])
    parser.add_argument("--peer", action="store_true", help="measure transformers as well")
    parser.add_argument("--core-only", action="store_true", help="without the engine")
    parser.add_argument("--out", type=Path, help="also write the JSON there, and a plot beside it")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
