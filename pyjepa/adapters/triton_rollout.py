"""Rollouts on a GPU under the C++ planners: plans in, costs (and gradients) out, once per planner iteration.

The one file of pyjepa's run time that imports torch; `pyjepa.load(file, device=...)` imports it. It maps the spec to
what `pyjepa.kernels.rollout` takes. A rollout runs the first of three ways that it fits: fused (the whole horizon in
one launch), stepwise (a few launches a step), eager (torch). On a GPU each is captured in a CUDA graph, one for every
number of candidates that the planner asks for. ``interpret`` runs the same on a CPU through Triton's interpreter: slow,
for tests.

Symbols: E environments, N candidates, S predictor steps, D what the predictor reads per step, L latent dimension.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.numpy
import torch
from torch import Tensor

from pyjepa.cost import plan_cost
from pyjepa.errors import InvalidArgumentError, UnsupportedError
from pyjepa.kernels.rollout import Choice, Layer, Term, rollout_way
from pyjepa.kernels.rollout import Gru as KernelGru
from pyjepa.kernels.rollout import Mlp as KernelMlp
from pyjepa.kernels.rollout.description import Way
from pyjepa.kernels.rollout.prepared import Prepared
from pyjepa.kernels.runtime import HAS_TRITON, interpreted
from pyjepa.spec import Gru, Mlp, Module, Spec
from pyjepa.world_model import WorldModel

FloatArray = npt.NDArray[np.float32]
GRAPHS = 32
"""Graphs that a task keeps, one for each number of candidates; the oldest gives way."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class TritonRollout:
    """An agent file's predictor and cost on a device; `task` makes what the engine calls."""

    def __init__(self, spec: Spec, data: bytes, *, device: str, precision: str) -> None:
        """``data``: the agent file, already validated. ``device``: ``cuda`` (``cuda:1``, …) or ``interpret``.

        Raises `UnsupportedError` where the device cannot be had, `InvalidArgumentError` for a precision it lacks.
        """
        if not isinstance(precision, str) or precision not in DTYPES:
            raise InvalidArgumentError(f"precision on device={device!r} must be {', '.join(DTYPES)}, got {precision!r}")
        predictor = spec.levels[0].predictor
        if predictor is None:
            raise UnsupportedError(f"device={device!r}: this agent file has no predictor to roll out with")
        if spec.modules[predictor].ensemble > 1:
            raise UnsupportedError(f"device={device!r}: the predictor is an ensemble, which only the engine rolls out")
        self.device = _device(device)
        self.name = device
        self._spec, self._precision = spec, DTYPES[precision]
        self._tensors = {name: torch.from_numpy(value) for name, value in safetensors.numpy.load(data).items()}

    def task(self, weights: Mapping[str, float] | None, discount: float | None = None) -> Task:
        """What the engine calls for a task whose cost terms have factors ``weights``, by name, and whose costs are
        discounted by ``discount`` (None: the file's).
        """
        factors = [1.0 if weights is None else float(weights.get(t.label, 1.0)) for t in self._spec.cost]
        scaled = tuple(
            dataclasses.replace(t, stage=t.stage * u, terminal=t.terminal * u)
            for t, u in zip(self._spec.cost, factors, strict=True)
        )
        rate = self._spec.discount if discount is None else float(discount)
        spec = dataclasses.replace(self._spec, cost=scaled, discount=rate)
        try:
            description = describe(spec)
        except UnsupportedError as error:
            kept = "" if self._precision == torch.float32 else "; so the weights stay fp32"
            choice = Choice("eager", f"{error}{kept}")
            return Task(self.device, _Eager(spec, self._tensors, self.device), choice, choice)
        dynamics, terms, critic = description
        chosen: dict[str, Any] = {"terms": terms, "critic": critic}
        chosen |= {"dtype": self._precision, "device": self.device.type}
        way, back = (rollout_way(dynamics, backward=backward, **chosen) for backward in (False, True))
        return Task(self.device, self._prepare(spec, *description, way.way), way, back)

    def _prepare(
        self, spec: Spec, dynamics: KernelMlp | KernelGru, terms: list[Term], critic: KernelMlp | None, way: Way
    ) -> Prepared:
        level = spec.levels[0]
        repeats = 1 if level.hold else level.action_block
        there: dict[str, Any] = {"device": self.device}
        box = spec.actions.kind == "box"
        return Prepared(
            dynamics,
            self._parameters(level.predictor),
            terms=terms,
            critic=critic,
            critic_parameters=[] if critic is None else self._parameters(spec.critic),
            center=torch.tensor(spec.actions.center * repeats, **there) if box else None,
            scale=torch.tensor(spec.actions.scale * repeats, **there) if box else None,
            discount=spec.discount,
            backend="torch" if way == "eager" else way,
        )

    def _parameters(self, name: str | None) -> list[Tensor]:
        assert name is not None
        found = []
        for i, block in enumerate(self._spec.modules[name].blocks):
            if isinstance(block, Gru):
                keys = ["weight_ih", "weight_hh", "bias_ih", "bias_hh"]
                keys += [] if block.norm == "none" else ["norm.weight", "norm.bias"]
            else:
                assert isinstance(block, Mlp)
                keys = []
                for j, layer in enumerate(block.layers):
                    keys += [f"linear{j}.weight", f"linear{j}.bias"]
                    keys += [f"norm{j}.weight", f"norm{j}.bias"] if layer.norm in ("layer", "layer+simnorm") else []
            found += [self._tensors[f"{name}.{i}.{key}"].to(self.device, self._precision) for key in keys]
        return found


