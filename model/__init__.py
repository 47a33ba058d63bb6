"""What is learnt: the two-phase language model, its context recurrence and its losses (torch only)."""
