"""The spec: one description of an agent, shared by torch (training), C++ (acting) and Triton (GPU rollouts).

These dataclasses mirror the JSON that an agent file carries, version 1. They hold data and convert it; they do not
judge it: the engine's validator is the only judge (`pyjepa.agent_file.validate`), so Python and C++ can never
disagree about what a valid agent is.

Symbols: ``A`` action dimension, ``L`` latent dimension, ``H`` horizon (in environment steps).
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, TypeVar

SPEC_VERSION = 1

Norm: TypeAlias = Literal["none", "layer", "simnorm", "layer+simnorm"]
Activation: TypeAlias = Literal["none", "relu", "gelu", "silu", "mish", "tanh"]
InputName: TypeAlias = Literal["observation", "state", "action", "goal"]
Algorithm: TypeAlias = Literal[
    "cem", "mppi", "predictive-sampling", "icem", "gradient", "hybrid", "categorical-cem", "tree"
]
Sampling: TypeAlias = Literal["gaussian", "sobol"]
Interpolation: TypeAlias = Literal["zero", "linear", "cubic"]
CostKind: TypeAlias = Literal[
    "goal_distance", "action_size", "action_change", "reward", "hazard", "box", "half_space", "critic", "disagreement"
]
Metric: TypeAlias = Literal["l2", "squared_l2", "l1", "cosine"]
PolicyHead: TypeAlias = Literal["deterministic", "gaussian_tanh", "categorical"]
TemperatureScale: TypeAlias = Literal["std", "absolute"]
LayerPrecision: TypeAlias = Literal["fp32", "bf16", "int8"]


@dataclass(frozen=True, kw_only=True)
class Observation:
    """What the agent sees: an array of ``shape``; the encoder reads ``x * scale + offset`` in float32."""

    shape: tuple[int, ...]
    dtype: Literal["float32", "uint8"] = "float32"
    scale: float = 1.0
    offset: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Actions:
    """The action space. ``box``: bounds ``low``/``high`` (A,), and modules read ``(a - center) / scale``; left out,
    these map the bounds to -1 and 1.

    ``discrete``: ``count`` actions, which modules read one-hot; outside them an action is its index.
    """

    kind: Literal["box", "discrete"] = "box"
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    center: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()
    count: int = 0

    def __post_init__(self) -> None:
        """Fills in the normalisation that follows from the bounds."""
        bounds = list(zip(self.low, self.high, strict=False))
        if not self.center:
            object.__setattr__(self, "center", tuple((low + high) / 2 for low, high in bounds))
        if not self.scale:
            object.__setattr__(self, "scale", tuple((high - low) / 2 for low, high in bounds))

    @property
    def size(self) -> int:
        """How many numbers modules read of an action: A of a box, ``count`` of discrete actions."""
        return len(self.low) if self.kind == "box" else self.count


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer of an ``mlp``: ``activation(norm(W x + b))`` with ``out`` outputs.

    ``layer`` is LayerNorm with affine weights and eps 1e-5; ``simnorm`` is softmax within groups (TD-MPC2).
    """

    out: int
    norm: Norm = "none"
    activation: Activation = "none"


@dataclass(frozen=True, kw_only=True)
class Mlp:
    """A stack of dense layers on the flattened input."""

    layers: tuple[Layer, ...]
    simnorm_group: int = 8
    kind: Literal["mlp"] = "mlp"


@dataclass(frozen=True, kw_only=True)
class ConvLayer:
    """``activation(conv2d(x) + b)``; square ``kernel``, zero ``padding`` on every side."""

    out: int
    kernel: int
    stride: int = 1
    padding: int = 0
    activation: Activation = "none"


@dataclass(frozen=True, kw_only=True)
class Conv:
    """A stack of 2-D convolutions on an input of shape (C, H, W)."""

    layers: tuple[ConvLayer, ...]
    kind: Literal["conv"] = "conv"


@dataclass(frozen=True, kw_only=True)
class Impala:
    """The IMPALA encoder: per stage conv3 -> maxpool3/2 -> two residual blocks; a ReLU at the end.

    A residual block is ``x + conv3(relu(conv3(relu(x))))``; all convolutions have padding 1 (Espeholt et al. 2018).
    Without ``preactivation`` it is ``relu(x + conv3(relu(conv3(x))))``, as EB-JEPA has it.
    """

    channels: tuple[int, ...]
    preactivation: bool = True
    kind: Literal["impala"] = "impala"


@dataclass(frozen=True, kw_only=True)
class TwoHot:
    """A number behind logits (TD-MPC2's two-hot inverse): the expectation of ``bins`` values spaced evenly in
    [``low``, ``high``] under their softmax, then symexp(x) = sign(x) (exp abs(x) - 1). No parameters.
    """

    bins: int
    low: float
    high: float
    kind: Literal["two_hot"] = "two_hot"


