"""Baselines: a GRU and a causal transformer on the same frozen table and head, with no fewer trained parameters.

Both are made of torch's modules and stand between the embedded tokens and the tied head, `logits = hidden @ table.T`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

STRETCHES = 8  # at least so many stretches of the stream in a training step: neighbours alone teach little
GRU_SPAN = 128  # positions through which gradients flow back, at most
WINDOW = 256  # positions that a transformer sees at once, at most
LAYERS, HEADS = 2, 4  # of a transformer
ROPE_BASE = 10_000.0  # the slowest rotation takes 2 pi times as many positions

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


class _Block(nn.Module):
    """Attention and two-layer perceptron, each behind a LayerNorm and beside a shortcut.

    `nn.TransformerEncoderLayer` has no rotary positions and gives no keys and values to go on from: this is made of its
    parts.
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(hidden) for _ in range(2))
        self.into, self.out = nn.Linear(hidden, 3 * hidden), nn.Linear(hidden, hidden)
        self.perceptron = nn.Sequential(nn.Linear(hidden, 4 * hidden), nn.GELU(), nn.Linear(4 * hidden, hidden))

    def forward(self, x: Tensor, past: State, turns: Tensor) -> tuple[Tensor, State]:
        """The block's output, and keys and values of all positions so far.

        Args:
            x: (B, L, H)
            past: keys and values of the positions before, if any.  # each (B, HEADS, past, h)
            turns: cosines and sines of all positions' angles.  # (2, past+L, h/2)

        # (B, L, H), each (B, HEADS, past+L, h)
        """
        query, key, value = self.into(self.norms[0](x)).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        if past:
            key, value = torch.cat([past[0], key], dim=2), torch.cat([past[1], value], dim=2)
        length, seen = query.shape[2], key.shape[2]
        visible = torch.ones(length, seen, dtype=torch.bool, device=x.device).tril(seen - length)
        query, turned = _rotated(query, turns[:, seen - length :]), _rotated(key, turns)
        with sdpa_kernel(SDPBackend.MATH):  # the faster ones' gradients on a GPU depend on the order of its threads
            read = F.scaled_dot_product_attention(query, turned, value, visible)
        x = x + self.out(read.transpose(1, 2).flatten(2))
        return x + self.perceptron(self.norms[1](x)), [key, value]


def _rotated(x: Tensor, turns: Tensor) -> Tensor:
    """Queries or keys turned by their position, so that their products depend on distances.  # (B, HEADS, L, h)"""
    cos, sin = turns.to(x.dtype)
    left, right = x.chunk(2, dim=3)
    return torch.cat([left * cos - right * sin, left * sin + right * cos], dim=3)


class Transformer(Baseline):
    """Causal attention within a window, positions by rotation; it is trained on windows cut at random."""

    STEP = 2 * HEADS

    def __init__(self, embedded: Tensor, hidden: int, batch_size: int) -> None:
        """As `Baseline`."""
        super().__init__(embedded, hidden, batch_size)
        self.window = max(2, min(WINDOW, batch_size // STRETCHES))
        self.into = nn.Linear(embedded.shape[1], hidden)
        self.blocks = nn.ModuleList(_Block(hidden) for _ in range(LAYERS))

    def forward(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """As `Baseline`; the state is each layer's keys and values."""
        x = self.into(F.embedding(tokens, self.embedded)).float()  # what the blocks add up is never rounded to bf16
        kept: State = []
        half = x.shape[2] // HEADS // 2
        positions = torch.arange((state[0].shape[2] if state else 0) + x.shape[1], device=x.device)
        angles = positions[:, None] * ROPE_BASE ** (-torch.arange(half, device=x.device) / half)
        turns = torch.stack([angles.cos(), angles.sin()])
        for number, block in enumerate(self.blocks):
            x, seen = block(x, state[2 * number : 2 * number + 2] if state else [], turns)
            kept += seen
        return self.norm(self.out(x)), kept

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
