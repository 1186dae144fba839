"""EB-JEPA's action-conditioned model of two rooms (``examples/ac_video_jepa``) as an agent file.

An IMPALA encoder whose residual blocks end in their ReLU (``ImpalaEncoder``), a linear layer and a LayerNorm; a GRU
whose hidden state is the latent, followed by the same LayerNorm (``RNNPredictor``), which reads actions as they are.
Pictures are normalised one by one before the encoder, which no file can say: see `normalised`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pyjepa.errors import InvalidArgumentError, UnsupportedError
from pyjepa.spec import Actions, CostTerm, Gru, Impala, Layer, Level, Mlp, Module, Observation, Planner, Spec

FloatArray = npt.NDArray[np.float32]

STATE_DICTS = ("jepa_state_dict", "model_state_dict")
"""The model's key in a checkpoint of its training, which changed its name."""
PREFIXES = re.compile(r"^(?:_orig_mod\.|module\.)+")
"""What compiling and distributed training put before every name."""
STEP = 2.45
"""Its environment's longest step, along each axis."""
SIDE = 65
"""Of its environment's pictures."""
PICTURES = ((0.0026, 0.0989), (0.0369, 0.2986))
"""Mean and standard deviation of its pictures in [0, 1], the dot's and the walls'."""
TRAINING = ("regularizer.", "predcost.")
"""What only training reads."""


def is_one(names: Sequence[str]) -> bool:
    """Whether these are the names of such a model's tensors, or of a relative's that is refused."""
    found = {PREFIXES.sub("", name) for name in names}
    return any(name.startswith(("encoder.stack_blocks.", "predictor.rnn.")) for name in found)


def action_size(state: Mapping[str, Any]) -> int:
    """How many numbers one of the model's actions has; 0 where no tensor says it."""
    found = next(
        (value for name, value in state.items() if PREFIXES.sub("", name) == "predictor.rnn.weight_ih_l0"), None
    )
    return int(found.shape[-1]) if found is not None and found.dim() else 0


def normalised(
    pictures: npt.ArrayLike, *, mean: Sequence[float] = PICTURES[0], std: Sequence[float] = PICTURES[1]
) -> FloatArray:
    """What the agent perceives of pictures (..., C, H, W): each channel of each spread over [0, 1], then standardised.

    ``mean`` and ``std`` are of the data that the model was trained on, per channel; left out, of EB-JEPA's two rooms.
    Raises `InvalidArgumentError` for other shapes.
    """
    raw = np.asarray(pictures, np.float32)
    if raw.ndim < 3 or raw.shape[-3] != len(mean) or len(mean) != len(std):
        raise InvalidArgumentError(f"pictures: shape {raw.shape}, expected (..., {len(mean)}, H, W)")
    x = raw - raw.min(axis=(-2, -1), keepdims=True)
    x /= x.max(axis=(-2, -1), keepdims=True) + np.float32(1e-6)
    middle, spread = (np.asarray(each, np.float32)[:, None, None] for each in (mean, std))
    return np.asarray((x - middle) / (spread + np.float32(1e-6)), np.float32)


