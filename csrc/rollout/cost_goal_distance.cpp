// goal_distance: how far the predicted latent is from the goal's, or what a prediction head makes of the one
// from what it makes of the other.
#include <algorithm>
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
    bool differentiate() override { return !head_ || head_->differentiate(); }
    void add_gradient(const StepView& s, float weight, const StepGradient& to) const noexcept override {
        float* const distances = s.work;
        if (!head_) {
            metric_distance(s.kernels, s.states, s.state_ld, s.rows, s.latent, s.goal, distances);
            for (int r = 0; r < s.rows; ++r)
                add_slope(s.states + r * s.state_ld, s.goal, s.latent, distances[r], weight,
                          to.states + r * to.state_ld);
            return;
        }
        const ptrdiff_t out = head_->out(), size = s.rows * out;
        float *const seen = distances + s.rows, *const slopes = seen + size, *const work = slopes + size;
        const float* const goal = goals_.data() + s.environment * out;
        head_->record(s.kernels, s.states, s.state_ld, s.rows, nullptr, seen, work);
        metric_distance(s.kernels, seen, out, s.rows, head_->out(), goal, distances);
        std::fill_n(slopes, size, 0.0f);
        for (int r = 0; r < s.rows; ++r)
            add_slope(seen + r * out, goal, head_->out(), distances[r], weight, slopes + r * out);
        head_->pull_back(s.kernels, slopes, s.rows, to.states, to.state_ld, to.actions, to.action_ld, work);
    }
    size_t gradient_workspace(int rows) const noexcept override {
        const auto n = static_cast<size_t>(rows);
        if (!head_) return n;
        return n + 2 * n * static_cast<size_t>(head_->out()) + head_->gradient_workspace(rows);
    }

  private:
    ptrdiff_t rows_size(int rows) const noexcept {
        return static_cast<ptrdiff_t>(rows) * simd::padded(head_->out());
    }
    void distance(const simd::Kernels& kernels, const float* z, ptrdiff_t ld, int rows, int n,
                  const float* goal, float* out) const noexcept {
        metric_distance(kernels, z, ld, rows, n, goal, out);
        if (reach_ > 0.0f)
            for (int r = 0; r < rows; ++r) out[r] = out[r] < reach_ ? out[r] / reach_ : 1.0f;
    }
    void metric_distance(const simd::Kernels& kernels, const float* z, ptrdiff_t ld, int rows, int n,
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
    }
    // Adds weight * (derivative of the distance, `metric_distance` before its reach) to `to` (n,). At the
    // goal itself l2 has no slope; 0 is one of its subgradients.
    void add_slope(const float* z, const float* goal, int n, float metric_distance, float weight,
                   float* to) const noexcept {
        if (reach_ > 0.0f) {
            if (!(metric_distance < reach_)) return;
            weight /= reach_;
        }
        switch (metric_) {
            case Metric::l1:
                for (int j = 0; j < n; ++j)
                    to[j] += z[j] > goal[j] ? weight : z[j] < goal[j] ? -weight : 0.0f;
                return;
            case Metric::cosine: {
                float own = 0.0f, other = 0.0f;
                for (int j = 0; j < n; ++j) {
                    own += z[j] * z[j];
                    other += goal[j] * goal[j];
                }
                const float norms = std::sqrt(own) * std::sqrt(other);
                const float along = norms < 1e-8f ? 0.0f : (1.0f - metric_distance) / own;
                for (int j = 0; j < n; ++j)
                    to[j] -= weight * (goal[j] / std::max(norms, 1e-8f) - along * z[j]);
                return;
            }
            case Metric::l2:
                if (!(metric_distance > 0.0f)) return;
                weight /= metric_distance;
                break;
            case Metric::squared_l2:
                weight *= 2.0f;
                break;
        }
        for (int j = 0; j < n; ++j) to[j] += weight * (z[j] - goal[j]);
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
