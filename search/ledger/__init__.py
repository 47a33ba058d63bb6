"""What was asked for and what came back: one Optuna study and its files."""
