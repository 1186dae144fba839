"""stable-worldmodel's LeWM and PLDM (`stable_worldmodel.wm`) as agent files: one anatomy, trained differently.

A vision transformer (Hugging Face's `ViTModel`, its class token) and a projector perceive; actions are embedded; a
transformer modulated by them predicts (`pyjepa.spec.AdalnTransformer`), and a second projector follows. What is linear
after something linear is multiplied out, batch norms are folded into the layer before them, and so is the
normalisation of pixels. Weights of half precision are widened, which is exact.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pyjepa.errors import InvalidArgumentError, UnsupportedError
from pyjepa.spec import (
    Actions,
    Activation,
    AdalnTransformer,
    CostTerm,
    Layer,
    Level,
    Mlp,
    Module,
    Observation,
    Planner,
    Spec,
    Vit,
)

FloatArray = npt.NDArray[np.float32]
Array = npt.NDArray[np.float64]

PARTS = ("encoder", "projector", "action_encoder", "predictor", "pred_proj")
PREFIXES = ("model.", "module.", "world_model.")
"""What training frameworks put before every name."""
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation of pixels in [0, 1], per colour."""
VIT_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16}
"""Of `stable_pretraining.backbone.vit_hf`'s sizes, by width."""
ACTIVATIONS: dict[str, Activation] = {"GELU": "gelu", "ReLU": "relu", "SiLU": "silu", "Mish": "mish", "Tanh": "tanh"}


def is_one(names: Sequence[str]) -> bool:
    """Whether these are the names of such a model's tensors."""
    found = _without_prefix(names)
    return "action_encoder.patch_embed.weight" in found and any("adaLN_modulation" in name for name in found)


def action_size(state: Mapping[str, Any]) -> int:
    """How many numbers one of the model's actions has. Raises `InvalidArgumentError` where no tensor says it."""
    tensors = _Tensors(state)
    return (*tensors.shape("action_encoder.patch_embed.weight"), 0, 0)[1]


def lift(
    state: Mapping[str, Any],
    config: Mapping[str, Any] | None = None,
    *,
    heads: int | None = None,
    encoder_heads: int | None = None,
    window: int | None = None,
    action_block: int = 1,
    actions: Actions | None = None,
    pixels: tuple[Sequence[float], Sequence[float]] | None = None,
    norm_eps: float | None = None,
    planner: Planner | None = None,
    name: str = "",
) -> tuple[Spec, dict[str, FloatArray]]:
    """Spec and tensors of the agent that plans by the model's ``get_cost``.

    Args:
        state: the state dict, tensors by name.
        config: what lies beside it as ``config.json``. What it says of sizes must be what the tensors have.
        heads: of the predictor; needed where no config says it. As with ``encoder_heads``, weights do not tell.
        encoder_heads: of the encoder; else the config's, or by its width where that is one of ``vit_hf``'s sizes.
        window: states looked back on (``history_size``), at most as many as there are positions, which is the default.
        action_block: environment steps of one of the model's actions.
        actions: the environment's; ``center`` and ``scale`` are mean and standard deviation that training normalised
            them by. Default: between -1 and 1, as they are.
        pixels: mean and standard deviation, per colour, of pixels in [0, 1] that training normalised by (`IMAGENET`).
            Default: not at all.
        norm_eps: of the encoder's norms; else the config's ``layer_norm_eps``, or Hugging Face's 1e-12.
        planner: default: LeWM's, CEM with 300 candidates, 10 iterations and 30 elites over 5 of its actions.
        name: of the agent.

    Raises `UnsupportedError` naming the part that the engine lacks, and `InvalidArgumentError` naming a tensor that is
    missing, unknown or of another shape, a number that is needed, or one that does not fit.
    """
    settings = _Settings(config or {})
    tensors = _Tensors(state)
    encoder, size, colours = _encoder(tensors, settings, encoder_heads, norm_eps, pixels)
    latent, blocks = _projected(tensors, settings, "projector", encoder.width)
    transformer, inputs = _predictor(tensors, settings, heads, window, latent)
    predicted, after = _after(tensors, settings, transformer.width)
    if predicted != latent:
        raise InvalidArgumentError(f"the predictor puts out {predicted} numbers, the encoder {latent}")
    if action_block < 1 or inputs % action_block:
        raise InvalidArgumentError(f"action_block {action_block} does not divide the {inputs} numbers of an action")
    count = inputs // action_block
    if actions is None:
        actions = Actions(low=(-1.0,) * count, high=(1.0,) * count)
    if actions.kind != "box" or len(actions.low) != count:
        raise InvalidArgumentError(
            f"actions: a box of {count} numbers is expected, an action of the model has {inputs}"
        )
    tensors.check_all_taken()
    spec = Spec(
        name=name or settings.name,
        observation=Observation(shape=(colours, size, size), dtype="uint8", scale=1 / 255),
        actions=actions,
        modules={
            "encoder": Module(inputs=("observation",), blocks=(encoder, *blocks)),
            "predictor": Module(inputs=("state", "action"), combine="adaln", blocks=(transformer, *after)),
        },
        levels=(Level(encoder="encoder", predictor="predictor", action_block=action_block),),
        cost=(CostTerm(kind="goal_distance", metric="squared_l2", stage=0.0),),
        planner=planner
        or Planner(algorithm="cem", horizon=5 * action_block, candidates=300, iterations=10, elites=30, std=1.0),
    )
    return spec, tensors.made


