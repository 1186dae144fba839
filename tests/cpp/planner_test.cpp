// Noise, knots and the planners' loop.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

#include "planner/colour.hpp"
#include "planner/knots.hpp"
#include "planner/optimise.hpp"
#include "planner/sampling.hpp"
#include "planner/sobol.hpp"

namespace pyjepa {
namespace {

TEST(Sampling, NoiseIsStandardNormal) {
    const int candidates = 20000, count = 10, row = noise_row(count);
    std::vector<float> noise(static_cast<size_t>(candidates * row));
    gaussian(noise_key(1, 2, 0, 3), 0, {0, candidates}, count, noise.data());
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
    gaussian(key, 3, {0, 100}, count, all.data());
    for (int n = 0; n < 100; ++n) {
        gaussian(key, 3, {n, 1}, count, one.data());
        for (int j = 0; j < row; ++j)
            ASSERT_EQ(one[static_cast<size_t>(j)], all[static_cast<size_t>(n * row + j)]);
    }
    std::vector<float> other(static_cast<size_t>(row));
    gaussian(key, 4, {0, 1}, count, other.data());
    EXPECT_NE(other[0], all[0]);
    gaussian(noise_key(43, 7, 0, 1), 3, {0, 1}, count, other.data());
    EXPECT_NE(other[0], all[0]);
    gaussian(noise_key(42, 8, 0, 1), 3, {0, 1}, count, other.data());
    EXPECT_NE(other[0], all[0]);
    gaussian(noise_key(42, 7, 0, 2), 3, {0, 1}, count, other.data());
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
    gaussian(noise_key(0, 1, 0, 0), 0, {1, 1}, 4, noise);
    const float golden[4] = {0x1.09be8p-1f, 0x1.39ba58p-5f, -0x1.2223dcp+0f, 0x1.92dcb8p+0f};
    for (int i = 0; i < 4; ++i) EXPECT_EQ(noise[i], golden[i]);
}

TEST(Sampling, ExponentialAgreesWithTheLibrary) {
    for (double x = 0.0; x > -745.0; x -= 0.37)
        EXPECT_NEAR(stable_exp(x), std::exp(x), 1e-14 * std::exp(x) + 1e-307);
    EXPECT_EQ(stable_exp(-1e9), 0.0);
}

TEST(SobolTest, PointsAreTorchs) {  // torch.quasirandom.SobolEngine(64), which keeps 30 of the 32 bits
    const Sobol sobol(Sobol::kMostDimensions);
    const struct {
        int n, j;
        uint32_t bits;
    } known[] = {{1, 0, 536870912},   {2, 1, 268435456},    {3, 2, 805306368},
                 {57, 13, 150994944}, {100, 40, 763363328}, {199, 63, 583008256}};
    for (const auto& k : known) EXPECT_EQ(sobol.point(k.n, k.j) >> 2, k.bits) << k.n << ", " << k.j;
}

TEST(SobolTest, ScrambledNormalsFillEveryDimensionEvenly) {
    constexpr int dims = Sobol::kMostDimensions, n = 256;
    const Sobol sobol(dims);
    std::vector<float> out(static_cast<size_t>(n * dims)), other(out.size()), one(static_cast<size_t>(dims));
    sobol.normals(noise_key(1, 2, 0, 3), {0, n}, dims, out.data());
    sobol.normals(noise_key(1, 2, 0, 4), {0, n}, dims, other.data());
    EXPECT_NE(out, other);
    for (int j = 0; j < dims; ++j) {  // each of 256 slices of equal probability holds one point
        std::vector<int> slices(n);
        for (int i = 0; i < n; ++i) {
            const double x = out[static_cast<size_t>(i * dims + j)];
            ++slices[static_cast<size_t>(0.5 * std::erfc(-x / std::sqrt(2.0)) * n)];
        }
        EXPECT_EQ(std::count(slices.begin(), slices.end(), 1), n) << j;
    }
    for (const int i : {0, 1, 77, 255}) {  // a draw depends on its name alone
        sobol.normals(noise_key(1, 2, 0, 3), {i, 1}, dims, one.data());
        for (int j = 0; j < dims; ++j)
            ASSERT_EQ(one[static_cast<size_t>(j)], out[static_cast<size_t>(i * dims + j)]);
    }
}

TEST(ColourTest, HasUnitVarianceAndTheSpectrumAskedFor) {
    for (const int knots : {2, 3, 8, 11, 40})
        for (const float beta : {0.0f, 1.0f, 2.5f}) {
            const std::vector<float> c = colour_matrix(knots, beta);
            const auto at = [&](int k, int j) { return double{c[static_cast<size_t>(k * knots + j)]}; };
            // The covariance C C^T by the distance between two knots.
            std::vector<double> covariance(static_cast<size_t>(knots));
            for (int k = 0; k < knots; ++k) {
                for (int j = 0; j < knots; ++j) covariance[static_cast<size_t>(k)] += at(0, j) * at(k, j);
                double variance = 0.0;
                for (int j = 0; j < knots; ++j) variance += at(k, j) * at(k, j);
                EXPECT_NEAR(variance, 1.0, 1e-6);
            }
            // Its Fourier transform is the power at each frequency.
            const auto power = [&](int f) {
                double total = 0.0;
                for (int k = 0; k < knots; ++k)
                    total += covariance[static_cast<size_t>(k)] *
                             std::cos(2.0 * 3.141592653589793 * f * k / knots);
                return total;
            };
            for (int f = 1; 2 * f <= knots; ++f)
                EXPECT_NEAR(power(f) / power(1), std::pow(f, -double{beta}), 2e-5) << knots << ", " << beta;
            EXPECT_NEAR(power(0) / power(1), 1.0, 2e-5);
        }
}

TEST(KnotsTest, PullingBackIsTheTransposeOfExpanding) {
    std::mt19937 generator(1);
    std::normal_distribution<float> normal;
    for (const auto kind : {Interpolation::zero, Interpolation::linear, Interpolation::cubic})
        for (const int count : {1, 4, 9}) {
            const Knots knots(9, count, kind);
            std::vector<float> in(static_cast<size_t>(count) * 2), pulled(in.size()), out(18), plan(18);
            for (float& x : in) x = normal(generator);
            for (float& x : plan) x = normal(generator);
            knots.expand(in.data(), 2, out.data());
            knots.pull_back(plan.data(), 2, pulled.data());
            EXPECT_NEAR(std::inner_product(out.begin(), out.end(), plan.begin(), 0.0),
                        std::inner_product(in.begin(), in.end(), pulled.begin(), 0.0), 1e-5);
        }
}

TEST(Sampling, UniformNumbersFillTheirRangeAndDependOnTheirNameAlone) {
    const int candidates = 4000, count = 6, row = noise_row(count);
    std::vector<float> all(static_cast<size_t>(candidates * row)), one(static_cast<size_t>(row));
    const NoiseKey key = noise_key(3, 1, 0, 2);
    uniform(key, 0, {0, candidates}, count, all.data());
    for (const int n : {0, 1, 17, 3999}) {
        uniform(key, 0, {n, 1}, count, one.data());
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
                    EXPECT_LE(std::abs(plans_[static_cast<size_t>(n * size + i)]), 1.0f);  // within bounds
                    const float d = plans_[static_cast<size_t>(n * size + i)] - target;
                    total += d * d;
                }
                cost[e * candidates + n] = poison && n % 2 == 1 ? INFINITY : total;
            }
        }
        ++calls;
        return true;
    }
    bool gradient(const Situation& now, const Proposal& proposal, int candidates, float* cost, float* slope,
                  const Deadline& deadline) override {
        if (!evaluate(now, proposal, candidates, cost, deadline)) return false;
        const size_t size = static_cast<size_t>(settings_.steps * settings_.plan_dim);
        for (size_t i = 0; i < static_cast<size_t>(candidates) * size; ++i)
            slope[i] = std::isfinite(cost[i / size]) ? 2.0f * (plans_[i] - target) : 0.0f;
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
    const int candidates = algorithm == Algorithm::gradient ? 8 : 200;
    return {algorithm,           1,    4,     2,    candidates, 12, 20,       4,
            Interpolation::zero, 0.5f, 0.02f, 0.1f, 0.1f,       5,  {-1, -1}, {1, 1}};
}