@dataclass(frozen=True, kw_only=True)
class Gru:
    """A GRU cell (`torch.nn.GRUCell`): its ``hidden`` state is the state (L,), its input the action.

    ``norm``: a LayerNorm with eps 1e-5 after it, ``layer`` with parameters of its own, ``tied`` with those of the one
    that ends the encoder (stored twice, and equal). The first block of a module with ``combine`` "cell".
    """

    hidden: int
    norm: Literal["none", "layer", "tied"] = "none"
    kind: Literal["gru"] = "gru"


@dataclass(frozen=True, kw_only=True)
class AdalnTransformer:
    """A causal transformer over the last ``window`` states, each modulated by the action taken in it (AdaLN-zero, as
    LeWM's predictor has it). The first block of a module with ``combine`` "adaln"; it puts out ``width`` numbers.

    A state becomes a token of ``width`` (through a linear layer where L is another) with a learned position; an action
    a condition c = W1 silu(W0 a), with ``embedding`` hidden units. Each of ``depth`` layers is modulated by six
    vectors, Linear(silu(c)): x += gate * attention(norm(x)), then x += gate' * mlp(norm'(x)). A norm is a LayerNorm
    without parameters (eps 1e-6), ``(1 + scale) * … + shift``, a LayerNorm. Attention is causal, of ``heads`` times
    ``head_dim``, without bias before it; the MLP has ``hidden`` units and GELU. A LayerNorm ends it.

    At a plan's beginning the window holds the present state alone and grows with every step: what is not there is not
    attended to, and position 0 is the oldest state's.
    """

    window: int
    depth: int
    width: int
    heads: int
    head_dim: int
    hidden: int
    embedding: int
    kind: Literal["adaln_transformer"] = "adaln_transformer"


@dataclass(frozen=True, kw_only=True)
class Vit:
    """A vision transformer on an image (C, H, W) cut into squares of ``patch`` pixels (Dosovitskiy et al. 2021).

    It puts out ``width`` numbers: those of a class token (``pool`` cls) or the mean of all patches' tokens.

    A patch becomes a token through a linear layer, and every token has a learned position. Each of ``depth`` layers
    does x += attention(norm0(x)), of ``heads`` heads of width / heads numbers, then x += mlp(norm1(x)), with ``hidden``
    units and GELU. A LayerNorm ends it; ``norm_eps`` is the eps of all.
    """

    patch: int
    width: int
    depth: int
    heads: int
    hidden: int
    pool: Literal["cls", "mean"] = "cls"
    norm_eps: float = 1e-5
    kind: Literal["vit"] = "vit"


Block: TypeAlias = Mlp | Conv | Impala | TwoHot | Gru | AdalnTransformer | Vit
BLOCKS: dict[str, type[Mlp | Conv | Impala | TwoHot | Gru | AdalnTransformer | Vit]] = {
    "mlp": Mlp,
    "conv": Conv,
    "impala": Impala,
    "two_hot": TwoHot,
    "gru": Gru,
    "adaln_transformer": AdalnTransformer,
    "vit": Vit,
}


@dataclass(frozen=True, kw_only=True)
class Latent:
    """The latent variable z of a module (reserved: no back end infers or samples z yet)."""

    kind: Literal["discrete", "gaussian", "sparse"]
    size: int


@dataclass(frozen=True, kw_only=True)
class ActivationScale:
    """How unsigned bytes stand for the inputs of a dense layer: ``x = scale * (byte - zero)``.

    ``scale``: positive, one for all inputs or one for each. ``zero``: between 0 and 255. What lies outside saturates.
    """

    scale: tuple[float, ...]
    zero: int = 0


