"""How one run goes: from a corpus and an embedding to a trained model and its figures."""
