"""A run of a few steps with a tiny model."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from jaxstate.training.config import TrainConfig, train_config_from_toml
from jaxstate.training.vocabulary import train_vocabulary

TOML = """
row_tokens = 48
evaluate_steps = 4
save_steps = 2

[model]
architectures = ["LlamaForCausalLM"]
model_type = "llama"
vocab_size = 640
hidden_size = 32
intermediate_size = 64
num_hidden_layers = 2
num_attention_heads = 4
num_key_value_heads = 2
head_dim = 8
max_position_embeddings = 512
rms_norm_eps = 1e-5
tie_word_embeddings = true
bos_token_id = 1
eos_token_id = 2

[optimizer]
learning_rate = 1e-2
warmup_steps = 2

[[stages]]
steps = 4
sequences = 2
session_tokens = 96
questions = 3

[[stages]]
steps = 2
sequences = 2
session_tokens = 144
questions = 2
accumulate = 2
"""


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vocabulary") / "tokenizer.model"
    path.write_bytes(train_vocabulary(0, pieces=640, streams=120))
    return path


@pytest.fixture
def config() -> TrainConfig:
    return train_config_from_toml(TOML)


@pytest.fixture
def directory(tmp_path: Path, vocabulary: Path) -> Path:
    """A run's directory in which nothing has run."""
    path = tmp_path / "run"
    path.mkdir()
    shutil.copy(vocabulary, path)
    return path
