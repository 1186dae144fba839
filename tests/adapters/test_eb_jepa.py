"""EB-JEPA's two-rooms model as an agent file: against what its modules compute, in plain torch and, where importable,
its own."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch.nn import functional as F  # noqa: E402

from pyjepa import agent_file  # noqa: E402
from pyjepa.adapters import eb_jepa  # noqa: E402
from pyjepa.adapters.stable_worldmodel import load_weights  # noqa: E402
from pyjepa.agent import Agent, Model  # noqa: E402
from pyjepa.errors import AgentFileError, InvalidArgumentError, UnsupportedError  # noqa: E402
from pyjepa.spec import Actions, Planner  # noqa: E402

SHORT = Planner(algorithm="cem", horizon=7, candidates=8, iterations=1, elites=2)


def state_dict(*, channels=(4, 6, 5), latent=24, side=33, inputs=2, norm=True, training=True):
    """Random weights under the names of a `JEPA` of `ImpalaEncoder` and `RNNPredictor`."""
    generator = torch.Generator().manual_seed(0)
    state = {}

    def dense(name, *shape):
        state[f"{name}.weight"] = torch.randn(shape, generator=generator) * float(np.prod(shape[1:])) ** -0.5
        state[f"{name}.bias"] = 0.2 * torch.randn(shape[0], generator=generator)

    seen = 2
    for s, out in enumerate(channels):
        dense(f"encoder.stack_blocks.{s}.initial_conv", out, seen, 3, 3)
        for r in range(2):
            for c in (1, 2):
                dense(f"encoder.stack_blocks.{s}.blocks.{r}.conv{c}", out, out, 3, 3)
        seen, side = out, (side + 1) // 2
    dense("encoder.mlp", latent, seen * side * side)
    for part, *shape in (("weight_ih", inputs), ("weight_hh", latent), ("bias_ih",), ("bias_hh",)):
        drawn = torch.randn((3 * latent, *shape), generator=generator)
        state[f"predictor.rnn.{part}_l0"] = drawn * (0.8 if shape == [inputs] else latent**-0.5)
    if norm:
        weight, bias = (
            1 + 0.2 * torch.randn(latent, generator=generator),
            0.2 * torch.randn(latent, generator=generator),
        )
        for owner in ("encoder", "predictor"):  # one module, which both hold
            state[f"{owner}.final_ln.weight"], state[f"{owner}.final_ln.bias"] = weight, bias
    if training:
        dense("regularizer.idm_loss_fn.idm.model.0", 16, 2 * latent)
    return state


class Reference:
    """What the model computes from a state dict, written out in double precision."""

    def __init__(self, state):
        self.state = {name: value.double() for name, value in state.items()}

    def convolve(self, name, x):
        return F.conv2d(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"], padding=1)

    def norm(self, owner, x):
        if f"{owner}.final_ln.weight" not in self.state:
            return x
        return F.layer_norm(x, x.shape[-1:], *(self.state[f"{owner}.final_ln.{part}"] for part in ("weight", "bias")))

    def encode(self, images):
        """Normalised images (B, 2, H, W) -> latents (B, L)."""
        x, s = torch.as_tensor(images).double(), 0
        while f"encoder.stack_blocks.{s}.initial_conv.weight" in self.state:
            stage = f"encoder.stack_blocks.{s}"
            x = F.max_pool2d(self.convolve(f"{stage}.initial_conv", x), 3, 2, 1)
            for r in range(2):
                inner = self.convolve(f"{stage}.blocks.{r}.conv1", x).relu()
                x = (x + self.convolve(f"{stage}.blocks.{r}.conv2", inner)).relu()
            s += 1
        return self.norm(
            "encoder", F.linear(x.flatten(1), self.state["encoder.mlp.weight"], self.state["encoder.mlp.bias"])
        )

    def predict(self, latents, actions):
        """Latents (B, L) and actions (B, A) -> latents (B, L)."""
        parts = {
            part: self.state[f"predictor.rnn.{part}_l0"] for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        }
        reset, update, new = F.linear(actions, parts["weight_ih"], parts["bias_ih"]).chunk(3, dim=1)
        r, z, n = F.linear(latents, parts["weight_hh"], parts["bias_hh"]).chunk(3, dim=1)
        r, z = (reset + r).sigmoid(), (update + z).sigmoid()
        return self.norm("predictor", (1 - z) * (new + r * n).tanh() + z * latents)

    def costs(self, image, goal, plans):
        """Mean squared distances of the states that plans (N, S, A) lead to, summed over them: (N,)."""
        state, target = self.encode(image[None]), self.encode(goal[None])
        state, total = state.expand(len(plans), -1), 0
        for t in range(plans.shape[1]):
            state = self.predict(state, torch.as_tensor(plans[:, t]).double())
            total = total + (state - target).square().mean(1)
        return total.numpy()


def pictures(side, count=2):
    """Bytes (count, 2, side, side): a blurred dot and a wall."""
    rng = np.random.default_rng(0)
    found = np.zeros((count, 2, side, side), np.uint8)
    y, x = np.mgrid[:side, :side]
    for i in range(count):
        cy, cx = rng.uniform(6, side - 6, 2)
        found[i, 0] = 255 * np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / 3.4)
    found[:, 1, :, side // 2] = found[:, 1, [4, -5]] = 255
    return found


def engine_of(state, **options):
    return Model.from_bytes(agent_file.to_bytes(*eb_jepa.lift(state, **options)))


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ({}, {"image_size": 33}),
        ({"side": 65, "channels": (16, 32, 32), "latent": 512}, {}),  # as its recipe has it
        ({"side": 12, "channels": (3,), "latent": 8, "inputs": 3}, {"image_size": 12}),
        ({"norm": False}, {"image_size": 33}),
    ],
    ids=["small", "whole", "one-stage", "no-norm"],
)
def test_latents_steps_and_costs_are_the_models(shape, options):
    state = state_dict(**shape)
    reference, model = Reference(state), engine_of(state, planner=SHORT, **options)
    side, inputs = model.spec.observation.shape[-1], len(model.spec.actions.low)
    seen = eb_jepa.normalised(pictures(side))
    latents = model.encode(seen)
    expected = reference.encode(seen).numpy()
    assert np.linalg.norm(latents - expected) < 1e-5 * np.linalg.norm(expected)
    rng = np.random.default_rng(1)
    state_now, ours = torch.from_numpy(expected), expected.astype(np.float32)
    for _ in range(12):
        action = rng.uniform(-2, 2, (2, inputs)).astype(np.float32)
        state_now = reference.predict(state_now, torch.from_numpy(action).double())
        ours = model.forward("predictor", np.concatenate([ours, action], axis=1))
        assert np.linalg.norm(ours - state_now.numpy()) < 1e-5 * np.linalg.norm(state_now.numpy())
    plans = rng.uniform(-2, 2, (8, 7, inputs)).astype(np.float32)
    agent = Agent(model)
    agent.configure(goal=seen[1])
    agent.observe(seen[0])
    np.testing.assert_allclose(agent.evaluate(plans), reference.costs(seen[0], seen[1], plans), rtol=1e-5)


def test_its_planner_and_bounds_are_in_the_file():
    spec, _ = eb_jepa.lift(state_dict(), image_size=33, name="rooms")
    assert (spec.name, spec.observation.shape, spec.observation.dtype) == ("rooms", (2, 33, 33), "float32")
    assert (spec.actions.low, spec.actions.high, spec.actions.scale) == ((-2.45, -2.45), (2.45, 2.45), (1.0, 1.0))
    planner = spec.planner
    assert (planner.algorithm, planner.horizon, planner.candidates, planner.iterations) == ("mppi", 90, 200, 20)
    assert planner.std * 2.45 == pytest.approx(2.0)
    assert spec.modules["predictor"].blocks[0].norm == "tied"
    assert eb_jepa.lift(state_dict(norm=False), image_size=33)[0].modules["predictor"].blocks[0].norm == "none"
    own = state_dict() | {"predictor.final_ln.bias": torch.zeros(24)}
    assert eb_jepa.lift(own, image_size=33)[0].modules["predictor"].blocks[0].norm == "layer"


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_made_float32(kind):
    state = {name: value.to(kind) for name, value in state_dict().items()}
    _, tensors = eb_jepa.lift(state, image_size=33)
    assert all(tensor.dtype == np.float32 for tensor in tensors.values())
    assert np.array_equal(tensors["encoder.1.linear0.weight"], state["encoder.mlp.weight"].float().numpy())


def test_pictures_are_normalised_one_by_one():
    raw = pictures(33)
    seen = eb_jepa.normalised(raw)
    dot = (raw[0, 0] / raw[0, 0].max() - 0.0026) / 0.0369
    np.testing.assert_allclose(seen[0, 0], dot, rtol=2e-4, atol=1e-4)
    np.testing.assert_allclose(eb_jepa.normalised(raw[1]), seen[1])
    np.testing.assert_allclose(eb_jepa.normalised(raw.astype(np.float32) / 255), seen, rtol=2e-4, atol=2e-4)
    with pytest.raises(InvalidArgumentError, match=r"pictures: shape \(2, 33\)"):
        eb_jepa.normalised(raw[0, 0, :2])


@pytest.mark.parametrize("name", sorted(state_dict(training=False)))
def test_every_tensor_is_asked_for(name):
    """Missing, and of another shape: the message names it."""
    state = state_dict(training=False)
    odd = state | {name: torch.zeros((*state[name].shape, 2))}
    with pytest.raises(InvalidArgumentError, match=rf"tensor '{name}': shape"):
        eb_jepa.lift(odd, image_size=33)
    wider = state | {name: torch.zeros((state[name].shape[0] + 1, *state[name].shape[1:]))}
    with pytest.raises(InvalidArgumentError, match=r"tensor '.*': shape|encoder's last layer reads"):
        eb_jepa.lift(wider, image_size=33)
    gone = {key: value for key, value in state.items() if key != name}
    with pytest.raises((InvalidArgumentError, UnsupportedError), match=name.rpartition(".")[0].split("_l0")[0]):
        eb_jepa.lift(gone, image_size=33)


def test_what_is_wrong_with_a_checkpoint_is_named():
    state = state_dict()
    third = {
        f"encoder.stack_blocks.1.blocks.2.conv{c}.{part}": torch.zeros(2) for c in (1, 2) for part in ("weight", "bias")
    }
    whole = {key: value for key, value in state.items() if not key.startswith("encoder.")}
    other = {key: value for key, value in state.items() if not key.startswith("predictor.")}
    for broken, error, message in (
        (state | {"decoder.weight": torch.zeros(2)}, InvalidArgumentError, "'decoder.weight': unknown"),
        (state | {"encoder.mlp.scale": torch.zeros(2)}, InvalidArgumentError, "'encoder.mlp.scale': unknown"),
        (state | third, UnsupportedError, "encoder.stack_blocks.1: 3 residual blocks"),
        (whole | {"encoder.conv1.weight": torch.zeros(2)}, UnsupportedError, "only ImpalaEncoder is known"),
        (other | {"predictor.predictor.conv1.weight": torch.zeros(2)}, UnsupportedError, "only RNNPredictor is known"),
        (state | {"predictor.rnn.weight_ih_l1": torch.zeros(2)}, UnsupportedError, "a GRU of several layers"),
        (state | {"action_encoder.embedding.weight": torch.zeros(2)}, UnsupportedError, "an encoder of actions"),
        (
            state | {"encoder.mlp.bias": torch.zeros(24, dtype=torch.int64)},
            InvalidArgumentError,
            "torch.int64, expected",
        ),
    ):
        with pytest.raises(error, match=message):
            eb_jepa.lift(broken, image_size=33)
    with pytest.raises(InvalidArgumentError, match=r"image_size: the side of .* is needed: .* 65 x 65"):
        eb_jepa.lift(state)
    with pytest.raises(InvalidArgumentError, match=r"reads 125 numbers, of pictures of 64 x 64 there are 320"):
        eb_jepa.lift(state, image_size=64)
    with pytest.raises(InvalidArgumentError, match="a box of 2 numbers is expected"):
        eb_jepa.lift(state, image_size=33, actions=Actions(low=(-1.0,), high=(1.0,)))
    with pytest.raises(InvalidArgumentError, match=r"'module.*bias': there already under another prefix"):
        eb_jepa.lift(state | {"module.encoder.mlp.bias": torch.zeros(24)}, image_size=33)
    with pytest.raises(AgentFileError, match=r"spec\.actions"):
        agent_file.to_bytes(*eb_jepa.lift(state, image_size=33, actions=Actions(low=(1.0, 1.0), high=(1.0, 1.0))))
    with pytest.raises(AgentFileError, match="non-finite"):
        agent_file.to_bytes(*eb_jepa.lift(state | {"encoder.mlp.bias": torch.full((24,), torch.nan)}, image_size=33))


class Opens:
    """Pickled, it is a call that makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("key", eb_jepa.STATE_DICTS)
