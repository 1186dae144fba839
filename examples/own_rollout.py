"""Plan over a simulator of your own: a cart that is pushed to a place, and should arrive at rest."""

import numpy as np

import pyjepa
from pyjepa import agent_file
from pyjepa.spec import Actions, Observation, Planner, Spec

DT, TARGET = 0.1, 1.0

spec = Spec(
    observation=Observation(shape=(2,)),  # place and speed, as they are
    actions=Actions(low=(-2.0,), high=(2.0,)),
    planner=Planner(horizon=20, candidates=200, iterations=4, elites=20, knots=6, interpolation="linear"),
)


def step(state, push):
    """States (..., 2) and pushes (...,) to the states one time step later."""
    speed = state[..., 1] + DT * push
    return np.stack([state[..., 0] + DT * speed, speed], axis=-1)


def rollout(states, goals, actions):
    """Costs (E, N) of candidates (E, N, H, 1): distance and speed along the way, both small at the end."""
    state = np.broadcast_to(states[:, None], (*actions.shape[:2], 2))
    cost = np.zeros(actions.shape[:2])
    for t in range(actions.shape[2]):
        state = step(state, actions[:, :, t, 0])
        cost += (state[..., 0] - TARGET) ** 2 + 0.1 * state[..., 1] ** 2
    return cost


agent = pyjepa.Agent(pyjepa.Model.from_bytes(agent_file.to_bytes(spec, {})))
agent.configure(rollout=rollout)
state = np.zeros(2, np.float32)
for t in range(40):
    plan = agent.plan(state)
    state = step(state, plan.actions[0, 0]).astype(np.float32)
    if t % 5 == 4:
        print(f"t = {DT * (t + 1):3.1f} s  place {state[0]:5.2f}  speed {state[1]:5.2f}  cost {plan.cost:6.2f}")
assert abs(state[0] - TARGET) < 0.05, "the cart should have arrived"
