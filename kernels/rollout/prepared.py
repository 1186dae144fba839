"""A rollout made ready for planning: parameters packed once, nothing recorded, the same call over and over."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..runtime import compute_dtype
from .description import Dynamics, Mlp, Program, Term, choose
from .description import program as described_by
from .layout import Packed, pack
from .op import Backend, check, choose_backend
from .reference import rollout_reference


class Prepared:
    """`rollout` with everything but start, actions, goal and previous action fixed; arguments as there.

    ``way`` and ``gradient_way`` say which way costs and gradients are computed, and why not a faster one.
    """

    def __init__(
        self,
        dynamics: Dynamics,
        parameters: Sequence[Tensor],
        *,
        terms: Sequence[Term] = (),
        critic: Mlp | None = None,
        critic_parameters: Sequence[Tensor] = (),
        center: Tensor | None = None,
        scale: Tensor | None = None,
        discount: float = 1.0,
        backend: Backend = "auto",
    ) -> None:
        """Raises what `rollout` raises for a backend that cannot take this rollout."""
        self.program: Program = described_by(dynamics, terms, critic)
        self.terms = tuple(terms)
        self.discount = discount
        self._parameters, self._critic = [p.detach() for p in parameters], [p.detach() for p in critic_parameters]
        like = self._parameters[0]
        wide = compute_dtype(like.dtype)
        size = dynamics.side
        self._center = torch.zeros(size, dtype=wide, device=like.device) if center is None else center.to(wide)
        self._scale = torch.ones(size, dtype=wide, device=like.device) if scale is None else scale.to(wide)
        numbers = [[term.stage, term.terminal, term.reach] for term in terms]
        self._coefficients = torch.tensor(numbers, dtype=wide, device=like.device).reshape(-1, 3)
        self.way = choose_backend(self.program, like, like.device.type, backend, False)
        self.gradient_way = self.way
        if self.way.way == "fused":
            self.gradient_way = choose(self.program, like.element_size(), backward=True)
        self._packed: Packed | None = None
        if self.way.way != "eager":
            self._packed = pack(self.program, self._parameters, self._critic, wide, backward=True)

    def check(self, start: Tensor, actions: Tensor, goal: Tensor | None, previous: Tensor | None) -> None:
        """Raise ValueError or TypeError, naming what does not fit."""
        check(
            self.program, self._parameters, self._critic, start, actions, goal, previous, self._center, self._scale,
            self.discount,
        )  # fmt: skip

    def __call__(
        self, start: Tensor, actions: Tensor, goal: Tensor | None = None, previous: Tensor | None = None
    ) -> Tensor:
        """Costs (E, N) of actions (E, N, S, D) from start (E, L). No host-device synchronisation: may be captured."""
        if self._packed is None:
            with torch.no_grad():
                return self._eager(start, actions, goal, previous)
        return self._forward(start, actions, goal, previous, False)[0]

    def gradient(
        self, start: Tensor, actions: Tensor, goal: Tensor | None = None, previous: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Costs (E, N), and the derivative of each with respect to its actions (E, N, S, D)."""
        if self._packed is None:
            with torch.enable_grad():
                followed = actions.detach().requires_grad_()
                cost = self._eager(start, followed, goal, previous)
                if not cost.requires_grad:  # no cost term at all
                    return cost, torch.zeros_like(followed)
                return cost.detach(), torch.autograd.grad(cost.sum(), followed)[0]
        from . import triton as kernels

        cost, path = self._forward(start, actions, goal, previous, True)
        of_actions, _, _ = kernels.backward(
            self._packed, path, actions.flatten(0, 1), goal, previous, self._center, self._scale, self._coefficients,
            torch.ones_like(cost).flatten(), None, self.discount, per=actions.shape[1], way=self.gradient_way.way,
            adjoints=False,
        )  # fmt: skip
        return cost, of_actions.view(actions.shape)

    def _forward(
        self, start: Tensor, actions: Tensor, goal: Tensor | None, previous: Tensor | None, keep: bool
    ) -> tuple[Tensor, Tensor]:
        from . import triton as kernels

        assert self._packed is not None
        cost, path = kernels.forward(
            self._packed, start, actions.flatten(0, 1), goal, previous, self._center, self._scale, self._coefficients,
            self.discount, per=actions.shape[1], way=self.way.way, keep=keep,
        )  # fmt: skip
        return cost.view(actions.shape[:2]), path

    def _eager(self, start: Tensor, actions: Tensor, goal: Tensor | None, previous: Tensor | None) -> Tensor:
        return rollout_reference(
            self.program.dynamics, self._parameters, start, actions, terms=self.terms, goal=goal, previous=previous,
            critic=self.program.critic, critic_parameters=self._critic, center=self._center, scale=self._scale,
            discount=self.discount,
        ).cost  # fmt: skip
