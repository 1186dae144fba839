// The loop of Mode-2 (paper section 3.1.2): propose, roll out, refit - until done or out of time.
#pragma once

#include <vector>

#include "planner/planner.hpp"
#include "rollout/rollout.hpp"

namespace pyjepa {

class Optimiser {
  public:
    // planner and rollout outlive it.
    Optimiser(Planner& planner, Rollout& rollout);
    virtual ~Optimiser() = default;

    // Plans for every environment from `now`, warm-started `shift` (E,) steps on; returns the iterations
    // completed. When the deadline passes, the unfinished iteration is dropped; the incumbent was always
    // evaluated.
    int plan(const Situation& now, const float* shift, const Deadline& deadline);

    // The incumbent: the cheapest plan evaluated, candidates and means alike; knots (K, D).
    const float* knots(int e) const noexcept {
        return best_.data() + static_cast<size_t>(e) * planner_.knots_size();
    }
    float cost(int e) const noexcept { return best_cost_[static_cast<size_t>(e)]; }

    // The incumbent's cost as it fell: (iterations + 1,), the first of the plan that was started from, the
    // last cost(e) from the last completed iteration on.
    const float* history(int e) const noexcept {
        return history_.data() + static_cast<size_t>(e) * history_size();
    }
    // The first iteration after which the incumbent's cost was within 1 % of what it came to; 0: the start.
    int converged(int e) const noexcept;

  protected:
    // One iteration; false where the deadline passed first, and then all is as it was before.
    virtual bool improve(const Situation& now, int iteration, const Deadline& deadline);
    // Whether the first iteration says what the mean costs that it starts from: as candidate 0.
    virtual bool begins_with_mean() const noexcept { return !planner_.descends(0); }
    // Evaluates the planner's means, and keeps those that are better than the incumbents.
    bool evaluate_mean(const Situation& now, const Deadline& deadline);

    Planner& planner_;
    Rollout& rollout_;

  private:
    // The planner's mean as a proposal of one candidate.
    class Mean final : public Proposal {
      public:
        explicit Mean(const Planner& planner) : planner_(planner) {}
        void snapshot(float* out) const noexcept override;
        size_t snapshot_size() const noexcept override;
        void fill(const float* snapshot, int e, int n0, int n1, float* out, float*) const noexcept override;
        size_t scratch(int) const noexcept override { return 0; }

      private:
        const Planner& planner_;
    };
    size_t history_size() const noexcept { return static_cast<size_t>(planner_.settings().iterations) + 1; }

    Mean mean_;
    AlignedFloats cost_;            // (E, N)
    AlignedFloats gradient_;        // (E, P, S, D), where the planner descends with P candidates
    AlignedFloats best_;            // (E, K, D)
    std::vector<float> best_cost_;  // (E,)
    std::vector<float> history_;    // (E, iterations + 1)
};

}  // namespace pyjepa
