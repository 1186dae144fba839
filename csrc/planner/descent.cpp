#include "planner/descent.hpp"

#include <algorithm>
#include <cmath>

namespace pyjepa {
namespace {

// A descent is a few dozen steps long: both moments forget sooner than the usual 0.9 and 0.999.
constexpr double kBeta1 = 0.7, kBeta2 = 0.9;

}  // namespace

Descent::Descent(const PlannerSettings& settings, const Knots& knots, int steps)
    : settings_(settings),
      knots_(knots),
      steps_(steps),
      size_(static_cast<size_t>(settings.knots) * static_cast<size_t>(settings.plan_dim)) {
    const size_t all =
        static_cast<size_t>(settings.environments) * static_cast<size_t>(settings.restarts) * size_;
    const size_t plan = static_cast<size_t>(settings.steps) * static_cast<size_t>(settings.plan_dim);
    momentum_ = AlignedFloats(all);
    squares_ = AlignedFloats(all);
    slope_ = AlignedFloats(size_);
    plan_ = AlignedFloats(plan);
    masked_ = AlignedFloats(plan);
    taken_.resize(static_cast<size_t>(settings.environments));
    double first = 1.0, second = 1.0;
    for (int i = 0; i < steps; ++i) {
        first *= kBeta1;
        second *= kBeta2;
        rate_.push_back(static_cast<double>(settings.learning_rate) * (steps - i) /
                        steps);  // falls towards 0
        first_.push_back(1.0 / (1.0 - first));
        second_.push_back(1.0 / (1.0 - second));
    }
}

void Descent::start(int e) noexcept {
    taken_[static_cast<size_t>(e)] = 0;
    const size_t count = static_cast<size_t>(settings_.restarts) * size_;
    std::fill_n(momentum_.data() + at(e, 0), count, 0.0f);
    std::fill_n(squares_.data() + at(e, 0), count, 0.0f);
}

void Descent::keep(int e, float* points, const int* indices, int count) noexcept {
    for (int i = 0; i < count; ++i) {
        if (indices[i] == i) continue;
        const size_t to = static_cast<size_t>(i) * size_, from = static_cast<size_t>(indices[i]) * size_;
        for (float* values : {points, momentum_.data() + at(e, 0), squares_.data() + at(e, 0)})
            std::copy_n(values + from, size_, values + to);
    }
}

void Descent::step(int e, int count, float* points, const float* cost, const float* gradient) noexcept {
    const auto dim = static_cast<size_t>(settings_.plan_dim), plan = masked_.size();
    const auto i = static_cast<size_t>(std::min(taken_[static_cast<size_t>(e)]++, steps_ - 1));
    for (int n = 0; n < count; ++n, gradient += plan) {
        if (!std::isfinite(cost[n])) continue;
        float *x = points + static_cast<size_t>(n) * size_, *m = momentum_.data() + at(e, n),
              *v = squares_.data() + at(e, n);
        // Where a cubic curve has left the bounds, the plan does not follow it.
        knots_.expand(x, settings_.plan_dim, plan_.data());
        for (size_t j = 0; j < plan; ++j) {
            const bool inside = plan_[j] >= settings_.low[j % dim] && plan_[j] <= settings_.high[j % dim];
            masked_[j] = inside ? gradient[j] : 0.0f;
        }
        knots_.pull_back(masked_.data(), settings_.plan_dim, slope_.data());
        for (size_t j = 0; j < size_; ++j) {
            const float low = settings_.low[j % dim], high = settings_.high[j % dim];
            const double g = slope_[j];
            const double mean = kBeta1 * static_cast<double>(m[j]) + (1.0 - kBeta1) * g;
            const double square = kBeta2 * static_cast<double>(v[j]) + (1.0 - kBeta2) * g * g;
            m[j] = static_cast<float>(mean);
            v[j] = static_cast<float>(square);
            const double half_range = 0.5 * (static_cast<double>(high) - static_cast<double>(low));
            const double move =
                rate_[i] * half_range * mean * first_[i] / (std::sqrt(square * second_[i]) + 1e-12);
            x[j] = std::clamp(static_cast<float>(static_cast<double>(x[j]) - move), low, high);
        }
    }
}

}  // namespace pyjepa
