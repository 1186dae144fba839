"""Blocks, world model and cost in torch, against plain statements of what the spec says."""

import dataclasses

import numpy as np
import pytest
import torch
from torch.nn import functional

import pyjepa
from pyjepa.blocks import ConvBlock, ImpalaBlock, MlpBlock, Network
from pyjepa.cost import plan_cost, term_costs
from pyjepa.spec import (
    Actions,
    Conv,
    ConvLayer,
    CostTerm,
    Gru,
    Impala,
    Layer,
    Level,
    Mlp,
    Module,
    Observation,
    Planner,
    Spec,
)
from pyjepa.world_model import WorldModel


def small_spec(**changes):
    spec = Spec(
        observation=Observation(shape=(2, 8, 8), dtype="uint8", scale=1 / 255, offset=-0.5),
        actions=Actions(low=(-3.0, -1.0), high=(3.0, 2.0), center=(0.0, 0.5), scale=(3.0, 1.5)),
        modules={
            "eyes": Module(
                inputs=("observation",),
                blocks=(
                    Conv(layers=(ConvLayer(out=4, kernel=3, stride=2, padding=1, activation="relu"),)),
                    Mlp(layers=(Layer(out=6),)),
                ),
            ),
            "dynamics": Module(
                inputs=("state", "action"),
                blocks=(Mlp(layers=(Layer(out=16, norm="layer", activation="mish"), Layer(out=6))),),
                residual=True,
            ),
        },
        levels=(Level(encoder="eyes", predictor="dynamics", action_block=4, hold=True),),
        planner=Planner(horizon=12, candidates=32, iterations=3, elites=4),
    )
    return dataclasses.replace(spec, **changes)


def numbers(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def test_a_layer_is_activation_of_norm_of_the_linear_map():
    block = Mlp(
        layers=(Layer(out=8, norm="layer+simnorm", activation="none"), Layer(out=4, norm="simnorm", activation="tanh")),
        simnorm_group=4,
    )
    torch.manual_seed(0)
    built = MlpBlock(block, (3, 2))
    x = numbers(5, 3, 2)
    y = functional.layer_norm(
        functional.linear(x.flatten(1), built.linear0.weight, built.linear0.bias),
        (8,),
        built.norm0.weight,
        built.norm0.bias,
    )
    y = torch.cat([y[:, :4].softmax(1), y[:, 4:].softmax(1)], dim=1)
    y = torch.tanh(functional.linear(y, built.linear1.weight, built.linear1.bias).softmax(1))
    assert torch.allclose(built(x), y, atol=1e-6)
    assert set(built.state_dict()) == {
        *(f"linear{j}.{p}" for j in (0, 1) for p in ("weight", "bias")),
        "norm0.weight",
        "norm0.bias",
    }


@pytest.mark.parametrize("activation", ["none", "relu", "gelu", "silu", "mish", "tanh"])
def test_activations_are_the_standard_ones(activation):
    built = MlpBlock(Mlp(layers=(Layer(out=3, activation=activation),)), (3,))
    x = numbers(4, 3)
    z = functional.linear(x, built.linear0.weight, built.linear0.bias).double()
    expected = {
        "none": z,
        "relu": z.clamp(min=0),
        "gelu": 0.5 * z * (1 + torch.erf(z / 2**0.5)),
        "silu": z / (1 + torch.exp(-z)),
        "mish": z * torch.tanh(torch.log1p(torch.exp(z))),
        "tanh": torch.tanh(z),
    }[activation]
    assert torch.allclose(built(x).double(), expected, atol=1e-6)


def test_convolutions_know_their_output_shape():
    block = Conv(
        layers=(
            ConvLayer(out=4, kernel=8, stride=4, padding=2, activation="relu"),
            ConvLayer(out=5, kernel=3, stride=2, padding=1),
        )
    )
    built = ConvBlock(block, (2, 64, 60))
    y = built(numbers(3, 2, 64, 60))
    assert built.output_shape == tuple(y.shape[1:]) == (5, 8, 8)
    assert set(built.state_dict()) == {f"conv{j}.{p}" for j in (0, 1) for p in ("weight", "bias")}


@pytest.mark.parametrize("first", [True, False], ids=["espeholt", "eb-jepa"])
def test_impala_is_the_encoder_of_espeholt_et_al_or_of_eb_jepa(first):
    torch.manual_seed(0)
    built = ImpalaBlock(Impala(channels=(4, 6), preactivation=first), (2, 9, 12))
    w = built.state_dict()
    x = h = numbers(2, 2, 9, 12)
    for s in (0, 1):
        h = functional.conv2d(h, w[f"stage{s}.conv.weight"], w[f"stage{s}.conv.bias"], padding=1)
        h = functional.max_pool2d(h, 3, stride=2, padding=1)
        for r in (0, 1):
            inner = h.relu() if first else h
            for c in (0, 1):
                name = f"stage{s}.res{r}.conv{c}"
                inner = functional.conv2d(inner, w[f"{name}.weight"], w[f"{name}.bias"], padding=1)
                inner = inner.relu() if c == 0 else inner
            h = h + inner if first else (h + inner).relu()
    assert torch.allclose(built(x), h.relu(), atol=1e-6)
    assert built.output_shape == tuple(h.shape[1:])
    assert len(w) == 2 * (1 + 4) * 2


def test_a_network_concatenates_its_inputs_and_adds_the_state():
    module = Module(inputs=("action", "state"), blocks=(Mlp(layers=(Layer(out=3),)),), residual=True)
    network = Network(module, {"state": (3,), "action": (2,)})
    state, action = numbers(4, 3), numbers(4, 2)
    expected = network.get_submodule("0")(torch.cat([action, state], 1)) + state
    assert torch.equal(network({"state": state, "action": action}), expected)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"combine": "adaln"}, ValueError, "combine 'adaln' needs another first block than 'mlp'"),
        ({"residual": True}, ValueError, "residual"),
        ({"blocks": (Conv(layers=(ConvLayer(out=1, kernel=3),)),)}, ValueError, r"conv: expected .* \(C, H, W\)"),
        ({"blocks": (Mlp(layers=(Layer(out=6, norm="simnorm"),)),)}, ValueError, "simnorm_group 8"),
    ],
)
def test_what_does_not_fit_is_an_error(changes, error, message):
    module = Module(inputs=("state", "action"), blocks=(Mlp(layers=(Layer(out=5),)),))
    with pytest.raises(error, match=message):
        Network(dataclasses.replace(module, **changes), {"state": (3,), "action": (2,)})


