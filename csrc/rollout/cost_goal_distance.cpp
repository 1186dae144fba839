// goal_distance: how far the predicted latent is from the goal's, L2 or squared L2.
#include <cmath>

#include "rollout/cost.hpp"

namespace pyjepa {
namespace {

class GoalDistance final : public CostTerm {
  public:
    explicit GoalDistance(Metric metric) : metric_(metric) {}
    void score(const StepView& s, float* out) const noexcept override {
        s.kernels.squared_distance(s.states, s.state_ld, s.rows, s.latent, s.goal, out);
        if (metric_ == Metric::l2)
            for (int r = 0; r < s.rows; ++r) out[r] = std::sqrt(out[r]);
    }
    bool needs_goal() const noexcept override { return true; }

  private:
    Metric metric_;
};

}  // namespace

std::unique_ptr<CostTerm> make_goal_distance(Metric metric) {
    return std::make_unique<GoalDistance>(metric);
}

}  // namespace pyjepa
