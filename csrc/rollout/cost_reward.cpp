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
    bool differentiate() override { return head_.differentiate(); }
    void add_gradient(const StepView& s, float weight, const StepGradient& to) const noexcept override {
        float *const slopes = s.work, *const work = slopes + s.rows;
        head_.record(s.kernels, s.states, s.state_ld, s.rows, s.goal, slopes, work);
        for (int r = 0; r < s.rows; ++r) slopes[r] = -weight;
        head_.pull_back(s.kernels, slopes, s.rows, to.states, to.state_ld, to.actions, to.action_ld, work);
    }
    size_t gradient_workspace(int rows) const noexcept override {
        return static_cast<size_t>(rows) + head_.gradient_workspace(rows);
    }
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
