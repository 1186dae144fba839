"""The agent: perceive, act (Mode-1) and plan (Mode-2) with a trained model, in the C++ engine.

Shapes: ``obs...`` the observation's shape, ``A`` action dimension, ``L`` latent dimension, ``H`` horizon in environment
steps, ``S`` predictor steps (H / action_block), ``E`` environments. A discrete action is its index: no axis A.
Where `Agent.configure` set up a batch, every array has a leading axis E; else it has none.
"""

from __future__ import annotations

import math
import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from pyjepa import _engine
from pyjepa.configurator import (
    ALGORITHMS,
    INTERPOLATIONS,
    SAMPLINGS,
    TEMPERATURE_SCALES,
    FloatArray,
    Rollout,
    Task,
    observation_array,
    resolve,
)
from pyjepa.errors import InvalidArgumentError, NotReadyError, UnsupportedError
from pyjepa.memory import Memory
from pyjepa.spec import Spec

if TYPE_CHECKING:
    from pyjepa.adapters.triton_rollout import TritonRollout

Precision: TypeAlias = Literal["fp32", "bf16", "int8", "fp16"]
ActionArray: TypeAlias = npt.NDArray[Any]
"""float32 (..., A) of a box, int64 (...) of discrete actions."""


class Model:
    """An agent file in memory: the spec and packed weights. Immutable; agents and threads share it."""

    def __init__(self, engine_model: _engine.Model) -> None:
        self._engine = engine_model
        self._dims = engine_model.dims
        self.spec: Spec = Spec.from_json(engine_model.spec)

    @staticmethod
    def load(path: str | os.PathLike[str], *, precision: Precision = "fp32") -> Model:
        """Reads and validates an agent file.

        ``precision``: of the weights of all that planning runs (predictor, heads, critic, policy), ``fp32``, ``bf16``
        or ``int8`` (a scale per output; inputs scaled row by row as they come). Mode-1 stays in fp32, and so does
        perception unless the file says how low each layer of the encoder may go (`pyjepa.spec.Quantisation`). A
        machine without the instructions (AVX-512 with BF16 or VNNI) takes fp32 and warns.

        Raises `AgentFileError` (the file is damaged or contradicts itself), `UnsupportedError` (it needs what this
        engine lacks) or `OSError`.
        """
        return Model(_engine.Model.load(os.fsencode(path), _known_precision(precision)))._as_wanted(precision)

    @staticmethod
    def from_bytes(data: bytes | bytearray | memoryview, *, precision: Precision = "fp32") -> Model:
        """The model behind an agent file's bytes. Takes and raises what `load` does."""
        if not isinstance(data, bytes | bytearray | memoryview):
            raise InvalidArgumentError(f"data must be bytes, got {type(data).__name__}")
        whole = data if isinstance(data, bytes) else bytes(data)
        return Model(_engine.Model.parse(whole, _known_precision(precision)))._as_wanted(precision)

    def _as_wanted(self, precision: Precision) -> Model:
        if self.precision != precision:
            warnings.warn(
                f"this machine has no {precision} instructions{_overridden()}: predicting in fp32",
                RuntimeWarning,
                stacklevel=3,
            )
        return self

    @property
    def precision(self) -> str:
        """The precision that plans are made in; see `load` for what stays in fp32."""
        return str(self._dims["precision"])

    @property
    def latent_dim(self) -> int:
        """L, the size of a latent state."""
        return int(self._dims["latent_dim"])

    @property
    def action_block(self) -> int:
        """Environment steps per predictor step."""
        return int(self._dims["action_block"])

    def forward(self, module: str, inputs: npt.ArrayLike) -> FloatArray:
        """One module's output (batch, out), an ensemble's members one after the other, for ``inputs`` (batch, in): its
        inputs concatenated in the spec's order, as they enter the network (observations scaled, actions normalised).
        For tests and tools.
        """
        return self._engine.forward(module, np.ascontiguousarray(inputs, dtype=np.float32))

    def encode(self, observations: npt.ArrayLike) -> FloatArray:
        """Latent states (batch, L) of observations (batch, obs...) of the spec's dtype."""
        array = observation_array(self.spec, observations, "observations", batch=len(np.asarray(observations)))
        scaled = array.reshape(len(array), -1).astype(np.float32) * np.float32(self.spec.observation.scale)
        scaled += np.float32(self.spec.observation.offset)
        name = self.spec.levels[0].encoder
        return scaled if name is None else self.forward(name, scaled)