class _Settings:
    """What config.json says; sections are its sub-objects."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        if not isinstance(config, Mapping):
            raise InvalidArgumentError("config: expected an object")
        self._config = config

    @property
    def name(self) -> str:
        target = self._config.get("_target_")
        return str(target).rpartition(".")[2].lower()[:64] if target else "lewm"

    def section(self, part: str) -> Mapping[str, Any]:
        found = self._config.get(part) or {}
        if not isinstance(found, Mapping):
            raise InvalidArgumentError(f"config.{part}: expected an object")
        return found

    def number(self, part: str, key: str) -> int | None:
        value = self.section(part).get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InvalidArgumentError(f"config.{part}.{key}: expected a positive integer, got {value!r}")
        return value

    def check(self, part: str, found: Mapping[str, int]) -> None:
        """What the config says of a part's sizes is what the tensors say."""
        for key, size in found.items():
            stated = self.number(part, key)
            if stated is not None and stated != size:
                raise InvalidArgumentError(f"config.{part}.{key}: {stated}, but the tensors have {size}")

    def activation(self, part: str) -> Activation:
        """Of a projector; the library's default where nothing is said."""
        stated = self.section(part).get("act_fn")
        target = stated.get("_target_") if isinstance(stated, Mapping) else stated
        if target is None:
            return "gelu"
        kind = str(target).rpartition(".")[2]
        options = set(stated) - {"_target_", "_partial_"} if isinstance(stated, Mapping) else set()
        if kind not in ACTIVATIONS or options:
            raise UnsupportedError(f"config.{part}.act_fn: {stated!r} is none of {', '.join(ACTIVATIONS)}")
        return ACTIVATIONS[kind]


def _without_prefix(names: Sequence[str]) -> dict[str, str]:
    """Names as they are, by those without the prefix that all of them share."""
    for prefix in PREFIXES:
        if names and all(name.startswith(prefix) for name in names):
            return {name.removeprefix(prefix): name for name in names}
    return {name: name for name in names}


