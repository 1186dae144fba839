"""stable-worldmodel's solvers (0.1.1) over a torch model, or over its own LeWM. They know no bounds: costs clamp."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import io
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pyjepa.adapters.torchvision import import_stable_worldmodel
from pyjepa.bench.lewm import AdalnProblem
from pyjepa.bench.peers import FloatArray, Prepared
from pyjepa.bench.peers.torch import Encoder, Model
from pyjepa.bench.workloads import Perception, PlanningProblem, Problem

ALGORITHMS = {"cem": ("CEM", "iCEM"), "mppi": ("MPPI",), "cem-adaln": ("CEM",)}


class _Cost:
    """What its solvers call a model: anything with `get_cost`."""

    def __init__(self, problem: Problem) -> None:
        self.model = Model(problem)
        self.low, self.high = torch.tensor(problem.low), torch.tensor(problem.high)

    def get_cost(self, info: dict[str, Any], candidates: Tensor) -> Tensor:
        """Candidates (1, N, S, A) -> costs (1, N)."""
        return self.model.costs(candidates[0].clamp(self.low, self.high))[None]


class _Sees(nn.Module):
    """The vision transformer with the interface of Hugging Face's, which LeWM calls."""

    def __init__(self, perception: Perception) -> None:
        super().__init__()
        self.vit = Encoder(perception).network.get_submodule("0")

    def forward(self, pixels: Tensor, interpolate_pos_encoding: bool) -> SimpleNamespace:
        """Images (B, C, H, W) -> class tokens as ``last_hidden_state`` (B, 1, W)."""
        return SimpleNamespace(last_hidden_state=self.vit(pixels)[:, None])