def lift(
    state: Mapping[str, Any],
    *,
    image_size: int | None = None,
    actions: Actions | None = None,
    planner: Planner | None = None,
    name: str = "",
) -> tuple[Spec, dict[str, FloatArray]]:
    """Spec and tensors of the agent that plans by the model's distance of representations, summed over the plan.

    Args:
        state: the state dict, tensors by name.
        image_size: side of the pictures, where the encoder's last layer leaves several; default: its environment's 65.
        actions: the environment's, which the model reads as they are. Default: within its environment's longest step
            along each axis; that a step is no longer in any direction, bounds cannot say.
        planner: default: its MPPI, 200 candidates, 20 iterations and 20 elites over 90 steps.
        name: of the agent.

    The agent perceives `normalised` pictures. Its costs are the model's less the distance from where it stands, which
    no plan changes. Raises `UnsupportedError` naming the part that the engine lacks, and `InvalidArgumentError` naming
    a tensor that is missing, unknown or of another shape, or a number that does not fit.
    """
    tensors = _Tensors(state)
    impala, colours, side = _encoder(tensors, image_size)
    latent, features = tensors.shape("encoder.mlp.weight", 2)
    tensors.take("encoder.1.linear0", "encoder.mlp", (latent, features))
    first = tensors.norm("encoder.1.norm0", "encoder.final_ln", latent)
    inputs = _predictor(tensors, latent)
    second = tensors.norm("predictor.0.norm", "predictor.final_ln", latent)
    tied = first is not None and second is not None and all(map(np.array_equal, first, second))
    if actions is None:
        actions = Actions(low=(-STEP,) * inputs, high=(STEP,) * inputs, center=(0.0,) * inputs, scale=(1.0,) * inputs)
    if actions.kind != "box" or len(actions.low) != inputs:
        raise InvalidArgumentError(f"actions: a box of {inputs} numbers is expected, as many as the model reads")
    tensors.check_all_taken()
    reach = (max(actions.high) - min(actions.low)) / 2  # bounds the wrong way round are for the file's reader to name
    spec = Spec(
        name=name or "eb-jepa",
        observation=Observation(shape=(colours, side, side)),
        actions=actions,
        modules={
            "encoder": Module(
                inputs=("observation",),
                blocks=(impala, Mlp(layers=(Layer(out=latent, norm="none" if first is None else "layer"),))),
            ),
            "predictor": Module(
                inputs=("state", "action"),
                combine="cell",
                blocks=(Gru(hidden=latent, norm="tied" if tied else "none" if second is None else "layer"),),
            ),
        },
        levels=(Level(encoder="encoder", predictor="predictor"),),
        cost=(CostTerm(kind="goal_distance", metric="squared_l2", stage=1 / latent, terminal=1 / latent),),
        # Its temperature, 0.005, multiplies; its first deviation is 2, and no least one is kept.
        planner=planner
        or Planner(algorithm="mppi", horizon=90, candidates=200, iterations=20, elites=20, elite_refit=True,
                   temperature=200.0, temperature_scale="absolute", std=2 / reach if reach > 0 else 1.0, min_std=0.0),
    )  # fmt: skip
    return spec, tensors.made


class _Tensors:
    """A state dict from which every tensor is taken once, and what was made of them for the agent file."""

    def __init__(self, state: Mapping[str, Any]) -> None:
        short: dict[str, Any] = {}
        for name, value in state.items():
            if PREFIXES.sub("", name) in short:
                raise InvalidArgumentError(f"tensor {name!r}: there already under another prefix")
            short[PREFIXES.sub("", name)] = value
        self._left = {name: value for name, value in short.items() if not name.startswith(TRAINING)}
        self.made: dict[str, FloatArray] = {}
        for name in sorted(self._left):
            if name.startswith("action_encoder."):
                raise UnsupportedError(f"tensor {name!r}: an encoder of actions; only actions as they are can be read")

    def has(self, name: str) -> bool:
        return name in self._left

    def count(self, pattern: str) -> int:
        """How many layers are numbered where the pattern has its group."""
        numbers = [int(found[1]) for name in self._left if (found := re.match(pattern, name))]
        return 1 + max(numbers) if numbers else 0

    def shape(self, name: str, axes: int) -> tuple[int, ...]:
        """Of a tensor with so many axes."""
        if name not in self._left:
            raise InvalidArgumentError(f"tensor {name!r}: missing")
        shape = tuple(int(size) for size in self._left[name].shape)
        if len(shape) != axes or 0 in shape:
            raise InvalidArgumentError(f"tensor {name!r}: shape {shape}, expected {axes} axes")
        return shape

    def one(self, ours: str, theirs: str, shape: tuple[int, ...]) -> FloatArray:
        """Takes a tensor, whose shape must be this one."""
        found = self.shape(theirs, len(shape))
        if found != shape:
            raise InvalidArgumentError(f"tensor {theirs!r}: shape {found}, expected {shape}")
        value = self._left.pop(theirs)
        if not value.is_floating_point():
            raise InvalidArgumentError(f"tensor {theirs!r}: {value.dtype}, expected floating point numbers")
        self.made[ours] = np.ascontiguousarray(value.detach().cpu().float().numpy())
        return self.made[ours]

    def take(self, ours: str, theirs: str, weight: tuple[int, ...]) -> tuple[FloatArray, FloatArray]:
        """Weight and bias of a layer."""
        bias = self.one(f"{ours}.bias", f"{theirs}.bias", weight[:1])
        return self.one(f"{ours}.weight", f"{theirs}.weight", weight), bias

    def norm(self, ours: str, theirs: str, size: int) -> tuple[FloatArray, FloatArray] | None:
        """Weight and bias of a LayerNorm; None where there is none."""
        if not (self.has(f"{theirs}.weight") or self.has(f"{theirs}.bias")):
            return None
        return self.take(ours, theirs, (size,))

    def check_all_taken(self) -> None:
        if self._left:
            raise InvalidArgumentError(f"tensor {min(self._left)!r}: unknown, nothing of the model reads it")