class _Tensors:
    """A state dict from which every tensor is taken once, and what was made of them for the agent file."""

    def __init__(self, state: Mapping[str, Any]) -> None:
        self._left: dict[str, Any] = {}
        self.made: dict[str, FloatArray] = {}
        for short, name in _without_prefix(list(state)).items():
            self._left[short] = state[name]
        unknown = sorted(name for name in self._left if name.split(".")[0] not in PARTS)
        if unknown:
            raise InvalidArgumentError(f"tensor {unknown[0]!r}: no part of LeWM or PLDM ({', '.join(PARTS)})")

    def has(self, name: str) -> bool:
        return name in self._left

    def shape(self, name: str) -> tuple[int, ...]:
        self._there(name)
        return tuple(int(size) for size in self._left[name].shape)

    def size(self, name: str) -> int:
        """The first dimension."""
        shape = self.shape(name)
        if not shape:
            raise InvalidArgumentError(f"tensor {name!r}: a number alone, expected a vector or a matrix")
        return shape[0]

    def count(self, pattern: str) -> int:
        """How many layers are numbered where the pattern has its group."""
        numbers = [int(found[1]) for name in self._left if (found := re.match(pattern, name))]
        return 1 + max(numbers) if numbers else 0

    def take(self, name: str, *shape: int) -> Array:
        """A tensor in float64, whose shape must be this one."""
        found = self.shape(name)
        if found != shape:
            raise InvalidArgumentError(f"tensor {name!r}: shape {found}, expected {shape}")
        value = self._left.pop(name)
        if not value.is_floating_point():
            raise InvalidArgumentError(f"tensor {name!r}: {value.dtype}, expected floating point numbers")
        return np.asarray(value.detach().cpu().double().numpy())

    def pair(self, name: str, out: int, *in_: int) -> tuple[Array, Array]:
        return self.take(f"{name}.weight", out, *in_), self.take(f"{name}.bias", out)

    def drop(self, *names: str) -> None:
        """Tensors that acting and planning do not need."""
        for name in names:
            self._left.pop(name, None)

    def put(self, name: str, weight: Array, bias: Array) -> None:
        self.one(f"{name}.weight", weight)
        self.one(f"{name}.bias", bias)

    def one(self, name: str, value: Array) -> None:
        self.made[name] = np.ascontiguousarray(value, np.float32)

    def check_all_taken(self) -> None:
        if self._left:
            raise InvalidArgumentError(f"tensor {min(self._left)!r}: unknown, nothing of the model reads it")

    def _there(self, name: str) -> None:
        if name not in self._left:
            raise InvalidArgumentError(f"tensor {name!r}: missing")


