// Model-predictive path integral control (Williams et al. 2017): the mean of all candidates, weighted by
// exp(-(cost - least cost) / (temperature * spread of the costs)). Measuring the temperature in standard
// deviations of the costs makes one setting serve models whose costs differ in scale.
#include <algorithm>
#include <cmath>

#include "planner/planner.hpp"

namespace pyjepa {
namespace {

class Mppi final : public Planner {
  public:
    using Planner::Planner;

    void refit(int e, const float* cost) noexcept override {
        double least = INFINITY, total = 0.0, squares = 0.0;
        int finite = 0;
        for (int n = 0; n < settings_.candidates; ++n)
            if (std::isfinite(cost[n])) {
                least = std::min(least, static_cast<double>(cost[n]));
                ++finite;
            }
        if (finite == 0) return;
        for (int n = 0; n < settings_.candidates; ++n)
            if (std::isfinite(cost[n])) {
                const double above = static_cast<double>(cost[n]) - least;
                total += above;
                squares += above * above;
            }
        const double average = total / finite;
        const double spread = std::sqrt(std::max(0.0, squares / finite - average * average));
        if (!(spread > 0.0)) return;  // all the same: nothing to learn
        const double scale = 1.0 / (static_cast<double>(settings_.temperature) * spread);

        std::fill(sum_.begin(), sum_.end(), 0.0);
        std::fill(square_sum_.begin(), square_sum_.end(), 0.0);
        double weights = 0.0, squared_weights = 0.0;
        float* mean = mean_.data() + offset(e);
        for (int n = 0; n < settings_.candidates; ++n) {
            if (!std::isfinite(cost[n])) continue;
            const double w = stable_exp((least - static_cast<double>(cost[n])) * scale);
            if (w < 1e-12) continue;
            weights += w;
            squared_weights += w * w;
            sample(e, n, drawn_.data());
            for (size_t j = 0; j < knots_size_; ++j) {
                const double d = static_cast<double>(drawn_[j]) - static_cast<double>(mean[j]);
                sum_[j] += w * d;
                square_sum_[j] += w * d * d;
            }
        }
        for (size_t j = 0; j < knots_size_; ++j) {
            const double move = sum_[j] / weights;
            square_sum_[j] = square_sum_[j] / weights - move * move;
            mean[j] = static_cast<float>(static_cast<double>(mean[j]) + move);
        }
        diagnose(e, weights, squared_weights, square_sum_);
    }
};

}  // namespace

std::unique_ptr<Planner> make_mppi(const PlannerSettings& settings) {
    return std::make_unique<Mppi>(settings);
}

}  // namespace pyjepa
