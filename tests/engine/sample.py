"""Agents with random weights for the engine's tests, and the isa they run on."""

import dataclasses
import os
import subprocess
import sys

import numpy as np
import torch

import pyjepa
from pyjepa import agent_file
from pyjepa.blocks import Network, tie_norm
from pyjepa.spec import Actions, Conv, ConvLayer, CostTerm, Layer, Level, Mlp, Module, Observation, Planner, Spec

ISAS = ("baseline", "avx2", "avx512")


def pixel_spec(**changes):
    """Two Rooms in small: pixels in, two actions held for four steps, a residual predictor, a policy."""
    spec = Spec(
        observation=Observation(shape=(2, 16, 16), dtype="uint8", scale=1 / 255),
        actions=Actions(low=(-3.0, -3.0), high=(3.0, 3.0)),
        modules={
            "encoder": Module(
                inputs=("observation",),
                blocks=(
                    Conv(layers=(ConvLayer(out=8, kernel=4, stride=2, padding=1, activation="relu"),)),
                    Mlp(layers=(Layer(out=24),)),
                ),
            ),
            "predictor": Module(
                inputs=("state", "action"),
                residual=True,
                blocks=(Mlp(layers=(Layer(out=40, activation="relu"), Layer(out=24))),),
            ),
            "policy": Module(
                inputs=("state", "goal"), blocks=(Mlp(layers=(Layer(out=16, activation="mish"), Layer(out=2))),)
            ),
        },
        levels=(Level(encoder="encoder", predictor="predictor", action_block=4, hold=True),),
        policy="policy",
        cost=(
            CostTerm(kind="goal_distance", terminal=3.0),
            CostTerm(kind="action_size", stage=0.01),
            CostTerm(kind="action_change", stage=0.02),
        ),
        planner=Planner(horizon=24, candidates=100, iterations=4, elites=12),
    )
    return dataclasses.replace(spec, **changes)


def networks(spec, seed=0):
    """Every module of a spec in torch, with random weights; the names of its parameters are the agent file's."""
    torch.manual_seed(seed)
    level = spec.levels[0]
    encoder = (
        None if level.encoder is None else Network(spec.modules[level.encoder], {"observation": spec.observation.shape})
    )
    latent = spec.observation.shape if encoder is None else encoder.output_shape
    actions = spec.actions.size
    made = torch.nn.ModuleDict()
    for name, module in spec.modules.items():
        action = (actions * (1 if level.hold else level.action_block),)
        shapes = {"observation": spec.observation.shape, "state": latent, "goal": latent, "action": action}
        made[name] = encoder if name == level.encoder else Network(module, shapes)
    for parameter_name, parameter in made.named_parameters():
        if ".modulation." in parameter_name:  # zero at first, which hides the layers
            torch.nn.init.normal_(parameter, std=3.0 * parameter.shape[-1] ** -0.5)
    if encoder is not None and level.predictor is not None:
        tie_norm(made[level.predictor], encoder)
    return made


def weights(modules):
    """Their weights as NumPy arrays."""
    return {name: value.detach().numpy() for name, value in modules.state_dict().items()}


def engine_model(spec, modules):
    """The same in the engine."""
    return pyjepa.Model.from_bytes(agent_file.to_bytes(spec, weights(modules)))


def observations(count, seed=0, shape=(2, 16, 16)):
    """Random pictures."""
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def run_on(isa, code, *arguments):
    """Runs Python code in a process whose engine uses one instruction set; its standard output, or None if the machine
    has no such instructions.
    """
    environment = {**os.environ, "PYJEPA_ISA": isa}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    if done.returncode != 0 and "is not available here" in done.stderr:
        return None
    assert done.returncode == 0, done.stderr
    return done.stdout
