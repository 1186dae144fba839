"""ONNX Runtime: all steps and the costs in one graph, run in one call an iteration; sampling and refit in NumPy."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

from pyjepa.bench.eb_jepa import GruProblem
from pyjepa.bench.peers import FloatArray, Prepared
from pyjepa.bench.workloads import PlanningProblem, Problem

ALGORITHMS = {"cem": ("",), "mppi": ("",), "cem-gru": ("",)}

_OPERATORS = {"relu": "Relu", "tanh": "Tanh", "mish": "Mish"}


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
    """plans (N, S, A) -> costs (N,), under construction."""

    def __init__(self, problem: PlanningProblem) -> None:
        self.problem = problem
        self.helper: Any = importlib.import_module("onnx.helper")
        self.numpy_helper: Any = importlib.import_module("onnx.numpy_helper")
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}

    def constant(self, name: str, value: Any, dtype: Any = np.float32) -> str:
        self.constants.setdefault(name, self.numpy_helper.from_array(np.array(value, dtype, order="C"), name))
        return name

    def node(self, operator: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        return self.split(operator, *inputs, outputs=(name or f"{operator.lower()}{len(self.nodes)}",), **attributes)[0]

    def split(self, operator: str, *inputs: str, outputs: tuple[str, ...], **attributes: Any) -> tuple[str, ...]:
        """A node with several outputs."""
        self.nodes.append(self.helper.make_node(operator, list(inputs), list(outputs), **attributes))
        return outputs

    def drives(self, weight: FloatArray, bias: FloatArray) -> str:
        """What a layer (out, A) makes of all actions at once: (S, N, A) W^T + b."""
        constant, node, problem = self.constant, self.node, self.problem
        centred = node("Sub", "plans", constant("center", problem.center))
        turned = node("Transpose", node("Div", centred, constant("scale", problem.scale)), perm=[1, 0, 2])
        return node("Add", node("MatMul", turned, constant("action_weight", weight.T)), constant("action_bias", bias))

    def step(self, drives: str, t: int) -> str:
        """One step's share of `drives` (N, out)."""
        return self.node("Gather", drives, self.constant(f"step{t}", t, np.int64), axis=0)

    def squared_distance(self, state: str, goal: FloatArray) -> str:
        difference = self.node("Sub", state, self.constant("goal", goal))
        return self.node("ReduceSumSquare", difference, self.constant("axis1", [1], np.int64), keepdims=0)

    def made(self, total: str) -> bytes:
        """The whole of it, with its result."""
        self.node("Identity", total, name="costs")
        helper, problem = self.helper, self.problem
        tensor_proto: Any = importlib.import_module("onnx").TensorProto
        candidates = problem.planner.candidates
        graph = helper.make_graph(
            self.nodes,
            "plan_costs",
            [
                helper.make_tensor_value_info(
                    "plans", tensor_proto.FLOAT, [candidates, problem.steps, problem.action_dim]
                )
            ],
            [helper.make_tensor_value_info("costs", tensor_proto.FLOAT, [candidates])],
            list(self.constants.values()),
        )
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        data: bytes = made.SerializeToString()
        return data


def model(problem: Problem) -> bytes:
    """The graph: plans (N, S, A) -> costs (N,)."""
    graph = _Graph(problem)
    constant, node = graph.constant, graph.node

    def activated(value: str, activation: str) -> str:
        if activation == "none":
            return value
        if activation not in _OPERATORS:
            raise NotImplementedError(f"no ONNX operator for {activation}")
        return node(_OPERATORS[activation], value)

    candidates, latent = problem.planner.candidates, problem.latent_dim
    first, *rest = problem.layers
    drives = graph.drives(first.weight[:, latent:], first.bias)
    state = constant("start", np.tile(problem.start, (candidates, 1)))
    total = ""
    for t in range(problem.steps):
        step = graph.step(drives, t)
        h = activated(node("Gemm", state, constant("state_weight", first.weight[:, :latent].T), step), first.activation)
        for j, layer in enumerate(rest, 1):
            bias = constant(f"bias{j}", layer.bias)
            h = activated(node("Gemm", h, constant(f"weight{j}", layer.weight.T), bias), layer.activation)
        state = node("Add", h, state) if problem.residual else h
        distance = graph.squared_distance(state, problem.goal)
        if not problem.squared:
            distance = node("Sqrt", distance)
        weight = problem.terminal if t + 1 == problem.steps else problem.stage
        if weight != 1.0:
            distance = node("Mul", distance, constant(f"weight_of_{t}", weight))
        total = node("Add", total, distance) if total else distance
    return graph.made(total)


def gru_model(problem: GruProblem) -> bytes:
    """The same for a GRU cell. With operators of its own: ONNX's GRU has no LayerNorm between its steps."""
    graph, weights = _Graph(problem), problem.weights
    constant, node = graph.constant, graph.node
    drives = graph.drives(weights["weight_ih"], weights["bias_ih"])
    state = constant("start", np.tile(problem.start, (problem.planner.candidates, 1)))
    total = ""
    for t in range(problem.steps):

        def gates(of: str, value: str, t: int = t) -> tuple[str, ...]:
            outputs = tuple(f"{of}{gate}{t}" for gate in "rzn")
            return graph.split("Split", value, outputs=outputs, axis=1, num_outputs=3)

        reset, update, new = gates("action", graph.step(drives, t))
        sums = node("Gemm", state, constant("weight", weights["weight_hh"].T), constant("bias", weights["bias_hh"]))
        r, z, n = gates("state", sums)
        r, z = (node("Sigmoid", node("Add", own, other)) for own, other in ((r, reset), (z, update)))
        n = node("Tanh", node("Add", new, node("Mul", r, n)))
        mixed = node("Add", n, node("Mul", z, node("Sub", state, n)))
        norm = (constant(f"norm_{part}", weights[f"norm.{part}"]) for part in ("weight", "bias"))
        state = node("LayerNormalization", mixed, *norm, axis=-1, epsilon=1e-5)
        distance = graph.squared_distance(state, problem.goal)
        total = node("Add", total, distance) if total else distance
    return graph.made(node("Mul", total, constant("cost_weight", problem.weight)))


def prepare(problem: PlanningProblem, threads: int, variant: str) -> Prepared:
    """See `pyjepa.bench.peers`."""
    runtime: Any = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_ALL
    if isinstance(problem, GruProblem):
        graph = gru_model(problem)
    else:
        assert isinstance(problem, Problem)
        graph = model(problem)
    session = runtime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def costs(plans: FloatArray) -> FloatArray:
        (found,) = session.run(["costs"], {"plans": plans})
        return np.asarray(found, np.float32)

    return Prepared(f"onnxruntime {runtime.__version__}", Planner(problem, costs).plan, costs)
