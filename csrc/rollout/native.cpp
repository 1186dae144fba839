#include "rollout/native.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace pyjepa {
namespace {

// Rows of a tile come by so many: a multiple of most register tiles' heights (3, 4, 6, 12, seldom 8 rows).
constexpr int kGrain = 12;
// A tile has so many rows at most. What is done once for a tile and step is worth more rows than activations
// that stay in L1: beside 48 rows, those below take for W0s, W0, W0L in int8 6, 6 and 1 % less time, in fp32
// and bf16 0 to 2 %; for W1, W2, W3 beside 96 rows 0 to 3 % (Zen 5). Where candidates are given up, a tile
// has to end before the next can know what its own must not exceed: two-rooms plans in 7 % less time with 96
// rows than with its 128 candidates at once.
constexpr int kMostRows = 264, kMostRowsPruned = 96;
// Two tiles for each thread, so that one that is held up can be helped, unless they would have fewer rows: W0
// takes 4 to 6 % less time on two threads in two tiles (of 128 rows) than in four, W0s 14 % less than in six.
constexpr int kWorthATile = 96;
// What rows keep through the horizon is bounded, too: so many floats for each thread.
constexpr size_t kMaxMemory = size_t{1} << 24;
// Rows that must be given up before the others move together: as many as a register tile is high.
constexpr int kWorthMoving = 6;

int ceil_div(int a, int b) {
    return (a + b - 1) / b;
}

// More tiles for each thread than these need not come out even.
constexpr int kEvenUpTo = 8;

// Into how many tiles of at most `most` rows the candidates of an environment are divided: so many that all
// threads get the same number, where that matters and there are enough rows for it.
int tiles_for(int candidates, int environments, int threads, int most) {
    int count = ceil_div(candidates, most);
    if (threads > 1) {
        const int each = candidates / ceil_div(2 * threads, environments) < kWorthATile ? 1 : 2;
        count = std::max(count, ceil_div(each * threads, environments));
        const int multiple = threads / std::gcd(threads, environments);
        if (static_cast<long>(count) * environments < static_cast<long>(kEvenUpTo) * threads)
            count = ceil_div(count, multiple) * multiple;
        count = std::min(count, std::max(1, ceil_div(candidates, kGrain)));
    }
    return count;
}

// Where tile t of them begins.
int first_of(int t, int tiles, int candidates) {
    const long grains = ceil_div(candidates, kGrain);
    return static_cast<int>(std::min<long>(grains * t / tiles * kGrain, candidates));
}

// How many rows the largest of them has; `memory`: floats that a row keeps through the horizon.
int choose_block(const RolloutLimits& limits, bool prunes, int threads, size_t memory) {
    const int kept = static_cast<int>(kMaxMemory / std::max<size_t>(memory, 1) / kGrain) * kGrain;
    const int candidates = std::max(1, limits.candidates);
    const int most = std::clamp(kept, kGrain, prunes ? kMostRowsPruned : kMostRows);
    const int count = tiles_for(candidates, limits.environments, threads, most);
    return std::min(ceil_div(ceil_div(candidates, kGrain), count) * kGrain, candidates);
}

size_t round_up(size_t n) {
    return (n + 15) / 16 * 16;
}

}  // namespace

// The costs of one call, tile by tile: environments one after the other. It holds a copy of all that changes
// between calls; goals, network and cost stay as they are while the rollout lives.
class NativeRollout::Evaluation final : public PureJob {
  public:
    Evaluation(NativeRollout& rollout, const RolloutLimits& limits)
        : PureJob(limits.environments * rollout.tiles(limits.candidates)),
          rollout_(rollout),
          snapshot_(limits.proposal_snapshot),
          states_(static_cast<size_t>(limits.environments) * static_cast<size_t>(rollout.latent_)),
          previous_(static_cast<size_t>(limits.environments) * static_cast<size_t>(rollout.plan_dim_)),
          has_previous_(std::make_unique<bool[]>(static_cast<size_t>(limits.environments))),
          draws_(static_cast<size_t>(limits.environments)),
          past_(static_cast<size_t>(limits.environments) * rollout.past_row()),
          pasts_(static_cast<size_t>(limits.environments)),
          cost_(static_cast<size_t>(limits.environments) * static_cast<size_t>(limits.candidates)),
          scratch_(static_cast<size_t>(rollout.pool_.threads()) * static_cast<size_t>(limits.candidates)),
          known_(static_cast<size_t>(rollout.pool_.threads())) {}

