// The C ABI as an embedding program uses it: allocation, determinism, deadlines, errors.
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <new>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "pyjepa/pyjepa.h"
#include "sample_agent.hpp"

// Every allocation of this program is counted: operator new, and with it malloc where the C library lets us
// in.
namespace {
std::atomic<long> allocations{0};
}

#if defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
extern "C" {
void* __libc_malloc(size_t);
void* __libc_calloc(size_t, size_t);
void* __libc_realloc(void*, size_t);
void* __libc_memalign(size_t, size_t);
void* malloc(size_t n) {
    return ++allocations, __libc_malloc(n);
}
void* calloc(size_t a, size_t b) {
    return ++allocations, __libc_calloc(a, b);
}
void* realloc(void* p, size_t n) {
    return ++allocations, __libc_realloc(p, n);
}
void* aligned_alloc(size_t a, size_t n) {
    return ++allocations, __libc_memalign(a, n);
}
}
#define PYJEPA_COUNTS_ALLOCATIONS 1
#endif

namespace pyjepa {
namespace {

using testing::adaln_spec;
using testing::agent_bytes;
using testing::callback_spec;
using testing::discrete_spec;
using testing::heads_spec;
using testing::pixel_spec;
using testing::recurrent_spec;

struct Loaded {
    explicit Loaded(const char* spec, int threads = 1) {
        const std::string bytes = agent_bytes(spec, 3);
        EXPECT_EQ(pyjepa_model_parse(bytes.data(), bytes.size(), &model), PYJEPA_OK) << pyjepa_last_error();
        EXPECT_EQ(pyjepa_agent_create(model, threads, &agent), PYJEPA_OK) << pyjepa_last_error();
    }
    ~Loaded() {
        pyjepa_agent_free(agent);
        pyjepa_model_free(model);
    }
    pyjepa_model* model = nullptr;
    pyjepa_agent* agent = nullptr;
};

double relative_error(const std::vector<float>& got, const std::vector<float>& expected) {
    double difference = 0.0, size = 0.0;
    for (size_t i = 0; i < got.size(); ++i) {
        difference += (double{got[i]} - double{expected[i]}) * (double{got[i]} - double{expected[i]});
        size += double{expected[i]} * double{expected[i]};
    }
    return std::sqrt(difference / size);
}

std::vector<unsigned char> pixels(int environments, unsigned seed) {
    std::mt19937 generator(seed);
    std::vector<unsigned char> out(static_cast<size_t>(environments) * 2 * 16 * 16);
    for (auto& p : out) p = static_cast<unsigned char>(generator());
    return out;
}

// Every algorithm with every agent that it plans for.
struct Case {
    const char* spec;
    size_t width;  // numbers per action
    int algorithm;
};
const Case every_case[] = {
    {pixel_spec, 2, PYJEPA_CEM},
    {pixel_spec, 2, PYJEPA_MPPI},
    {pixel_spec, 2, PYJEPA_PREDICTIVE_SAMPLING},
    {pixel_spec, 2, PYJEPA_ICEM},
    {pixel_spec, 2, PYJEPA_GRADIENT},
    {pixel_spec, 2, PYJEPA_HYBRID},
    {pixel_spec, 2, PYJEPA_TREE},
    {heads_spec, 2, PYJEPA_CEM},  // no gradient
    {heads_spec, 2, PYJEPA_MPPI},
    {heads_spec, 2, PYJEPA_PREDICTIVE_SAMPLING},
    {heads_spec, 2, PYJEPA_ICEM},
    {heads_spec, 2, PYJEPA_TREE},
    {recurrent_spec, 2, PYJEPA_CEM},
    {recurrent_spec, 2, PYJEPA_GRADIENT},
    {recurrent_spec, 2, PYJEPA_HYBRID},
    {recurrent_spec, 2, PYJEPA_TREE},
    {adaln_spec, 2, PYJEPA_CEM},
    {adaln_spec, 2, PYJEPA_MPPI},
    {adaln_spec, 2, PYJEPA_ICEM},
    {adaln_spec, 2, PYJEPA_GRADIENT},
    {adaln_spec, 2, PYJEPA_HYBRID},
    {discrete_spec, 1, PYJEPA_CATEGORICAL_CEM},
    {discrete_spec, 1, PYJEPA_TREE},
};

struct Result {
    std::vector<float> actions, states, cost, terms;
    int iterations;
    bool operator==(const Result& o) const {
        return actions == o.actions && states == o.states && cost == o.cost && terms == o.terms &&
               iterations == o.iterations;
    }
};

Result plan(pyjepa_agent* agent, int environments, double deadline = 0.0) {
    const auto e = static_cast<size_t>(environments);
    Result r{std::vector<float>(e * 24 * 2), std::vector<float>(e * 7 * 24), std::vector<float>(e),
             std::vector<float>(e * 3 * 6), 0};
    pyjepa_plan_out out{};
    out.size = sizeof out;
    out.actions = r.actions.data();
    out.states = r.states.data();
    out.cost = r.cost.data();
    out.cost_terms = r.terms.data();
    EXPECT_EQ(pyjepa_plan(agent, deadline, &out), PYJEPA_OK) << pyjepa_last_error();
    r.iterations = out.iterations;
    return r;
}

pyjepa_task task_with(const std::vector<unsigned char>& goal, int environments, int algorithm) {
    pyjepa_task task;
    pyjepa_task_init(&task, sizeof task);
    task.environments = environments;
    task.algorithm = algorithm;
    task.goal = goal.data();
    task.goal_bytes = goal.size();
    return task;
}

// Page faults of this process so far.
long faults() {
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    return usage.ru_minflt + usage.ru_majflt;
}

TEST(Abi, NothingIsAllocatedAndNoPageIsTouchedForTheFirstTimeAfterConfigure) {
#ifndef PYJEPA_COUNTS_ALLOCATIONS
    GTEST_SKIP() << "the sanitizer owns malloc";
#endif
    const long before_probe = allocations.load();
    std::free(std::malloc(100));
    ASSERT_GT(allocations.load(), before_probe) << "the counter does not count";
    for (const Case& c : every_case)
        for (const int run : {0, 1, 2, 3}) {
            const int threads = run < 2 ? 1 : 3;
            const bool code_is_loaded = run % 2 == 1;  // by the run before, which did the same
            const std::string what =
                "threads " + std::to_string(threads) + ", algorithm " + std::to_string(c.algorithm);
            Loaded l(c.spec, threads);
            const auto goal = pixels(2, 1), seen = pixels(2, 2);
            pyjepa_task task = task_with(goal, 2, c.algorithm);
            const bool tree = c.algorithm == PYJEPA_TREE;
            if (!tree && c.algorithm != PYJEPA_CATEGORICAL_CEM) {
                task.sampling = threads == 1 ? PYJEPA_GAUSSIAN : PYJEPA_SOBOL;
                task.noise_beta = 1.5f;
            }
            ASSERT_EQ(pyjepa_configure(l.agent, &task), PYJEPA_OK) << pyjepa_last_error();
            ASSERT_EQ(pyjepa_remember(l.agent, 7), PYJEPA_OK);
            pyjepa_settings settings{};
            settings.size = sizeof settings;
            ASSERT_EQ(pyjepa_get_settings(l.agent, &settings), PYJEPA_OK);
            std::vector<float> actions(2 * 24 * 2), states(2 * 7 * 24), cost(2), terms(2 * 3 * 6),
                act(2 * c.width);
            std::vector<float> best(2 * static_cast<size_t>(settings.iterations + 1)), samples(2), spread(2);
            std::vector<int32_t> converged(2);
            pyjepa_plan_out out{};
            out.size = sizeof out;
            out.actions = actions.data();
            out.states = states.data();
            out.cost = cost.data();
            out.cost_terms = terms.data();
            out.best_cost = best.data();
            out.converged = converged.data();
            out.effective_samples = samples.data();
            out.elite_spread = spread.data();
            const long before = allocations.load(), faults_before = faults();
            int failures = 0;
            for (int i = 0; i < 5; ++i) {
                failures += pyjepa_observe(l.agent, seen.data(), seen.size(), -1) != PYJEPA_OK;
                failures += pyjepa_plan(l.agent, i == 3 ? 1e-4 : 0.0, &out) != PYJEPA_OK;
                failures += pyjepa_act(l.agent, act.data(), act.size()) != PYJEPA_OK;
                if (std::strstr(c.spec, "policy_head") != nullptr)  // else it is deterministic
                    failures += pyjepa_explore(l.agent, act.data(), act.size()) != PYJEPA_OK;
                failures += pyjepa_state(l.agent, states.data(), 2 * 24) != PYJEPA_OK;
                if (i == 2) failures += pyjepa_reset(l.agent, 1) != PYJEPA_OK;
            }
            EXPECT_EQ(allocations.load() - before, 0) << what;
            if (code_is_loaded) {
                EXPECT_EQ(faults() - faults_before, 0) << what;
            }
            EXPECT_EQ(failures, 0) << what;
            for (size_t e = 0; e < 2; ++e) {
                const float* history = best.data() + e * static_cast<size_t>(settings.iterations + 1);
                const float within = cost[e] + 0.01f * std::abs(cost[e]);
                for (int i = 0; i < settings.iterations; ++i) EXPECT_GE(history[i], history[i + 1]);
                EXPECT_EQ(history[settings.iterations], cost[e]);
                EXPECT_GE(converged[e], 0);
                EXPECT_LE(converged[e], settings.iterations);
                EXPECT_LE(history[converged[e]], within);
                if (converged[e] > 0) {
                    EXPECT_GT(history[converged[e] - 1], within);
                }
                EXPECT_GE(samples[e], tree ? 0.0f : 1.0f) << what;
                EXPECT_LE(samples[e], tree ? 0.0f : 100.0f) << what;
                // Restarts may all have ended in the same corner, elites of one-hot actions be the same.
                if (c.algorithm == PYJEPA_PREDICTIVE_SAMPLING || tree) {
                    EXPECT_EQ(spread[e], 0.0f);
                } else if (c.algorithm != PYJEPA_GRADIENT && c.algorithm != PYJEPA_HYBRID &&
                           c.algorithm != PYJEPA_CATEGORICAL_CEM) {
                    EXPECT_GT(spread[e], 0.0f) << what;
                }
            }
        }
}

// An encoder of these blocks with so many layers, each of which may go as low as `limit`.
std::string seeing_spec(const std::string& blocks, int layers, const std::string& limit) {
    std::string limits;
    for (int i = 0; i < layers; ++i) limits += (i == 0 ? "\"" : ", \"") + limit + "\"";
    return R"({"observation": {"shape": [3, 15, 9]}, "actions": {"low": [-1], "high": [1]}, "modules": {
        "encoder": {"inputs": ["observation"], "blocks": [)" +
           blocks + R"(, {"kind": "mlp", "layers": [{"out": 24}]}], "quantisation": {"weights": "int8",
        "precisions": [)" +
           limits + R"(]}},
        "predictor": {"inputs": ["state", "action"], "blocks": [{"kind": "mlp", "layers": [{"out": 24}]}]}},
        "levels": [{"encoder": "encoder", "predictor": "predictor"}], "cost": [{"kind": "goal_distance"}],
        "planner": {"horizon": 2}, "version": 1})";
}

