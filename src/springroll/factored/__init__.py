"""Weights as base + thin term, and the transform that runs any JAX function on them."""