    void prepare(const Situation& now, const Proposal& proposal, int candidates, const Deadline& deadline) {
        proposal_ = &proposal;
        proposal.snapshot(snapshot_.data());
        candidates_ = candidates;
        keep_ = rollout_.prunes_ ? proposal.keeps() : 0;
        tiles_ = rollout_.tiles(candidates);
        std::fill(known_.begin(), known_.end(), Known());
        deadline_ = deadline;
        const auto e = static_cast<ptrdiff_t>(now.environments);
        std::copy_n(now.states, e * rollout_.latent_, states_.data());
        std::copy_n(now.previous, e * rollout_.plan_dim_, previous_.data());
        std::copy_n(now.has_previous, e, has_previous_.get());
        std::copy_n(now.draws, e, draws_.data());
        for (int i = 0; i < now.environments; ++i) pasts_[static_cast<size_t>(i)] = now.pasts_of(i);
        if (now.past != nullptr) std::copy_n(now.past, past_.size(), past_.data());
        const ptrdiff_t costs = e * candidates;
        for (ptrdiff_t i = 0; i < costs; ++i)
            cost_[static_cast<size_t>(i)].store(std::numeric_limits<float>::infinity(),
                                                std::memory_order_relaxed);
        now_ = {now.environments,    states_.data(), now.goals,    previous_.data(),
                has_previous_.get(), draws_.data(),  past_.data(), pasts_.data()};
    }
    int tiles() const noexcept { return now_.environments * tiles_; }
    void read(float* cost) const noexcept {
        for (ptrdiff_t i = 0; i < static_cast<ptrdiff_t>(now_.environments) * candidates_; ++i)
            cost[i] = cost_[static_cast<size_t>(i)].load(std::memory_order_relaxed);
    }

  private:
    int begin(int t) const noexcept { return first_of(t, tiles_, candidates_); }
    // What the dearest of the candidates that count costs at most, as far as a thread knows before tile t of
    // environment e: candidates dearer than that do not count. Whoever asks when, the candidates that count
    // are the same; so it asks anew where as many tiles again have been begun, which takes all tiles together
    // no more than two looks at every candidate.
    float bound(int e, int t, int thread) noexcept {
        Known& known = known_[static_cast<size_t>(thread)];
        if (known.environment == e && t < 2 * known.tile) return known.bound;
        const int begun = begin(t);
        known = {e, t, std::numeric_limits<float>::infinity()};
        if (keep_ == 0 || keep_ > begun) return known.bound;
        float* const costs = scratch_.data() + static_cast<ptrdiff_t>(thread) * candidates_;
        const auto first = static_cast<size_t>(e) * static_cast<size_t>(candidates_);
        for (size_t i = 0; i < static_cast<size_t>(begun); ++i)
            costs[i] = cost_[first + i].load(std::memory_order_relaxed);
        std::nth_element(costs, costs + keep_ - 1, costs + begun);
        return known.bound = costs[keep_ - 1];
    }
    bool over(int thread) noexcept override { return thread == 0 ? deadline_.over() : deadline_.expired(); }
    bool compute(int tile, int thread) noexcept override {
        const int e = tile / tiles_, t = tile % tiles_, n0 = begin(t), asked = begin(t + 1) - n0;
        const Lane l = rollout_.lane(thread);
        proposal_->fill(snapshot_.data(), e, n0, n0 + asked, l.actions, l.proposal);
        const int rows = rollout_.roll(now_, e, asked, l, bound(e, t, thread), n0 == 0 ? 1 : 0, deadline_,
                                       nullptr, nullptr);
        if (rows < 0) return false;
        const auto first =
            static_cast<size_t>(e) * static_cast<size_t>(candidates_) + static_cast<size_t>(n0);
        for (int r = 0; r < rows; ++r)
            cost_[first + static_cast<size_t>(l.row[r])].store(
                std::isfinite(l.cost[r]) ? l.cost[r] : std::numeric_limits<float>::infinity(),
                std::memory_order_relaxed);
        return true;
    }

    NativeRollout& rollout_;
    const Proposal* proposal_ = nullptr;
    AlignedFloats snapshot_;
    int candidates_ = 0, keep_ = 0, tiles_ = 0;
    Deadline deadline_;
    Situation now_{};
    AlignedFloats states_, previous_;
    std::unique_ptr<bool[]> has_previous_;
    std::vector<uint64_t> draws_;
    AlignedFloats past_;
    std::vector<int> pasts_;
    std::vector<std::atomic<float>> cost_;  // (E, N): infinite until a candidate has been through its horizon
    AlignedFloats scratch_;                 // (threads, N)
    struct Known {
        int environment = -1, tile = 0;  // before which it asked
        float bound = 0.0f;
    };
    std::vector<Known> known_;  // (threads,): the last bound
};

