"""The loss, and one step of the optimizer.

Comes in: parameters, a batch, a `TrainConfig`. Goes out: better parameters, and how good they are.
Matrices are multiplied in a dtype of the caller's choice; parameters, gradients and the optimizer's
state are float32. Does not know: files, workers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import cast

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from jaxstate.config import ModelConfig
from jaxstate.model.context import Packed
from jaxstate.model.decoder import Decoder, forward, logits_of
from jaxstate.model.params import abstract_params, init_params
from jaxstate.training.config import Optimizer, Stage, TrainConfig
from jaxstate.weights import Params

_ADAMW_UPDATE_RMS = 0.2


@struct.dataclass
class Examples:
    """`jaxstate.training.batches.Batch` on the device, less the families."""

    tokens: Int[Array, "B R T"]
    positions: Int[Array, "B R T"]
    targets: Int[Array, "B R T"]
    in_session: Bool[Array, "B R T"]
    in_answer: Bool[Array, "B R T"]


@struct.dataclass
class Learner:
    """Everything that a step changes.

    Attributes:
        step: int32, steps taken.
        params: float32.
        optimizer: its state.
    """

    step: Int[Array, ""]
    params: Params
    optimizer: optax.OptState


@struct.dataclass
class Measured:
    """What a batch says of the parameters: float32 scalars, and which answers are right.

    Attributes:
        loss: what is minimised.
        answer_loss: nats a token of an answer.
        session_loss: nats a token of a session.
        asked: bool [B, Q], whether there is a question.
        right: bool [B, Q], whether greedy decoding would give the answer, token by token.
    """

    loss: Float[Array, ""]
    answer_loss: Float[Array, ""]
    session_loss: Float[Array, ""]
    asked: Bool[Array, "B Q"]
    right: Bool[Array, "B Q"]

    @property
    def right_share(self) -> Float[Array, ""]:
        """Of the questions."""
        return _mean(self.right.astype(jnp.float32), self.asked)


def make_optimizer(settings: Optimizer, steps: int) -> optax.GradientTransformation:
    """The optimizer of a run of that many steps.

    Muon (Jordan, "Muon: an optimizer for hidden layers in neural networks", 2024) updates the
    matrices of the layers, at the size of AdamW's updates (Liu et al., arXiv 2502.16982), and AdamW
    (Loshchilov and Hutter, arXiv 1711.05101) everything else; or AdamW everything.
    """
    schedule = optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=settings.learning_rate,
        warmup_steps=settings.warmup_steps,
        decay_steps=max(steps, settings.warmup_steps + 1),
        end_value=settings.learning_rate * settings.final_share,
    )
    if settings.kind == "muon":
        update = optax.contrib.muon(
            schedule,
            weight_decay=settings.weight_decay,
            adam_b1=settings.beta1,
            adam_b2=settings.beta2,
            muon_weight_dimension_numbers=_hidden_matrices,
            consistent_rms=_ADAMW_UPDATE_RMS,
        )
    else:
        update = optax.adamw(
            schedule,
            b1=settings.beta1,
            b2=settings.beta2,
            weight_decay=settings.weight_decay,
            mask=_matrices,
        )
    return optax.chain(optax.clip_by_global_norm(settings.clip_norm), update)


def _matrices(params: optax.Params) -> optax.Params:
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def _hidden_matrices(params: optax.Params) -> optax.Params:
    """Those between hidden vectors: not the embedding, nor an output projection."""

    def dimensions(
        path: tuple[object, ...], leaf: Array
    ) -> optax.contrib.MuonDimensionNumbers | None:
        hidden = leaf.ndim == 2 and _keys(path)[0] not in ("embed", "head")
        return optax.contrib.MuonDimensionNumbers() if hidden else None

    return jax.tree_util.tree_map_with_path(dimensions, params)


def new_learner(model: ModelConfig, config: TrainConfig) -> Learner:
    """The start of a run: random parameters."""
    params = init_params(model, seed=config.seed, dtype=jnp.dtype(jnp.float32))
    # Projections into the residual stream begin smaller, the more there are of them (GPT-2).
    shrink = (2 * model.num_layers) ** -0.5

    def scaled(path: tuple[object, ...], leaf: Array) -> Array:
        return leaf * jnp.float32(shrink if _keys(path)[-1] in ("wo", "w_down") else 1.0)

    params = jax.tree_util.tree_map_with_path(scaled, params)
    optimizer = make_optimizer(config.optimizer, config.steps)
    return Learner(step=jnp.int32(0), params=params, optimizer=optimizer.init(params))


def measure(
    model: ModelConfig,
    dtype: jnp.dtype,
    packed: Packed,
    session_weight: float,
    params: Params,
    examples: Examples,
) -> Measured:
    """A batch's losses and right answers."""
    decoder = Decoder(config=model, dtype=dtype)
    params = _cast(model, dtype, params)
    hidden, _ = forward(decoder, params, examples.tokens, examples.positions, packed)
    logits = logits_of(decoder, params, hidden)
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, examples.targets)
    answer_loss = _mean(nats, examples.in_answer)
    session_loss = _mean(nats, examples.in_session)
    rows = packed.session_rows
    asked = examples.in_answer[:, rows:]
    hit = jnp.argmax(logits[:, rows:], axis=-1) == examples.targets[:, rows:]
    return Measured(
        loss=answer_loss + jnp.float32(session_weight) * session_loss,
        answer_loss=answer_loss,
        session_loss=session_loss,
        asked=jnp.any(asked, axis=-1),
        right=jnp.all(hit | ~asked, axis=-1),
    )


