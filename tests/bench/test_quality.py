"""Time to equal quality: the race over budgets, and the plans it times."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from pyjepa import agents
from pyjepa.agent import Model
from pyjepa.bench import quality
from pyjepa.bench.quality import Case, Entrant, Found
from pyjepa.bench.workloads import WORKLOADS
from pyjepa.cli.bench_quality import quality as command


def race(costs, others=(10.0, 10.0, 10.0, 10.0)):
    """``costs``: by budget, of each case; a plan of budget b takes b seconds, on the wall twice as long."""
    cases = [Case(np.float32(i), np.float32(0)) for i in range(len(others))]

    def plan(budget, case):
        return Found(costs(budget)[int(case.start)], float(budget), 2.0 * budget)

    return quality.race(plan, cases, [Found(cost, 100.0, 400.0) for cost in others])


def test_the_least_budget_that_most_cases_reach_counts():
    row = race(lambda budget: [10.0, 10.0, 10.0 if budget >= 3 else 11.0, 99.0])
    assert row["strict"] == {"reached": 0.75, "iterations": 3, "ms": 3000.0, "ratio": 33.333, "wall_ratio": 66.667}
    assert row["equal"] == row["strict"]
    assert (row["states"], row["peer_ms"], row["peer_wall_ms"], row["peer_cost"]) == (4, 1e5, 4e5, 10.0)


def test_half_of_the_cases_are_not_enough_and_none_is_infinitely_long():
    row = race(lambda budget: [0.0, 0.0, 99.0, 99.0])
    nothing = {"reached": 0.5, "iterations": quality.BUDGETS[-1], "ms": None, "ratio": None, "wall_ratio": None}
    assert row["strict"] == row["equal"] == nothing


def test_within_the_tolerance_is_equal_but_not_strictly():
    row = race(lambda budget: [10.005] * 4 if budget < 4 else [10.0] * 4)
    assert (row["equal"]["iterations"], row["strict"]["iterations"]) == (1, 4)
    row = race(lambda budget: [-9.995] * 4, others=(-10.0,) * 4)  # more, though its size is less
    assert (row["equal"]["iterations"], row["strict"]["ms"]) == (1, None)


def test_a_budget_is_of_iterations_that_descend_where_others_come_first():
    assert Entrant("cem", {"elites": 3}).settings(5) == {"elites": 3, "iterations": 5}
    polished = Entrant("hybrid", {"iterations": 3}, polish=True).settings(5)
    assert polished == {"iterations": 8, "polish": 5}


@pytest.mark.parametrize("name", ["W0L", "two-rooms"])
def test_plans_are_those_of_the_workload(name):
    workload = WORKLOADS[name]()
    world = quality.World(workload)
    case = quality.cases(name, workload, 2)[1]
    entrant = Entrant("gradient", {"planner": "gradient", "restarts": 4})
    plan, _ = world.actions(entrant, 3, case)
    found = world.plan(entrant, 3, case)
    assert found.cost == pytest.approx(world.cost(case, plan)) == pytest.approx(world.agent.plan(deadline=0.0).cost)
    assert found.cpu > 0
    assert found.wall >= 0.5 * found.cpu
    later = world.disturbed(entrant, case, 0)
    assert (later.before == case.start).all()
    moved = np.linalg.norm(later.start - case.start)
    again = np.linalg.norm(world.disturbed(entrant, case, 1).start - later.start)
    assert 0.1 * moved < again < moved, "disturbed by less than the step"
    warm = world.plan(entrant, 1, later)
    assert warm.cost < world.plan(entrant, 1, Case(later.start, later.goal)).cost


def test_a_whole_race_tells_what_every_budget_costs():
    cases = [Case(np.float32(i), np.float32(0)) for i in range(3)]
    row = quality.race(
        lambda budget, case: Found(20.0 - budget - float(case.start), float(budget), 1.0),
        cases,
        [Found(10.0, 100.0, 400.0)] * 3,
        budgets=(8, 10, 12),
        whole=True,
    )
    assert row["strict"]["iterations"] == 10, "more is tried, but counts no more"
    assert row["curve"] == [
        {"iterations": 8, "ms": 8000.0, "cost": 1.1, "reached": 0.333333},
        {"iterations": 10, "ms": 10000.0, "cost": 0.9, "reached": 1.0},
        {"iterations": 12, "ms": 12000.0, "cost": 0.7, "reached": 1.0},
    ]


def test_replans_start_where_cold_plans_lead():
    world = quality.Replanning(Model.load(agents.path("two_rooms")))
    for case in world.cases(3):
        moved = np.abs(case.start.astype(int) - case.before).sum()
        assert moved > 0
        assert np.array_equal(case.start[1], case.goal[1]), "the same walls"
        found = world.cold(case)
        agent = world.agent
        agent.configure(goal=case.goal, **quality.COLD_CEM)
        assert found.cost == pytest.approx(agent.plan(case.start).cost, rel=1e-5), "from scratch, warm or not"


def test_replans_are_raced_and_played(tmp_path):
    done = CliRunner().invoke(
        command,
        [
            "replan",
            "--agent",
            str(agents.path("two_rooms")),
            "--states",
            "2",
            "--planner",
            "icem",
            "--json",
            str(tmp_path / "q.json"),
        ],
    )
    assert done.exit_code == 0, done.output
    document = json.loads((tmp_path / "q.json").read_text())
    assert document["agent"]["name"] == "two-rooms"
    cold, warm = document["rows"]
    assert (cold["start"], warm["start"], warm["planner"]) == ("cold", "warm", "icem")
    assert [point["iterations"] for point in warm["curve"]] == list(quality.REPLANS)
    assert warm["curve"][0]["cost"] < cold["curve"][0]["cost"], "one iteration is worth more where it goes on"
    assert "closed_loop" not in cold
    loop = warm["closed_loop"]
    assert (loop["episodes"], loop["success"], loop["iterations"]) == (2, 1.0, quality.REPLANS[-1])
    assert loop["replans"] > 2
    assert loop["ms"] < loop["cold_ms"]
    assert loop["cost"] < 1.1


def test_replans_need_an_agent():
    for arguments in (["replan"], ["practice", "--agent", str(agents.path("two_rooms"))]):
        done = CliRunner().invoke(command, arguments)
        assert done.exit_code == 2
        assert "replan needs --agent, and --agent is for replan alone" in done.output


def test_a_planner_that_the_agent_refuses_has_a_row_that_says_why():
    workload = quality.WORKLOADS["W0s"]()
    low = workload.model("bf16")
    world = quality.Replanning.__new__(quality.Replanning)
    world.agent = quality.Agent(low)
    if low.precision == "fp32":
        pytest.skip("this machine has no bf16 to refuse a gradient in")
    case = Case(workload.observation, workload.goal)
    assert world.refuses(quality.COLD[0], case) is None
    assert "gradient" in world.refuses(quality.COLD[4], case)


def test_practice_is_worth_its_time(tmp_path):
    """A short run of what the docs quote: the shipped agent needs less time than itself without policy and critic."""
    done = CliRunner().invoke(command, ["practice", "--states", "5", "--json", str(tmp_path / "q.json")])
    assert done.exit_code == 0, done.output
    document = json.loads((tmp_path / "q.json").read_text())
    assert document["states"] == 5
    rows = {(row["start"], row["planner"]): row for row in document["rows"]}
    assert len(rows) == len(quality.PRACTISED) * len(quality.UNPRACTISED)
    best = rows["with neither", "gradient"]["strict"]
    assert best["ratio"] > 4
    assert best["iterations"] <= rows["with neither", "gradient, no policy"]["strict"]["iterations"]