TEST(Abi, AnEncoderInALowerPrecisionAllocatesNothingAndNeedsNoThreads) {
    const std::pair<const char*, int> encoders[] = {
        {R"({"kind": "conv", "layers": [{"out": 5, "kernel": 4, "stride": 2, "activation": "gelu"},
                                        {"out": 21, "kernel": 3, "padding": 1, "activation": "relu"}]})",
         3},
        {R"({"kind": "impala", "channels": [7, 16]})", 11},
        {R"({"kind": "vit", "patch": 3, "width": 20, "depth": 2, "heads": 4, "hidden": 33})", 10},
    };
    constexpr size_t environments = 3, size = 3 * 15 * 9, latent = 24;
    std::mt19937 generator(5);
    std::normal_distribution<float> normal;
    std::vector<float> seen(environments * size);
    for (float& s : seen) s = normal(generator);
    for (const auto& [blocks, layers] : encoders) {
        std::vector<float> full;
        for (const auto& [limit, precision] : {std::pair<const char*, int32_t>{"fp32", PYJEPA_INT8},
                                               {"bf16", PYJEPA_BF16},
                                               {"int8", PYJEPA_INT8}}) {
            const std::string bytes = agent_bytes(seeing_spec(blocks, layers, limit), 3);
            std::vector<float> first;
            for (const int threads : {1, 2, 3}) {
                pyjepa_model* model = nullptr;
                pyjepa_agent* agent = nullptr;
                ASSERT_EQ(pyjepa_model_parse_as(bytes.data(), bytes.size(), precision, &model), PYJEPA_OK)
                    << pyjepa_last_error();
                ASSERT_EQ(pyjepa_agent_create(model, threads, &agent), PYJEPA_OK);
                pyjepa_task task;
                pyjepa_task_init(&task, sizeof task);
                task.environments = environments;
                task.goal = seen.data();
                task.goal_bytes = sizeof(float) * seen.size();
                ASSERT_EQ(pyjepa_configure(agent, &task), PYJEPA_OK) << pyjepa_last_error();
                std::vector<float> states(environments * latent);
                const long before = allocations.load();
                EXPECT_EQ(pyjepa_observe(agent, seen.data(), sizeof(float) * seen.size(), -1), PYJEPA_OK);
                EXPECT_EQ(allocations.load(), before) << blocks;
                EXPECT_EQ(pyjepa_state(agent, states.data(), states.size()), PYJEPA_OK);
                if (threads == 1) first = states;
                EXPECT_EQ(states, first) << blocks << ", " << limit << ", threads " << threads;
                pyjepa_agent_free(agent);
                pyjepa_model_free(model);
            }
            if (full.empty()) full = first;
            const double error = relative_error(first, full);
            EXPECT_LT(error, 0.05) << blocks << ", " << limit;
            EXPECT_EQ(error > 0.0,
                      std::strcmp(limit, "fp32") != 0 && *pyjepa_precision_isa(precision) != '\0')
                << blocks << ", " << limit;
        }
    }
}

