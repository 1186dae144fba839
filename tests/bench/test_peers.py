"""Peers solve the engine's problem: the same costs, plans as good; and say so where they cannot."""

import dataclasses
import sys

import numpy as np
import pytest
from tiny import CEM, MPPI, tiny, tiny_eb_jepa, tiny_lewm, tiny_tdmpc2

from pyjepa.bench import peers
from pyjepa.bench.workloads import Problem, problem_of, two_rooms

LIBRARIES = {
    "torch": "torch",
    "torch-bf16": "torch",
    "torch-compile": "torch",
    "onnxruntime": "onnxruntime",
    "numba": "numba",
    "jax": "jax",
    "stable-worldmodel": "stable_worldmodel",
    "pytorch-mppi": "pytorch_mppi",
    "pytorch-icem": "pytorch_icem",
    "torchrl": "torchrl",
}


def need(peer):
    """Skips where the peer is not installed, or must not be (compiling takes a minute)."""
    library = LIBRARIES[peer]
    if peer == "stable-worldmodel" or library not in sys.modules:
        from importlib.util import find_spec

        if find_spec(library) is None:
            pytest.skip(f"{library} is not installed")


@pytest.mark.parametrize("planner", [CEM, MPPI], ids=["cem", "mppi"])
@pytest.mark.parametrize(
    "peer", [pytest.param(peer, marks=pytest.mark.slow if peer == "torch-compile" else ()) for peer in peers.PEERS]
)
def test_costs_agree_and_plans_are_good(peer, planner):
    need(peer)
    problem = Problem.of(tiny(planner))
    drawn = np.sort(problem.costs(problem.sample(2000, seed=3)))
    for variant in peers.variants(peer, problem):
        prepared = peers.prepare(peer, problem, threads=1, variant=variant)
        assert peers.check(peer, prepared, problem) <= prepared.tolerance
        plans = [prepared.plan() for _ in range(9)]
        if peer == "torchrl":
            assert plans[0] is None
            continue
        assert plans[0].shape == (problem.steps, problem.action_dim)
        costs = problem.costs([peers.clamp(problem, plan) for plan in plans])
        assert np.median(costs) < drawn[100 if planner is CEM else 500]  # of 2000 random plans


@pytest.mark.parametrize("make", [tiny_eb_jepa, tiny_lewm])
@pytest.mark.parametrize("peer", peers.PEERS)
def test_a_model_with_a_past_is_planned_by_those_who_state_it(peer, make):
    problem = problem_of(make())
    own = ("stable-worldmodel",) if make is tiny_lewm else ()  # it has no recurrent model
    if peer not in ("torch", "torch-bf16", "onnxruntime", *own):
        assert peers.variants(peer, problem) == ()
        return
    need(peer)
    (variant,) = peers.variants(peer, problem)
    prepared = peers.prepare(peer, problem, threads=1, variant=variant)
    drawn = np.sort(problem.costs(problem.sample(2000, seed=3)))
    for plan in (prepared.plan, prepared.encode_and_plan):
        costs = problem.costs([peers.clamp(problem, plan()) for _ in range(9)])
        assert np.median(costs) < drawn[100]


@pytest.mark.parametrize("make", [tiny_eb_jepa, tiny_lewm])
@pytest.mark.parametrize("peer", ["torch", "torch-bf16", "onnxruntime", "stable-worldmodel"])
def test_who_plans_from_pictures_plans_from_those_of_the_problem(peer, make):
    """Another pair of pictures, other latents; and the plan is for what was encoded last."""
    problem = problem_of(make())
    if not peers.variants(peer, problem):
        return
    need(peer)
    (variant,) = peers.variants(peer, problem)
    prepared = peers.prepare(peer, problem, threads=1, variant=variant)
    seen = problem.perception
    latents = problem.engine.encode(np.stack([seen.observation, seen.goal]))
    assert np.linalg.norm(latents[0] - latents[1]) > 0.05 * np.linalg.norm(latents[0]), "pictures matter"
    turned = dataclasses.replace(seen, observation=seen.goal, goal=seen.observation)
    module = peers.module(peer).prepare(dataclasses.replace(problem, perception=turned), 1, variant)
    tolerance = peers.LATENT_TOLERANCE[prepared.precision]
    for found, expected in ((prepared.encode(), latents), (module.encode(), latents[::-1])):
        assert np.linalg.norm(found - expected) < tolerance * np.linalg.norm(expected)
    # Planned from the turned pictures, as the turned problem judges it.
    judge = problem_of(dataclasses.replace(make(), observation=seen.goal, goal=seen.observation))
    drawn = np.sort(judge.costs(judge.sample(2000, seed=3)))
    costs = judge.costs([peers.clamp(judge, module.encode_and_plan()) for _ in range(9)])
    assert np.median(costs) < drawn[100]


