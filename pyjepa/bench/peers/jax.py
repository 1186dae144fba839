"""JAX: the whole plan, sampling and refit included, as one compiled function."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from pyjepa.bench.peers import FloatArray, Prepared
from pyjepa.bench.workloads import Problem

ALGORITHMS = {"cem": ("",), "mppi": ("",)}


def environment(threads: int) -> dict[str, str]:
    """XLA takes its threads from the environment (and from the processors it may run on)."""
    several = "true" if threads > 1 else "false"
    return {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_cpu_multi_thread_eigen={several} intra_op_parallelism_threads={threads}",
    }


def prepare(problem: Problem, threads: int, variant: str) -> Prepared:
    """See `pyjepa.bench.peers`."""
    jax: Any = importlib.import_module("jax")
    jnp: Any = importlib.import_module("jax.numpy")
    activations = {
        "none": lambda x: x,
        "relu": jax.nn.relu,
        "gelu": lambda x: jax.nn.gelu(x, approximate=False),
        "silu": jax.nn.silu,
        "mish": jax.nn.mish,
        "tanh": jnp.tanh,
    }
    first, *rest = problem.layers
    latent, settings = problem.latent_dim, problem.planner
    from_state, from_action = jnp.asarray(first.weight[:, :latent].T), jnp.asarray(first.weight[:, latent:].T)
    layers = [(jnp.asarray(x.weight.T), jnp.asarray(x.bias), activations[x.activation]) for x in rest]
    low, high = jnp.asarray(problem.low), jnp.asarray(problem.high)
    half = (high - low) / 2
    shape = (settings.candidates, problem.steps, problem.action_dim)

    def costs(plans: Any) -> Any:
        normalised = (plans - problem.center) / problem.scale
        drives = jnp.swapaxes(normalised, 0, 1) @ from_action + first.bias
        state = jnp.broadcast_to(problem.start, (len(plans), latent))
        total = 0.0
        for t in range(problem.steps):
            h = activations[first.activation](state @ from_state + drives[t])
            for weight, bias, activation in layers:
                h = activation(h @ weight + bias)
            state = state + h if problem.residual else h
            distance = jnp.square(state - problem.goal).sum(-1)
            if not problem.squared:
                distance = jnp.sqrt(distance)
            total += (problem.terminal if t + 1 == problem.steps else problem.stage) * distance
        return total

    def plan(key: Any) -> Any:
        mean = jnp.broadcast_to((low + high) / 2, shape[1:])
        std = jnp.broadcast_to(settings.std * half, shape[1:])
        for _ in range(settings.iterations):
            key, drawn = jax.random.split(key)
            noise = jax.random.normal(drawn, shape).at[0].set(0.0)
            samples = jnp.clip(mean + std * noise, low, high)
            cost = costs(samples)
            if settings.algorithm == "mppi":
                weights = jax.nn.softmax(-cost / (settings.temperature * cost.std()))
                mean = jnp.tensordot(weights, samples, axes=1)
                continue
            elites = samples[jax.lax.top_k(-cost, settings.elites)[1]]
            keep = settings.momentum
            mean = keep * mean + (1 - keep) * elites.mean(axis=0)
            std = jnp.maximum(keep * std + (1 - keep) * elites.std(axis=0), settings.min_std * half)
        return mean, key

    compiled, compiled_costs = jax.jit(plan), jax.jit(costs)
    # jax 0.10 draws with threefry by default; its faster generator is what it offers for speed.
    key = jax.random.key(0, impl="unsafe_rbg")

    def planned() -> FloatArray:
        nonlocal key
        found, key = compiled(key)
        return np.asarray(found)

    planned()  # compiles
    return Prepared(f"jax {jax.__version__}", planned, lambda plans: np.asarray(compiled_costs(plans)))