NativeRollout::NativeRollout(const Model& model, Cost& cost, const Policy* policy, Pool& pool,
                             const RolloutLimits& limits)
    : model_(model),
      predictor_(*model.predictor()),
      cost_(cost),
      policy_(policy),
      pool_(pool),
      steps_(limits.steps),
      latent_(model.spec().latent_dim),
      plan_dim_(model.spec().plan_dim),
      state_ld_(simd::padded(latent_ + plan_dim_)),
      back_(model.window() - 1),
      environments_(limits.environments),
      prunes_(limits.prune && cost.only_rises()),
      judges_actions_(cost.judges_actions()),
      block_(choose_block(limits, prunes_, pool.threads(),
                          predictor_.past_size() +
                              static_cast<size_t>(steps_) * static_cast<size_t>(plan_dim_) +
                              limits.proposal_scratch_per_row)),
      past_size_(round_up(predictor_.past_size() * static_cast<size_t>(block_))) {
    const ActionSpec& box = model.spec().actions;
    const auto sequence = static_cast<size_t>(steps_) * static_cast<size_t>(plan_dim_);
    for (size_t i = 0; i < sequence; ++i) {
        center_.push_back(box.center[i % box.center.size()]);
        scale_.push_back(box.scale[i % box.scale.size()]);
    }
    normal_ = std::all_of(center_.begin(), center_.end(), [](float c) { return c == 0.0f; }) &&
              std::all_of(scale_.begin(), scale_.end(), [](float c) { return c == 1.0f; });
    const auto rows = static_cast<size_t>(block_);
    proposal_scratch_ = round_up(limits.proposal_scratch_per_row * rows);
    network_work_ = round_up(predictor_.workspace(block_));
    head_work_ = cost_.workspace(block_);
    if (policy_ != nullptr) head_work_ = std::max(head_work_, policy_->workspace(block_));
    head_work_ = round_up(head_work_);
    lane_size_ = round_up(rows * static_cast<size_t>(steps_) * static_cast<size_t>(plan_dim_)) +
                 round_up(rows * static_cast<size_t>(state_ld_)) + 3 * round_up(rows) + proposal_scratch_ +
                 network_work_ + head_work_ + past_size_;
    memory_ = AlignedFloats(lane_size_ * static_cast<size_t>(pool.threads()));
    for (int i = 0; i < pool.threads(); ++i)
        evaluations_.push_back(std::make_unique<Evaluation>(*this, limits));
    if (limits.descending > 0) gradient_ = std::make_unique<NativeGradient>(model, cost, pool, limits);
    if (limits.moves) moves_ = std::make_unique<NativeMoves>(model, cost, policy, pool, limits.steps);
}

int NativeRollout::tiles(int candidates) const noexcept {
    return tiles_for(candidates, environments_, pool_.threads(), block_);
}

NativeRollout::~NativeRollout() {
    pool_.quiesce();
}

NativeRollout::Lane NativeRollout::lane(int thread) noexcept {
    const auto rows = static_cast<size_t>(block_);
    Lane l{};
    float* at = memory_.data() + lane_size_ * static_cast<size_t>(thread);
    const auto take = [&at](size_t count) {
        float* here = at;
        at += round_up(count);
        return here;
    };
    l.actions = take(rows * static_cast<size_t>(steps_) * static_cast<size_t>(plan_dim_));
    l.state = take(rows * static_cast<size_t>(state_ld_));
    l.cost = take(rows);
    l.scratch = take(rows);
    l.row = reinterpret_cast<int32_t*>(take(rows));
    l.proposal = take(proposal_scratch_);
    l.network = take(network_work_);
    l.heads = take(head_work_);
    l.past = take(past_size_);
    return l;
}

// Every thread but the caller's is inside one job at most: of as many jobs as there are threads one is free.
NativeRollout::Evaluation& NativeRollout::free_evaluation() noexcept {
    for (;;)
        for (const auto& evaluation : evaluations_)
            if (!pool_.inside(*evaluation)) return *evaluation;
}

