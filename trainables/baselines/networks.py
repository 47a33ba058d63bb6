"""Baselines: a GRU and a causal transformer on the same frozen table and head, with no fewer trained parameters.

Both stand between the embedded tokens and the tied head, `logits = hidden @ table.T`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STRETCHES = 8  # at least so many stretches of the stream in a training step: neighbours alone teach little
GRU_SPAN = 128  # positions through which gradients flow back, at most
WINDOW = 256  # positions that a transformer sees at once, at most
LAYERS, HEADS = 2, 4  # of a transformer

State = list[Tensor]  # what a sequence's next position needs of those before


class Baseline(nn.Module, ABC):
    """What both have in common: the frozen input, and the way back to the table's width."""

    STEP: int  # hidden sizes are multiples of it
    embedded: Tensor  # (V, E) as in `LanguageModel`

    def __init__(self, embedded: Tensor, hidden: int, batch_size: int) -> None:
        """`batch_size`: positions of a training step, `STRETCHES` or more stretches of the stream."""
        super().__init__()
        self.register_buffer("embedded", embedded, persistent=False)
        self.batch_size = batch_size
        self.out = nn.Linear(hidden, embedded.shape[1])
        self.norm = nn.LayerNorm(embedded.shape[1])

    @abstractmethod
    def forward(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Hidden states for the head, and the state behind the last position.

        Args:
            tokens: B stretches of a stream.  # (B, L)
            state: behind the position before the first; None where there is none.

        # (B, L, E)
        """

    @abstractmethod
    def batches(self, num: int, order: torch.Generator) -> Iterator[tuple[Tensor, bool]]:
        """An epoch's steps over `num` positions, and whether each goes on from the state behind the one before.

        # (B, L) int64
        """

    @abstractmethod
    def over(self, tokens: Tensor, rows: int) -> Iterator[Tensor]:
        """Hidden states of a whole stream, in order, about `rows` at once.  # (N,) -> (n, E), N in all"""

    def state_of(self, tokens: Tensor) -> State:
        """What a sequence's next position needs of these, its first.  # tokens (n,)"""
        kept: State = self(tokens[None])[1]
        return kept

    def num_trained(self) -> int:
        """Trained parameters: all but the table."""
        return sum(p.numel() for p in self.parameters())


class Gru(Baseline):
    """One GRU layer whose state is carried along the stream; it is trained on lanes of it, side by side."""

    STEP = 8

    def __init__(self, embedded: Tensor, hidden: int, batch_size: int) -> None:
        """As `Baseline`."""
        super().__init__(embedded, hidden, batch_size)
        self.span = max(1, min(GRU_SPAN, batch_size // STRETCHES))
        self.recurrence = nn.GRU(embedded.shape[1], hidden, batch_first=True)

    def forward(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """As `Baseline`; the state is one (1, B, H)."""
        with torch.autocast(tokens.device.type, enabled=False):  # a state rounded to bf16 loses its small steps
            states, last = self.recurrence(F.embedding(tokens, self.embedded), state[0] if state else None)
        return self.norm(self.out(states)), [last]

    def batches(self, num: int, order: torch.Generator) -> Iterator[tuple[Tensor, bool]]:
        """As `Baseline`: each lane in order; what is left where they do not divide the stream is not trained on."""
        lanes = min(max(1, self.batch_size // self.span), num)
        length = num // lanes
        begins = torch.arange(lanes)[:, None] * length
        for start in range(0, length, self.span):
            yield begins + torch.arange(start, min(start + self.span, length)), start > 0

    def over(self, tokens: Tensor, rows: int) -> Iterator[Tensor]:
        """As `Baseline`, the state carried from the first position to the last."""
        state = None
        for part in tokens.split(rows):
            hidden, state = self(part[None], state)
            yield hidden[0]


class Transformer(Baseline):
    """Causal attention within a window, positions by rotation; it is trained on windows cut at random.

    The blocks are GPT-NeoX's (Black et al., 2022) of the library `transformers`, each behind a LayerNorm and beside a
    shortcut, attention before perceptron.
    """

    STEP = 2 * HEADS

    def __init__(self, embedded: Tensor, hidden: int, batch_size: int) -> None:
        """As `Baseline`."""
        from transformers import GPTNeoXConfig, GPTNeoXModel  # seconds to import

        super().__init__(embedded, hidden, batch_size)
        self.window = max(2, min(WINDOW, batch_size // STRETCHES))
        self.into = nn.Linear(embedded.shape[1], hidden)
        shape = GPTNeoXConfig(
            vocab_size=1,
            hidden_size=hidden,
            intermediate_size=4 * hidden,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            max_position_embeddings=self.window,
            rotary_pct=1.0,
            use_parallel_residual=False,
            bos_token_id=None,
            eos_token_id=None,
            attn_implementation="eager",  # the faster ones' gradients on a GPU depend on the order of its threads
        )
        self.blocks = GPTNeoXModel(shape)
        self.blocks.embed_in = None  # the frozen table stands for it
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):
                module.reset_parameters()  # as the other baseline's: the library's are for widths of thousands

    def forward(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """As `Baseline`; the state is each layer's keys and values."""
        from transformers import DynamicCache

        x = self.into(F.embedding(tokens, self.embedded)).float()  # what the blocks add up is never rounded to bf16
        state, past = state or [], DynamicCache()
        for number in range(len(state) // 2):
            past.update(state[2 * number], state[2 * number + 1], number)
        found = self.blocks(None, None, None, x, past)  # by position: versions name the last argument differently
        kept = [tensor for layer in past.layers for tensor in (layer.keys, layer.values)]
        return self.norm(self.out(found.last_hidden_state)), kept

    def batches(self, num: int, order: torch.Generator) -> Iterator[tuple[Tensor, bool]]:
        """As `Baseline`: windows in random order, cut from a random offset; what is left at both ends is left out."""
        window = min(self.window, num)
        offset = int(torch.randint(0, min(window, num - window + 1), (), generator=order))
        begins = torch.arange(offset, num - window + 1, window)
        begins = begins[torch.randperm(len(begins), generator=order)]
        for some in begins.split(max(1, self.batch_size // window)):
            yield some[:, None] + torch.arange(window), False

    def over(self, tokens: Tensor, rows: int) -> Iterator[Tensor]:
        """As `Baseline`, each from half a window of context or more, where the stream has begun so long ago."""
        half, last = self.window // 2, len(tokens) - 1
        begins = torch.arange(0, max(1, len(tokens) - self.window + half), half, device=tokens.device)
        columns = torch.arange(self.window, device=tokens.device)
        for some in begins.split(max(1, rows // self.window)):
            where = some[:, None] + columns  # windows overlap by half: the second half counts, of the first window all
            hidden, _ = self(tokens[where.clamp(max=last)])
            yield hidden[(where <= last) & ((columns >= self.window - half) | (some[:, None] == 0))]

    def state_of(self, tokens: Tensor) -> State:
        """As `Baseline`: of the last window."""
        return super().state_of(tokens[-self.window :])


MODELS: dict[str, type[Baseline]] = {"gru": Gru, "transformer": Transformer}


def smallest_hidden(kind: str, embedding_dim: int, batch_size: int, trained: int) -> int:
    """The least hidden size, a multiple of `STEP`, with `trained` or more parameters to train."""
    make = MODELS[kind]
    size = make.STEP
    with torch.device("meta"):
        embedded = torch.empty(1, embedding_dim)
        while make(embedded, size, batch_size).num_trained() < trained:
            size += make.STEP
    return size
