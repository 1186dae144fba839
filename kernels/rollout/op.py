"""The public rollout op: checks, which way it runs, `torch.library` registration."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ..runtime import FLOATS, HAS_TRITON, compute_dtype, interpreted
from .adjoint import parameter_gradients
from .description import Choice, Dynamics, Mlp, Program, Term, choose, decode, encode
from .description import program as described_by
from .layout import pack
from .reference import Rollout, rollout_reference

Backend = Literal["auto", "torch", "triton", "fused", "stepwise"]


@torch.library.custom_op("pyjepa::rollout", mutates_args=())
def _rollout_op(
    start: Tensor,
    actions: Tensor,
    goal: Tensor | None,
    previous: Tensor | None,
    center: Tensor,
    scale: Tensor,
    coefficients: Tensor,
    parameters: list[Tensor],
    critic: list[Tensor],
    program: str,
    discount: float,
    way: str,
    back: str,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """(cost (N,), path (N, S + 1, L) or empty); ``way`` and ``back``: fused or stepwise, forward and backward."""
    from . import triton as kernels

    packed = pack(decode(program), parameters, critic, compute_dtype(actions.dtype))
    per = actions.shape[0] // start.shape[0]
    return kernels.forward(
        packed, start, actions, goal, previous, center, scale, coefficients, discount, per=per, way=way, keep=keep,
    )  # fmt: skip


@_rollout_op.register_fake
def _(
    start: Tensor,
    actions: Tensor,
    goal: Tensor | None,
    previous: Tensor | None,
    center: Tensor,
    scale: Tensor,
    coefficients: Tensor,
    parameters: list[Tensor],
    critic: list[Tensor],
    program: str,
    discount: float,
    way: str,
    back: str,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    rows, steps, _ = actions.shape
    path = scale.new_empty((rows, steps + 1, start.shape[1]) if keep else 0)
    return scale.new_empty(rows), path


@torch.library.custom_op("pyjepa::rollout_backward", mutates_args=())
def _rollout_backward_op(
    of_cost: Tensor,
    of_path: Tensor | None,
    path: Tensor,
    actions: Tensor,
    goal: Tensor | None,
    previous: Tensor | None,
    center: Tensor,
    scale: Tensor,
    coefficients: Tensor,
    parameters: list[Tensor],
    critic: list[Tensor],
    program: str,
    discount: float,
    per: int,
    way: str,
    weights: bool,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Gradients: actions (N, S, D), start (N, L) and, where `weights`, of parameters and critic."""
    from . import triton as kernels

    description = decode(program)
    packed = pack(description, parameters, critic, path.dtype, backward=True)
    of_actions, of_start, adjoints = kernels.backward(
        packed, path, actions, goal, previous, center, scale, coefficients, of_cost, of_path, discount, per=per,
        way=way, adjoints=weights,
    )  # fmt: skip
    if not weights:
        return of_actions, of_start, []
    steps = actions.shape[1]
    powers = torch.tensor([discount**t for t in range(steps)], dtype=path.dtype, device=path.device)
    weight = coefficients[:, :1].expand(-1, steps).clone()
    weight[:, -1] = coefficients[:, 1]
    with torch.autocast(path.device.type, enabled=False):
        own, others = parameter_gradients(
            description, parameters, critic, path, (actions.to(path.dtype) - center) / scale,
            None if goal is None else goal.to(path.dtype).repeat_interleave(per, 0), weight * powers, of_cost, adjoints,
        )  # fmt: skip
    grads = [g.to(p.dtype).contiguous() for g, p in zip([*own, *others], [*parameters, *critic], strict=True)]
    return of_actions, of_start, grads


@_rollout_backward_op.register_fake
def _(
    of_cost: Tensor,
    of_path: Tensor | None,
    path: Tensor,
    actions: Tensor,
    goal: Tensor | None,
    previous: Tensor | None,
    center: Tensor,
    scale: Tensor,
    coefficients: Tensor,
    parameters: list[Tensor],
    critic: list[Tensor],
    program: str,
    discount: float,
    per: int,
    way: str,
    weights: bool,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    grads = [p.new_empty(p.shape) for p in [*parameters, *critic]] if weights else []
    return path.new_empty(actions.shape), path.new_empty(actions.shape[0], path.shape[2]), grads


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    start, actions, goal, previous, center, scale, coefficients, parameters, critic, program, discount, *_ = inputs
    ctx.save_for_backward(output[1], actions, goal, previous, center, scale, coefficients, *parameters, *critic)
    ctx.options = program, discount, actions.shape[0] // start.shape[0], inputs[11]
    ctx.count, ctx.dtypes = len(parameters), (start.dtype, actions.dtype)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, of_cost: Tensor | None, of_path: Tensor | None) -> tuple[Any, ...]:
    path, actions, goal, previous, center, scale, coefficients, *weights = ctx.saved_tensors
    parameters, critic = weights[: ctx.count], weights[ctx.count :]
    program, discount, per, way = ctx.options
    needs = ctx.needs_input_grad
    if of_cost is None:
        of_cost = path.new_zeros(path.shape[0])
    wanted = any(needs[7]) or any(needs[8])
    of_actions, of_start, grads = _rollout_backward_op(
        of_cost.contiguous(), None if of_path is None else of_path.contiguous(), path, actions, goal, previous, center,
        scale, coefficients, parameters, critic, program, discount, per, way, wanted,
    )  # fmt: skip
    start = of_start.view(-1, per, of_start.shape[1]).sum(1).to(ctx.dtypes[0]) if needs[0] else None
    own = grads[: ctx.count] if wanted else [None] * len(parameters)
    others = grads[ctx.count :] if wanted else [None] * len(critic)
    return start, of_actions.to(ctx.dtypes[1]), None, None, None, None, None, own, others, *(None,) * 5