TEST(Abi, WhatWasTakenIsLookedBackOn) {
    constexpr size_t d = 8, n = 5, size = 6 * d;  // four steps of two actions
    Loaded l(adaln_spec, 2);
    const auto goal = pixels(2, 1), seen = pixels(2, 2), other = pixels(2, 3);
    const pyjepa_task task = task_with(goal, 2, PYJEPA_CEM);
    ASSERT_EQ(pyjepa_configure(l.agent, &task), PYJEPA_OK) << pyjepa_last_error();
    std::mt19937 generator(4);
    std::uniform_real_distribution<float> uniform(-2.9f, 2.9f);
    std::vector<float> plans(2 * n * size), taken(2 * d);
    for (float& p : plans) p = uniform(generator);
    for (float& t : taken) t = uniform(generator);
    const auto evaluated = [&] {
        std::vector<float> cost(2 * n);
        EXPECT_EQ(pyjepa_evaluate(l.agent, plans.data(), n, cost.data(), nullptr), PYJEPA_OK);
        return cost;
    };
    const auto observe = [&](const std::vector<unsigned char>& what, bool told) {
        return told ? pyjepa_observe_taken(l.agent, what.data(), what.size(), -1, taken.data(), taken.size())
                    : pyjepa_observe(l.agent, what.data(), what.size(), -1);
    };
    ASSERT_EQ(observe(seen, false), PYJEPA_OK);
    const std::vector<float> alone = evaluated();
    std::vector<std::vector<float>> looked_back;
    for (const auto& first : {other, seen}) {
        ASSERT_EQ(observe(first, false), PYJEPA_OK);
        const long before = allocations.load();
        for (int i = 0; i < 4; ++i) ASSERT_EQ(observe(other, true), PYJEPA_OK);
        ASSERT_EQ(observe(seen, true), PYJEPA_OK);
        EXPECT_EQ(allocations.load(), before);
        looked_back.push_back(evaluated());
    }
    EXPECT_NE(looked_back[0], alone);
    EXPECT_EQ(looked_back[0], looked_back[1]);  // what no longer fits in the window is forgotten
    ASSERT_EQ(pyjepa_reset(l.agent, 1), PYJEPA_OK);
    ASSERT_EQ(observe(seen, true), PYJEPA_OK);
    const std::vector<float> half = evaluated();
    for (size_t i = n; i < 2 * n; ++i) EXPECT_EQ(half[i], alone[i]);
    EXPECT_NE(half[0], alone[0]);

    const auto refused = [&](const float* what, size_t count, int32_t steps, const char* message) {
        EXPECT_EQ(pyjepa_observe_taken(l.agent, seen.data(), seen.size(), steps, what, count),
                  PYJEPA_INVALID_ARGUMENT);
        EXPECT_NE(std::string(pyjepa_last_error()).find(message), std::string::npos) << pyjepa_last_error();
    };
    refused(nullptr, taken.size(), -1, "taken is NULL");
    refused(taken.data(), d, -1, "taken has 8 numbers, expected 16");
    refused(taken.data(), taken.size(), 3, "steps must be 4, got 3");
    taken[3] = std::nanf("");
    refused(taken.data(), taken.size(), -1, "taken is not finite: element 3");
    EXPECT_EQ(evaluated(), half);  // what is refused changes nothing
}

TEST(Abi, ThreadsDoNotChangeABit) {
    const auto goal = pixels(1, 1), seen = pixels(1, 2);
    for (const Case& c : every_case) {
        std::vector<Result> results;
        for (const int threads : {1, 2, 3, 5}) {
            Loaded l(c.spec, threads);
            pyjepa_task task = task_with(goal, 1, c.algorithm);
            if (c.algorithm == PYJEPA_MPPI || c.algorithm == PYJEPA_ICEM || c.algorithm == PYJEPA_HYBRID)
                task.sampling = PYJEPA_SOBOL;
            ASSERT_EQ(pyjepa_configure(l.agent, &task), PYJEPA_OK) << pyjepa_last_error();
            for (int i = 0; i < 3; ++i) {
                ASSERT_EQ(pyjepa_observe(l.agent, seen.data(), seen.size(), -1), PYJEPA_OK);
                results.push_back(plan(l.agent, 1));
            }
        }
        for (size_t i = 3; i < results.size(); ++i) EXPECT_TRUE(results[i] == results[i % 3]) << i;
        // The warm start moved on; where the first plan was a minimum, there is nowhere to go.
        if (c.algorithm != PYJEPA_GRADIENT && c.algorithm != PYJEPA_HYBRID) {
            EXPECT_FALSE(results[0] == results[1]);
        }
    }
}

TEST(Abi, ManyMoreThreadsThanProcessorsDoNotChangeABit) {
    // Threads are preempted in the middle of tiles all the time, and what they read is changed, replaced and
    // freed meanwhile.
    const auto goal = pixels(2, 1), seen = pixels(2, 2);
    for (const int algorithm : {PYJEPA_CEM, PYJEPA_ICEM, PYJEPA_HYBRID}) {
        const pyjepa_task task = task_with(goal, 2, algorithm);
        std::vector<Result> expected;
        for (const int threads : {1, 16})
            for (int round = 0; round < (threads == 1 ? 1 : 3); ++round) {
                Loaded l(pixel_spec, threads);
                for (int configured = 0; configured < 2; ++configured) {
                    ASSERT_EQ(pyjepa_configure(l.agent, &task), PYJEPA_OK) << pyjepa_last_error();
                    for (size_t i = 0; i < 10; ++i) {
                        ASSERT_EQ(pyjepa_observe(l.agent, seen.data(), seen.size(), -1), PYJEPA_OK);
                        const Result r = plan(l.agent, 2);
                        if (threads == 1 && configured == 0) expected.push_back(r);
                        ASSERT_TRUE(r == expected[i]) << "threads " << threads << ", plan " << i;
                        if (i != 5) continue;
                        ASSERT_EQ(pyjepa_reset(l.agent, 0), PYJEPA_OK);
                        if (threads > 1 && configured == 0) break;
                    }
                }
            }
    }
}

class Batch : public ::testing::TestWithParam<Case> {};
INSTANTIATE_TEST_SUITE_P(EveryPlanner, Batch, ::testing::ValuesIn(every_case));