class Task:
    """A task's rollout, as the engine calls it. Clones of an agent share it, and take turns."""

    def __init__(
        self, device: torch.device, rollout: Prepared | _Eager, choice: Choice, gradient_choice: Choice
    ) -> None:
        self.choice, self.gradient_choice = choice, gradient_choice
        self._device, self._rollout = device, rollout
        self._captured: dict[tuple[Any, ...], Any] = {}
        self._lock = threading.Lock()

    def __call__(
        self,
        states: FloatArray,
        goals: FloatArray | None,
        plans: FloatArray,
        previous: FloatArray,
        draws: npt.NDArray[np.uint64],
        cost: FloatArray,
        gradient: FloatArray | None,
    ) -> None:
        """states, goals (E, L), plans (E, N, S, D), previous (E, D), draws (E,) -> cost (E, N), gradient like plans.

        A plan whose prediction is not finite costs infinity, and has no gradient.
        """
        with self._lock, np.errstate(all="ignore"):
            arrays = [states, plans, previous] + ([] if goals is None else [goals])
            outputs = [cost] + ([] if gradient is None else [gradient])
            if self._device.type == "cuda" and isinstance(self._rollout, Prepared):
                self._graph(arrays, gradient is not None)(arrays, outputs)
            else:
                extra = (draws,) if isinstance(self._rollout, _Eager) else ()
                found = self._run(*(torch.tensor(array, device=self._device) for array in arrays), extra=extra,
                                  slope=gradient is not None)  # fmt: skip
                for array, tensor in zip(outputs, found, strict=True):
                    array[...] = tensor.cpu().numpy()
        lost = ~np.isfinite(cost)
        cost[lost] = np.inf
        if gradient is not None:
            gradient[lost] = 0.0
            gradient[~np.isfinite(gradient)] = 0.0

    def _run(
        self, states: Tensor, plans: Tensor, previous: Tensor, goals: Tensor | None = None, *, slope: bool,
        extra: tuple[Any, ...] = (),
    ) -> Sequence[Tensor]:  # fmt: skip
        if slope:
            return self._rollout.gradient(states, plans, goals, previous, *extra)
        return [self._rollout(states, plans, goals, previous, *extra)]

    def _graph(self, arrays: Sequence[FloatArray], slope: bool) -> Callable[..., None]:
        key = (slope, *(array.shape for array in arrays))
        if key not in self._captured:
            from pyjepa.kernels.rollout.graph import Captured

            if len(self._captured) >= GRAPHS:
                del self._captured[next(iter(self._captured))]
            self._captured[key] = Captured(
                lambda *tensors: self._run(*tensors, slope=slope), [array.shape for array in arrays], self._device
            )
        found: Callable[..., None] = self._captured[key]
        return found


def describe(spec: Spec) -> tuple[KernelMlp | KernelGru, list[Term], KernelMlp | None]:
    """The spec's predictor, cost terms and critic as the kernels take them.

    Raises `UnsupportedError` naming the block or cost term that they lack.
    """
    level = spec.levels[0]
    assert level.predictor is not None
    actions = spec.actions.size * (1 if level.hold else level.action_block)
    module = spec.modules[level.predictor]
    first, last = module.blocks[0], module.blocks[-1]
    dynamics: KernelMlp | KernelGru
    if isinstance(first, Gru):
        latent = first.hidden
        dynamics = _gru(level.predictor, module, first, actions)
    else:
        latent = last.layers[-1].out if isinstance(last, Mlp) else 0  # refused below
        dynamics = _mlp(level.predictor, module, latent, actions, "action")
    terms, critic = [], None
    for term in spec.cost:
        if term.stage == 0.0 and term.terminal == 0.0:
            continue
        if term.kind == "goal_distance" and term.module is None:
            terms.append(Term("goal_distance", term.stage, term.terminal, term.metric, term.reach))
        elif term.kind in ("action_size", "action_change"):
            terms.append(Term(term.kind, term.stage, term.stage))
        elif term.kind == "critic":
            assert spec.critic is not None
            critic = _mlp(spec.critic, spec.modules[spec.critic], latent, latent, "goal")
            sign = (-1.0 if term.estimates == "reward" else 1.0) * spec.discount
            terms.append(Term("value", sign * term.stage, sign * term.terminal))
        else:
            through = "" if term.module is None else f" through the module {term.module!r}"
            raise UnsupportedError(f"the cost term {term.label!r} ({term.kind}{through}) has no kernel")
    if sum(term.kind == "value" for term in terms) > 1:
        raise UnsupportedError("the kernels take one critic term, this cost has more")
    return dynamics, terms, critic


