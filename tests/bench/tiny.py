"""A planning problem small enough for tests."""

import dataclasses

from pyjepa.bench.eb_jepa import eb_jepa
from pyjepa.bench.lewm import TRANSFORMER, lewm
from pyjepa.bench.tdmpc2 import tdmpc2
from pyjepa.bench.workloads import residual_mlp
from pyjepa.spec import Planner, Vit

CEM = Planner(algorithm="cem", horizon=4, candidates=48, iterations=3, elites=6)
MPPI = Planner(algorithm="mppi", horizon=4, candidates=48, iterations=1)


def tiny(planner=CEM):
    """A workload of 9 kFLOP a candidate."""
    return residual_mlp("tiny", latent=8, hidden=(16, 16), planner=planner)


def tiny_tdmpc2():
    """W1 in small: 16 numbers of state, 32 candidates of which 5 from the policy."""
    return tdmpc2(
        "tiny-tdmpc2",
        latent=16,
        actions=2,
        hidden=24,
        bins=21,
        planner=Planner(
            algorithm="mppi",
            horizon=3,
            candidates=32,
            iterations=4,
            elites=8,
            elite_refit=True,
            temperature=2.0,
            temperature_scale="absolute",
            std=2.0,
            max_std=2.0,
            policy_candidates=5,
        ),
    )


def tiny_eb_jepa():
    """W2 in small: pictures of 9x9, 16 numbers of state."""
    return eb_jepa("tiny-eb-jepa", pixels=9, channels=(4, 6), latent=16, planner=CEM)


def tiny_lewm():
    """W3 in small: pictures of 12x12, 24 numbers of state, two layers, blocks of two steps."""
    return lewm(
        "tiny-lewm",
        vit=Vit(patch=4, width=24, depth=2, heads=3, hidden=48, norm_eps=1e-12),
        side=12,
        transformer=dataclasses.replace(TRANSFORMER, depth=2, width=24, heads=3, head_dim=8, hidden=40, embedding=48),
        projector=32,
        block=2,
        planner=dataclasses.replace(CEM, horizon=10, iterations=10),
    )
