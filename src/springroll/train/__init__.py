"""The training loop every task shares, and the run folder it writes."""