TEST_P(Batch, PlansAsItsMembersAlone) {
    const auto goals = pixels(3, 1), seen = pixels(3, 2);
    const size_t one = goals.size() / 3;
    const auto& [spec, width, algorithm] = GetParam();
    Loaded batch(spec, 2);
    const pyjepa_task task = task_with(goals, 3, algorithm);
    ASSERT_EQ(pyjepa_configure(batch.agent, &task), PYJEPA_OK);
    std::vector<Result> together;
    for (int i = 0; i < 2; ++i) {
        ASSERT_EQ(pyjepa_observe(batch.agent, seen.data(), seen.size(), -1), PYJEPA_OK);
        together.push_back(plan(batch.agent, 3));
    }
    for (size_t e = 0; e < 3; ++e) {
        Loaded single(spec);
        const std::vector<unsigned char> goal(goals.begin() + static_cast<ptrdiff_t>(e * one),
                                              goals.begin() + static_cast<ptrdiff_t>((e + 1) * one));
        const pyjepa_task own = task_with(goal, 1, algorithm);
        ASSERT_EQ(pyjepa_configure(single.agent, &own), PYJEPA_OK);
        for (const Result& all : together) {
            ASSERT_EQ(pyjepa_observe(single.agent, seen.data() + e * one, one, -1), PYJEPA_OK);
            const Result alone = plan(single.agent, 1);
            EXPECT_TRUE(std::equal(alone.actions.begin(),
                                   alone.actions.begin() + static_cast<ptrdiff_t>(24 * width),
                                   all.actions.begin() + static_cast<ptrdiff_t>(e * 24 * width)));
            EXPECT_TRUE(std::equal(alone.states.begin(), alone.states.end(),
                                   all.states.begin() + static_cast<ptrdiff_t>(e) * 7 * 24));
            EXPECT_EQ(alone.cost[0], all.cost[e]);
        }
    }
}

TEST(Abi, TheCostIsTheSumOfItsTerms) {
    Loaded l(pixel_spec);
    const auto goal = pixels(1, 1), seen = pixels(1, 2);
    const pyjepa_task task = task_with(goal, 1, PYJEPA_CEM);
    ASSERT_EQ(pyjepa_configure(l.agent, &task), PYJEPA_OK);
    ASSERT_EQ(pyjepa_observe(l.agent, seen.data(), seen.size(), -1), PYJEPA_OK);
    for (int i = 0; i < 2; ++i) {
        const Result r = plan(l.agent, 1);
        double total = 0.0;
        for (const float t : r.terms) total += t;
        EXPECT_NEAR(total, r.cost[0], 1e-4);
        EXPECT_GT(r.terms[6], 0.0f);           // action_size
        EXPECT_EQ(r.terms[12] > 0.0f, i > 0);  // action_change at step 0: only against an action before
        ASSERT_EQ(pyjepa_observe(l.agent, seen.data(), seen.size(), -1), PYJEPA_OK);
    }
}

TEST(Abi, GradientsAreTheSlopesOfTheCost) {
    Loaded l(pixel_spec, 2);
    const auto goal = pixels(2, 1), seen = pixels(2, 2);
    const pyjepa_task task = task_with(goal, 2, PYJEPA_CEM);
    ASSERT_EQ(pyjepa_configure(l.agent, &task), PYJEPA_OK);
    ASSERT_EQ(pyjepa_observe(l.agent, seen.data(), seen.size(), -1), PYJEPA_OK);
    constexpr size_t size = 6 * 2, n = 31;
    std::mt19937 generator(4);
    std::uniform_real_distribution<float> uniform(-2.9f, 2.9f);
    std::normal_distribution<float> normal;
    std::vector<float> plans(2 * n * size), gradient(plans.size()), cost(2 * n), same(2 * n);
    for (float& p : plans) p = uniform(generator);
    ASSERT_EQ(pyjepa_evaluate(l.agent, plans.data(), n, cost.data(), gradient.data()), PYJEPA_OK)
        << pyjepa_last_error();
    ASSERT_EQ(pyjepa_evaluate(l.agent, plans.data(), n, same.data(), nullptr), PYJEPA_OK);
    std::vector<float> direction(plans.size()), up(plans), down(plans), above(2 * n), below(2 * n);
    for (size_t i = 0; i < plans.size(); ++i) {
        direction[i] = normal(generator);
        up[i] += 3e-3f * direction[i];
        down[i] -= 3e-3f * direction[i];
    }
    ASSERT_EQ(pyjepa_evaluate(l.agent, up.data(), n, above.data(), nullptr), PYJEPA_OK);
    ASSERT_EQ(pyjepa_evaluate(l.agent, down.data(), n, below.data(), nullptr), PYJEPA_OK);
    double error = 0.0, total = 0.0;
    for (size_t i = 0; i < 2 * n; ++i) {
        EXPECT_NEAR(cost[i], same[i], 1e-5 * same[i]);
        double along = 0.0;
        for (size_t j = 0; j < size; ++j)
            along += double{gradient[i * size + j]} * double{direction[i * size + j]};
        const double slope = (double{above[i]} - double{below[i]}) / 6e-3;
        error += (along - slope) * (along - slope);
        total += slope * slope;
    }
    EXPECT_GT(total, 1.0);
    EXPECT_LT(std::sqrt(error / total), 0.01);  // ReLUs that switch between the two
    EXPECT_EQ(pyjepa_evaluate(l.agent, plans.data(), 0, cost.data(), nullptr), PYJEPA_INVALID_ARGUMENT);
    EXPECT_EQ(pyjepa_evaluate(l.agent, nullptr, 1, cost.data(), nullptr), PYJEPA_INVALID_ARGUMENT);
}

TEST(Abi, AfterAResetTheEpisodeRepeatsItself) {
    Loaded l(pixel_spec);
    const auto goal = pixels(2, 1), seen = pixels(2, 2);
    const pyjepa_task task = task_with(goal, 2, PYJEPA_MPPI);
    ASSERT_EQ(pyjepa_configure(l.agent, &task), PYJEPA_OK);
    std::vector<Result> episodes[2];
    for (auto& episode : episodes) {
        for (int i = 0; i < 3; ++i) {
            ASSERT_EQ(pyjepa_observe(l.agent, seen.data(), seen.size(), i == 0 ? 0 : 4), PYJEPA_OK);
            episode.push_back(plan(l.agent, 2));
        }
        ASSERT_EQ(pyjepa_reset(l.agent, -1), PYJEPA_OK);
        float state[48];
        EXPECT_EQ(pyjepa_state(l.agent, state, 48), PYJEPA_NOT_READY);
    }
    EXPECT_TRUE(episodes[0] == episodes[1]);
}

