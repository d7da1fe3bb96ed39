"""Programs: the training corpus, and training (SFT)."""
