"""Sizes, and configurations so small that a test of them takes no time."""

from pathlib import Path

from model.config import ModelConfig
from trainables.config import BigramConfig, Phase2Config, RunConfig
from trainables.inputs.sources import resolve_data, resolve_embedding

VOCAB, E, D, N = 37, 12, 8, 301


def model_config(context_layers: int = 2, token_layers: int = 2, mode: str = "layerwise") -> ModelConfig:
    """A small model's sizes."""
    return ModelConfig(
        vocab_size=VOCAB,
        embedding_dim=E,
        context_dim=D,
        context_layers=context_layers,
        token_layers=token_layers,
        context_mode=mode,
    )


def run_config(path: Path, **changes: object) -> RunConfig:
    """A run on `path` that takes about a second."""
    data = resolve_data(str(path), None)
    base = RunConfig(
        data=str(path),
        data_fingerprint=data.fingerprint,
        embedding="bigram",
        embedding_fingerprint=resolve_embedding("bigram").fingerprint,
        bigram=BigramConfig(vocab_size=280, embedding_dim=16),
        context_layers=2,
        token_layers=2,
        context_dim=8,
        context_mode="layerwise",
        phase2=Phase2Config(batch_size=64, epochs=2),
    )
    return base.replace(phase1_block=500, phase1_max_sweeps=6, **changes)
