"""Practice that makes an agent faster (paper sections 3.1.3 and 3.3): plan, remember, train the critic and the policy.

From an agent that only plans comes one with a critic, which ends short plans with what is still to come, and a policy,
which acts at once (Mode-1) and starts the planner off (Mode-2).
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Protocol

import numpy as np
import torch

from pyjepa import agent_file
from pyjepa.agent import Agent, Model
from pyjepa.envs.two_rooms import TwoRooms
from pyjepa.envs.two_rooms_discrete import MOVES, TwoRoomsDiscrete
from pyjepa.memory import Memory
from pyjepa.spec import CostTerm, Layer, Mlp, Module, Spec
from pyjepa.training import experience
from pyjepa.training.critic import train_critic
from pyjepa.training.distillation import train_policy
from pyjepa.training.experience import FloatArray, Plans
from pyjepa.world_model import WorldModel


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How much to practise, and what comes of it."""

    episodes: int = 1500
    """That the planner plays, to remember."""
    plans: int = 20_000
    """From remembered states, to learn from; as many again, in all, from where the policy went."""
    rounds: int = 2
    """In which the policy plays and the planner corrects it."""
    steps: int = 8000
    """Of training, for the critic and for the policy each time."""
    window: int = 1000
    """Of the critic's targets; see `pyjepa.training.critic`."""
    hidden: tuple[int, ...] = (192, 192)
    """Layers of the critic."""
    policy_hidden: tuple[int, ...] = (192, 192)
    """Layers of the policy."""
    reach: float = 4.0
    """Of the goal distance, in latent units: see `pyjepa.spec.CostTerm`."""
    horizon: int = 24
    """Environment steps that the new agent plans ahead by default."""
    seed: int = 0


class Reporter(Protocol):
    """Is told how practice goes."""

    def stage(self, name: str, total: int) -> None:
        """Something of ``total`` pieces begins."""

    def advance(self, count: int) -> None:
        """So many pieces are done."""

    def note(self, message: str) -> None:
        """A result on the way."""


class Silence:
    """Tells nobody."""

    def stage(self, name: str, total: int) -> None:
        """Do nothing."""

    def advance(self, count: int) -> None:
        """Do nothing."""

    def note(self, message: str) -> None:
        """Do nothing."""


DEFAULTS = Settings()
SILENCE = Silence()


def practised_spec(spec: Spec, settings: Settings) -> Spec:
    """``spec`` with a critic, a policy and the cost of the time to the goal."""
    discrete = spec.actions.kind == "discrete"

    def network(hidden: tuple[int, ...], out: int) -> Module:
        layers = (*(Layer(out=size, activation="relu") for size in hidden), Layer(out=out))
        return Module(inputs=("state", "goal"), blocks=(Mlp(layers=layers),))

    others = tuple(term for term in spec.cost if term.kind not in ("goal_distance", "critic"))
    block = spec.levels[0].action_block
    return dataclasses.replace(
        spec,
        modules={
            **{name: module for name, module in spec.modules.items() if name not in (spec.critic, spec.policy)},
            "critic": network(settings.hidden, 1),
            "policy": network(settings.policy_hidden, spec.actions.size * (1 if discrete else 2)),
        },
        critic="critic",
        policy="policy",
        policy_head="categorical" if discrete else "gaussian_tanh",
        cost=(
            CostTerm(kind="goal_distance", reach=settings.reach),
            CostTerm(kind="critic", stage=0.0, estimates="cost"),
            *others,
        ),
        planner=dataclasses.replace(
            spec.planner, horizon=settings.horizon // block * block, policy_candidates=0 if discrete else 1
        ),
    )


