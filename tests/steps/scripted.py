"""A model whose next-token logits are a table: what it says can be written down beforehand.

One layer whose attention and MLP add nothing, one-hot embeddings, and the table as output
projection, so the logits after token t are row t, whatever came before. All scripts share one
config, hence one set of compiled steps.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from numpy.typing import NDArray

from jaxstate.cells.session import SessionState
from jaxstate.config import LayerAttention, ModelConfig, Rope, StepConfig
from jaxstate.model.bundle import Model
from jaxstate.model.params import abstract_params
from jaxstate.steps.functional import extend, init_state, warm_up
from jaxstate.testing import ByteTokenizer
from jaxstate.text import plain_template

BOS, EOS = 256, 257
VOCAB = 260  # two more than the tokenizer has: models often pad their vocabulary
CELLS = 16
CONFIG = ModelConfig(
    family="llama",
    vocab_size=VOCAB,
    model_dim=VOCAB,
    mlp_dim=2,
    num_heads=1,
    num_kv_heads=1,
    head_dim=2,
    layers=(LayerAttention(rope=Rope(base=10_000.0)),),
    max_context=128,
    query_scale=1.0,
    tied_embeddings=False,
    norm_eps=1e-12,
    bos_id=BOS,
    eos_ids=(EOS,),
)
STEPS = StepConfig(block_cells=8, extend_tokens=(4,), question_tokens=(4,), tail_cells=(64,))


def table_model(logits: NDArray[np.floating]) -> Model:
    """After token t come the logits `logits[t]`, [VOCAB, VOCAB]."""
    flat = {}
    for path, leaf in abstract_params(CONFIG, jnp.dtype(jnp.float32)).items():
        array = np.zeros(leaf.shape, np.float32)
        if path.endswith("scale"):
            array[:] = 1.0
        elif path == "embed/embedding":
            array = np.eye(VOCAB, dtype=np.float32)
        elif path == "head/kernel":
            array = (np.asarray(logits) / np.sqrt(VOCAB)).astype(np.float32)
        flat[path] = jnp.asarray(array)
    return Model(
        config=CONFIG,
        params=traverse_util.unflatten_dict(flat, sep="/"),
        tokenizer=ByteTokenizer(),
        template=plain_template("<bos>"),
        steps=STEPS,
        source="script",
    )


def scripted(tokens: Sequence[int], then: int = EOS) -> Model:
    """Asked with BOS, it says these tokens (all different), then `then` for ever."""
    assert len(set(tokens)) == len(tokens)
    logits = np.zeros((VOCAB, VOCAB))
    logits[:, then] = 9.0
    for last, following in zip([BOS, *tokens], [*tokens, then], strict=True):
        logits[last] = 0.0
        logits[last, following] = 9.0
    return table_model(logits)


@functools.cache
def compile_all() -> None:
    warm_up(scripted([1]), CELLS)


def session(model: Model) -> SessionState:
    """A session of that model that has read a little."""
    compile_all()
    return extend(model, init_state(model, CELLS), [1, 2, 3])
