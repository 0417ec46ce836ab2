"""Training without gradients: low-rank perturbations are scored and folded into the weights."""
