#include "agent/task.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>

#include "error.hpp"
#include "planner/tree.hpp"
#include "rollout/callback.hpp"
#include "rollout/native.hpp"

namespace pyjepa {
namespace {

[[noreturn]] void invalid(const std::string& message) {
    throw Error(PYJEPA_INVALID_ARGUMENT, message);
}

int in_range(const char* name, int value, int least, int most) {
    if (value < least || value > most)
        invalid(std::string(name) + " must be between " + std::to_string(least) + " and " +
                std::to_string(most) + ", got " + std::to_string(value));
    return value;
}

float or_default(float value, float otherwise) {
    return std::isnan(value) ? otherwise : value;
}

size_t observation_bytes(const Spec& spec) {
    const size_t element = spec.observation.dtype == DType::uint8 ? 1 : sizeof(float);
    return element * static_cast<size_t>(spec.observation_size);
}

// What only a box has.
void refuse_box_options(const pyjepa_task& task) {
    const auto refuse = [](const char* name, bool given) {
        if (given) invalid(std::string(name) + " belongs to continuous actions, this agent's are discrete");
    };
    refuse("std", !std::isnan(task.std));
    refuse("min_std", !std::isnan(task.min_std));
    refuse("action bounds: low", task.action_low != nullptr);
    refuse("action bounds: high", task.action_high != nullptr);
    refuse("interpolation other than zero", task.interpolation > PYJEPA_ZERO);
}

// The bounds of each plan dimension: the action's, repeated where a predictor step reads several actions.
std::vector<float> bounds(const Spec& spec, const float* given, const std::vector<float>& otherwise,
                          const char* name) {
    std::vector<float> out;
    for (int d = 0; d < spec.plan_dim; ++d) {
        const auto a = static_cast<size_t>(d % spec.action_dim);
        out.push_back(given == nullptr ? otherwise[a] : given[a]);
        if (!std::isfinite(out.back()))
            invalid("action " + std::string(name) + "[" + std::to_string(a) + "] is not finite");
    }
    return out;
}

std::optional<Policy> policy_of(const Model& model, const Network* network, const PlannerSettings& s) {
    if (network == nullptr) return std::nullopt;
    return std::make_optional<Policy>(model, *network, s.low, s.high);
}

}  // namespace

TaskRequest::TaskRequest(const Model& model, const pyjepa_task& task)
    : rollout(task.rollout), rollout_user(task.rollout_user) {
    const Spec& spec = model.spec();
    const PlannerSpec& p = spec.planner;
    const int block = spec.level.action_block;
    PlannerSettings& s = settings;

    in_range("algorithm", task.algorithm, PYJEPA_ALGORITHM_DEFAULT, PYJEPA_TREE);
    s.algorithm =
        task.algorithm == PYJEPA_ALGORITHM_DEFAULT ? p.algorithm : static_cast<Algorithm>(task.algorithm - 1);
    if (*algorithm_name(s.algorithm) == '\0')
        invalid("algorithm: there is no planner " + std::to_string(task.algorithm));
    in_range("interpolation", task.interpolation, PYJEPA_INTERPOLATION_DEFAULT, PYJEPA_CUBIC);
    s.interpolation =
        task.interpolation == 0 ? p.interpolation : static_cast<Interpolation>(task.interpolation - 1);
    if (const std::string mismatch = planner_mismatch(s.algorithm, spec.actions); !mismatch.empty())
        invalid(mismatch);
    if (spec.actions.discrete()) refuse_box_options(task);
    if (s.algorithm == Algorithm::tree) {
        if (task.interpolation > PYJEPA_ZERO)
            invalid("the planner tree holds its actions: interpolation must be zero");
        s.interpolation = Interpolation::zero;
    }
    s.count = spec.actions.count;
    s.environments = in_range("environments", task.environments, 1, 1 << 16);
    const int horizon = in_range("horizon", task.horizon == -1 ? p.horizon : task.horizon, 1, 100000);
    if (horizon % block != 0)
        invalid("horizon " + std::to_string(horizon) + " is not a multiple of the model's action_block " +
                std::to_string(block));
    s.steps = horizon / block;
    s.plan_dim = spec.plan_dim;
    s.candidates = in_range("candidates", task.candidates == -1 ? p.candidates : task.candidates, 1, 1 << 20);
    s.iterations = in_range("iterations", task.iterations == -1 ? p.iterations : task.iterations, 0, 10000);
    s.elites = task.elites == -1 ? p.elites : task.elites;
    in_range("elite_refit", task.elite_refit, -1, 1);
    if (task.elite_refit == 1 && s.algorithm != Algorithm::mppi)
        invalid("elite_refit belongs to the planner mppi");
    s.elite_refit =
        s.algorithm == Algorithm::mppi && (task.elite_refit == -1 ? p.elite_refit : task.elite_refit == 1);
    const bool cem = s.algorithm == Algorithm::cem, categorical = s.algorithm == Algorithm::categorical_cem;
    if (cem || categorical || s.elite_refit) {
        in_range("elites", s.elites, 1, 1 << 20);
        if (s.elites > s.candidates)
            invalid("elites (" + std::to_string(s.elites) + ") exceed candidates (" +
                    std::to_string(s.candidates) + ")");
    } else if (task.elites != -1) {
        invalid("elites belong to the planners cem and categorical-cem, and to mppi with elite_refit");
    }
    // What a batch of candidates holds together; also keeps every product of sizes far from overflow.
    constexpr double most = 1ull << 32;
    const double numbers = static_cast<double>(s.environments) * s.candidates * horizon * spec.action_dim;
    if (numbers > most || static_cast<double>(s.environments) * s.candidates > 1 << 27)
        invalid("environments (" + std::to_string(s.environments) + ") * candidates (" +
                std::to_string(s.candidates) + ") * horizon (" + std::to_string(horizon) +
                ") is too much for one plan");
    int knots = task.knots == -1 ? p.knots : task.knots;
    if (task.knots == -1 && knots > s.steps)
        knots = 0;  // a shorter horizon than the file's default was asked for
    s.knots = knots == 0 ? s.steps : in_range("knots", knots, 1, s.steps);

    s.policy_candidates = task.policy_candidates == -1 ? p.policy_candidates : task.policy_candidates;
    const bool draws = s.algorithm != Algorithm::tree;
    if (task.policy_candidates == -1 && (rollout != nullptr || !draws || s.policy_candidates >= s.candidates))
        s.policy_candidates = 0;  // the file's default, where there is no place for it
    in_range("policy_candidates", s.policy_candidates, 0, s.candidates - 1);
    if (s.policy_candidates > 0) {
        if (rollout != nullptr) invalid("policy_candidates need the model's own rollout");
        if (!draws) invalid("policy_candidates belong to planners that draw candidates, not to tree");
        if (spec.actions.discrete())
            invalid("policy_candidates belong to continuous actions, this agent's are discrete");
        if (!spec.policy) throw Error(PYJEPA_UNSUPPORTED, "policy_candidates: this agent file has no policy");
        if (s.policy_candidates > 1 && spec.policy_head == PolicyHead::deterministic)
            invalid("policy_candidates over 1 need a policy head that samples, gaussian_tanh");
        if (spec.plan_dim != spec.action_dim)
            invalid("policy_candidates need a predictor that reads one action a step");
        if (s.knots != s.steps) invalid("policy_candidates need a knot for every step (knots 0)");
        if (model.policy_reads_goal() && task.goal == nullptr)
            invalid("policy_candidates: the policy reads a goal");
    }

    s.std = or_default(task.std, p.std);
    s.min_std = std::min(or_default(task.min_std, p.min_std), std::isnan(task.min_std) ? s.std : INFINITY);
    s.momentum = or_default(task.momentum, p.momentum);
    s.temperature = or_default(task.temperature, p.temperature);
    s.max_std = or_default(task.max_std, p.max_std);
    in_range("temperature_scale", task.temperature_scale, PYJEPA_TEMPERATURE_SCALE_DEFAULT,
             PYJEPA_TEMPERATURE_ABSOLUTE);
    s.temperature_scale = task.temperature_scale == 0
                              ? p.temperature_scale
                              : static_cast<TemperatureScale>(task.temperature_scale - 1);
    s.exploration = or_default(task.exploration, p.exploration);
    s.branching = in_range("branching", task.branching == -1 ? p.branching : task.branching, 2, 1024);
    const auto belongs = [&](const char* name, bool given, bool fits, const char* owner) {
        if (given && !fits) invalid(std::string(name) + " belongs to " + owner);
    };
    const bool mppi = s.algorithm == Algorithm::mppi;
    belongs("min_std", !std::isnan(task.min_std), cem || s.elite_refit,
            "the planner cem, and to mppi with elite_refit");
    belongs("max_std", !std::isnan(task.max_std), s.elite_refit, "the planner mppi with elite_refit");
    belongs("momentum", !std::isnan(task.momentum), cem || categorical,
            "the planners cem and categorical-cem");
    belongs("temperature", !std::isnan(task.temperature), mppi, "the planner mppi");
    belongs("temperature_scale", task.temperature_scale != 0, mppi, "the planner mppi");
    belongs("exploration", !std::isnan(task.exploration), categorical, "the planner categorical-cem");
    belongs("branching", task.branching != -1, s.algorithm == Algorithm::tree, "the planner tree");
    if (!(s.exploration >= 0.0f && s.exploration <= 1.0f))
        invalid("exploration must be in [0, 1], got " + std::to_string(s.exploration));
    if (!(s.std > 0.0f && s.std <= 10.0f)) invalid("std must be in (0, 10], got " + std::to_string(s.std));
    if (!(s.min_std >= 0.0f && s.min_std <= s.std))
        invalid("min_std must be in [0, std], got " + std::to_string(s.min_std));
    if (!(s.max_std > 0.0f && s.max_std <= 10.0f))
        invalid("max_std must be in (0, 10], got " + std::to_string(s.max_std));
    if (s.elite_refit && s.min_std > s.max_std)
        invalid("min_std (" + std::to_string(s.min_std) + ") exceeds max_std (" + std::to_string(s.max_std) +
                ")");
    if (!(s.momentum >= 0.0f && s.momentum < 1.0f))
        invalid("momentum must be in [0, 1), got " + std::to_string(s.momentum));
    if (!(s.temperature > 0.0f && std::isfinite(s.temperature)))
        invalid("temperature must be positive, got " + std::to_string(s.temperature));
    s.seed = task.seed;

    s.low = bounds(spec, task.action_low, spec.actions.low, "low");
    s.high = bounds(spec, task.action_high, spec.actions.high, "high");
    for (size_t d = 0; d < s.low.size(); ++d)
        if (!(s.low[d] < s.high[d]))
            invalid("action bounds cross: low[" + std::to_string(d % static_cast<size_t>(spec.action_dim)) +
                    "] = " + std::to_string(s.low[d]) + " is not below high = " + std::to_string(s.high[d]));

    if (task.weights != nullptr) {
        weights.assign(task.weights, task.weights + spec.cost.size());
        for (size_t i = 0; i < weights.size(); ++i)
            if (!(weights[i] >= 0.0f && std::isfinite(weights[i])))
                invalid("weight " + std::to_string(i) + " must be finite and not negative, got " +
                        std::to_string(weights[i]));
    }
    if (task.goal != nullptr) {
        const size_t expected = static_cast<size_t>(s.environments) * observation_bytes(spec);
        if (task.goal_bytes != expected)
            invalid("the goal has " + std::to_string(task.goal_bytes) + " bytes, expected " +
                    std::to_string(expected) + " (" + std::to_string(s.environments) + " observations)");
        const auto* bytes = static_cast<const unsigned char*>(task.goal);
        goal.assign(bytes, bytes + expected);
        check_finite(spec, goal.data(), s.environments, "goal");
    }
}

void check_finite(const Spec& spec, const void* observations, int environments, const char* what) {
    if (spec.observation.dtype != DType::float32) return;
    const auto* values = static_cast<const float*>(observations);
    const ptrdiff_t size = spec.observation_size;
    for (ptrdiff_t i = 0; i < size * environments; ++i)
        if (!std::isfinite(values[i]))
            invalid(std::string(what) + " is not finite: element " + std::to_string(i % size) +
                    " of environment " + std::to_string(i / size));
}

Task::Task(const Model& model, Pool& pool, TaskRequest request)
    : model_(model),
      pool_(pool),
      request_(std::move(request)),
      acting_(policy_of(model, model.policy(), request_.settings)),
      planning_(policy_of(model, model.planning_policy(), request_.settings)),
      cost_(model, planning_ ? &*planning_ : nullptr, request_.weights) {
    const Spec& spec = model.spec();
    const PlannerSettings& s = request_.settings;
    const auto e = static_cast<size_t>(s.environments), latent = static_cast<size_t>(spec.latent_dim);
    const auto plan = static_cast<size_t>(s.steps) * static_cast<size_t>(s.plan_dim);

    if (request_.rollout == nullptr && model.predictor() == nullptr)
        throw Error(PYJEPA_UNSUPPORTED, "this agent file has no predictor: configure a rollout of your own");
    if (request_.rollout == nullptr && request_.goal.empty() && cost_.needs_goal() != nullptr)
        invalid("the cost term " + std::string(cost_.needs_goal()) + " needs a goal");

    planner_ = make_planner(s);
    const bool tree = s.algorithm == Algorithm::tree;
    if (tree && request_.rollout != nullptr)
        throw Error(
            PYJEPA_UNSUPPORTED,
            "the planner tree needs the model's own predictor: a rollout callback has no single moves");
    const RolloutLimits limits{
        s.environments, s.candidates, s.steps, planner_->scratch(1), planner_->snapshot_size(), tree};
    if (request_.rollout != nullptr)
        rollout_ = std::make_unique<CallbackRollout>(spec, request_.rollout, request_.rollout_user, limits);
    else
        rollout_ =
            std::make_unique<NativeRollout>(model, cost_, planning_ ? &*planning_ : nullptr, pool, limits);
    if (rollout_->has_prior() && planning_->reads_goal() && request_.goal.empty())
        invalid("the planner tree asks the policy, which reads a goal: configure one");
    if (tree)
        optimiser_ = std::make_unique<TreeSearch>(*planner_, *rollout_, spec.latent_dim);
    else
        optimiser_ = std::make_unique<Optimiser>(*planner_, *rollout_);

    states_ = AlignedFloats(e * latent);
    previous_ = AlignedFloats(e * static_cast<size_t>(s.plan_dim));
    plans_ = AlignedFloats(e * plan);
    shift_.resize(e);
    draws_.resize(e);
    observed_ = std::make_unique<bool[]>(e);
    planned_ = std::make_unique<bool[]>(e);
    has_previous_ = std::make_unique<bool[]>(e);

    size_t work = 0;
    if (model.encoder() != nullptr) work = model.encoder()->workspace(1);
    if (acting_) work = std::max(work, acting_->workspace(1) + static_cast<size_t>(spec.action_dim));
    work = std::max(work, cost_.workspace(1));
    lane_ = (static_cast<size_t>(spec.observation_size) + work + 15) / 16 * 16;
    work_ = AlignedFloats(lane_ * static_cast<size_t>(pool.threads()));
    if (!request_.goal.empty()) {
        goals_ = AlignedFloats(e * latent);
        encode(request_.goal.data(), goals_.data());
        cost_.set_goals(goals_.data(), s.environments);
    }
}

int Task::horizon() const noexcept {
    return request_.settings.steps * model_.spec().level.action_block;
}

double Task::flops() const noexcept {
    const PlannerSettings& s = request_.settings;
    const double plans = 1.0 * s.environments * s.candidates * s.iterations;
    // A simulation of a tree search carries out every action of one node, for the steps between two knots.
    const double share = s.algorithm == Algorithm::tree ? 1.0 * branching(s) / s.knots : 1.0;
    return rollout_->flops_per_candidate() * plans * share +
           rollout_->flops_per_proposal() * s.environments * s.policy_candidates;
}

void Task::encode(const unsigned char* observations, float* states) noexcept {
    const Spec& spec = model_.spec();
    const size_t bytes = observation_bytes(spec);
    pool_.run(environments(), [&](int e, int thread) noexcept {
        float* lane = work_.data() + lane_ * static_cast<size_t>(thread);
        float* state = states + static_cast<ptrdiff_t>(e) * spec.latent_dim;
        const unsigned char* from = observations + static_cast<size_t>(e) * bytes;
        const Network* encoder = model_.encoder();
        if (encoder == nullptr) {  // the observation is the state
            model_.scale_observation(from, state);
            return;
        }
        model_.scale_observation(from, lane);
        encoder->forward(simd::kernels(), lane, spec.observation_size, 1, state, spec.latent_dim, false,
                         lane + spec.observation_size);
    });
}

void Task::observe(const void* observation, int steps) noexcept {
    encode(static_cast<const unsigned char*>(observation), states_.data());
    const float by = static_cast<float>(steps) / static_cast<float>(model_.spec().level.action_block);
    for (int e = 0; e < environments(); ++e) {
        observed_[static_cast<size_t>(e)] = true;
        shift_[static_cast<size_t>(e)] += by;
    }
}

float Task::intrinsic_cost(int e) noexcept {
    if (request_.rollout != nullptr) return 0.0f;
    const ptrdiff_t latent = model_.spec().latent_dim;
    return cost_.intrinsic(simd::kernels(), states_.data() + e * latent, model_.spec().latent_dim, goal(e), e,
                           work_.data());
}

bool Task::observed() const noexcept {
    return std::all_of(observed_.get(), observed_.get() + environments(), [](bool b) { return b; });
}

void Task::act(float* actions) noexcept {
    const Spec& spec = model_.spec();
    const bool discrete = spec.actions.discrete();
    const int latent = spec.latent_dim, count = spec.action_dim;
    for (int e = 0; e < environments(); ++e, actions += spec.action_width) {
        const ptrdiff_t at = static_cast<ptrdiff_t>(e) * latent;
        float* const action = discrete ? work_.data() : actions;
        acting_->act(simd::kernels(), states_.data() + at, latent, 1,
                     acting_->reads_goal() ? goals_.data() + at : nullptr, nullptr, 0, action, count,
                     work_.data() + (discrete ? count : 0));
        if (discrete) *actions = static_cast<float>(std::max_element(action, action + count) - action);
    }
}

Situation Task::situation() const noexcept {
    return {environments(),   states_.data(),      goals_.size() == 0 ? nullptr : goals_.data(),
            previous_.data(), has_previous_.get(), draws_.data()};
}

bool Task::plan(double deadline, Interrupt& interrupt, pyjepa_plan_out& out) {
    using Clock = std::chrono::steady_clock;
    const Clock::time_point started = Clock::now();
    // The search leaves time for what follows it; a deadline shorter than that has passed already.
    const Deadline limit(deadline > 0.0 ? std::max(deadline - ending_, 1e-12) : deadline, &interrupt);
    const Spec& spec = model_.spec();
    const PlannerSettings& s = request_.settings;
    const ptrdiff_t plan_size = static_cast<ptrdiff_t>(s.steps) * s.plan_dim;

    for (int e = 0; e < environments(); ++e) {
        const auto i = static_cast<size_t>(e);
        constexpr uint32_t level = 0xffffffff;  // apart from the planner's own noise
        const NoiseKey key = noise_key(s.seed, planner_->plans(e), level, 0);
        draws_[i] = uint64_t{key.k0} << 32 | key.k1;
        if (!planned_[i]) {
            shift_[i] = 0.0f;  // nothing to shift yet
            continue;
        }
        // The step of the last plan that was executed last, for the cost of changing one's mind.
        const int step = static_cast<int>(std::ceil(shift_[i])) - 1;
        if (step < 0) continue;
        const float* executed = plans_.data() + e * plan_size + std::min(step, s.steps - 1) * s.plan_dim;
        for (int d = 0; d < s.plan_dim; ++d) {
            const auto a = static_cast<size_t>(d % spec.action_dim);
            previous_[i * static_cast<size_t>(s.plan_dim) + static_cast<size_t>(d)] =
                (executed[d] - spec.actions.center[a]) / spec.actions.scale[a];
        }
        has_previous_[i] = true;
    }

    const int iterations = optimiser_->plan(situation(), shift_.data(), limit);
    const Clock::time_point searched = Clock::now();

    for (int e = 0; e < environments(); ++e) {
        const auto i = static_cast<size_t>(e);
        float* plan = plans_.data() + e * plan_size;
        planner_->expand(optimiser_->knots(e), plan);
        shift_[i] = 0.0f;
        planned_[i] = true;
        if (out.actions != nullptr)
            expand_to_actions(spec, plan, s.steps,
                              out.actions + static_cast<ptrdiff_t>(e) * horizon() * spec.action_width);
        if (out.cost != nullptr) out.cost[e] = optimiser_->cost(e);
        if (out.states == nullptr && out.cost_terms == nullptr) continue;
        rollout_->trace(
            situation(), e, plan,
            out.states == nullptr ? nullptr
                                  : out.states + static_cast<ptrdiff_t>(e) * (s.steps + 1) * spec.latent_dim,
            out.cost_terms == nullptr ? nullptr
                                      : out.cost_terms + static_cast<ptrdiff_t>(e) * cost_.terms() * s.steps);
    }
    out.iterations = iterations;
    const Clock::time_point ended = Clock::now();
    const double ending = std::chrono::duration<double>(ended - searched).count();
    ending_ = ending_ == 0.0 ? ending : std::min(ending_, ending);
    out.elapsed = std::chrono::duration<double>(ended - started).count();
    return interrupt.stopped();
}

void Task::reset(int environment) noexcept {
    for (int e = 0; e < environments(); ++e) {
        if (environment >= 0 && e != environment) continue;
        const auto i = static_cast<size_t>(e);
        planner_->reset(e);
        shift_[i] = 0.0f;
        observed_[i] = planned_[i] = has_previous_[i] = false;
    }
}

}  // namespace pyjepa
