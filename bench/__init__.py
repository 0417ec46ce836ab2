"""Experiments behind the documentation, one file per claim: `python -m bench.NAME` from a clone."""