def practise(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    settings: Settings = DEFAULTS,
    memory: Memory | None = None,
    reporter: Reporter = SILENCE,
    command: str = "pyjepa.training.practice.practise",
) -> tuple[Spec, Memory]:
    """Practises with the agent file ``path`` in Two Rooms' training worlds and writes the agent that comes of it.

    An agent of discrete actions practises in the world of eight moves: its policy, of a categorical head, is where a
    tree search begins.

    ``memory``: what was remembered before, instead of playing. Returns the new agent's spec and all that is remembered.
    Raises what reading and writing agent files raise, and ValueError for a memory of another agent and for
    actions that are not the world's.
    """
    base = Model.load(path)
    tensors = experience.load_tensors(os.fspath(path))
    torch.manual_seed(settings.seed)
    spec = practised_spec(base.spec, settings)
    world = _world(spec)
    if memory is None:
        reporter.stage("plan and remember", settings.episodes)
        memory, reached = experience.walk(
            Agent(base),
            episodes=settings.episodes,
            seed=settings.seed,
            world_type=world,
            progress=reporter.advance,
        )
        reporter.note(f"the planner reached {reached:.1%} of {settings.episodes} goals")
    elif memory.states.shape[1] != base.latent_dim:
        raise ValueError(f"the memory's states have {memory.states.shape[1]} numbers, the agent's {base.latent_dim}")

    heads = WorldModel(spec)
    parameters = {k: torch.from_numpy(v.copy()) for k, v in tensors.items() if k.split(".")[0] in base.spec.modules}
    kept = {k: v for k, v in parameters.items() if k.split(".")[0] not in ("critic", "policy")}
    heads.load_state_dict(kept, strict=False)
    _train_critic(heads, memory, settings, reporter)
    plans = _plan(spec, heads, memory, settings.plans, settings, reporter)
    # Once more, with what was imagined: it is on predicted states that the planner asks the critic.
    imagined = plans[: settings.plans // 2].as_memory()
    _train_critic(heads, Memory.joined([memory, imagined]), settings, reporter)
    for again in range(settings.rounds + 1):
        reporter.stage("train the policy", settings.steps)
        loss = train_policy(
            heads, plans, steps=settings.steps, seed=settings.seed + again, progress=lambda step, _: reporter.advance(1)
        )
        reporter.note(f"the policy's loss is {loss:.4f}")
        if again == settings.rounds:
            break
        reporter.stage("play by the policy", settings.episodes // 4)
        agent = Agent(Model.from_bytes(agent_file.to_bytes(spec, _arrays(heads))))
        went, reached = experience.walk(
            agent,
            mode=1,
            episodes=settings.episodes // 4,
            seed=settings.seed + 1 + again,
            world_type=world,
            progress=reporter.advance,
        )
        reporter.note(f"the policy alone reached {reached:.1%} of {settings.episodes // 4} goals")
        more = settings.plans // settings.rounds
        plans = Plans.joined([plans, _plan(spec, heads, went, more, settings, reporter)])
        memory = Memory.joined([memory, went])
    provenance = {
        **base.spec.provenance,
        "practice": command,
        "practice_settings": json.dumps(dataclasses.asdict(settings), sort_keys=True),
        "practice_versions": f"pyjepa {version('pyjepa-engine')}, torch {torch.__version__}",
    }
    spec = dataclasses.replace(spec, provenance=provenance)
    heads.export(out, spec)
    return spec, memory


def _world(spec: Spec) -> type[TwoRooms]:
    """Where an agent of these actions can practise."""
    if spec.actions.kind == "box" and len(spec.actions.low) == 2:
        return TwoRooms
    if spec.actions.kind == "discrete" and spec.actions.count == len(MOVES):
        return TwoRoomsDiscrete
    raise ValueError(f"Two Rooms has two continuous actions or {len(MOVES)} moves, this agent has {spec.actions.size}")


def _train_critic(heads: WorldModel, memory: Memory, settings: Settings, reporter: Reporter) -> None:
    reporter.stage("train the critic", settings.steps)
    loss = train_critic(
        heads, memory, steps=settings.steps, window=settings.window, seed=settings.seed,
        progress=lambda step, _: reporter.advance(1),
    )  # fmt: skip
    reporter.note(f"the critic's loss is {loss:.3f} (Huber, in standard deviations)")


def _plan(spec: Spec, heads: WorldModel, memory: Memory, count: int, settings: Settings, reporter: Reporter) -> Plans:
    """Plans from remembered states to the goals of their episodes."""
    rng = np.random.default_rng(settings.seed)
    known = np.flatnonzero(np.isfinite(memory.goals).all(axis=1))
    chosen = rng.choice(known, size=count)
    model = experience.latent_model(spec, _arrays(heads))
    reporter.stage("plan from memory", count)
    return experience.plan_from(
        model, memory.states[chosen], memory.goals[chosen], seed=settings.seed, progress=reporter.advance
    )


def _arrays(model: WorldModel) -> Mapping[str, FloatArray]:
    return {name: value.detach().numpy() for name, value in model.state_dict().items()}
