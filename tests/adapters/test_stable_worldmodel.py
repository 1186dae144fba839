"""The engine as stable-worldmodel's solver, and its TD-MPC2 as an agent file."""

from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
gymnasium = pytest.importorskip("gymnasium")

from pyjepa import Agent, Model, agent_file  # noqa: E402
from pyjepa.adapters.stable_worldmodel import CostModel, Solver, lift, load_weights  # noqa: E402
from pyjepa.adapters.torchvision import import_stable_worldmodel  # noqa: E402
from pyjepa.errors import InvalidArgumentError, MissingPackageError, NotReadyError, UnsupportedError  # noqa: E402
from pyjepa.spec import (  # noqa: E402
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
)


def theirs(module):
    """A module of stable-worldmodel; skips where it is not installed, or has no such module."""
    try:
        return import_stable_worldmodel(module)
    except MissingPackageError as error:
        pytest.skip(str(error))


def box(environments=3, width=2, bound=1.0):
    return gymnasium.spaces.Box(-bound, bound, (environments, width), np.float32)


def config(horizon=4, receding=1, block=1):
    return SimpleNamespace(
        horizon=horizon, receding_horizon=receding, history_len=1, action_block=block, warm_start=True
    )


class Far:
    """A cost model: how far the sum of actions is from what `info` asks for."""

    def __init__(self):
        self.calls = 0

    def get_cost(self, info, candidates):
        self.calls += 1
        assert info["wanted"].shape[:2] == candidates.shape[:2]
        return (candidates.sum(dim=2) - info["wanted"][:, :, 0]).norm(dim=-1)


WANTED = torch.tensor([[[2.0, -1.0]], [[-3.0, 0.5]], [[0.0, 3.5]]])


def test_any_cost_model_is_planned_over_by_callback():
    model = Far()
    solver = Solver(model, candidates=100, iterations=12, elites=10, seed=1)
    assert not solver.native
    solver.configure(action_space=box(), n_envs=3, config=config())
    assert (solver.action_dim, solver.n_envs, solver.horizon) == (2, 3, 4)
    found = solver({"wanted": WANTED})
    assert found["actions"].shape == (3, 4, 2)
    assert torch.allclose(found["actions"].sum(dim=1), WANTED[:, 0], atol=0.1)
    assert found["actions"].abs().max() <= 1.0
    assert max(found["costs"]) < 0.15
    assert model.calls >= 36
    assert len(solver.times) == 1


def test_a_plan_goes_on_from_its_own_rest_whoever_else_is_over():
    solver = Solver(Far(), candidates=60, iterations=4, elites=6)
    solver.configure(action_space=box(), n_envs=3, config=config())
    first = solver.solve({"wanted": WANTED})["actions"]
    rests = first[:, 1:]
    assert solver._slot(rests[2].numpy(), set()) == (2, True)
    later = solver.solve({"wanted": WANTED[[2, 0]]}, init_action=rests[[2, 0]])["actions"]
    assert np.array_equal(solver._tails[2], later[0, 1:].numpy())
    assert np.array_equal(solver._tails[0], later[1, 1:].numpy())
    assert np.array_equal(solver._tails[1], rests[1].numpy())
    slot, goes_on = solver._slot(np.zeros((3, 2), np.float32), {0, 2})
    assert (slot, goes_on) == (1, False)


def test_the_same_seed_plans_the_same():
    def once():
        solver = Solver(Far(), candidates=40, iterations=3, elites=5, seed=7)
        solver.configure(action_space=box(), n_envs=3, config=config())
        return solver.solve({"wanted": WANTED})["actions"]

    assert torch.equal(once(), once())


@pytest.mark.parametrize("module", ["stable_worldmodel.solver", "stable_worldmodel.planning.solver"])
def test_it_has_the_structure_of_their_protocol(module):
    protocol = theirs(module).Solver
    assert isinstance(Solver(Far()), protocol)
    assert not isinstance(Far(), protocol)


def test_what_cannot_be_is_said():
    with pytest.raises(InvalidArgumentError, match="object is no agent file and has no get_cost"):
        Solver(object())
    solver = Solver(Far())
    with pytest.raises(NotReadyError, match="call configure first"):
        solver.solve({"wanted": WANTED})
    with pytest.raises(UnsupportedError, match="action space Discrete: only boxes"):
        solver.configure(action_space=gymnasium.spaces.Discrete(3), n_envs=1, config=config())
    with pytest.raises(InvalidArgumentError, match="the action space is not bounded"):
        solver.configure(action_space=box(bound=np.inf), n_envs=3, config=config())
    with pytest.raises(UnsupportedError, match="history_len 3"):
        solver.configure(action_space=box(), n_envs=3, config=SimpleNamespace(history_len=3))