def test_a_checkpoint_of_its_training_is_read_and_nothing_in_it_is_run(tmp_path, key):
    """A scheduler is an object of a class: it is skipped, whatever it is."""
    parameter = torch.nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.AdamW([parameter])
    parameter.grad = torch.ones(3)
    optimizer.step()
    warm, cool = torch.optim.lr_scheduler.LinearLR(optimizer), torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 9)
    scheduler = torch.optim.lr_scheduler.SequentialLR(optimizer, [warm, cool], [3])
    state = state_dict()
    checkpoint = {
        "epoch": 3,
        key: {f"_orig_mod.{name}": value for name, value in state.items()},
        "xy_head_state_dict": {"weight": torch.zeros(2)},
        "jepa_optimizer_state_dict": optimizer.state_dict(),
        "jepa_scheduler_state_dict": {"scheduler": scheduler, "total_steps": 9},
        "settings": Opens(str(tmp_path / "executed")),
    }
    torch.save(checkpoint, tmp_path / "latest.pth.tar")
    loaded = load_weights(tmp_path / "latest.pth.tar")
    assert not (tmp_path / "executed").exists()
    assert eb_jepa.is_one(list(loaded))
    assert set(eb_jepa.lift(loaded, image_size=33)[1]) == set(eb_jepa.lift(state, image_size=33)[1])


