// Cost terms: small classes with one method, composed with weights (paper section 3.2). To add one: its kind
// in spec.hpp and spec.py, a class in a file cost_<kind>.cpp here, its line in make_cost_term, a torch twin
// in pyjepa/cost.py.
#pragma once

#include <memory>
#include <vector>

#include "model/spec.hpp"
#include "simd/kernels.hpp"

namespace pyjepa {

// The agent file's reader allows no more.
constexpr int kMaxCostTerms = 64;

// One predictor step of a tile of candidates: the action taken and the state it led to.
struct StepView {
    const simd::Kernels& kernels;
    int rows;
    const float* states;  // (rows, L), row distance state_ld
    ptrdiff_t state_ld;
    int latent;
    const float* goal;      // (L,)
    const float* actions;   // (rows, D) normalised, row distance action_ld
    const float* previous;  // the same one step earlier, or nullptr if there was none
    ptrdiff_t action_ld;
    ptrdiff_t previous_ld;
    int plan_dim;
};

// Where the derivatives of a step's cost are added up, as StepView lays out what they belong to.
struct StepGradient {
    float* states;  // (rows, L)
    ptrdiff_t state_ld;
    float* actions;   // (rows, D) normalised
    float* previous;  // nullptr where the step before is not part of the plan
    ptrdiff_t action_ld;
};

class CostTerm {
  public:
    virtual ~CostTerm() = default;
    // out[r] for every row. Real-time safe.
    virtual void score(const StepView& step, float* out) const noexcept = 0;
    // Adds weight * (derivative of each row's score) to `to`; scratch: rows floats. Only where
    // differentiable().
    virtual void add_gradient(const StepView& step, float weight, const StepGradient& to,
                              float* scratch) const noexcept = 0;
    virtual bool differentiable() const noexcept { return true; }
    virtual bool needs_goal() const noexcept { return false; }
    // Whether the term judges the action rather than the state it leads to: then its stage weight holds at
    // every step.
    virtual bool judges_action() const noexcept { return false; }
};

std::unique_ptr<CostTerm> make_goal_distance(Metric metric);
std::unique_ptr<CostTerm> make_action_size();
std::unique_ptr<CostTerm> make_action_change();
std::unique_ptr<CostTerm> make_cost_term(const CostSpec& spec);

// The weighted sum of a spec's terms.
class Cost {
  public:
    // weights (T,): multiplies each term's own; empty: 1.
    Cost(const std::vector<CostSpec>& specs, const std::vector<float>& weights);
    int terms() const noexcept { return static_cast<int>(terms_.size()); }
    bool needs_goal() const noexcept;
    // total[r] += the weighted terms of one step; `last` says whether it is the plan's last. `each` (T,), if
    // given, receives the weighted terms of row 0. scratch: rows floats.
    void add(const StepView& step, bool last, float* total, float* each, float* scratch) const noexcept;
    // What one state (L,) costs by itself: the terms that judge states, weighted as at a stage.
    float intrinsic(const simd::Kernels& kernels, const float* state, int latent,
                    const float* goal) const noexcept;
    // Adds the derivative of what add() adds to each row's total.
    void add_gradient(const StepView& step, bool last, const StepGradient& to, float* scratch) const noexcept;
    // Whether a term has a gradient, or needs none because it weighs nothing.
    bool differentiable(int term) const noexcept;

  private:
    struct Weighted {
        std::unique_ptr<CostTerm> term;
        float stage, terminal;
    };
    std::vector<Weighted> terms_;
};

}  // namespace pyjepa