def pictures_spec(hold=True, block=2):
    return Spec(
        observation=Observation(shape=(3, 8, 8), dtype="uint8", scale=1 / 255),
        actions=Actions(low=(-1.0, -1.0), high=(1.0, 1.0)),
        modules={
            "encoder": Module(inputs=("observation",), blocks=(
                Conv(layers=(ConvLayer(out=4, kernel=3, stride=2, activation="relu"),)), Mlp(layers=(Layer(out=6),)))),
            "predictor": Module(inputs=("state", "action"), residual=True, blocks=(
                Mlp(layers=(Layer(out=16, activation="relu"), Layer(out=6))),)),
        },
        levels=(Level(encoder="encoder", predictor="predictor", action_block=block, hold=hold),),
        cost=(CostTerm(kind="goal_distance"),),
        planner=Planner(horizon=8, candidates=40, iterations=4, elites=6),
    )  # fmt: skip


@pytest.fixture(params=[True, False], ids=["hold", "each"])
def pictured(request, tmp_path):
    """An agent of pictures in a file."""
    from pyjepa.world_model import WorldModel

    torch.manual_seed(0)
    path = tmp_path / "agent.safetensors"
    WorldModel(pictures_spec(hold=request.param)).export(path)
    return path


def seen(environments=2):
    rng = np.random.default_rng(0)
    make = lambda: torch.from_numpy(rng.integers(0, 255, (environments, 1, 8, 8, 3), dtype=np.uint8))  # noqa: E731
    return {"pixels": make(), "goal": make()}


def test_an_agent_file_plans_natively(pictured):
    solver = Solver(pictured, seed=3)
    assert solver.native
    solver.configure(action_space=box(2), n_envs=2, config=config(block=2))
    info = seen()
    found = solver.solve(info)
    assert found["actions"].shape == (2, 4, 4)
    agent = Agent(Model.load(pictured))
    first = {key: np.ascontiguousarray(value[1, 0].permute(2, 0, 1).numpy()) for key, value in info.items()}
    agent.configure(goal=first["goal"], horizon=8, seed=4)
    assert np.array_equal(found["actions"][1].numpy().reshape(8, 2), agent.plan(first["pixels"]).actions)


def test_an_agent_of_another_make_is_refused(pictured):
    solver = Solver(pictured)
    with pytest.raises(InvalidArgumentError, match="action_block: the agent's is 2, PlanConfig's 5"):
        solver.configure(action_space=box(2), n_envs=2, config=config(block=5))
    with pytest.raises(InvalidArgumentError, match="the agent has 2 actions, the environment 3"):
        solver.configure(action_space=box(2, width=3), n_envs=2, config=config(block=2))
    solver.configure(action_space=box(2), n_envs=2, config=config(block=2))
    with pytest.raises(InvalidArgumentError, match="info has no 'goal'"):
        solver.solve({"pixels": seen()["pixels"]})


def test_their_solvers_see_the_costs_that_the_engine_sees(pictured):
    info = seen()
    agent = Agent(Model.load(pictured))
    plans = np.random.default_rng(1).uniform(-1, 1, (5, 4, 4)).astype(np.float32)
    hold = agent.spec.levels[0].hold
    if hold:
        plans[..., 2:] = plans[..., :2]
    expanded = {key: value.unsqueeze(1).expand(-1, 5, *value.shape[1:]) for key, value in info.items()}
    costs = CostModel(pictured).get_cost(dict(expanded), torch.from_numpy(np.stack([plans, plans])))
    if hold:
        one_a_step = torch.from_numpy(np.stack([plans, plans])[..., :2])
        assert torch.equal(CostModel(pictured).get_cost(dict(expanded), one_a_step), costs)
    for i in range(2):
        one = {key: np.ascontiguousarray(value[i, 0].permute(2, 0, 1).numpy()) for key, value in info.items()}
        agent.configure(goal=one["goal"], horizon=8)
        agent.observe(one["pixels"])
        ours = agent.evaluate(plans[..., :2] if hold else plans)
        assert np.allclose(costs[i].detach().numpy(), ours, rtol=1e-4)


