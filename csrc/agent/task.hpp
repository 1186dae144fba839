// A task: what to reach and how to plan it, checked, with everything allocated that carrying it out needs.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "model/model.hpp"
#include "model/policy.hpp"
#include "parallel/pool.hpp"
#include "planner/optimise.hpp"
#include "pyjepa/pyjepa.h"
#include "rollout/cost.hpp"

namespace pyjepa {

// A task as asked for, owned: what clone() starts from. Empty vectors and -1 stand for the agent file's
// defaults.
struct TaskRequest {
    explicit TaskRequest(const Model& model, const pyjepa_task& task);

    PlannerSettings settings;
    std::vector<unsigned char> goal;  // E observations, or empty
    std::vector<float> weights;       // (T,) or empty
    float discount;
    bool prune;
    pyjepa_rollout_fn rollout;
    void* rollout_user;
    pyjepa_rollout_call_fn rollout_call;
    void* rollout_call_user;
    bool rollout_gradient;
};

// Throws if an observation of floats holds one that is not finite.
void check_finite(const Spec& spec, const void* observations, int environments, const char* what);

// Indices of `count` discrete actions as modules read them: out holds `count` numbers for each. Throws if one
// is no such index.
void to_one_hot(const float* indices, std::span<float> out, int count, const char* what);

class Task {
  public:
    Task(const Model& model, Pool& pool, TaskRequest request);

    const TaskRequest& request() const noexcept { return request_; }
    int environments() const noexcept { return request_.settings.environments; }
    int horizon() const noexcept;
    const Cost& cost() const noexcept { return cost_; }
    double flops() const noexcept;
    int tile() const noexcept { return rollout_->tile(); }

    // taken: (E, D), as plans have them: the actions taken since the last observation; nullptr: unknown.
    void observe(const void* observation, int steps, const float* taken) noexcept;
    void act(float* actions, bool explore) noexcept;
    // Returns whether it ended because `interrupt` said so; `out` is filled in either case.
    bool plan(double deadline, Interrupt& interrupt, pyjepa_plan_out& out);
    // Plans (E, count, S, D) -> cost (E, count) and, unless nullptr, gradient (E, count, S, D). Allocates.
    void evaluate(const float* plans, int count, float* cost, float* gradient);
    void reset(int environment) noexcept;
    bool observed() const noexcept;
    const float* states() const noexcept { return states_.data(); }
    const float* state(int e) const noexcept { return states_.data() + static_cast<size_t>(e) * latent(); }
    // nullptr if the task has no goal.
    const float* goal(int e) const noexcept {
        return goals_.size() == 0 ? nullptr : goals_.data() + static_cast<size_t>(e) * latent();
    }
    // IC(s) of the present state (paper section 3.2); 0 where a callback rolls out.
    float intrinsic_cost(int e) noexcept;

  private:
    size_t latent() const noexcept { return static_cast<size_t>(model_.spec().latent_dim); }
    void encode(const unsigned char* observations, float* states) noexcept;
    Situation situation() const noexcept;
    // Floats of one environment's past, and what it becomes with the present state and the action that
    // previous_ holds.
    size_t past_row() const noexcept;
    void remember(int e) noexcept;
    // What the policy's next exploring action of environment e is drawn by.
    void draw_exploration(int e) noexcept;
    // A rollout of the user's or of the model's own.
    std::unique_ptr<Rollout> make_rollout(const RolloutLimits& limits);

    const Model& model_;
    Pool& pool_;
    TaskRequest request_;
    std::optional<Policy> acting_;    // in fp32
    std::optional<Policy> planning_;  // in the model's precision
    Cost cost_;
    std::unique_ptr<Planner> planner_;
    std::unique_ptr<Optimiser> optimiser_;

    AlignedFloats states_, goals_;    // (E, L)
    AlignedFloats previous_;          // (E, D), normalised
    AlignedFloats past_;              // (E, window - 1, L + D): see Situation
    std::vector<int> pasts_;          // (E,)
    AlignedFloats plans_;             // (E, S, D): the last plans
    std::vector<float> shift_;        // (E,): predictor steps since the last plan
    double ending_ = 0.0;             // seconds that what follows the search takes at least
    std::vector<uint64_t> draws_;     // (E,): of the last plan
    std::vector<uint64_t> explored_;  // (E,): how often, since the reset
    AlignedFloats exploration_;       // noise of one action
    std::unique_ptr<bool[]> observed_, planned_, has_previous_, told_;  // told_: previous_ is known
    size_t lane_ = 0;                                                   // floats per thread in work_
    ptrdiff_t encoder_work_ = 0;  // of these, the observation's, before the encoder's scratch
    AlignedFloats work_;
    std::unique_ptr<Rollout> rollout_;  // goes first, and waits for who still reads the rest
};

}  // namespace pyjepa