def _gru(name: str, module: Module, cell: Gru, side: int) -> KernelGru:
    """A predictor that starts with a cell. A tied norm is stored beside the cell like one of its own."""
    if len(module.blocks) > 1:
        raise UnsupportedError(
            f"the module {name!r} has a block {module.blocks[1].kind!r} after its gru: no kernel does"
        )
    if module.residual:
        raise UnsupportedError(f"the module {name!r} adds the state to what its gru puts out: no kernel does")
    return KernelGru(cell.hidden, side, normalise=cell.norm != "none")


def _mlp(name: str, module: Module, latent: int, side: int, reads: str) -> KernelMlp:
    """A module of the spec whose inputs are the state and, perhaps, one other."""
    lacking = [block.kind for block in module.blocks if not isinstance(block, Mlp)]
    if lacking:
        raise UnsupportedError(
            f"the module {name!r} has a block {lacking[0]!r}, the kernels take mlp, and a gru as the predictor"
        )
    if module.ensemble > 1:
        raise UnsupportedError(f"the module {name!r} is an ensemble of {module.ensemble}, the kernels take one network")
    if "state" not in module.inputs or not set(module.inputs) <= {"state", reads}:
        raise UnsupportedError(f"the module {name!r} reads {', '.join(module.inputs)}: no kernel does")
    layers = tuple(
        Layer(layer.out, layer.norm, layer.activation, block.simnorm_group)
        for block in module.blocks
        if isinstance(block, Mlp)
        for layer in block.layers
    )
    return KernelMlp(
        latent,
        side if reads in module.inputs else 0,
        layers,
        residual=module.residual,
        side_first=module.inputs[0] == reads,
    )


def choose_members(draw: int, count: int, asked: int) -> list[int]:
    """Which ``asked`` of ``count`` networks a plan with random bits ``draw`` asks, as the engine chooses them."""
    networks = list(range(count))
    for i in range(asked):
        draw = (draw + 0x9E3779B97F4A7C15) % 2**64  # splitmix64 (Steele et al. 2014)
        z = ((draw ^ (draw >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
        z ^= z >> 31
        j = i + ((z >> 32) * (count - i) >> 32)
        networks[i], networks[j] = networks[j], networks[i]
    return networks[:asked]


class _Eager:
    """The spec's torch modules, for costs that no kernel computes."""

    def __init__(self, spec: Spec, tensors: Mapping[str, Tensor], device: torch.device) -> None:
        with torch.device(device):
            self._model = WorldModel(_without_precision(spec))
        self._model.load_state_dict({name: tensor.to(device) for name, tensor in tensors.items()})
        self._model.requires_grad_(False).to(device)
        self._device = device
        self._drawn = [
            (term, spec.modules[name].ensemble)
            for term in spec.cost
            if term.members > 0 and (name := spec.critic if term.kind == "critic" else term.module) is not None
        ]

    def __call__(
        self, states: Tensor, plans: Tensor, goals: Tensor | None, previous: Tensor, draws: npt.NDArray[np.uint64]
    ) -> Tensor:
        with torch.no_grad():
            return self._cost(states, plans, goals, previous, draws)

    def gradient(
        self, states: Tensor, plans: Tensor, goals: Tensor | None, previous: Tensor, draws: npt.NDArray[np.uint64]
    ) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            followed = plans.requires_grad_()
            cost = self._cost(states, followed, goals, previous, draws)
            return cost.detach(), torch.autograd.grad(cost.sum(), followed)[0]

    def _cost(
        self, states: Tensor, plans: Tensor, goals: Tensor | None, previous: Tensor, draws: npt.NDArray[np.uint64]
    ) -> Tensor:
        costs = []
        with torch.device(self._device):
            for e, plan in enumerate(plans):
                start = states[e].expand(len(plan), -1)
                members = {
                    t.label: choose_members(int(draws[e]), n, t.members) for t, n in self._drawn if t.members < n
                }
                costs.append(
                    plan_cost(
                        self._model, self._model.rollout(start, plan), plan, None if goals is None else goals[e],
                        None if bool(previous[e].isnan().any()) else previous[e], start=start, members=members,
                    )
                )  # fmt: skip
        return torch.stack(costs)


def _without_precision(spec: Spec) -> Spec:
    """The spec without what says how the engine runs modules in a lower precision."""
    modules = {name: dataclasses.replace(module, quantisation=None) for name, module in spec.modules.items()}
    return dataclasses.replace(spec, modules=modules)


def _device(name: str) -> torch.device:
    if name == "interpret":
        if not HAS_TRITON:
            raise UnsupportedError("device='interpret' needs the package triton: pip install 'pyjepa-engine[train]'")
        if not interpreted():
            raise UnsupportedError("device='interpret' needs TRITON_INTERPRET=1 before anything imports Triton")
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UnsupportedError(f"device={name!r}: torch finds no GPU (no driver, or a torch without CUDA or ROCm)")
    device = torch.device(name)
    if device.index is not None and device.index >= torch.cuda.device_count():
        raise UnsupportedError(f"device={name!r}: this machine has {torch.cuda.device_count()} GPUs")
    return torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
