"""Walk to a goal in the other room: load the shipped agent, perceive, plan, act."""

import pyjepa
from pyjepa import agents
from pyjepa.envs import TwoRooms

world = TwoRooms(1)
world.reset(seed=7, cross_room=True)

agent = pyjepa.load(agents.path("two_rooms"))
agent.configure(goal=world.goal_observation[0], seed=0)
while not (world.success[0] or world.truncated[0]):
    agent.observe(world.observation[0])
    plan = agent.plan()
    x, y = world.position[0]
    print(f"step {world.steps[0]:3d}  at ({x:4.1f}, {y:4.1f})  cost {plan.cost:7.2f}  {1e3 * plan.elapsed:5.2f} ms")
    for action in plan.actions[: agent.model.action_block]:
        world.step(action[None])
print("reached the goal" if world.success[0] else "did not reach the goal")
