// The kernels of every instruction set this machine has, against double precision, on odd shapes.
#include "simd/kernels.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <random>
#include <vector>

#include "model/dense.hpp"

namespace pyjepa::simd {
namespace {

std::vector<float> normal(size_t count, unsigned seed) {
    std::mt19937 generator(seed);
    std::normal_distribution<float> distribution;
    std::vector<float> out(count);
    for (float& x : out) x = distribution(generator);
    return out;
}

double relative_error(const std::vector<float>& got, const std::vector<double>& expected) {
    double difference = 0.0, size = 0.0;
    for (size_t i = 0; i < got.size(); ++i) {
        difference += (got[i] - expected[i]) * (got[i] - expected[i]);
        size += expected[i] * expected[i];
    }
    return std::sqrt(difference / size);
}

double reference(double x, Act act) {
    switch (act) {
        case Act::none:
            return x;
        case Act::relu:
            return x > 0.0 ? x : 0.0;
        case Act::gelu:
            return 0.5 * x * (1.0 + std::erf(x / std::sqrt(2.0)));
        case Act::silu:
            return x / (1.0 + std::exp(-x));
        case Act::mish:
            return x * std::tanh(std::log1p(std::exp(x)));
        case Act::tanh:
            return std::tanh(x);
    }
    return x;
}

const Act kActs[] = {Act::none, Act::relu, Act::gelu, Act::silu, Act::mish, Act::tanh};

class KernelsTest : public ::testing::TestWithParam<const char*> {
  protected:
    void SetUp() override {
        kernels = find_kernels(GetParam());
        if (kernels == nullptr) GTEST_SKIP() << "this machine has no " << GetParam();
    }
    const Kernels* kernels = nullptr;
};

TEST_P(KernelsTest, DenseAgreesWithDoubleOnOddShapes) {
    for (const int in : {1, 3, 50, 64, 131})
        for (const int out : {1, 5, 16, 31, 48, 64, 65, 101, 130, 200})
            for (const int rows : {1, 2, 5, 6, 7, 13, 48})
                for (const bool accumulate : {false, true}) {
                    const auto x = normal(static_cast<size_t>(rows * (in + 3)), 1),
                               w = normal(static_cast<size_t>(in * out), 2),
                               b = normal(static_cast<size_t>(out), 3);
                    const PackedDense packed(w, b, in, out);
                    const int ld = out + 5;
                    const float poison = 12345.0f;
                    std::vector<float> y(static_cast<size_t>(rows * ld), poison);
                    std::vector<float> got;
                    std::vector<double> expected;
                    if (accumulate)
                        for (int r = 0; r < rows; ++r)
                            for (int j = 0; j < out; ++j)
                                y[static_cast<size_t>(r * ld + j)] = static_cast<float>(j);
                    kernels->dense(packed.view(), x.data(), in + 3, rows, y.data(), ld, Act::relu,
                                   accumulate);
                    for (int r = 0; r < rows; ++r) {
                        for (int j = 0; j < out; ++j) {
                            double total = b[static_cast<size_t>(j)];
                            for (int k = 0; k < in; ++k)
                                total += static_cast<double>(x[static_cast<size_t>(r * (in + 3) + k)]) *
                                         w[static_cast<size_t>(j * in + k)];
                            expected.push_back(reference(total, Act::relu) + (accumulate ? j : 0));
                            got.push_back(y[static_cast<size_t>(r * ld + j)]);
                        }
                        for (int j = out; j < ld; ++j)  // nothing is written beside the outputs
                            ASSERT_EQ(y[static_cast<size_t>(r * ld + j)], poison);
                    }
                    double size = 0.0;
                    for (const double e : expected) size += e * e;
                    if (size > 0.0) {
                        ASSERT_LT(relative_error(got, expected), 2e-6)
                            << in << " -> " << out << ", " << rows << " rows";
                    }
                }
}

TEST_P(KernelsTest, ARowDoesNotDependOnItsNeighbours) {
    const int in = 50, out = 117, rows = 61;
    const auto x = normal(rows * in, 4), w = normal(in * out, 5), b = normal(out, 6);
    const PackedDense packed(w, b, in, out);
    std::vector<float> all(rows * out), alone(out);
    for (const Act act : kActs) {
        kernels->dense(packed.view(), x.data(), in, rows, all.data(), out, act, false);
        for (int r = 0; r < rows; ++r) {
            kernels->dense(packed.view(), x.data() + r * in, in, 1, alone.data(), out, act, false);
            for (int j = 0; j < out; ++j)
                ASSERT_EQ(all[static_cast<size_t>(r * out + j)], alone[static_cast<size_t>(j)]);
        }
    }
}

// The error of an activation over max(1, |its value|), as docs/agent-file.md states it.
double stated_error(Act act) {
    switch (act) {
        case Act::none:
        case Act::relu:
            return 0.0;
        case Act::gelu:
            return 4e-7;
        case Act::silu:
            return 2e-7;
        case Act::mish:
            return 3e-7;
        case Act::tanh:
            return 2e-7;
    }
    return 0.0;
}

TEST_P(KernelsTest, ActivationsAreAsExactAsStated) {
    std::vector<float> x;
    for (int i = -150000; i <= 150000; ++i) x.push_back(static_cast<float>(i) * 2e-4f);
    for (const float v : {0.0f, -0.0f, 1e-30f, -1e-30f, 100.0f, -100.0f, 1e30f, -1e30f}) x.push_back(v);
    for (const Act act : kActs) {
        std::vector<float> y = x;
        kernels->activate(y.data(), 0, 1, static_cast<int>(y.size()), act);
        for (size_t i = 0; i < x.size(); ++i) {
            const double e = reference(x[i], act);
            ASSERT_NEAR(y[i], e, stated_error(act) * std::max(1.0, std::abs(e)))
                << "x = " << x[i] << ", act " << static_cast<int>(act);
        }
    }
}

TEST_P(KernelsTest, NotANumberStaysOne) {
    for (const Act act : kActs) {
        float y[3] = {NAN, 1.0f, NAN};
        kernels->activate(y, 0, 1, 3, act);
        EXPECT_TRUE(std::isnan(y[0])) << static_cast<int>(act);
        EXPECT_TRUE(std::isfinite(y[1]));
        EXPECT_TRUE(std::isnan(y[2])) << static_cast<int>(act);
    }
}

TEST_P(KernelsTest, LayerNormAndSimNormAgreeWithDouble) {
    for (const int n : {8, 24, 40, 48, 136, 512})
        for (const int rows : {1, 3}) {
            const auto x = normal(static_cast<size_t>(n * rows), 7),
                       gamma = normal(static_cast<size_t>(n), 8), beta = normal(static_cast<size_t>(n), 9);
            std::vector<float> norm = x, sim = x;
            kernels->layer_norm(norm.data(), n, rows, n, gamma.data(), beta.data(), simd::Act::none);
            kernels->simnorm(sim.data(), n, rows, n, 8);
            std::vector<float> active = x, apart = norm;
            kernels->layer_norm(active.data(), n, rows, n, gamma.data(), beta.data(), simd::Act::mish);
            kernels->activate(apart.data(), n, rows, n, simd::Act::mish);
            EXPECT_LT(relative_error(active, std::vector<double>(apart.begin(), apart.end())), 1e-6) << n;
            std::vector<double> norm_expected, sim_expected;
            for (int r = 0; r < rows; ++r) {
                const float* row = x.data() + r * n;
                double mean = 0.0, variance = 0.0;
                for (int j = 0; j < n; ++j) mean += row[j] / static_cast<double>(n);
                for (int j = 0; j < n; ++j) variance += (row[j] - mean) * (row[j] - mean) / n;
                for (int j = 0; j < n; ++j)
                    norm_expected.push_back((row[j] - mean) / std::sqrt(variance + 1e-5) *
                                                gamma[static_cast<size_t>(j)] +
                                            beta[static_cast<size_t>(j)]);
                for (int j = 0; j < n; ++j) {
                    double total = 0.0;
                    for (int i = j / 8 * 8; i < j / 8 * 8 + 8; ++i)
                        total += std::exp(static_cast<double>(row[i]));
                    sim_expected.push_back(std::exp(static_cast<double>(row[j])) / total);
                }
            }
            EXPECT_LT(relative_error(norm, norm_expected), 1e-6) << n;
            EXPECT_LT(relative_error(sim, sim_expected), 1e-6) << n;
        }
}

TEST_P(KernelsTest, DistanceAndAddAgreeWithDouble) {
    for (const int n : {1, 7, 32, 48, 100}) {
        const int rows = 5;
        const auto z = normal(static_cast<size_t>(n * rows), 10), goal = normal(static_cast<size_t>(n), 11);
        std::vector<float> got(rows), sum = z;
        std::vector<double> expected(rows, 0.0);
        kernels->squared_distance(z.data(), n, rows, n, goal.data(), got.data());
        kernels->add(z.data(), n, rows, n, sum.data(), n);
        for (int r = 0; r < rows; ++r)
            for (int j = 0; j < n; ++j) {
                const double d =
                    static_cast<double>(z[static_cast<size_t>(r * n + j)]) - goal[static_cast<size_t>(j)];
                expected[static_cast<size_t>(r)] += d * d;
                EXPECT_EQ(sum[static_cast<size_t>(r * n + j)], 2.0f * z[static_cast<size_t>(r * n + j)]);
            }
        EXPECT_LT(relative_error(got, expected), 1e-6);
    }
}

TEST_P(KernelsTest, GruAndItsDerivativeAgreeWithDouble) {
    const auto sigmoid = [](double x) { return 1.0 / (1.0 + std::exp(-x)); };
    for (const int n : {1, 5, 16, 37, 64})
        for (const float spread : {1e-4f, 1.0f, 30.0f}) {
            constexpr int rows = 3;
            const int stride = padded(n), ld = 4 * stride;
            auto gates = normal(static_cast<size_t>(rows * ld), 1),
                 h = normal(static_cast<size_t>(rows * n), 2),
                 slope = normal(static_cast<size_t>(rows * n), 3);
            for (float& x : gates) x *= spread;
            for (float& x : h) x *= std::min(spread, 1.0f);
            std::vector<float> y = h, d(gates.size(), 12345.0f), passed = slope, flat;
            kernels->gru(gates.data(), ld, stride, y.data(), n, rows, n, y.data(), n);  // in place
            kernels->gru_backward(gates.data(), ld, stride, h.data(), n, rows, n, passed.data(), n, d.data(),
                                  ld);
            std::vector<double> expected, expected_passed, expected_d;
            for (int row = 0; row < rows; ++row)
                for (int j = 0; j < n; ++j) {
                    const auto at = static_cast<size_t>(row * n + j), in = static_cast<size_t>(row * ld + j);
                    const auto step = static_cast<size_t>(stride);
                    const double r = sigmoid(gates[in + step]), z = sigmoid(gates[in + 2 * step]);
                    const double b = gates[in + 3 * step], fresh = std::tanh(gates[in] + r * b),
                                 g = slope[at];
                    expected.push_back((1 - z) * fresh + z * h[at]);
                    expected_passed.push_back(g * z);
                    const double sum = g * (1 - z) * (1 - fresh * fresh);
                    for (const double each :
                         {sum, sum * b * r * (1 - r), g * (h[at] - fresh) * z * (1 - z), sum * r})
                        expected_d.push_back(each);
                    for (size_t group = 0; group < 4; ++group) flat.push_back(d[in + group * step]);
                }
            EXPECT_LT(relative_error(y, expected), 6e-7) << n << ", " << spread;
            for (size_t i = 0; i < y.size(); ++i) EXPECT_NEAR(y[i], expected[i], 8e-7) << n << ", " << spread;
            EXPECT_LT(relative_error(passed, expected_passed), 6e-7) << n << ", " << spread;
            if (spread <= 1.0f) {
                EXPECT_LT(relative_error(flat, expected_d), 3e-6) << n << ", " << spread;
            }
            // Where gates saturate, 1 - tanh² is all rounding.
            for (size_t i = 0; i < flat.size(); ++i)
                EXPECT_NEAR(flat[i], expected_d[i], 1e-6 * (1 + spread)) << n << ", " << spread;
            for (int row = 0; row < rows; ++row)  // what is added up with zero weights must be a number
                for (int group = 0; group < 4; ++group)
                    for (int j = n; j < stride; ++j)
                        EXPECT_EQ(d[static_cast<size_t>(row * ld + group * stride + j)], 0.0f);
        }
    float nan[64] = {}, state[1] = {1.0f};
    for (int group = 0; group < 4; ++group) {
        nan[16 * group] = NAN;
        state[0] = 1.0f;
        kernels->gru(nan, 64, 16, state, 1, 1, 1, state, 1);
        EXPECT_TRUE(std::isnan(state[0])) << group;
        nan[16 * group] = 0.0f;
    }
}

TEST_P(KernelsTest, ModulatedNormAndGateAgreeWithDouble) {
    for (const int n : {1, 3, 16, 37, 192}) {
        const int rows = 5, ld = padded(n) + 16;
        const auto size = static_cast<size_t>(rows * ld);
        const auto x = normal(size, 1), shift = normal(size, 2), scale = normal(size, 3),
                   gamma = normal(static_cast<size_t>(n), 4), beta = normal(static_cast<size_t>(n), 5);
        std::vector<float> y(size, 7.0f), sum = x;
        kernels->modulated_norm(x.data(), ld, rows, n, shift.data(), scale.data(), ld, gamma.data(),
                                beta.data(), y.data(), ld);
        kernels->add_gated(y.data(), ld, scale.data(), ld, rows, n, sum.data(), ld);
        std::vector<float> normed, gated;
        std::vector<double> expected, expected_sum;
        for (int r = 0; r < rows; ++r) {
            std::vector<double> v(x.begin() + r * ld, x.begin() + r * ld + n);
            const auto normalise = [&](double eps) {
                double mean = 0.0, squares = 0.0;
                for (const double each : v) mean += each / n;
                for (const double each : v) squares += (each - mean) * (each - mean) / n;
                for (double& each : v) each = (each - mean) / std::sqrt(squares + eps);
            };
            const auto at = [&](const std::vector<float>& of, int j) {
                return static_cast<double>(of[static_cast<size_t>(r * ld + j)]);
            };
            normalise(1e-6);
            for (int j = 0; j < n; ++j)
                v[static_cast<size_t>(j)] = v[static_cast<size_t>(j)] * (1 + at(scale, j)) + at(shift, j);
            normalise(1e-5);
            for (int j = 0; j < n; ++j) {
                const auto i = static_cast<size_t>(j);
                expected.push_back(v[i] * gamma[i] + beta[i]);
                expected_sum.push_back(at(x, j) + at(scale, j) * expected.back());
                normed.push_back(static_cast<float>(at(y, j)));
                gated.push_back(static_cast<float>(at(sum, j)));
            }
            for (int j = n; j < ld; ++j) EXPECT_EQ(at(y, j), 7.0) << n;
        }
        EXPECT_LT(relative_error(normed, expected), 2e-6) << n;
        EXPECT_LT(relative_error(gated, expected_sum), 2e-6) << n;
    }
}

TEST_P(KernelsTest, AttentionAgreesWithDouble) {
    for (const int tokens : {1, 2, 3, 17, 33})
        for (const int head_dim : {1, 7, 16, 64}) {
            const int rows = 3, heads = 5, inner = heads * head_dim, ldq = inner + 3, ld = 2 * inner + 5;
            auto q = normal(static_cast<size_t>(rows * ldq), 1);
            const auto asked = q;
            std::vector<std::vector<float>> stored;
            std::vector<Token> past;
            for (int i = 0; i < tokens; ++i)
                stored.push_back(normal(static_cast<size_t>(rows * ld), static_cast<unsigned>(i + 2)));
            for (const auto& s : stored) past.push_back({s.data(), ld});
            kernels->attend(q.data(), ldq, past.data(), tokens, rows, heads, head_dim);
            std::vector<float> got;
            std::vector<double> expected;
            for (int r = 0; r < rows; ++r)
                for (int h = 0; h < heads; ++h) {
                    std::vector<double> weight;
                    double total = 0.0;
                    const auto from = [&](int i, int j) {
                        return static_cast<double>(
                            stored[static_cast<size_t>(i)][static_cast<size_t>(r * ld + h * head_dim + j)]);
                    };
                    for (int i = 0; i < tokens; ++i) {
                        double score = 0.0;
                        for (int j = 0; j < head_dim; ++j)
                            score += asked[static_cast<size_t>(r * ldq + h * head_dim + j)] * from(i, j);
                        weight.push_back(std::exp(score / std::sqrt(static_cast<double>(head_dim))));
                        total += weight.back();
                    }
                    for (int j = 0; j < head_dim; ++j) {
                        double sum = 0.0;
                        for (int i = 0; i < tokens; ++i)
                            sum += weight[static_cast<size_t>(i)] / total * from(i, inner + j);
                        expected.push_back(sum);
                        got.push_back(q[static_cast<size_t>(r * ldq + h * head_dim + j)]);
                    }
                }
            EXPECT_LT(relative_error(got, expected), 3e-6) << tokens << ", " << head_dim;
        }
}

TEST_P(KernelsTest, NoiseIsTheSameBitsAsTheBaselines) {
    const Kernels& baseline = *find_kernels("baseline");
    std::vector<int32_t> which;
    for (int i = 0; i < 37; ++i) which.push_back(i * i % 41);
    for (const int count : {1, 4, 10, 20, 33, 64, 130}) {
        const size_t row = static_cast<size_t>((count + 3) / 4 * 4);
        std::vector<float> expected(37 * row), got(37 * row + 1, 7.0f), one(row);
        baseline.gaussian(11, 22, 3, nullptr, 5, 37, count, expected.data());
        kernels->gaussian(11, 22, 3, nullptr, 5, 37, count, got.data());
        EXPECT_EQ(got.back(), 7.0f) << count;
        got.pop_back();
        EXPECT_EQ(got, expected) << count;
        kernels->gaussian(11, 22, 3, which.data(), 0, 37, count, got.data());
        for (size_t i = 0; i < which.size(); ++i) {
            baseline.gaussian(11, 22, 3, nullptr, which[i], 1, count, one.data());
            EXPECT_TRUE(std::equal(one.begin(), one.end(), got.begin() + static_cast<ptrdiff_t>(i * row)))
                << count << ", " << i;
        }
    }
}

TEST_P(KernelsTest, CandidatesAreTheSameBitsAsTheBaselines) {
    const Kernels& baseline = *find_kernels("baseline");
    for (const int count : {1, 2, 7, 16, 20, 50}) {
        const int rows = 5, ld = (count + 3) / 4 * 4;
        const auto n = static_cast<size_t>(count);
        const auto mean = normal(n, 1), spread = normal(n, 2), noise = normal(5 * static_cast<size_t>(ld), 3),
                   scale = normal(n, 4);
        const std::vector<float> low(n, -0.5f), high(n, 0.6f);
        const auto made = [&](const Kernels& k) {
            std::vector<float> x(5 * n), y(noise.begin(), noise.begin() + static_cast<ptrdiff_t>(5 * n)), all;
            k.perturb(mean.data(), spread.data(), low.data(), high.data(), noise.data(), ld, rows, count,
                      x.data());
            all = x;
            k.normalise(mean.data(), scale.data(), rows, count, x.data());
            all.insert(all.end(), x.begin(), x.end());
            k.clamp(low.data(), high.data(), rows, count, y.data());
            all.insert(all.end(), y.begin(), y.end());
            return all;
        };
        const std::vector<float> got = made(*kernels);
        EXPECT_EQ(got, made(baseline)) << count;
        for (size_t i = 0; i < 5 * n; ++i) {
            const float drawn = mean[i % n] + spread[i % n] * noise[i / n * static_cast<size_t>(ld) + i % n];
            EXPECT_NEAR(got[i], std::clamp(drawn, -0.5f, 0.6f), 1e-6);
            EXPECT_NEAR(got[5 * n + i] * scale[i % n] + mean[i % n], got[i], 1e-5);
            EXPECT_EQ(got[10 * n + i], std::clamp(noise[i], -0.5f, 0.6f));
        }
    }
}

// ---- lower precisions: exactly the sums of the rounded numbers, up to fp32 rounding ----

float rounded_to_bf16(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    bits = (bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff0000u;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

TEST(Bf16, DenseSumsRoundedNumbersOnOddShapes) {
    const Bf16Kernels* bf16 = bf16_kernels();
    if (bf16 == nullptr) GTEST_SKIP() << "this machine has no bf16";
    for (const int in : {1, 2, 17, 50, 131})
        for (const int out : {1, 16, 31, 48, 64, 101, 200})
            for (const int rows : {1, 5, 6, 13, 48})
                for (const bool accumulate : {false, true}) {
                    const auto x = normal(static_cast<size_t>(rows * in), 1),
                               w = normal(static_cast<size_t>(in * out), 2),
                               b = normal(static_cast<size_t>(out), 3);
                    const PackedDenseBf16 packed(w, b, in, out);
                    const int narrow = (in + 31) / 32 * 32, ld = (padded(out) + 31) / 32 * 32 + 32;
                    std::vector<uint16_t> x16(static_cast<size_t>(rows * narrow), 0x7fc0),
                        y16(static_cast<size_t>(rows * ld));
                    bf16->convert(x.data(), in, rows, in, x16.data(), narrow);
                    std::vector<float> y(static_cast<size_t>(rows * ld), 2.0f), got, got16;
                    bf16->dense(packed.view(), x16.data(), narrow, rows, y.data(), ld, nullptr, 0, Act::relu,
                                accumulate);
                    bf16->dense(packed.view(), x16.data(), narrow, rows, nullptr, 0, y16.data(), ld,
                                Act::none, false);
                    std::vector<double> expected, expected16;
                    for (int r = 0; r < rows; ++r)
                        for (int j = 0; j < out; ++j) {
                            double total = b[static_cast<size_t>(j)];
                            for (int k = 0; k < in; ++k)
                                total +=
                                    static_cast<double>(rounded_to_bf16(x[static_cast<size_t>(r * in + k)])) *
                                    rounded_to_bf16(w[static_cast<size_t>(j * in + k)]);
                            expected.push_back(reference(total, Act::relu) + (accumulate ? 2.0 : 0.0));
                            expected16.push_back(total);
                            got.push_back(y[static_cast<size_t>(r * ld + j)]);
                            uint32_t wide = static_cast<uint32_t>(y16[static_cast<size_t>(r * ld + j)]) << 16;
                            float value;
                            std::memcpy(&value, &wide, sizeof value);
                            got16.push_back(value);
                        }
                    double size = 0.0;
                    for (const double e : expected) size += e * e;
                    if (size > 0.0) {
                        ASSERT_LT(relative_error(got, expected), 2e-6) << in << " -> " << out;
                    }
                    ASSERT_LT(relative_error(got16, expected16), 4e-3) << in << " -> " << out;
                }
}

// So many at once cover tiles of every height, and every way to make up a rest of lower ones.
constexpr int kManyRows = 25;

TEST(Bf16, ARowDoesNotDependOnItsNeighbours) {
    const Bf16Kernels* bf16 = bf16_kernels();
    if (bf16 == nullptr) GTEST_SKIP() << "this machine has no bf16";
    const int in = 50, narrow = 64, ld = 160;
    const auto x = normal(kManyRows * in, 4);
    std::vector<uint16_t> x16(kManyRows * narrow);
    bf16->convert(x.data(), in, kManyRows, in, x16.data(), narrow);
    for (const int out : {16, 32, 48, 64, 117}) {
        const PackedDenseBf16 packed(normal(static_cast<size_t>(in * out), 5),
                                     normal(static_cast<size_t>(out), 6), in, out);
        const auto run = [&](int first, int rows) {
            std::vector<float> y(static_cast<size_t>(rows * ld));
            bf16->dense(packed.view(), x16.data() + first * narrow, narrow, rows, y.data(), ld, nullptr, 0,
                        Act::relu, false);
            return y;
        };
        const std::vector<float> all = run(0, kManyRows);
        for (int rows = 1; rows < kManyRows; ++rows) {
            const std::vector<float> some = run(0, rows), last = run(kManyRows - rows, rows);
            ASSERT_TRUE(std::equal(some.begin(), some.end(), all.begin())) << rows << " of " << out;
            ASSERT_TRUE(std::equal(last.begin(), last.end(), all.end() - rows * ld)) << rows << " of " << out;
        }
    }
}

// Rows of bytes as the kernels want them: whole multiples of 64, aligned.
struct Bytes {
    Bytes(int rows, int n) : ld((n + 63) / 64 * 64), data(static_cast<size_t>(rows * ld)) {
        for (uint8_t& b : data.span()) b = 77;
    }
    int at(int row, int k, int n) const { return data[static_cast<size_t>(row * ld + byte_place(k, n))]; }
    int ld;
    AlignedBuffer<uint8_t> data;
};

const int kInputs[] = {1, 4, 17, 50, 60, 64, 66, 128, 130};
const int kOutputs[] = {1, 16, 31, 48, 50, 64, 80, 96, 101, 128, 130};

// The layer in double precision, on weights rounded to int8 with one scale per output.
struct Int8Layer {
    Int8Layer(int inputs, int outputs)
        : in(inputs),
          out(outputs),
          weight(normal(static_cast<size_t>(in * out), 2)),
          bias(normal(static_cast<size_t>(out), 3)) {}
    // Sums of in rounded weights times input(k), not yet scaled; and the scale.
    template <class Input>
    double sum(int j, Input input, double* step) const {
        const float* w = weight.data() + j * in;
        float most = 0.0f;
        for (int k = 0; k < in; ++k) most = std::max(most, std::abs(w[k]));
        *step = most / 127.0f;
        double total = 0.0;
        for (int k = 0; k < in; ++k)
            total += input(k) * static_cast<double>(std::lround(w[k] / (most / 127.0f)));
        return total;
    }
    int in, out;
    std::vector<float> weight, bias;
};

class Int8Test : public ::testing::Test {
  protected:
    void SetUp() override {
        if (int8 == nullptr) GTEST_SKIP() << "this machine has no int8";
    }
    const Int8Kernels* int8 = int8_kernels();
};

TEST_F(Int8Test, DenseSumsQuantisedNumbersOnOddShapes) {
    for (const bool positive : {false, true})
        for (const int in : kInputs)
            for (const int out : kOutputs)
                for (const int rows : {1, 5, 13, 48}) {
                    auto x = normal(static_cast<size_t>(rows * in), 1);
                    if (positive)
                        for (float& v : x) v = std::abs(v);
                    const Int8Layer layer(in, out);
                    const PackedDenseInt8 packed(layer.weight, layer.bias, in, out);
                    const int ld = out + 3;
                    Bytes bytes(rows, in);
                    std::vector<float> scale(static_cast<size_t>(rows)),
                        y(static_cast<size_t>(rows * ld), 9.0f), relu = y, got,
                                                                 most(static_cast<size_t>(rows * 16), 5e9f);
                    std::vector<int32_t> zero(static_cast<size_t>(rows));
                    int8->quantise(x.data(), in, rows, in, bytes.data.data(), bytes.ld, scale.data(),
                                   zero.data());
                    int8->dense(packed.view(), bytes.data.data(), bytes.ld, scale.data(), zero.data(), rows,
                                y.data(), ld, Act::none, false, nullptr);
                    int8->dense(packed.view(), bytes.data.data(), bytes.ld, scale.data(), zero.data(), rows,
                                relu.data(), ld, Act::relu, false, most.data());
                    std::vector<double> exact, real;
                    for (int r = 0; r < rows; ++r) {
                        const auto row = static_cast<size_t>(r);
                        for (int k = 0; k < in; ++k)  // half a step at most
                            ASSERT_NEAR(scale[row] * static_cast<float>(bytes.at(r, k, in) - zero[row]),
                                        x[static_cast<size_t>(r * in + k)], 0.5001 * scale[row]);
                        float highest = 0.0f;
                        for (int j = 0; j < out; ++j) {
                            double step = 0.0, true_sum = layer.bias[static_cast<size_t>(j)];
                            const double sum =
                                layer.sum(j, [&](int k) { return bytes.at(r, k, in) - zero[row]; }, &step);
                            for (int k = 0; k < in; ++k)
                                true_sum +=
                                    static_cast<double>(layer.weight[static_cast<size_t>(j * in + k)]) *
                                    x[static_cast<size_t>(r * in + k)];
                            exact.push_back(sum * scale[row] * step + layer.bias[static_cast<size_t>(j)]);
                            real.push_back(true_sum);
                            got.push_back(y[static_cast<size_t>(r * ld + j)]);
                            ASSERT_EQ(relu[static_cast<size_t>(r * ld + j)], got.back());
                            highest = std::max(highest, got.back());
                        }
                        ASSERT_EQ(*std::max_element(&most[row * 16], &most[row * 16] + 16), highest);
                        for (int j = out; j < ld; ++j) {
                            ASSERT_EQ(y[static_cast<size_t>(r * ld + j)], 9.0f);
                            ASSERT_EQ(relu[static_cast<size_t>(r * ld + j)], 9.0f);
                        }
                    }
                    ASSERT_LT(relative_error(got, exact), 2e-6) << in << " -> " << out;
                    if (got.size() > 100) {  // one sum alone may be near zero
                        ASSERT_LT(relative_error(got, real), 0.03) << in << " -> " << out;
                    }

                    Bytes next(rows, out), fused(rows, out);
                    auto fused_scale = scale;
                    auto fused_zero = zero;
                    const bool fits = out <= kMaxInt8Row;
                    if (fits)
                        int8->dense_relu(packed.view(), bytes.data.data(), bytes.ld, fused_scale.data(),
                                         fused_zero.data(), rows, fused.data.data(), fused.ld);
                    int8->quantise_relu(relu.data(), ld, rows, out, most.data(), next.data.data(), next.ld,
                                        scale.data(), zero.data());
                    for (int r = 0; r < rows; ++r)
                        for (int j = 0; j < out; ++j) {
                            const auto row = static_cast<size_t>(r);
                            ASSERT_EQ(zero[row], 0);
                            if (fits) {  // the same bits either way
                                ASSERT_EQ(fused.at(r, j, out), next.at(r, j, out)) << in << " -> " << out;
                                ASSERT_EQ(fused_scale[row], scale[row]);
                                ASSERT_EQ(fused_zero[row], 0);
                            }
                            ASSERT_NEAR(scale[row] * static_cast<float>(next.at(r, j, out)),
                                        std::max(0.0f, relu[static_cast<size_t>(r * ld + j)]),
                                        0.5001 * scale[row]);
                        }
                }
}

TEST_F(Int8Test, StaticScalesGiveTheSameSumsAndTheNextLayersBytes) {
    for (const ActivationScale& input : {ActivationScale{{0.02f}, 128}, ActivationScale{{0.015f}, 3}})
        for (const ActivationScale& next : {ActivationScale{{0.3f}, 0}, ActivationScale{{0.25f}, 120}})
            for (const int in : kInputs)
                for (const int out : kOutputs)
                    for (const int rows : {1, 13, 48}) {
                        const auto x = normal(static_cast<size_t>(rows * in), 1);
                        const Int8Layer layer(in, out);
                        const PackedDenseInt8Static packed(layer.weight, layer.bias, in, out, {}, input,
                                                           next);
                        const int ld = out + 3;
                        Bytes bytes(rows, in), to(rows, out), relu_to(rows, out);
                        std::vector<float> y(static_cast<size_t>(rows * ld), 9.0f), got;
                        int8->quantise_static(x.data(), in, rows, in, packed.inverse(), input.zero,
                                              bytes.data.data(), bytes.ld);
                        int8->dense_static(packed.view(), bytes.data.data(), bytes.ld, rows, y.data(), ld,
                                           nullptr, 0, Act::none, true);
                        int8->dense_static(packed.view(), bytes.data.data(), bytes.ld, rows, nullptr, 0,
                                           to.data.data(), to.ld, Act::none, false);
                        int8->dense_static(packed.view(), bytes.data.data(), bytes.ld, rows, nullptr, 0,
                                           relu_to.data.data(), relu_to.ld, Act::relu, false);
                        std::vector<double> exact;
                        for (int r = 0; r < rows; ++r) {
                            for (int k = 0; k < in; ++k) {
                                const double wanted = std::clamp(
                                    x[static_cast<size_t>(r * in + k)] / static_cast<double>(input.at(0)) +
                                        input.zero,
                                    0.0, 255.0);
                                ASSERT_NEAR(bytes.at(r, k, in), wanted, 0.501);
                            }
                            for (int j = 0; j < out; ++j) {
                                double step = 0.0;
                                const double sum = layer.sum(
                                    j, [&](int k) { return bytes.at(r, k, in) - input.zero; }, &step);
                                const double value = sum * static_cast<double>(input.at(0)) * step +
                                                     layer.bias[static_cast<size_t>(j)];
                                exact.push_back(value + 9.0);
                                got.push_back(y[static_cast<size_t>(r * ld + j)]);
                                const double wanted = value / static_cast<double>(next.at(0)) + next.zero;
                                ASSERT_NEAR(to.at(r, j, out), std::clamp(wanted, 0.0, 255.0), 0.51);
                                ASSERT_NEAR(relu_to.at(r, j, out),
                                            std::clamp(wanted, static_cast<double>(next.zero), 255.0), 0.51);
                            }
                            for (int j = out; j < ld; ++j)
                                ASSERT_EQ(y[static_cast<size_t>(r * ld + j)], 9.0f);
                        }
                        // The bias is rounded too, to what one weight step times one input step is.
                        ASSERT_LT(relative_error(got, exact), 2e-4) << in << " -> " << out;
                    }
}

TEST_F(Int8Test, TheNextInputIsTheSameBitsInOneGo) {
    for (const int out : {16, 32, 48, 64})
        for (const int count : {1, 2, 4, 5, 16})
            for (const int rows : {1, 2, 5, 7, 11, 13, 48})
                for (const bool accumulate : {false, true}) {
                    if (!has_next_input(out, count)) continue;
                    const int in = 50, next_in = out + count, ld = out + 5;
                    auto x = normal(static_cast<size_t>(rows * in), 1),
                         more = normal(static_cast<size_t>(rows * 20), 4);
                    const Int8Layer layer(in, out), after(next_in, 3);
                    auto y = normal(static_cast<size_t>(rows * ld), 5);
                    if (rows == 13)  // one row has no negative number, one is not finite, one has nothing
                        for (int j = 0; j < ld; ++j) {
                            y[static_cast<size_t>(2 * ld + j)] = 1e3f;
                            more[40 + static_cast<size_t>(j % count)] = 0.5f;
                            y[static_cast<size_t>(4 * ld + j)] = std::numeric_limits<float>::quiet_NaN();
                        }
                    const auto joined = [&](const std::vector<float>& sums) {
                        std::vector<float> rows_of;
                        for (int r = 0; r < rows; ++r) {
                            rows_of.insert(rows_of.end(), sums.begin() + r * ld, sums.begin() + r * ld + out);
                            rows_of.insert(rows_of.end(), more.begin() + r * 20,
                                           more.begin() + r * 20 + count);
                        }
                        return rows_of;
                    };
                    const auto same = [&](const Bytes& a, const Bytes& b) {
                        for (int r = 0; r < rows; ++r)
                            for (int k = 0; k < next_in; ++k) {
                                if (rows == 13 && r == 4) continue;  // bytes of what is not a number
                                ASSERT_EQ(a.at(r, k, next_in), b.at(r, k, next_in)) << r << " " << k;
                            }
                    };
                    const auto bits = [](const std::vector<float>& v) {
                        std::vector<uint32_t> b(v.size());
                        std::memcpy(b.data(), v.data(), v.size() * sizeof(float));
                        return b;
                    };

                    const PackedDenseInt8 packed(layer.weight, layer.bias, in, out);
                    Bytes bytes(rows, in), apart(rows, next_in), together(rows, next_in);
                    std::vector<float> scale(static_cast<size_t>(rows)), apart_scale = scale, one = y,
                                                                         two = y;
                    std::vector<int32_t> zero(static_cast<size_t>(rows)), apart_zero = zero;
                    int8->quantise(x.data(), in, rows, in, bytes.data.data(), bytes.ld, scale.data(),
                                   zero.data());
                    int8->dense(packed.view(), bytes.data.data(), bytes.ld, scale.data(), zero.data(), rows,
                                one.data(), ld, Act::none, accumulate, nullptr);
                    int8->quantise(joined(one).data(), next_in, rows, next_in, apart.data.data(), apart.ld,
                                   apart_scale.data(), apart_zero.data());
                    const NextInput next{together.data.data(), together.ld, more.data(), 20, count};
                    int8->dense_next(packed.view(), bytes.data.data(), bytes.ld, scale.data(), zero.data(),
                                     rows, two.data(), ld, accumulate, next);
                    ASSERT_EQ(bits(one), bits(two));
                    for (size_t r = 0; r < static_cast<size_t>(rows); ++r)
                        ASSERT_TRUE(scale[r] == apart_scale[r] ||
                                    (std::isnan(scale[r]) && std::isnan(apart_scale[r])));
                    ASSERT_EQ(zero, apart_zero);
                    same(together, apart);

                    const ActivationScale input{{0.02f}, 128}, following{{0.03f}, 100};
                    const PackedDenseInt8Static known(layer.weight, layer.bias, in, out, {}, input,
                                                      following);
                    const PackedDenseInt8Static then(after.weight, after.bias, next_in, 3, {}, following,
                                                     following);
                    one = two = y;
                    int8->quantise_static(x.data(), in, rows, in, known.inverse(), known.zero(),
                                          bytes.data.data(), bytes.ld);
                    int8->dense_static(known.view(), bytes.data.data(), bytes.ld, rows, one.data(), ld,
                                       nullptr, 0, Act::none, accumulate);
                    int8->quantise_static(joined(one).data(), next_in, rows, next_in, then.inverse(),
                                          then.zero(), apart.data.data(), apart.ld);
                    int8->dense_static_next(known.view(), bytes.data.data(), bytes.ld, rows, two.data(), ld,
                                            accumulate, then.inverse(), then.zero(), next);
                    ASSERT_EQ(bits(one), bits(two));
                    same(together, apart);
                }
}

TEST_F(Int8Test, BiasesAndScalesOfAnySizeSaturate) {
    // Weights 0, tiny and large beside the bias; steps that every sum exceeds.
    const std::vector<float> weight = {0.0f, 1e-30f, 1e30f, 1.0f}, bias = {0.7f, -3.0f, 1.0f, 1e20f};
    const std::vector<float> x = {2.5f};
    for (const float step : {1e-30f, 1e-3f, 1e30f}) {
        const PackedDenseInt8Static packed(weight, bias, 1, 4, {}, {{0.1f}, 0}, {{step}, 0});
        Bytes bytes(1, 1), to(1, 4);
        std::vector<float> y(4);
        int8->quantise_static(x.data(), 1, 1, 1, packed.inverse(), 0, bytes.data.data(), bytes.ld);
        int8->dense_static(packed.view(), bytes.data.data(), bytes.ld, 1, y.data(), 4, nullptr, 0, Act::none,
                           false);
        int8->dense_static(packed.view(), bytes.data.data(), bytes.ld, 1, nullptr, 0, to.data.data(), to.ld,
                           Act::none, false);
        for (size_t j = 0; j < 4; ++j) {
            const double value = static_cast<double>(weight[j]) * 2.5 + static_cast<double>(bias[j]);
            EXPECT_NEAR(y[j], value, 1e-6 * std::abs(value));
            EXPECT_NEAR(to.at(0, static_cast<int>(j), 4),
                        std::clamp(value / static_cast<double>(step), 0.0, 255.0), 0.51);
        }
    }
    const std::vector<float> far = {1e30f, -1e30f, INFINITY, 1e-30f};
    Bytes bytes(1, 4);
    const std::vector<float> inverse(16, 1e5f);
    int8->quantise_static(far.data(), 4, 1, 4, inverse.data(), 7, bytes.data.data(), bytes.ld);
    EXPECT_EQ(bytes.at(0, 0, 4), 255);
    EXPECT_EQ(bytes.at(0, 1, 4), 0);
    EXPECT_EQ(bytes.at(0, 2, 4), 255);
    EXPECT_EQ(bytes.at(0, 3, 4), 7);
}

TEST_F(Int8Test, ARowThatIsNotFiniteStaysSo) {
    const int n = 100, rows = 3;
    for (const float bad : {NAN, -NAN, INFINITY, -INFINITY})
        for (const int where : {0, 15, 50, 99}) {
            auto x = normal(n * rows, 1);
            x[static_cast<size_t>(n + where)] = bad;
            Bytes bytes(rows, n);
            std::vector<float> scale(rows), most(rows * 16, 1.0f);
            std::vector<int32_t> zero(rows);
            int8->quantise(x.data(), n, rows, n, bytes.data.data(), bytes.ld, scale.data(), zero.data());
            EXPECT_FALSE(std::isfinite(scale[1]));
            EXPECT_TRUE(std::isfinite(scale[0]) && std::isfinite(scale[2]));
            int8->quantise_relu(x.data(), n, rows, n, most.data(), bytes.data.data(), bytes.ld, scale.data(),
                                zero.data());
            EXPECT_FALSE(std::isfinite(scale[1]));
            EXPECT_TRUE(std::isfinite(scale[0]) && std::isfinite(scale[2]));
        }
}

TEST_F(Int8Test, ARowDoesNotDependOnItsNeighbours) {
    const auto x = normal(kManyRows * 70, 4);
    for (const int in : {3, 50, 66})
        for (const int out : {16, 32, 48, 64, 80, 117, 128}) {
            const Int8Layer layer(in, out);
            const PackedDenseInt8 packed(layer.weight, layer.bias, in, out);
            struct Out {
                std::vector<float> y, scale;
                std::vector<uint8_t> bytes;
            };
            const auto run = [&](int first, int rows) {
                Bytes bytes(rows, in), next(rows, out);
                const auto n = static_cast<size_t>(rows);
                Out o{std::vector<float>(n * static_cast<size_t>(out)), std::vector<float>(n), {}};
                std::vector<int32_t> zero(n);
                int8->quantise(x.data() + first * 70, 70, rows, in, bytes.data.data(), bytes.ld,
                               o.scale.data(), zero.data());
                int8->dense(packed.view(), bytes.data.data(), bytes.ld, o.scale.data(), zero.data(), rows,
                            o.y.data(), out, Act::none, false, nullptr);
                int8->dense_relu(packed.view(), bytes.data.data(), bytes.ld, o.scale.data(), zero.data(),
                                 rows, next.data.data(), next.ld);
                for (int r = 0; r < rows; ++r)
                    for (int k = 0; k < out; ++k) o.bytes.push_back(static_cast<uint8_t>(next.at(r, k, out)));
                return o;
            };
            const Out all = run(0, kManyRows);
            const auto same = [](const auto& some, const auto& whole, int from_row) {
                return std::equal(
                    some.begin(), some.end(),
                    whole.begin() + from_row * static_cast<ptrdiff_t>(whole.size()) / kManyRows);
            };
            for (int rows = 1; rows < kManyRows; ++rows)
                for (const int first : {0, kManyRows - rows}) {
                    const Out some = run(first, rows);
                    ASSERT_TRUE(same(some.y, all.y, first)) << rows << " rows, " << in << " -> " << out;
                    ASSERT_TRUE(same(some.scale, all.scale, first))
                        << rows << " rows, " << in << " -> " << out;
                    ASSERT_TRUE(same(some.bytes, all.bytes, first))
                        << rows << " rows, " << in << " -> " << out;
                }
        }
}

TEST_F(Int8Test, ARowWithStaticScalesDoesNotDependOnItsNeighbours) {
    const int in = 50, out = 117, rows = 61;
    const auto x = normal(rows * in, 4);
    const Int8Layer layer(in, out);
    const PackedDenseInt8Static packed(layer.weight, layer.bias, in, out, {}, {{0.02f}, 128}, {});
    Bytes bytes(rows, in);
    std::vector<float> all(rows * out), alone(out);
    int8->quantise_static(x.data(), in, rows, in, packed.inverse(), 128, bytes.data.data(), bytes.ld);
    int8->dense_static(packed.view(), bytes.data.data(), bytes.ld, rows, all.data(), out, nullptr, 0,
                       Act::relu, false);
    for (int r = 0; r < rows; ++r) {
        int8->dense_static(packed.view(), bytes.data.data() + r * bytes.ld, bytes.ld, 1, alone.data(), out,
                           nullptr, 0, Act::relu, false);
        for (int j = 0; j < out; ++j)
            ASSERT_EQ(all[static_cast<size_t>(r * out + j)], alone[static_cast<size_t>(j)]);
    }
}

std::string isa_name(const ::testing::TestParamInfo<const char*>& tested) {
    return tested.param;
}

INSTANTIATE_TEST_SUITE_P(EveryInstructionSet, KernelsTest,
                         ::testing::Values("baseline", "avx2", "avx512", "neon"), isa_name);

TEST(Dispatch, UnknownNamesAreNotFound) {
    EXPECT_EQ(find_kernels("sse17"), nullptr);
}

}  // namespace
}  // namespace pyjepa::simd
