// Tree search over latent states: Gumbel MuZero's (Danihelka et al. 2022), for a world that is deterministic.
//
// A node is a predicted state, an edge an action held between two knots. A simulation walks from the root to
// a node that has no children yet and gives it all of them at once, one row of a batch each: discrete actions
// all, or those that the prior and chance favour where there are more than `branching`; of a box `branching`
// actions, the best plan's and the policy's among them. A new node's value is what the rest of the horizon
// would cost if the state stayed as it is; a node with children is worth what its best child is, for nothing
// in this world is left to chance.
//
// The root shares its simulations out by sequential halving over Gumbel-perturbed scores, the nodes below
// follow the improved policy over completed values. Values are whole plans' costs (discount 1), normalised
// between the least and the greatest seen. After every iteration (`candidates` simulations) the best line is
// continued greedily to the horizon and evaluated like any other plan.
#pragma once

#include <vector>

#include "planner/optimise.hpp"

namespace pyjepa {

// Children of a node.
int branching(const PlannerSettings& settings) noexcept;

class TreeSearch final : public Optimiser {
  public:
    // rollout can move. latent: L. Throws Error(PYJEPA_INVALID_ARGUMENT) for a tree too large to hold.
    TreeSearch(Planner& planner, Rollout& rollout, int latent);

  private:
    struct Node {
        int parent, first_child, depth, visits;  // first_child: -1 while there are none
        float to_here;                           // cost of the way from the root
        float total;                             // least cost of a whole plan through here
        float logit;
        bool pending, closed;  // chosen, not yet expanded; nothing below is left to explore
    };

    bool improve(const Situation& now, int iteration, const Deadline& deadline) override;
    bool begins_with_mean() const noexcept override { return false; }
    bool simulate(const Situation& now, int e, int iteration, const Deadline& deadline);
    void plant(const Situation& now, int e);
    int descend(int e, int from) noexcept;
    void expand(const Situation& now, int e) noexcept;
    void choose_actions(int e, int parent, const float* prior) noexcept;
    void back_up(int e, int leaf) noexcept;
    int best_child(int e, int parent) const noexcept;
    void follow_best(const Situation& now, int e) noexcept;
    double score(int e, int child, int most_visits) const noexcept;

    Node& node(int e, int i) noexcept { return nodes_[index(e, i)]; }
    const Node& node(int e, int i) const noexcept { return nodes_[index(e, i)]; }
    size_t index(int e, int i) const noexcept {
        return static_cast<size_t>(e) * static_cast<size_t>(capacity_) + static_cast<size_t>(i);
    }
    float* state(int e, int i) noexcept {
        return states_.data() + index(e, i) * static_cast<size_t>(latent_);
    }
    float* action(int e, int i) noexcept { return actions_.data() + index(e, i) * static_cast<size_t>(dim_); }

    int latent_, dim_, depth_, children_, capacity_;  // capacity_: nodes per environment
    bool has_prior_;
    std::vector<int> first_step_;      // (K + 1,): predictor step at which each knot begins
    std::vector<Node> nodes_;          // (E, capacity)
    AlignedFloats states_, actions_;   // (E, capacity, L) and (E, capacity, D)
    std::vector<int> size_;            // (E,): nodes in use
    std::vector<float> least_, most_;  // (E,): costs of whole plans seen

    // Of one batch of leaves.
    std::vector<int> leaves_;
    std::vector<const float*> from_, taken_, previous_, leaf_states_;
    std::vector<float*> to_, logits_;
    std::vector<int> first_, steps_;
    std::vector<float> cost_, rest_;
    AlignedFloats prior_;  // (leaves, D)

    std::vector<double> scores_;  // (max(children, D),)
    std::vector<float> gumbel_;   // (children,)
    std::vector<int> order_, considered_;
    AlignedFloats noise_, plan_;  // for choose_actions; (K, D)
};

}  // namespace pyjepa
