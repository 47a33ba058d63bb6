"""A GRU and a transformer of the same size, trained and compared with a two-phase model."""
