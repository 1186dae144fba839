"""What there is to earn in an environment: the oracles know what the simulator does."""

import numpy as np
import pytest

gymnasium = pytest.importorskip("gymnasium")

from pyjepa.bench import references as R  # noqa: E402


def test_the_linear_rule_balances_the_pole():
    found = R.references("CartPole-v1", episodes=3, seed=7)
    assert found["oracle"]["mean"] == 500
    assert found["random"]["mean"] < 100
    assert "still" not in found


def test_the_oracle_of_reacher_earns_what_it_foresees():
    pytest.importorskip("mujoco")
    env = gymnasium.make("Reacher-v5", reward_control_weight=0.3)
    env.reset(seed=3)
    oracle = R.ReacherOracle(env, 0)
    plans = np.random.default_rng(0).uniform(-1, 1, (4, 9, 2))
    foreseen = oracle.earned(plans)
    assert np.ptp(foreseen) > 0.1
    earned = sum(env.step(action)[1] for action in plans[2])
    assert foreseen[2] == pytest.approx(earned, rel=1e-5)
    env.close()


def test_the_oracle_of_reacher_is_far_better_than_nothing():
    pytest.importorskip("mujoco")
    found = R.references("Reacher-v5", episodes=1, seed=5)
    assert found["oracle"]["mean"] > 0.7 * found["still"]["mean"] > found["random"]["mean"]
