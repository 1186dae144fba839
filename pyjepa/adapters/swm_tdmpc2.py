"""stable-worldmodel's TD-MPC2 (`stable_worldmodel.wm.tdmpc2.TDMPC2`) as an agent file.

Every hidden layer there is Linear -> LayerNorm -> Mish; states and what the dynamics predict go through SimNorm; reward
and Q heads are two-hot. Observations are one vector (two dense layers) or one picture (four convolutions).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from pyjepa.errors import InvalidArgumentError, UnsupportedError
from pyjepa.spec import (
    Actions,
    Conv,
    ConvLayer,
    CostTerm,
    Layer,
    Level,
    Mlp,
    Module,
    Observation,
    Planner,
    Spec,
    TwoHot,
)

FloatArray = npt.NDArray[np.float32]
CONVOLUTIONS = ((7, 2), (5, 2), (3, 2), (3, 1))
"""Kernel and stride of each."""


def lift(
    state: Mapping[str, Any],
    config: Any = None,
    *,
    value_range: tuple[float, float] | None = None,
    simnorm: int | None = None,
    discount: float | None = None,
    uncertainty_penalty: float | None = None,
    scale: float = 1.0,
    image_size: int | None = None,
    planner: Planner | None = None,
) -> tuple[Spec, dict[str, FloatArray]]:
    """Spec and tensors of the agent that plans by the model's ``get_cost``.

    ``config`` is the model's; what follows replaces or supplies parts of it (``value_range``: (vmin, vmax)). ``scale``:
    what pictures are multiplied with before the encoder. Raises `UnsupportedError` for several modalities, encoders of
    one's own, and an uncertainty penalty other than 0, which no cost term of the engine computes.
    """
    settings = getattr(config, "wm", None)

    def setting(name: str, given: Any, default: Any) -> Any:
        if given is not None:
            return given
        if settings is None:
            return default
        return settings.get(name, default) if hasattr(settings, "get") else getattr(settings, name, default)

    penalty = setting("uncertainty_penalty", uncertainty_penalty, 0.0 if settings is None else 0.5)
    if penalty != 0.0:
        raise UnsupportedError(
            f"uncertainty_penalty {penalty}: no cost term subtracts the spread of Q; lift with uncertainty_penalty=0"
        )
    bounds = value_range
    if bounds is None:
        if settings is None:
            raise InvalidArgumentError("value_range: (vmin, vmax) of the model's two-hot bins is needed")
        bounds = (float(settings.vmin), float(settings.vmax))
    arrays = _Arrays({name: np.asarray(value.detach().cpu().float().numpy()) for name, value in state.items()})
    group = int(setting("simnorm_dim", simnorm, 8))
    encoder, tensors, observation = _encoder(arrays, group, scale, image_size or getattr(config, "image_size", None))
    latent = len(arrays["dynamics.2.bias"])
    actions = arrays["dynamics.0.weight"].shape[1] - latent
    bins = len(arrays["reward.2.bias"])
    heads = 1 + max(int(found[1]) for name in arrays if (found := re.match(r"qs\.(\d+)\.", name)))
    hidden = _hidden(arrays, "dynamics")
    two_hot = TwoHot(bins=bins, low=float(bounds[0]), high=float(bounds[1]))
    tensors |= _dense(arrays, "dynamics", "dynamics", last_norm=True)
    tensors |= _dense(arrays, "reward", "reward")
    tensors |= _dense(arrays, "pi", "policy")
    members = [_dense(arrays, f"qs.{i}", "q") for i in range(heads)]
    tensors |= {name: np.stack([member[name] for member in members]) if heads > 1 else members[0][name]
                for name in members[0]}  # fmt: skip
    spec = Spec(
        name="tdmpc2",
        observation=observation,
        actions=Actions(low=(-1.0,) * actions, high=(1.0,) * actions),
        modules={
            "encoder": encoder,
            "dynamics": Module(
                inputs=("state", "action"),
                blocks=(Mlp(layers=(*hidden, Layer(out=latent, norm="layer+simnorm")), simnorm_group=group),),
            ),
            "reward": Module(inputs=("state", "action"),
                             blocks=(Mlp(layers=(*_hidden(arrays, "reward"), Layer(out=bins))), two_hot)),
            "policy": Module(inputs=("state",),
                             blocks=(Mlp(layers=(*_hidden(arrays, "pi"), Layer(out=2 * actions))),)),
            "q": Module(inputs=("state", "action"), ensemble=heads,
                        blocks=(Mlp(layers=(*_hidden(arrays, "qs.0"), Layer(out=bins))), two_hot)),
        },
        levels=(Level(encoder="encoder", predictor="dynamics"),),
        policy="policy",
        policy_head="gaussian_tanh",
        critic="q",
        discount=float(setting("discount", discount, 0.99)),
        cost=(CostTerm(kind="reward", module="reward"), CostTerm(kind="critic", stage=0.0)),
        planner=planner or Planner(algorithm="mppi", horizon=3, candidates=512, iterations=6, elites=64,
                                   elite_refit=True, temperature=2.0, temperature_scale="absolute", std=2.0,
                                   min_std=0.05, max_std=2.0, policy_candidates=24),
    )  # fmt: skip
    return spec, {name: np.ascontiguousarray(value, np.float32) for name, value in tensors.items()}


class _Arrays(dict[str, FloatArray]):
    """Tensors by name, of which each that is asked for must be there."""

    def __missing__(self, name: str) -> FloatArray:
        raise InvalidArgumentError(f"tensor {name!r}: missing")


def _encoder(
    arrays: Mapping[str, FloatArray], group: int, scale: float, image_size: int | None
) -> tuple[Module, dict[str, FloatArray], Observation]:
    vectors = sorted({name.split(".")[1] for name in arrays if name.startswith("extra_encoders.")})
    pixels = "pixel_encoder.weight" in arrays
    if len(vectors) + pixels != 1:
        modalities = [*(["pixels"] if pixels else []), *vectors]
        raise UnsupportedError(f"the model perceives {' and '.join(modalities)}: the engine takes one observation")
    if pixels:
        if image_size is None:
            raise InvalidArgumentError("image_size: the side of the model's pictures is needed")
        layers = tuple(
            ConvLayer(out=len(arrays[f"cnn.{2 * j}.bias"]), kernel=kernel, stride=stride, activation="mish")
            for j, (kernel, stride) in enumerate(CONVOLUTIONS)
        )
        tensors = {f"encoder.0.conv{j}.{kind}": arrays[f"cnn.{2 * j}.{kind}"] for j in range(4) for kind in KINDS}
        tensors |= {f"encoder.1.linear0.{kind}": arrays[f"pixel_encoder.{kind}"] for kind in KINDS}
        out = len(arrays["pixel_encoder.bias"])
        dense = Mlp(layers=(Layer(out=out, norm="simnorm"),), simnorm_group=group)
        module = Module(inputs=("observation",), blocks=(Conv(layers=layers), dense))
        return module, tensors, Observation(shape=(3, image_size, image_size), dtype="uint8", scale=scale)
    root = f"extra_encoders.{vectors[0]}"
    expected = {f"{root}.{part}.{kind}" for part in ("0", "0.ln", "1", "2") for kind in KINDS}
    found = {name for name in arrays if name.startswith(root)}
    if found != expected:
        raise UnsupportedError(f"the encoder of {vectors[0]!r} is one of your own: {sorted(found ^ expected)[0]}")
    tensors = {}
    for kind in KINDS:
        tensors |= {
            f"encoder.0.linear0.{kind}": arrays[f"{root}.0.{kind}"],
            f"encoder.0.norm0.{kind}": arrays[f"{root}.0.ln.{kind}"],
            f"encoder.0.linear1.{kind}": arrays[f"{root}.1.{kind}"],
            f"encoder.0.norm1.{kind}": arrays[f"{root}.2.{kind}"],
        }
    sizes = [len(arrays[f"{root}.{part}.bias"]) for part in ("0", "1")]
    layers_ = (
        Layer(out=sizes[0], norm="layer", activation="mish"),
        Layer(out=sizes[1], norm="layer+simnorm"),
    )
    module = Module(inputs=("observation",), blocks=(Mlp(layers=layers_, simnorm_group=group),))
    return module, tensors, Observation(shape=(arrays[f"{root}.0.weight"].shape[1],), scale=1.0)


KINDS = ("weight", "bias")


def _hidden(arrays: Mapping[str, FloatArray], root: str) -> tuple[Layer, ...]:
    return tuple(Layer(out=len(arrays[f"{root}.{j}.bias"]), norm="layer", activation="mish") for j in range(2))


def _dense(
    arrays: Mapping[str, FloatArray], root: str, module: str, *, last_norm: bool = False
) -> dict[str, FloatArray]:
    tensors = {}
    for j in range(3):
        for kind in KINDS:
            tensors[f"{module}.0.linear{j}.{kind}"] = arrays[f"{root}.{j}.{kind}"]
            if j < 2 or last_norm:
                tensors[f"{module}.0.norm{j}.{kind}"] = arrays[f"{root}.{j}.ln.{kind}"]
    return tensors
