"""Fewer bits per number: how values are rounded and kept."""
