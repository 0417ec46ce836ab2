"""Training without gradients: populations of low-rank perturbations, scored and folded back into the weights."""
