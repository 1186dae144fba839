// The C++17 wrapper over the shared library, as an embedding program uses both.
#include <gtest/gtest.h>

#include <array>
#include <chrono>
#include <fstream>
#include <iterator>
#include <string>
#include <thread>
#include <vector>

#include "pyjepa/pyjepa.hpp"

namespace {

using namespace std::chrono_literals;

const std::string images =
    PYJEPA_GOLDEN "/version-1-image.safetensors";  // uint8 (3, 17, 12), one action, no policy
const std::string vectors = PYJEPA_GOLDEN "/version-1.safetensors";  // float32 (5,), two actions, a policy

std::vector<std::uint8_t> picture(int environments, unsigned shade) {
    std::vector<std::uint8_t> out(static_cast<std::size_t>(environments) * 3 * 17 * 12);
    for (std::size_t i = 0; i < out.size(); ++i) out[i] = static_cast<std::uint8_t>(i * shade);
    return out;
}

// What `call` throws: its status and words.
template <class F>
void expect_error(pyjepa_status status, const std::string& words, F&& call) {
    try {
        call();
        ADD_FAILURE() << "nothing was thrown, expected: " << words;
    } catch (const pyjepa::Error& error) {
        EXPECT_EQ(error.status(), status) << error.what();
        EXPECT_NE(std::string(error.what()).find(words), std::string::npos)
            << error.what() << " lacks " << words;
    }
}

TEST(Wrapper, PerceivesPlansAndActs) {
    const pyjepa::Model model(vectors);
    EXPECT_EQ(model.dims().observation_dtype, PYJEPA_FLOAT32);
    EXPECT_EQ(model.dims().action_dim, 2);
    EXPECT_NE(model.spec().find("golden version 1"), std::string::npos);

    pyjepa::Agent agent(model, 2);
    const std::array<float, 5> goal{1, 2, 3, 4, 5};
    const float low[2] = {-0.5f, -0.25f}, high[2] = {0.5f, 0.25f};
    agent.configure(pyjepa::Task().with_goal(goal).with_bounds(low, high));
    pyjepa::Plan plan = agent.make_plan();
    EXPECT_EQ(plan.actions.size(), 12u * 2);
    EXPECT_EQ(plan.states.size(), 7u * 8);
    EXPECT_EQ(plan.cost_terms.size(), 3u * 6);

    agent.observe(std::vector<float>{5, 4, 3, 2, 1});
    agent.plan(plan);
    EXPECT_EQ(plan.iterations, 3);
    EXPECT_GT(plan.elapsed.count(), 0.0);
    for (std::size_t i = 0; i < plan.actions.size(); ++i) EXPECT_LE(std::abs(plan.actions[i]), high[i % 2]);
    std::vector<float> state(8), action(2);
    agent.state(state);
    EXPECT_TRUE(std::equal(state.begin(), state.end(), plan.states.begin()));
    agent.act(action);
    EXPECT_NE(action[0], action[1]);

    agent.remember(1);
    agent.observe(std::vector<float>{1, 1, 1, 1, 1}, 3);
    agent.observe(std::vector<float>{2, 2, 2, 2, 2}, 7);
    const pyjepa::Memory memory = agent.memory();
    EXPECT_EQ(memory.steps, std::vector<std::int64_t>{10});
    agent.state(state);
    EXPECT_EQ(memory.states, state);
    EXPECT_GT(memory.costs.at(0), 0.0f);

    agent.plan(plan, 0s);  // no time at all
    EXPECT_EQ(plan.iterations, 0);
    agent.reset();
    expect_error(PYJEPA_NOT_READY, "observe", [&] { agent.plan(plan); });
}

TEST(Wrapper, AgentsOutliveTheirModelAndMove) {
    std::vector<pyjepa::Agent> agents;
    {
        std::ifstream file(images, std::ios::binary);
        const std::vector<char> bytes((std::istreambuf_iterator<char>(file)), {});
        const pyjepa::Model model = pyjepa::Model::parse(bytes.data(), bytes.size());
        agents.emplace_back(model);
    }
    const auto goal = picture(2, 7);
    pyjepa::Task task;
    task.environments = 2;
    agents[0].configure(task.with_goal(goal));
    agents.push_back(agents[0].clone());
    for (pyjepa::Agent& agent : agents) agent.observe(picture(2, 3), 0);
    pyjepa::Plan first = agents[0].make_plan(), second = agents[1].make_plan();
    agents[0].plan(first);
    agents[1].plan(second);
    EXPECT_EQ(first.actions, second.actions);
    EXPECT_EQ(first.cost.size(), 2u);
}

TEST(Wrapper, ErrorsNameWhatIsWrong) {
    expect_error(PYJEPA_IO, "no-such-file", [] { pyjepa::Model("no-such-file"); });
    expect_error(PYJEPA_INVALID_FILE, "", [] { pyjepa::Model::parse("nonsense", 8); });
    const pyjepa::Model model(images);
    expect_error(PYJEPA_INVALID_ARGUMENT, "threads", [&] { pyjepa::Agent(model, 0); });
    pyjepa::Agent agent(model);
    const auto goal = picture(1, 7);
    const std::vector<float> floats(goal.size());
    expect_error(PYJEPA_NOT_READY, "configure", [&] { agent.observe(goal); });
    expect_error(PYJEPA_NOT_READY, "configure", [&] { agent.make_plan(); });
    expect_error(PYJEPA_INVALID_ARGUMENT, "the goal is float32, expected uint8",
                 [&] { agent.configure(pyjepa::Task().with_goal(floats)); });
    expect_error(PYJEPA_INVALID_ARGUMENT, "weights has 2 floats, expected 1", [&] {
        agent.configure(pyjepa::Task().with_goal(goal).with_weights(std::array<float, 2>{1, 1}));
    });
    expect_error(PYJEPA_INVALID_ARGUMENT, "611 bytes, expected 612",
                 [&] { agent.configure(pyjepa::Task().with_goal({goal.data(), goal.size() - 1})); });
    agent.configure(pyjepa::Task().with_goal(goal));
    expect_error(PYJEPA_INVALID_ARGUMENT, "the observation is float32, expected uint8",
                 [&] { agent.observe(floats); });
    float action[1];
    expect_error(PYJEPA_UNSUPPORTED, "policy", [&] { agent.act(action); });

    pyjepa::Plan plan = agent.make_plan();
    pyjepa::Task longer;
    longer.horizon = 12;
    agent.configure(longer.with_goal(goal));
    agent.observe(goal);
    expect_error(PYJEPA_INVALID_ARGUMENT, "actions has 9 elements, expected 12", [&] { agent.plan(plan); });
}

TEST(Wrapper, APlanWithoutIterationsStillHasStates) {
    const pyjepa::Model model(images);
    pyjepa::Agent agent(model);
    pyjepa::Task task;
    task.iterations = 0;
    const auto goal = picture(1, 7);
    agent.configure(task.with_goal(goal));
    agent.observe(goal);
    pyjepa::Plan plan = agent.make_plan();
    agent.plan(plan);
    EXPECT_EQ(plan.states.size(), 4u * 6);
    EXPECT_NE(plan.states[6], 0.0f);
}

TEST(Wrapper, RolloutsAreFunctionsAndTheirExceptionsArrive) {
    const pyjepa::Model model(images);
    pyjepa::Agent agent(model);
    const auto goal = picture(1, 7);
    std::size_t calls = 0;
    const auto rightmost = [&calls](const pyjepa::Candidates& c) {
        ++calls;
        EXPECT_EQ(c.actions.size(), c.e * c.n * c.h * c.a);
        EXPECT_EQ(c.goals.size(), 6u);
        for (std::size_t i = 0; i < c.n; ++i) {
            c.cost[i] = 0.0f;
            for (std::size_t j = 0; j < c.h; ++j) c.cost[i] -= c.actions[i * c.h + j];
        }
    };
    agent.configure(
        pyjepa::Task().with_goal(goal).with_rollout(rightmost));  // the task is gone, its rollout is not
    pyjepa::Agent twin = agent.clone();
    agent.observe(picture(1, 3));
    pyjepa::Plan plan = agent.make_plan();
    EXPECT_TRUE(plan.states.empty());
    agent.plan(plan);
    EXPECT_LT(plan.cost[0], -7.0f);
    EXPECT_GT(calls, 5u);

    agent.configure(pyjepa::Task().with_goal(goal).with_rollout(
        [](const pyjepa::Candidates&) { throw std::out_of_range("the table ends here"); }));
    agent.observe(picture(1, 3));
    EXPECT_THROW(agent.plan(plan), std::out_of_range);

    const std::size_t before = calls;
    twin.observe(picture(1, 3));
    twin.plan(plan);  // it still has the first rollout
    EXPECT_GT(calls, before);
}

TEST(Wrapper, APlanStopsWhenAsked) {
    const pyjepa::Model model(images);
    pyjepa::Agent agent(model);
    pyjepa::Task task;
    task.candidates = 100000;
    task.iterations = 10000;
    const auto goal = picture(1, 7);
    agent.configure(task.with_goal(goal));
    agent.observe(picture(1, 3));
    pyjepa::Plan plan = agent.make_plan();
    int left = 2;
    EXPECT_FALSE(agent.plan(plan, std::nullopt, [&left] { return --left == 0; }));
    EXPECT_EQ(left, 0);
    EXPECT_LT(plan.iterations, 10000);
    EXPECT_THROW(agent.plan(plan, std::nullopt, []() -> bool { throw std::out_of_range("enough"); }),
                 std::out_of_range);
    EXPECT_TRUE(agent.plan(plan, pyjepa::Seconds(1e-3)));
}

// Several agents of several models at once, each with threads of its own, find what each finds alone.
TEST(Wrapper, AgentsInThreadsOfTheirOwn) {
    const auto goal = picture(1, 7), seen = picture(1, 3);
    const std::array<float, 5> goal_vector{1, 2, 3, 4, 5}, seen_vector{5, 4, 3, 2, 1};
    const auto work = [&](int i) {
        const pyjepa::Model model(i % 2 == 0 ? images : vectors);
        pyjepa::Agent agent(model, 1 + i % 3);
        std::vector<float> out;
        pyjepa::Task task;
        task.seed = 5;
        if (i % 2 == 0)
            agent.configure(task.with_goal(goal));
        else
            agent.configure(task.with_goal(goal_vector));
        pyjepa::Plan plan = agent.make_plan();
        for (int step = 0; step < 4; ++step) {
            if (i % 2 == 0)
                agent.observe(seen);
            else
                agent.observe(seen_vector);
            agent.plan(plan);
            out.insert(out.end(), plan.actions.begin(), plan.actions.end());
        }
        return out;
    };
    std::vector<std::vector<float>> results(6);
    std::vector<std::thread> threads;
    for (int i = 0; i < 6; ++i)
        threads.emplace_back([&, i] { results[static_cast<std::size_t>(i)] = work(i); });
    for (std::thread& thread : threads) thread.join();
    for (int i = 0; i < 6; ++i) EXPECT_EQ(results[static_cast<std::size_t>(i)], work(i % 2)) << i;
}

TEST(Wrapper, VersionAndInstructionSet) {
    EXPECT_EQ(pyjepa::version().find('.'), 1u);
    EXPECT_FALSE(pyjepa::isa().empty());
}

}  // namespace
