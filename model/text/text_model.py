"""A trained model at work on text: probabilities, perplexity, continuation. `model.load` makes one."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from tokenizers import Encoding, Tokenizer
from torch import Tensor

from model.config import RUN
from model.contexts import StreamContexts, exact_contexts, full_products
from model.language_model import LanguageModel
from model.ops.compute import Compute, usable_device
from model.ops.head import FrozenHead
from model.ops.passes import TokenPass
from model.text.checkpoint import TOKENIZER, load_model
from model.text.continuation import Continuation
from model.text.documents import predicted_bytes
from model.text.recurrence import step, zero_state
from model.text.registered import model_folder
from model.text.sampling import Sampling

TOLERANCE = 1e-5  # of contexts: a chunk whose start moved by more is scanned again


class NextToken(NamedTuple):
    """One of the tokens that may come next."""

    text: str  # a token that holds a part of a character only shows as U+FFFD
    logprob: float  # natural log of its probability
    token: int  # its id


@dataclass(frozen=True)
class Score:
    """How well a model predicts a text: every token but the first, given those before it."""

    ppl: float  # exp of the mean loss in nats
    accuracy: float  # share of tokens that were the most likely one
    bits_per_byte: float  # the loss in bits, by the UTF-8 bytes of the predicted tokens (`documents.predicted_bytes`)
    tokens: int  # predicted: one fewer than the text has
    bytes: int  # that they stand for


class TextModel:
    """A trained model and its tokenizer. All products are in full fp32, on the CPU and on GPUs.

    The model has no token for the beginning of a text: it says nothing about a text's first token.
    """

    network: LanguageModel
    tokenizer: Tokenizer
    chat: bool | None  # whether it was trained on conversations; None: its folder does not say

    def __init__(self, network: LanguageModel, tokenizer: Tokenizer, chat: bool | None = None) -> None:
        """Put them together.

        Raises:
            ValueError: the tokenizer has tokens that the model does not have.
        """
        known = sorted(tokenizer.get_vocab(with_added_tokens=True).values())
        if not known or known[-1] >= network.config.vocab_size:
            count = f"{known[-1] + 1 if known else 0} tokens"
            raise ValueError(f"the tokenizer is another model's: it has {count}, the model {network.config.vocab_size}")
        self.network, self.tokenizer, self.chat = network, tokenizer, chat
        self._compute = Compute.of(network.table.device).full()
        self._token_pass = TokenPass(network.token_block, network.embedded, self._compute)
        self._head = FrozenHead(network.table, self._compute)
        # a pretrained table may have more rows than its tokenizer has tokens: those stand for no text
        self._silent = torch.ones(network.config.vocab_size, dtype=torch.bool, device=network.table.device)
        self._silent[torch.tensor(known, device=network.table.device)] = False

    def encode(self, text: str) -> list[int]:
        """The token ids of `text`; nothing is put before or after it.

        Raises:
            ValueError: `text` holds half of a surrogate pair.
        """
        ids: list[int] = self._encode(text).ids
        return ids

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of token ids; bytes that are no UTF-8 become U+FFFD.

        Raises:
            ValueError: an id is not one of the model's.
        """
        size = self.network.config.vocab_size
        for token in tokens:
            if not 0 <= token < size:
                raise ValueError(f"token ids of this model are 0 to {size - 1}, not {token}")
        text: str = self.tokenizer.decode(list(tokens), skip_special_tokens=False)
        return text

    def tokens(self, text: str) -> list[str]:
        """`text` as it is cut into tokens; a part of a character shows as U+FFFD."""
        return [self.decode([token]) for token in self.encode(text)]

    def logprobs(self, text: str) -> Tensor:
        """The natural-log probability of each token but the first, given those before it.

        The first has none before it, and the model no probability for it: entry i belongs to token i+1.

        Returns:
            On the CPU; empty for a text of one token.  # (number of tokens - 1,) float32

        Raises:
            ValueError: `text` has no token.
        """
        losses, _ = self._score(self._stream([text])[0])
        return -losses.cpu()

    def next_tokens(self, text: str, k: int = 10) -> list[NextToken]:
        """The `k` most likely tokens behind `text`, the most likely first; fewer where there are fewer.

        Raises:
            ValueError: `text` has no token, or `k` is below 1.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, not {k!r}")
        logits, _ = self.read(self._stream([text])[0].tolist(), self.zero_state())
        found = logits.log_softmax(dim=0).topk(min(k, int((~self._silent).sum())))
        pairs = zip(found.values.tolist(), found.indices.tolist(), strict=True)
        return [NextToken(self.decode([token]), logprob, token) for logprob, token in pairs]

    def generate(
        self,
        prompt: str,
        max_tokens: int = Sampling.max_tokens,
        temperature: float = Sampling.temperature,
        top_k: int | None = Sampling.top_k,
        top_p: float = Sampling.top_p,
        seed: int = Sampling.seed,
    ) -> Iterator[str]:
        """Continue `prompt`: one recurrent step for each token, with a state that does not grow.

        The options are those of `model.text.sampling.Sampling`.

        Returns:
            A piece of text for each token, without the prompt. It is empty while a token's bytes wait for the rest of
            their character; what is then still incomplete at the end is U+FFFD.

        Raises:
            ValueError: at once, for an option out of range or a prompt without tokens.
        """
        sampling = Sampling(max_tokens=max_tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
        continuation = Continuation(self, sampling)
        continuation.read(prompt)
        return continuation.pieces()

    def score(self, text: str | Sequence[str]) -> Score:
        """Perplexity, accuracy and bits per byte of a text, or of documents as one stream with nothing between them.

        Raises:
            ValueError: there are fewer than two tokens, or fewer than two characters.
        """
        texts = [text] if isinstance(text, str) else list(text)
        stream, num_bytes = self._stream(texts)
        if len(stream) < 2:
            raise ValueError("a text of one token cannot be scored: its first token has none before it")
        if num_bytes == 0:
            raise ValueError("a text of one character cannot be scored: its first token is a part of it")
        losses, correct = (values.double() for values in self._score(stream))
        return Score(
            ppl=float(losses.mean().exp()),
            accuracy=float(correct.mean()),
            bits_per_byte=float(losses.sum()) / math.log(2) / num_bytes,
            tokens=len(losses),
            bytes=num_bytes,
        )

    def zero_state(self) -> Tensor:
        """The final context before a text's first token.  # (D,)"""
        return zero_state(self.network)

    def read(self, tokens: list[int], state: Tensor) -> tuple[Tensor, Tensor]:
        """Read some tokens, at least one, in parallel.

        Args:
            state: the final context before them.  # (D,)

        Returns:
            The next token's logits, and the final context.  # (V,), (D,)
        """
        for _, contexts in self._contexts(torch.tensor(tokens[:-1], dtype=torch.int64), state):
            state = contexts.final[-1]
        return self.step(tokens[-1], state)

    @full_products()
    def step(self, token: int, state: Tensor) -> tuple[Tensor, Tensor]:
        """Read one token by one step of the recurrence.

        Args, Returns: as in `read`; the logits of ids without text are -inf.
        """
        logits, state = step(self.network, state, token)
        return logits.masked_fill_(self._silent, -math.inf), state

    def _encode(self, text: str) -> Encoding:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValueError("half of a surrogate pair is no valid text") from None
        return self.tokenizer.encode(text, add_special_tokens=False)

    def _stream(self, texts: Sequence[str]) -> tuple[Tensor, int]:
        """The texts' tokens, one text after the other, and the UTF-8 bytes behind the first token.

        # (N,) int64, N > 0
        """
        ids: list[Tensor] = []
        num_bytes = 0
        for text in texts:
            encoding = self._encode(text)  # one at a time: it takes far more memory than its ids
            if len(encoding) == 0:
                continue
            num_bytes += len(text.encode()) if ids else predicted_bytes(text, encoding.token_to_chars(0))
            ids.append(torch.tensor(encoding.ids, dtype=torch.int64))
        if not ids:
            raise ValueError("the text is empty: there is no token to begin with")
        return torch.cat(ids), num_bytes

    def _contexts(self, tokens: Tensor, state: Tensor) -> Iterator[tuple[Tensor, StreamContexts]]:
        """The exact contexts of a stream piece by piece, so that a long one takes no more memory than a short one.

        Args:
            state: the final context before it.  # (D,)
        """
        model, rows = self.network, self._compute.chunks.eval_rows
        for piece in tokens.to(model.table.device).split(rows) if len(tokens) else ():
            used, columns = piece.unique(return_inverse=True)  # the token half of a layer for these only, not for all V
            contexts = exact_contexts(
                model.context_block, model.embedded[used], columns, TOLERANCE, self._compute, start=state
            )
            state = contexts.final[-1]
            yield piece, contexts

    @full_products()
    def _score(self, stream: Tensor) -> tuple[Tensor, Tensor]:
        """Losses in nats and hits of the targets `stream[1:]`.  # (N-1,) float, (N-1,) bool"""
        model, begin = self.network, 1
        targets = stream.to(model.table.device)
        losses, correct = [model.table.new_empty(0)], [targets.new_empty(0, dtype=torch.bool)]
        for piece, contexts in self._contexts(stream[:-1], self.zero_state()):
            hidden = self._token_pass.forward(piece, contexts.read(model.config.reads))
            scored = self._head.scores(hidden, targets[begin : begin + len(piece)])
            losses.append(scored[0])
            correct.append(scored[1])
            begin += len(piece)
        return torch.cat(losses), torch.cat(correct)


def load_text_model(where: str | Path, device: str | None = None) -> TextModel:
    """As `model.load`."""
    on = usable_device(device)
    with model_folder(where) as folder:
        network = load_model(folder, on)
        try:
            tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
        except Exception as error:  # its errors are plain Exceptions
            raise ValueError(f"{folder / TOKENIZER} is no usable tokenizer: {error}") from error
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return TextModel(network, tokenizer, _was_chat(folder / RUN))


def _was_chat(run: Path) -> bool | None:
    """What a training's record says of its corpus; a model is usable without one, or with one of another kind."""
    try:
        content = json.loads(run.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    found = content.get("chat") if isinstance(content, dict) else None
    return found if isinstance(found, bool) else None