TEST(Abi, DeadlinesEndAPlanEarly) {
    Loaded l(pixel_spec, 2);
    const auto goal = pixels(1, 1), seen = pixels(1, 2);
    pyjepa_task task = task_with(goal, 1, PYJEPA_CEM);
    task.candidates = 500;
    task.iterations = 10000;
    ASSERT_EQ(pyjepa_configure(l.agent, &task), PYJEPA_OK);
    ASSERT_EQ(pyjepa_observe(l.agent, seen.data(), seen.size(), -1), PYJEPA_OK);
    const auto start = std::chrono::steady_clock::now();
    const Result r = plan(l.agent, 1, 0.3);  // many iterations even under a sanitizer
    const double took = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    EXPECT_GT(r.iterations, 0);
    EXPECT_LT(r.iterations, 10000);
    EXPECT_LT(took, 5.0);
    EXPECT_TRUE(std::isfinite(r.cost[0]));
    EXPECT_EQ(plan(l.agent, 1, 1e-12).iterations, 0);
}

TEST(Abi, ADeadlineIsOverrunByTilesNotByIterations) {
    using clock = std::chrono::steady_clock;
    for (const int threads : {1, 2}) {
        Loaded l(pixel_spec, threads);
        const auto goal = pixels(1, 1), seen = pixels(1, 2);
        pyjepa_task task = task_with(goal, 1, PYJEPA_MPPI);
        task.candidates = 100000;  // a thousand tiles an iteration
        task.iterations = 1;
        ASSERT_EQ(pyjepa_configure(l.agent, &task), PYJEPA_OK);
        ASSERT_EQ(pyjepa_observe(l.agent, seen.data(), seen.size(), -1), PYJEPA_OK);
        std::vector<double> whole, over;
        const auto took = [&](double deadline, int iterations) {
            const auto start = clock::now();
            EXPECT_EQ(plan(l.agent, 1, deadline).iterations, iterations);
            return std::chrono::duration<double>(clock::now() - start).count();
        };
        for (int i = 0; i < 3; ++i) whole.push_back(took(0.0, 1));
        const double iteration = *std::min_element(whole.begin(), whole.end());
        for (int i = 0; i < 15; ++i) over.push_back(took(iteration / 4, 0) - iteration / 4);
        // The least: a busy machine may disturb the others. By iterations it would be three quarters of one.
        EXPECT_LT(*std::min_element(over.begin(), over.end()), iteration / 4) << threads;
    }
}

TEST(Abi, NoPageFaultsAfterConfigure) {
#ifndef PYJEPA_COUNTS_ALLOCATIONS
    GTEST_SKIP() << "the sanitizer has memory of its own";
#endif
    const auto goal = pixels(2, 1), seen = pixels(2, 2);
    const auto faults = [] {
        rusage usage{};
        getrusage(RUSAGE_SELF, &usage);  // of all threads
        return usage.ru_minflt + usage.ru_majflt;
    };
    std::vector<float> actions(2 * 24 * 2), states(2 * 7 * 24), cost(2), terms(2 * 3 * 6);
    for (const int threads : {1, 2})
        for (const int algorithm : {PYJEPA_CEM, PYJEPA_MPPI, PYJEPA_PREDICTIVE_SAMPLING}) {
            long before = 0, after = 0;
            // The first agent brings in the code; the second, larger one finds all its memory in place.
            for (const int candidates : {64, 3000}) {
                Loaded l(pixel_spec, threads);
                pyjepa_task task = task_with(goal, 2, algorithm);
                task.candidates = candidates;
                ASSERT_EQ(pyjepa_configure(l.agent, &task), PYJEPA_OK) << pyjepa_last_error();
                pyjepa_plan_out out{};
                out.size = sizeof out;
                out.actions = actions.data();
                out.states = states.data();
                out.cost = cost.data();
                out.cost_terms = terms.data();
                int failures = 0;
                // Threads that have just begun touch their stacks and sleep for the first time.
                std::this_thread::sleep_for(std::chrono::milliseconds(20));
                before = faults();
                failures += pyjepa_observe(l.agent, seen.data(), seen.size(), -1) != PYJEPA_OK;
                for (int i = 0; i < 3; ++i) failures += pyjepa_plan(l.agent, 0.0, &out) != PYJEPA_OK;
                after = faults();
                ASSERT_EQ(failures, 0);
            }
            EXPECT_EQ(after - before, 0) << "threads " << threads << ", algorithm " << algorithm;
        }
}

int enough(void* user) {
    return --*static_cast<int*>(user) <= 0;
}

TEST(Abi, APlanCanBeCancelled) {
    Loaded l(pixel_spec, 2);
    const auto goal = pixels(1, 1), seen = pixels(1, 2);
    pyjepa_task task = task_with(goal, 1, PYJEPA_CEM);
    task.candidates = 100000;
    task.iterations = 10000;
    ASSERT_EQ(pyjepa_configure(l.agent, &task), PYJEPA_OK);
    ASSERT_EQ(pyjepa_observe(l.agent, seen.data(), seen.size(), -1), PYJEPA_OK);
    float actions[48], cost = 0.0f;
    pyjepa_plan_out out{};
    out.size = sizeof out;
    out.actions = actions;
    out.cost = &cost;
    int left = 3;
    EXPECT_EQ(pyjepa_plan_cancellable(l.agent, 0.0, &out, enough, &left), PYJEPA_CANCELLED);
    EXPECT_EQ(left, 0);  // asked three times, and no more
    EXPECT_LT(out.iterations, 10000);
    EXPECT_GT(out.elapsed, 0.05);
    EXPECT_TRUE(std::isfinite(cost));
    left = 1;
    EXPECT_EQ(pyjepa_plan_cancellable(l.agent, 1e-3, &out, enough, &left),
              PYJEPA_OK);  // over too soon to ask
    EXPECT_EQ(left, 1);
}

TEST(Abi, AForkedChildPlansAllTheSame) {
    Loaded l(pixel_spec, 2), other(pixel_spec, 2);
    const auto goal = pixels(1, 1), seen = pixels(1, 2);
    const pyjepa_task task = task_with(goal, 1, PYJEPA_CEM);
    for (pyjepa_agent* agent : {l.agent, other.agent}) {
        ASSERT_EQ(pyjepa_configure(agent, &task), PYJEPA_OK);
        ASSERT_EQ(pyjepa_observe(agent, seen.data(), seen.size(), -1), PYJEPA_OK);
    }
    const Result first = plan(l.agent, 1);
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
        alarm(60);  // ends a deadlock
        bool same = plan(other.agent, 1) == first;
#if !defined(__SANITIZE_THREAD__)  // which allows no threads in such a child
        for (pyjepa_agent* agent : {l.agent, other.agent}) {
            same = same && pyjepa_configure(agent, &task) == PYJEPA_OK;  // with threads again
            same = same && pyjepa_observe(agent, seen.data(), seen.size(), -1) == PYJEPA_OK;
            same = same && plan(agent, 1) == first;
        }
#endif
        pyjepa_agent_free(l.agent);
        _exit(same ? 0 : 1);
    }
    int status = -1;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFEXITED(status));
    EXPECT_EQ(WEXITSTATUS(status), 0);
    EXPECT_TRUE(plan(other.agent, 1) == first);  // and the parent goes on
}