class Settings(dict):
    __getattr__ = dict.__getitem__


def tdmpc2_state(pixels=False, *, latent=16, hidden=12, actions=2, bins=11, heads=3, inputs=5):
    """Random weights under the names of stable_worldmodel.wm.tdmpc2.TDMPC2."""
    torch.manual_seed(0)
    state = {}

    def dense(name, outs, ins, *, norm=True):
        state[f"{name}.weight"], state[f"{name}.bias"] = torch.randn(outs, ins) / ins**0.5, 0.1 * torch.randn(outs)
        if norm:
            state[f"{name}.ln.weight"], state[f"{name}.ln.bias"] = 1 + 0.1 * torch.randn(outs), 0.1 * torch.randn(outs)

    def mlp(name, ins, outs, *, norm=False):
        dense(f"{name}.0", hidden, ins)
        dense(f"{name}.1", hidden, hidden)
        dense(f"{name}.2", outs, hidden, norm=norm)

    if pixels:
        for j, (outs, ins, k) in enumerate(((32, 3, 7), (32, 32, 5), (32, 32, 3), (32, 32, 3))):
            state[f"cnn.{2 * j}.weight"], state[f"cnn.{2 * j}.bias"] = (
                torch.randn(outs, ins, k, k) / (ins * k * k) ** 0.5,
                0.1 * torch.randn(outs),
            )
        dense("pixel_encoder", latent, 32 * 3 * 3, norm=False)
    else:
        dense("extra_encoders.state.0", hidden, inputs)
        dense("extra_encoders.state.1", latent, hidden, norm=False)
        state["extra_encoders.state.2.weight"], state["extra_encoders.state.2.bias"] = (
            torch.ones(latent),
            torch.zeros(latent),
        )
    mlp("dynamics", latent + actions, latent, norm=True)
    mlp("reward", latent + actions, bins)
    mlp("pi", latent, 2 * actions)
    for i in range(heads):
        mlp(f"qs.{i}", latent + actions, bins)
    return state


OPTIONS = {"value_range": (-3.0, 3.0), "discount": 0.9, "uncertainty_penalty": 0.0}


def reference_cost(state, z, plans, heads=3):
    """What TDMPC2.get_cost computes without its penalty, written out."""
    from torch.nn import functional as F

    def normed(name, x, act):
        x = F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])
        return act(F.layer_norm(x, x.shape[-1:], state[f"{name}.ln.weight"], state[f"{name}.ln.bias"]))

    def simnorm(x):
        return torch.softmax(x.view(*x.shape[:-1], -1, 8), dim=-1).view(x.shape)

    def mlp(name, x, last=None):
        x = normed(f"{name}.1", normed(f"{name}.0", x, F.mish), F.mish)
        if last is not None:
            return normed(f"{name}.2", x, last)
        return F.linear(x, state[f"{name}.2.weight"], state[f"{name}.2.bias"])

    def number(logits):
        value = (torch.softmax(logits, -1) * torch.linspace(-3, 3, logits.shape[-1])).sum(-1)
        return value.sign() * (value.abs().exp() - 1)

    total, discount = 0.0, 1.0
    z = z.expand(len(plans), -1)
    for t in range(plans.shape[1]):
        za = torch.cat([z, plans[:, t]], -1)
        total = total + discount * number(mlp("reward", za))
        z, discount = mlp("dynamics", za, simnorm), discount * 0.9
    za = torch.cat([z, torch.tanh(mlp("pi", z).chunk(2, -1)[0])], -1)
    q = torch.stack([number(mlp(f"qs.{i}", za)) for i in range(heads)]).mean(0)
    return -(total + discount * q)


def test_tdmpc2_is_lifted_with_parity():
    state = tdmpc2_state()
    model = Model.from_bytes(agent_file.to_bytes(*lift(state, **OPTIONS)))
    agent = Agent(model)
    agent.configure(horizon=3)
    rng = np.random.default_rng(0)
    observation, plans = rng.standard_normal(5).astype(np.float32), rng.uniform(-1, 1, (7, 3, 2)).astype(np.float32)
    agent.observe(observation)
    expected = reference_cost(state, torch.from_numpy(agent.state), torch.from_numpy(plans))
    assert np.allclose(agent.evaluate(plans), expected.numpy(), atol=2e-5)


