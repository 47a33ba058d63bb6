"""Phase 2's state on disk after each epoch: one safetensors file, replaced by an atomic rename."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from trainables.phases.phase2 import Epoch, Phase2State
from trainables.records import written_whole


class EpochFile:
    """`phase2.Checkpoints` in a file, for one training on one kind of machine."""

    def __init__(self, path: Path, computed: dict[str, Any], device: torch.device | str) -> None:
        """`computed`: what the last digits depend on; a state that was computed otherwise is refused."""
        self.path, self.computed, self.device = path, json.loads(json.dumps(computed)), str(device)

    def load(self) -> Phase2State | None:
        """The state after the last epoch that was kept, if any.

        Raises:
            ValueError: the file is damaged, or another kind of machine computed it.
        """
        if not self.path.exists():
            return None
        try:
            with safe_open(self.path, framework="pt", device=self.device) as file:
                kept = json.loads(file.metadata()["state"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no dict
        except (SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{self.path} is damaged ({error}): remove it to train anew") from error
        other = {name: (value, self.computed.get(name)) for name, value in kept["computed"].items()}
        other = {name: pair for name, pair in other.items() if pair[0] != pair[1]}
        if other:
            named = ", ".join(f"{name} {then}, not {now}" for name, (then, now) in other.items())
            raise ValueError(f"the interrupted training had {named}: go on there, or remove {self.path} to train anew")
        epochs = [Epoch(**epoch) for epoch in kept["epochs"]]
        return Phase2State(
            epochs=epochs,
            best=epochs[kept["best"] - 1],
            best_losses=tensors.pop("best_losses"),
            best_weights=tensors.pop("best_weights"),
            optimizer=tensors,
            seconds=kept["seconds"],
        )

    def save(self, state: Phase2State) -> None:
        """Keep the state; a kill at any moment leaves this one or the one before.

        Raises:
            OSError: it cannot be written.
        """
        assert state.best is not None
        kept = {
            "computed": self.computed,
            "epochs": [vars(epoch) for epoch in state.epochs],
            "best": state.best.number,
            "seconds": state.seconds,
        }
        tensors = {"best_losses": state.best_losses, "best_weights": state.best_weights, **state.optimizer}
        with written_whole(self.path) as scratch:
            try:
                save_file({name: t.contiguous() for name, t in tensors.items()}, scratch, {"state": json.dumps(kept)})
            except SafetensorError as error:  # what it makes of a full disk, say
                raise OSError(f"{self.path} cannot be written: {error}") from error
