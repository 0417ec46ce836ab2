"""Environments that a policy acts in, and episodes of whole populations."""
