// Cost terms: small classes with one method, composed with weights (paper section 3.2). To add one: its kind
// in spec.hpp and spec.py, a class in a file cost_<kind>.cpp here, its line in make_cost_term, a torch twin
// in pyjepa/cost.py.
#pragma once

#include <memory>
#include <vector>

#include "model/model.hpp"
#include "model/policy.hpp"
#include "simd/kernels.hpp"

namespace pyjepa {

// The agent file's reader allows no more.
constexpr int kMaxCostTerms = 64;

// One predictor step of a tile of candidates. Terms that judge the action see the state it is taken in, the
// others the state it leads to.
struct StepView {
    const simd::Kernels& kernels;
    int environment;
    int rows;
    // (rows, L), row distance state_ld; after each row's state there is room for an action (D,): for terms
    // that judge it the normalised one of this step; a critic puts its own there.
    float* states;
    ptrdiff_t state_ld;
    int latent;
    const float* goal;      // (L,)
    const float* actions;   // (rows, D) normalised, row distance action_ld
    const float* previous;  // the same one step earlier, or nullptr if there was none
    ptrdiff_t action_ld;
    ptrdiff_t previous_ld;
    int plan_dim;
    uint64_t draw;   // decides which members of ensembles this plan asks
    float discount;  // of the step
    float* work;     // Cost::workspace(rows) floats
};

// Where the derivatives of a step's cost are added up, as StepView lays out what they belong to.
struct StepGradient {
    float* states;  // (rows, L): of the states that the term judges
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
    // Its derivative, for planners that follow it: whether there is one, with all allocated for
    // add_gradient(). May be called again.
    virtual bool differentiate() { return false; }
    // Adds weight * (derivative of each row's score) to `to`. step.work: gradient_workspace(rows) floats.
    virtual void add_gradient(const StepView&, float, const StepGradient&) const noexcept {}
    virtual size_t gradient_workspace(int) const noexcept { return 0; }
    // Its name, if it needs a goal.
    virtual const char* needs_goal() const noexcept { return nullptr; }
    // Whether the term judges the action in its state rather than the state it leads to: then its stage
    // weight holds at every step.
    virtual bool judges_action() const noexcept { return false; }
    // Whether its score is never below 0.
    virtual bool non_negative() const noexcept { return false; }
    // Whether it stands for what follows the reached state, which is discounted once more.
    virtual bool judges_future() const noexcept { return false; }
    // Floats of scratch that score needs.
    virtual size_t workspace(int) const noexcept { return 0; }
    // The goals (E, L) of a task, before the first score; allocates.
    virtual void set_goals(const float*, int) {}
    // Multiply-adds * 2 for one candidate and step.
    virtual double flops() const noexcept { return 0.0; }
};

// `policy`: the model's, for a critic that asks for its action; nullptr if there is none.
std::unique_ptr<CostTerm> make_cost_term(const Model& model, const Policy* policy, const CostSpec& spec);

std::unique_ptr<CostTerm> make_goal_distance(const Model& model, const CostSpec& spec);
std::unique_ptr<CostTerm> make_action_size();
std::unique_ptr<CostTerm> make_action_change();
std::unique_ptr<CostTerm> make_reward(const Model& model, const CostSpec& spec);
std::unique_ptr<CostTerm> make_disagreement(const Model& model, const CostSpec& spec);
std::unique_ptr<CostTerm> make_hazard(const Model& model, const CostSpec& spec);
std::unique_ptr<CostTerm> make_box(const Model& model, const CostSpec& spec);
std::unique_ptr<CostTerm> make_half_space(const Model& model, const CostSpec& spec);
std::unique_ptr<CostTerm> make_critic(const Model& model, const Policy* policy, const CostSpec& spec);

// The weighted sum of a spec's terms.
class Cost {
  public:
    // weights (T,): multiplies each term's own; empty: 1. policy (see make_cost_term) outlives the cost.
    Cost(const Model& model, const Policy* policy, const std::vector<float>& weights, float discount);
    int terms() const noexcept { return static_cast<int>(terms_.size()); }
    const char* needs_goal() const noexcept;  // the name of a term in use that does, or nullptr
    void set_goals(const float* goals, int environments);
    size_t workspace(int rows) const noexcept;
    // Multiply-adds * 2 for one candidate over so many steps.
    double flops(int steps) const noexcept;
    float discount() const noexcept { return discount_; }
    // Whether a plan's cost never falls as it goes on, so that a part of it is a bound from below.
    bool only_rises() const noexcept;
    // Whether a term in use judges the action: then rows of states are followed by it, normalised.
    bool judges_actions() const noexcept;

    // Which terms to add: those that judge the action (before the step), or the reached state (after it).
    enum class Of { action, state };
    // total[r] += the weighted terms of one step; `last` says whether it is the plan's last. `each` (T,), if
    // given, receives the weighted terms of row 0. scratch: rows floats.
    void add(Of what, const StepView& step, bool last, float* total, float* each,
             float* scratch) const noexcept;
    // What one state (L,) costs by itself: the terms that judge states, but not the critic, weighted as at a
    // stage. work: workspace(1) floats.
    float intrinsic(const simd::Kernels& kernels, float* state, int latent, const float* goal,
                    int environment, float* work) const noexcept;
    // Makes add_gradient() ready; returns the first term in use that has no derivative, or -1. Allocates.
    int differentiate();
    // Adds the derivative of what add() adds to each row's total. step.work: gradient_workspace(rows) floats.
    void add_gradient(Of what, const StepView& step, bool last, const StepGradient& to) const noexcept;
    size_t gradient_workspace(int rows) const noexcept;

  private:
    struct Weighted {
        std::unique_ptr<CostTerm> term;
        float stage, terminal;
        bool used() const noexcept { return stage != 0.0f || terminal != 0.0f; }
    };
    std::vector<Weighted> terms_;
    float discount_;
};

}  // namespace pyjepa
