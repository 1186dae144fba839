// hazard: what a head says of the reached state, as it is or as a probability.
#include <cmath>

#include "rollout/cost.hpp"
#include "rollout/head.hpp"

namespace pyjepa {
namespace {

class Hazard final : public CostTerm {
  public:
    Hazard(const Model& model, const CostSpec& spec)
        : head_(model, *spec.module, spec.members, spec.reduce), sigmoid_(spec.sigmoid) {}

    void score(const StepView& s, float* out) const noexcept override {
        head_.forward(s.kernels, s.states, s.state_ld, s.rows, s.goal, s.draw, out, s.work);
        if (sigmoid_)
            for (int r = 0; r < s.rows; ++r) out[r] = sigmoid(out[r]);
    }
    const char* needs_goal() const noexcept override { return head_.reads_goal() ? "hazard" : nullptr; }
    bool differentiate() override { return head_.differentiate(); }
    void add_gradient(const StepView& s, float weight, const StepGradient& to) const noexcept override {
        float *const slopes = s.work, *const work = slopes + s.rows;
        head_.record(s.kernels, s.states, s.state_ld, s.rows, s.goal, slopes, work);
        for (int r = 0; r < s.rows; ++r) slopes[r] = weight * slope(slopes[r]);
        head_.pull_back(s.kernels, slopes, s.rows, to.states, to.state_ld, to.actions, to.action_ld, work);
    }
    size_t gradient_workspace(int rows) const noexcept override {
        return static_cast<size_t>(rows) + head_.gradient_workspace(rows);
    }
    size_t workspace(int rows) const noexcept override { return head_.workspace(rows); }
    double flops() const noexcept override { return head_.flops(); }

  private:
    static float sigmoid(float x) noexcept { return 1.0f / (1.0f + std::exp(-x)); }
    float slope(float x) const noexcept { return sigmoid_ ? sigmoid(x) * (1.0f - sigmoid(x)) : 1.0f; }

    Head head_;
    bool sigmoid_;
};

}  // namespace

std::unique_ptr<CostTerm> make_hazard(const Model& model, const CostSpec& spec) {
    return std::make_unique<Hazard>(model, spec);
}

}  // namespace pyjepa
