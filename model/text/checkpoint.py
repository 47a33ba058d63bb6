"""A model as a folder: `model.safetensors`, `config.json`, `tokenizer.json`. Rebuilt from itself alone, no pickle."""

import contextlib
import dataclasses
import hashlib
import json
import math
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from model.config import ModelConfig
from model.errors import message_of
from model.language_model import LanguageModel

WEIGHTS, CONFIG, TOKENIZER = "model.safetensors", "config.json", "tokenizer.json"
DTYPE = "F32"  # of every tensor, as safetensors calls it
DIGEST = "sha256"  # beside the sizes in `CONFIG`: of these and both other files
MODEL_DIGEST = "model_sha256"  # that digest, where something else names the model: `run.json`, a version's tag


def _digest(sizes: dict[str, Any], folder: Path) -> str:
    digest = hashlib.sha256(json.dumps(sizes, sort_keys=True).encode())
    for name in (WEIGHTS, TOKENIZER):
        with (folder / name).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def save_model(model: LanguageModel, folder: Path, tokenizer_json: str) -> None:
    """Write the model, its sizes and its tokenizer as `folder`, in place of a model that was there.

    It appears by a rename, whole: a writer that is killed leaves the older folder, or none.

    Raises:
        ValueError: `folder` holds something other than a model.
    """
    folder = folder.absolute()
    if folder.exists() and not (folder / CONFIG).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is there already and holds no model: it is not replaced")
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        made = scratch / "made"
        made.mkdir()
        save_file({name: t.contiguous() for name, t in model.state_dict().items()}, made / WEIGHTS)
        (made / TOKENIZER).write_text(tokenizer_json, encoding="utf-8")
        (made / WEIGHTS).chmod((made / TOKENIZER).stat().st_mode)  # safetensors makes files for their owner alone
        sizes = dataclasses.asdict(model.config)
        (made / CONFIG).write_text(json.dumps(sizes | {DIGEST: _digest(sizes, made)}, indent=1))
        with contextlib.suppress(FileNotFoundError):
            folder.rename(scratch / "older")
        made.rename(folder)
    finally:
        shutil.rmtree(scratch)


def read_config(folder: Path) -> ModelConfig:
    """The sizes, once all three files are known to be what was saved together."""
    try:
        fields = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{CONFIG} is no JSON: {error}") from None
    types = {field.name: field.type for field in dataclasses.fields(ModelConfig)} | {DIGEST: str}
    if not isinstance(fields, dict) or fields.keys() != types.keys():
        raise ValueError(f"{CONFIG} must have the fields {', '.join(types)} and no others")
    for name, kind in types.items():
        if type(fields[name]) is not kind:
            raise ValueError(f"{name} in {CONFIG} is {fields[name]!r}")
    digest = fields.pop(DIGEST)
    config = ModelConfig(**fields)
    if digest != _digest(fields, folder):
        raise ValueError("its files are not those that were saved together: one was changed, cut off or exchanged")
    return config


def _read_weights(config: ModelConfig, file: Path, device: torch.device | str) -> LanguageModel:
    with safe_open(file, framework="pt") as opened:  # before any of it takes memory
        slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
    for name, found in slices.items():
        if found.get_dtype() != DTYPE:
            raise ValueError(f"{name} in {WEIGHTS} is {found.get_dtype()}, not {DTYPE}")
    held = sum(math.prod(found.get_shape()) for found in slices.values())
    if held != config.total_params:
        raise ValueError(f"{WEIGHTS} has {held:,} numbers, a model of these sizes {config.total_params:,}")
    weights = load_file(file)
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if found.get("table") != (config.vocab_size, config.embedding_dim):
        raise ValueError(f"{WEIGHTS} is not of these sizes: table is {found.get('table', 'not there')}")
    model = LanguageModel(config, weights["table"], seed=0)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            raise ValueError(f"{WEIGHTS} is not of these sizes: {name} is {found.get(name, 'not there')}")
    model.load_state_dict(weights)
    return model.to(device)


def load_model(folder: Path, device: torch.device | str = "cpu") -> LanguageModel:
    """The model that `save_model` wrote.

    Raises:
        ValueError: a file is missing, or not as it was saved, or weights and config disagree.
    """
    try:
        return _read_weights(read_config(folder), folder / WEIGHTS, device)
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} is no usable model folder: {message_of(error)}") from error
    except Exception as error:  # safetensors raises a type of its own, derived from Exception alone
        if type(error).__name__ != "SafetensorError":
            raise
        raise ValueError(f"{folder / WEIGHTS} is damaged: {error}") from error
