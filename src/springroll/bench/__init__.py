"""One module per claim; each prints one JSON line: ours, the baseline, their ratio, and where."""
