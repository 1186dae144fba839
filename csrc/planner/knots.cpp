#include "planner/knots.hpp"

#include <algorithm>
#include <cmath>

namespace pyjepa {

Knots::Knots(int steps, int knots, Interpolation interpolation)
    : steps_(steps), knots_(knots), interpolation_(interpolation), identity_(steps == knots) {
    expand_.reserve(static_cast<size_t>(steps));
    for (int s = 0; s < steps; ++s) expand_.push_back(at_step(static_cast<float>(s)));
}

Knots::Stencil Knots::at_step(float step) const noexcept {
    const int last = knots_ - 1;
    step = std::clamp(step, 0.0f, static_cast<float>(steps_ - 1));
    if (interpolation_ == Interpolation::zero || last == 0) {
        // In integers where the step is one, so that a share never starts a step early.
        const int k = static_cast<int>(std::floor(static_cast<double>(step) * knots_ / steps_ + 1e-9));
        return {{std::min(k, last), 0, 0, 0}, {1.0f, 0.0f, 0.0f, 0.0f}};
    }
    const double place = static_cast<double>(step) * last / (steps_ - 1);
    const int k = std::min(static_cast<int>(place), last - 1);
    const auto f = static_cast<float>(place - k);
    if (interpolation_ == Interpolation::linear) return {{k, k + 1, 0, 0}, {1.0f - f, f, 0.0f, 0.0f}};
    // Catmull-Rom: cubic Hermite with slopes (p[k+1] - p[k-1]) / 2; the ends repeat.
    const float f2 = f * f, f3 = f2 * f;
    return {{std::max(k - 1, 0), k, k + 1, std::min(k + 2, last)},
            {0.5f * (-f3 + 2.0f * f2 - f), 0.5f * (3.0f * f3 - 5.0f * f2 + 2.0f),
             0.5f * (-3.0f * f3 + 4.0f * f2 + f), 0.5f * (f3 - f2)}};
}

void Knots::apply(const Stencil& s, const float* knots, int dim, float* out) noexcept {
    for (int d = 0; d < dim; ++d) {
        float total = s.weight[0] * knots[s.at[0] * dim + d];
        for (int i = 1; i < 4; ++i)
            if (s.weight[i] != 0.0f) total += s.weight[i] * knots[s.at[i] * dim + d];
        out[d] = total;
    }
}

void Knots::expand(const float* knots, int dim, float* out) const noexcept {
    if (identity_) {
        std::copy_n(knots, static_cast<ptrdiff_t>(steps_) * dim, out);
        return;
    }
    for (const Stencil& s : expand_) {
        apply(s, knots, dim, out);
        out += dim;
    }
}

void Knots::pull_back(const float* plan, int dim, float* knots) const noexcept {
    std::fill_n(knots, static_cast<ptrdiff_t>(knots_) * dim, 0.0f);
    for (const Stencil& s : expand_) {
        for (int i = 0; i < 4; ++i)
            if (s.weight[i] != 0.0f)
                for (int d = 0; d < dim; ++d) knots[s.at[i] * dim + d] += s.weight[i] * plan[d];
        plan += dim;
    }
}

void Knots::shift(const float* knots, int dim, float by, float* out) const noexcept {
    for (int k = 0; k < knots_; ++k, out += dim) {
        const bool held = interpolation_ == Interpolation::zero || knots_ == 1;
        const double own = held ? static_cast<double>(k) * steps_ / knots_
                                : static_cast<double>(k) * (steps_ - 1) / (knots_ - 1);
        apply(at_step(static_cast<float>(own) + by), knots, dim, out);
    }
}

}  // namespace pyjepa
