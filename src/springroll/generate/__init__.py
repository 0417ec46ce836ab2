"""Writing text with a model, or with every member of a population at once."""
