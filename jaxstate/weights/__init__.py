"""Files -> config and parameters.

Comes in: a Hugging Face model directory or a GGUF file. Goes out: a `ModelConfig`, and a nested
dict of jax arrays with the shapes that the caller asks for. Strict throughout: what is unknown,
missing or left over is one error that lists all.
Does not know: text, cells, the decoder (its shapes are an argument).

    config = config_from_hf(directory)
    params = load_params(open_safetensors(directory), name_table(config, "hf"), abstract)

    file = open_gguf(path)
    config = config_from_gguf(file.metadata, file.tensors)
    params = load_params(file.tensors, name_table(config, "gguf"), abstract)
"""

from jaxstate.weights.config_gguf import config_from_gguf
from jaxstate.weights.config_hf import config_from_hf
from jaxstate.weights.export import save_weights
from jaxstate.weights.foreign import check_is_model, refuse_missing
from jaxstate.weights.known import EMBEDDED, known_model_path, known_names
from jaxstate.weights.load import Params, Progress, load_params
from jaxstate.weights.names import NameTable, Rule, name_table
from jaxstate.weights.source import TensorSource
from jaxstate.weights.tensors_gguf import GgufFile, open_gguf
from jaxstate.weights.tensors_safetensors import SafetensorsFiles, open_safetensors

__all__ = [
    "EMBEDDED",
    "GgufFile",
    "NameTable",
    "Params",
    "Progress",
    "Rule",
    "SafetensorsFiles",
    "TensorSource",
    "check_is_model",
    "config_from_gguf",
    "config_from_hf",
    "known_model_path",
    "known_names",
    "load_params",
    "name_table",
    "open_gguf",
    "open_safetensors",
    "refuse_missing",
    "save_weights",
]
