// Planners: propose candidates, refit to their costs. One file per algorithm; the loop around them is
// optimise.hpp.
//
// The phases have names, and only the first allocates: construct -> reset -> begin -> (iterate -> fill ->
// refit or descend)* . To add one: its name in spec.hpp, spec.py and pyjepa.h, a class in a file here, its
// line in make_planner.
#pragma once

#include <algorithm>
#include <memory>
#include <vector>

#include "model/dense.hpp"
#include "planner/knots.hpp"
#include "planner/sampling.hpp"
#include "planner/sobol.hpp"
#include "rollout/rollout.hpp"

namespace pyjepa {

inline bool uses_elites(Algorithm a) noexcept {
    return a == Algorithm::cem || a == Algorithm::icem || a == Algorithm::hybrid ||
           a == Algorithm::categorical_cem;
}
inline bool uses_gradient(Algorithm a) noexcept {
    return a == Algorithm::gradient || a == Algorithm::hybrid;
}
// Whether candidates are normal noise around a mean, of whatever sampling and colour.
inline bool draws_noise(Algorithm a) noexcept {
    return a != Algorithm::categorical_cem && a != Algorithm::tree;
}

// Everything a planner needs to know, defaults resolved and checked.
struct PlannerSettings {
    Algorithm algorithm;
    int environments, steps, plan_dim, candidates, iterations, elites, knots;
    Interpolation interpolation;
    float std, min_std, momentum, temperature;
    uint64_t seed;
    std::vector<float> low, high;  // (D,)
    bool elite_refit = false;
    TemperatureScale temperature_scale = TemperatureScale::std;
    float max_std = 10.0f;
    int policy_candidates = 0;
    Sampling sampling = Sampling::gaussian;
    float noise_beta = 0.0f;
    float keep_elites = 0.3f, decay = 1.25f;
    float learning_rate = 0.2f;
    int restarts = 8, polish = 10;
    int count = 0;  // of discrete actions, one-hot in a plan; 0: a box
    float exploration = 0.05f;
    int branching = 8;
};

// What a planner's last iteration tells about itself; of a tree search nothing, it weighs no candidates.
struct Diagnosis {
    float effective_samples = 0.0f;  // (sum w)^2 / sum w^2 of the weights w that candidates had in it
    float spread = 0.0f;             // of those candidates: standard deviation, in halves of the action range
};

class Planner : public Proposal {
  public:
    explicit Planner(const PlannerSettings& settings);

    // A new episode: the plan is the middle of the bounds (of discrete actions: the first), plan count 0.
    virtual void reset(int e) noexcept;
    // A new plan: the last one `shift` predictor steps later, and the first spread.
    virtual void begin(int e, float shift) noexcept;
    virtual void iterate(int iteration) noexcept;
    // Candidates of an iteration, and whether it takes the gradient of their costs.
    virtual int count(int iteration) const noexcept;
    virtual bool descends(int iteration) const noexcept;
    // The most candidates of an iteration that descends; 0: none does.
    int descending() const noexcept;
    // Normals, once a plan, for the rollout to make proposals of the policy from.
    void draw_proposals() noexcept;
    float* proposals() noexcept { return proposals_.data(); }  // (E, P, S, D)
    void bound_proposals() noexcept;  // once they are made: rounding may carry them over their bounds
    // Candidate 0 is the current mean, the P after it are the policy's proposals; the others are drawn around
    // the mean. The snapshot: mean, spread, proposals, what the algorithm adds, noise keys.
    void snapshot(float* out) const noexcept override;
    size_t snapshot_size() const noexcept override;
    void fill(const float* snapshot, int e, int n0, int n1, float* out,
              float* scratch) const noexcept override;
    size_t scratch(int rows) const noexcept override;
    // Moves mean (and spread) of environment e towards the candidates of this iteration that cost (count,)
    // favours.
    virtual void refit(int e, const float* cost) noexcept = 0;
    // Instead of refit, where the iteration descends: gradient (count, S, D) of the costs.
    virtual void descend(int e, const float* cost, const float* gradient) noexcept;
    // Of the last refit or descend.
    const Diagnosis& diagnosis(int e) const noexcept { return diagnosis_[static_cast<size_t>(e)]; }

    // The knots (K, D) of one candidate of this iteration, drawn again.
    void sample(int e, int n, float* knots) noexcept;
    // The plan (S, D) that knots stand for, within bounds.
    void expand(const float* knots, float* plan) const noexcept;

    size_t knots_size() const noexcept { return knots_size_; }
    const Knots& knots() const noexcept { return knots_; }
    const float* mean(int e) const noexcept { return mean_.data() + offset(e); }
    // Where the next plan starts from.
    void set_mean(int e, const float* knots) noexcept;
    // How often this environment has planned since its episode began.
    uint64_t plans(int e) const noexcept { return plans_[static_cast<size_t>(e)]; }
    const PlannerSettings& settings() const noexcept { return settings_; }