def _encoder(
    tensors: _Tensors,
    settings: _Settings,
    heads: int | None,
    norm_eps: float | None,
    pixels: tuple[Sequence[float], Sequence[float]] | None,
) -> tuple[Vit, int, int]:
    """The transformer, the side of its images and their colours."""
    root = "encoder.embeddings"
    if not tensors.has(f"{root}.cls_token"):
        raise UnsupportedError("encoder: only Hugging Face's ViTModel is known here ('encoder.embeddings.cls_token')")
    projection = tensors.shape(f"{root}.patch_embeddings.projection.weight")
    if len(projection) != 4 or projection[2] != projection[3]:
        raise InvalidArgumentError(f"tensor '{root}.patch_embeddings.projection.weight': shape {projection}, expected "
                                   "(width, colours, patch, patch)")  # fmt: skip
    width, colours, patch, _ = projection
    places = tensors.shape(f"{root}.position_embeddings")
    side = math.isqrt(max(0, places[1] - 1)) if len(places) == 3 else 0
    if side < 1 or places != (1, 1 + side * side, width):
        raise InvalidArgumentError(
            f"tensor '{root}.position_embeddings': shape {places}, expected (1, 1 + n * n, {width})"
        )
    depth = tensors.count(r"encoder\.encoder\.layer\.(\d{1,6})\.")
    if depth == 0:
        raise InvalidArgumentError("tensor 'encoder.encoder.layer.0.…': missing")
    hidden = tensors.size("encoder.encoder.layer.0.intermediate.dense.bias")
    size = side * patch
    settings.check("encoder", {"hidden_size": width, "num_hidden_layers": depth, "intermediate_size": hidden,
                               "patch_size": patch, "image_size": size, "num_channels": colours})  # fmt: skip
    act = settings.section("encoder").get("hidden_act", "gelu")
    if act != "gelu":
        raise UnsupportedError(f"config.encoder.hidden_act: {act!r}, the block 'vit' has 'gelu'")
    found = heads or settings.number("encoder", "num_attention_heads") or VIT_HEADS.get(width)
    if found is None:
        raise InvalidArgumentError(f"encoder_heads: how many the encoder of width {width} has is needed")
    eps = norm_eps if norm_eps is not None else settings.section("encoder").get("layer_norm_eps", 1e-12)
    if isinstance(eps, bool) or not isinstance(eps, int | float):
        raise InvalidArgumentError(f"config.encoder.layer_norm_eps: expected a number, got {eps!r}")

    weight, bias = tensors.pair(f"{root}.patch_embeddings.projection", width, colours, patch, patch)
    if pixels is not None:
        mean, std = (np.asarray(each, np.float64) for each in pixels)
        if mean.shape != (colours,) or std.shape != (colours,) or not (std > 0).all():
            raise InvalidArgumentError(f"pixels: {colours} means and as many positive standard deviations are expected")
        weight = weight / std[:, None, None]
        bias = bias - np.einsum("oikl,i->o", weight, mean)
    tensors.put("encoder.0.patch", weight, bias)
    tensors.one("encoder.0.cls", tensors.take(f"{root}.cls_token", 1, 1, width)[0, 0])
    tensors.one("encoder.0.position", tensors.take(f"{root}.position_embeddings", *places)[0])
    for d in range(depth):
        theirs, ours = f"encoder.encoder.layer.{d}", f"encoder.0.layer{d}"
        tensors.put(f"{ours}.norm0", *tensors.pair(f"{theirs}.layernorm_before", width))
        qkv = []
        for each in ("query", "key", "value"):
            name = f"{theirs}.attention.attention.{each}"
            own = tensors.take(f"{name}.bias", width) if tensors.has(f"{name}.bias") else np.zeros(width)
            qkv.append((tensors.take(f"{name}.weight", width, width), own))
        tensors.put(f"{ours}.qkv", np.concatenate([w for w, _ in qkv]), np.concatenate([b for _, b in qkv]))
        tensors.put(f"{ours}.out", *tensors.pair(f"{theirs}.attention.output.dense", width, width))
        tensors.put(f"{ours}.norm1", *tensors.pair(f"{theirs}.layernorm_after", width))
        tensors.put(f"{ours}.linear0", *tensors.pair(f"{theirs}.intermediate.dense", hidden, width))
        tensors.put(f"{ours}.linear1", *tensors.pair(f"{theirs}.output.dense", width, hidden))
    tensors.put("encoder.0.norm", *tensors.pair("encoder.layernorm", width))
    # Of masked training, and of a head that nothing here reads.
    tensors.drop(f"{root}.mask_token", "encoder.pooler.dense.weight", "encoder.pooler.dense.bias")
    return Vit(patch=patch, width=width, depth=depth, heads=found, hidden=hidden, norm_eps=float(eps)), size, colours


def _projected(tensors: _Tensors, settings: _Settings, part: str, width: int) -> tuple[int, tuple[Mlp, ...]]:
    """The encoder's projector, if there is one: what it puts out, and its block."""
    if not tensors.has(f"{part}.net.0.weight"):
        return width, ()
    layers, made = _projector(tensors, settings, part, width)
    for j, parts in enumerate(made):
        for kind, (weight, bias) in parts.items():
            tensors.put(f"encoder.1.{kind}{j}", weight, bias)
    return layers[-1].out, (Mlp(layers=layers),)