bool NativeRollout::evaluate(const Situation& now, const Proposal& proposal, int candidates, float* cost,
                             const Deadline& deadline) {
    Evaluation& evaluation = free_evaluation();
    evaluation.prepare(now, proposal, candidates, deadline);
    const bool complete = pool_.run(evaluation, evaluation.tiles());
    if (complete) evaluation.read(cost);
    return complete;
}

bool NativeRollout::trace(const Situation& now, int e, const float* plan, float* states,
                          float* terms) noexcept {
    const Lane l = lane(0);
    std::copy_n(plan, static_cast<ptrdiff_t>(steps_) * plan_dim_, l.actions);
    return roll(now, e, 1, l, std::numeric_limits<float>::infinity(), 1, Deadline(), states, terms) == 1;
}

void NativeRollout::normalise(float* actions, ptrdiff_t count) const noexcept {
    const ActionSpec& box = model_.spec().actions;
    const int action_dim = model_.spec().action_dim;
    for (ptrdiff_t i = 0; i < count; ++i, actions += action_dim)
        for (int a = 0; a < action_dim; ++a) {
            const auto j = static_cast<size_t>(a);
            actions[a] = (actions[a] - box.center[j]) / box.scale[j];
        }
}

bool NativeRollout::propose(const Situation& now, int count, float* plans, const Deadline& deadline) {
    const int per_environment = tiles(count);
    const ptrdiff_t sequence = static_cast<ptrdiff_t>(steps_) * plan_dim_;
    std::atomic<bool> expired{false};
    pool_.run(now.environments * per_environment, [&](int tile, int thread) noexcept {
        if (expired.load(std::memory_order_relaxed)) return;
        if (thread == 0 ? deadline.over() : deadline.expired()) {
            expired.store(true, std::memory_order_relaxed);
            return;
        }
        const simd::Kernels& kernels = simd::kernels();
        const int e = tile / per_environment, share = tile % per_environment;
        const int n0 = first_of(share, per_environment, count);
        const int rows = first_of(share + 1, per_environment, count) - n0;
        const Lane l = lane(thread);
        const float* start = now.states + static_cast<ptrdiff_t>(e) * latent_;
        const float* goal = now.goals == nullptr ? nullptr : now.goals + static_cast<ptrdiff_t>(e) * latent_;
        float* plan = plans + (static_cast<ptrdiff_t>(e) * count + n0) * sequence;
        const int before = look_back(now, e, rows, l);
        for (int r = 0; r < rows; ++r)
            std::copy_n(start, latent_, l.state + static_cast<ptrdiff_t>(r) * state_ld_);
        for (int t = 0; t < steps_; ++t, plan += plan_dim_) {
            if (t > 0 && (thread == 0 ? deadline.over() : deadline.expired())) {
                expired.store(true, std::memory_order_relaxed);
                return;
            }
            policy_->act(kernels, l.state, state_ld_, rows, goal, plan, sequence, plan, sequence, l.heads);
            if (t + 1 == steps_) break;
            for (int r = 0; r < rows; ++r) {
                float* action = l.state + static_cast<ptrdiff_t>(r) * state_ld_ + latent_;
                std::copy_n(plan + r * sequence, plan_dim_, action);
                normalise(action, 1);
            }
            predictor_.advance(kernels, l.state, state_ld_, rows, l.state, state_ld_, predictor_.residual(),
                               l.network, past(l, before, t));
        }
    });
    return !expired.load(std::memory_order_relaxed);
}

double NativeRollout::flops_per_proposal() const noexcept {
    return policy_ == nullptr ? 0.0 : policy_->flops() * steps_ + predictor_.flops(steps_ - 1);
}

int NativeRollout::look_back(const Situation& now, int e, int rows, const Lane& l) const noexcept {
    const int before = now.pasts_of(e);
    const ptrdiff_t row = latent_ + plan_dim_;
    const float* from = now.past + static_cast<ptrdiff_t>(e) * back_ * row;
    for (int t = 0; t < before; ++t, from += row) {
        std::copy_n(from, row, l.state);
        predictor_.advance(simd::kernels(), l.state, state_ld_, 1, l.state, state_ld_, false, l.network,
                           past(l, 0, t));
    }
    // All rows come from the same past.
    if (before > 0)
        for (int r = 1; r < rows; ++r) predictor_.move(past(l, 0, before), 0, r);
    return before;
}

