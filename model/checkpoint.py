"""A model as a folder: `model.safetensors`, `config.json`, `tokenizer.json`. Rebuilt from itself alone, no pickle."""

import dataclasses
import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from model.config import ModelConfig
from model.language_model import LanguageModel

WEIGHTS, CONFIG, TOKENIZER = "model.safetensors", "config.json", "tokenizer.json"


def save_model(model: LanguageModel, folder: Path, tokenizer_json: str) -> None:
    """Write the model, its sizes and its tokenizer into `folder`, which is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: t.contiguous() for name, t in model.state_dict().items()}, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(dataclasses.asdict(model.config), indent=1))
    (folder / TOKENIZER).write_text(tokenizer_json)


def load_model(folder: Path, device: torch.device | str = "cpu") -> LanguageModel:
    """The model that `save_model` wrote.

    Raises:
        ValueError: a file is missing or damaged, or weights and config disagree.
    """
    try:
        config = ModelConfig(**json.loads((folder / CONFIG).read_text()))
        weights = load_file(folder / WEIGHTS, device=str(device))
        model = LanguageModel(config, weights["table"], seed=0).to(device)
        model.load_state_dict(weights)
    except (OSError, ValueError, TypeError, KeyError, AssertionError, RuntimeError) as error:
        raise ValueError(f"{folder} is no usable model folder: {error}") from error
    except Exception as error:  # safetensors raises a type of its own, derived from Exception alone
        if type(error).__name__ != "SafetensorError":
            raise
        raise ValueError(f"{folder / WEIGHTS} is damaged: {error}") from error
    return model