@pytest.mark.parametrize("pixels", [False, True], ids=["vector", "pictures"])
def test_their_own_module_agrees(pixels):
    module = theirs("stable_worldmodel.wm.tdmpc2")
    wm = Settings(
        tau=0.01, encoding={"pixels": 16} if pixels else {"state": 16}, enc_dim=12, mlp_dim=12, num_bins=11, vmin=-3,
        vmax=3, num_q=2, uncertainty_penalty=0.0, discount=0.9, simnorm_dim=8,
    )  # fmt: skip
    torch.manual_seed(0)
    model = module.TDMPC2(Settings(wm=wm, extra_dims={"state": 5}, action_dim=2, image_size=64)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    agent = Agent(Model.from_bytes(agent_file.to_bytes(*lift(model, scale=1 / 255))))
    agent.configure(horizon=3)
    rng = np.random.default_rng(0)
    plans = rng.uniform(-1, 1, (6, 3, 2)).astype(np.float32)
    if pixels:
        observation = rng.integers(0, 255, (3, 64, 64), dtype=np.uint8)
        info = {"pixels": torch.from_numpy(observation).float()[None, None].expand(1, 6, -1, -1, -1) / 255}
    else:
        observation = rng.standard_normal(5).astype(np.float32)
        info = {"state": torch.from_numpy(observation)[None, None].expand(1, 6, -1)}
    agent.observe(observation)
    with torch.no_grad():
        told = model.get_cost(info, torch.from_numpy(plans)[None])[0].numpy()
    assert np.allclose(agent.evaluate(plans), told, atol=2e-5)


def test_what_cannot_be_lifted_is_named():
    with pytest.raises(UnsupportedError, match=r"uncertainty_penalty 0\.5: no cost term"):
        lift(tdmpc2_state(), value_range=(-3, 3), uncertainty_penalty=0.5)
    with pytest.raises(InvalidArgumentError, match="value_range"):
        lift(tdmpc2_state())
    both = tdmpc2_state() | tdmpc2_state(pixels=True)
    with pytest.raises(UnsupportedError, match="perceives pixels and state: the engine takes one observation"):
        lift(both, **OPTIONS)
    with pytest.raises(InvalidArgumentError, match="image_size"):
        lift(tdmpc2_state(pixels=True), **OPTIONS)
    other = tdmpc2_state()
    other["extra_encoders.state.3.weight"] = torch.zeros(2)
    with pytest.raises(UnsupportedError, match=r"the encoder of 'state' is one of your own: .*state.3.weight"):
        lift(other, **OPTIONS)
    dino = {
        "backbone.embeddings.cls_token": torch.zeros(1),
        "predictor.transformer.layers.0.0.norm.weight": torch.zeros(1),
    }
    with pytest.raises(UnsupportedError, match=r"tokens are a state of their own; its predictor .* nothing modulates"):
        lift(dino)
    with pytest.raises(UnsupportedError, match=r"none of PLDM, LeWM, DINO-WM and TD-MPC2 \(it has: wheel\)"):
        lift({"wheel.weight": torch.zeros(1)})


def test_encoders_of_ones_own_are_refused_by_name():
    module = theirs("stable_worldmodel.wm.lewm")
    parts = theirs("stable_worldmodel.wm.lewm.module")
    predictor = parts.Predictor(num_frames=1, depth=1, heads=1, mlp_dim=8, input_dim=8, hidden_dim=8, dim_head=8)
    model = module.LeWM(torch.nn.Identity(), predictor, parts.Embedder(2, 2, 8), parts.MLP(8, 8))
    with pytest.raises(UnsupportedError, match="only Hugging Face's ViTModel"):
        lift(model)
    assert not Solver(model).native
    with pytest.raises(UnsupportedError, match="only Hugging Face's ViTModel"):
        Solver(model, native=True)


def test_weights_are_read_without_executing_them(tmp_path):
    torch.save({"a.weight": torch.ones(2)}, tmp_path / "weights.pt")
    assert load_weights(tmp_path / "weights.pt")["a.weight"].tolist() == [1, 1]
    torch.save({"model": Far()}, tmp_path / "pickled.pt")
    with pytest.raises(InvalidArgumentError, match="a pickled model is not read"):
        load_weights(tmp_path / "pickled.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(InvalidArgumentError, match="expected a state dict of tensors"):
        load_weights(tmp_path / "list.pt")
    with pytest.raises(FileNotFoundError):
        load_weights(tmp_path / "none.pt")