def _projector(
    tensors: _Tensors, settings: _Settings, part: str, width: int
) -> tuple[tuple[Layer, Layer], list[dict[str, tuple[Array, Array]]]]:
    """Linear, norm, activation, linear: its layers, and the tensors of each."""
    root = f"{part}.net"
    hidden, out = tensors.size(f"{root}.0.weight"), tensors.size(f"{root}.3.weight")
    settings.check(part, {"input_dim": width, "hidden_dim": hidden, "output_dim": out})
    activation = settings.activation(part)
    weight, bias = tensors.pair(f"{root}.0", hidden, width)
    first: dict[str, tuple[Array, Array]] = {}
    normed = False
    if tensors.has(f"{root}.1.running_mean"):
        scale, shift = tensors.pair(f"{root}.1", hidden)
        scale = scale / np.sqrt(tensors.take(f"{root}.1.running_var", hidden) + _batch_norm_eps(settings, part))
        bias = (bias - tensors.take(f"{root}.1.running_mean", hidden)) * scale + shift
        weight = weight * scale[:, None]
        tensors.drop(f"{root}.1.num_batches_tracked")
    elif tensors.has(f"{root}.1.weight"):
        first["norm"] = tensors.pair(f"{root}.1", hidden)
        normed = True
    first["linear"] = (weight, bias)
    layers = (Layer(out=hidden, norm="layer" if normed else "none", activation=activation), Layer(out=out))
    return layers, [first, {"linear": tensors.pair(f"{root}.3", out, hidden)}]


def _batch_norm_eps(settings: _Settings, part: str) -> float:
    stated = settings.section(part).get("norm_fn")
    eps = stated.get("eps", 1e-5) if isinstance(stated, Mapping) else 1e-5
    if isinstance(eps, bool) or not isinstance(eps, int | float) or not eps > 0:
        raise InvalidArgumentError(f"config.{part}.norm_fn.eps: expected a positive number, got {eps!r}")
    return float(eps)


