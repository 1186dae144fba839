#include "planner/cem.hpp"

#include <algorithm>
#include <cmath>

namespace pyjepa {

void Cem::refit(int e, const float* cost) noexcept {
    const int elites = cheapest(cost, settings_.elites);
    if (elites == 0) return;
    std::fill(sum_.begin(), sum_.end(), 0.0);
    std::fill(square_sum_.begin(), square_sum_.end(), 0.0);
    float* mean = mean_.data() + offset(e);
    float* std = std_.data() + offset(e);
    for_each_drawn(e, order_.data(), elites, [&](int, const float* knots) {
        for (size_t j = 0; j < knots_size_; ++j) {  // around the old mean, so that no digits cancel
            const double d = static_cast<double>(knots[j]) - static_cast<double>(mean[j]);
            sum_[j] += d;
            square_sum_[j] += d * d;
        }
    });
    const double keep = settings_.momentum;
    for (size_t j = 0; j < knots_size_; ++j) {
        const size_t d = j % static_cast<size_t>(settings_.plan_dim);
        const double move = sum_[j] / elites;
        square_sum_[j] = std::max(0.0, square_sum_[j] / elites - move * move);
        const double spread = std::sqrt(square_sum_[j]);
        mean[j] = static_cast<float>(static_cast<double>(mean[j]) + (1.0 - keep) * move);
        std[j] = std::max(static_cast<float>(keep * static_cast<double>(std[j]) + (1.0 - keep) * spread),
                          least_std_[d]);
    }
    diagnose(e, elites, elites, square_sum_);
}

std::unique_ptr<Planner> make_cem(const PlannerSettings& settings) {
    return std::make_unique<Cem>(settings);
}

}  // namespace pyjepa
