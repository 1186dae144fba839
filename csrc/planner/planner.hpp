// Planners: propose candidates, refit to their costs. One file per algorithm; the loop around them is
// optimise.hpp.
//
// The phases have names, and only the first allocates: construct -> reset -> begin -> (iterate -> fill ->
// refit)* . To add one: its name in spec.hpp, spec.py and pyjepa.h, a class in a file here, its line in
// make_planner.
#pragma once

#include <memory>
#include <vector>

#include "model/dense.hpp"
#include "planner/knots.hpp"
#include "planner/sampling.hpp"
#include "rollout/rollout.hpp"

namespace pyjepa {

// Everything a planner needs to know, defaults resolved and checked.
struct PlannerSettings {
    Algorithm algorithm;
    int environments, steps, plan_dim, candidates, iterations, elites, knots;
    Interpolation interpolation;
    float std, min_std, momentum, temperature;
    uint64_t seed;
    std::vector<float> low, high;  // (D,)
    bool elite_refit;
    TemperatureScale temperature_scale;
    float max_std;
    int policy_candidates;
    int count = 0;  // of discrete actions, one-hot in a plan; 0: a box
    float exploration = 0.0f;
    int branching = 0;
};

class Planner : public Proposal {
  public:
    explicit Planner(const PlannerSettings& settings);

    // A new episode: the plan is the middle of the bounds (of discrete actions: the first), plan count 0.
    void reset(int e) noexcept;
    // A new plan: the last one `shift` predictor steps later, and the first spread.
    virtual void begin(int e, float shift) noexcept;
    void iterate(int iteration) noexcept;
    // Normals, once a plan, for the rollout to make proposals of the policy from.
    void draw_proposals() noexcept;
    float* proposals() noexcept { return proposals_.data(); }  // (E, P, S, D)
    // Candidate 0 is the current mean, the P after it are the policy's proposals; the others are drawn around
    // the mean. The snapshot: mean, spread, proposals, noise keys.
    void snapshot(float* out) const noexcept override;
    size_t snapshot_size() const noexcept override;
    void fill(const float* snapshot, int e, int n0, int n1, float* out,
              float* scratch) const noexcept override;
    size_t scratch(int rows) const noexcept override;
    // Moves mean (and spread) of environment e towards the candidates of this iteration that cost (N,)
    // favours.
    virtual void refit(int e, const float* cost) noexcept = 0;

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
    // Knots (n1 - n0, K, D) of candidates n0 .. n1 - 1; noise: a noise_row of floats for each.
    virtual void draw(NoiseKey key, const float* mean, const float* std, const float* proposals, int n0,
                      int n1, float* knots, float* noise) const noexcept;
    size_t offset(int e) const noexcept { return static_cast<size_t>(e) * knots_size_; }
    // The `count` cheapest candidates in order of (cost, index), without those of infinite cost; returns how
    // many.
    int cheapest(const float* cost, int count) noexcept;

    PlannerSettings settings_;
    Knots knots_;
    size_t knots_size_;         // K * D
    AlignedFloats mean_, std_;  // (E, K, D); std_: of categoricals, the probabilities
    std::vector<float> first_std_, least_std_, most_std_;  // (D,)
    std::vector<int> order_;                               // (N,)
    AlignedFloats drawn_;                                  // (K, D): one candidate
    std::vector<double> sum_, square_sum_;                 // (K, D)

  private:
    void clamp(float* values, int rows) const noexcept;  // (rows, D), to the bounds

    std::vector<uint64_t> plans_;  // (E,): plans since the episode began
    std::vector<NoiseKey> keys_;   // (E,): of the current iteration
    AlignedFloats shifted_;        // (K, D)
    AlignedFloats proposals_;      // (E, P, S, D)
    AlignedFloats sample_noise_;
};

std::unique_ptr<Planner> make_planner(const PlannerSettings& settings);

std::unique_ptr<Planner> make_cem(const PlannerSettings& settings);
std::unique_ptr<Planner> make_mppi(const PlannerSettings& settings);
std::unique_ptr<Planner> make_predictive_sampling(const PlannerSettings& settings);
std::unique_ptr<Planner> make_categorical_cem(const PlannerSettings& settings);
// Keeps the last plan for a tree search (tree.hpp), which draws nothing from it.
std::unique_ptr<Planner> make_last_plan(const PlannerSettings& settings);

}  // namespace pyjepa
