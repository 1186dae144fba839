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

// Asks now and then whether to go on: the first time after kPeriod, so that a plan in real time asks nobody.
// The planning thread's alone.
class Interrupt {
  public:
    static constexpr auto kPeriod = std::chrono::milliseconds(20);
    using Ask = int (*)(void* user);
    Interrupt(Ask ask, void* user) noexcept
        : ask_(ask), user_(user), next_(std::chrono::steady_clock::now() + kPeriod) {}
    bool requested() noexcept {
        if (ask_ == nullptr || requested_) return requested_;
        if (std::chrono::steady_clock::now() < next_) return false;
        requested_ = ask_(user_) != 0;
        next_ = std::chrono::steady_clock::now() + kPeriod;
        return requested_;
    }
    bool stopped() const noexcept { return requested_; }

  private:
    Ask ask_;
    void* user_;
    std::chrono::steady_clock::time_point next_;
    bool requested_ = false;
};

// A point in time after which work is dropped, and whoever may ask for that sooner. Reading the clock is no
// system call (vDSO).
class Deadline {
  public:
    Deadline() = default;
    explicit Deadline(double seconds, Interrupt* interrupt = nullptr) noexcept
        : interrupt_(interrupt),
          set_(seconds > 0.0),
          at_(std::chrono::steady_clock::now() +
              (set_ ? std::chrono::nanoseconds(static_cast<int64_t>(seconds < 1e9 ? seconds * 1e9 : 1e18))
                    : std::chrono::nanoseconds(0))) {}
    bool set() const noexcept { return set_; }
    bool expired() const noexcept { return set_ && std::chrono::steady_clock::now() >= at_; }
    // For the planning thread: the deadline has passed, or an end was asked for.
    bool over() const noexcept { return expired() || (interrupt_ != nullptr && interrupt_->requested()); }

  private:
    Interrupt* interrupt_ = nullptr;
    bool set_ = false;
    std::chrono::steady_clock::time_point at_;
};

// Where candidates come from. A worker draws its own tile's, perhaps when the planner has moved on already:
// fill reads nothing of the proposal's that changes, but a snapshot of it, and may be called from any thread.
class Proposal {
  public:
    virtual ~Proposal() = default;
    // All that fill depends on and that changes from one evaluation to the next: snapshot_size() floats.
    virtual void snapshot(float* out) const noexcept = 0;
    virtual size_t snapshot_size() const noexcept = 0;
    // Candidates n0 .. n1 - 1 of environment e, within the action bounds: out (n1 - n0, S, D). `scratch`
    // holds scratch(n1 - n0) floats.
    virtual void fill(const float* snapshot, int e, int n0, int n1, float* out,
                      float* scratch) const noexcept = 0;
    virtual size_t scratch(int rows) const noexcept = 0;
    // How many of the cheapest candidates the proposer looks at; 0: at all of them. A rollout may give the
    // others up, at infinite cost, as soon as it knows that they are others; but not candidate 0.
    virtual int keeps() const noexcept { return 0; }
};

// What a rollout may be asked for; everything is allocated for it when the rollout is made.
struct RolloutLimits {
    int environments;  // E
    int candidates;    // N at most
    int steps;         // S
    size_t proposal_scratch_per_row;
    size_t proposal_snapshot;  // floats at most
    int descending = 0;        // candidates of gradient() at most; 0: it is not asked for
    bool prune = false;        // give up candidates that cannot be among those the proposer keeps
    bool moves = false;        // whether move() and prior() are asked for
};

// The present, per environment. `goals` stay as they are while the rollout lives; the rest is read during the
// call alone.
struct Situation {
    int environments;          // E
    const float* states;       // (E, L)
    const float* goals;        // (E, L) or nullptr
    const float* previous;     // (E, D): the normalised action before this plan
    const bool* has_previous;  // (E,)
    const uint64_t* draws;     // (E,): random bits of this plan, for what is drawn once a plan
    // What a predictor looks back on, where it does: (E, window - 1, L + D), the states before the present
    // one, the oldest first, each with the normalised action taken in it; and (E,), how many there are.
    const float* past = nullptr;
    const int* pasts = nullptr;
    int pasts_of(int e) const noexcept { return pasts == nullptr ? 0 : pasts[e]; }
};

// Moves of a tree search, all in one environment: each row holds an action for some predictor steps.
struct Moves {
    int environment;
    int rows;
    const float* const* from;    // (rows,): states (L,)
    const float* const* action;  // (rows,): (D,)
    const float* const*
        previous;      // (rows,): the action before (D,); nullptr: the one before the plan, if any
    const int* first;  // (rows,): the predictor step of the plan that the move begins with
    const int* steps;  // (rows,): for how many it lasts, at least 1
    float* const* to;  // (rows,): states (L,); not one of `from`
    float* cost;       // (rows,): what these steps cost; +infinity where it is not finite
    float* rest;       // (rows,): what the rest of the horizon would cost if the state stayed
};

class Rollout {
  public:
    virtual ~Rollout() = default;
    // cost (E, candidates); a candidate whose prediction is not finite costs +infinity. Returns false if the
    // deadline passed first: cost is then incomplete. Throws Error(PYJEPA_CALLBACK) where the rollout is the
    // user's and fails. The proposal outlives the rollout: a thread that was overtaken may still read it.
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
    // Rolls the policy out from every environment's state: plans (E, count, S, D) hold normals and receive
    // actions. Returns false if the deadline passed first. Only asked of a rollout that has a policy.
    virtual bool propose(const Situation&, int, float*, const Deadline&) { return false; }
    // Multiply-adds * 2 for one proposal; 0 if unknown.
    virtual double flops_per_proposal() const noexcept { return 0.0; }
    // Carries out moves. Only where can_move().
    virtual void move(const Situation&, const Moves&) noexcept {}
    virtual bool can_move() const noexcept { return false; }
    // What the policy thinks in `rows` states of an environment, each (D,): the logits of discrete actions,
    // or its action as a place between the bounds, -1 to 1. Only where has_prior(), and with a goal if it
    // reads one.
    virtual void prior(const Situation&, int /*e*/, int /*rows*/, const float* const* /*states*/,
                       float* const* /*out*/) noexcept {}
    virtual bool has_prior() const noexcept { return false; }
    // Multiply-adds * 2 for one candidate; 0 if unknown.
    virtual double flops_per_candidate() const noexcept = 0;
    // Candidates that a thread rolls out together; 0: all.
    virtual int tile() const noexcept { return 0; }
};

}  // namespace pyjepa