def test_parameters_are_named_as_in_the_agent_file():
    names = set(WorldModel(small_spec()).state_dict())
    assert names == {
        "eyes.0.conv0.weight",
        "eyes.0.conv0.bias",
        "eyes.1.linear0.weight",
        "eyes.1.linear0.bias",
        "dynamics.0.linear0.weight",
        "dynamics.0.linear0.bias",
        "dynamics.0.norm0.weight",
        "dynamics.0.norm0.bias",
        "dynamics.0.linear1.weight",
        "dynamics.0.linear1.bias",
    }


def test_observations_are_scaled_as_the_spec_says_whatever_their_type_and_batch():
    model = WorldModel(small_spec())
    pictures = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 4, 2, 8, 8), dtype=np.uint8))
    latents = model.encode(pictures)
    assert latents.shape == (3, 4, 6)
    x = pictures[1, 2].float() / 255 - 0.5
    assert torch.allclose(latents[1, 2], model.get_submodule("eyes")({"observation": x[None]})[0], atol=1e-5)
    assert torch.allclose(latents, model.encode(pictures.float()), atol=1e-6)
    with pytest.raises(ValueError, match=r"expected \(..., \(2, 8, 8\)\), got \(3, 8, 8\)"):
        model.encode(pictures[0, :3, 0])


def test_a_rollout_is_step_after_step_on_normalised_actions():
    model = WorldModel(small_spec())
    state, actions = numbers(5, 6), numbers(5, 3, 2)
    states = model.rollout(state, actions)
    expected = state
    for t in range(3):
        read = torch.stack([actions[:, t, 0] / 3, (actions[:, t, 1] - 0.5) / 1.5], dim=1)
        expected = model.get_submodule("dynamics")({"state": expected, "action": read})
        assert torch.allclose(states[:, t], expected, atol=1e-6)


def test_without_hold_the_predictor_reads_the_whole_block():
    spec = small_spec(levels=(Level(encoder="eyes", predictor="dynamics", action_block=3, hold=False),))
    model = WorldModel(spec)
    assert model.plan_dim == 6
    assert model.rollout(numbers(5, 6), numbers(5, 2, 6)).shape == (5, 2, 6)
    assert torch.allclose(model.normalise(torch.tensor([3.0, 2.0] * 3)), torch.ones(6))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"levels": (Level(), Level())}, NotImplementedError, "one level"),
        ({"levels": (Level(encoder="eyes"),)}, ValueError, "with a predictor"),
    ],
)
def test_what_torch_lacks_is_an_error(changes, error, message):
    with pytest.raises(error, match=message):
        WorldModel(small_spec(**changes))


