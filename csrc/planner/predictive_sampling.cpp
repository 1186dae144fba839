// Predictive sampling (Howell et al. 2022): keep the best candidate, sample around it.
#include <algorithm>

#include "planner/planner.hpp"

namespace pyjepa {
namespace {

class PredictiveSampling final : public Planner {
  public:
    using Planner::Planner;

    int keeps() const noexcept override { return 1; }

    void refit(int e, const float* cost) noexcept override {
        if (cheapest(cost, 1) == 0) return;
        for_each_drawn(e, order_.data(), 1, [&](int, const float* knots) { set_mean(e, knots); });
        std::fill(square_sum_.begin(), square_sum_.end(), 0.0);
        diagnose(e, 1.0, 1.0, square_sum_);  // the best alone counts
    }
};

}  // namespace

std::unique_ptr<Planner> make_predictive_sampling(const PlannerSettings& settings) {
    return std::make_unique<PredictiveSampling>(settings);
}

}  // namespace pyjepa
