// disagreement: how far the members of an ensemble of prediction heads, or of predictors, scatter, a sign
// that the model does not know (Sekar et al. 2020): to be avoided, or sought where curiosity is wanted.
// Predictors are asked about the same state and action; their first goes on with the rollout.
#include "rollout/cost.hpp"
#include "rollout/head.hpp"

namespace pyjepa {
namespace {

class Disagreement final : public CostTerm {
  public:
    Disagreement(const Model& model, const CostSpec& spec)
        : head_(model, *spec.module, spec.members, Reduce::variance), sign_(spec.seek ? -1.0f : 1.0f) {}

    void score(const StepView& s, float* out) const noexcept override {
        float* const variances = s.work;
        float* const work = variances + static_cast<ptrdiff_t>(s.rows) * simd::padded(head_.out());
        head_.forward(s.kernels, s.states, s.state_ld, s.rows, s.goal, s.draw, variances, work);
        for (int r = 0; r < s.rows; ++r) {
            out[r] = 0.0f;
            for (int i = 0; i < head_.out(); ++i) out[r] += variances[r * head_.out() + i];
            out[r] *= sign_;
        }
    }
    const char* needs_goal() const noexcept override { return head_.reads_goal() ? "disagreement" : nullptr; }
    // A head of states and actions judges what is about to be done, one of states what was reached.
    bool judges_action() const noexcept override { return head_.reads_action(); }
    bool non_negative() const noexcept override { return sign_ > 0.0f; }
    size_t workspace(int rows) const noexcept override {
        return head_.workspace(rows) +
               static_cast<size_t>(rows) * static_cast<size_t>(simd::padded(head_.out()));
    }
    double flops() const noexcept override { return head_.flops(); }

  private:
    Head head_;
    float sign_;
};

}  // namespace

std::unique_ptr<CostTerm> make_disagreement(const Model& model, const CostSpec& spec) {
    return std::make_unique<Disagreement>(model, spec);
}

}  // namespace pyjepa
