"""The world model in torch, built from the spec: perception (paper section 3.1) and prediction in latent space."""

from __future__ import annotations

from math import prod
from os import PathLike

import torch
from torch import Tensor, nn

from pyjepa.blocks import Network, tie_norm
from pyjepa.spec import AdalnTransformer, Spec


class WorldModel(nn.Module):
    """All modules of a spec: the encoder and the predictor of its first level, prediction heads, critic and policy.

    Symbols: B batch, S predictor steps, A action dimension, A' what the predictor reads per step (A with ``hold``,
    else ``action_block * A``), L latent dimension. Actions are in the environment's units everywhere; they are
    normalised inside; discrete ones are indices or one-hot (A = count). Parameters are named as in the agent file.
    """

    def __init__(self, spec: Spec) -> None:
        """Raises NotImplementedError for what torch lacks and ValueError for what does not fit together."""
        super().__init__()
        if len(spec.levels) != 1:
            raise NotImplementedError(f"the torch back end takes one level, the spec has {len(spec.levels)}")
        self.spec = spec
        level = spec.levels[0]
        if level.predictor is None:
            raise ValueError("a world model needs a level with a predictor")
        self.action_dim = spec.actions.size
        repeats = 1 if level.hold else level.action_block
        self.plan_dim = self.action_dim * repeats
        self.encoder_name, self.predictor_name = level.encoder, level.predictor
        encoder: Network | None = None
        if level.encoder is None:
            self.latent_dim = prod(spec.observation.shape)
        else:
            encoder = Network(spec.modules[level.encoder], {"observation": spec.observation.shape})
            self.latent_dim = encoder.output_shape[0]
            self._modules[level.encoder] = encoder  # add_module refuses the names of methods: a head called head
        shapes = {"state": (self.latent_dim,), "action": (self.plan_dim,)}
        predictor = Network(spec.modules[level.predictor], shapes)  # type: ignore[arg-type]
        if predictor.output_shape != (self.latent_dim,):
            raise ValueError(f"the predictor puts out {predictor.output_shape}, the latents are {(self.latent_dim,)}")
        tie_norm(predictor, encoder)
        self._modules[level.predictor] = predictor
        first = spec.modules[level.predictor].blocks[0]
        self.window = first.window if isinstance(first, AdalnTransformer) else 1
        """States that the predictor looks back on."""
        shapes["goal"] = (self.latent_dim,)
        for name, module in spec.modules.items():
            if name != level.encoder and name != level.predictor:
                self._modules[name] = Network(module, shapes)  # type: ignore[arg-type]
        self.register_buffer("_low", torch.tensor(spec.actions.low), persistent=False)
        self.register_buffer("_high", torch.tensor(spec.actions.high), persistent=False)
        self._discrete = spec.actions.kind == "discrete"
        self.register_buffer("_center", torch.tensor(spec.actions.center * repeats), persistent=False)
        self.register_buffer("_scale", torch.tensor(spec.actions.scale * repeats), persistent=False)

    def get_submodule(self, target: str) -> nn.Module:
        """As torch's, but a module of the spec may bear the name of a method."""
        name, _, rest = target.partition(".")
        module = self._modules.get(name)
        return super().get_submodule(target) if module is None else module.get_submodule(rest)

    def encode(self, observation: Tensor) -> Tensor:
        """Observations (..., *observation.shape), uint8 or float -> latents (..., L)."""
        description = self.spec.observation
        batch = observation.shape[: observation.dim() - len(description.shape)]
        if observation.shape[len(batch) :] != description.shape:
            raise ValueError(f"observation: expected (..., {description.shape}), got {tuple(observation.shape)}")
        x = observation.reshape(-1, *description.shape).float() * description.scale
        if description.offset:  # a pass over all pixels, seldom needed
            x = x + description.offset
        if self.encoder_name is None:  # the flattened observation is the state
            return x.reshape(*batch, self.latent_dim)
        latent: Tensor = self.get_submodule(self.encoder_name)({"observation": x})
        return latent.reshape(*batch, self.latent_dim)

    def normalise(self, actions: Tensor) -> Tensor:
        """Actions (..., A') in the environment's units -> what the predictor reads.

        Discrete actions are one-hot (..., A') already, or integers (..., A' / count), which become it. Raises
        ValueError for an index that is none.
        """
        if self._discrete:
            if actions.is_floating_point():
                return actions
            if actions.numel() and not 0 <= int(actions.min()) <= int(actions.max()) < self.action_dim:
                raise ValueError(f"actions: indices must be between 0 and {self.action_dim - 1}")
            return nn.functional.one_hot(actions.long(), self.action_dim).flatten(-2).float()
        return (actions - self.get_buffer("_center")) / self.get_buffer("_scale")

    def step(self, state: Tensor, action: Tensor) -> Tensor:
        """``s[t+1] = Pred(s[t], a[t])``: states (B, L) and actions (B, A') -> states (B, L).

        Of an ensemble of predictors, as the first of them says. A predictor that looks back also takes (B, T, L) and
        (B, T, A') with T up to its `window`, the oldest first, and returns all it predicts on the way, (B, T, L).
        """
        return self.head(self.predictor_name, state, self.normalise(action))[0]

    def rollout(self, state: Tensor, actions: Tensor, past: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """States (B, L) and actions (B, S, A') -> the S predicted states (B, S, L).

        ``past``: for a predictor that looks back, states (B, T, L) before these, the oldest first, and the actions
        (B, T, A') taken in them. Raises ValueError unless T is less than its `window`.
        """
        if past is not None and past[0].shape[1] >= self.window:
            raise ValueError(
                f"{past[0].shape[1]} states of the past and the present one exceed the window of {self.window}"
            )
        if self.window > 1:
            return self._look_back(state, actions, past)
        states = []
        for action in actions.unbind(1):
            state = self.step(state, action)
            states.append(state)
        return torch.stack(states, dim=1)

    def _look_back(self, state: Tensor, actions: Tensor, past: tuple[Tensor, Tensor] | None) -> Tensor:
        """The window grows until it is full, then moves on: every step predicts anew from all of it."""
        states = [state]
        if past is not None:
            states, actions = [*past[0].unbind(1), state], torch.cat([past[1], actions], dim=1)
        known = len(states)
        for t in range(known - 1, actions.shape[1]):
            first = max(0, t + 1 - self.window)
            states.append(self.step(torch.stack(states[first:], dim=1), actions[:, first : t + 1])[:, -1])
        return torch.stack(states[known:], dim=1)

    def rollouts(self, state: Tensor, actions: Tensor) -> Tensor:
        """As `rollout`, by every predictor of an ensemble for itself: (K, B, S, L), K 1 without one."""
        members = self.spec.modules[self.predictor_name].ensemble
        if members == 1:
            return self.rollout(state, actions).unsqueeze(0)
        state, states = state.expand(members, *state.shape), []
        for action in self.normalise(actions).unbind(1):
            inputs = {"state": state, "action": action.expand(members, *action.shape)}
            state = self.get_submodule(self.predictor_name)(inputs, each=True)
            states.append(state)
        return torch.stack(states, dim=2)

    def head(self, name: str, state: Tensor, action: Tensor | None = None, goal: Tensor | None = None) -> Tensor:
        """A head's outputs (K, B, out), K the size of its ensemble (1 without), at states (B, L), normalised actions
        (B, A') and goals (L,) or (B, L), as far as it reads them.
        """
        inputs = {"state": state}
        if action is not None:
            inputs["action"] = action
        if goal is not None:
            inputs["goal"] = goal.expand_as(state)
        outputs: Tensor = self.get_submodule(name)(inputs)
        return outputs if self.spec.modules[name].ensemble > 1 else outputs.unsqueeze(0)

    def act(self, state: Tensor, goal: Tensor | None = None) -> Tensor:
        """The policy's mean actions (B, A), in the environment's units, at states (B, L); discrete ones one-hot."""
        assert self.spec.policy is not None
        u = self.head(self.spec.policy, state, goal=goal)[0][:, : self.action_dim]
        if self._discrete:
            return nn.functional.one_hot(u.argmax(-1), self.action_dim).float()
        low, high = self.get_buffer("_low"), self.get_buffer("_high")
        return (low + high) / 2 + (high - low) / 2 * torch.tanh(u)

    def export(self, path: str | PathLike[str], spec: Spec | None = None) -> None:
        """Write the agent file, through the engine's validator. ``spec`` replaces this model's (provenance, cost).

        Raises `pyjepa.errors.PyjepaError` if the file is not a valid agent.
        """
        from pyjepa.agent_file import save

        tensors = {name: value.detach().cpu().float().contiguous().numpy() for name, value in self.state_dict().items()}
        save(path, self.spec if spec is None else spec, tensors)