class PlannerTest : public ::testing::TestWithParam<Algorithm> {};

TEST_P(PlannerTest, FindsTheMinimumAndWarmStartsThere) {
    const PlannerSettings s = settings(GetParam());
    const auto planner = make_planner(s);
    Quadratic rollout(s);
    Optimiser optimiser(*planner, rollout);
    const bool no = false;
    const Situation now{1, nullptr, nullptr, nullptr, &no, nullptr};
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
    optimiser.plan({1, nullptr, nullptr, nullptr, &no, nullptr}, &no_shift, Deadline());
    float plan[8];
    planner->expand(optimiser.knots(0), plan);
    for (const float a : plan) {
        EXPECT_LE(a, 1.0f);
        EXPECT_GT(a, 0.2f);
    }
}

TEST_P(PlannerTest, RespectsBoundsWhereASplineOvershootsThem) {
    for (const int knots : {4, 3})
        for (const Interpolation interpolation : {Interpolation::linear, Interpolation::cubic}) {
            PlannerSettings s = settings(GetParam());
            s.knots = knots;
            s.interpolation = interpolation;
            const auto planner = make_planner(s);
            Quadratic rollout(s);
            Optimiser optimiser(*planner, rollout);
            const bool no = false;
            const Situation now{1, nullptr, nullptr, nullptr, &no, nullptr};
            for (int i = 0; i < 8; ++i) {  // from bound to bound, and then between the knots
                rollout.target = i % 2 == 0 ? 5.0f : -5.0f;
                const float shift = i == 0 ? 0.0f : 0.5f;
                optimiser.plan(now, &shift, Deadline());
            }
        }
}

