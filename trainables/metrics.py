"""The names of everything that is reported, in one place. MLflow, Optuna, tables and tests import them."""

SWEEPS = "phase1/sweeps"
CONVERGENCE = "phase1/convergence"  # share of converged positions at the last sweep
CONVERGED = "phase1/converged"  # 1 or 0, in MLflow alone: trainables.phases.convergence derives it
TRAIN_ER = "phase1/train_er"  # effective rank of the exact contexts, per cent of D
VAL_ER = "phase1/val_er"
PHASE1_SECONDS = "phase1/seconds"  # of the run that trained it, also where it was reused
PHASE1_SHARED = "phase1/shared"  # 1: weights and figures of another run were reused, 0: trained in this run
PHASE1_SAVED = "phase1/seconds_saved"  # where they were reused: those seconds, less what loading its result took

CONTEXT_SWEEPS = "contexts/sweeps"  # passes over the training stream until its contexts stood still
CONTEXT_RESIDUAL = "contexts/residual"  # residual at termination: largest change of a chunk's start state

VAL_PPL = "phase2/val_ppl"  # of the best epoch: the objective of every study
VAL_ACC = "phase2/val_acc"
TRAIN_PPL = "phase2/train_ppl"
BEST_EPOCH = "phase2/best_epoch"
EPOCHS = "phase2/epochs"
PHASE2_SECONDS = "phase2/seconds"

TOTAL_SECONDS = "total_seconds"  # wall time of this run
ATTEMPTS = "attempts"  # 2: the GPU's memory was too small for it, but not with half as much at once
TOTAL_PARAMS = "params/total"
PHASE1_PARAMS = "params/phase1_trained"
PHASE2_PARAMS = "params/phase2_trained"
TRAINED_PARAMS = "params/trained"  # in both phases; of a baseline, all but the table
BIGRAM_VAL_PPL = "embedding/bigram_val_ppl"

# Of the models of a comparison alone (trainables.baselines.candidate says how they are measured).
TOKENS_PER_SECOND = "compared/tokens_per_second"  # training tokens times epochs, by a training's seconds
PEAK_BYTES = "compared/peak_bytes"  # memory of a training

# Series, logged once per sweep or epoch.
SERIES = ("sweep/", "epoch/")  # what their names start with
SWEEP_CONVERGENCE = "sweep/convergence"
SWEEP_LOSS = "sweep/loss"
EPOCH_TRAIN_PPL = "epoch/train_ppl"
EPOCH_VAL_PPL = "epoch/val_ppl"
EPOCH_VAL_ACC = "epoch/val_acc"


STATE_LENGTHS = (10, 100, 1_000, 10_000)  # tokens of a sequence behind which its state is weighed


def state_bytes(length: int) -> str:
    """What one sequence of so many tokens keeps in memory for its next."""
    return f"compared/state_bytes_{length}"


def split_metric(split: str, figure: str, end: str = "") -> str:
    """A figure of a finished model on a split, e.g. `test/ppl`; `end` is low or high for its interval's ends."""
    return f"{split}/{figure}{'_' + end if end else ''}"