@dataclass(frozen=True, kw_only=True)
class Quantisation:
    """How a module runs in a lower precision; `pyjepa quantise` fills it in. The weights stay float32 in the file.

    ``activations``: one scale for the input of each of the module's layers (`pyjepa.mixed_precision.layers` lists them)
    in order; read by ``precision="int8"``, which otherwise finds a scale for each row as it runs. ``precisions``: for
    each of these layers the lowest precision that it may run in; loaded in a lower one, it keeps to its own. An encoder
    without them stays in fp32. Each may be left out, not both. ``weights`` ``bf16`` is reserved.
    """

    weights: Literal["bf16", "int8"]
    activations: tuple[ActivationScale, ...] = ()
    precisions: tuple[LayerPrecision, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Module:
    """A network: its ``inputs`` combined, then ``blocks`` in order; ``residual`` adds the state to the output.

    ``combine``: ``concat``, one after the other; ``cell``, where state and action are hidden state and input of the
    first block, a ``gru``; ``adaln``, where that is an ``adaln_transformer`` of states modulated by actions.
    ``ensemble`` K > 1: K networks of the same shape; every tensor has a leading axis K (predictors, critics and heads
    only). The first of an ensemble of predictors rolls out; a cost term may ask how far the others disagree.
    """

    inputs: tuple[InputName, ...]
    blocks: tuple[Block, ...]
    combine: Literal["concat", "cell", "adaln"] = "concat"
    residual: bool = False
    ensemble: int = 1
    latent: Latent | None = None
    quantisation: Quantisation | None = None


@dataclass(frozen=True, kw_only=True)
class Level:
    """One level of the world model (paper sections 4.4 and 4.6): which modules encode and predict, and how often.

    The predictor advances ``action_block`` environment steps at once. With ``hold`` it reads one action (A,), held for
    the whole block; without, it reads the block's actions concatenated (action_block * A,). ``history`` and ``stride``
    are reserved (1). ``encoder`` None: the flattened observation is the state. ``predictor`` None: a callback rolls
    out.
    """

    encoder: str | None = None
    predictor: str | None = None
    history: int = 1
    action_block: int = 1
    hold: bool = False
    stride: int = 1


@dataclass(frozen=True, kw_only=True)
class CostTerm:
    """One term of the cost (paper section 3.2), summed over the plan with its weights.

    ``stage`` weighs predictor steps 1 … H-1 (for terms that judge the action: all of them), ``terminal`` the last one.

    - ``goal_distance``: distance between predicted and goal latent, or between what the prediction head ``module``
      makes of them; ``metric`` l2, squared_l2, l1 or cosine (1 - cos). With a ``reach`` over 0 it is in units of it and
      ends at 1: far from the goal every step costs the same, so a plan's cost is the time it takes, and a critic must
      tell the way.
    - ``action_size``: squared norm of the normalised action (energy).
    - ``action_change``: squared norm of the difference between consecutive normalised actions (smoothness).
    - ``reward``: minus the output of ``module`` at the state before the step and the action taken there (judges the
      action).
    - ``hazard``: the output of ``module`` at the reached state, through a sigmoid where ``sigmoid``.
    - ``disagreement``: how far the networks of the ensemble ``module`` scatter, the sum of their outputs' variances
      (Sekar et al. 2020); where the module reads the action, it judges the action. An ensemble of predictors is one
      such: the variance of what they predict next from the same state. ``seek`` pays for it: curiosity.
    - ``box``: how far the reached state, or the output of ``module`` there, lies outside [``low``, ``high``] (either
      may be empty): the sum of squared excesses, or infinity anywhere outside where ``hard``.
    - ``half_space``: the same for ``normal`` · x <= ``offset``.
    - ``critic``: the spec's critic at the reached state: minus it where it ``estimates`` reward to come, plus where it
      estimates cost. Its usual weights are ``stage`` 0 and ``terminal`` 1.

    Of a module with an ensemble, ``members`` of its networks (0: all), drawn anew for every plan, are evaluated and
    ``reduce``d, number by number. ``name`` tells terms of one kind apart in weights and plans; "": the kind.
    """

    kind: CostKind
    stage: float = 1.0
    terminal: float = 1.0
    metric: Metric = "l2"
    reach: float = 0.0
    name: str = ""
    module: str | None = None
    sigmoid: bool = False
    seek: bool = False
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    normal: tuple[float, ...] = ()
    offset: float = 0.0
    hard: bool = False
    estimates: Literal["reward", "cost"] = "reward"
    members: int = 0
    reduce: Literal["mean", "min", "max"] = "mean"

    @property
    def label(self) -> str:
        """What weights and plans call the term."""
        return self.name or self.kind


@dataclass(frozen=True, kw_only=True)
class Planner:
    """Planner defaults; ``agent.configure(...)`` overrides each by name.

    ``horizon`` is in environment steps (a multiple of the level's action_block). ``std`` and ``min_std`` are fractions
    of half the action range. ``knots`` 0 means one per predictor step. ``elites`` and ``momentum`` belong to cem, icem,
    hybrid and categorical-cem, ``min_std`` to the first three, ``keep_elites`` and ``decay`` to icem, ``learning_rate``
    and ``restarts`` to gradient and hybrid, ``polish`` to hybrid. ``temperature`` belongs to mppi: in standard
    deviations of the costs, or with ``temperature_scale`` absolute in units of cost. With ``elite_refit`` (TD-MPC2)
    mppi weighs only the ``elites`` and refits the spread to them as well, within [``min_std``, ``max_std``].
    ``policy_candidates`` of the candidates are rollouts of the policy, made once a plan (of a box, and by planners that
    draw candidates). ``noise_beta`` None: the algorithm's own, 0 (white) but for icem. ``exploration`` is the share of
    each distribution that categorical-cem keeps uniform, ``branching`` the number of actions that tree weighs at a node
    where it samples them (a box, or more discrete actions than that). categorical-cem plans discrete actions only, tree
    both, the others boxes only. ``docs/planners.md`` says what each does.
    """

    algorithm: Algorithm = "cem"
    horizon: int = 10
    candidates: int = 256
    iterations: int = 5
    elites: int = 32
    knots: int = 0
    interpolation: Interpolation = "zero"
    std: float = 0.5
    min_std: float = 0.05
    momentum: float = 0.0
    temperature: float = 0.5
    temperature_scale: TemperatureScale = "std"
    elite_refit: bool = False
    max_std: float = 10.0
    policy_candidates: int = 0
    sampling: Sampling = "gaussian"
    noise_beta: float | None = None
    keep_elites: float = 0.3
    decay: float = 1.25
    learning_rate: float = 0.2
    restarts: int = 8
    polish: int = 10
    exploration: float = 0.05
    branching: int = 8


@dataclass(frozen=True, kw_only=True)
class Spec:
    """Everything an agent file says about its agent, except the weights.

    ``policy_head`` says what the policy's outputs are: ``deterministic``, u with the action tanh(u) of the way to the
    bounds; ``gaussian_tanh``, mean and log standard deviation of u, the latter bounded smoothly to [-10, 2] as in
    TD-MPC2; ``categorical``, logits of discrete actions, whose head it must be. ``critic`` names a module that reads
    the state (V), or state and action (Q, at the policy's mean action), and the goal if it likes. ``discount``: the
    cost of predictor step t = 0, 1, … counts ``discount ** t``, the critic after it ``discount ** (t + 1)``.
    """

    observation: Observation
    actions: Actions
    modules: Mapping[str, Module] = field(default_factory=dict)
    levels: tuple[Level, ...] = (Level(),)
    policy: str | None = None
    policy_head: PolicyHead = "deterministic"
    critic: str | None = None
    discount: float = 1.0
    cost: tuple[CostTerm, ...] = (CostTerm(kind="goal_distance"),)
    planner: Planner = Planner()
    name: str = ""
    provenance: Mapping[str, str] = field(default_factory=dict)
    version: int = SPEC_VERSION

    @property
    def reads_goal(self) -> bool:
        """Whether a term of the cost or a module asks for one."""
        asked = any("goal" in module.inputs for module in self.modules.values())
        return asked or any(term.kind == "goal_distance" for term in self.cost)

    def to_json(self, *, indent: int | None = None) -> str:
        """The JSON text that agent files carry under the metadata key ``pyjepa``."""
        return json.dumps(dataclasses.asdict(self), indent=indent, allow_nan=False)

    @staticmethod
    def from_json(text: str) -> Spec:
        """The spec behind JSON text. Raises `ValueError` naming the field that does not fit."""
        return _read(Spec, json.loads(text), "spec")


_T = TypeVar("_T")


def _read(cls: type[_T], data: object, where: str) -> _T:
    """A dataclass from plain JSON data, field by field; `where` names the place for error messages."""
    if not isinstance(data, dict):
        raise ValueError(f"{where}: expected an object, got {type(data).__name__}")
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(data) - set(hints))
    if unknown:
        raise ValueError(f"{where}: unknown key {unknown[0]!r}")
    missing = sorted(
        f.name
        for f in dataclasses.fields(cls)  # type: ignore[arg-type]
        if f.name not in data and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    )
    if missing:
        raise ValueError(f"{where}: key {missing[0]!r} is missing")
    return cls(**{key: _convert(hints[key], value, f"{where}.{key}") for key, value in data.items()})


def _convert(hint: Any, value: object, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        if hint == Block:
            kind = value.get("kind") if isinstance(value, dict) else None
            if kind not in BLOCKS:
                raise ValueError(f"{where}: unknown block kind {kind!r} (known: {', '.join(BLOCKS)})")
            return _read(BLOCKS[kind], value, where)
        (hint,) = (a for a in arguments if a is not type(None))
        return _convert(hint, value, where)
    if origin is Literal:
        if value not in arguments:
            raise ValueError(f"{where}: {value!r} is not one of {', '.join(map(repr, arguments))}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ValueError(f"{where}: expected a list, got {type(value).__name__}")
        return tuple(_convert(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, dict):
            raise ValueError(f"{where}: expected an object, got {type(value).__name__}")
        return {key: _convert(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if dataclasses.is_dataclass(hint):
        return _read(typing.cast("type[Any]", hint), value, where)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ValueError(f"{where}: expected {hint.__name__}, got {type(value).__name__}")
    return value