@dataclass(frozen=True)
class Diagnostics:
    """How a plan was found: see ``docs/planners.md``. Arrays of a batch have a leading axis E."""

    best_cost: FloatArray
    """(iterations + 1,): the best cost so far, first that of the plan it started from, then after every iteration."""
    converged: int | npt.NDArray[np.int32]
    """The first iteration after which the best cost was within 1 % of the final one; 0: the start already was."""
    effective_samples: float | FloatArray
    """(Σw)² / Σw² over the weights w that the last iteration gave its candidates: how many it learned from."""
    elite_spread: float | FloatArray
    """The standard deviation of those candidates, in halves of the action range: how far they agree."""


class _Outline:
    """What the plans of a task look like, found out once: a plan takes tenths of a millisecond."""

    def __init__(self, agent: Agent, settings: Mapping[str, Any]) -> None:
        spec = agent.spec
        self.batch = agent._batch
        self.steps, self.latent = settings["horizon"] // agent.model.action_block, agent.model.latent_dim
        self.iterations = settings["iterations"]
        self.terms = [term.label for term in spec.cost]
        self.native = agent._native
        self.layout = agent._engine.plan_layout
        self.size = max(end for _, end in self.layout.values())

    def array(self, numbers: FloatArray, name: str, *shape: int) -> FloatArray:
        """One of a plan's results; of a batch with a leading axis E."""
        first, end = self.layout[name]
        return numbers[first:end].reshape(shape if self.batch is None else (self.batch, *shape))

    def number(self, numbers: npt.NDArray[Any], name: str) -> Any:
        """One with a number for each environment: a Python number where there is no batch."""
        first, end = self.layout[name]
        return numbers.item(first) if self.batch is None else numbers[first:end]


class Plan:
    """What Mode-2 decided. Arrays of a batch have a leading axis E."""

    __slots__ = ("_numbers", "_outline", "actions", "elapsed", "iterations")

    actions: ActionArray
    """(H, A), or int64 indices (H,): the whole plan; execute the first few, then plan again."""
    iterations: int
    """Planner iterations completed: the configured number, unless a deadline passed."""
    elapsed: float
    """Seconds spent planning."""

    def __init__(
        self, actions: ActionArray, iterations: int, elapsed: float, outline: _Outline, numbers: FloatArray
    ) -> None:
        self.actions, self.iterations, self.elapsed = actions, iterations, elapsed
        self._outline, self._numbers = outline, numbers

    @property
    def cost(self) -> float | FloatArray:
        """The predicted cost of `actions`; (E,) for a batch."""
        cost: float | FloatArray = self._outline.number(self._numbers, "cost")
        return cost

    @property
    def cost_terms(self) -> Mapping[str, FloatArray]:
        """Each term's weighted share of the cost at every predictor step (S,); empty for callback rollouts."""
        outline = self._outline
        if not outline.native:
            return {}
        terms = outline.array(self._numbers, "cost_terms", len(outline.terms), outline.steps)
        return {name: terms[..., i, :] for i, name in enumerate(outline.terms)}

    @property
    def states(self) -> FloatArray | None:
        """(S + 1, L): the predicted latent states, the present one first; None for callback rollouts."""
        outline = self._outline
        if not outline.native:
            return None
        return outline.array(self._numbers, "states", outline.steps + 1, outline.latent)

    @property
    def diagnostics(self) -> Diagnostics:
        """How it was found."""
        outline, numbers = self._outline, self._numbers
        return Diagnostics(
            best_cost=outline.array(numbers, "best_cost", outline.iterations + 1)[..., : self.iterations + 1],
            converged=outline.number(numbers.view(np.int32), "converged"),
            effective_samples=outline.number(numbers, "effective_samples"),
            elite_spread=outline.number(numbers, "elite_spread"),
        )

    def __repr__(self) -> str:
        return (
            f"Plan(cost={self.cost}, iterations={self.iterations}, elapsed={self.elapsed:.6f}, actions={self.actions})"
        )