_rollout_op.register_autograd(_backward, setup_context=_setup_context)


def rollout(
    dynamics: Dynamics,
    parameters: Sequence[Tensor],
    start: Tensor,
    actions: Tensor,
    *,
    terms: Sequence[Term] = (),
    goal: Tensor | None = None,
    previous: Tensor | None = None,
    critic: Mlp | None = None,
    critic_parameters: Sequence[Tensor] = (),
    center: Tensor | None = None,
    scale: Tensor | None = None,
    discount: float = 1.0,
    states: bool = False,
    backend: Backend = "auto",
) -> Rollout:
    """Roll N sequences of S actions out in each of E environments, in latent space, and say what each costs.

    dynamics, parameters: the network that predicts the next latent (`Mlp`, `Gru`), and its parameters in the order that
        its `shapes()` gives, all of one dtype: fp16, bf16, fp32 (sums are fp32), or fp64.
    start: (E, L), the latents that rollouts begin with. actions: (E, N, S, D), normalised here: (a - center) / scale,
        each (D,). previous: (E, D), the action before the first, NaN where there was none.
    terms, goal: what is summed over the steps, and the latents (E, L) to reach; `critic` and its parameters belong to a
        term of kind value. discount: the cost of step t counts discount ** t.
    states: whether to return the predicted states as well.
    backend: "auto" takes the first of fused, stepwise and eager that this rollout fits (`rollout_way` says which, and
        why); "torch" is eager; "triton" fused or stepwise; "fused" and "stepwise" that one.

    Returns (cost (E, N), states (E, N, S, L) or None) in fp32 (fp64 for fp64). Differentiable once, with respect to
    start, actions and both networks' parameters; the way back is chosen as the way forward is, by a rule of its own.
    Not with respect to goal and previous. Non-finite inputs give non-finite costs in their own rows only. Same bits
    every run.

    Raises ValueError (shapes, devices, S < 1, N < 1, a backend that cannot take this rollout, saying why), TypeError
    (dtypes), RuntimeError (Triton unavailable).
    """
    description = described_by(dynamics, terms, critic)
    check(description, parameters, critic_parameters, start, actions, goal, previous, center, scale, discount)
    weights = [*parameters, *critic_parameters]
    recorded = torch.is_grad_enabled() and any(x.requires_grad for x in (start, actions, *weights))
    choice = choose_backend(description, weights[0], start.device.type, backend, recorded)
    forward = choose_backend(description, weights[0], start.device.type, backend, False)
    if choice.way == "eager":
        found = rollout_reference(
            dynamics, parameters, start, actions, terms=terms, goal=goal, previous=previous, critic=critic,
            critic_parameters=critic_parameters, center=center, scale=scale, discount=discount,
        )  # fmt: skip
        return found if states else Rollout(found.cost, None)
    environments, candidates, steps, size = actions.shape
    wide = compute_dtype(actions.dtype)
    whole: dict[str, Any] = {"dtype": wide, "device": start.device}
    numbers = [[term.stage, term.terminal, term.reach] for term in terms]
    cost, path = _rollout_op(
        start.contiguous(),
        actions.reshape(-1, steps, size).contiguous(),
        None if goal is None else goal.detach().contiguous(),
        None if previous is None else previous.detach().contiguous(),
        torch.zeros(size, **whole) if center is None else center.detach().to(wide).contiguous(),
        torch.ones(size, **whole) if scale is None else scale.detach().to(wide).contiguous(),
        torch.tensor(numbers, **whole).reshape(-1, 3),
        list(parameters),
        list(critic_parameters),
        encode(description),
        discount,
        forward.way,
        choice.way,
        states or recorded,
    )
    reached = path[:, 1:].reshape(environments, candidates, steps, -1) if states else None
    return Rollout(cost.view(environments, candidates), reached)


