"""What both sides of the comparison on other people's models are run with."""

SIDES = ("std", "reverse_std")
RANK, LR, SCALE, DECAY = 3, 0.01, 0.25, 0.1
STEPS, GAP = 24, 8
