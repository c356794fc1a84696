"""What a question costs as the context grows: a session, stateless, and beside transformers.

    python scripts/bench_query.py [--contexts 256 1024 4096 8192] [--out F.json] [--plot F.png]

Measures, for a question of 16 tokens on contexts of growing length, the time to the first answer
token and the time of each further one. Four ways, on the same weights, in the same process, taking
turns: a jaxstate session; jaxstate reading the whole context again; transformers with a kept cache;
transformers reading the whole context again. Prints medians and the slowest run as a table, and as
its last line JSON. All four answer greedily, and a difference between their tokens is an error.

Without torch and transformers (`pip install 'jaxstate[parity]'`) only the first two are measured,
and the JSON says so.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from rich.console import Console
from rich.table import Table

import jaxstate
from jaxstate.model.compile_cache import use_compilation_cache

QUESTION_TOKENS = 16
# Ways take turns in blocks, so that a slow moment of the machine hits all. The first run of a block
# is not timed: threads of the way before may still be spinning, or one's own be asleep.
BLOCKS = 3
Timing = dict[str, float]
Row = dict[str, Any]
# Values of the peer, which is an optional dependency and has no types to speak of.
PeerValue = Any
NO_PEER = "torch and transformers are not installed (pip install 'jaxstate[parity]')"


@dataclass(frozen=True)
class Way:
    """One way to answer.

    Attributes:
        name: as in the table.
        prepare: makes what one answer uses up; not timed.
        answer: (that, number of tokens) -> the answer's tokens; timed.
        repeats: how often.
    """

    name: str
    prepare: Callable[[], Any]
    answer: Callable[[Any, int], list[int]]
    repeats: int


def main() -> int:
    """Measures, prints, and returns 1 if answers differ."""
    options = _options()
    use_compilation_cache()
    model = jaxstate.load(options.model, dtype="float32")
    tokens = _document_tokens(model, max(options.contexts) + QUESTION_TOKENS)
    peer = _Peer(model) if find_spec("torch") and find_spec("transformers") else None
    rows: list[Row] = []
    for context in sorted(options.contexts):
        ways = _ways(model, peer, tokens[:context], tokens[-QUESTION_TOKENS:], options)
        wanted = [way for way in ways if way.repeats]
        rows += _measure(context, wanted, options.answer_tokens)
        print(f"measured a context of {context} tokens", file=sys.stderr, flush=True)
    report = _report(options, rows, peer is not None)
    Console().print(_table(rows, options.answer_tokens))
    if options.plot is not None:
        _plot(rows, options.plot)
    if options.out is not None:
        options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(report))
    return 0 if report["answers_equal"] else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="gemma3-270m")
    parser.add_argument("--contexts", type=int, nargs="+", default=[256, 1024, 4096, 8192])
    parser.add_argument("--answer-tokens", type=int, default=9, help="first token + 8 more")
    parser.add_argument("--repeats", type=int, default=9, help="of each way with kept state")
    parser.add_argument("--stateless-repeats", type=int, default=2, help="0 leaves them out")
    parser.add_argument("--out", type=Path, help="also write the JSON there")
    parser.add_argument("--plot", type=Path, help="write a picture (needs jaxstate[bench])")
    return parser.parse_args()


def _document_tokens(model: jaxstate.Model, count: int) -> list[int]:
    data = Path(jaxstate.__file__).parent / "data" / "constitution.txt"
    tokens = model.text.encode(data.read_text(encoding="utf-8"))
    opening = model.template.open_tokens(model.text, "")
    whole = opening + tokens
    if len(whole) < count:
        raise SystemExit(f"the document has {len(whole)} tokens; --contexts asks for {count}")
    return whole[:count]


def _ways(
    model: jaxstate.Model,
    peer: _Peer | None,
    context: list[int],
    question: list[int],
    options: argparse.Namespace,
) -> list[Way]:
    cells = max(options.contexts)
    state = jaxstate.extend(model, jaxstate.init_state(model, cells), context)
    jax.block_until_ready(state.ready)

    def session(_: None, count: int) -> list[int]:
        return jaxstate.query(model, state, question, max_tokens=count).tokens.tolist()

    def stateless(_: None, count: int) -> list[int]:
        again = jaxstate.extend(model, jaxstate.init_state(model, cells), context)
        return jaxstate.query(model, again, question, max_tokens=count).tokens.tolist()

    ways = [
        Way("jaxstate session", _nothing, session, options.repeats),
        Way("jaxstate stateless", _nothing, stateless, options.stateless_repeats),
    ]
    if peer is not None:
        kept = peer.read(context)
        ways += [
            Way(
                "transformers kept cache",
                lambda: copy.deepcopy(kept),  # its sliding-window caches cannot be cropped back
                lambda cache, count: peer.answer(cache, question, count),
                options.repeats,
            ),
            Way(
                "transformers stateless",
                peer.empty_cache,
                lambda cache, count: peer.answer(cache, context + question, count),
                options.stateless_repeats,
            ),
        ]
    return ways


def _nothing() -> None:
    """A session needs nothing prepared: a question leaves it as it is."""


def _measure(context: int, ways: list[Way], answer_tokens: int) -> list[Row]:
    """Medians of each way."""
    first: dict[str, list[float]] = {way.name: [] for way in ways}
    whole: dict[str, list[float]] = {way.name: [] for way in ways}
    # This is also the warm-up.
    answers = {way.name: way.answer(way.prepare(), answer_tokens) for way in ways}
    for block in range(BLOCKS):
        for way in ways:
            if way.repeats > BLOCKS:
                _seconds(way, 1)
            for _ in range(block, way.repeats, BLOCKS):
                first[way.name].append(_seconds(way, 1))
                whole[way.name].append(_seconds(way, answer_tokens))
    return [
        {
            "context": context,
            "way": name,
            "first_token_ms": _spread(first[name]),
            "per_token_ms": 1e3
            * (statistics.median(whole[name]) - statistics.median(first[name]))
            / max(len(answers[name]) - 1, 1),
            "answer": answers[name],
        }
        for name in first
    ]


def _seconds(way: Way, count: int) -> float:
    prepared = way.prepare()
    started = time.perf_counter()
    way.answer(prepared, count)
    return time.perf_counter() - started


def _spread(seconds: list[float]) -> Timing:
    """Milliseconds; with so few runs the slowest stands for the tail."""
    return {
        "median": 1e3 * statistics.median(seconds),
        "slowest": 1e3 * max(seconds),
        "runs": len(seconds),
    }


class _Peer:
    """The same weights in transformers (torch, CPU), with a cache that is kept."""

    def __init__(self, model: jaxstate.Model) -> None:
        import torch
        import transformers

        if model.config.family != "gemma3":
            raise SystemExit("the comparison with transformers is written for Gemma 3 weights")
        torch.set_num_threads(os.cpu_count() or 1)
        self._torch = torch
        self._stop_ids = set(model.stop_ids)
        self._cache_type = transformers.DynamicCache
        self._model = transformers.Gemma3ForCausalLM(_hf_config(model.config))
        weights = {name: torch.tensor(array) for name, array in _hf_weights(model).items()}
        missing, unexpected = self._model.load_state_dict(weights, strict=False)
        if unexpected or set(missing) - {"lm_head.weight"}:
            raise SystemExit(f"weights do not fit transformers: {missing}, {unexpected}")
        self._model.eval()

    def empty_cache(self) -> PeerValue:
        """A cache that has read nothing."""
        return self._cache_type(config=self._model.config)

    def read(self, context: list[int]) -> PeerValue:
        """A cache that has read the context."""
        cache = self.empty_cache()
        with self._torch.inference_mode():
            self._model(self._ids(context), past_key_values=cache, logits_to_keep=1)
        return cache

    def answer(self, cache: PeerValue, tokens: list[int], count: int) -> list[int]:
        """Greedy tokens after `tokens`; uses the cache up."""
        answer: list[int] = []
        step = self._ids(tokens)
        with self._torch.inference_mode():
            while len(answer) < count:
                out = self._model(step, past_key_values=cache, logits_to_keep=1)
                token = int(out.logits[0, -1].argmax())
                if token in self._stop_ids:
                    break
                answer.append(token)
                step = self._ids([token])
        return answer

    def _ids(self, tokens: list[int]) -> PeerValue:
        return self._torch.tensor([tokens])


def _hf_config(config: jaxstate.ModelConfig) -> PeerValue:
    import transformers

    local = next(layer for layer in config.layers if layer.window is not None)
    whole = next(layer for layer in config.layers if layer.window is None)
    if local.rope.factors or whole.rope.factors:
        raise SystemExit("the comparison does not cover scaled positions")
    return transformers.Gemma3TextConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.model_dim,
        intermediate_size=config.mlp_dim,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        max_position_embeddings=config.max_context,
        rms_norm_eps=config.norm_eps,
        query_pre_attn_scalar=round(config.query_scale**-2),
        sliding_window=local.window,
        layer_types=[
            "full_attention" if layer.window is None else "sliding_attention"
            for layer in config.layers
        ],
        rope_parameters={
            "full_attention": {"rope_type": "default", "rope_theta": whole.rope.base},
            "sliding_attention": {"rope_type": "default", "rope_theta": local.rope.base},
        },
        final_logit_softcapping=config.final_softcap,
        tie_word_embeddings=config.tied_embeddings,
        pad_token_id=0,
    )


def _hf_weights(model: jaxstate.Model) -> dict[str, np.ndarray]:
    """Our parameters under transformers' names: matrices transposed, norms less one."""
    config, flat = model.config, traverse_util.flatten_dict(model.params, sep="/")
    arrays = {path: np.asarray(leaf) for path, leaf in flat.items()}
    weights = {
        "model.embed_tokens.weight": arrays["embed/embedding"],
        "model.norm.weight": arrays["final_norm/scale"] - 1,
    }
    norms = {
        "attention_norm": "input_layernorm",
        "attention_post_norm": "post_attention_layernorm",
        "mlp_norm": "pre_feedforward_layernorm",
        "mlp_post_norm": "post_feedforward_layernorm",
        "attention/q_norm": "self_attn.q_norm",
        "attention/k_norm": "self_attn.k_norm",
    }
    cuts = (config.query_dim, config.query_dim + config.kv_dim)
    for layer in range(config.num_layers):
        ours, theirs = f"layers_{layer}", f"model.layers.{layer}"
        q, k, v = np.split(arrays[f"{ours}/attention/wqkv"], cuts, axis=1)
        gate, up = np.split(arrays[f"{ours}/mlp/w_gate_up"], 2, axis=1)
        matrices = {
            "self_attn.q_proj": q,
            "self_attn.k_proj": k,
            "self_attn.v_proj": v,
            "self_attn.o_proj": arrays[f"{ours}/attention/wo"],
            "mlp.gate_proj": gate,
            "mlp.up_proj": up,
            "mlp.down_proj": arrays[f"{ours}/mlp/w_down"],
        }
        weights |= {f"{theirs}.{name}.weight": matrix.T for name, matrix in matrices.items()}
        weights |= {
            f"{theirs}.{name}.weight": arrays[f"{ours}/{own}/scale"] - 1
            for own, name in norms.items()
        }
    return weights