TEST(Abi, SecondCallWhileOneRunsIsBusy) {
    Loaded l(pixel_spec);
    const auto goal = pixels(1, 1), seen = pixels(1, 2);
    pyjepa_task task = task_with(goal, 1, PYJEPA_CEM);
    task.candidates = 5000;
    task.iterations = 10000;
    ASSERT_EQ(pyjepa_configure(l.agent, &task), PYJEPA_OK);
    ASSERT_EQ(pyjepa_observe(l.agent, seen.data(), seen.size(), -1), PYJEPA_OK);
    std::thread planning([&] { plan(l.agent, 1, 0.5); });
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    EXPECT_EQ(pyjepa_observe(l.agent, seen.data(), seen.size(), -1), PYJEPA_BUSY);
    planning.join();
    EXPECT_EQ(pyjepa_observe(l.agent, seen.data(), seen.size(), -1), PYJEPA_OK);
}

TEST(Abi, AgentsShareAModelAcrossThreads) {
    Loaded l(pixel_spec);
    const auto goal = pixels(1, 1), seen = pixels(1, 2);
    const pyjepa_task task = task_with(goal, 1, PYJEPA_CEM);
    ASSERT_EQ(pyjepa_configure(l.agent, &task), PYJEPA_OK);
    Result results[4];
    std::vector<std::thread> threads;
    for (Result& result : results)
        threads.emplace_back([&] {
            pyjepa_agent* mine = nullptr;
            // The original may be held by another clone at this moment.
            while (pyjepa_agent_clone(l.agent, &mine) == PYJEPA_BUSY) std::this_thread::yield();
            EXPECT_EQ(pyjepa_observe(mine, seen.data(), seen.size(), -1), PYJEPA_OK);
            result = plan(mine, 1);
            pyjepa_agent_free(mine);
        });
    for (auto& t : threads) t.join();
    for (const Result& r : results) EXPECT_TRUE(r == results[0]);
}

int failing(void*, const float*, const float*, const float*, size_t, size_t, size_t, size_t, size_t, float*) {
    return 7;
}
int forgetful(void*, const float*, const float*, const float*, size_t, size_t, size_t, size_t, size_t,
              float*) {
    return 0;
}
int to_corner(void* user, const float* states, const float*, const float* actions, size_t e, size_t n,
              size_t h, size_t a, size_t l, float* cost) {
    ++*static_cast<int*>(user);
    for (size_t i = 0; i < e * n; ++i) {
        cost[i] = 0.0f;
        for (size_t j = 0; j < h * a; ++j) cost[i] -= actions[i * h * a + j];
    }
    return l == 3 && states[0] == 1.0f ? 0 : 1;
}

TEST(Abi, CallbackRollouts) {
    Loaded l(callback_spec);
    pyjepa_task task;
    pyjepa_task_init(&task, sizeof task);
    EXPECT_EQ(pyjepa_configure(l.agent, &task), PYJEPA_UNSUPPORTED);  // no predictor and no callback
    int calls = 0;
    task.rollout = to_corner;
    task.rollout_user = &calls;
    ASSERT_EQ(pyjepa_configure(l.agent, &task), PYJEPA_OK) << pyjepa_last_error();
    const float seen[3] = {1, 2, 3};
    ASSERT_EQ(pyjepa_observe(l.agent, seen, sizeof seen, -1), PYJEPA_OK);
    float actions[12], cost;
    pyjepa_plan_out out{};
    out.size = sizeof out;
    out.actions = actions;
    out.cost = &cost;
    ASSERT_EQ(pyjepa_plan(l.agent, 0.0, &out), PYJEPA_OK) << pyjepa_last_error();
    EXPECT_EQ(calls, 3 + 1);  // the iterations, and the mean that the last arrived at
    ASSERT_EQ(pyjepa_plan(l.agent, 60.0, &out), PYJEPA_OK) << pyjepa_last_error();
    EXPECT_EQ(calls, 4 + 3 + 2);  // and before them the mean that is returned where the time is too short
    EXPECT_LT(cost, -4.0f);
    task.rollout = failing;
    ASSERT_EQ(pyjepa_configure(l.agent, &task), PYJEPA_OK);
    ASSERT_EQ(pyjepa_observe(l.agent, seen, sizeof seen, -1), PYJEPA_OK);
    EXPECT_EQ(pyjepa_plan(l.agent, 0.0, &out), PYJEPA_CALLBACK);
    EXPECT_NE(std::string(pyjepa_last_error()).find("code 7"), std::string::npos);
    task.rollout = forgetful;
    ASSERT_EQ(pyjepa_configure(l.agent, &task), PYJEPA_OK);
    ASSERT_EQ(pyjepa_observe(l.agent, seen, sizeof seen, -1), PYJEPA_OK);
    EXPECT_EQ(pyjepa_plan(l.agent, 0.0, &out), PYJEPA_CALLBACK);
    EXPECT_NE(std::string(pyjepa_last_error()).find("nan"), std::string::npos);
}

// A second agent that answers in the place of the first one's own rollouts.
struct Elsewhere {
    pyjepa_agent* agent;
    int calls;
    float first;  // added to the first candidate's cost
};
int answer(void* user, const pyjepa_rollout_call* call) {
    auto& there = *static_cast<Elsewhere*>(user);
    ++there.calls;
    EXPECT_EQ(call->size, sizeof(pyjepa_rollout_call));
    EXPECT_EQ(call->environments, 1u);
    EXPECT_EQ(call->steps, 6u);
    EXPECT_EQ(call->plan_dim, 2u);
    EXPECT_EQ(call->latent_dim, 24u);
    EXPECT_TRUE(std::isnan(call->previous[0]));  // no plan has been executed
    const pyjepa_status status =
        pyjepa_evaluate(there.agent, call->plans, call->candidates, call->cost, call->gradient);
    call->cost[0] += there.first;
    return status;
}

