"""torch.profiler traces of a run's first steps, for chrome://tracing or Perfetto."""

from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from trainables.progress import Progress, ProgressCallback

SWEEPS = 3  # of Phase 1 in a trace; of Phase 2 it is the first epoch


class Profiler:
    """A listener that records `phase_1`, `contexts` and `phase_2`, each into a trace of its own.

    Only a run's beginning is recorded: a whole run would be gigabytes. What comes from the cache is not computed, and
    so is in no trace.
    """

    def __init__(self, folder: Path, listen: ProgressCallback) -> None:
        """Write into `folder`, and pass everything on to `listen`."""
        self.folder, self.listen = folder, listen
        self.part: str | None = None
        self.left = 0  # steps of this part that are still recorded

    def __call__(self, progress: Progress) -> None:
        part = progress.phase.replace(" ", "_")
        if progress.series:
            self.left -= 1
            if self.left == 0:
                self.stop()
        else:  # the beginning of a part
            self.stop()
            self.part, self.left = part, SWEEPS if part == "phase_1" else 1
            activities = [ProfilerActivity.CPU]
            if torch.cuda.is_available():
                activities.append(ProfilerActivity.CUDA)
            self.recorder = profile(activities=activities)
            self.recorder.start()
        self.listen(progress)

    def stop(self) -> None:
        """Write what is being recorded, if anything is."""
        if self.part is None:
            return
        part, self.part = self.part, None
        self.recorder.stop()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.recorder.export_chrome_trace(str(self.folder / f"{part}.json.gz"))
