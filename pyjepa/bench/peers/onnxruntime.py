"""ONNX Runtime: all steps and the costs in one graph, run in one call an iteration; sampling and refit in NumPy."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

from pyjepa.bench.peers import FloatArray, Prepared
from pyjepa.bench.workloads import Problem

ALGORITHMS = {"cem": ("",), "mppi": ("",)}

_OPERATORS = {"relu": "Relu", "tanh": "Tanh", "mish": "Mish"}


class Planner:
    """CEM or MPPI as `pyjepa.spec.Planner` describes them, in NumPy, over plans (N, S, A) -> costs (N,)."""

    def __init__(self, problem: Problem, costs: Callable[[FloatArray], FloatArray], *, seed: int = 0) -> None:
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


def model(problem: Problem) -> bytes:
    """The graph: plans (N, S, A) -> costs (N,)."""
    helper: Any = importlib.import_module("onnx.helper")
    numpy_helper: Any = importlib.import_module("onnx.numpy_helper")
    tensor_proto: Any = importlib.import_module("onnx").TensorProto
    nodes: list[Any] = []
    constants: dict[str, Any] = {}

    def constant(name: str, value: Any, dtype: Any = np.float32) -> str:
        constants.setdefault(name, numpy_helper.from_array(np.array(value, dtype, order="C"), name))
        return name

    def node(operator: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        output = name or f"{operator.lower()}{len(nodes)}"
        nodes.append(helper.make_node(operator, list(inputs), [output], **attributes))
        return output

    def activated(value: str, activation: str) -> str:
        if activation == "none":
            return value
        if activation not in _OPERATORS:
            raise NotImplementedError(f"no ONNX operator for {activation}")
        return node(_OPERATORS[activation], value)

    candidates, latent = problem.planner.candidates, problem.latent_dim
    first, *rest = problem.layers
    # The first layer's share of all actions at once: (S, N, A) W^T + b, split into steps.
    normalised = node("Div", node("Sub", "plans", constant("center", problem.center)), constant("scale", problem.scale))
    drives = node(
        "Add",
        node(
            "MatMul",
            node("Transpose", normalised, perm=[1, 0, 2]),
            constant("action_weight", first.weight[:, latent:].T),
        ),
        constant("bias0", first.bias),
    )
    state = constant("start", np.tile(problem.start, (candidates, 1)))
    total = ""
    for t in range(problem.steps):
        step = node("Gather", drives, constant(f"step{t}", t, np.int64), axis=0)
        h = activated(node("Gemm", state, constant("state_weight", first.weight[:, :latent].T), step), first.activation)
        for j, layer in enumerate(rest, 1):
            bias = constant(f"bias{j}", layer.bias)
            h = activated(node("Gemm", h, constant(f"weight{j}", layer.weight.T), bias), layer.activation)
        state = node("Add", h, state) if problem.residual else h
        difference = node("Sub", state, constant("goal", problem.goal))
        distance = node("ReduceSumSquare", difference, constant("axis1", [1], np.int64), keepdims=0)
        if not problem.squared:
            distance = node("Sqrt", distance)
        weight = problem.terminal if t + 1 == problem.steps else problem.stage
        if weight != 1.0:
            distance = node("Mul", distance, constant(f"weight_of_{t}", weight))
        total = node("Add", total, distance) if total else distance
    node("Identity", total, name="costs")
    graph = helper.make_graph(
        nodes,
        "plan_costs",
        [helper.make_tensor_value_info("plans", tensor_proto.FLOAT, [candidates, problem.steps, problem.action_dim])],
        [helper.make_tensor_value_info("costs", tensor_proto.FLOAT, [candidates])],
        list(constants.values()),
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    data: bytes = made.SerializeToString()
    return data


def prepare(problem: Problem, threads: int, variant: str) -> Prepared:
    """See `pyjepa.bench.peers`."""
    runtime: Any = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = runtime.InferenceSession(model(problem), options, providers=["CPUExecutionProvider"])

    def costs(plans: FloatArray) -> FloatArray:
        (found,) = session.run(["costs"], {"plans": plans})
        return np.asarray(found, np.float32)

    return Prepared(f"onnxruntime {runtime.__version__}", Planner(problem, costs).plan, costs)