class Agent:
    """A model with a task: see the module's description for shapes. One thread at a time; `clone` for more."""

    def __init__(self, model: Model, *, threads: int = 1) -> None:
        """Raises `InvalidArgumentError` for a thread count the machine cannot have."""
        if isinstance(threads, bool) or not isinstance(threads, int | np.integer) or not 1 <= threads <= 1024:
            raise InvalidArgumentError(f"threads must be an integer between 1 and 1024, got {threads!r}")
        self.model = model
        self._engine = _engine.Agent(model._engine, int(threads))
        self._batch: int | None = None
        self._native = True
        self._settings: dict[str, Any] | None = None
        self._outline: _Outline | None = None
        self._elsewhere: TritonRollout | None = None
        self._way: tuple[str, str, str] = ("native", "native", "")

    @property
    def spec(self) -> Spec:
        """The agent file's spec."""
        return self.model.spec

    def configure(
        self,
        *,
        goal: npt.ArrayLike | None = None,
        environments: int | None = None,
        planner: str | None = None,
        horizon: int | None = None,
        candidates: int | None = None,
        iterations: int | None = None,
        elites: int | None = None,
        knots: int | None = None,
        interpolation: str | None = None,
        std: float | None = None,
        min_std: float | None = None,
        momentum: float | None = None,
        temperature: float | None = None,
        temperature_scale: str | None = None,
        elite_refit: bool | None = None,
        max_std: float | None = None,
        policy_candidates: int | None = None,
        prune: bool = True,
        sampling: str | None = None,
        noise_beta: float | None = None,
        keep_elites: float | None = None,
        decay: float | None = None,
        learning_rate: float | None = None,
        restarts: int | None = None,
        polish: int | None = None,
        exploration: float | None = None,
        branching: int | None = None,
        bounds: tuple[npt.ArrayLike, npt.ArrayLike] | None = None,
        weights: Mapping[str, float] | None = None,
        discount: float | None = None,
        rollout: Rollout | None = None,
        seed: int = 0,
    ) -> None:
        """Sets the task (paper section 3, the configurator) and allocates all it needs. None: the file's default.

        Args:
            goal: an observation (obs...) to reach, or one per environment (E, obs...), which makes a batch.
            environments: batch size E where the goal does not tell.
            planner: for boxes ``cem``, ``icem``, ``mppi``, ``predictive-sampling``, ``gradient`` or ``hybrid``; the
                last two need the model's own rollouts, in fp32, through ``mlp`` blocks. For discrete actions
                ``categorical-cem``; ``tree`` for both.
            horizon: environment steps, a multiple of the model's action_block.
            candidates: action sequences evaluated per iteration.
            iterations: planner iterations at most. Default: the file's; where that plans by another algorithm, 30 for
                ``gradient``, and for ``hybrid`` 3 more than ``polish``.
            elites: candidates that CEM, iCEM, hybrid and categorical CEM, or MPPI with ``elite_refit``, refit to.
            knots: values along the horizon that the planner searches over (0: one per predictor step).
            interpolation: between knots: ``zero``, ``linear`` or ``cubic``.
            std: first spread of the candidates, as a fraction of half the action range.
            min_std: least spread that a refit to elites narrows to, likewise.
            momentum: share of the old distribution that CEM, iCEM, hybrid and categorical CEM keep.
            temperature: MPPI's, in standard deviations of the candidates' costs.
            temperature_scale: ``std``, or ``absolute``: the temperature is in units of cost.
            elite_refit: MPPI weighs the elites only, and refits the spread to them too (TD-MPC2).
            max_std: most spread that such a refit widens to, as a fraction of half the action range.
            policy_candidates: candidates that are rollouts of the policy through the model, made once a plan; for
                planners of boxes that draw candidates.
            prune: give up candidates as soon as they cannot be among those the planner keeps; the plan is the same.
            sampling: ``gaussian`` or ``sobol`` (evenly spread points; up to 64 numbers per plan).
            noise_beta: colour of the noise: its power along the knots falls as 1 / f^beta. 0: white.
            keep_elites: share of its elites that iCEM carries into the next iteration and, shifted, the next plan.
            decay: factor by which iCEM's candidates shrink every iteration, never below twice the elites.
            learning_rate: Adam's, in halves of the action range; falls to nothing over the plan.
            restarts: plans that ``gradient`` and ``hybrid`` follow downhill side by side; after every quarter of the
                steps the cheaper half of them goes on.
            polish: iterations of ``hybrid``, the last ones, that go downhill instead of sampling.
            exploration: share of each distribution that categorical-cem keeps uniform.
            branching: actions that tree weighs at a node where it samples them.
            bounds: (low, high), each (A,) or a number, instead of the file's.
            weights: factors u_i on the cost terms, by name (their kind, unless the agent file names them).
            discount: of costs, per predictor step, in (0, 1].
            rollout: a function ``(states (E, L), goals (E, L) or None, actions (E, N, H, A)) -> costs (E, N)`` that
                replaces the model's own prediction and cost. N differs from call to call.
            seed: of the planner's noise.

        Raises `InvalidArgumentError` for values that cannot be, naming them, and `UnsupportedError` where a gradient is
        asked of what has none; the previous task then stays.
        """
        task = Task(
            goal=goal, environments=environments, planner=planner, horizon=horizon, candidates=candidates,
            iterations=iterations, elites=elites, knots=knots, interpolation=interpolation, std=std, min_std=min_std,
            momentum=momentum, temperature=temperature, temperature_scale=temperature_scale, elite_refit=elite_refit,
            max_std=max_std, policy_candidates=policy_candidates, prune=prune, sampling=sampling, noise_beta=noise_beta,
            keep_elites=keep_elites, decay=decay, learning_rate=learning_rate, restarts=restarts, polish=polish,
            exploration=exploration, branching=branching, bounds=bounds, weights=weights, discount=discount,
            rollout=rollout, seed=seed,
        )  # fmt: skip
        arguments, batch = resolve(self.spec, task)
        way = ("callback", "callback", "") if rollout is not None else ("native", "native", "")
        if rollout is None and self._elsewhere is not None:
            stand_in = self._elsewhere.task(weights, discount)
            arguments |= {"rollout_call": stand_in, "rollout_gradient": True}
            one, back = stand_in.choice, stand_in.gradient_choice
            way = (one.way, back.way, one.reason or back.reason)
        self._engine.configure(**arguments)
        self._way = way
        self._batch = batch
        self._native = rollout is None
        settings = self._engine.settings()
        self._settings, self._outline = settings, _Outline(self, settings)

    @property
    def settings(self) -> Mapping[str, Any]:
        """The settings in force, defaults resolved; ``flops`` is one plan's rollout arithmetic, ``tile`` how many
        candidates a thread rolls out together at most. ``rollout``: ``native`` (the engine's own), ``callback``, or on
        another ``device`` fused, stepwise or eager; ``rollout_gradient``: how its gradients are found, likewise;
        ``rollout_reason``: why not both in a faster way.
        """
        settings = self._configured()
        names: dict[str, dict[int, str | None]] = {
            "algorithm": {number: name for name, number in ALGORITHMS.items()},
            "interpolation": dict(enumerate(INTERPOLATIONS, 1)),
            "temperature_scale": dict(enumerate(TEMPERATURE_SCALES, 1)),
            "sampling": {0: None} | dict(enumerate(SAMPLINGS, 1)),
        }
        resolved = {key: names[key][value] if key in names else value for key, value in settings.items()}
        where = "cpu" if self._elsewhere is None else self._elsewhere.name
        return resolved | dict(
            zip(("rollout", "rollout_gradient", "rollout_reason"), self._way, strict=True), device=where
        )

    def observe(
        self, observation: npt.ArrayLike, *, steps: int | None = None, taken: npt.ArrayLike | None = None
    ) -> None:
        """Encodes an observation (obs...), or one per environment (E, obs...): paper section 3, perception.

        ``steps``: environment steps since the last call (default: action_block); the next plan starts from the last one
        shifted by as much. ``taken``: the actions of these steps, if there are action_block of them, (action_block, A)
        or as `evaluate` takes one predictor step, (A',), per environment. Of what it is told an agent whose predictor
        looks back (``adaln_transformer``) remembers as many states, each with its action, as fit in the window; where
        it is not told, and in an environment just reset, it looks at the present state alone.

        Raises `InvalidArgumentError` for a wrong shape or dtype or a value that is not finite, and `UnsupportedError`
        for ``taken`` where something else than the engine rolls out a predictor that looks back.
        """
        self._configured()
        array = observation_array(self.spec, observation, "observation", batch=self._batch)
        known = isinstance(steps, int | np.integer) and not isinstance(steps, bool) and 0 <= steps < 2**31
        if steps is not None and not known:
            raise InvalidArgumentError(f"steps must be an integer between 0 and 2**31 - 1, got {steps!r}")
        self._engine.observe(array, -1 if steps is None else int(steps), None if taken is None else self._taken(taken))

    @property
    def state(self) -> FloatArray:
        """The current latent state (L,). Raises `NotReadyError` before `observe`."""
        self._configured()
        out = np.empty(self._shape(self.model.latent_dim), np.float32)
        self._engine.state(out)
        return out

    def act(
        self, observation: npt.ArrayLike | None = None, *, explore: bool = False, out: ActionArray | None = None
    ) -> Any:
        """Mode-1 (paper section 3.1.1): the policy's action (A,) for the last observation, or for one given here.

        A discrete action is an int, of a batch int64 (E,): the largest of the policy's logits. ``explore`` draws from
        the policy's distribution instead, by the task's seed and how often the environment explored since its reset.

        Raises `UnsupportedError` where the agent file has no policy, or to explore one that is deterministic.
        """
        self._configured()
        if observation is not None:
            self.observe(observation)
        raw, actions = self._actions(out)
        self._engine.act(raw, explore)
        result = self._converted(raw, actions)
        return int(result) if result.ndim == 0 else result

    def plan(
        self,
        observation: npt.ArrayLike | None = None,
        *,
        deadline: float | None = None,
        out: ActionArray | None = None,
    ) -> Plan:
        """Mode-2 (paper section 3.1.2): the cheapest action sequence found, from the last observation or one given.

        ``deadline``: seconds from the call; when it passes, the unfinished iteration is dropped and the best evaluated
        plan returned. ``out``: where to write the actions, float32 (H, A) or int64 (H,). Ctrl-C ends a plan of the main
        thread.

        Raises `NotReadyError` before `observe`, `RolloutError` if a callback rollout fails, `BusyError` if another
        thread is inside this agent.
        """
        settings = self._configured()
        seconds = 0.0  # the engine takes it as "no deadline"; a deadline of 0 has passed already
        if deadline is not None:
            number = isinstance(deadline, (int, float, np.integer, np.floating)) and not isinstance(deadline, bool)
            if not (number and deadline >= 0.0):
                raise InvalidArgumentError(f"deadline must be a number of seconds, not negative, got {deadline!r}")
            seconds = 0.0 if math.isinf(deadline) else max(float(deadline), 1e-12)
        if observation is not None:
            self.observe(observation)
        raw, actions = self._actions(out, settings["horizon"])
        outline = self._outline
        assert outline is not None
        numbers = np.empty(outline.size, np.float32)
        iterations, elapsed = self._engine.plan(seconds, raw, numbers)
        return Plan(self._converted(raw, actions), iterations, elapsed, outline, numbers)

    def evaluate(self, plans: npt.ArrayLike) -> FloatArray:
        """What plans (N, S, A') cost from the last observation, under the task's cost: (N,), infinite where the
        prediction is not finite. A' is A where the level holds its action, else action_block * A; of discrete actions A
        is 1, an index. For tools: allocates.
        """
        return self._evaluate(plans, gradient=False)[0]

    def gradient(self, plans: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
        """The same, and the derivative (N, S, A') of every cost with respect to its plan.

        Raises `UnsupportedError` where there is none: discrete actions, callback rollouts, predictors with other blocks
        than ``mlp`` or in a lower precision than fp32.
        """
        cost, gradient = self._evaluate(plans, gradient=True)
        assert gradient is not None
        return cost, gradient

    def _width(self) -> int:
        """A': the numbers that say what is done in one predictor step."""
        actions, level = self.spec.actions, self.spec.levels[0]
        return (1 if actions.kind == "discrete" else actions.size) * (1 if level.hold else level.action_block)

    def _taken(self, taken: npt.ArrayLike) -> FloatArray:
        array = np.ascontiguousarray(taken, np.float32)
        level, expected = self.spec.levels[0], self._shape(self._width())
        several = self.spec.actions.kind != "discrete" and not level.hold
        if array.shape != expected and not (
            several and array.shape == self._shape(level.action_block, self.spec.actions.size)
        ):
            raise InvalidArgumentError(f"taken has shape {array.shape}, expected {expected}, one predictor step")
        if not np.isfinite(array).all():
            raise InvalidArgumentError("taken is not finite")
        return array

    def _evaluate(self, plans: npt.ArrayLike, *, gradient: bool) -> tuple[FloatArray, FloatArray | None]:
        settings = self._configured()
        array = np.ascontiguousarray(plans, np.float32)
        batched = array[None] if self._batch is None and array.ndim == 3 else array
        steps = settings["horizon"] // self.model.action_block
        expected = (settings["environments"], batched.shape[1] if batched.ndim == 4 else "N", steps, self._width())
        if batched.shape != expected:
            raise InvalidArgumentError(f"plans have shape {array.shape}, expected {self._shape(*expected[1:])}")
        if not np.isfinite(array).all():
            raise InvalidArgumentError("plans are not finite")
        cost, slope = self._engine.evaluate(batched, gradient)
        if self._batch is not None:
            return cost, slope
        return cost[0], None if slope is None else slope[0]

    def reset(self, *, env: int | None = None) -> None:
        """A new episode, for all environments or for one of a batch: forgets state, warm start and plan count."""
        environments = self._configured()["environments"]
        known = env is None or (isinstance(env, (int, np.integer)) and not isinstance(env, bool))
        if not known or (env is not None and not 0 <= env < environments):
            raise InvalidArgumentError(f"env must be an integer between 0 and {environments - 1}, got {env!r}")
        self._engine.reset(-1 if env is None else int(env))

    def remember(self, capacity: int) -> None:
        """From now on, `observe` records states with their time and intrinsic cost, the newest ``capacity`` of them.

        Configuring another task keeps them; 0 stops and forgets. Recording allocates nothing (paper section 3, memory).
        """
        if isinstance(capacity, bool) or not isinstance(capacity, int) or not 0 <= capacity < 2**40:
            raise InvalidArgumentError(f"capacity must be an integer, not negative, got {capacity!r}")
        self._engine.remember(capacity)

    @property
    def memory(self) -> Memory:
        """What was recorded since `remember`, oldest first: a copy."""
        return Memory(**self._engine.memory(self.model.latent_dim))

    def clone(self) -> Agent:
        """A second agent with the same model, threads and task, and none of the history."""
        twin = Agent.__new__(Agent)
        twin.model, twin._batch = self.model, self._batch
        twin._native, twin._settings, twin._outline = self._native, self._settings, self._outline
        twin._elsewhere, twin._way = self._elsewhere, self._way
        twin._engine = self._engine.clone()
        return twin

    def _configured(self) -> dict[str, Any]:
        if self._settings is None:
            raise NotReadyError("the agent has no task yet: call configure first")
        return self._settings

    def _shape(self, *shape: Any) -> tuple[Any, ...]:
        return shape if self._batch is None else (self._batch, *shape)

    def _actions(self, out: ActionArray | None, *shape: int) -> tuple[FloatArray, ActionArray]:
        """Where the engine writes actions, and the array to return: ``out`` if given. The same one for a box."""
        discrete = self.spec.actions.kind == "discrete"
        dtype = np.dtype(np.int64 if discrete else np.float32)
        full = self._shape(*shape) if discrete else self._shape(*shape, self.spec.actions.size)
        if out is None:
            out = np.empty(full, dtype)
        elif out.shape != full or out.dtype != dtype or not out.flags.c_contiguous or not out.flags.writeable:
            raise InvalidArgumentError(
                f"out must be a writeable, contiguous {dtype} array of shape {full}, got {out.dtype} {out.shape}"
            )
        return (np.empty((*full, 1), np.float32) if discrete else out), out

    @staticmethod
    def _converted(raw: FloatArray, actions: ActionArray) -> ActionArray:
        """``actions``, holding what the engine wrote into ``raw``: indices come as floats, with an axis A = 1."""
        if actions is not raw:
            actions[...] = raw[..., 0]
        return actions


def _overridden() -> str:
    isa = os.environ.get("PYJEPA_ISA")
    return f" with PYJEPA_ISA={isa}" if isa else ""


def _known_precision(precision: object) -> str:
    if not isinstance(precision, str):
        raise InvalidArgumentError(f"precision must be fp32, bf16 or int8, got {precision!r}")
    return precision


def load(
    path: str | os.PathLike[str], *, threads: int = 1, precision: Precision = "fp32", device: str = "cpu"
) -> Agent:
    """An agent from an agent file, ready to `Agent.configure`. Takes milliseconds and does not import torch.

    ``device``: where planners roll out. ``cpu``: in the engine. ``cuda`` (``cuda:1``, ...): on a GPU, through Triton,
    with the same planners and costs (``docs/rollouts.md``); ``precision`` is then ``fp32``, ``bf16`` or ``fp16``, and
    perception, Mode-1 and `Plan.states` stay in the engine. ``interpret``: the same on a CPU, for tests. These import
    torch; `Agent.settings` says which way rollouts take.

    ``precision`` and errors: see `Model.load`. Raises `UnsupportedError` where the device cannot be had.
    """
    if device == "cpu":
        return Agent(Model.load(path, precision=precision), threads=threads)
    if device != "interpret" and not re.fullmatch(r"cuda(:\d{1,3})?", str(device)):
        raise InvalidArgumentError(f"device must be cpu, cuda, cuda:0, ... or interpret, got {device!r}")
    try:
        from pyjepa.adapters.triton_rollout import TritonRollout
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "triton"):
            raise
        raise UnsupportedError(f"device={device!r} needs {error.name}: pip install 'pyjepa-engine[train]'") from error
    data = Path(path).read_bytes()
    agent = Agent(Model.from_bytes(data), threads=threads)
    agent._elsewhere = TritonRollout(agent.spec, data, device=device, precision=precision)
    return agent
