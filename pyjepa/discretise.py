"""A discrete agent from a continuous one, without training: its actions become entries of a table."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from pyjepa.spec import Actions, Mlp, Planner, Spec

Tensors = Mapping[str, npt.NDArray[np.float32]]


def discretise(
    spec: Spec, tensors: Tensors, table: npt.ArrayLike, *, planner: Planner | None = None
) -> tuple[Spec, dict[str, npt.NDArray[np.float32]]]:
    """The agent whose action ``i`` is the continuous agent's action ``table[i]``; both predict the same.

    A network that reads an action begins with a linear layer. Composed with the table, normalised, that layer reads the
    action one-hot: ``W ((table - center) / scale)^T`` takes the place of the action's columns of ``W``. The policy puts
    out continuous actions and is left out, as are the activation scales of networks whose inputs change. A critic of
    states stays.

    Args:
        spec: of an agent with a box of A actions.
        tensors: its weights.
        table: (count, A), in the environment's units.
        planner: the discrete agent's planner; None: the old one's sizes, with categorical-cem.

    Raises `ValueError` for a table that does not fit the box, for cost terms that judge actions (an action one-hot has
    another size), for a critic that judges the policy's action, and where a module that reads actions does not begin
    with an mlp.
    """
    actions = np.asarray(table, dtype=np.float64)
    box = spec.actions
    if box.kind != "box":
        raise ValueError("spec.actions: this agent's actions are discrete already")
    if actions.ndim != 2 or len(actions) == 0 or actions.shape[1] != len(box.low):
        raise ValueError(f"table: expected shape (count, {len(box.low)}), got {actions.shape}")
    if not (np.isfinite(actions).all() and (actions >= box.low).all() and (actions <= box.high).all()):
        raise ValueError("table: an action lies outside of the agent's bounds")
    judging = [term.kind for term in spec.cost if term.kind.startswith("action_")]
    if judging:
        raise ValueError(f"spec.cost: {judging[0]} judges continuous actions")
    if spec.critic is not None and "action" in spec.modules[spec.critic].inputs:
        raise ValueError("spec.critic: this critic judges the action of the policy, which is left out")
    normalised = (actions - box.center) / box.scale
    (level,) = spec.levels
    repeats = 1 if level.hold else level.action_block

    modules = {name: module for name, module in spec.modules.items() if name != spec.policy}
    changed = {name: np.asarray(value) for name, value in tensors.items() if name.split(".")[0] in modules}
    for name, module in spec.modules.items():
        if name not in modules or "action" not in module.inputs:
            continue
        if not isinstance(module.blocks[0], Mlp):
            raise ValueError(f"spec.modules.{name}: a module that reads actions must begin with an mlp")
        key = f"{name}.0.linear0.weight"
        weight = changed[key].astype(np.float64)
        size = actions.shape[1] * repeats
        latent = (weight.shape[-1] - size) // (len(module.inputs) - 1) if len(module.inputs) > 1 else 0
        start = latent * module.inputs.index("action")
        composed = [
            weight[..., at : at + actions.shape[1]] @ normalised.T
            for at in range(start, start + size, actions.shape[1])
        ]
        parts = [weight[..., :start], *composed, weight[..., start + size :]]
        changed[key] = np.concatenate(parts, axis=-1).astype(np.float32)
        modules[name] = dataclasses.replace(module, quantisation=None)
    if planner is None:
        planner = dataclasses.replace(
            spec.planner, algorithm="categorical-cem", interpolation="zero", policy_candidates=0
        )
    discrete = dataclasses.replace(
        spec,
        actions=Actions(kind="discrete", count=len(actions)),
        modules=modules,
        policy=None,
        policy_head="deterministic",
        planner=planner,
    )
    return discrete, changed