def test_the_cost_is_the_weighted_sum_of_its_terms():
    terms = (
        CostTerm(kind="goal_distance", stage=0.5, terminal=2.0),
        CostTerm(kind="goal_distance", stage=0.0, terminal=1.0, metric="squared_l2"),
        CostTerm(kind="action_size", stage=0.1, terminal=7.0),
        CostTerm(kind="action_change", stage=0.2, terminal=7.0),
    )
    model = WorldModel(small_spec(cost=terms))
    states, actions, goal, previous = numbers(4, 3, 6), numbers(4, 3, 2), numbers(6), numbers(2)
    for before in (None, previous):
        found = term_costs(model, states, actions, goal, before)
        assert found.shape == (4, 4)
        for b in range(4):
            distance = [float((states[b, t] - goal).norm()) for t in range(3)]
            read = [((actions[b, t] - torch.tensor([0.0, 0.5])) / torch.tensor([3.0, 1.5])).double() for t in range(3)]
            first = (
                read[0] if before is None else ((before - torch.tensor([0.0, 0.5])) / torch.tensor([3.0, 1.5])).double()
            )
            expected = [
                0.5 * (distance[0] + distance[1]) + 2.0 * distance[2],
                distance[2] ** 2,
                0.1 * sum(float(a @ a) for a in read),
                0.2 * sum(float((a - b) @ (a - b)) for a, b in zip(read, [first, *read[:-1]], strict=True)),
            ]
            assert found[b].tolist() == pytest.approx(expected, rel=1e-5)
        assert torch.allclose(plan_cost(model, states, actions, goal, before), found.sum(1))


def recurrent_spec(norm="tied", encoder_norm="layer"):
    """A GRU cell for dynamics, with the LayerNorm that ends the encoder."""
    spec = small_spec()
    eyes = Module(inputs=("observation",), blocks=(Mlp(layers=(Layer(out=6, norm=encoder_norm),)),))
    dynamics = Module(inputs=("state", "action"), combine="cell", blocks=(Gru(hidden=6, norm=norm),))
    return dataclasses.replace(spec, modules={"eyes": eyes, "dynamics": dynamics})


def test_a_gru_steps_as_torchs_does():
    torch.manual_seed(0)
    model = WorldModel(recurrent_spec())
    gru = torch.nn.GRU(2, 6)
    own = model.state_dict()
    gru.load_state_dict(
        {f"{name}_l0": own[f"dynamics.0.{name}"] for name, _ in torch.nn.GRUCell(2, 6).named_parameters()}
    )
    state, action = numbers(5, 6), numbers(5, 2)
    _, stepped = gru(model.normalise(action)[None], state[None])
    norm = [own[f"eyes.0.norm0.{part}"] for part in ("weight", "bias")]
    assert torch.allclose(model.step(state, action), functional.layer_norm(stepped[0], (6,), *norm), atol=1e-6)


def test_a_tied_norm_stays_tied_in_training_and_in_the_file(tmp_path):
    torch.manual_seed(0)
    model = WorldModel(recurrent_spec())
    assert len(list(model.parameters())) == 2 + 2 + 4
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    seen, actions = torch.randint(0, 256, (16, 4, 2, 8, 8), dtype=torch.uint8), numbers(16, 3, 2)
    losses = []
    for _ in range(60):
        latents = model.encode(seen)
        predicted = model.rollout(latents[:, 0], actions)
        loss = (predicted - latents[:, 1:].detach()).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    state = model.state_dict()
    assert (state["eyes.0.norm0.weight"] != 1).any()
    assert torch.equal(state["eyes.0.norm0.weight"], state["dynamics.0.norm.weight"])
    model.export(tmp_path / "agent.safetensors")
    engine = pyjepa.Model.load(tmp_path / "agent.safetensors")
    inputs = torch.cat([latents[:, 0], model.normalise(actions[:, 0])], dim=1).detach().numpy()
    with torch.no_grad():
        expected = model.step(torch.from_numpy(inputs[:, :6].copy()), actions[:, 0])
    np.testing.assert_allclose(engine.forward("dynamics", inputs), expected.numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: recurrent_spec(encoder_norm="none"), "does not end in an mlp layer with norm 'layer'"),
        (
            lambda: _with_dynamics(combine="concat"),
            "'gru' is the first block of a module that combines so, and only there",
        ),
        (lambda: _with_dynamics(inputs=("state",)), "combine 'cell' reads exactly"),
        (lambda: _with_dynamics(blocks=(Gru(hidden=5),)), "the hidden state has size 5, the state"),
    ],
)
def test_a_cell_that_does_not_fit_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        WorldModel(change())


def _with_dynamics(**changes):
    spec = recurrent_spec()
    modules = {**spec.modules, "dynamics": dataclasses.replace(spec.modules["dynamics"], **changes)}
    return dataclasses.replace(spec, modules=modules)
