// Noise, knots and the planners' loop.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "planner/knots.hpp"
#include "planner/optimise.hpp"
#include "planner/sampling.hpp"

namespace pyjepa {
namespace {

TEST(Sampling, NoiseIsStandardNormal) {
    const int candidates = 20000, count = 10, row = noise_row(count);
    std::vector<float> noise(static_cast<size_t>(candidates * row));
    gaussian(noise_key(1, 2, 0, 3), 0, 0, candidates, count, noise.data());
    std::sort(noise.begin(), noise.end());
    double mean = 0.0, variance = 0.0, worst = 0.0;
    const auto size = static_cast<double>(noise.size());
    for (const float x : noise) mean += x / size;
    for (const float x : noise) variance += (x - mean) * (x - mean) / size;
    for (size_t i = 0; i < noise.size(); ++i)  // Kolmogorov-Smirnov
        worst = std::max(worst, std::abs((static_cast<double>(i) + 0.5) / size -
                                         0.5 * std::erfc(-noise[i] / std::sqrt(2.0))));
    EXPECT_NEAR(mean, 0.0, 0.01);
    EXPECT_NEAR(variance, 1.0, 0.01);
    EXPECT_LT(worst, 1.95 / std::sqrt(size));  // p = 0.001
    EXPECT_GT(noise.back(), 4.0f);
    EXPECT_LT(noise.back(), 6.0f);
}

TEST(Sampling, ADrawDependsOnItsNameAlone) {
    const int count = 7, row = noise_row(count);
    std::vector<float> all(static_cast<size_t>(100 * row)), one(static_cast<size_t>(row));
    const NoiseKey key = noise_key(42, 7, 0, 1);
    gaussian(key, 3, 0, 100, count, all.data());
    for (int n = 0; n < 100; ++n) {
        gaussian(key, 3, n, n + 1, count, one.data());
        for (int j = 0; j < row; ++j)
            ASSERT_EQ(one[static_cast<size_t>(j)], all[static_cast<size_t>(n * row + j)]);
    }
    std::vector<float> other(static_cast<size_t>(row));
    gaussian(key, 4, 0, 1, count, other.data());
    EXPECT_NE(other[0], all[0]);
    gaussian(noise_key(43, 7, 0, 1), 3, 0, 1, count, other.data());
    EXPECT_NE(other[0], all[0]);
    gaussian(noise_key(42, 8, 0, 1), 3, 0, 1, count, other.data());
    EXPECT_NE(other[0], all[0]);
    gaussian(noise_key(42, 7, 0, 2), 3, 0, 1, count, other.data());
    EXPECT_NE(other[0], all[0]);
}

TEST(Sampling, PhiloxMeetsItsKnownAnswers) {  // the first two words of Random123's kat_vectors
    const NoiseKey zero = noise_key(0, 0, 0, 0), ones = noise_key(~0ull, ~0ull, ~0u, ~0u);
    EXPECT_EQ(zero.k0, 0x6627e8d5u);
    EXPECT_EQ(zero.k1, 0xe169c58du);
    EXPECT_EQ(ones.k0, 0x408f276du);
    EXPECT_EQ(ones.k1, 0x41c83b0eu);
}

TEST(Sampling, NoiseIsTheSameForEver) {
    float noise[4];
    gaussian(noise_key(0, 1, 0, 0), 0, 1, 2, 4, noise);
    const float golden[4] = {0x1.09be8p-1f, 0x1.39ba58p-5f, -0x1.2223dcp+0f, 0x1.92dcb8p+0f};
    for (int i = 0; i < 4; ++i) EXPECT_EQ(noise[i], golden[i]);
}

TEST(Sampling, ExponentialAgreesWithTheLibrary) {
    for (double x = 0.0; x > -745.0; x -= 0.37)
        EXPECT_NEAR(stable_exp(x), std::exp(x), 1e-14 * std::exp(x) + 1e-307);
    EXPECT_EQ(stable_exp(-1e9), 0.0);
}

TEST(Sampling, UniformNumbersFillTheirRangeAndDependOnTheirNameAlone) {
    const int candidates = 4000, count = 6, row = noise_row(count);
    std::vector<float> all(static_cast<size_t>(candidates * row)), one(static_cast<size_t>(row));
    const NoiseKey key = noise_key(3, 1, 0, 2);
    uniform(key, 0, 0, candidates, count, all.data());
    for (const int n : {0, 1, 17, 3999}) {
        uniform(key, 0, n, n + 1, count, one.data());
        EXPECT_TRUE(std::equal(one.begin(), one.end(), all.begin() + static_cast<ptrdiff_t>(n) * row)) << n;
    }
    std::sort(all.begin(), all.end());
    EXPECT_GE(all.front(), 0.0f);
    EXPECT_LT(all.back(), 1.0f);
    double worst = 0.0;
    const auto size = static_cast<double>(all.size());
    for (size_t i = 0; i < all.size(); ++i)  // Kolmogorov-Smirnov
        worst =
            std::max(worst, std::abs((static_cast<double>(i) + 0.5) / size - static_cast<double>(all[i])));
    EXPECT_LT(worst, 1.95 / std::sqrt(size));  // p = 0.001
}

TEST(Sampling, LogarithmAgreesWithTheLibrary) {
    for (double x = 1e-300; x < 1e300; x *= 1.37)
        EXPECT_NEAR(stable_log(x), std::log(x), 4e-16 * std::max(1.0, std::abs(std::log(x)))) << x;
    for (double x = 0.5; x < 2.0; x += 0.003) EXPECT_NEAR(stable_log(x), std::log(x), 3e-16) << x;
    EXPECT_EQ(stable_log(1.0), 0.0);
    EXPECT_TRUE(std::isfinite(gumbel(0.0f)) && std::isfinite(gumbel(0x1.fffffep-1f)));
    EXPECT_NEAR(gumbel(0.36787944f), 0.0, 1e-6);  // exp(-1)
}

TEST(KnotsTest, ZeroOrderHolds) {
    const Knots knots(6, 3, Interpolation::zero);
    const float in[3] = {1, 2, 3};
    float out[6];
    knots.expand(in, 1, out);
    EXPECT_EQ(std::vector<float>(out, out + 6), (std::vector<float>{1, 1, 2, 2, 3, 3}));
}

TEST(KnotsTest, LinearAndCubicMeetTheirKnotsAndCubicIsExactOnLines) {
    for (const auto kind : {Interpolation::linear, Interpolation::cubic}) {
        const Knots knots(13, 5, kind);
        float in[5] = {0, 3, 6, 9, 12}, out[13];
        knots.expand(in, 1, out);
        const int first = kind == Interpolation::linear ? 0 : 3, last = 12 - first;
        for (int s = first; s <= last; ++s) EXPECT_NEAR(out[s], s, 1e-5);  // cubic: away from the ends
        EXPECT_FLOAT_EQ(out[0], 0.0f);
        EXPECT_FLOAT_EQ(out[12], 12.0f);
    }
}

TEST(KnotsTest, ShiftingByAStepDropsTheFirstAndRepeatsTheLast) {
    const Knots knots(4, 4, Interpolation::zero);
    const float in[8] = {1, -1, 2, -2, 3, -3, 4, -4};
    float out[8];
    knots.shift(in, 2, 1.0f, out);
    EXPECT_EQ(std::vector<float>(out, out + 8), (std::vector<float>{2, -2, 3, -3, 4, -4, 4, -4}));
    knots.shift(in, 2, 100.0f, out);
    EXPECT_EQ(std::vector<float>(out, out + 8), (std::vector<float>{4, -4, 4, -4, 4, -4, 4, -4}));
    knots.shift(in, 2, 0.0f, out);
    EXPECT_EQ(std::vector<float>(out, out + 8), std::vector<float>(in, in + 8));
}

TEST(KnotsTest, ShiftedLinearCurveIsTheCurveLater) {
    const Knots knots(9, 5, Interpolation::linear);
    const float in[5] = {0, 1, 4, 9, 16};
    float shifted[5], before[9], after[9];
    knots.shift(in, 1, 2.0f, shifted);  // a whole knot
    knots.expand(in, 1, before);
    knots.expand(shifted, 1, after);
    for (int s = 0; s + 2 < 9; ++s) EXPECT_NEAR(after[s], before[s + 2], 1e-5);
}

// A cost with a known minimum: the squared distance of the plan to a target, so that planners can be judged.
class Quadratic final : public Rollout {
  public:
    explicit Quadratic(const PlannerSettings& s) : settings_(s) {
        plans_.resize(static_cast<size_t>(s.candidates * s.steps * s.plan_dim));
        scratch_.resize(1 << 16);
        snapshot_.resize(1 << 12);
    }
    bool evaluate(const Situation& now, const Proposal& proposal, int candidates, float* cost,
                  const Deadline& deadline) override {
        if (deadline.expired()) return false;
        const int size = settings_.steps * settings_.plan_dim;
        proposal.snapshot(snapshot_.data());
        for (int e = 0; e < now.environments; ++e) {
            proposal.fill(snapshot_.data(), e, 0, candidates, plans_.data(), scratch_.data());
            for (int n = 0; n < candidates; ++n) {
                float total = 0.0f;
                for (int i = 0; i < size; ++i) {
                    const float d = plans_[static_cast<size_t>(n * size + i)] - target;
                    total += d * d;
                }
                cost[e * candidates + n] = poison && n % 2 == 1 ? INFINITY : total;
            }
        }
        ++calls;
        return true;
    }
    bool trace(const Situation&, int, const float*, float*, float*) noexcept override { return false; }
    double flops_per_candidate() const noexcept override { return 0.0; }