def _encoder(tensors: _Tensors, image_size: int | None) -> tuple[Impala, int, int]:
    """The convolutions, the channels of what they see, and its side."""
    stages = tensors.count(r"encoder\.stack_blocks\.(\d{1,3})\.")
    if stages == 0:
        raise UnsupportedError(
            "encoder: only ImpalaEncoder is known here ('encoder.stack_blocks.0.initial_conv.weight')"
        )
    channels: list[int] = []
    colours = inputs = tensors.shape("encoder.stack_blocks.0.initial_conv.weight", 4)[1]
    for s in range(stages):
        theirs, ours = f"encoder.stack_blocks.{s}", f"encoder.0.stage{s}"
        out = tensors.shape(f"{theirs}.initial_conv.weight", 4)[0]
        tensors.take(f"{ours}.conv", f"{theirs}.initial_conv", (out, inputs, 3, 3))
        blocks = tensors.count(re.escape(theirs) + r"\.blocks\.(\d{1,3})\.")
        if blocks != 2:
            raise UnsupportedError(f"{theirs}: {blocks} residual blocks, a stage of the block 'impala' has 2")
        for r in range(2):
            for c in range(2):
                tensors.take(f"{ours}.res{r}.conv{c}", f"{theirs}.blocks.{r}.conv{c + 1}", (out, out, 3, 3))
        channels.append(out)
        inputs = out
    features = tensors.shape("encoder.mlp.weight", 2)[1]
    side = SIDE if image_size is None else image_size
    pooled = side
    for _ in range(stages):
        pooled = (pooled + 1) // 2
    there = inputs * pooled**2
    if features != there:
        needed = "" if image_size is not None else "the side of the model's pictures is needed: "
        raise InvalidArgumentError(
            f"image_size: {needed}the encoder's last layer reads {features} numbers, of pictures of {side} x {side} "
            f"there are {there}"
        )
    return Impala(channels=tuple(channels), preactivation=False), colours, side


def _predictor(tensors: _Tensors, latent: int) -> int:
    """How many numbers an action of the model has."""
    if not tensors.has("predictor.rnn.weight_ih_l0"):
        raise UnsupportedError("predictor: only RNNPredictor is known here ('predictor.rnn.weight_ih_l0')")
    if tensors.has("predictor.rnn.weight_ih_l1"):
        raise UnsupportedError("predictor: a GRU of several layers, the block 'gru' has one")
    rows, inputs = tensors.shape("predictor.rnn.weight_ih_l0", 2)
    if rows != 3 * latent:
        raise InvalidArgumentError(f"tensor 'predictor.rnn.weight_ih_l0': shape {(rows, inputs)}, expected "
                                   f"({3 * latent}, {inputs}): three gates of {latent} numbers")  # fmt: skip
    for part, shape in (("weight_ih", (rows, inputs)), ("weight_hh", (rows, latent)), ("bias_ih", (rows,)),
                        ("bias_hh", (rows,))):  # fmt: skip
        tensors.one(f"predictor.0.{part}", f"predictor.rnn.{part}_l0", shape)
    return inputs
