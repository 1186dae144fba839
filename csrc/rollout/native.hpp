// Rollouts through the model's own predictor, on the CPU.
//
// A tile - one environment, up to a few hundred candidates - goes through the whole horizon with its
// activations in cache: weights stream, nothing else moves, and threads meet once per call. Tiles are pure:
// each reads a copy of what it is asked (its job), so that one which was overtaken harms nobody.
#pragma once

#include <memory>
#include <vector>

#include "model/dense.hpp"
#include "model/model.hpp"
#include "model/policy.hpp"
#include "parallel/pool.hpp"
#include "rollout/cost.hpp"
#include "rollout/native_gradient.hpp"
#include "rollout/native_moves.hpp"
#include "rollout/rollout.hpp"

namespace pyjepa {

class NativeRollout final : public Rollout {
  public:
    // model, cost, policy (nullptr: there is none) and pool outlive the rollout. Throws as NativeGradient,
    // where the limits ask for that.
    NativeRollout(const Model& model, Cost& cost, const Policy* policy, Pool& pool,
                  const RolloutLimits& limits);
    ~NativeRollout() override;
    bool evaluate(const Situation& now, const Proposal& proposal, int candidates, float* cost,
                  const Deadline& deadline) override;
    bool gradient(const Situation& now, const Proposal& proposal, int candidates, float* cost,
                  float* gradient, const Deadline& deadline) override {
        return gradient_->evaluate(now, proposal, candidates, cost, gradient, deadline);
    }
    bool trace(const Situation& now, int e, const float* plan, float* states, float* terms) noexcept override;
    bool propose(const Situation& now, int count, float* plans, const Deadline& deadline) override;
    double flops_per_proposal() const noexcept override;
    void move(const Situation& now, const Moves& moves) noexcept override { moves_->move(now, moves); }
    bool can_move() const noexcept override { return moves_ != nullptr; }
    void prior(const Situation& now, int e, int rows, const float* const* states,
               float* const* out) noexcept override {
        moves_->prior(now, e, rows, states, out);
    }
    bool has_prior() const noexcept override { return moves_ != nullptr && moves_->has_prior(); }
    double flops_per_candidate() const noexcept override {
        return predictor_.flops(steps_) + cost_.flops(steps_);
    }
    int tile() const noexcept override { return block_; }

  private:
    // One worker's scratch.
    struct Lane {
        float *actions, *state, *cost, *scratch, *proposal, *network, *heads, *past;
        int32_t* row;  // which candidate of the tile each row is
    };
    class Evaluation;  // one call of evaluate, as tiles
    Lane lane(int thread) noexcept;
    Evaluation& free_evaluation() noexcept;
    int tiles(int candidates) const noexcept;  // that an environment's candidates are divided into
    // What the predictor keeps of a lane's rows, at step t of a rollout before which it looks back on
    // `before` steps.
    Past past(const Lane& lane, int before, int t) const noexcept { return {lane.past, block_, before + t}; }
    // Takes the steps before the present one, for `rows` rows in environment e; returns how many.
    int look_back(const Situation& now, int e, int rows, const Lane& lane) const noexcept;
    // Rolls `rows` sequences of lane.actions (rows, S, D), in action units, out from environment e's state.
    void normalise(float* actions, ptrdiff_t count) const noexcept;  // (count, A), in place
    // Candidates are given up once they cost more than `bound`, but for the first `spared`. Returns how many
    // are left, at lane.row with lane.cost; -1 if the deadline passed first.
    int roll(const Situation& now, int e, int rows, const Lane& lane, float bound, int spared,
             const Deadline& deadline, float* states, float* terms) noexcept;
    // After `done` steps and `before`; returns how many rows are left.
    int give_up(int rows, float bound, int spared, const Lane& lane, int before, int done) const noexcept;

    size_t past_row() const noexcept {
        return static_cast<size_t>(back_) * static_cast<size_t>(latent_ + plan_dim_);
    }

    const Model& model_;
    const Network& predictor_;
    const Cost& cost_;
    const Policy* policy_;
    Pool& pool_;
    int steps_, latent_, plan_dim_, state_ld_, back_;  // back_: steps looked back on at most
    int environments_;
    bool prunes_, judges_actions_;
    int block_;         // rows of a tile at most
    size_t past_size_;  // floats that a lane keeps from step to step
    size_t lane_size_, proposal_scratch_, network_work_, head_work_;
    std::vector<float> center_, scale_;  // (S, D): the actions' normalisation, repeated
    bool normal_;                        // whether that changes nothing
    AlignedFloats memory_;
    std::vector<std::unique_ptr<Evaluation>> evaluations_;  // as many as threads
    std::unique_ptr<NativeGradient> gradient_;              // where the limits ask for it
    std::unique_ptr<NativeMoves> moves_;                    // where the limits ask for it
};

}  // namespace pyjepa
