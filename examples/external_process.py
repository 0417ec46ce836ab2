"""An external program as the objective: it reads parameters and prints a score.

    springroll rl --env examples/external_process.py:comfort --pop-size 32 --sigma 0.1 --lr 0.05 \\
        --seconds 20 --out thermostat

The program, here in AWK, simulates a house whose radiators are slow to answer and a thermostat with
three gains: for what is missing now, for what has been missing, and for how fast that changes. Its
valve only knows six positions, so that most small changes of a gain change nothing at all and a
derivative would say zero. The score is minus the mean deviation from the wanted temperature, in
degrees. Anything that can be started and asked works alike: a compiled simulator, a solver, a
compiler and its benchmark.

The first gains keep the house 4.0 degrees off; after a few seconds it is 1.2, most of which is the
time that heating up and cooling down take.
"""

import subprocess

import numpy as np

PROGRAM = r"""
NR == 1 { p = $1; i = $2; d = $3; outside = $4 }
END {
    wanted = 20; room = 14; heat = 0; before = wanted - room
    for (t = 0; t < 600; t++) {
        if (t == 300) { wanted = 17; outside -= 6 }
        missing = wanted - room
        sum += missing / 60
        valve = p * missing + i * sum + d * (missing - before) * 60
        before = missing
        valve = int(valve * 5 + 0.5) / 5
        if (valve < 0) { valve = 0 }
        if (valve > 1) { valve = 1 }
        pipe[t % 15] = valve
        heat += (pipe[(t + 1) % 15] - heat) / 20
        room += (40 * heat - (room - outside)) / 120
        off += missing < 0 ? -missing : missing
    }
    print -off / 600
}
"""


def comfort(weights: dict[str, np.ndarray], seed: int) -> float:
    """What the program says of these gains; the weather comes from the seed."""
    weather = np.random.default_rng(seed).uniform(-5, 10)
    line = " ".join(str(float(x)) for x in [*weights["gains"], weather])
    done = subprocess.run(["awk", PROGRAM], input=line, capture_output=True, text=True, check=True)
    return float(done.stdout)


def initial_weights() -> dict[str, np.ndarray]:
    return {"gains": np.array([0.1, 0.0, 0.0], np.float32)}