TEST(Abi, WhatStandsInForTheModelsRolloutsPlansTheSame) {
    Loaded l(pixel_spec), other(pixel_spec);
    const auto goal = pixels(1, 1), seen = pixels(1, 2);
    for (const int algorithm : {PYJEPA_CEM, PYJEPA_MPPI, PYJEPA_GRADIENT}) {
        pyjepa_task task = task_with(goal, 1, algorithm);
        for (pyjepa_agent* agent : {l.agent, other.agent}) {
            ASSERT_EQ(pyjepa_configure(agent, &task), PYJEPA_OK) << pyjepa_last_error();
            ASSERT_EQ(pyjepa_observe(agent, seen.data(), seen.size(), -1), PYJEPA_OK);
        }
        const Result native = plan(l.agent, 1);
        Elsewhere there{other.agent, 0, 0.0f};
        task.rollout_call = answer;
        task.rollout_call_user = &there;
        EXPECT_EQ(pyjepa_configure(l.agent, &task),
                  algorithm == PYJEPA_GRADIENT ? PYJEPA_UNSUPPORTED : PYJEPA_OK);
        task.rollout_gradient = 1;
        ASSERT_EQ(pyjepa_configure(l.agent, &task), PYJEPA_OK) << pyjepa_last_error();
        ASSERT_EQ(pyjepa_observe(l.agent, seen.data(), seen.size(), -1), PYJEPA_OK);
        EXPECT_TRUE(plan(l.agent, 1) == native) << algorithm;
        EXPECT_GT(there.calls, 0);
        pyjepa_reset(l.agent, -1);
        ASSERT_EQ(pyjepa_observe(l.agent, seen.data(), seen.size(), -1), PYJEPA_OK);
        there.first = INFINITY;  // leads nowhere, and is no error
        plan(l.agent, 1);
        for (const float wrong : {NAN, -INFINITY}) {
            pyjepa_reset(l.agent, -1);
            ASSERT_EQ(pyjepa_observe(l.agent, seen.data(), seen.size(), -1), PYJEPA_OK);
            there.first = wrong;
            pyjepa_plan_out out{};
            out.size = sizeof out;
            EXPECT_EQ(pyjepa_plan(l.agent, 0.0, &out), PYJEPA_CALLBACK);
            EXPECT_NE(std::string(pyjepa_last_error()).find("candidate 0 in environment 0"),
                      std::string::npos);
        }
    }
    pyjepa_task task = task_with(goal, 1, PYJEPA_TREE);
    Elsewhere there{other.agent, 0, 0.0f};
    task.rollout_call = answer;
    task.rollout_call_user = &there;
    EXPECT_EQ(pyjepa_configure(l.agent, &task), PYJEPA_UNSUPPORTED);
    int calls = 0;
    task = task_with(goal, 1, PYJEPA_CEM);
    task.rollout_call = answer;
    task.rollout = to_corner;
    task.rollout_user = &calls;
    EXPECT_EQ(pyjepa_configure(l.agent, &task), PYJEPA_INVALID_ARGUMENT);
    EXPECT_NE(std::string(pyjepa_last_error()).find("one rollout"), std::string::npos);
}

TEST(Abi, ErrorsNameWhatIsWrong) {
    Loaded l(pixel_spec);
    const auto goal = pixels(1, 1), seen = pixels(1, 2);
    const auto expect = [&](const char* words, auto change) {
        pyjepa_task task = task_with(goal, 1, PYJEPA_CEM);
        change(task);
        EXPECT_EQ(pyjepa_configure(l.agent, &task), PYJEPA_INVALID_ARGUMENT) << words;
        EXPECT_NE(std::string(pyjepa_last_error()).find(words), std::string::npos)
            << pyjepa_last_error() << " lacks " << words;
    };
    EXPECT_EQ(pyjepa_observe(l.agent, seen.data(), seen.size(), -1), PYJEPA_NOT_READY);
    expect("horizon", [](pyjepa_task& t) { t.horizon = 0; });
    expect("multiple of the model's action_block 4", [](pyjepa_task& t) { t.horizon = 10; });
    expect("elites (65) exceed candidates (64)", [](pyjepa_task& t) { t.candidates = 64, t.elites = 65; });
    expect("elites belong to the planners cem, icem, hybrid and categorical-cem",
           [](pyjepa_task& t) { t.algorithm = PYJEPA_MPPI, t.elites = 3; });
    expect("decay belongs to the planner icem", [](pyjepa_task& t) { t.decay = 1.5f; });
    expect("decay must be at least 1", [](pyjepa_task& t) { t.algorithm = PYJEPA_ICEM, t.decay = 0.9f; });
    expect("keep_elites must be in [0, 1]",
           [](pyjepa_task& t) { t.algorithm = PYJEPA_ICEM, t.keep_elites = 1.1f; });
    expect("learning_rate belongs to the planners gradient and hybrid",
           [](pyjepa_task& t) { t.learning_rate = 0.1f; });
    expect("learning_rate must be in (0, 10]",
           [](pyjepa_task& t) { t.algorithm = PYJEPA_GRADIENT, t.learning_rate = 0.0f; });
    expect("restarts must be between 1 and 4096",
           [](pyjepa_task& t) { t.algorithm = PYJEPA_GRADIENT, t.restarts = 0; });
    expect("candidates belong to planners that sample",
           [](pyjepa_task& t) { t.algorithm = PYJEPA_GRADIENT, t.candidates = 64; });
    expect("polish (10) exceeds iterations (4)",
           [](pyjepa_task& t) { t.algorithm = PYJEPA_HYBRID, t.iterations = 4; });
    expect("noise_beta must be in [0, 10]", [](pyjepa_task& t) { t.noise_beta = -1.0f; });
    expect("sampling must be between 0 and 2", [](pyjepa_task& t) { t.sampling = 3; });
    expect("sobol sampling takes up to 64 numbers, this plan has 40 knots of 2",
           [](pyjepa_task& t) { t.sampling = PYJEPA_SOBOL, t.horizon = 160; });
    expect("coloured noise takes up to 1024 knots",
           [](pyjepa_task& t) { t.noise_beta = 1.0f, t.horizon = 8000, t.candidates = 64; });
    expect("algorithm must be between", [](pyjepa_task& t) { t.algorithm = PYJEPA_TREE + 1; });
    expect("algorithm must be between", [](pyjepa_task& t) { t.algorithm = INT32_MIN; });
    expect("sampling belongs to planners that draw normal noise, not to tree",
           [](pyjepa_task& t) { t.algorithm = PYJEPA_TREE, t.sampling = PYJEPA_SOBOL; });
    expect("noise_beta belongs to planners that draw normal noise, not to tree",
           [](pyjepa_task& t) { t.algorithm = PYJEPA_TREE, t.noise_beta = 1.0f; });
    expect("branching belongs to the planner tree", [](pyjepa_task& t) { t.branching = 4; });
    expect("exploration belongs to the planner categorical-cem",
           [](pyjepa_task& t) { t.exploration = 0.1f; });
    expect("candidates", [](pyjepa_task& t) { t.candidates = 0; });
    expect("environments", [](pyjepa_task& t) { t.environments = 0; });
    expect("too much for one plan", [](pyjepa_task& t) { t.environments = 60000, t.candidates = 1 << 20; });
    expect("goal has 512 bytes, expected 1024", [](pyjepa_task& t) { t.environments = 2; });
    expect("needs a goal", [](pyjepa_task& t) { t.goal = nullptr; });
    expect("knots", [](pyjepa_task& t) { t.knots = 7; });
    expect("std", [](pyjepa_task& t) { t.std = -1.0f; });
    expect("momentum", [](pyjepa_task& t) { t.momentum = 1.0f; });
    expect("temperature belongs", [](pyjepa_task& t) { t.temperature = 1.0f; });
    expect("size", [](pyjepa_task& t) { t.size = 0; });
    const float low[2] = {1, 1}, high[2] = {2, 0}, nan[2] = {0, NAN}, weights[3] = {1, -1, 1};
    expect("bounds cross: low[1]", [&](pyjepa_task& t) { t.action_low = low, t.action_high = high; });
    expect("low[1] is not finite", [&](pyjepa_task& t) { t.action_low = nan; });
    expect("weight 1", [&](pyjepa_task& t) { t.weights = weights; });

    const pyjepa_task good = task_with(goal, 1, PYJEPA_CEM);
    ASSERT_EQ(pyjepa_configure(l.agent, &good), PYJEPA_OK);
    pyjepa_plan_out out{};
    out.size = sizeof out;
    EXPECT_EQ(pyjepa_plan(l.agent, 0.0, &out), PYJEPA_NOT_READY);
    EXPECT_EQ(pyjepa_plan(l.agent, NAN, &out), PYJEPA_INVALID_ARGUMENT);
    EXPECT_EQ(pyjepa_observe(l.agent, seen.data(), 5, -1), PYJEPA_INVALID_ARGUMENT);
    EXPECT_EQ(pyjepa_reset(l.agent, 1), PYJEPA_INVALID_ARGUMENT);
    EXPECT_EQ(pyjepa_configure(nullptr, &good), PYJEPA_INVALID_ARGUMENT);
    pyjepa_agent_free(nullptr);  // harmless, as free is
    pyjepa_agent* none = nullptr;
    EXPECT_EQ(pyjepa_agent_create(l.model, 0, &none), PYJEPA_INVALID_ARGUMENT);
    EXPECT_EQ(pyjepa_agent_create(l.model, 1000000, &none), PYJEPA_INVALID_ARGUMENT);
    EXPECT_EQ(none, nullptr);
}