def test_a_peer_that_sees_something_else_is_not_timed():
    problem = problem_of(tiny_eb_jepa())
    seen = problem.perception
    latents = problem.engine.encode(np.stack([seen.observation, seen.goal]))
    prepared = peers.Prepared("someone 1.0", lambda: None, problem.costs, encode=lambda: 1.001 * latents)
    with pytest.raises(peers.PeerError, match="'someone': its latents differ from the engine's by"):
        peers.check_latents("someone", prepared, problem)
    with pytest.raises(peers.PeerError, match="latents of shape"):
        peers.check_latents("someone", dataclasses.replace(prepared, encode=lambda: latents[:1]), problem)
    peers.check_latents("someone", dataclasses.replace(prepared, encode=lambda: latents), problem)


@pytest.mark.parametrize(
    "peer", [pytest.param(peer, marks=pytest.mark.slow if peer == "torch-compile" else ()) for peer in peers.PEERS]
)
def test_tdmpc2_is_planned_by_those_who_state_it(peer):
    problem = problem_of(tiny_tdmpc2())
    if not peer.startswith("torch") or peer == "torchrl":
        assert peers.variants(peer, problem) == ()
        return
    assert peers.variants(peer, problem) == ("",)
    prepared = peers.prepare(peer, problem, threads=1)
    drawn = np.sort(problem.costs(problem.sample(2000, seed=3)))
    costs = problem.costs([prepared.plan() for _ in range(9)])
    assert np.median(costs) < drawn[200]


@pytest.mark.parametrize("peer", ["torch", "onnxruntime", "numba", "jax"])
def test_peers_take_the_shipped_agent(peer):
    need(peer)
    problem = Problem.of(two_rooms())
    prepared = peers.prepare(peer, problem, threads=1)
    plan = prepared.plan()
    assert problem.costs(plan[None])[0] < np.quantile(problem.costs(problem.sample(500, seed=3)), 0.01)


def test_bf16_costs_differ_but_little():
    need("torch-bf16")
    problem = Problem.of(tiny())
    prepared = peers.prepare("torch-bf16", problem, threads=1)
    assert prepared.precision == "bf16"
    assert 1e-4 < peers.check("torch-bf16", prepared, problem) <= prepared.tolerance


def test_a_peer_that_computes_something_else_is_not_timed():
    problem = Problem.of(tiny())
    honest = problem.costs
    prepared = peers.Prepared("someone 1.0", lambda: None, lambda plans: 1.001 * honest(plans))
    with pytest.raises(peers.PeerError, match="'someone': its candidates' costs differ"):
        peers.check("someone", prepared, problem)
    prepared = dataclasses.replace(prepared, costs=lambda plans: honest(plans)[:-1])
    with pytest.raises(peers.PeerError, match="shape"):
        peers.check("someone", prepared, problem)
    assert peers.check("someone", dataclasses.replace(prepared, costs=honest), problem) == 0.0


def test_a_missing_library_is_named_with_what_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(peers.PeerError, match=r"'onnxruntime' needs onnxruntime: pip install onnxruntime onnx"):
        peers.prepare("onnxruntime", Problem.of(tiny()), threads=1)


def test_threads_are_set_before_libraries_load():
    assert peers.environment("torch", 2)["OMP_NUM_THREADS"] == "2"
    assert peers.environment("numba", 2) | {"NUMBA_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "1"} == peers.environment(
        "numba", 2
    )
    assert "intra_op_parallelism_threads=2" in peers.environment("jax", 2)["XLA_FLAGS"]


def test_listing_peers_loads_none():
    import subprocess

    code = (
        "import sys; from pyjepa.bench import peers; [peers.environment(p, 1) for p in peers.PEERS if 'torch' not in p "
        "and p != 'stable-worldmodel']; print('torch' in sys.modules, 'onnxruntime' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "False False\n"