class _LeWM:
    """Its own module with the problem's weights; it encodes what it is not given the latents of."""

    def __init__(self, problem: AdalnProblem) -> None:
        module = import_stable_worldmodel("stable_worldmodel.wm.lewm.lewm")
        parts = import_stable_worldmodel("stable_worldmodel.wm.lewm.module")
        block, latent, weights = problem.transformer, problem.latent_dim, problem.weights
        projector = len(weights["1.linear0.bias"])
        seen = problem.perception

        def projection() -> Any:  # its batch norm is folded into the weights
            return parts.MLP(latent, projector, latent, norm_fn=None)

        self.model = module.LeWM(
            nn.Identity() if seen is None else _Sees(seen),
            parts.Predictor(
                num_frames=block.window, depth=block.depth, heads=block.heads, mlp_dim=block.hidden, input_dim=latent,
                hidden_dim=block.width, output_dim=latent, dim_head=block.head_dim,
            ),
            parts.Embedder(problem.action_dim, problem.action_dim, latent, mlp_scale=block.embedding // latent),
            projection(),
            projection(),
        ).eval()  # fmt: skip
        state = self.model.state_dict()
        for name, value in _theirs(weights, None if seen is None else seen.weights).items():
            if state[name].numel() != value.size:
                raise NotImplementedError(f"{name} is of another size in LeWM")
            state[name].copy_(torch.tensor(value).view_as(state[name]))
        state["action_encoder.patch_embed.weight"].copy_(torch.eye(problem.action_dim)[..., None])
        state["action_encoder.patch_embed.bias"].zero_()
        self.low, self.high = torch.tensor(problem.low), torch.tensor(problem.high)
        self.center, self.scale = torch.tensor(problem.center), torch.tensor(problem.scale)

    def get_cost(self, info: dict[str, Any], candidates: Tensor) -> Tensor:
        """Candidates (1, N, S, A) -> costs (1, N)."""
        actions = (candidates.clamp(self.low, self.high) - self.center) / self.scale
        costs: Tensor = self.model.get_cost(info, actions)
        return costs


def _theirs(predictor: Mapping[str, FloatArray], encoder: Mapping[str, FloatArray] | None) -> dict[str, FloatArray]:
    """The agent file's tensors under LeWM's names, the vision transformer's left out."""
    root = "predictor.transformer"
    inside = {"modulation": "adaLN_modulation.1", "norm0": "attn.norm", "qkv": "attn.to_qkv", "out": "attn.to_out.0",
              "norm1": "mlp.net.0", "linear0": "mlp.net.1", "linear1": "mlp.net.4"}  # fmt: skip
    places = {"0.action0": "action_encoder.embed.0", "0.action1": "action_encoder.embed.2", "0.norm": f"{root}.norm",
              "1.linear0": "pred_proj.net.0", "1.linear1": "pred_proj.net.3"}  # fmt: skip
    found = {}
    for name, value in predictor.items():
        layer, _, part = name.rpartition(".")
        if name == "0.position":
            found["predictor.pos_embedding"] = value
        elif layer in places:
            found[f"{places[layer]}.{part}"] = value
        else:
            _, number, kind = layer.split(".")
            found[f"{root}.layers.{number.removeprefix('layer')}.{inside[kind]}.{part}"] = value
    for name, value in (encoder or {}).items():
        if name.startswith("1."):
            found[name.replace("1.linear0", "projector.net.0").replace("1.linear1", "projector.net.3")] = value
    return found


def prepare(problem: PlanningProblem, threads: int, variant: str) -> Prepared:
    """See `pyjepa.bench.peers`."""
    torch.set_num_threads(threads)
    solver_module = import_stable_worldmodel("stable_worldmodel.solver")
    settings = problem.planner
    half = (problem.high - problem.low) / 2
    if not np.allclose(half, half[0]):
        raise NotImplementedError("its solvers take one spread for all actions")
    cost: _Cost | _LeWM
    if isinstance(problem, AdalnProblem):
        cost = _LeWM(problem)
    else:
        assert isinstance(problem, Problem)
        cost = _Cost(problem)
    arguments = {
        "model": cost,
        "num_samples": settings.candidates,
        "var_scale": settings.std * float(half[0]),
        "n_steps": settings.iterations,
        "topk": settings.elites if variant != "MPPI" else settings.candidates,
        "device": "cpu",
        "seed": 0,
    }
    solver = getattr(solver_module, f"{variant.upper()}Solver")(**arguments)
    spaces: Any = importlib.import_module("gymnasium.spaces")
    solver.configure(
        action_space=spaces.Box(problem.low[None], problem.high[None], dtype=np.float32),
        n_envs=1,
        config=SimpleNamespace(
            horizon=problem.steps, receding_horizon=1, history_len=1, action_block=1, warm_start=False
        ),
    )
    # One observation, which LeWM looks at only where the latents are not there already.
    known = {"pixels": torch.zeros(1, 1), "goal": torch.zeros(1, 1), "emb": torch.tensor(problem.start)[None, None]}
    if isinstance(problem, AdalnProblem):
        known["goal_emb"] = torch.tensor(problem.goal)[None, None]
    silence = io.StringIO()

    def solve(info: dict[str, Tensor]) -> FloatArray:
        with contextlib.redirect_stdout(silence):  # it prints its time
            found: Tensor = solver.solve(info)["actions"]
        silence.seek(0)
        silence.truncate()
        result: FloatArray = found[0].numpy()
        return result

    @torch.inference_mode()
    def costs(plans: FloatArray) -> FloatArray:
        info = {name: value[:, None].expand(1, len(plans), *value.shape[1:]) for name, value in known.items()}
        result: FloatArray = cost.get_cost(info, torch.from_numpy(plans)[None])[0].numpy()
        return result

    version = f"stable-worldmodel {importlib.metadata.version('stable-worldmodel')}"
    perception = problem.perception
    if perception is None or not isinstance(cost, _LeWM):
        return Prepared(version, lambda: solve(known), costs)
    lewm = cost.model

    def seen() -> dict[str, Tensor]:
        observation, goal = torch.from_numpy(perception.images())[:, None, None]
        return {"pixels": observation, "goal": goal, "action": torch.zeros(1, 1, problem.action_dim)}

    @torch.inference_mode()
    def encode() -> FloatArray:
        images = seen()
        pair = [lewm.encode({"pixels": images[name]})["emb"][0, 0] for name in ("pixels", "goal")]
        result: FloatArray = torch.stack(pair).numpy()
        return result

    return Prepared(version, lambda: solve(known), costs, encode=encode, encode_and_plan=lambda: solve(seen()))