TEST_P(PlannerTest, StartsWhereItWouldWithADeadline) {
    const PlannerSettings s = settings(GetParam());
    std::vector<float> found[2];
    for (const bool deadline : {false, true}) {
        const auto planner = make_planner(s);
        Quadratic rollout(s);
        Optimiser optimiser(*planner, rollout);
        const bool no = false;
        const float shift = 1.0f;
        for (int i = 0; i < 3; ++i) {
            optimiser.plan({1, nullptr, nullptr, nullptr, &no, nullptr}, &shift,
                           deadline ? Deadline(60.0) : Deadline());
            auto& all = found[deadline ? 1 : 0];
            all.insert(all.end(), optimiser.knots(0), optimiser.knots(0) + planner->knots_size());
            all.insert(all.end(), optimiser.history(0), optimiser.history(0) + s.iterations + 1);
        }
    }
    EXPECT_EQ(found[0], found[1]);
}

TEST_P(PlannerTest, IgnoresCandidatesThatDiverge) {
    const PlannerSettings s = settings(GetParam());
    const auto planner = make_planner(s);
    Quadratic rollout(s);
    rollout.poison = true;
    Optimiser optimiser(*planner, rollout);
    const bool no = false;
    const float no_shift = 0.0f;
    optimiser.plan({1, nullptr, nullptr, nullptr, &no, nullptr}, &no_shift, Deadline());
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
    EXPECT_EQ(optimiser.plan({1, nullptr, nullptr, nullptr, &no, nullptr}, &no_shift, Deadline(1e-12)), 0);
    EXPECT_FLOAT_EQ(optimiser.cost(0), 8 * 0.36f);
    EXPECT_EQ(rollout.calls, 1);
}

