"""numba: one compiled function a plan; matrix products by its BLAS (SciPy's), candidates split between threads."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from pyjepa.bench.peers import FloatArray, Prepared
from pyjepa.bench.workloads import Problem

ALGORITHMS = {"cem": ("",), "mppi": ("",)}


def environment(threads: int) -> dict[str, str]:
    """BLAS stays on one thread: the candidates are what is split."""
    blas = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    return blas | {"NUMBA_NUM_THREADS": str(threads)}


def prepare(problem: Problem, threads: int, variant: str) -> Prepared:
    """See `pyjepa.bench.peers`. Takes networks of dense layers with relu."""
    numba: Any = importlib.import_module("numba")
    importlib.import_module("scipy.linalg.cython_blas")  # where numba finds its BLAS
    if [layer.activation for layer in problem.layers] != ["relu"] * (len(problem.layers) - 1) + ["none"]:
        raise NotImplementedError("the numba planner knows relu")
    first, *rest = problem.layers
    latent, steps, actions = problem.latent_dim, problem.steps, problem.action_dim
    settings = problem.planner
    candidates, iterations, elites = settings.candidates, settings.iterations, settings.elites
    from_state = np.ascontiguousarray(first.weight[:, :latent].T)
    from_action = np.ascontiguousarray(first.weight[:, latent:].T)
    first_bias = first.bias
    weights = tuple(np.ascontiguousarray(layer.weight.T) for layer in rest)
    biases = tuple(layer.bias for layer in rest)
    start, goal, center, scale = problem.start, problem.goal, problem.center, problem.scale
    low, high = problem.low, problem.high
    middle, half = (low + high) / 2, (high - low) / 2
    stage, terminal = np.float32(problem.stage), np.float32(problem.terminal)
    squared, residual, cem = problem.squared, problem.residual, settings.algorithm == "cem"
    keep, temperature = np.float32(settings.momentum), np.float32(settings.temperature)
    first_std, least_std = np.float32(settings.std) * half, np.float32(settings.min_std) * half
    blocks = threads
    size = -(-candidates // blocks)
    last = len(weights) - 1

    @numba.njit(fastmath=True)  # type: ignore[untyped-decorator]
    def roll(plans: Any, out: Any) -> None:
        """Costs (n,) of plans (n, S, A)."""
        n = plans.shape[0]
        drives = np.empty((steps, n, actions), np.float32)
        for t in range(steps):
            for i in range(n):
                for a in range(actions):
                    drives[t, i, a] = (plans[i, t, a] - center[a]) / scale[a]
        state = np.empty((n, latent), np.float32)
        state[:] = start
        out[:] = np.float32(0.0)
        for t in range(steps):
            h = np.dot(state, from_state)
            for i in range(n):
                for j in range(h.shape[1]):
                    value = h[i, j] + first_bias[j]
                    for a in range(actions):
                        value += drives[t, i, a] * from_action[a, j]
                    h[i, j] = max(value, np.float32(0.0))
            for k in range(last):
                h = np.dot(h, weights[k])
                for i in range(n):
                    for j in range(h.shape[1]):
                        h[i, j] = max(h[i, j] + biases[k][j], np.float32(0.0))
            h = np.dot(h, weights[last])
            for i in range(n):
                total = np.float32(0.0)
                for j in range(latent):
                    value = h[i, j] + biases[last][j]
                    if residual:
                        value += state[i, j]
                    state[i, j] = value
                    difference = value - goal[j]
                    total += difference * difference
                if not squared:
                    total = np.sqrt(total)
                out[i] += (terminal if t + 1 == steps else stage) * total

    @numba.njit(parallel=threads > 1, fastmath=True)  # type: ignore[untyped-decorator]
    def costs(plans: Any) -> Any:
        out = np.empty(candidates, np.float32)
        for b in numba.prange(blocks):
            begin, end = b * size, min(candidates, (b + 1) * size)
            if begin < end:
                roll(plans[begin:end], out[begin:end])
        return out

    @numba.njit(fastmath=True)  # type: ignore[untyped-decorator]
    def plan() -> Any:
        mean, std = np.empty((steps, actions), np.float32), np.empty((steps, actions), np.float32)
        mean[:], std[:] = middle, first_std
        samples = np.empty((candidates, steps, actions), np.float32)
        for _ in range(iterations):
            for n in range(candidates):
                for t in range(steps):
                    for a in range(actions):
                        noise = np.float32(np.random.standard_normal()) if n > 0 else np.float32(0.0)  # noqa: NPY002
                        samples[n, t, a] = min(max(mean[t, a] + std[t, a] * noise, low[a]), high[a])
            cost = costs(samples)
            if cem:
                order = np.argsort(cost)[:elites]
                for t in range(steps):
                    for a in range(actions):
                        total = np.float32(0.0)
                        for k in order:
                            total += samples[k, t, a]
                        average = total / np.float32(elites)
                        spread = np.float32(0.0)
                        for k in order:
                            spread += (samples[k, t, a] - average) ** 2
                        spread = np.sqrt(spread / np.float32(elites))
                        mean[t, a] = keep * mean[t, a] + (np.float32(1.0) - keep) * average
                        std[t, a] = max(keep * std[t, a] + (np.float32(1.0) - keep) * spread, least_std[a])
            else:
                share = np.exp((cost.min() - cost) / (temperature * np.std(cost)))
                share /= share.sum()
                mean[:] = np.float32(0.0)
                for n in range(candidates):
                    mean += np.float32(share[n]) * samples[n]
        return mean

    def planned() -> FloatArray:
        result: FloatArray = plan()
        return result

    planned()  # compiles
    return Prepared(f"numba {numba.__version__}", planned, costs)
