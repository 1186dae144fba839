"""CEM in plain torch: the same problem and settings as the engine's."""

import dataclasses
import itertools

import pytest

torch = pytest.importorskip("torch")

import pyjepa  # noqa: E402
from pyjepa.bench.torch_planner import CrossEntropyPlanner, plan_flops  # noqa: E402
from pyjepa.cost import plan_cost  # noqa: E402
from pyjepa.envs import TwoRooms  # noqa: E402
from pyjepa.spec import (  # noqa: E402
    Actions,
    Layer,
    Level,
    Mlp,
    Module,
    Observation,
    Planner,
    Spec,
)
from pyjepa.training.config import Config  # noqa: E402
from pyjepa.training.two_rooms import build_spec  # noqa: E402
from pyjepa.world_model import WorldModel  # noqa: E402

PLANNER = Planner(horizon=12, candidates=64, iterations=5, elites=8, std=0.5, min_std=0.02)


@pytest.fixture
def point():
    """A world model that is right: the state is a point in the plane, an action moves it."""
    spec = Spec(
        observation=Observation(shape=(2,)),
        actions=Actions(low=(-1.0, -1.0), high=(1.0, 1.0), center=(0.0, 0.0), scale=(1.0, 1.0)),
        modules={
            "encoder": Module(inputs=("observation",), blocks=(Mlp(layers=(Layer(out=2),)),)),
            "predictor": Module(inputs=("state", "action"), blocks=(Mlp(layers=(Layer(out=2),)),), residual=True),
        },
        levels=(Level(encoder="encoder", predictor="predictor", action_block=4, hold=True),),
        planner=PLANNER,
    )
    model = WorldModel(spec)
    state = model.state_dict()
    with torch.no_grad():
        for value in state.values():
            value.zero_()
        state["encoder.0.linear0.weight"].copy_(torch.eye(2))
        state["predictor.0.linear0.weight"][:, 2:] = torch.eye(2)
    return model


def test_it_walks_to_the_goals_of_several_environments(point):
    planner = CrossEntropyPlanner(point, seed=0)
    state = torch.zeros(3, 2)
    goal = torch.tensor([[0.5, -0.5], [2.5, 0.0], [-9.0, 9.0]])
    plans = planner.plan(state, goal)
    assert plans.shape == (3, 3, 2)
    assert plans.abs().max() <= 1
    end = point.rollout(state, plans)[:, -1]
    assert torch.allclose(end[:2], goal[:2], atol=0.15)
    assert torch.allclose(plans[2, 0], torch.tensor([-1.0, 1.0]), atol=0.15)  # out of reach: straight towards it


def test_the_plan_is_never_worse_than_its_warm_start(point):
    planner = CrossEntropyPlanner(point, dataclasses.replace(PLANNER, candidates=8, elites=2, iterations=1), seed=0)
    state, goal = torch.zeros(1, 2), torch.tensor([[1.0, 1.0]])

    def cost(plan):
        return plan_cost(point, point.rollout(state, plan), plan, goal)[0]

    costs = [cost(planner.plan(state, goal)) for _ in range(20)]
    assert all(later <= earlier for earlier, later in itertools.pairwise(costs))
    assert costs[-1] < 0.5 * costs[0]


def test_executed_steps_shift_the_warm_start_and_finished_environments_leave_it(point):
    planner = CrossEntropyPlanner(point, dataclasses.replace(PLANNER, iterations=0), seed=0)
    planner._mean = torch.arange(12.0).reshape(2, 3, 2) / 12
    planner.advance()
    planner.select(torch.tensor([False, True]))
    assert torch.equal(planner._mean, torch.tensor([[[8.0, 9.0], [10.0, 11.0], [10.0, 11.0]]]) / 12)
    planner.reset()
    assert torch.equal(planner.plan(torch.zeros(1, 2), torch.zeros(1, 2)), torch.zeros(1, 3, 2))


@pytest.mark.parametrize(
    ("changes", "message"), [({"horizon": 10}, "no multiple"), ({"algorithm": "mppi"}, "cem"), ({"knots": 2}, "knot")]
)
def test_settings_it_does_not_know_are_an_error(point, changes, message):
    with pytest.raises(ValueError, match=message):
        CrossEntropyPlanner(point, dataclasses.replace(PLANNER, **changes))


def test_the_engine_and_torch_count_the_same_operations_and_find_plans_of_like_cost(tmp_path):
    torch.manual_seed(0)
    model = WorldModel(build_spec(Config()))
    model.export(tmp_path / "agent.safetensors")
    agent = pyjepa.load(tmp_path / "agent.safetensors")
    world = TwoRooms(8)
    agent.configure(goal=world.goal_observation, environments=8)
    plans = agent.plan(world.observation)
    assert plan_flops(model) == 2 * (50 * 128 + 128 * 128 + 128 * 48) * 20 * 128 * 6 <= 1e9
    assert 8 * plan_flops(model) <= agent.settings["flops"] <= 8.1 * plan_flops(model)
    with torch.no_grad():
        state, goal = (model.encode(torch.from_numpy(x)) for x in (world.observation, world.goal_observation))
        found = CrossEntropyPlanner(model, seed=0).plan(state, goal)
        cost = plan_cost(model, model.rollout(state, found), found, goal)
    assert torch.allclose(torch.as_tensor(plans.cost).mean(), cost.mean(), rtol=0.02)