TEST_P(PlannerTest, ColourAndSobolFindTheMinimumToo) {
    for (const Sampling sampling : {Sampling::gaussian, Sampling::sobol})
        for (const float beta : {0.0f, 2.0f}) {
            PlannerSettings s = settings(GetParam());
            s.sampling = sampling;
            s.noise_beta = beta;
            const auto planner = make_planner(s);
            Quadratic rollout(s);
            Optimiser optimiser(*planner, rollout);
            const bool no = false;
            const float no_shift = 0.0f;
            optimiser.plan({1, nullptr, nullptr, nullptr, &no, nullptr}, &no_shift, Deadline());
            EXPECT_LT(optimiser.cost(0), 8 * 0.36f * 0.25f);
        }
}

TEST(Icem, AsksForFewerCandidatesDownToTwiceTheElites) {
    PlannerSettings s = settings(Algorithm::icem);
    s.decay = 2.0f;
    const auto planner = make_planner(s);
    EXPECT_EQ(planner->count(0), 200);
    EXPECT_EQ(planner->count(1), 100);
    EXPECT_EQ(planner->count(2), 50);
    EXPECT_EQ(planner->count(3), 40);
    EXPECT_EQ(planner->count(11), 40);
}

TEST(Icem, KeepsElitesForTheNextIterationAndShiftedForTheNextPlan) {
    PlannerSettings s = settings(Algorithm::icem);
    s.elites = 10;
    s.keep_elites = 0.3f;
    const auto planner = make_planner(s);
    planner->begin(0, 0.0f);
    planner->iterate(0);
    std::vector<float> cost(200), elites, again(8), shifted(8);
    for (int n = 0; n < 200; ++n) cost[static_cast<size_t>(n)] = static_cast<float>((n * 37 + 5) % 200);
    for (int wanted = 0; wanted < 3; ++wanted) {
        const auto n = std::find(cost.begin(), cost.end(), static_cast<float>(wanted)) - cost.begin();
        planner->sample(0, static_cast<int>(n), again.data());
        elites.insert(elites.end(), again.begin(), again.end());
    }
    planner->refit(0, cost.data());
    EXPECT_EQ(planner->diagnosis(0).effective_samples, 10.0f);
    planner->iterate(1);
    for (int i = 0; i < 3; ++i) {
        planner->sample(0, 1 + i, again.data());
        EXPECT_TRUE(std::equal(again.begin(), again.end(), elites.begin() + 8 * i)) << i;
    }
    planner->sample(0, 4, again.data());
    EXPECT_FALSE(std::equal(again.begin(), again.end(), elites.begin()));
    planner->begin(0, 1.0f);
    planner->iterate(0);
    for (int i = 0; i < 3; ++i) {
        const Knots knots(4, 4, Interpolation::zero);
        knots.shift(elites.data() + 8 * i, 2, 1.0f, shifted.data());
        planner->sample(0, 1 + i, again.data());
        EXPECT_EQ(again, shifted) << i;
    }
    planner->reset(0);
    planner->begin(0, 0.0f);
    planner->iterate(0);
    planner->sample(0, 1, again.data());
    EXPECT_NE(again, shifted);
}

TEST(Hybrid, DescendsFromTheBestCandidateItSampled) {
    PlannerSettings s = settings(Algorithm::hybrid);
    s.restarts = 3;
    s.polish = 4;
    const auto planner = make_planner(s);
    EXPECT_EQ(planner->descending(), 3);
    EXPECT_FALSE(planner->descends(7));
    EXPECT_TRUE(planner->descends(8));
    planner->begin(0, 0.0f);
    planner->iterate(0);
    std::vector<float> cost(200, 5.0f), best(8), point(8);
    cost[123] = 1.0f;
    planner->sample(0, 123, best.data());
    planner->refit(0, cost.data());
    planner->iterate(7);
    cost[123] = 2.0f;  // the last iteration finds nothing better
    planner->refit(0, cost.data());
    planner->iterate(8);
    planner->sample(0, 0, point.data());
    EXPECT_EQ(point, best);
}