def packed_of(stage: Stage, row_tokens: int) -> Packed:
    """How the rows of that stage's batches lie."""
    return Packed(
        session_rows=stage.session_tokens // row_tokens, seen_rows=stage.seen_rows(row_tokens)
    )


def _cast(model: ModelConfig, dtype: jnp.dtype, params: Params) -> Params:
    """In the dtypes in which the decoder wants them: norms stay float32."""
    wanted = abstract_params(model, jnp.dtype(dtype))

    def cast_one(path: tuple[object, ...], leaf: Array) -> Array:
        return leaf.astype(wanted["/".join(_keys(path))].dtype)

    return cast(Params, jax.tree_util.tree_map_with_path(cast_one, params))


def _keys(path: tuple[object, ...]) -> list[str]:
    """The names on the way to a leaf of nested dicts."""
    return [str(getattr(part, "key", part)) for part in path]


def _mean(values: Array, chosen: Array) -> Float[Array, ""]:
    total = jnp.sum(jnp.where(chosen, values, 0.0))
    return total / jnp.maximum(jnp.sum(chosen, dtype=jnp.int32), 1).astype(jnp.float32)


def make_step(
    model: ModelConfig, config: TrainConfig, dtype: jnp.dtype, packed: Packed
) -> Callable[[Learner, tuple[Examples, ...]], tuple[Learner, Measured]]:
    """One step of the optimizer, jitted: over one batch or, with their gradients averaged, several.

    The learner that is passed in is taken over.
    """
    optimizer = make_optimizer(config.optimizer, config.steps)
    measured = functools.partial(measure, model, dtype, packed, config.optimizer.session_weight)

    def loss(params: Params, examples: Examples) -> tuple[Array, Measured]:
        found = measured(params, examples)
        return found.loss, found

    def step(learner: Learner, batches: tuple[Examples, ...]) -> tuple[Learner, Measured]:
        slope = jax.value_and_grad(loss, has_aux=True)
        (_, found), grads = slope(learner.params, batches[0])
        for examples in batches[1:]:
            (_, found), more = slope(learner.params, examples)
            grads = jax.tree.map(jnp.add, grads, more)
        grads = jax.tree.map(lambda leaf: leaf / jnp.float32(len(batches)), grads)
        with jax.numpy_dtype_promotion("standard"):  # optax mixes its own numbers freely
            updates, state = optimizer.update(grads, learner.optimizer, learner.params)
        params = cast(Params, optax.apply_updates(learner.params, updates))
        return Learner(step=learner.step + 1, params=params, optimizer=state), found

    return jax.jit(step, donate_argnums=0)
