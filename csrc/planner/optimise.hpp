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

  protected:
    // One iteration; false where the deadline passed first, and then all is as it was before.
    virtual bool improve(const Situation& now, int iteration, const Deadline& deadline);
    // Evaluates the planner's means, and keeps those that are better than the incumbents, or all of them.
    bool evaluate_mean(const Situation& now, const Deadline& deadline, bool first);

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
    Mean mean_;
    AlignedFloats cost_;            // (E, N)
    AlignedFloats best_;            // (E, K, D)
    std::vector<float> best_cost_;  // (E,)
};

}  // namespace pyjepa
