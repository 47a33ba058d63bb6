"""A trained model at work on text: loaded, scored, continued, served."""