def _predictor(
    tensors: _Tensors, settings: _Settings, heads: int | None, window: int | None, latent: int
) -> tuple[AdalnTransformer, int]:
    """The transformer, and how many numbers an action of the model has."""
    root, layer = "predictor.transformer", "predictor.transformer.layers"
    if not tensors.has(f"{layer}.0.adaLN_modulation.1.weight"):
        raise UnsupportedError(f"predictor: no layers modulated by actions ('{layer}.0.adaLN_modulation.1.weight')")
    places = tensors.shape("predictor.pos_embedding")
    width = tensors.size(f"{root}.norm.weight")
    depth = tensors.count(re.escape(layer) + r"\.(\d{1,6})\.")
    hidden = tensors.size(f"{layer}.0.mlp.net.1.bias")
    inner = tensors.size(f"{layer}.0.attn.to_qkv.weight") // 3
    if len(places) != 3 or places[0] != 1 or places[2] != latent:
        raise InvalidArgumentError(f"tensor 'predictor.pos_embedding': shape {places}, expected (1, T, {latent})")
    frames = places[1]
    settings.check("predictor", {"num_frames": frames, "depth": depth, "mlp_dim": hidden, "input_dim": latent,
                                 "hidden_dim": width})  # fmt: skip
    window = frames if window is None else window
    if not 1 <= window <= frames:
        raise InvalidArgumentError(f"window {window}: the predictor has positions for 1 to {frames} states")
    count = heads or settings.number("predictor", "heads")
    if count is None:
        raise InvalidArgumentError("heads: how many the predictor has is needed (config.json says it)")
    if count < 1 or inner % count:
        raise InvalidArgumentError(f"heads: {count} do not divide the {inner} numbers of a query")
    settings.check("predictor", {"dim_head": inner // count})

    kernel = tensors.shape("action_encoder.patch_embed.weight")
    if len(kernel) != 3 or kernel[2] != 1:
        raise InvalidArgumentError(f"tensor 'action_encoder.patch_embed.weight': shape {kernel}, expected (out, in, 1)")
    smoothed, inputs, _ = kernel
    first, first_bias = tensors.pair("action_encoder.patch_embed", smoothed, inputs, 1)
    embedding = tensors.size("action_encoder.embed.0.bias")
    linear, bias = tensors.pair("action_encoder.embed.0", embedding, smoothed)
    tensors.put("predictor.0.action0", linear @ first[:, :, 0], linear @ first_bias + bias)
    conditions = tensors.size("action_encoder.embed.2.bias")
    condition, condition_bias = tensors.pair("action_encoder.embed.2", conditions, embedding)
    position = tensors.take("predictor.pos_embedding", *places)[0, :window]
    if tensors.has(f"{root}.cond_proj.weight"):
        linear, bias = tensors.pair(f"{root}.cond_proj", width, conditions)
        condition, condition_bias = linear @ condition, linear @ condition_bias + bias
    elif conditions != width:
        raise InvalidArgumentError(f"actions are embedded in {conditions} numbers, the predictor is {width} wide")
    if tensors.has(f"{root}.input_proj.weight"):
        linear, bias = tensors.pair(f"{root}.input_proj", width, latent)
        position = position @ linear.T  # added before it in the model, after it here
        tensors.put("predictor.0.input", linear, bias)
    elif width != latent:
        raise InvalidArgumentError(f"tensor '{root}.input_proj.weight': missing")
    tensors.put("predictor.0.action1", condition, condition_bias)
    tensors.one("predictor.0.position", position)
    for d in range(depth):
        theirs, ours = f"{layer}.{d}", f"predictor.0.layer{d}"
        tensors.put(f"{ours}.modulation", *tensors.pair(f"{theirs}.adaLN_modulation.1", 6 * width, width))
        tensors.put(f"{ours}.norm0", *tensors.pair(f"{theirs}.attn.norm", width))
        tensors.one(f"{ours}.qkv.weight", tensors.take(f"{theirs}.attn.to_qkv.weight", 3 * inner, width))
        if tensors.has(f"{theirs}.attn.to_out.0.weight"):
            tensors.put(f"{ours}.out", *tensors.pair(f"{theirs}.attn.to_out.0", width, inner))
        elif count == 1 and inner == width:  # one head as wide as the layer has no such layer
            tensors.put(f"{ours}.out", np.eye(width), np.zeros(width))
        else:
            raise InvalidArgumentError(f"tensor '{theirs}.attn.to_out.0.weight': missing")
        tensors.put(f"{ours}.norm1", *tensors.pair(f"{theirs}.mlp.net.0", width))
        tensors.put(f"{ours}.linear0", *tensors.pair(f"{theirs}.mlp.net.1", hidden, width))
        tensors.put(f"{ours}.linear1", *tensors.pair(f"{theirs}.mlp.net.4", width, hidden))
    tensors.put("predictor.0.norm", *tensors.pair(f"{root}.norm", width))
    transformer = AdalnTransformer(
        window=window,
        depth=depth,
        width=width,
        heads=count,
        head_dim=inner // count,
        hidden=hidden,
        embedding=embedding,
    )
    return transformer, inputs


def _after(tensors: _Tensors, settings: _Settings, width: int) -> tuple[int, tuple[Mlp, ...]]:
    """What follows the transformer: its own output layer, then the second projector."""
    root = "predictor.transformer.output_proj"
    own: tuple[Array, Array] | None = None
    size = width
    if tensors.has(f"{root}.weight"):
        size = tensors.size(f"{root}.weight")
        own = tensors.pair(root, size, width)
    if not tensors.has("pred_proj.net.0.weight"):
        if own is None:
            return size, ()
        tensors.put("predictor.1.linear0", *own)
        return size, (Mlp(layers=(Layer(out=size),)),)
    layers, made = _projector(tensors, settings, "pred_proj", size)
    if own is not None:
        weight, bias = made[0]["linear"]
        made[0]["linear"] = (weight @ own[0], weight @ own[1] + bias)
    for j, parts in enumerate(made):
        for kind, (weight, bias) in parts.items():
            tensors.put(f"predictor.1.{kind}{j}", weight, bias)
    return layers[-1].out, (Mlp(layers=layers),)
