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
            for (int r = 0; r < s.rows; ++r) out[r] = 1.0f / (1.0f + std::exp(-out[r]));
    }
    const char* needs_goal() const noexcept override { return head_.reads_goal() ? "hazard" : nullptr; }
    size_t workspace(int rows) const noexcept override { return head_.workspace(rows); }
    double flops() const noexcept override { return head_.flops(); }

  private:
    Head head_;
    bool sigmoid_;
};

}  // namespace

std::unique_ptr<CostTerm> make_hazard(const Model& model, const CostSpec& spec) {
    return std::make_unique<Hazard>(model, spec);
}

}  // namespace pyjepa
