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
    void add_gradient(const StepView& s, float weight, const StepGradient& to,
                      float* scratch) const noexcept override {
        score(s, scratch);
        for (int r = 0; r < s.rows; ++r) {
            // At the goal itself the distance has no slope; 0 is one of its subgradients.
            const float scale = metric_ == Metric::squared_l2 ? 2.0f * weight
                                : scratch[r] > 0.0f           ? weight / scratch[r]
                                                              : 0.0f;
            const float* z = s.states + r * s.state_ld;
            float* out = to.states + r * to.state_ld;
            for (int j = 0; j < s.latent; ++j) out[j] += scale * (z[j] - s.goal[j]);
        }
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