    float target = 0.6f;
    bool poison = false;
    int calls = 0;

  private:
    PlannerSettings settings_;
    std::vector<float> plans_, scratch_, snapshot_;
};

PlannerSettings settings(Algorithm algorithm) {
    return {algorithm,           1,    4,     2,    200,  12, 20,       4,
            Interpolation::zero, 0.5f, 0.02f, 0.1f, 0.1f, 5,  {-1, -1}, {1, 1}};
}

class PlannerTest : public ::testing::TestWithParam<Algorithm> {};

TEST_P(PlannerTest, FindsTheMinimumAndWarmStartsThere) {
    const PlannerSettings s = settings(GetParam());
    const auto planner = make_planner(s);
    Quadratic rollout(s);
    Optimiser optimiser(*planner, rollout);
    const bool no = false;
    const Situation now{1, nullptr, nullptr, nullptr, &no};
    const float no_shift = 0.0f;
    EXPECT_EQ(optimiser.plan(now, &no_shift, Deadline()), s.iterations);
    const float cold = optimiser.cost(0);
    EXPECT_LT(cold, 8 * 0.36f * 0.25f);  // from the middle of the bounds
    optimiser.plan(now, &no_shift, Deadline());
    EXPECT_LE(optimiser.cost(0), cold);  // the incumbent is evaluated again, so it can only improve
}

TEST_P(PlannerTest, RespectsBoundsEvenWhenTheMinimumLiesBeyond) {
    const PlannerSettings s = settings(GetParam());
    const auto planner = make_planner(s);
    Quadratic rollout(s);
    rollout.target = 5.0f;
    Optimiser optimiser(*planner, rollout);
    const bool no = false;
    const float no_shift = 0.0f;
    optimiser.plan({1, nullptr, nullptr, nullptr, &no}, &no_shift, Deadline());
    float plan[8];
    planner->expand(optimiser.knots(0), plan);
    for (const float a : plan) {
        EXPECT_LE(a, 1.0f);
        EXPECT_GT(a, 0.2f);
    }
}

TEST_P(PlannerTest, IgnoresCandidatesThatDiverge) {
    const PlannerSettings s = settings(GetParam());
    const auto planner = make_planner(s);
    Quadratic rollout(s);
    rollout.poison = true;
    Optimiser optimiser(*planner, rollout);
    const bool no = false;
    const float no_shift = 0.0f;
    optimiser.plan({1, nullptr, nullptr, nullptr, &no}, &no_shift, Deadline());
    EXPECT_TRUE(std::isfinite(optimiser.cost(0)));
    EXPECT_LT(optimiser.cost(0), 8 * 0.36f * 0.4f);
}

TEST_P(PlannerTest, APassedDeadlineStillReturnsAnEvaluatedPlan) {
    const PlannerSettings s = settings(GetParam());
    const auto planner = make_planner(s);
    Quadratic rollout(s);
    Optimiser optimiser(*planner, rollout);
    const bool no = false;
    const float no_shift = 0.0f;
    EXPECT_EQ(optimiser.plan({1, nullptr, nullptr, nullptr, &no}, &no_shift, Deadline(1e-12)), 0);
    EXPECT_FLOAT_EQ(optimiser.cost(0), 8 * 0.36f);
    EXPECT_EQ(rollout.calls, 1);
}

// A table of what each action costs at each step: categorical CEM finds the cheapest of each.
TEST(CategoricalCem, FindsTheCheapestActionOfEveryStep) {
    PlannerSettings s = settings(Algorithm::categorical_cem);
    s.steps = s.knots = 5;
    s.plan_dim = s.count = 4;
    s.low.assign(4, 0.0f);
    s.high.assign(4, 1.0f);
    s.exploration = 0.05f;
    s.iterations = 8;
    class Table final : public Rollout {
      public:
        bool evaluate(const Situation&, const Proposal& proposal, int candidates, float* cost,
                      const Deadline&) override {
            std::vector<float> plans(static_cast<size_t>(candidates) * 20), scratch(1 << 16),
                snapshot(1 << 12);
            proposal.snapshot(snapshot.data());
            proposal.fill(snapshot.data(), 0, 0, candidates, plans.data(), scratch.data());
            for (int n = 0; n < candidates; ++n) {
                cost[n] = 0.0f;
                for (int t = 0; t < 5; ++t) {
                    const float* one_hot = plans.data() + (n * 5 + t) * 4;
                    EXPECT_EQ(std::count(one_hot, one_hot + 4, 1.0f), 1);
                    EXPECT_EQ(std::count(one_hot, one_hot + 4, 0.0f), 3);
                    for (int a = 0; a < 4; ++a)
                        cost[n] += one_hot[a] * static_cast<float>((a + 3 * t + 1) % 4);
                }
            }
            return true;
        }
        bool trace(const Situation&, int, const float*, float*, float*) noexcept override { return false; }
        double flops_per_candidate() const noexcept override { return 0.0; }
    } rollout;
    const auto planner = make_planner(s);
    Optimiser optimiser(*planner, rollout);
    const bool no = false;
    const float no_shift = 0.0f;
    optimiser.plan({1, nullptr, nullptr, nullptr, &no}, &no_shift, Deadline());
    EXPECT_EQ(optimiser.cost(0), 0.0f);
    for (int t = 0; t < 5; ++t) EXPECT_EQ(optimiser.knots(0)[4 * t + (3 + t) % 4], 1.0f) << t;
}

std::string planner_name(const ::testing::TestParamInfo<Algorithm>& tested) {
    const char* const names[] = {"Cem", "Mppi", "PredictiveSampling"};
    return names[static_cast<int>(tested.param)];
}

INSTANTIATE_TEST_SUITE_P(EveryPlanner, PlannerTest,
                         ::testing::Values(Algorithm::cem, Algorithm::mppi, Algorithm::predictive_sampling),
                         planner_name);

}  // namespace
}  // namespace pyjepa
