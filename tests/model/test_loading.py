"""`load`: what a source may be, what it becomes, and what is refused by name."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import jaxstate
from jaxstate.errors import InvalidInput, TextUnavailable, UnsupportedModel
from jaxstate.testing import TINY_STEPS
from tests.tiny_directory import MAX_CONTEXT, directory_model, write_directory
from tests.weights import synthetic


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_directory(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = synthetic.tiny_config("qwen3")
    params = synthetic.random_params(config)
    return synthetic.write_gguf(
        tmp_path_factory.mktemp("gguf") / "model.gguf",
        "qwen3",
        {
            key: value
            for key, value in synthetic.gguf_metadata(config).items()
            if isinstance(value, int | float | str | bool)
        },
        synthetic.gguf_tensors(config, params),
    )


def test_a_directory_is_the_model_that_was_saved(directory: Path) -> None:
    loaded, made = jaxstate.load(directory), directory_model()
    assert loaded.config == made.config
    assert loaded.fingerprint == made.fingerprint
    assert loaded.source == str(directory)
    assert loaded.num_params == made.num_params
    assert loaded.stop_ids == (257,)


def test_a_relative_path_is_found_again_from_elsewhere(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(directory.parent)
    assert jaxstate.load("tiny").source == str(directory)


def test_without_tokenizer_files_token_ids_work_and_text_says_so(tmp_path: Path) -> None:
    path = write_directory(tmp_path / "mute")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (path / name).unlink()
    model = jaxstate.load(path, steps=TINY_STEPS)
    assert model.tokenizer is None
    state = jaxstate.extend(model, jaxstate.init_state(model, 16), [1, 2, 3])
    result = jaxstate.query(model, state, [4], max_tokens=3)
    assert result.text is None
    assert len(result.tokens) == 3
    with pytest.raises(TextUnavailable, match="has no tokenizer files"):
        jaxstate.query(model, state, [4], stop=["\n"])
    with pytest.raises(TextUnavailable):
        _ = model.text


def test_a_gguf_file_without_a_vocabulary_loads_too(gguf_file: Path) -> None:
    model = jaxstate.load(gguf_file, steps=TINY_STEPS)
    assert model.tokenizer is None
    assert model.config.family == "qwen3"
    state = jaxstate.extend(model, jaxstate.init_state(model, 16), [1, 2, 3])
    assert np.isfinite(jaxstate.query(model, state, [4], max_tokens=1).logits).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_dtype_is_that_of_matrices_and_cells(directory: Path, dtype: str) -> None:
    model = jaxstate.load(directory, dtype=dtype, steps=TINY_STEPS)
    state = jaxstate.extend(model, jaxstate.init_state(model, 8), [1, 2, 3])
    assert model.dtype == state.ready.dtype == state.pool.groups[0].dtype == jnp.dtype(dtype)
    assert model.params["final_norm"]["scale"].dtype == jnp.float32
    assert jaxstate.query(model, state, [4], max_tokens=1).logits.dtype == np.float32


def test_float32_is_the_default_on_a_cpu(directory: Path) -> None:
    assert jaxstate.load(directory).dtype == jnp.float32


@pytest.mark.parametrize("dtype", ["int8", "float64", "no such", 7])
def test_other_dtypes_are_refused(directory: Path, dtype: str) -> None:
    with pytest.raises(InvalidInput, match="dtype="):
        jaxstate.load(directory, dtype=dtype)


def test_max_context_bounds_sessions(directory: Path) -> None:
    model = jaxstate.load(directory, max_context=32, steps=TINY_STEPS)
    assert model.config.max_context == 32
    assert jaxstate.init_state(model, 32).layout.cells == 32
    with pytest.raises(InvalidInput, match="1 to 32 tokens"):
        jaxstate.init_state(model, 33)


@pytest.mark.parametrize("max_context", [0, -1, MAX_CONTEXT + 1])
def test_max_context_beyond_the_models_own_is_refused(directory: Path, max_context: int) -> None:
    with pytest.raises(InvalidInput, match=f"was made for 1 .. {MAX_CONTEXT}"):
        jaxstate.load(directory, max_context=max_context)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("no-such-model", "known are: streams-20m, gemma3-270m"),
        ("/no/such/folder", "no such file or directory"),
        ("no-such-file.gguf", "no such file or directory"),
    ],
)
def test_nothing_there(source: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        jaxstate.load(source)


def test_a_folder_that_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"needs a config.json, a file must be a .gguf"):
        jaxstate.load(tmp_path)


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("dear diary", encoding="utf-8")
    with pytest.raises(UnsupportedModel):
        jaxstate.load(tmp_path / "notes.txt")


def test_progress_ends_with_everything(directory: Path) -> None:
    seen: list[tuple[int, int]] = []
    jaxstate.load(directory, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1] > 0
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_the_fingerprint_follows_the_weights_and_not_the_reach(directory: Path) -> None:
    model = jaxstate.load(directory)
    assert jaxstate.load(directory, max_context=32).fingerprint == model.fingerprint
    assert directory_model(seed=1).fingerprint != model.fingerprint
    assert jaxstate.load(directory, dtype="bfloat16").fingerprint != model.fingerprint
