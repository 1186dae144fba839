"""stable-worldmodel (0.1.1): the C++ planners as a solver of its `WorldModelPolicy`, its models as agent files.

    config = PlanConfig(horizon=10, receding_horizon=1, action_block=5)
    policy = WorldModelPolicy(Solver("two_room.safetensors"), config)
    policy = WorldModelPolicy(Solver(any_cost_model, candidates=300, iterations=30), config)

The package itself is never imported: a solver is what has the methods of its protocol, wherever that is defined
(`stable_worldmodel.solver`, later `stable_worldmodel.planning.solver`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from pyjepa import agent_file
from pyjepa.adapters import eb_jepa, swm_lewm
from pyjepa.agent import Agent, Model
from pyjepa.errors import InvalidArgumentError, NotReadyError, UnsupportedError
from pyjepa.spec import Actions, CostTerm, Observation, Planner, Spec

FloatArray = npt.NDArray[np.float32]


class Solver:
    """A solver in the sense of stable-worldmodel's protocol (`configure`, `solve`, three properties).

    With an agent file (or a `pyjepa.Model`, or a module that `lift` turns into one) everything happens in the engine:
    ``info[observation]`` and ``info[goal]`` are encoded, plans are rolled out natively. With any other cost model,
    candidates are the engine's and costs the model's own ``get_cost``, called once per iteration with all of them.

    A plan starts from the rest of the last one where the policy hands that back (``init_action``).

    Shapes: E environments that plan now (of ``n_envs``), H = ``config.horizon`` steps, A' = ``action_block`` * A.
    """

    def __init__(
        self,
        model: Any,
        *,
        planner: str | None = None,
        candidates: int | None = None,
        iterations: int | None = None,
        elites: int | None = None,
        std: float | None = None,
        min_std: float | None = None,
        bounds: tuple[float, float] | None = None,
        deadline: float | None = None,
        observation: str | None = None,
        goal: str | None = None,
        native: bool | None = None,
        threads: int = 1,
        seed: int = 0,
        **settings: Any,
    ) -> None:
        """Args:
        model: a cost model (``get_cost(info, candidates (E, N, H, A')) -> (E, N)``), an agent file or its path.
        planner, candidates, iterations, elites, std, min_std, settings: as in `pyjepa.Agent.configure`; the
            defaults are the agent file's, or for a cost model CEM's of stable-worldmodel (300 x 30, 30 elites,
            std 1).
        bounds: of every number of an action, where a cost model reads other units than the action space's (for
            instance because the policy normalises them).
        deadline: seconds per environment and plan.
        observation, goal: the keys of ``info`` to perceive; default: ``pixels`` and ``goal`` for pictures,
            ``state`` and ``goal_state`` for vectors. ``goal`` "" where the cost needs none.
        native: False calls the model's ``get_cost`` even where it could be lifted, True insists on lifting. LeWM and
            PLDM do not say how their actions and pixels were normalised: `lift` them, and give the agent file.
        """
        self._settings = {
            "planner": planner, "candidates": candidates, "iterations": iterations, "elites": elites, "std": std,
            "min_std": min_std, **settings,
        }  # fmt: skip
        self._bounds, self._deadline = bounds, deadline
        self._observation, self._goal = observation, goal
        self._threads, self._seed = threads, seed
        self._cost: Any = None
        self._model: Model | None = None
        if isinstance(model, Model):
            self._model = model
        elif isinstance(model, str | os.PathLike):
            self._model = Model.load(model)
        elif native is not False and not (native is None and _is_lewm(model)):
            try:
                self._model = Model.from_bytes(agent_file.to_bytes(*lift(model)))
            except UnsupportedError:
                if native:
                    raise
        if self._model is None:
            if not callable(getattr(model, "get_cost", None)):
                raise InvalidArgumentError(f"model: {type(model).__name__} is no agent file and has no get_cost")
            self._cost = model
        self._agents: list[Agent] = []
        self._width = self._n_envs = 0
        self._config: Any = None
        self._configured: set[int] = set()
        self._goals: dict[int, bytes | None] = {}
        self._now: dict[int, tuple[Mapping[str, Any], int, dict[int, dict[str, Any]]]] = {}
        self._tails: list[FloatArray | None] = []
        self.times: list[float] = []
        """Seconds that every `solve` took."""

    @property
    def native(self) -> bool:
        """Whether rollouts happen in the engine."""
        return self._model is not None

    def configure(self, *, action_space: Any, n_envs: int, config: Any) -> None:
        """Prepares for an action space ``Box`` of shape (n_envs, A).

        Raises `UnsupportedError` for another kind of space or a history, `InvalidArgumentError` for infinite bounds or
        an agent whose action block is another.
        """
        low, high = getattr(action_space, "low", None), getattr(action_space, "high", None)
        if low is None or high is None:
            raise UnsupportedError(f"action space {type(action_space).__name__}: only boxes are planned through this")
        if getattr(config, "history_len", 1) != 1:
            raise UnsupportedError(f"history_len {config.history_len}: the solver perceives one observation")
        low, high = (np.asarray(b, np.float32).reshape(n_envs, -1)[0] for b in (low, high))
        block, self._config, self._n_envs = int(config.action_block), config, n_envs
        if self._bounds is not None:
            low, high = np.full_like(low, self._bounds[0]), np.full_like(high, self._bounds[1])
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            raise InvalidArgumentError("the action space is not bounded: give bounds=(low, high)")
        self._width = len(low)
        if self._model is not None:
            model = self._model
            if model.action_block != block:
                raise InvalidArgumentError(f"action_block: the agent's is {model.action_block}, PlanConfig's {block}")
            if len(model.spec.actions.low) != self._width:
                raise InvalidArgumentError(
                    f"the agent has {len(model.spec.actions.low)} actions, the environment {self._width}"
                )
        else:
            spec = Spec(
                observation=Observation(shape=(1,)),
                actions=Actions(low=tuple(np.tile(low, block).tolist()), high=tuple(np.tile(high, block).tolist())),
                cost=(CostTerm(kind="action_size"),),
                planner=Planner(candidates=300, iterations=30, elites=30, std=1.0, min_std=0.0, horizon=config.horizon),
            )
            model = Model.from_bytes(agent_file.to_bytes(spec, {}))
        self._agents = [Agent(model, threads=self._threads) for _ in range(n_envs)]
        self._tails = [None] * n_envs
        self._configured, self._goals = set(), {}

    @property
    def action_dim(self) -> int:
        """A'; 0 before `configure`, as the others."""
        return self._width * int(self._config.action_block) if self._agents else 0

    @property
    def n_envs(self) -> int:
        """Environments of the pool."""
        return self._n_envs

    @property
    def horizon(self) -> int:
        """H."""
        return int(self._config.horizon) if self._agents else 0

    def __call__(self, *arguments: Any, **keywords: Any) -> dict[str, Any]:
        """`solve`."""
        return self.solve(*arguments, **keywords)

    def solve(self, info_dict: Mapping[str, Any], init_action: Any = None) -> dict[str, Any]:
        """Plans for the E environments of ``info_dict`` (arrays or tensors (E, 1, ...)).

        ``init_action`` (E, h, A'): rests of earlier plans. Returns ``actions`` (E, H, A') as a tensor, and ``costs``.
        """
        import torch

        config = self._checked()
        began = time.perf_counter()
        count = len(next(iter(info_dict.values())))
        tails = None if init_action is None else np.asarray(init_action, np.float32)
        plans = np.empty((count, config.horizon, self.action_dim), np.float32)
        costs = []
        taken: set[int] = set()
        slots = [self._slot(None if tails is None else tails[row], taken) for row in range(count)]
        for row, (slot, goes_on) in enumerate(slots):
            plan = self._plan(slot, goes_on, info_dict, row)
            plans[row] = plan.actions.reshape(config.horizon, -1)
            costs.append(float(plan.cost))
            self._tails[slot] = plans[row, config.receding_horizon :].copy()
        self.times.append(time.perf_counter() - began)
        return {"actions": torch.from_numpy(plans), "costs": costs}

    def _checked(self) -> Any:
        if not self._agents:
            raise NotReadyError("the solver has no environment yet: call configure first")
        return self._config

    def _slot(self, tail: FloatArray | None, taken: set[int]) -> tuple[int, bool]:
        """Which agent's last plan goes on with ``tail``, or else one that is free and starts anew.

        The protocol does not tell which of the pool's environments plan now, only what is left of their plans.
        """
        if tail is not None and tail.size and tail.any():
            for slot, kept in enumerate(self._tails):
                if slot not in taken and kept is not None and np.array_equal(kept, tail):
                    taken.add(slot)
                    return slot, True
        free = [slot for slot in range(self._n_envs) if slot not in taken]
        slot = min(free, key=lambda s: self._tails[s] is not None)
        taken.add(slot)
        self._tails[slot] = None
        return slot, False

    def _plan(self, slot: int, goes_on: bool, info: Mapping[str, Any], row: int) -> Any:
        agent, config = self._agents[slot], self._config
        steps = int(config.receding_horizon)
        if self._cost is not None:
            if slot not in self._configured:
                agent.configure(
                    rollout=lambda states, goals, actions: self._ask(slot, actions), horizon=int(config.horizon),
                    seed=self._seed + slot, **self._settings,
                )  # fmt: skip
                self._configured.add(slot)
            if not goes_on:
                agent.reset()
            self._now = {slot: (info, row, {})}
            agent.observe(np.zeros(1, np.float32), steps=steps)
            return agent.plan(deadline=self._deadline)
        spec = agent.spec
        picture = len(spec.observation.shape) == 3
        seen = self._perceived(info, self._observation or ("pixels" if picture else "state"), row)
        goal_key = self._goal if self._goal is not None else ("goal" if picture else "goal_state")
        goal = self._perceived(info, goal_key, row) if goal_key and spec.reads_goal else None
        goals = None if goal is None else goal.tobytes()
        if slot not in self._configured or not goes_on or self._goals.get(slot) != goals:
            agent.configure(
                goal=goal, horizon=int(config.horizon) * int(config.action_block), seed=self._seed + slot,
                **self._settings,
            )  # fmt: skip
            self._configured.add(slot)
            self._goals[slot] = goals
        agent.observe(seen, steps=steps * int(config.action_block))
        return agent.plan(deadline=self._deadline)

    def _perceived(self, info: Mapping[str, Any], key: str, row: int) -> npt.NDArray[Any]:
        """One environment's observation, as the agent reads it: pictures (C, H, W)."""
        if key not in info:
            raise InvalidArgumentError(f"info has no {key!r} (it has: {', '.join(sorted(info))})")
        value = np.asarray(info[key][row])
        expected = self._agents[0].spec.observation
        shape: tuple[int, ...] = expected.shape
        value = value.reshape(value.shape[-len(shape) :])
        given: tuple[int, ...] = value.shape
        if len(shape) == 3 and given != shape and given[-1] == shape[0]:
            value = np.moveaxis(value, -1, 0)
        if value.dtype != expected.dtype and expected.dtype == "float32":
            value = value.astype(np.float32)
        return np.ascontiguousarray(value)

    def _ask(self, slot: int, actions: FloatArray) -> FloatArray:
        """The model's costs (1, N) of candidates (1, N, H, A')."""
        import torch

        info, row, kept = self._now[slot]
        candidates = torch.from_numpy(np.ascontiguousarray(actions))
        count = candidates.shape[1]
        if count not in kept:  # models keep what they encoded in here, so it must live as long as the plan
            kept[count] = {key: _expanded(value, row, count) for key, value in info.items()}
        with torch.inference_mode():
            costs = self._cost.get_cost(kept[count], candidates)
        if tuple(costs.shape) != (1, count):
            raise InvalidArgumentError(f"get_cost returned shape {tuple(costs.shape)}, expected {(1, count)}")
        return np.asarray(costs.detach().cpu().numpy(), np.float32)


def _expanded(value: Any, row: int, count: int) -> Any:
    """One environment's value (1, N, ...), as stable-worldmodel's solvers hand it to a model."""
    import torch

    if torch.is_tensor(value):
        one = value[row : row + 1]
        return one.unsqueeze(1).expand(1, count, *one.shape[1:])
    if isinstance(value, np.ndarray):
        return np.repeat(value[row : row + 1][:, None], count, axis=1)
    return value[row : row + 1] if isinstance(value, list) else value


def _state(model: Any) -> Mapping[str, Any]:
    state: Mapping[str, Any] = model if isinstance(model, Mapping) else getattr(model, "state_dict", dict)()
    return state


def _is_lewm(model: Any) -> bool:
    return swm_lewm.is_one(list(_state(model)))


def lift(model: Any, **options: Any) -> tuple[Spec, dict[str, FloatArray]]:
    """An agent's spec and tensors from one of stable-worldmodel's modules, or its state dict.

    TD-MPC2 (`pyjepa.adapters.swm_tdmpc2`), LeWM and PLDM (`pyjepa.adapters.swm_lewm`) are lifted whole; these files say
    which ``options`` there are. Of a module, LeWM's numbers of heads need not be given. DINO-WM is refused with an
    `UnsupportedError` that names what the engine lacks.
    """
    state = _state(model)
    if not state:
        raise UnsupportedError(f"{type(model).__name__} has no weights to lift")
    if swm_lewm.is_one(list(state)):
        for option, part, *path in (
            ("heads", "predictor", "heads"),
            ("encoder_heads", "encoder", "config", "num_attention_heads"),
            ("norm_eps", "encoder", "config", "layer_norm_eps"),
        ):
            found = getattr(model, part, None)
            for key in path:
                found = getattr(found, key, None)
            if found is not None:
                options.setdefault(option, found)
        return swm_lewm.lift(state, **options)
    names = {name.split(".")[0] for name in state}
    if {"dynamics", "reward", "pi", "qs"} <= names:
        from pyjepa.adapters import swm_tdmpc2

        return swm_tdmpc2.lift(state, getattr(model, "cfg", None), **options)
    lacking = []
    if any(
        ".attention." in name or "cls_token" in name for name in state if name.startswith(("encoder.", "backbone."))
    ):
        lacking.append("its encoder's tokens are a state of their own")
    if any(name.startswith("predictor.transformer") for name in state):
        lacking.append("its predictor is a transformer whose norms nothing modulates")
    reason = "; ".join(lacking) or f"it is none of PLDM, LeWM, DINO-WM and TD-MPC2 (it has: {', '.join(sorted(names))})"
    raise UnsupportedError(f"{type(model).__name__} cannot be lifted: {reason}")


def load_weights(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A state dict from a file of weights or a checkpoint of training, executing nothing in it.

    What else a checkpoint holds, objects of any class (schedulers, settings), is passed over. Raises
    `InvalidArgumentError` for anything else.
    """
    import torch

    try:
        with torch.serialization.safe_globals(_passed_over(path)):
            state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:
        # torch raises RuntimeError, EOFError, KeyError or UnpicklingError, depending on what is wrong.
        raise InvalidArgumentError(
            f"{os.fspath(path)}: no file of weights alone ({type(error).__name__}); a pickled model is not read, save "
            "its state_dict"
        ) from error
    for key in ("state_dict", *eb_jepa.STATE_DICTS):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
            break
    if not isinstance(state, dict) or not all(torch.is_tensor(value) for value in state.values()):
        raise InvalidArgumentError(
            f"{os.fspath(path)}: expected a state dict of tensors; a pickled model is not read, save its state_dict"
        )
    return state


class _PassedOver:
    """Stands for whatever a file names: made of anything, it does nothing."""

    def __init__(self, *arguments: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _empty(*arguments: Any) -> dict[Any, Any]:
    return {}


def _passed_over(path: str | os.PathLike[str]) -> list[Any]:
    """What stands for every name in a checkpoint that torch does not know to be harmless."""
    import torch

    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(os.fspath(path))
    except ValueError:  # of torch's older format: read as it is, or not at all
        return []
    # An optimiser's state is a defaultdict, and what is filled must be a dict.
    return [(_empty if name == "collections.defaultdict" else _PassedOver, name) for name in names]


class CostModel:
    """An agent file as one of stable-worldmodel's cost models, in torch: what its own solvers plan with.

    Symbols: E environments, N candidates, H steps, A' numbers a step. The costs are those that the engine computes.
    """

    def __init__(self, model: Model | str | os.PathLike[str], tensors: Mapping[str, Any] | None = None) -> None:
        """``model``: an agent file's path, or a model and its ``tensors``."""
        import torch

        from pyjepa.world_model import WorldModel

        if not isinstance(model, Model):
            from safetensors.numpy import load_file

            tensors, model = load_file(os.fspath(model)), Model.load(model)
        if tensors is None:
            raise InvalidArgumentError("tensors: needed with a model that was loaded already")
        self._model = WorldModel(model.spec)
        self._model.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in tensors.items()})
        self._model.eval()
        self._repeat = 1 if not model.spec.levels[0].hold else model.spec.levels[0].action_block
        low, high = (torch.tensor(b) for b in (model.spec.actions.low, model.spec.actions.high))
        per_step = 1 if model.spec.levels[0].hold else model.spec.levels[0].action_block
        self._low, self._high = low.repeat(per_step), high.repeat(per_step)

    def get_cost(self, info: dict[str, Any], candidates: Any) -> Any:
        """Costs (E, N) of candidates (E, N, H, A'), clamped to the bounds, which its solvers do not know.

        What is encoded is kept in ``info`` for the next call. A model that holds its actions takes one a step, A' = A,
        or a block of them, of which it reads the mean.
        """
        import torch

        from pyjepa.cost import plan_cost

        if "pyjepa_state" not in info:
            info["pyjepa_state"], info["pyjepa_goal"] = (self._encoded(info[key]) for key in ("pixels", "goal"))
        steps = candidates
        if self._repeat > 1 and candidates.shape[-1] != len(self._low):
            steps = candidates.reshape(*candidates.shape[:3], self._repeat, -1).mean(dim=-2)
        steps = torch.maximum(torch.minimum(steps, self._high), self._low)
        costs = []
        for state, goal, plans in zip(info["pyjepa_state"], info["pyjepa_goal"], steps, strict=True):
            states = self._model.rollout(state.expand(len(plans), -1), plans)
            costs.append(plan_cost(self._model, states, plans, goal, start=state))
        return torch.stack(costs)

    def _encoded(self, pictures: Any) -> Any:
        """Latents (E, L) of the first candidate's pictures (E, N, 1, H, W, C) or (E, N, 1, C, H, W)."""
        seen = pictures[:, 0, -1]
        if tuple(seen.shape[1:]) != self._model.spec.observation.shape:
            seen = seen.movedim(-1, 1)
        return self._model.encode(seen)
