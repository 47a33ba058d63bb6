"""How good a model is on a split, and how sure that is."""
