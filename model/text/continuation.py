"""A text that a model goes on with, token by token; its state is one final context, however long the text."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from tokenizers.decoders import DecodeStream

from model.seeds import seeded
from model.text.sampling import Sampling

if TYPE_CHECKING:
    from model.text.text_model import TextModel


class Continuation:
    """Text read and text drawn, by turns."""

    def __init__(self, model: "TextModel", sampling: Sampling) -> None:
        self.model, self.sampling = model, sampling
        self.state = model.zero_state()  # the final context of all that was read  # (D,)
        self._unread: list[int] = []  # what was drawn last
        self._read: list[int] = []  # a decoder may need the tokens before
        self._generator = seeded(sampling.seed, "sampling")

    def read(self, text: str) -> None:
        """Read on.

        Raises:
            ValueError: the first text has no token.
        """
        self._unread += self.model.encode(text)
        if not self._unread:
            raise ValueError("the prompt is empty: there is no token to begin with")
        self._logits, self.state = self.model.read(self._unread, self.state)
        self._read, self._unread = self._unread, []

    def pieces(self) -> Iterator[str]:
        """Draw `max_tokens` tokens: their text in as many pieces, as in `TextModel.generate`."""
        stream = DecodeStream(ids=self._read, skip_special_tokens=False)
        waiting: list[int] = []
        for number in range(1, self.sampling.max_tokens + 1):
            if self._unread:
                self._logits, self.state = self.model.step(self._unread.pop(), self.state)
            uniform = torch.rand((), generator=self._generator, dtype=torch.float64)
            token = self.sampling.draw(self._logits, float(uniform))
            self._unread = [token]
            waiting.append(token)
            piece = stream.step(self.model.tokenizer, token) or ""
            if piece:
                waiting = []
            elif number == self.sampling.max_tokens:
                piece = self.model.decode(waiting)
            yield piece
