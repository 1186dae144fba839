// Native rollouts: that neither tiles nor threads change a cost, and what pruning may and may not.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

#include "rollout/native.hpp"
#include "sample_agent.hpp"

namespace pyjepa {
namespace {

// Plans that differ widely, of which the proposer keeps so many.
class Scattered final : public Proposal {
  public:
    Scattered(int steps, int dim, int keeps) : size_(static_cast<size_t>(steps * dim)), keeps_(keeps) {}
    void snapshot(float*) const noexcept override {}
    size_t snapshot_size() const noexcept override { return 0; }
    void fill(const float*, int e, int n0, int n1, float* out, float*) const noexcept override {
        for (int n = n0; n < n1; ++n) {
            std::minstd_rand generator(static_cast<unsigned>(1 + n + 1000 * e));
            std::uniform_real_distribution<float> uniform(-3.0f, 3.0f);
            for (size_t i = 0; i < size_; ++i) *out++ = uniform(generator);
        }
    }
    size_t scratch(int) const noexcept override { return 0; }
    int keeps() const noexcept override { return keeps_; }

  private:
    size_t size_;
    int keeps_;
};

struct World {
    explicit World(const std::string& spec, simd::Precision precision = simd::Precision::fp32)
        : bytes(testing::agent_bytes(spec, 3)),
          model(read_agent_bytes({reinterpret_cast<const std::byte*>(bytes.data()), bytes.size()}),
                precision),
          cost(model, nullptr, {}, model.spec().discount) {
        const auto latent = static_cast<size_t>(model.spec().latent_dim);
        states.resize(2 * latent);
        goals.resize(2 * latent);
        previous.resize(2 * static_cast<size_t>(model.spec().plan_dim));
        for (size_t i = 0; i < states.size(); ++i) {
            states[i] = std::sin(static_cast<float>(i));
            goals[i] = std::cos(static_cast<float>(3 * i));
        }
    }
    // `most`: what the rollout is made for, at least.
    std::vector<float> costs(int threads, int candidates, int keeps, bool prune, int most = 0) {
        const Scattered proposal(steps, model.spec().plan_dim, keeps);  // outlives the rollout
        Pool pool(threads);
        const RolloutLimits limits{2, std::max(most, candidates), steps, 0, 0, 0, prune};
        NativeRollout rollout(model, cost, nullptr, pool, limits);
        const Situation now{2, states.data(), goals.data(), previous.data(), has_previous, draws};
        std::vector<float> out(2 * static_cast<size_t>(candidates));
        EXPECT_TRUE(rollout.evaluate(now, proposal, candidates, out.data(), Deadline()));
        return out;
    }

    static constexpr int steps = 6;
    std::string bytes;
    Model model;
    Cost cost;
    std::vector<float> states, goals, previous;
    const bool has_previous[2] = {false, true};
    const uint64_t draws[2] = {0, 0};
};

std::vector<int> elites(const float* cost, int candidates, int count) {
    std::vector<int> order(static_cast<size_t>(candidates));
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return cost[a] < cost[b]; });
    order.resize(static_cast<size_t>(count));
    return order;
}

// With `from` in it replaced.
std::string changed(std::string spec, const std::string& from, const std::string& to) {
    return spec.replace(spec.find(from), from.size(), to);
}

class Tiles : public ::testing::TestWithParam<simd::Precision> {};

TEST_P(Tiles, ChangeNoCost) {
    World world(testing::pixel_spec, GetParam());
    const std::vector<float> all = world.costs(1, 1500, 0, false);
    for (const int candidates : {1, 5, 12, 13, 95, 193, 264, 265, 500, 1500})
        for (const int threads : {1, 2, 3, 8})
            for (const int most : {candidates, 1500}) {
                const std::vector<float> some = world.costs(threads, candidates, 0, false, most);
                for (const ptrdiff_t e : {0, 1})
                    EXPECT_TRUE(std::equal(some.begin() + e * candidates, some.begin() + (e + 1) * candidates,
                                           all.begin() + e * 1500))
                        << candidates << " of " << most << ", " << threads << " threads";
            }
}

INSTANTIATE_TEST_SUITE_P(EveryPrecision, Tiles,
                         ::testing::Values(simd::Precision::fp32, simd::Precision::bf16,
                                           simd::Precision::int8));

TEST(Pruning, ChangesNoCostThatIsLeftAndNoElite) {
    // Costs that differ widely from plan to plan.
    World world(
        changed(testing::pixel_spec, R"("action_size", "stage": 0.01)", R"("action_size", "stage": 30)"));
    for (const int candidates : {1, 7, 100, 333})
        for (const int keeps : {1, 5, 40, 333}) {
            if (keeps > candidates) continue;
            const std::vector<float> all = world.costs(1, candidates, keeps, false);
            for (const int threads : {1, 2, 3}) {
                const std::vector<float> left = world.costs(threads, candidates, keeps, true);
                long given_up = 0;
                for (size_t i = 0; i < all.size(); ++i) {
                    ASSERT_TRUE(std::isfinite(all[i]));
                    if (std::isinf(left[i]))
                        ++given_up;
                    else
                        EXPECT_EQ(left[i], all[i]) << "candidate " << i;
                }
                for (const ptrdiff_t e : {0, 1})
                    EXPECT_EQ(elites(left.data() + e * candidates, candidates, keeps),
                              elites(all.data() + e * candidates, candidates, keeps));
                if (candidates == 333 && keeps <= 5) {
                    EXPECT_GT(given_up, 0);
                }
                if (keeps == candidates) {
                    EXPECT_EQ(given_up, 0);
                }
                for (const ptrdiff_t e : {0, 1})  // what a plan started from is never given up
                    EXPECT_EQ(left[static_cast<size_t>(e * candidates)],
                              all[static_cast<size_t>(e * candidates)]);
            }
        }
}

TEST(Pruning, GivesNothingUpWhereAllCandidatesCount) {
    World world(testing::pixel_spec);
    const std::vector<float> all = world.costs(2, 200, 0, true);
    EXPECT_TRUE(std::all_of(all.begin(), all.end(), [](float c) { return std::isfinite(c); }));
}

TEST(Pruning, LeavesCostsAloneThatMayFall) {
    World world(changed(testing::pixel_spec, R"({"kind": "goal_distance"})",
                        R"({"kind": "goal_distance", "metric": "cosine"})"));  // 1 - cos may round to below 0
    const std::vector<float> all = world.costs(1, 300, 3, true);
    EXPECT_TRUE(std::all_of(all.begin(), all.end(), [](float c) { return std::isfinite(c); }));
}

}  // namespace
}  // namespace pyjepa
