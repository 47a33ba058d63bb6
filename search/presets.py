"""Presets: each is a function that returns everything a study starts from. No torch."""

from collections.abc import Callable
from dataclasses import dataclass

from trainables.config import BigramConfig, Phase2Config


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Defaults of a study; every option on the command line overrides one of them."""

    data: str  # as --data
    samples: int | None  # first documents of `data` (pydoc, ultrachat: to train on); other data is taken whole
    embedding: str  # as --embedding
    bigram: BigramConfig  # used where the embedding is the bigram's
    context_dim: int  # D of the cells and of the grid
    context_dims: tuple[int, ...]  # values of D that a sampler explores
    phase2: Phase2Config
    summary: str  # one line for --help


def demo() -> Preset:
    """Everything embedded, nothing downloaded: a finished study in a minute or two on two CPU cores."""
    return Preset(
        data="pydoc",
        samples=77,  # 60 thousand training tokens
        embedding="bigram",
        # So small a corpus gives 15 steps an epoch: at 4 epochs the table is far from trained (43.6 against 33.5).
        bigram=BigramConfig(vocab_size=512, embedding_dim=192, epochs=20),
        context_dim=48,
        context_dims=(32, 48, 64),
        phase2=Phase2Config(batch_size=256, epochs=5),
        summary="Python's own reference texts, bigram embedding, V=512, E=192, D=48; a CPU is enough",
    )


def reports() -> Preset:
    """The two reports' scale: UltraChat's first 2,000 conversations, GPT-2's embedding, D=500."""
    return Preset(
        data="ultrachat",
        samples=2_000,
        embedding="gpt2",
        bigram=BigramConfig(vocab_size=50_257, embedding_dim=768),
        context_dim=500,
        context_dims=(100, 200, 300, 400, 500),
        phase2=Phase2Config(batch_size=8_192, epochs=20),
        summary="UltraChat (2,000 conversations), GPT-2's embedding, D=500; wants a GPU and a hub",
    )


PRESETS: dict[str, Callable[[], Preset]] = {"demo": demo, "reports": reports}
