"""What MLflow runs of a registered model: `mlflow.pyfunc` finds `_load_pyfunc` by its name. MLflow is not imported."""

from collections.abc import Iterable
from typing import Any

from model.text.text_model import TextModel, load_text_model

NEXT_TOKENS = 5


class Served:
    """A model behind MLflow's `predict`."""

    def __init__(self, model: TextModel) -> None:
        self.model = model

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> list[dict[str, list[Any]]]:
        """For each text its likely next tokens and the log-probabilities of its own tokens.

        Args:
            model_input: the texts: a list, or MLflow's data frame of one column.
            params: `k`, how many next tokens.

        Returns:
            `next_tokens` and `next_logprobs`, the most likely first; `logprobs` of the text's tokens but the first.
            Logarithms are natural.

        Raises:
            ValueError: a text has no token, or `k` is below 1.
        """
        texts: Iterable[str] = model_input.iloc[:, 0] if hasattr(model_input, "iloc") else model_input
        k = int((params or {}).get("k", NEXT_TOKENS))
        rows: list[dict[str, list[Any]]] = []
        for text in texts:
            following = self.model.next_tokens(text, k)
            rows.append(
                {
                    "next_tokens": [token.text for token in following],
                    "next_logprobs": [token.logprob for token in following],
                    "logprobs": self.model.logprobs(text).tolist(),
                }
            )
        return rows


def _load_pyfunc(path: str) -> Served:
    return Served(load_text_model(path))
