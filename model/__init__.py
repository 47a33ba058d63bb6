"""What is learnt: the two-phase language model, its context recurrence and its losses; and a trained one at work."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from model.text.text_model import TextModel

__all__ = ["load"]


def load(where: "str | Path", device: str | None = None) -> "TextModel":
    """A trained model, ready for text.

    Args:
        where: a model folder, or MLflow's URI of a registered model: `models:/NAME@ALIAS` or `models:/NAME/VERSION`.
        device: `cpu`, `cuda` or `cuda:N`; without it the GPU where there is one.

    Raises:
        ValueError: there is no such model, it is damaged, or the device cannot be used.
    """
    from model.text.text_model import load_text_model  # torch takes seconds to import

    return load_text_model(where, device)
