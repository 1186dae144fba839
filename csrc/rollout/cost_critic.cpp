// critic: what the critic (paper section 3.3) expects after the reached state, V(s) or Q(s, policy(s)).
#include <algorithm>

#include "rollout/cost.hpp"
#include "rollout/head.hpp"

namespace pyjepa {
namespace {

class Critic final : public CostTerm {
  public:
    Critic(const Model& model, const Policy* policy, const CostSpec& spec)
        : head_(model, *model.spec().critic, spec.members, spec.reduce),
          policy_(head_.reads_action() ? policy : nullptr),
          box_(model.spec().actions),
          sign_(spec.estimates == Estimates::reward ? -1.0f : 1.0f) {}

    void score(const StepView& s, float* out) const noexcept override {
        if (policy_ != nullptr) {
            float* const actions = s.states + s.latent;
            policy_->act(s.kernels, s.states, s.state_ld, s.rows, s.goal, nullptr, 0, actions, s.state_ld,
                         s.work);
            for (int r = 0; r < s.rows; ++r)
                for (int d = 0; d < s.plan_dim; ++d) {  // one action a step: the reader has seen to that
                    const auto a = static_cast<size_t>(d);
                    float& action = actions[r * s.state_ld + d];
                    action = (action - box_.center[a]) / box_.scale[a];
                }
        }
        head_.forward(s.kernels, s.states, s.state_ld, s.rows, s.goal, s.draw, out, s.work);
        for (int r = 0; r < s.rows; ++r) out[r] *= sign_;
    }
    const char* needs_goal() const noexcept override {
        return head_.reads_goal() || (policy_ != nullptr && policy_->reads_goal()) ? "critic" : nullptr;
    }
    bool differentiate() override { return policy_ == nullptr && head_.differentiate(); }
    void add_gradient(const StepView& s, float weight, const StepGradient& to) const noexcept override {
        float *const slopes = s.work, *const work = slopes + s.rows;
        head_.record(s.kernels, s.states, s.state_ld, s.rows, s.goal, slopes, work);
        for (int r = 0; r < s.rows; ++r) slopes[r] = weight * sign_;
        head_.pull_back(s.kernels, slopes, s.rows, to.states, to.state_ld, to.actions, to.action_ld, work);
    }
    size_t gradient_workspace(int rows) const noexcept override {
        return static_cast<size_t>(rows) + head_.gradient_workspace(rows);
    }
    bool judges_future() const noexcept override { return true; }
    size_t workspace(int rows) const noexcept override {
        return std::max(head_.workspace(rows), policy_ != nullptr ? policy_->workspace(rows) : 0);
    }
    double flops() const noexcept override {
        return head_.flops() + (policy_ != nullptr ? policy_->flops() : 0.0);
    }

  private:
    Head head_;
    const Policy* policy_;
    const ActionSpec& box_;
    float sign_;
};

}  // namespace

std::unique_ptr<CostTerm> make_critic(const Model& model, const Policy* policy, const CostSpec& spec) {
    return std::make_unique<Critic>(model, policy, spec);
}

}  // namespace pyjepa