int NativeRollout::give_up(int rows, float bound, int spared, const Lane& l, int before,
                           int done) const noexcept {
    const int out =
        static_cast<int>(std::count_if(l.cost + spared, l.cost + rows, [&](float c) { return c > bound; }));
    if (out < std::min(kWorthMoving, rows - spared)) return rows;
    const ptrdiff_t sequence = static_cast<ptrdiff_t>(steps_) * plan_dim_,
                    used = static_cast<ptrdiff_t>(done) * plan_dim_;
    int to = spared;
    for (int r = spared; r < rows; ++r) {
        if (l.cost[r] > bound) continue;
        if (to != r) {
            std::copy_n(l.state + static_cast<ptrdiff_t>(r) * state_ld_, latent_,
                        l.state + static_cast<ptrdiff_t>(to) * state_ld_);
            // The last action taken stays: the next step may be judged by its difference from it.
            const ptrdiff_t from = used - plan_dim_;
            std::copy_n(l.actions + r * sequence + from, sequence - from, l.actions + to * sequence + from);
            l.cost[to] = l.cost[r];
            l.row[to] = l.row[r];
            predictor_.move(past(l, before, done), r, to);
        }
        ++to;
    }
    return to;
}

int NativeRollout::roll(const Situation& now, int e, int rows, const Lane& l, float bound, int spared,
                        const Deadline& deadline, float* states, float* terms) noexcept {
    const simd::Kernels& kernels = simd::kernels();
    const ptrdiff_t sequence = static_cast<ptrdiff_t>(steps_) * plan_dim_;

    if (!normal_)
        kernels.normalise(center_.data(), scale_.data(), rows, static_cast<int>(sequence), l.actions);
    const int before = look_back(now, e, rows, l);
    const float* start = now.states + static_cast<ptrdiff_t>(e) * latent_;
    for (int r = 0; r < rows; ++r)
        std::copy_n(start, latent_, l.state + static_cast<ptrdiff_t>(r) * state_ld_);
    std::fill_n(l.cost, rows, 0.0f);
    std::iota(l.row, l.row + rows, 0);
    if (states != nullptr) std::copy_n(start, latent_, states);

    const float* goal = now.goals == nullptr ? nullptr : now.goals + static_cast<ptrdiff_t>(e) * latent_;
    StepView step{kernels, e,        rows,     l.state,   state_ld_,    latent_, goal,   nullptr,
                  nullptr, sequence, sequence, plan_dim_, now.draws[e], 1.0f,    l.heads};
    Recurrence recurrence;
    recurrence.ld_more = sequence;
    recurrence.count = plan_dim_;
    for (int t = 0; t < steps_; ++t, step.discount *= cost_.discount()) {
        if (t > 0 && deadline.expired()) return -1;
        step.actions = l.actions + static_cast<ptrdiff_t>(t) * plan_dim_;
        if (t > 0) {
            step.previous = step.actions - plan_dim_;
            step.previous_ld = sequence;
        } else if (now.has_previous[e]) {
            step.previous = now.previous + static_cast<ptrdiff_t>(e) * plan_dim_;
            step.previous_ld = 0;
        }
        if (!recurrence.ready || judges_actions_)  // or else nobody reads them there
            for (int d = 0; d < plan_dim_; ++d)    // by columns: a row is too short to be worth a memmove
                for (int r = 0; r < rows; ++r)
                    l.state[static_cast<ptrdiff_t>(r) * state_ld_ + latent_ + d] =
                        step.actions[r * sequence + d];
        const bool last = t + 1 == steps_;
        float each[kMaxCostTerms];
        float* const report = terms == nullptr ? nullptr : each;
        cost_.add(Cost::Of::action, step, last, l.cost, report, l.scratch);
        recurrence.more = last ? nullptr : step.actions + plan_dim_;
        predictor_.advance(kernels, l.state, state_ld_, rows, l.state, state_ld_, predictor_.residual(),
                           l.network, past(l, before, t), &recurrence);
        cost_.add(Cost::Of::state, step, last, l.cost, report, l.scratch);
        if (states != nullptr)
            std::copy_n(l.state, latent_, states + static_cast<ptrdiff_t>(t + 1) * latent_);
        if (terms != nullptr)
            for (int i = 0; i < cost_.terms(); ++i) terms[static_cast<ptrdiff_t>(i) * steps_ + t] = each[i];
        if (last || bound == std::numeric_limits<float>::infinity()) continue;
        const int left = give_up(rows, bound, spared, l, before, t + 1);
        if (left == 0) return 0;
        if (left != rows) recurrence.ready = false;
        rows = step.rows = left;
    }
    return rows;
}

}  // namespace pyjepa