TEST(Abi, AFailedConfigureKeepsTheTask) {
    Loaded l(pixel_spec);
    const auto goal = pixels(1, 1), seen = pixels(1, 2);
    const pyjepa_task good = task_with(goal, 1, PYJEPA_CEM);
    ASSERT_EQ(pyjepa_configure(l.agent, &good), PYJEPA_OK);
    ASSERT_EQ(pyjepa_observe(l.agent, seen.data(), seen.size(), -1), PYJEPA_OK);
    pyjepa_task bad = good;
    bad.horizon = 0;
    EXPECT_NE(pyjepa_configure(l.agent, &bad), PYJEPA_OK);
    EXPECT_EQ(plan(l.agent, 1).iterations, 4);
}

TEST(Abi, NonFiniteObservationsAreRefused) {
    Loaded l(callback_spec);
    int calls = 0;
    pyjepa_task task;
    pyjepa_task_init(&task, sizeof task);
    task.rollout = to_corner;
    task.rollout_user = &calls;
    ASSERT_EQ(pyjepa_configure(l.agent, &task), PYJEPA_OK);
    for (const float bad : {NAN, INFINITY, -INFINITY}) {
        const float seen[3] = {1, bad, 3};
        EXPECT_EQ(pyjepa_observe(l.agent, seen, sizeof seen, -1), PYJEPA_INVALID_ARGUMENT);
        EXPECT_NE(std::string(pyjepa_last_error()).find("element 1 of environment 0"), std::string::npos);
    }
}

TEST(Abi, OlderAndNewerStructsWork) {
    Loaded l(pixel_spec);
    const auto goal = pixels(1, 1), seen = pixels(1, 2);
    struct {
        pyjepa_task task;
        char future[64];
    } newer{};
    newer.task = task_with(goal, 1, PYJEPA_CEM);
    newer.task.size = sizeof newer;
    EXPECT_EQ(pyjepa_configure(l.agent, &newer.task), PYJEPA_OK);
    ASSERT_EQ(pyjepa_observe(l.agent, seen.data(), seen.size(), -1), PYJEPA_OK);
    float actions[48];
    pyjepa_plan_out older{};
    older.size = offsetof(pyjepa_plan_out, states);  // a header that knew no more than the actions
    older.actions = actions;
    older.elapsed = -1.0;
    EXPECT_EQ(pyjepa_plan(l.agent, 0.0, &older), PYJEPA_OK);
    EXPECT_EQ(older.elapsed, -1.0);
    EXPECT_EQ(older.size, offsetof(pyjepa_plan_out, states));

    pyjepa_model_dims dims{};
    EXPECT_EQ(pyjepa_model_get_dims(l.model, &dims), PYJEPA_INVALID_ARGUMENT);  // size is not set
    dims.size = offsetof(pyjepa_model_dims, latent_dim);
    EXPECT_EQ(pyjepa_model_get_dims(l.model, &dims), PYJEPA_OK);
    EXPECT_EQ(dims.action_dim, 2);
    EXPECT_EQ(dims.latent_dim, 0);

    pyjepa_task short_task;
    std::memset(&short_task, 77, sizeof short_task);
    const uint64_t untouched = short_task.seed;
    pyjepa_task_init(&short_task, offsetof(pyjepa_task, seed));
    EXPECT_EQ(short_task.size, offsetof(pyjepa_task, seed));
    EXPECT_EQ(short_task.knots, -1);
    EXPECT_EQ(short_task.seed, untouched);
    EXPECT_EQ(pyjepa_configure(l.agent, &short_task), PYJEPA_INVALID_ARGUMENT);  // it needs a goal
    EXPECT_NE(std::string(pyjepa_last_error()).find("goal"), std::string::npos);
    pyjepa_task_init(&newer.task, sizeof newer);
    EXPECT_EQ(newer.task.size, sizeof newer);
    EXPECT_EQ(newer.future[63], 0);
}

TEST(Abi, ThePeakIsMeasuredWhereTheMachineHasTheInstructions) {
    double fp32 = 0.0, other = 0.0;
    ASSERT_EQ(pyjepa_measure_peak(PYJEPA_FP32, 0.05, &fp32), PYJEPA_OK);
    EXPECT_GT(fp32, 0.1);
    EXPECT_LT(fp32, 1e4);
    for (const int32_t precision : {PYJEPA_BF16, PYJEPA_INT8}) {
        const pyjepa_status status = pyjepa_measure_peak(precision, 0.05, &other);
        if (status == PYJEPA_OK)
            EXPECT_GT(other, fp32);  // what narrower numbers are for
        else
            EXPECT_EQ(status, PYJEPA_UNSUPPORTED);
    }
    EXPECT_EQ(pyjepa_measure_peak(3, 0.01, &other), PYJEPA_INVALID_ARGUMENT);
    EXPECT_EQ(pyjepa_measure_peak(-1, 0.01, &other), PYJEPA_INVALID_ARGUMENT);
    EXPECT_EQ(pyjepa_measure_peak(PYJEPA_FP32, -1.0, &other), PYJEPA_INVALID_ARGUMENT);
    EXPECT_EQ(pyjepa_measure_peak(PYJEPA_FP32, NAN, &other), PYJEPA_INVALID_ARGUMENT);
    EXPECT_EQ(pyjepa_measure_peak(PYJEPA_FP32, 0.01, nullptr), PYJEPA_INVALID_ARGUMENT);
}

}  // namespace
}  // namespace pyjepa