TEST(Gradient, TheCheaperHalfGoesOnAfterEveryQuarter) {
    PlannerSettings s = settings(Algorithm::gradient);
    s.restarts = 9;
    s.iterations = 8;
    const auto planner = make_planner(s);
    EXPECT_EQ(planner->descending(), 9);
    const int counts[] = {9, 9, 4, 4, 2, 2, 2, 2};
    for (int i = 0; i < 8; ++i) EXPECT_EQ(planner->count(i), counts[i]) << i;
    planner->begin(0, 0.0f);
    std::vector<std::vector<float>> points(9, std::vector<float>(8));
    for (int i = 0; i < 2; ++i) {
        planner->iterate(i);
        for (int n = 0; n < 9; ++n) planner->sample(0, n, points[static_cast<size_t>(n)].data());
        const std::vector<float> cost{5, 1, INFINITY, 7, 2, 9, 3, INFINITY, 0}, flat(9 * 8, 0.0f);
        planner->descend(0, cost.data(), flat.data());
    }
    planner->iterate(2);
    std::vector<float> left(8);
    const int expected[] = {1, 4, 6, 8};
    for (int n = 0; n < 4; ++n) {
        planner->sample(0, n, left.data());
        EXPECT_EQ(left, points[static_cast<size_t>(expected[n])]) << n;
    }
    // Moments go with their points: one that was pushed moves on, though nothing pushes it any longer.
    const std::vector<float> cost{4, 3, 2, 1};
    std::vector<float> slope(4 * 8, 0.0f);
    std::fill_n(slope.begin() + 3 * 8, 8, 1.0f);
    planner->descend(0, cost.data(), slope.data());
    planner->iterate(3);
    planner->sample(0, 3, points[3].data());
    std::fill(slope.begin(), slope.end(), 0.0f);
    planner->descend(0, cost.data(), slope.data());
    planner->iterate(4);  // of the four, 2 and 3 are left
    planner->sample(0, 1, left.data());
    for (size_t j = 0; j < 8; ++j)
        EXPECT_TRUE(left[j] < points[3][j] || left[j] == s.low[j % 2]) << left[j] << " " << points[3][j];
}

TEST(Diagnosis, CountsTheCandidatesThatMattered) {
    PlannerSettings s = settings(Algorithm::mppi);
    s.temperature = 1e-3f;
    for (const float temperature : {1e-3f, 1e3f}) {
        s.temperature = temperature;
        const auto planner = make_planner(s);
        planner->begin(0, 0.0f);
        planner->iterate(0);
        std::vector<float> cost(200);
        std::iota(cost.begin(), cost.end(), 0.0f);
        planner->refit(0, cost.data());
        const Diagnosis& found = planner->diagnosis(0);
        EXPECT_NEAR(found.effective_samples, temperature < 1.0f ? 1.0f : 200.0f, 0.1f);
        EXPECT_NEAR(found.spread, temperature < 1.0f ? 0.0f : 0.47f, 0.05f);  // drawn with 0.5, clamped
    }
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
    optimiser.plan({1, nullptr, nullptr, nullptr, &no, nullptr}, &no_shift, Deadline());
    EXPECT_EQ(optimiser.cost(0), 0.0f);
    for (int t = 0; t < 5; ++t) EXPECT_EQ(optimiser.knots(0)[4 * t + (3 + t) % 4], 1.0f) << t;
}

std::string planner_name(const ::testing::TestParamInfo<Algorithm>& tested) {
    const char* const names[] = {"Cem", "Mppi", "PredictiveSampling", "Icem", "Gradient", "Hybrid"};
    return names[static_cast<int>(tested.param)];
}

INSTANTIATE_TEST_SUITE_P(EveryPlanner, PlannerTest,
                         ::testing::Values(Algorithm::cem, Algorithm::mppi, Algorithm::predictive_sampling,
                                           Algorithm::icem, Algorithm::gradient, Algorithm::hybrid),
                         planner_name);

}  // namespace
}  // namespace pyjepa
