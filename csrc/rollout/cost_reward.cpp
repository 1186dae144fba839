// reward: minus what a head expects of an action in the state it is taken in.
#include "rollout/cost.hpp"
#include "rollout/head.hpp"

namespace pyjepa {
namespace {

class Reward final : public CostTerm {
  public:
    Reward(const Model& model, const CostSpec& spec)
        : head_(model, *spec.module, spec.members, spec.reduce) {}

    void score(const StepView& s, float* out) const noexcept override {
        head_.forward(s.kernels, s.states, s.state_ld, s.rows, s.goal, s.draw, out, s.work);
        for (int r = 0; r < s.rows; ++r) out[r] = -out[r];
    }
    const char* needs_goal() const noexcept override { return head_.reads_goal() ? "reward" : nullptr; }
    bool judges_action() const noexcept override { return true; }
    size_t workspace(int rows) const noexcept override { return head_.workspace(rows); }
    double flops() const noexcept override { return head_.flops(); }

  private:
    Head head_;
};

}  // namespace

std::unique_ptr<CostTerm> make_reward(const Model& model, const CostSpec& spec) {
    return std::make_unique<Reward>(model, spec);
}

}  // namespace pyjepa
