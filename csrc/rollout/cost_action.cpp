// action_size and action_change: squared norms of the normalised action and of its difference to the one
// before.
#include "rollout/cost.hpp"

namespace pyjepa {
namespace {

class ActionSize final : public CostTerm {
  public:
    void score(const StepView& s, float* out) const noexcept override {
        for (int r = 0; r < s.rows; ++r) {
            const float* a = s.actions + r * s.action_ld;
            out[r] = 0.0f;
            for (int d = 0; d < s.plan_dim; ++d) out[r] += a[d] * a[d];
        }
    }
    bool differentiate() override { return true; }
    void add_gradient(const StepView& s, float weight, const StepGradient& to) const noexcept override {
        for (int r = 0; r < s.rows; ++r)
            for (int d = 0; d < s.plan_dim; ++d)
                to.actions[r * to.action_ld + d] += 2.0f * weight * s.actions[r * s.action_ld + d];
    }
    bool judges_action() const noexcept override { return true; }
    bool non_negative() const noexcept override { return true; }
};

class ActionChange final : public CostTerm {
  public:
    void score(const StepView& s, float* out) const noexcept override {
        for (int r = 0; r < s.rows; ++r) {
            out[r] = 0.0f;
            if (s.previous == nullptr) continue;
            const float *a = s.actions + r * s.action_ld, *b = s.previous + r * s.previous_ld;
            for (int d = 0; d < s.plan_dim; ++d) out[r] += (a[d] - b[d]) * (a[d] - b[d]);
        }
    }
    bool differentiate() override { return true; }
    void add_gradient(const StepView& s, float weight, const StepGradient& to) const noexcept override {
        if (s.previous == nullptr) return;
        for (int r = 0; r < s.rows; ++r) {
            const float *a = s.actions + r * s.action_ld, *b = s.previous + r * s.previous_ld;
            for (int d = 0; d < s.plan_dim; ++d) {
                const float slope = 2.0f * weight * (a[d] - b[d]);
                to.actions[r * to.action_ld + d] += slope;
                if (to.previous != nullptr) to.previous[r * to.action_ld + d] -= slope;
            }
        }
    }
    bool judges_action() const noexcept override { return true; }
    bool non_negative() const noexcept override { return true; }
};

}  // namespace

std::unique_ptr<CostTerm> make_action_size() {
    return std::make_unique<ActionSize>();
}
std::unique_ptr<CostTerm> make_action_change() {
    return std::make_unique<ActionChange>();
}

}  // namespace pyjepa
