"""One run outside of Ray: its options, its progress, its model folder."""
