"""ONNX Runtime: all steps and the costs in one graph, run in one call an iteration; sampling and refit in NumPy."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from pyjepa.bench.eb_jepa import GruProblem
from pyjepa.bench.lewm import AdalnProblem
from pyjepa.bench.peers import FloatArray, Prepared
from pyjepa.bench.workloads import Perception, PlanningProblem, Problem
from pyjepa.spec import Impala, Mlp, Vit

ALGORITHMS = {"cem": ("",), "mppi": ("",), "cem-gru": ("",), "cem-adaln": ("",)}

_OPERATORS = {"relu": "Relu", "tanh": "Tanh", "mish": "Mish"}
_LATER = {"gelu": "Gelu"}
"""Of opset 20."""


class Planner:
    """CEM or MPPI as `pyjepa.spec.Planner` describes them, in NumPy, over plans (N, S, A) -> costs (N,)."""

    def __init__(self, problem: PlanningProblem, costs: Callable[[FloatArray], FloatArray], *, seed: int = 0) -> None:
        self.problem, self.costs = problem, costs
        self.settings = problem.planner
        self.half = (problem.high - problem.low) / 2
        self.middle = (problem.high + problem.low) / 2
        self.shape = (self.settings.candidates, problem.steps, problem.action_dim)
        self.random = np.random.Generator(np.random.SFC64(seed))

    def plan(self) -> FloatArray:
        """The last mean (S, A), from scratch."""
        settings, problem = self.settings, self.problem
        mean = np.broadcast_to(self.middle, self.shape[1:])
        std = np.broadcast_to(settings.std * self.half, self.shape[1:]).astype(np.float32)
        for _ in range(settings.iterations):
            samples = self.random.standard_normal(self.shape, dtype=np.float32)
            samples[0] = 0.0
            samples *= std
            samples += mean
            np.clip(samples, problem.low, problem.high, out=samples)
            cost = self.costs(samples)
            if settings.algorithm == "mppi":
                weights = np.exp((cost.min() - cost) / (settings.temperature * cost.std()))
                mean = np.tensordot(weights / weights.sum(), samples, axes=1)
                continue
            elites = samples[np.argpartition(cost, settings.elites - 1)[: settings.elites]]
            keep = np.float32(settings.momentum)
            mean = keep * mean + (1 - keep) * elites.mean(axis=0)
            std = keep * std + (1 - keep) * elites.std(axis=0)
            std = np.maximum(std, settings.min_std * self.half)
        return np.asarray(mean, np.float32)


class _Graph:
    """A graph under construction: inputs of fixed shapes -> one output."""

    def __init__(self) -> None:
        self.helper: Any = importlib.import_module("onnx.helper")
        self.numpy_helper: Any = importlib.import_module("onnx.numpy_helper")
        self.float: Any = importlib.import_module("onnx").TensorProto.FLOAT
        self.inputs: list[Any] = []
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}

    def input(self, name: str, *shape: int) -> str:
        self.inputs.append(self.helper.make_tensor_value_info(name, self.float, shape))
        return name

    def constant(self, name: str, value: Any, dtype: Any = np.float32) -> str:
        self.constants.setdefault(name, self.numpy_helper.from_array(np.array(value, dtype, order="C"), name))
        return name

    def integers(self, *values: int) -> str:
        """Shapes, axes and places."""
        return self.constant("integers_" + "_".join(map(str, values)), values, np.int64)

    def node(self, operator: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        return self.split(operator, *inputs, outputs=(name or f"{operator.lower()}{len(self.nodes)}",), **attributes)[0]

    def split(self, operator: str, *inputs: str, outputs: tuple[str, ...] | int, **attributes: Any) -> tuple[str, ...]:
        """A node with several outputs: their names, or how many."""
        if isinstance(outputs, int):
            outputs = tuple(f"{operator.lower()}{len(self.nodes)}_{i}" for i in range(outputs))
        self.nodes.append(self.helper.make_node(operator, list(inputs), list(outputs), **attributes))
        return outputs

    def reshape(self, value: str, *shape: int) -> str:
        return self.node("Reshape", value, self.integers(*shape))

    def linear(self, value: str, name: str, weights: Mapping[str, FloatArray]) -> str:
        """(B, in) -> (B, out) by the name of its weights (out, in); a bias is optional."""
        inputs = [value, self.constant(f"{name}.weight", weights[f"{name}.weight"].T)]
        if f"{name}.bias" in weights:
            inputs.append(self.constant(f"{name}.bias", weights[f"{name}.bias"]))
        return self.node("Gemm", *inputs)

    def norm(self, value: str, name: str, weights: Mapping[str, FloatArray], epsilon: float = 1e-5) -> str:
        """LayerNorm of the last axis by the name of its parameters."""
        scale, bias = (self.constant(f"{name}.{part}", weights[f"{name}.{part}"]) for part in ("weight", "bias"))
        return self.node("LayerNormalization", value, scale, bias, axis=-1, epsilon=epsilon)

    def attention(self, qkv: str, batch: int, tokens: int, heads: int, *, causal: bool) -> str:
        """(batch * tokens, 3 inner) -> (batch * tokens, inner). The operator of opset 23 is quicker than the same in
        products and a softmax (3.3 against 4.0 ms for W3's layers), and than the contributed MultiHeadAttention (4.4).
        """
        parts = self.split("Split", qkv, outputs=3, axis=1, num_outputs=3)
        parts = tuple(self.reshape(part, batch, tokens, -1) for part in parts)
        mixed = self.node("Attention", *parts, q_num_heads=heads, kv_num_heads=heads, is_causal=int(causal))
        return self.reshape(mixed, batch * tokens, -1)

    def made(self, output: str, *shape: int, opset: int = 18) -> bytes:
        """The whole of it, with its result."""
        self.node("Identity", output, name="output")
        result = self.helper.make_tensor_value_info("output", self.float, shape)
        graph = self.helper.make_graph(self.nodes, "graph", self.inputs, [result], list(self.constants.values()))
        opsets = [self.helper.make_opsetid("", opset)]
        data: bytes = self.helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()
        return data


class _Costs(_Graph):
    """plans (N, S, A), and start and goal (L,) -> costs (N,)."""

    def __init__(self, problem: PlanningProblem) -> None:
        super().__init__()
        self.problem, self.candidates = problem, problem.planner.candidates
        self.plans = self.input("plans", self.candidates, problem.steps, problem.action_dim)
        self.goal = self.input("goal", problem.latent_dim)
        start = self.input("start", problem.latent_dim)
        self.start = self.node("Expand", start, self.integers(self.candidates, problem.latent_dim))

    def actions(self) -> str:
        """As they enter the predictor, (N, S, A)."""
        centred = self.node("Sub", self.plans, self.constant("center", self.problem.center))
        return self.node("Div", centred, self.constant("scale", self.problem.scale))

    def drives(self, weight: FloatArray, bias: FloatArray) -> str:
        """What a layer (out, A) makes of all actions at once: (S, N, A) W^T + b."""
        turned = self.node("Transpose", self.actions(), perm=[1, 0, 2])
        product = self.node("MatMul", turned, self.constant("action_weight", weight.T))
        return self.node("Add", product, self.constant("action_bias", bias))

    def step(self, drives: str, t: int) -> str:
        """One step's share of `drives` (N, out)."""
        return self.node("Gather", drives, self.constant(f"step{t}", t, np.int64), axis=0)

    def squared_distance(self, state: str) -> str:
        return self.node("ReduceSumSquare", self.node("Sub", state, self.goal), self.integers(1), keepdims=0)


def model(problem: Problem) -> bytes:
    """The graph: plans (N, S, A) -> costs (N,)."""
    graph = _Costs(problem)
    constant, node = graph.constant, graph.node

    def activated(value: str, activation: str) -> str:
        if activation == "none":
            return value
        if activation not in _OPERATORS:
            raise NotImplementedError(f"no ONNX operator for {activation}")
        return node(_OPERATORS[activation], value)

    latent = problem.latent_dim
    first, *rest = problem.layers
    drives = graph.drives(first.weight[:, latent:], first.bias)
    state = graph.start
    total = ""
    for t in range(problem.steps):
        step = graph.step(drives, t)
        h = activated(node("Gemm", state, constant("state_weight", first.weight[:, :latent].T), step), first.activation)
        for j, layer in enumerate(rest, 1):
            bias = constant(f"bias{j}", layer.bias)
            h = activated(node("Gemm", h, constant(f"weight{j}", layer.weight.T), bias), layer.activation)
        state = node("Add", h, state) if problem.residual else h
        distance = graph.squared_distance(state)
        if not problem.squared:
            distance = node("Sqrt", distance)
        weight = problem.terminal if t + 1 == problem.steps else problem.stage
        if weight != 1.0:
            distance = node("Mul", distance, constant(f"weight_of_{t}", weight))
        total = node("Add", total, distance) if total else distance
    return graph.made(total, graph.candidates)


def gru_model(problem: GruProblem) -> bytes:
    """The same for a GRU cell. With operators of its own: ONNX's GRU has no LayerNorm between its steps."""
    graph, weights = _Costs(problem), problem.weights
    constant, node = graph.constant, graph.node
    drives = graph.drives(weights["weight_ih"], weights["bias_ih"])
    state = graph.start
    total = ""
    for t in range(problem.steps):
        reset, update, new = graph.split("Split", graph.step(drives, t), outputs=3, axis=1, num_outputs=3)
        sums = node("Gemm", state, constant("weight", weights["weight_hh"].T), constant("bias", weights["bias_hh"]))
        r, z, n = graph.split("Split", sums, outputs=3, axis=1, num_outputs=3)
        r, z = (node("Sigmoid", node("Add", own, other)) for own, other in ((r, reset), (z, update)))
        n = node("Tanh", node("Add", new, node("Mul", r, n)))
        state = graph.norm(node("Add", n, node("Mul", z, node("Sub", state, n))), "norm", weights)
        distance = graph.squared_distance(state)
        total = node("Add", total, distance) if total else distance
    return graph.made(node("Mul", total, constant("cost_weight", problem.weight)), graph.candidates)


def adaln_model(problem: AdalnProblem) -> bytes:
    """The same for a transformer that looks back: all states of the window anew at every step, as LeWM's code does."""
    graph, weights, block = _Costs(problem), problem.weights, problem.transformer
    constant, node, linear, norm = graph.constant, graph.node, graph.linear, graph.norm
    candidates, width = graph.candidates, block.width
    ones = constant("ones", np.ones(width))

    def silu(value: str) -> str:
        return node("Mul", value, node("Sigmoid", value))

    def modulated(x: str, shift: str, scale: str) -> str:
        plain = node("LayerNormalization", x, ones, axis=-1, epsilon=1e-6)
        return node("Add", node("Mul", plain, node("Add", scale, constant("one", 1.0))), shift)

    def layer(name: str, x: str, conditions: str, tokens: int) -> str:
        modulation = linear(conditions, f"{name}.modulation", weights)
        shift, scale, gate, shift1, scale1, gate1 = graph.split("Split", modulation, outputs=6, axis=1, num_outputs=6)
        qkv = linear(norm(modulated(x, shift, scale), f"{name}.norm0", weights), f"{name}.qkv", weights)
        mixed = graph.attention(qkv, candidates, tokens, block.heads, causal=True)
        x = node("Add", x, node("Mul", gate, linear(mixed, f"{name}.out", weights)))
        h = linear(norm(modulated(x, shift1, scale1), f"{name}.norm1", weights), f"{name}.linear0", weights)
        return node("Add", x, node("Mul", gate1, linear(node("Gelu", h), f"{name}.linear1", weights)))

    actions = graph.reshape(graph.actions(), candidates * problem.steps, problem.action_dim)
    embedded = linear(silu(linear(actions, "0.action0", weights)), "0.action1", weights)
    conditions = graph.reshape(silu(embedded), candidates, problem.steps, width)
    states = [graph.start]
    for t in range(problem.steps):
        first = max(0, t + 1 - block.window)
        tokens = t + 1 - first
        seen = [node("Unsqueeze", state, graph.integers(1)) for state in states[first:]]
        position = constant(f"position{tokens}", weights["0.position"][:tokens])
        x = node("Add", node("Concat", *seen, axis=1), position)
        told = node("Slice", conditions, graph.integers(first), graph.integers(t + 1), graph.integers(1))
        x, told = (graph.reshape(value, candidates * tokens, width) for value in (x, told))
        for d in range(block.depth):
            x = layer(f"0.layer{d}", x, told, tokens)
        last = node("Gather", graph.reshape(x, candidates, tokens, width), constant("last", -1, np.int64), axis=1)
        h = linear(norm(last, "0.norm", weights), "1.linear0", weights)
        states.append(linear(node("Gelu", h), "1.linear1", weights))
    return graph.made(graph.squared_distance(states[-1]), candidates, opset=23)


def encoder_model(perception: Perception, count: int, latent: int) -> bytes:
    """Images (count, C, H, W) -> latents (count, L). Raises NotImplementedError for blocks it does not state."""
    graph, weights = _Graph(), perception.weights
    x = graph.input("images", count, *perception.observation.shape)
    for i, block in enumerate(perception.encoder.blocks):
        if isinstance(block, Impala):
            x = _impala(graph, x, block, f"{i}", weights)
        elif isinstance(block, Vit):
            x = _vit(graph, x, block, f"{i}", weights, count)
        elif isinstance(block, Mlp):
            for j, layer in enumerate(block.layers):
                x = graph.linear(x, f"{i}.linear{j}", weights)
                if layer.norm == "layer":
                    x = graph.norm(x, f"{i}.norm{j}", weights)
                if layer.activation != "none":
                    x = graph.node((_OPERATORS | _LATER)[layer.activation], x)
        else:
            raise NotImplementedError(f"no graph for {block.kind}")
    return graph.made(x, count, latent, opset=23)


def _impala(graph: _Graph, x: str, block: Impala, name: str, weights: Mapping[str, FloatArray]) -> str:
    """Images (B, C, H, W) -> (B, features)."""
    node = graph.node

    def convolution(value: str, of: str) -> str:
        parts = (graph.constant(f"{of}.{part}", weights[f"{of}.{part}"]) for part in ("weight", "bias"))
        return node("Conv", value, *parts, pads=[1, 1, 1, 1])

    for s in range(len(block.channels)):
        x = node("MaxPool", convolution(x, f"{name}.stage{s}.conv"), kernel_shape=[3, 3], strides=[2, 2],
                 pads=[1, 1, 1, 1])  # fmt: skip
        for r in range(2):
            h = convolution(node("Relu", x) if block.preactivation else x, f"{name}.stage{s}.res{r}.conv0")
            x = node("Add", x, convolution(node("Relu", h), f"{name}.stage{s}.res{r}.conv1"))
            x = x if block.preactivation else node("Relu", x)
    return node("Flatten", node("Relu", x), axis=1)


def _vit(graph: _Graph, x: str, block: Vit, name: str, weights: Mapping[str, FloatArray], count: int) -> str:
    """Images (count, C, H, W) -> class tokens (count, width)."""
    if block.pool != "cls":
        raise NotImplementedError(f"no graph for a vit that pools its {block.pool}")
    node, linear, width = graph.node, graph.linear, block.width
    tokens = len(weights[f"{name}.position"])
    kernel = (graph.constant(f"{name}.patch.{part}", weights[f"{name}.patch.{part}"]) for part in ("weight", "bias"))
    patches = graph.reshape(node("Conv", x, *kernel, strides=[block.patch, block.patch]), count, width, tokens - 1)
    first = graph.constant(f"{name}.cls", np.tile(weights[f"{name}.cls"], (count, 1, 1)))
    x = node("Concat", first, node("Transpose", patches, perm=[0, 2, 1]), axis=1)
    x = node("Add", x, graph.constant(f"{name}.position", weights[f"{name}.position"]))
    x = graph.reshape(x, count * tokens, width)
    for d in range(block.depth):
        layer = f"{name}.layer{d}"
        qkv = linear(graph.norm(x, f"{layer}.norm0", weights, block.norm_eps), f"{layer}.qkv", weights)
        mixed = graph.attention(qkv, count, tokens, block.heads, causal=False)
        x = node("Add", x, linear(mixed, f"{layer}.out", weights))
        h = linear(graph.norm(x, f"{layer}.norm1", weights, block.norm_eps), f"{layer}.linear0", weights)
        x = node("Add", x, linear(node("Gelu", h), f"{layer}.linear1", weights))
    x = node("Gather", graph.reshape(x, count, tokens, width), graph.constant("first", 0, np.int64), axis=1)
    return graph.norm(x, f"{name}.norm", weights, block.norm_eps)


def prepare(problem: PlanningProblem, threads: int, variant: str) -> Prepared:
    """See `pyjepa.bench.peers`."""
    runtime: Any = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_ALL

    def session(graph: bytes) -> Callable[[Mapping[str, FloatArray]], FloatArray]:
        made = runtime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        return lambda inputs: np.asarray(made.run(["output"], dict(inputs))[0], np.float32)

    assert isinstance(problem, GruProblem | AdalnProblem | Problem)
    if isinstance(problem, GruProblem):
        graph = gru_model(problem)
    elif isinstance(problem, AdalnProblem):
        graph = adaln_model(problem)
    else:
        graph = model(problem)
    scored = session(graph)
    task = {"start": problem.start, "goal": problem.goal}

    def costs(plans: FloatArray) -> FloatArray:
        return scored({"plans": plans, **task})

    planner = Planner(problem, costs)
    prepared = Prepared(f"onnxruntime {runtime.__version__}", planner.plan, costs)
    perception = problem.perception
    if perception is None:
        return prepared
    encoded = session(encoder_model(perception, 2, problem.latent_dim))

    def encode() -> FloatArray:
        return encoded({"images": perception.images()})

    def encode_and_plan() -> FloatArray:
        task["start"], task["goal"] = encode()
        return planner.plan()

    return dataclasses.replace(prepared, encode=encode, encode_and_plan=encode_and_plan)