def _report(options: argparse.Namespace, rows: list[Row], has_peer: bool) -> Row:
    contexts = sorted({row["context"] for row in rows})
    answers = {c: [row["answer"] for row in rows if row["context"] == c] for c in contexts}
    by_context = {row["context"]: row for row in rows if row["way"] == "jaxstate session"}
    first = {c: by_context[c]["first_token_ms"]["median"] for c in contexts}
    return {
        "benchmark": "query",
        "model": options.model,
        "question_tokens": QUESTION_TOKENS,
        "device": str(jax.devices()[0]),
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "jax": jax.__version__,
        "peer": None if has_peer else NO_PEER,
        "answers_equal": all(all(one == same[0] for one in same) for same in answers.values()),
        "first_token_growth": first[contexts[-1]] / first[contexts[0]],
        "rows": rows,
    }


def _table(rows: list[Row], answer_tokens: int) -> Table:
    table = Table(
        title=f"a question of {QUESTION_TOKENS} tokens, milliseconds (median, slowest run)"
    )
    for name in ("context", "way", "first token", "slowest", f"each of {answer_tokens - 1} more"):
        table.add_column(name, justify="left" if name == "way" else "right")
    for index, row in enumerate(rows):
        first = row["first_token_ms"]
        last = index + 1 == len(rows) or rows[index + 1]["context"] != row["context"]
        table.add_row(
            f"{row['context']:,}",
            row["way"],
            f"{first['median']:,.1f}",
            f"{first['slowest']:,.1f}",
            f"{row['per_token_ms']:,.1f}",
            end_section=last,
        )
    return table


def _plot(rows: list[Row], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    for name in dict.fromkeys(row["way"] for row in rows):
        points = [row for row in rows if row["way"] == name]
        times = [point["first_token_ms"]["median"] for point in points]
        axes.plot([point["context"] for point in points], times, marker="o", label=name)
    axes.set(xscale="log", yscale="log", xlabel="tokens of context", ylabel="first token, ms")
    contexts = sorted({row["context"] for row in rows})
    axes.set_xticks(contexts, [f"{context:,}" for context in contexts])
    axes.minorticks_off()
    axes.set_title("time to the first answer token")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    sys.exit(main())
