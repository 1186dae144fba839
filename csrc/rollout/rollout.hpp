// The rollout interface: candidates in, costs out. The planners are written once, over this.
//
// Symbols: E environments, N candidates, S predictor steps, D plan dimension (what the predictor reads per
// step), L latent dimension, T cost terms.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>

#include "error.hpp"

namespace pyjepa {

// A point in time after which work is dropped. Reading the clock is no system call (vDSO).
class Deadline {
  public:
    Deadline() = default;
    explicit Deadline(double seconds) noexcept
        : set_(seconds > 0.0),
          at_(std::chrono::steady_clock::now() +
              (set_ ? std::chrono::nanoseconds(static_cast<int64_t>(seconds < 1e9 ? seconds * 1e9 : 1e18))
                    : std::chrono::nanoseconds(0))) {}
    bool expired() const noexcept { return set_ && std::chrono::steady_clock::now() >= at_; }

  private:
    bool set_ = false;
    std::chrono::steady_clock::time_point at_;
};

// Where candidates come from. A worker draws its own tile's: fill is a pure function, callable from any
// thread.
class Proposal {
  public:
    virtual ~Proposal() = default;
    // Candidates n0 .. n1 - 1 of environment e, within the action bounds: out (n1 - n0, S, D). `scratch`
    // holds scratch(n1 - n0) floats.
    virtual void fill(int e, int n0, int n1, float* out, float* scratch) const noexcept = 0;
    virtual size_t scratch(int rows) const noexcept = 0;
};

// What a rollout may be asked for; everything is allocated for it when the rollout is made.
struct RolloutLimits {
    int environments;  // E
    int candidates;    // N at most
    int steps;         // S
    size_t proposal_scratch_per_row;
    int descending = 0;  // candidates of gradient() at most; 0: it is not asked for
};

// The present, per environment. The pointers stay valid while the rollout is in use.
struct Situation {
    int environments;          // E
    const float* states;       // (E, L)
    const float* goals;        // (E, L) or nullptr
    const float* previous;     // (E, D): the normalised action before this plan
    const bool* has_previous;  // (E,)
};

class Rollout {
  public:
    virtual ~Rollout() = default;
    // cost (E, candidates); a candidate whose prediction is not finite costs +infinity. Returns false if the
    // deadline passed first: cost is then incomplete. Throws Error(PYJEPA_CALLBACK) where the rollout is the
    // user's and fails.
    virtual bool evaluate(const Situation& now, const Proposal& proposal, int candidates, float* cost,
                          const Deadline& deadline) = 0;
    // As evaluate, and gradient (E, candidates, S, D): of each cost with respect to its plan, in action
    // units; 0 where it is not finite. Only where the limits asked for it and the rollout has been made all
    // the same.
    virtual bool gradient(const Situation&, const Proposal&, int, float*, float*, const Deadline&) {
        throw Error(PYJEPA_UNSUPPORTED, "this rollout has no gradient");
    }
    // What a plan (S, D) of environment e leads to: states (S + 1, L) and cost terms (T, S), either may be
    // nullptr. Returns false where the rollout cannot tell.
    virtual bool trace(const Situation& now, int e, const float* plan, float* states,
                       float* terms) noexcept = 0;
    // Multiply-adds * 2 for one candidate; 0 if unknown.
    virtual double flops_per_candidate() const noexcept = 0;
};

}  // namespace pyjepa
