// box and half_space: constraints on the reached state, or on what a prediction head says of it. Soft ones
// cost the squared excess, hard ones infinity: planners drop such candidates.
#include <algorithm>
#include <limits>
#include <optional>

#include "rollout/cost.hpp"
#include "rollout/head.hpp"

namespace pyjepa {
namespace {

class Constraint : public CostTerm {
  public:
    Constraint(const Model& model, const CostSpec& spec) : spec_(spec), size_(model.spec().latent_dim) {
        if (!spec.module) return;
        head_.emplace(model, *spec.module, spec.members, spec.reduce);
        size_ = head_->out();
    }

    void score(const StepView& s, float* out) const noexcept override {
        const float* seen = s.states;
        ptrdiff_t ld = s.state_ld;
        if (head_) {
            float* const made = s.work;
            head_->forward(s.kernels, s.states, s.state_ld, s.rows, s.goal, s.draw, made,
                           made + static_cast<ptrdiff_t>(s.rows) * simd::padded(size_));
            seen = made;
            ld = size_;
        }
        for (int r = 0; r < s.rows; ++r) {
            const float over = excess(seen + r * ld);  // squared; NaN stays so
            out[r] = spec_.hard && over > 0.0f ? std::numeric_limits<float>::infinity() : over;
        }
    }
    const char* needs_goal() const noexcept override {
        if (!head_ || !head_->reads_goal()) return nullptr;
        return spec_.kind == CostKind::box ? "box" : "half_space";
    }
    size_t workspace(int rows) const noexcept override {
        if (!head_) return 0;
        return head_->workspace(rows) + static_cast<size_t>(rows) * static_cast<size_t>(simd::padded(size_));
    }
    double flops() const noexcept override { return head_ ? head_->flops() : 0.0; }
    bool differentiate() override { return !head_ || head_->differentiate(); }
    // A hard constraint has no slope: it is kept, or the plan costs infinity.
    void add_gradient(const StepView& s, float weight, const StepGradient& to) const noexcept override {
        if (spec_.hard) return;
        if (!head_) {
            for (int r = 0; r < s.rows; ++r)
                add_slope(s.states + r * s.state_ld, weight, to.states + r * to.state_ld);
            return;
        }
        const ptrdiff_t size = static_cast<ptrdiff_t>(s.rows) * size_;
        float *const seen = s.work, *const slopes = seen + size, *const work = slopes + size;
        head_->record(s.kernels, s.states, s.state_ld, s.rows, s.goal, seen, work);
        std::fill_n(slopes, size, 0.0f);
        for (ptrdiff_t r = 0; r < s.rows; ++r) add_slope(seen + r * size_, weight, slopes + r * size_);
        head_->pull_back(s.kernels, slopes, s.rows, to.states, to.state_ld, to.actions, to.action_ld, work);
    }
    size_t gradient_workspace(int rows) const noexcept override {
        if (!head_) return 0;
        return 2 * static_cast<size_t>(rows) * static_cast<size_t>(size_) + head_->gradient_workspace(rows);
    }

  protected:
    virtual float excess(const float* x) const noexcept = 0;
    // Adds weight * (derivative of excess) to `to`.
    virtual void add_slope(const float* x, float weight, float* to) const noexcept = 0;
    CostSpec spec_;
    int size_;

  private:
    std::optional<Head> head_;
};

float squared_hinge(float x) {
    return x < 0.0f ? 0.0f : x * x;
}

class Box final : public Constraint {
  public:
    using Constraint::Constraint;

  private:
    float excess(const float* x) const noexcept override {
        float total = 0.0f;
        for (size_t j = 0; j < spec_.low.size(); ++j) total += squared_hinge(spec_.low[j] - x[j]);
        for (size_t j = 0; j < spec_.high.size(); ++j) total += squared_hinge(x[j] - spec_.high[j]);
        return total;
    }
    void add_slope(const float* x, float weight, float* to) const noexcept override {
        for (size_t j = 0; j < spec_.low.size(); ++j)
            to[j] -= 2.0f * weight * std::max(spec_.low[j] - x[j], 0.0f);
        for (size_t j = 0; j < spec_.high.size(); ++j)
            to[j] += 2.0f * weight * std::max(x[j] - spec_.high[j], 0.0f);
    }
};

class HalfSpace final : public Constraint {
  public:
    using Constraint::Constraint;

  private:
    float excess(const float* x) const noexcept override { return squared_hinge(beyond(x)); }
    void add_slope(const float* x, float weight, float* to) const noexcept override {
        const float scale = 2.0f * weight * std::max(beyond(x), 0.0f);
        for (size_t j = 0; j < spec_.normal.size(); ++j) to[j] += scale * spec_.normal[j];
    }
    float beyond(const float* x) const noexcept {
        float total = 0.0f;
        for (size_t j = 0; j < spec_.normal.size(); ++j) total += spec_.normal[j] * x[j];
        return total - spec_.offset;
    }
};

}  // namespace

std::unique_ptr<CostTerm> make_box(const Model& model, const CostSpec& spec) {
    return std::make_unique<Box>(model, spec);
}
std::unique_ptr<CostTerm> make_half_space(const Model& model, const CostSpec& spec) {
    return std::make_unique<HalfSpace>(model, spec);
}

}  // namespace pyjepa
