"""Token ids and embedding tables, from what `--data` and `--embedding` name."""
