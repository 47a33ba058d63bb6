"""Everything that goes to MLflow: stores, runs, the registry."""
