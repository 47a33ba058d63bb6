"""Where trials run: the Ray cluster, Tune, and what is written down of them."""
