#include "planner/tree.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <string>

#include "error.hpp"

namespace pyjepa {
namespace {

// How much a value weighs against prior and chance, in units of the range of costs seen: (kVisit + visits) *
// kScale. The range is that of whole plans, poor ones included, so that neighbours differ by little of it; a
// larger scale dives into the first line that looks good (on Two Rooms with eight moves 1 loses every tenth
// episode, 0.05 one in a hundred).
constexpr double kVisit = 50.0, kScale = 0.05;
constexpr int kConsidered = 16;  // root actions among which sequential halving begins, at most
constexpr int kLeaves = 8;       // nodes expanded as one batch, whatever the number of threads
constexpr int kPending = -1;

enum Level : uint32_t { of_candidates, of_actions, of_root };

class LastPlan final : public Planner {
  public:
    using Planner::Planner;
    void refit(int, const float*) noexcept override {}
};

}  // namespace

std::unique_ptr<Planner> make_last_plan(const PlannerSettings& settings) {
    return std::make_unique<LastPlan>(settings);
}

int branching(const PlannerSettings& s) noexcept {
    return s.count > 0 && s.count == s.plan_dim ? std::min(s.count, s.branching) : s.branching;
}

TreeSearch::TreeSearch(Planner& planner, Rollout& rollout, int latent)
    : Optimiser(planner, rollout),
      latent_(latent),
      dim_(planner.settings().plan_dim),
      depth_(planner.settings().knots),
      children_(branching(planner.settings())),
      has_prior_(rollout.has_prior()) {
    const PlannerSettings& s = planner.settings();
    const double expansions =
        static_cast<double>(s.candidates) * s.iterations + (s.iterations + 1.0) * depth_;
    const double nodes = (1.0 + expansions * children_) * s.environments;
    if (nodes > 1 << 24 || nodes * (latent_ + dim_) > 1 << 28)
        throw Error(PYJEPA_INVALID_ARGUMENT, "the tree of " + std::to_string(s.candidates) +
                                                 " candidates * " + std::to_string(s.iterations) +
                                                 " iterations with " + std::to_string(children_) +
                                                 " actions a node in " + std::to_string(s.environments) +
                                                 " environments is too large to hold");
    const auto all = static_cast<size_t>(nodes), e = static_cast<size_t>(s.environments);
    capacity_ = static_cast<int>(all / e);
    nodes_.resize(all);
    states_ = AlignedFloats(all * static_cast<size_t>(latent_));
    actions_ = AlignedFloats(all * static_cast<size_t>(dim_));
    size_.resize(e);
    least_.resize(e);
    most_.resize(e);

    // Which steps a knot holds for: its index, spread over the horizon like any action.
    std::vector<float> ramp(static_cast<size_t>(depth_)), held(static_cast<size_t>(s.steps));
    std::iota(ramp.begin(), ramp.end(), 0.0f);
    planner.knots().expand(ramp.data(), 1, held.data());
    for (int k = 0; k <= depth_; ++k)
        first_step_.push_back(static_cast<int>(
            std::lower_bound(held.begin(), held.end(), static_cast<float>(k)) - held.begin()));

    const auto rows = static_cast<size_t>(kLeaves * children_);
    leaves_.reserve(kLeaves);
    for (auto* list : {&from_, &taken_, &previous_}) list->resize(rows);
    leaf_states_.resize(kLeaves);
    to_.resize(rows);
    logits_.resize(kLeaves);
    first_.resize(rows);
    steps_.resize(rows);
    cost_.resize(rows);
    rest_.resize(rows);
    prior_ = AlignedFloats(static_cast<size_t>(kLeaves * dim_));
    scores_.resize(static_cast<size_t>(std::max(children_, dim_)));
    order_.resize(static_cast<size_t>(dim_));
    considered_.resize(static_cast<size_t>(children_));
    noise_ = AlignedFloats(static_cast<size_t>(
        noise_row(s.count == 0 ? children_ * dim_ : std::max(dim_, children_ * (dim_ / s.count)))));
    gumbel_.resize(static_cast<size_t>(noise_row(children_)));
    plan_ = AlignedFloats(planner.knots_size());
}

bool TreeSearch::improve(const Situation& now, int iteration, const Deadline& deadline) {
    const int environments = now.environments;
    for (int e = 0; e < environments; ++e) {
        if (iteration == 0) plant(now, e);
        if (!simulate(now, e, iteration, deadline)) return false;
    }
    for (int e = 0; e < environments; ++e) follow_best(now, e);
    return evaluate_mean(now, deadline);
}

// A new tree, grown along the best plan known: the last one, shifted.
void TreeSearch::plant(const Situation& now, int e) {
    const auto i = static_cast<size_t>(e);
    node(e, 0) = {-1, -1, 0, 0, 0.0f, 0.0f, 0.0f, false, false};
    std::copy_n(now.states + static_cast<ptrdiff_t>(e) * latent_, latent_, state(e, 0));
    size_[i] = 1;
    least_[i] = std::numeric_limits<float>::infinity();
    most_[i] = -least_[i];
    int at = 0;
    for (int k = 0; k < depth_; ++k) {
        leaves_.assign(1, at);
        expand(now, e);
        const float* wanted = knots(e) + static_cast<ptrdiff_t>(k) * dim_;
        const int first = node(e, at).first_child;
        at = first;
        for (int c = first; c < first + children_; ++c)
            if (std::equal(wanted, wanted + dim_, action(e, c))) {
                at = c;
                break;
            }
    }
}

// One iteration's simulations at the root: sequential halving. False if the deadline passed.
bool TreeSearch::simulate(const Situation& now, int e, int iteration, const Deadline& deadline) {
    const PlannerSettings& s = planner_.settings();
    const int root = node(e, 0).first_child;
    uniform(noise_key(s.seed, planner_.plans(e), of_root, static_cast<uint32_t>(iteration)), 0, {0, 1},
            children_, gumbel_.data());
    for (int c = 0; c < children_; ++c) {
        auto& g = gumbel_[static_cast<size_t>(c)];
        g = static_cast<float>(gumbel(g));
    }
    std::iota(considered_.begin(), considered_.end(), 0);
    int survivors = children_;
    const auto rank = [&](int keep) {
        int most_visits = 0;
        for (int c = 0; c < children_; ++c) most_visits = std::max(most_visits, node(e, root + c).visits);
        for (int i = 0; i < survivors; ++i) {
            const auto c = static_cast<size_t>(considered_[static_cast<size_t>(i)]);
            scores_[c] = static_cast<double>(gumbel_[c]) + score(e, root + static_cast<int>(c), most_visits);
        }
        std::sort(considered_.begin(), considered_.begin() + survivors, [&](int a, int b) {
            const double x = scores_[static_cast<size_t>(a)], y = scores_[static_cast<size_t>(b)];
            return x > y || (x == y && a < b);
        });
        survivors = std::min(survivors, keep);
    };
    rank(kConsidered);
    int phases = 1;
    while (1 << phases < survivors) ++phases;

    leaves_.clear();
    int left = s.candidates;
    for (int phase = 0; phase < phases && left > 0; ++phase) {
        const bool last = phase + 1 == phases;
        int share = last ? left : std::max(survivors, s.candidates / phases);
        for (bool open = true; open && share > 0 && left > 0;) {
            open = false;
            for (int i = 0; i < survivors && share > 0 && left > 0; ++i) {
                const int child = root + considered_[static_cast<size_t>(i)];
                if (node(e, child).closed) continue;
                int leaf = descend(e, child);
                if (leaf == kPending) {
                    expand(now, e);
                    if (deadline.over()) return false;
                    if (node(e, child).closed) continue;
                    leaf = descend(e, child);
                }
                open = true;
                node(e, leaf).pending = true;
                leaves_.push_back(leaf);
                --share;
                --left;
                if (leaves_.size() == kLeaves) {
                    expand(now, e);
                    if (deadline.over()) return false;
                }
            }
        }
        if (!leaves_.empty()) expand(now, e);
        rank((survivors + 1) / 2);
    }
    return !deadline.over();
}

// The node below `from` to expand next, or kPending if the way there leads to one that already waits for it.
int TreeSearch::descend(int e, int from) noexcept {
    int at = from;
    ++node(e, at).visits;
    while (node(e, at).first_child >= 0) {
        const int first = node(e, at).first_child;
        int most_visits = 0, visits = 0;
        for (int c = first; c < first + children_; ++c) {
            visits += node(e, c).visits;
            most_visits = std::max(most_visits, node(e, c).visits);
        }
        double top = -std::numeric_limits<double>::infinity(), sum = 0.0;
        for (int c = 0; c < children_; ++c) {
            scores_[static_cast<size_t>(c)] = score(e, first + c, most_visits);
            top = std::max(top, scores_[static_cast<size_t>(c)]);
        }
        for (int c = 0; c < children_; ++c) {
            auto& p = scores_[static_cast<size_t>(c)];
            p = stable_exp(p - top);
            sum += p;
        }
        // Visits in proportion to the improved policy, deterministically.
        int chosen = first;
        double best = -std::numeric_limits<double>::infinity();
        for (int c = 0; c < children_; ++c) {
            const Node& child = node(e, first + c);
            if (child.closed) continue;
            const double lag = scores_[static_cast<size_t>(c)] / sum - child.visits / (1.0 + visits);
            if (lag > best) {
                best = lag;
                chosen = first + c;
            }
        }
        at = chosen;
        ++node(e, at).visits;
    }
    if (!node(e, at).pending) return at;
    for (int undo = at; undo != node(e, from).parent; undo = node(e, undo).parent) --node(e, undo).visits;
    return kPending;
}

// Prior plus weighted value, which is 1 for the cheapest plan seen and 0 for the dearest.
double TreeSearch::score(int e, int child, int most_visits) const noexcept {
    const Node& n = node(e, child);
    if (!std::isfinite(n.total)) return -1e300;
    const auto i = static_cast<size_t>(e);
    const double range = static_cast<double>(most_[i]) - static_cast<double>(least_[i]);
    const double value =
        range > 0.0 ? (static_cast<double>(most_[i]) - static_cast<double>(n.total)) / range : 0.0;
    return static_cast<double>(n.logit) + (kVisit + most_visits) * kScale * value;
}

// Gives every node of leaves_ its children.
void TreeSearch::expand(const Situation& now, int e) noexcept {
    const auto count = static_cast<int>(leaves_.size());
    const auto i = static_cast<size_t>(e);
    if (has_prior_) {
        for (int l = 0; l < count; ++l) {
            const auto at = static_cast<size_t>(l);
            leaf_states_[at] = state(e, leaves_[at]);
            logits_[at] = prior_.data() + static_cast<ptrdiff_t>(l) * dim_;
        }
        rollout_.prior(now, e, count, leaf_states_.data(), logits_.data());
    }
    size_t row = 0;
    for (int l = 0; l < count; ++l) {
        const int leaf = leaves_[static_cast<size_t>(l)];
        const int depth = node(e, leaf).depth, first = size_[i];
        node(e, leaf).first_child = first;
        size_[i] += children_;
        for (int c = first; c < first + children_; ++c)
            node(e, c) = {leaf, -1, depth + 1, 0, 0.0f, 0.0f, 0.0f, false, depth + 1 == depth_};
        choose_actions(e, leaf, has_prior_ ? logits_[static_cast<size_t>(l)] : nullptr);
        for (int c = first; c < first + children_; ++c, ++row) {
            from_[row] = state(e, leaf);
            taken_[row] = action(e, c);
            previous_[row] = leaf == 0 ? nullptr : action(e, leaf);
            first_[row] = first_step_[static_cast<size_t>(depth)];
            steps_[row] = first_step_[static_cast<size_t>(depth) + 1] - first_[row];
            to_[row] = state(e, c);
        }
    }
    rollout_.move(now, {e, static_cast<int>(row), from_.data(), taken_.data(), previous_.data(),
                        first_.data(), steps_.data(), to_.data(), cost_.data(), rest_.data()});
    row = 0;
    for (const int leaf : leaves_) {
        Node& parent = node(e, leaf);
        for (int c = parent.first_child; c < parent.first_child + children_; ++c, ++row) {
            Node& child = node(e, c);
            child.to_here = parent.to_here + cost_[row];
            child.total = child.to_here + rest_[row];
            if (std::isfinite(child.total)) {
                least_[i] = std::min(least_[i], child.total);
                most_[i] = std::max(most_[i], child.total);
            } else {
                child.closed = true;
            }
        }
        parent.pending = false;
        back_up(e, leaf);
    }
    leaves_.clear();
}

// The actions of a new node's children.
void TreeSearch::choose_actions(int e, int parent, const float* prior) noexcept {
    const PlannerSettings& s = planner_.settings();
    const Node& n = node(e, parent);
    const float* known = knots(e) + static_cast<ptrdiff_t>(n.depth) * dim_;
    const NoiseKey key = noise_key(s.seed, planner_.plans(e), of_actions, 0);
    const auto dim = static_cast<size_t>(dim_);
    float* out = action(e, n.first_child);
    std::fill_n(out, static_cast<ptrdiff_t>(children_) * dim_, 0.0f);

    if (s.count == dim_) {  // one discrete action
        std::iota(order_.begin(), order_.end(), 0);
        if (children_ < s.count) {  // the best plan's, then without replacement by the prior
            uniform(key, 0, {parent, 1}, dim_, noise_.data());
            const auto best = static_cast<size_t>(std::max_element(known, known + dim_) - known);
            for (size_t a = 0; a < dim; ++a)
                scores_[a] = gumbel(noise_[a]) + (prior == nullptr ? 0.0 : static_cast<double>(prior[a]));
            scores_[best] = std::numeric_limits<double>::infinity();
            std::partial_sort(order_.begin(), order_.begin() + children_, order_.end(), [&](int a, int b) {
                const double x = scores_[static_cast<size_t>(a)], y = scores_[static_cast<size_t>(b)];
                return x > y || (x == y && a < b);
            });
        }
        for (int c = 0; c < children_; ++c) {
            const int a = order_[static_cast<size_t>(c)];
            out[static_cast<ptrdiff_t>(c) * dim_ + a] = 1.0f;
            if (prior != nullptr) node(e, n.first_child + c).logit = prior[a];
        }
        return;
    }

    std::copy_n(known, dim_, out);
    int c = 1;
    if (s.count > 0) {  // a block of discrete actions
        uniform(key, 0, {parent, 1}, children_ * (dim_ / s.count), noise_.data());
        const float* u = noise_.data();
        for (; c < children_; ++c)
            for (int at = 0; at < dim_; at += s.count, ++u)
                out[static_cast<ptrdiff_t>(c) * dim_ + at +
                    std::min(static_cast<int>(*u * static_cast<float>(s.count)), s.count - 1)] = 1.0f;
        return;
    }
    const auto clamped = [&](float value, size_t d) {
        return std::min(std::max(value, s.low[d]), s.high[d]);
    };
    if (prior != nullptr) {
        for (size_t d = 0; d < dim; ++d)
            out[dim + d] =
                clamped(0.5f * (s.low[d] + s.high[d]) + 0.5f * (s.high[d] - s.low[d]) * prior[d], d);
        ++c;
    }
    gaussian(key, 0, {parent, 1}, children_ * dim_, noise_.data());
    for (; c < children_; ++c)
        for (size_t d = 0; d < dim; ++d) {
            const size_t at = static_cast<size_t>(c) * dim + d;
            out[at] = clamped(known[d] + s.std * 0.5f * (s.high[d] - s.low[d]) * noise_[at], d);
        }
}

// A node is worth what its best child is, and closed when all of them are.
void TreeSearch::back_up(int e, int leaf) noexcept {
    for (int at = leaf; at >= 0; at = node(e, at).parent) {
        Node& n = node(e, at);
        n.total = std::numeric_limits<float>::infinity();
        n.closed = true;
        for (int c = n.first_child; c < n.first_child + children_; ++c) {
            n.total = std::min(n.total, node(e, c).total);
            n.closed = n.closed && node(e, c).closed;
        }
    }
}

int TreeSearch::best_child(int e, int parent) const noexcept {
    const int first = node(e, parent).first_child;
    int best = first;
    for (int c = first + 1; c < first + children_; ++c)
        if (node(e, c).total < node(e, best).total) best = c;
    return best;
}

// The best line, expanded greedily where the tree ends, becomes the planner's mean.
void TreeSearch::follow_best(const Situation& now, int e) noexcept {
    int at = 0;
    for (int k = 0; k < depth_; ++k) {
        if (node(e, at).first_child < 0) {
            leaves_.assign(1, at);
            expand(now, e);
        }
        at = best_child(e, at);
        std::copy_n(action(e, at), dim_, plan_.data() + static_cast<ptrdiff_t>(k) * dim_);
    }
    planner_.set_mean(e, plan_.data());
}

}  // namespace pyjepa
