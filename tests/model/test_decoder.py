"""The decoder: shapes of real families without a FLOP, and who may sit in one call with whom.

Contexts are built from the numpy reference's keys and values, in shuffled, poisoned blocks; no step
of the package takes part.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.typing import NDArray

from jaxstate.cells.layout import plan_layout
from jaxstate.cells.pool import Context, NewCells, empty_pool
from jaxstate.config import LayerAttention, ModelConfig, Rope, StepConfig, llama3_rope_factors
from jaxstate.model.bundle import Model
from jaxstate.model.decoder import Decoder, Tail, append_tail
from jaxstate.model.params import abstract_params, init_params
from jaxstate.testing import tiny_config, tiny_model
from tests.reference import Reference, pool_of_layers, random_model, reference_forward

Ids = NDArray[np.int32]
TOLERANCE = 2e-5


def repeated(count: int, rope: Rope, window: int | None = None) -> tuple[LayerAttention, ...]:
    return (LayerAttention(rope=rope, window=window),) * count


# Published sizes and the numbers of parameters that the published weights hold.
LLAMA_32_1B = ModelConfig(
    family="llama",
    vocab_size=128_256,
    model_dim=2048,
    mlp_dim=8192,
    num_heads=32,
    num_kv_heads=8,
    head_dim=64,
    layers=repeated(
        16,
        Rope(
            base=500_000.0,
            factors=llama3_rope_factors(
                base=500_000.0,
                head_dim=64,
                factor=32.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_context=8192,
            ),
        ),
    ),
    max_context=131_072,
    query_scale=64**-0.5,
)
MISTRAL_7B = ModelConfig(
    family="mistral",
    vocab_size=32_000,
    model_dim=4096,
    mlp_dim=14_336,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    layers=repeated(32, Rope(base=10_000.0), window=4096),
    max_context=32_768,
    query_scale=128**-0.5,
    tied_embeddings=False,
)
QWEN_25_05B = ModelConfig(
    family="qwen2",
    vocab_size=151_936,
    model_dim=896,
    mlp_dim=4864,
    num_heads=14,
    num_kv_heads=2,
    head_dim=64,
    layers=repeated(24, Rope(base=1e6)),
    max_context=32_768,
    query_scale=64**-0.5,
    qkv_bias=True,
)
QWEN_3_06B = ModelConfig(
    family="qwen3",
    vocab_size=151_936,
    model_dim=1024,
    mlp_dim=3072,
    num_heads=16,
    num_kv_heads=8,
    head_dim=128,
    layers=repeated(28, Rope(base=1e6)),
    max_context=40_960,
    query_scale=128**-0.5,
    qk_norm=True,
)
GEMMA_3_270M = ModelConfig(
    family="gemma3",
    vocab_size=262_144,
    model_dim=640,
    mlp_dim=2048,
    num_heads=4,
    num_kv_heads=1,
    head_dim=256,
    layers=(*repeated(5, Rope(base=1e4), window=512), *repeated(1, Rope(base=1e6))) * 3,
    max_context=32_768,
    activation="gelu_tanh",
    query_scale=256**-0.5,
    embed_scale=640**0.5,
    qk_norm=True,
    post_norms=True,
)
REAL = {
    "llama": (LLAMA_32_1B, 1_235_814_400),
    "mistral": (MISTRAL_7B, 7_241_732_096),
    "qwen2": (QWEN_25_05B, 494_032_768),
    "qwen3": (QWEN_3_06B, 596_049_920),
    "gemma3": (GEMMA_3_270M, 268_098_176),
}


def int32(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.int32)


@pytest.mark.parametrize("family", REAL)
def test_real_families_have_their_published_shapes(family: str) -> None:
    config, num_params = REAL[family]
    dtype = jnp.dtype(jnp.bfloat16)
    shapes = abstract_params(config, dtype)
    assert sum(leaf.size for leaf in shapes.values()) == num_params
    norms = {path for path in shapes if path.endswith("scale")}
    assert {shapes[path].dtype for path in norms} == {jnp.dtype(jnp.float32)}
    assert {shapes[path].dtype for path in set(shapes) - norms} == {dtype}

    decoder = Decoder(config=config, dtype=dtype)
    batch, questions, tokens, cells = 2, 3, 5, 8
    layout = plan_layout(config, cells=4096, block_cells=64)
    context = Context(
        pool=jax.eval_shape(lambda: empty_pool(layout, dtype)),
        tables=tuple(int32(batch, group.table_width) for group in layout.groups),
        lengths=int32(batch),
    )
    kv = (config.num_kv_heads, config.head_dim)
    blocks = jax.ShapeDtypeStruct((7, config.num_layers, 2, cells, *kv), dtype)
    tail = Tail(
        cells=blocks,
        tables=int32(batch, questions, 2),
        lengths=int32(batch, questions),
    )
    ids = int32(batch, questions, tokens)
    params = jax.eval_shape(lambda: init_params(config, seed=0, dtype=dtype))
    for given_tail in (None, tail):
        hidden, new = jax.eval_shape(
            functools.partial(decoder.apply), {"params": params}, ids, ids, context, given_tail
        )
        chex.assert_shape(hidden, (batch, questions, tokens, config.model_dim))
        assert hidden.dtype == dtype
        assert len(new) == config.num_layers
        chex.assert_shape(new, (batch, questions, tokens, 2, *kv))
        assert {leaf.dtype for leaf in jax.tree.leaves(new)} == {dtype}
        logits = jax.eval_shape(
            functools.partial(decoder.apply, method="logits"), {"params": params}, hidden
        )
        chex.assert_shape(logits, (batch, questions, tokens, config.vocab_size))
        assert logits.dtype == jnp.float32


def test_a_window_makes_a_pool_that_does_not_grow_with_the_stream() -> None:
    sizes = [
        plan_layout(MISTRAL_7B, cells=cells, block_cells=64).bytes_per_session(2)
        for cells in (8192, 16_384, 32_768)
    ]
    assert len(set(sizes)) == 1
    cells = 4096 + 64  # of 32 layers, keys and values, in bfloat16
    assert sizes[0] <= cells * 2 * 32 * MISTRAL_7B.kv_dim * 2


STEPS = StepConfig(block_cells=4)


@functools.cache
def model() -> Model:
    """Two layers, a window that block borders do not divide; every parameter matters."""
    config = tiny_config(
        vocab_size=40, model_dim=16, mlp_dim=24, max_context=64, qkv_bias=True, qk_norm=True
    )
    return random_model(config, STEPS, seed=11)


@jax.jit
def compiled_forward(
    params: chex.ArrayTree, tokens: jax.Array, positions: jax.Array, context: Context, tail: Tail
) -> tuple[jax.Array, NewCells, jax.Array]:
    decoder = model().decoder
    hidden, new = decoder.apply({"params": params}, tokens, positions, context, tail)
    return hidden, new, decoder.apply({"params": params}, hidden, method="logits")


compiled_append = jax.jit(append_tail)


def forward(
    context: Context, tail: Tail, tokens: Ids
) -> tuple[NDArray[np.float32], NewCells, NDArray[np.float32]]:
    """tokens [B, Q, T], placed behind each question's tail."""
    start = np.asarray(context.lengths)[:, None] + np.asarray(tail.lengths)
    positions = start[..., None] + np.arange(tokens.shape[2], dtype=np.int32)
    hidden, new, logits = compiled_forward(
        model().params, jnp.asarray(tokens), jnp.asarray(positions), context, tail
    )
    return np.asarray(hidden), new, np.asarray(logits)


