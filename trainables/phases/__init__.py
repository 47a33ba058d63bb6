"""The two phases of a run, their optimizer, and what Phase 1 has converged to."""
