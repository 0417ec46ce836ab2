"""Plain inference code: models know nothing of training."""
