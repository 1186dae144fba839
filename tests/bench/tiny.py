"""A planning problem small enough for tests."""

from pyjepa.bench.workloads import residual_mlp
from pyjepa.spec import Planner

CEM = Planner(algorithm="cem", horizon=4, candidates=48, iterations=3, elites=6)
MPPI = Planner(algorithm="mppi", horizon=4, candidates=48, iterations=1)


def tiny(planner=CEM):
    """A workload of 9 kFLOP a candidate."""
    return residual_mlp("tiny", latent=8, hidden=(16, 16), planner=planner)
