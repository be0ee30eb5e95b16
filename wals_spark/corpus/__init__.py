"""Documents in, token ids out: reading, cleaning, tokenising, the vocabulary."""
