"""The claims of the README, one module each: `springroll bench NAME`.

Each prints one JSON line per result: ours, the baseline, their ratio, and where it was measured.
Experiments are in the folder `bench/` of a clone.
"""