def empty_tail(batch: int, questions: int, cells: int) -> Tail:
    """In blocks of four, last ones first; unused tail cells may hold anything."""
    config = model().config
    width = -(-cells // 4)
    block = (config.num_layers, 2, 4, config.num_kv_heads, config.head_dim)
    shape = (batch * questions * width, *block)
    anything = jnp.full(shape, jnp.nan, jnp.float32)
    tables = jnp.arange(shape[0] - 1, -1, -1, dtype=jnp.int32).reshape(batch, questions, width)
    lengths = jnp.zeros((batch, questions), jnp.int32)
    return Tail(cells=anything, tables=tables, lengths=lengths)


def context_of(
    streams: Sequence[Sequence[int]], *, capacity: int = 40, seed: int = 0, poison: float = np.nan
) -> tuple[Context, list[Reference]]:
    """Sessions that have read those streams, with what the reference says of each."""
    config, random = model().config, np.random.default_rng(seed)
    layout = plan_layout(config, cells=capacity, block_cells=STEPS.block_cells)
    plain = [reference_forward(model(), list(stream)) for stream in streams]
    tables = []
    for group in layout.groups:
        order = random.permutation(len(streams) * group.table_width + 2).astype(np.int32)
        owned = order[: len(streams) * group.table_width]
        tables.append(owned.reshape(len(streams), group.table_width))

    def layers(name: str) -> list[NDArray[np.float32]]:
        found = []
        for index, group in enumerate(layout.layer_groups):
            table, width = tables[group], layout.groups[group].table_width
            shape = (len(streams) * width + 2, *layout.block_shape(group)[2:])
            cells = np.full(shape, poison, np.float32)
            for session, stream in enumerate(streams):
                last = (len(stream) - 1) // layout.block_cells
                first = max(0, last - width + 1) * layout.block_cells
                at = np.arange(first, len(stream))
                blocks = table[session][at // layout.block_cells % width]
                cells[blocks, at % layout.block_cells] = getattr(plain[session], name)[index][at]
            found.append(cells)
        return found

    pairs = list(zip(layers("keys"), layers("values"), strict=True))
    pool = pool_of_layers(layout.layer_groups, pairs)
    lengths = jnp.asarray(np.array([len(stream) for stream in streams], np.int32))
    return Context(pool=pool, tables=tuple(jnp.asarray(t) for t in tables), lengths=lengths), plain


def random_ids(*shape: int, seed: int = 0) -> Ids:
    return np.random.default_rng(seed).integers(0, 40, shape).astype(np.int32)


def streams_of(*lengths: int) -> list[list[int]]:
    return [random_ids(length, seed=length).tolist() for length in lengths]


def check_against_reference(
    streams: Sequence[Sequence[int]], tokens: Ids, logits: NDArray[np.float32]
) -> None:
    for session, stream in enumerate(streams):
        for question, ids in enumerate(tokens[session]):
            plain = reference_forward(model(), [*stream, *ids.tolist()])
            np.testing.assert_allclose(
                logits[session, question], plain.logits[len(stream) :], atol=1e-4, rtol=0
            )


@pytest.mark.parametrize("length", [0, 1, 3, 4, 5, 6, 7, 8, 9, 12, 13, 25, 39, 40])
def test_one_question_of_one_session(length: int) -> None:
    streams = streams_of(length)
    context, _ = context_of(streams, seed=length)
    tokens = random_ids(1, 1, 6, seed=length + 1)
    _, new, logits = forward(context, empty_tail(1, 1, 8), tokens)
    check_against_reference(streams, tokens, logits)
    plain = reference_forward(model(), [*streams[0], *tokens[0, 0].tolist()])
    for layer in range(2):
        for part, exact in enumerate((plain.keys, plain.values)):
            found = np.asarray(new[layer])[0, 0, :, part]
            np.testing.assert_allclose(found, exact[layer][length:], atol=1e-4, rtol=0)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_padding_is_harmless(count: int) -> None:
    """Nothing looks ahead: whatever the padding says, the tokens before it keep their bits."""
    context, _ = context_of(streams_of(13))
    tokens = random_ids(1, 1, 6)
    found = []
    for seed in range(4):
        padded = tokens.copy()
        padded[..., count:] = random_ids(6 - count, seed=seed)
        hidden, new, _ = forward(context, empty_tail(1, 1, 8), padded)
        cells = [np.asarray(leaf)[:, :, :count] for leaf in jax.tree.leaves(new)]
        found.append((hidden[:, :, :count].tobytes(), *(leaf.tobytes() for leaf in cells)))
    assert len(set(found)) == 1


@pytest.mark.parametrize("length", [0, 8, 13, 40])
def test_questions_in_one_call_are_as_if_alone(length: int) -> None:
    streams = streams_of(length)
    context, _ = context_of(streams)
    tokens = random_ids(1, 3, 6, seed=length)
    together, new, logits = forward(context, empty_tail(1, 3, 8), tokens)
    check_against_reference(streams, tokens, logits)
    for question in range(3):
        one = tokens[:, question : question + 1]
        alone, cells, _ = forward(context, empty_tail(1, 1, 8), one)
        np.testing.assert_allclose(together[:, question], alone[:, 0], atol=TOLERANCE)
        for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(cells), strict=True):
            np.testing.assert_allclose(
                np.asarray(a)[:, question], np.asarray(b)[:, 0], atol=TOLERANCE
            )


@pytest.mark.parametrize("poison", [0.0, np.nan])
@pytest.mark.parametrize("lengths", [(9, 9, 9), (40, 39, 38), (13, 0, 30), (1, 40, 14)])
def test_sessions_in_one_call_are_as_if_alone(lengths: tuple[int, int, int], poison: float) -> None:
    streams = streams_of(*lengths)
    context, _ = context_of(streams, seed=3, poison=poison)
    tokens = random_ids(3, 1, 6, seed=4)
    together, _, logits = forward(context, empty_tail(3, 1, 8), tokens)
    check_against_reference(streams, tokens, logits)
    for session, stream in enumerate(streams):
        single, _ = context_of([stream], seed=5, poison=poison)
        one = tokens[session : session + 1]
        alone, _, _ = forward(single, empty_tail(1, 1, 8), one)
        np.testing.assert_allclose(together[session], alone[0], atol=TOLERANCE)


def test_another_session_cannot_be_heard() -> None:
    """What neighbours read and ask does not move a bit of an answer (same shapes, same places)."""
    mine = streams_of(21)[0]
    question = random_ids(6)
    found = []
    for seed in range(3):
        others = [random_ids(21, seed=seed).tolist(), random_ids(21, seed=seed + 9).tolist()]
        context, _ = context_of([others[0], mine, others[1]], seed=6)
        tokens = random_ids(3, 1, 6, seed=seed)
        tokens[1, 0] = question
        hidden, _, _ = forward(context, empty_tail(3, 1, 8), tokens)
        found.append(hidden[1].tobytes())
    assert len(set(found)) == 1


@pytest.mark.parametrize("cut", [(6,), (2, 4), (4, 2), (1, 1, 1, 1, 1, 1), (3, 3)])
@pytest.mark.parametrize("length", [0, 13])
def test_a_tail_in_pieces_is_a_tail_at_once(cut: tuple[int, ...], length: int) -> None:
    """With window 7, the later tokens of a tail no longer see the end of the context."""
    streams = streams_of(length)
    context, _ = context_of(streams)
    tokens = random_ids(1, 1, 12, seed=7)
    tail, rows, start = empty_tail(1, 1, 12), [], 0
    for size in (*cut, 6):
        # Padded to six, as buckets do; the padding must not arrive in the tail.
        piece = np.zeros((1, 1, 6), np.int32)
        piece[..., :size] = tokens[..., start : start + size]
        _, new, logits = forward(context, tail, piece)
        tail = compiled_append(tail, new, np.full((1, 1), size, np.int32))
        rows.append(logits[:, :, :size])
        start += size
    assert np.asarray(tail.lengths).tolist() == [[12]]
    check_against_reference(streams, tokens, np.concatenate(rows, axis=2))


def test_appending_to_a_tail_places_the_first_cells_and_touches_no_other() -> None:
    batch, questions, cells, tokens = 2, 3, 5, 4
    random = np.random.default_rng(12)
    shape = (batch, questions, cells, 2, 4)
    old = random.normal(0, 1, shape).astype(np.float32)
    lengths = np.array([[0, 1, 5], [2, 4, 3]], np.int32)
    counts = np.array([[4, 0, 2], [3, 4, 1]], np.int32)
    fresh = random.normal(0, 1, (batch, questions, tokens, 2, 4)).astype(np.float32)
    each = old.reshape(batch * questions, *shape[2:])
    each = np.stack([each, -each], axis=1)[:, None]
    tail = Tail(
        cells=jnp.asarray(each),
        tables=jnp.arange(6, dtype=jnp.int32).reshape(batch, questions, 1),
        lengths=jnp.asarray(lengths),
    )
    new = (jnp.asarray(np.stack([fresh, -fresh], axis=3)),)
    found = append_tail(tail, new, jnp.asarray(counts))
    expected = old.copy()
    for b in range(batch):
        for q in range(questions):
            for t in range(counts[b, q]):
                if lengths[b, q] + t < cells:  # past the end: dropped
                    expected[b, q, lengths[b, q] + t] = fresh[b, q, t]
    keys, values = np.asarray(found.cells)[:, 0].swapaxes(0, 1)
    np.testing.assert_array_equal(keys.reshape(shape), expected)
    np.testing.assert_array_equal(values.reshape(shape), -expected)
    np.testing.assert_array_equal(np.asarray(found.lengths), lengths + counts)
    np.testing.assert_array_equal(np.asarray(tail.cells), each)


def test_the_tiny_model_is_reproducible_and_its_answers_differ() -> None:
    """The fake that programs test with: the same seed, the same bits; no ties to trip over."""
    one, same, other = tiny_model(), tiny_model(), tiny_model(seed=1)
    assert one.fingerprint == same.fingerprint != other.fingerprint
    logits = reference_forward(one, [256, 1, 2, 3]).logits[-1]
    first, second = np.sort(logits)[::-1][:2]
    assert first - second > 1e-3
    assert one.num_params == sum(leaf.size for leaf in jax.tree.leaves(one.params))