  protected:
    size_t offset(int e) const noexcept { return static_cast<size_t>(e) * knots_size_; }
    // The `count` cheapest candidates in order of (cost, index), without those of infinite cost; returns how
    // many.
    int cheapest(const float* cost, int count) noexcept;
    // What candidates of one environment are drawn from, be it the planner's own or a snapshot's.
    struct Source {
        NoiseKey key;
        const float *mean, *std, *proposals, *own;
    };
    // Knots (picks, K, D) of candidates of this iteration, within bounds as all knots of a planner are, from
    // nothing that changes but `from`; noise: scratch for as many rows, less the knots.
    virtual void draw(const Source& from, const Picks& picks, float* knots, float* noise) const noexcept;
    // Draws `count` candidates of this iteration again, a few at a time: f(i, knots of which[i]), in order.
    template <class F>
    void for_each_drawn(int e, const int32_t* which, int count, F f) noexcept {
        for (int first = 0; first < count; first += kRedrawn) {
            const Picks picks{0, std::min(kRedrawn, count - first), which + first};
            draw(source(e), picks, redrawn_.data(), sample_noise_.data());
            for (int i = 0; i < picks.count; ++i)
                f(first + i, redrawn_.data() + static_cast<size_t>(i) * knots_size_);
        }
    }
    // Room for `size` floats per environment of an algorithm's own that draw depends on: own(e), and
    // Source::own. For constructors.
    void reserve_own(size_t size);
    float* own(int e) noexcept { return own_.data() + static_cast<size_t>(e) * own_size_; }
    const float* own(int e) const noexcept { return own_.data() + static_cast<size_t>(e) * own_size_; }
    // values seen `shift` predictor steps later, in place.
    void shift_knots(float* values, float shift) noexcept;
    // The diagnosis of weights given by their sum and sum of squares, and of the candidates' weighted
    // variance in every number: average (d2[j] / half range^2).
    void diagnose(int e, double weights, double squared_weights,
                  const std::vector<double>& variance) noexcept;

    PlannerSettings settings_;
    Knots knots_;
    size_t knots_size_;         // K * D
    AlignedFloats mean_, std_;  // (E, K, D); std_: of categoricals, the probabilities
    std::vector<float> first_std_, least_std_, most_std_;  // (D,)
    std::vector<int32_t> order_;                           // (N,)
    int count_ = 0;                                        // candidates of this iteration
    std::vector<double> sum_, square_sum_;                 // (K, D)

  private:
    static constexpr int kRedrawn = 16;
    void bound(int rows, float* knots) const noexcept;  // (rows, K, D)
    // What draws are made from in environment e: of the planner as it is.
    Source source(int e) const noexcept;
    // Normals (picks, K, D), rows noise_row(K * D) apart; coloured: scratch for one row.
    void white(NoiseKey key, const Picks& picks, float* noise) const noexcept;
    void colour(float* noise, float* coloured) const noexcept;

    std::vector<uint64_t> plans_;  // (E,): plans since the episode began
    std::vector<NoiseKey> keys_;   // (E,): of the current iteration
    AlignedFloats proposals_;      // (E, P, S, D)
    size_t own_size_ = 0;
    AlignedFloats own_;  // (E, own_size_)
    std::unique_ptr<Sobol> sobol_;
    std::vector<float> colour_;  // (K, K) transposed, or empty for white noise
    std::vector<Diagnosis> diagnosis_;
    AlignedFloats shifted_;                 // (K, D)
    AlignedFloats redrawn_, sample_noise_;  // (kRedrawn, K, D), and the scratch to draw them
    std::vector<float> low_, high_;         // (max(K, S), D): the bounds, repeated
    std::vector<uint64_t> ranked_, spare_;  // (N,)
};

constexpr int kMostColouredKnots = 1024;

std::unique_ptr<Planner> make_planner(const PlannerSettings& settings);

std::unique_ptr<Planner> make_cem(const PlannerSettings& settings);
std::unique_ptr<Planner> make_mppi(const PlannerSettings& settings);
std::unique_ptr<Planner> make_predictive_sampling(const PlannerSettings& settings);
std::unique_ptr<Planner> make_icem(const PlannerSettings& settings);
std::unique_ptr<Planner> make_gradient(const PlannerSettings& settings);
std::unique_ptr<Planner> make_hybrid(const PlannerSettings& settings);
std::unique_ptr<Planner> make_categorical_cem(const PlannerSettings& settings);
// Keeps the last plan for a tree search (tree.hpp), which draws nothing from it.
std::unique_ptr<Planner> make_last_plan(const PlannerSettings& settings);

}  // namespace pyjepa