def test_its_own_modules_agree():
    architectures = pytest.importorskip("eb_jepa.architectures", reason="EB-JEPA (eb_jepa) is not installed")
    jepa = pytest.importorskip("eb_jepa.jepa", reason="EB-JEPA (eb_jepa) is not installed")
    torch.manual_seed(0)
    encoder = architectures.ImpalaEncoder(stack_sizes=(16, 32, 32), input_shape=(2, 65, 65))
    predictor = architectures.RNNPredictor(hidden_size=512, final_ln=encoder.final_ln)
    model = jepa.JEPAbase(encoder, torch.nn.Identity(), predictor).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    seen = eb_jepa.normalised(pictures(65))
    plans = torch.rand(8, 7, 2) * 4 - 2
    with torch.no_grad():
        first, goal = (model.encoder(torch.from_numpy(image)[None, :, None]) for image in seen)
        state, costs = first.expand(8, -1, -1, -1, -1), 0
        for t in range(7):
            state = model.predictor(state, plans[:, t, :, None])
            costs = costs + (state - goal).square().mean(dim=(1, 2, 3, 4))
    engine = engine_of(model.state_dict(), planner=SHORT)
    np.testing.assert_allclose(engine.encode(seen)[0], first.flatten().numpy(), rtol=1e-5, atol=1e-5)
    agent = Agent(engine)
    agent.configure(goal=seen[1])
    agent.observe(seen[0])
    np.testing.assert_allclose(agent.evaluate(plans.numpy()), costs.numpy(), rtol=1e-5)
