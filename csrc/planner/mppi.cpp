// Model-predictive path integral control (Williams et al. 2017): the mean of all candidates, weighted by
// exp(-(cost - least cost) / scale). Measuring the temperature in standard deviations of the costs (scale =
// temperature * spread of the costs) makes one setting serve models whose costs differ in scale; absolute,
// scale = temperature.
//
// With elite_refit only the elites are weighed, and the spread becomes theirs, likewise weighted: the planner
// of TD-MPC2 (Hansen et al. 2024), whose own `temperature` is one over ours.
#include <algorithm>
#include <cmath>

#include "planner/planner.hpp"

namespace pyjepa {
namespace {

class Mppi final : public Planner {
  public:
    explicit Mppi(const PlannerSettings& settings)
        : Planner(settings), weight_(static_cast<size_t>(settings.candidates)) {}

    int keeps() const noexcept override { return settings_.elite_refit ? settings_.elites : 0; }

    void refit(int e, const float* cost) noexcept override {
        const bool elite = settings_.elite_refit;
        const int count = elite ? cheapest(cost, settings_.elites) : settings_.candidates;
        const auto taking_part = [&](int i) { return elite ? order_[static_cast<size_t>(i)] : i; };
        double least = INFINITY, total = 0.0, squares = 0.0;
        int finite = 0;
        for (int i = 0; i < count; ++i)
            if (const float c = cost[taking_part(i)]; std::isfinite(c)) {
                least = std::min(least, static_cast<double>(c));
                ++finite;
            }
        if (finite == 0) return;
        for (int i = 0; i < count; ++i)
            if (const float c = cost[taking_part(i)]; std::isfinite(c)) {
                const double above = static_cast<double>(c) - least;
                total += above;
                squares += above * above;
            }
        double scale = settings_.temperature;
        if (settings_.temperature_scale == TemperatureScale::std) {
            const double average = total / finite;
            const double spread = std::sqrt(std::max(0.0, squares / finite - average * average));
            if (!(spread > 0.0)) return;  // all the same: nothing to learn
            scale *= spread;
        }

        std::fill(sum_.begin(), sum_.end(), 0.0);
        std::fill(square_sum_.begin(), square_sum_.end(), 0.0);
        double weights = 0.0, squared_weights = 0.0;
        int weighed = 0;
        for (int i = 0; i < count; ++i) {
            const int n = taking_part(i);
            if (!std::isfinite(cost[n])) continue;
            const double w = stable_exp((least - static_cast<double>(cost[n])) * (1.0 / scale));
            if (w < 1e-12) continue;
            weights += w;
            squared_weights += w * w;
            weight_[static_cast<size_t>(weighed)] = w;
            order_[static_cast<size_t>(weighed++)] = n;  // no further than where we read
        }
        float* mean = mean_.data() + offset(e);
        for_each_drawn(e, order_.data(), weighed, [&](int i, const float* knots) {
            const double w = weight_[static_cast<size_t>(i)];
            for (size_t j = 0; j < knots_size_; ++j) {
                const double d = static_cast<double>(knots[j]) - static_cast<double>(mean[j]);
                sum_[j] += w * d;
                square_sum_[j] += w * d * d;
            }
        });
        float* std = std_.data() + offset(e);
        for (size_t j = 0; j < knots_size_; ++j) {
            const double move = sum_[j] / weights;
            square_sum_[j] = std::max(0.0, square_sum_[j] / weights - move * move);
            mean[j] = static_cast<float>(static_cast<double>(mean[j]) + move);
            if (!elite) continue;
            const size_t d = j % static_cast<size_t>(settings_.plan_dim);
            const double spread = std::sqrt(square_sum_[j]);
            std[j] = std::min(std::max(static_cast<float>(spread), least_std_[d]), most_std_[d]);
        }
        diagnose(e, weights, squared_weights, square_sum_);
    }

  private:
    std::vector<double> weight_;  // (N,): of the candidates weighed
};

}  // namespace

std::unique_ptr<Planner> make_mppi(const PlannerSettings& settings) {
    return std::make_unique<Mppi>(settings);
}

}  // namespace pyjepa
