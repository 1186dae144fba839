// goal_distance: how far the predicted latent is from the goal's, or what a prediction head makes of the one
// from what it makes of the other.
#include <cmath>
#include <optional>

#include "model/dense.hpp"
#include "rollout/cost.hpp"
#include "rollout/head.hpp"

namespace pyjepa {
namespace {

class GoalDistance final : public CostTerm {
  public:
    GoalDistance(const Model& model, const CostSpec& spec)
        : metric_(spec.metric), reach_(spec.reach), latent_(model.spec().latent_dim) {
        if (spec.module) head_.emplace(model, *spec.module, 0, spec.reduce);
    }

    void score(const StepView& s, float* out) const noexcept override {
        if (!head_) {
            distance(s.kernels, s.states, s.state_ld, s.rows, s.latent, s.goal, out);
            return;
        }
        float* const seen = s.work;
        head_->forward(s.kernels, s.states, s.state_ld, s.rows, nullptr, s.draw, seen,
                       seen + rows_size(s.rows));
        distance(s.kernels, seen, head_->out(), s.rows, head_->out(),
                 goals_.data() + static_cast<ptrdiff_t>(s.environment) * head_->out(), out);
    }
    const char* needs_goal() const noexcept override { return "goal_distance"; }
    // 1 - cos may be rounded to a little below 0.
    bool non_negative() const noexcept override { return metric_ != Metric::cosine; }
    size_t workspace(int rows) const noexcept override {
        return head_ ? static_cast<size_t>(rows_size(rows)) + head_->workspace(rows) : 0;
    }
    void set_goals(const float* goals, int environments) override {
        if (!head_) return;
        goals_ = AlignedFloats(static_cast<size_t>(environments) * static_cast<size_t>(head_->out()));
        AlignedFloats work(head_->workspace(1));
        for (ptrdiff_t e = 0; e < environments; ++e)
            head_->forward(simd::kernels(), goals + e * latent_, latent_, 1, nullptr, 0,
                           goals_.data() + e * head_->out(), work.data());
    }
    double flops() const noexcept override { return head_ ? head_->flops() : 0.0; }

  private:
    ptrdiff_t rows_size(int rows) const noexcept {
        return static_cast<ptrdiff_t>(rows) * simd::padded(head_->out());
    }
    void distance(const simd::Kernels& kernels, const float* z, ptrdiff_t ld, int rows, int n,
                  const float* goal, float* out) const noexcept {
        switch (metric_) {
            case Metric::l1:
                kernels.absolute_distance(z, ld, rows, n, goal, out);
                break;
            case Metric::cosine:
                kernels.cosine_distance(z, ld, rows, n, goal, out);
                break;
            case Metric::l2:
            case Metric::squared_l2:
                kernels.squared_distance(z, ld, rows, n, goal, out);
                break;
        }
        if (metric_ == Metric::l2)
            for (int r = 0; r < rows; ++r) out[r] = std::sqrt(out[r]);
        if (reach_ > 0.0f)
            for (int r = 0; r < rows; ++r) out[r] = out[r] < reach_ ? out[r] / reach_ : 1.0f;
    }

    Metric metric_;
    float reach_;
    int latent_;
    std::optional<Head> head_;
    AlignedFloats goals_;  // (E, out): the head's, of the goals
};

}  // namespace

std::unique_ptr<CostTerm> make_goal_distance(const Model& model, const CostSpec& spec) {
    return std::make_unique<GoalDistance>(model, spec);
}

}  // namespace pyjepa