def rollout_way(
    dynamics: Dynamics,
    *,
    terms: Sequence[Term] = (),
    critic: Mlp | None = None,
    dtype: torch.dtype = torch.float32,
    device: str = "cuda",
    backward: bool = False,
) -> Choice:
    """Which way `rollout` (or its ``backward``) runs with backend "auto" on a device, and why not fused; needs none."""
    triton = HAS_TRITON and (device == "cuda" or interpreted()) and (dtype != torch.float64 or interpreted())
    return choose(described_by(dynamics, terms, critic), dtype.itemsize, backward=backward, triton=triton)


def choose_backend(description: Program, weight: Tensor, device: str, backend: str, recorded: bool) -> Choice:
    """The way a backend runs a program whose weights are like `weight`, or, where `recorded`, goes back through it."""
    if backend not in ("auto", "torch", "triton", "fused", "stepwise"):
        raise ValueError(f"backend must be 'auto', 'torch', 'triton', 'fused' or 'stepwise', not {backend!r}")
    if backend == "torch":
        return Choice("eager", "asked for")
    if backend == "auto":
        runs = HAS_TRITON and device == "cuda" and weight.dtype != torch.float64
        return choose(description, weight.element_size(), backward=recorded, triton=runs)
    if not HAS_TRITON:
        raise RuntimeError(f"backend={backend!r} needs the package triton, which is not installed")
    if device != "cuda" and not interpreted():
        raise RuntimeError(
            f"backend={backend!r} on {device}: Triton needs a GPU, or TRITON_INTERPRET=1 for a CPU check"
        )
    choice = choose(description, weight.element_size(), backward=recorded, triton=True)
    if backend == "stepwise" and choice.way == "fused":
        return Choice("stepwise", "asked for")
    if choice.way == "eager" or (backend != "triton" and choice.way != backend):
        raise ValueError(f"backend={backend!r} cannot take this rollout: {choice.reason}")
    return choice


def check(
    description: Program, parameters: Sequence[Tensor], critic: Sequence[Tensor], start: Tensor, actions: Tensor,
    goal: Tensor | None, previous: Tensor | None, center: Tensor | None, scale: Tensor | None, discount: float,
) -> None:  # fmt: skip
    """Raise ValueError or TypeError, naming what does not fit."""
    if actions.dim() != 4 or actions.shape[3] != description.dynamics.side:
        raise ValueError(f"actions must be (E, N, S, {description.dynamics.side}), not {tuple(actions.shape)}")
    environments, candidates, steps, size = actions.shape
    if steps < 1:
        raise ValueError("actions have a horizon of 0 steps; a rollout needs S >= 1")
    if environments < 1 or candidates < 1:
        raise ValueError(f"actions must be of E >= 1 environments and N >= 1 candidates, not {tuple(actions.shape)}")
    if not math.isfinite(discount):
        raise ValueError(f"discount must be finite, not {discount}")
    latent = description.dynamics.state
    expected: dict[str, tuple[Tensor | None, tuple[int, ...]]] = {
        "start": (start, (environments, latent)),
        "goal": (goal, (environments, latent)),
        "previous": (previous, (environments, size)),
        "center": (center, (size,)),
        "scale": (scale, (size,)),
    }
    for kind, network, given in (
        ("parameters", description.dynamics, parameters),
        ("critic_parameters", description.critic, critic),
    ):
        shapes = [] if network is None else network.shapes()
        if len(given) != len(shapes):
            raise ValueError(f"{kind}: expected {len(shapes)} tensors, got {len(given)}")
        expected |= {f"{kind}[{i}]": (x, shape) for i, (x, shape) in enumerate(zip(given, shapes, strict=True))}
    if description.needs_goal and goal is None:
        raise ValueError("the cost reads a goal, and none was given")
    dtype = parameters[0].dtype
    for name, (x, shape) in expected.items():
        if x is None:
            continue
        if tuple(x.shape) != shape:
            raise ValueError(f"{name} must be {shape}, not {tuple(x.shape)}")
        if x.device != actions.device:
            raise ValueError(f"{name} must be on {actions.device}, as the actions are, not on {x.device}")
        if x.dtype not in FLOATS:
            raise TypeError(f"{name} must be fp16, bf16, fp32 or fp64, not {x.dtype}")
        if "parameters" in name and x.dtype != dtype:
            raise TypeError(f"{name} must be {dtype}, as the first parameter is, not {x.dtype}")
        if (x.dtype == torch.float64) != (actions.dtype == torch.float64):
            raise TypeError(f"{name} is {x.dtype} and the actions are {actions.dtype}: fp64 goes with fp64 alone")
        if name in ("goal", "previous", "center", "scale") and x.requires_grad:
            raise ValueError(f"{name} must not require a gradient: rollout has none for it")
    if actions.dtype not in FLOATS:
        raise TypeError(f"actions must be fp16, bf16, fp32 or fp64, not {actions.dtype}")
