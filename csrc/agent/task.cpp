#include "agent/task.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "error.hpp"
#include "planner/tree.hpp"
#include "rollout/callback.hpp"
#include "rollout/native.hpp"
#include "rollout/stand_in.hpp"

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

constexpr int kGradientIterations = 30, kHybridSampling = 3;
constexpr float kIcemBeta = 1.0f;

}  // namespace

TaskRequest::TaskRequest(const Model& model, const pyjepa_task& task)
    : discount(std::isnan(task.discount) ? model.spec().discount : task.discount),
      prune(in_range("prune", task.prune, -1, 1) != 0),
      rollout(task.rollout),
      rollout_user(task.rollout_user),
      rollout_call(task.rollout_call),
      rollout_call_user(task.rollout_call_user),
      rollout_gradient(task.rollout_gradient != 0) {
    const Spec& spec = model.spec();
    const PlannerSpec& p = spec.planner;
    const int block = spec.level.action_block;
    PlannerSettings& s = settings;

    if (!(discount > 0.0f && discount <= 1.0f))
        invalid("discount must be in (0, 1], got " + std::to_string(discount));
    if (!std::isnan(task.discount) && rollout != nullptr)
        invalid("discount belongs to the model's own cost, not to a rollout of yours");
    in_range("algorithm", task.algorithm, PYJEPA_ALGORITHM_DEFAULT, PYJEPA_TREE);
    in_range("sampling", task.sampling, PYJEPA_SAMPLING_DEFAULT, PYJEPA_SOBOL);
    s.algorithm =
        task.algorithm == PYJEPA_ALGORITHM_DEFAULT ? p.algorithm : static_cast<Algorithm>(task.algorithm - 1);
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
    const auto given = [](auto value) {
        if constexpr (std::is_same_v<decltype(value), float>)
            return !std::isnan(value);
        else
            return value != -1;
    };
    const auto belongs = [&](const char* name, bool is_given, bool owner, const char* planners) {
        const bool plural = name[std::strlen(name) - 1] == 's';
        if (is_given && !owner)
            invalid(std::string(name) + (plural ? " belong to " : " belongs to ") + planners);
    };
    const bool mppi = s.algorithm == Algorithm::mppi, icem = s.algorithm == Algorithm::icem;
    const bool cems = uses_elites(s.algorithm), descends = uses_gradient(s.algorithm);
    in_range("elite_refit", task.elite_refit, -1, 1);
    belongs("elite_refit", task.elite_refit == 1, mppi, "the planner mppi");
    s.elite_refit = mppi && (task.elite_refit == -1 ? p.elite_refit : task.elite_refit == 1);
    const bool elites = cems || s.elite_refit;
    const bool categorical = s.algorithm == Algorithm::categorical_cem, tree = s.algorithm == Algorithm::tree;
    belongs("candidates", given(task.candidates), s.algorithm != Algorithm::gradient,
            "planners that sample; gradient has restarts");
    belongs("elites", given(task.elites), elites,
            "the planners cem, icem, hybrid and categorical-cem, and to mppi with elite_refit");
    belongs("min_std", given(task.min_std), elites && !categorical,
            "the planners cem, icem and hybrid, and to mppi with elite_refit");
    belongs("max_std", given(task.max_std), s.elite_refit, "the planner mppi with elite_refit");
    belongs("momentum", given(task.momentum), cems, "the planners cem, icem, hybrid and categorical-cem");
    belongs("temperature", given(task.temperature), mppi, "the planner mppi");
    belongs("temperature_scale", task.temperature_scale != 0, mppi, "the planner mppi");
    belongs("keep_elites", given(task.keep_elites), icem, "the planner icem");
    belongs("decay", given(task.decay), icem, "the planner icem");
    belongs("learning_rate", given(task.learning_rate), descends, "the planners gradient and hybrid");
    belongs("restarts", given(task.restarts), descends, "the planners gradient and hybrid");
    belongs("polish", given(task.polish), s.algorithm == Algorithm::hybrid, "the planner hybrid");
    belongs("exploration", given(task.exploration), categorical, "the planner categorical-cem");
    belongs("branching", given(task.branching), tree, "the planner tree");
    const bool noisy = draws_noise(s.algorithm);
    const std::string noise_planners =
        std::string("planners that draw normal noise, not to ") + algorithm_name(s.algorithm);
    belongs("sampling", task.sampling != 0, noisy, noise_planners.c_str());
    belongs("noise_beta", given(task.noise_beta), noisy, noise_planners.c_str());

    s.restarts = in_range("restarts", given(task.restarts) ? task.restarts : p.restarts, 1, 4096);
    s.polish = in_range("polish", given(task.polish) ? task.polish : p.polish, 1, 10000);
    s.branching = in_range("branching", given(task.branching) ? task.branching : p.branching, 2, 1024);
    s.candidates =
        s.algorithm == Algorithm::gradient
            ? s.restarts
            : in_range("candidates", given(task.candidates) ? task.candidates : p.candidates, 1, 1 << 20);
    // The file's count is of its own algorithm's iterations. A gradient takes more and cheaper ones.
    const int iterations = s.algorithm == p.algorithm           ? p.iterations
                           : s.algorithm == Algorithm::gradient ? kGradientIterations
                           : s.algorithm == Algorithm::hybrid   ? kHybridSampling + s.polish
                                                                : p.iterations;
    s.iterations = in_range("iterations", given(task.iterations) ? task.iterations : iterations, 0, 10000);
    if (s.algorithm == Algorithm::hybrid && s.iterations > 0 && s.polish > s.iterations)
        invalid("polish (" + std::to_string(s.polish) + ") exceeds iterations (" +
                std::to_string(s.iterations) + ")");
    s.elites = given(task.elites) ? task.elites : p.elites;
    if (elites) {
        in_range("elites", s.elites, 1, 1 << 20);
        if (s.elites > s.candidates)
            invalid("elites (" + std::to_string(s.elites) + ") exceed candidates (" +
                    std::to_string(s.candidates) + ")");
    }
    // What a batch of candidates holds together; also keeps every product of sizes far from overflow.
    constexpr double most = 1ull << 32;
    const double numbers = static_cast<double>(s.environments) * s.candidates * horizon * spec.action_dim;
    if (static_cast<double>(s.environments) * s.iterations > 1 << 27)
        invalid("environments (" + std::to_string(s.environments) + ") * iterations (" +
                std::to_string(s.iterations) + ") is too much for one plan");
    if (numbers > most || static_cast<double>(s.environments) * s.candidates > 1 << 27)
        invalid("environments (" + std::to_string(s.environments) + ") * candidates (" +
                std::to_string(s.candidates) + ") * horizon (" + std::to_string(horizon) +
                ") is too much for one plan");
    int knots = task.knots == -1 ? p.knots : task.knots;
    if (task.knots == -1 && knots > s.steps)
        knots = 0;  // a shorter horizon than the file's default was asked for
    s.knots = knots == 0 ? s.steps : in_range("knots", knots, 1, s.steps);

    s.policy_candidates = task.policy_candidates == -1 ? p.policy_candidates : task.policy_candidates;
    if (task.policy_candidates == -1 && (rollout != nullptr || tree || s.policy_candidates >= s.candidates))
        s.policy_candidates = 0;  // the file's default, where there is no place for it
    in_range("policy_candidates", s.policy_candidates, 0, s.candidates - 1);
    if (s.policy_candidates > 0) {
        if (rollout != nullptr) invalid("policy_candidates need the model's own rollout");
        if (tree) invalid("policy_candidates belong to planners that draw candidates, not to tree");
        if (spec.actions.discrete())
            invalid("policy_candidates belong to continuous actions, this agent's are discrete");
        if (!spec.policy) throw Error(PYJEPA_UNSUPPORTED, "policy_candidates: this agent file has no policy");
        if (s.policy_candidates > 1 && spec.policy_head == PolicyHead::deterministic)
            invalid("policy_candidates over 1 need a policy head that samples, gaussian_tanh");
        if (spec.plan_dim != spec.action_dim)
            invalid("policy_candidates need a predictor that reads one action a step");
        if (s.knots != s.steps)
            invalid("policy_candidates need a knot for every step: knots 0, or policy_candidates 0 (now " +
                    std::to_string(s.policy_candidates) + ")");
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
    s.keep_elites = or_default(task.keep_elites, p.keep_elites);
    s.decay = or_default(task.decay, p.decay);
    s.learning_rate = or_default(task.learning_rate, p.learning_rate);
    s.exploration = or_default(task.exploration, p.exploration);
    if (noisy) {
        s.noise_beta = or_default(task.noise_beta, p.noise_beta.value_or(icem ? kIcemBeta : 0.0f));
        s.sampling = task.sampling == 0 ? p.sampling : static_cast<Sampling>(task.sampling - 1);
    }
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
    if (!(s.keep_elites >= 0.0f && s.keep_elites <= 1.0f))
        invalid("keep_elites must be in [0, 1], got " + std::to_string(s.keep_elites));
    if (!(s.decay >= 1.0f && std::isfinite(s.decay)))
        invalid("decay must be at least 1, got " + std::to_string(s.decay));
    if (!(s.learning_rate > 0.0f && s.learning_rate <= 10.0f))
        invalid("learning_rate must be in (0, 10], got " + std::to_string(s.learning_rate));
    if (!(s.noise_beta >= 0.0f && s.noise_beta <= 10.0f))
        invalid("noise_beta must be in [0, 10], got " + std::to_string(s.noise_beta));
    if (s.noise_beta > 0.0f && s.knots > kMostColouredKnots)
        invalid("coloured noise takes up to " + std::to_string(kMostColouredKnots) +
                " knots, this plan has " + std::to_string(s.knots));
    if (s.sampling == Sampling::sobol && s.knots > Sobol::kMostDimensions / s.plan_dim)
        invalid("sobol sampling takes up to " + std::to_string(Sobol::kMostDimensions) +
                " numbers, this plan has " + std::to_string(s.knots) + " knots of " +
                std::to_string(s.plan_dim) + ": ask for fewer knots");
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
      cost_(model, planning_ ? &*planning_ : nullptr, request_.weights, request_.discount) {
    const Spec& spec = model.spec();
    const PlannerSettings& s = request_.settings;
    const auto e = static_cast<size_t>(s.environments), latent = static_cast<size_t>(spec.latent_dim);
    const auto plan = static_cast<size_t>(s.steps) * static_cast<size_t>(s.plan_dim);

    if (request_.rollout != nullptr && request_.rollout_call != nullptr)
        invalid("a task has one rollout: give rollout or rollout_call");
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
    if (tree && request_.rollout_call != nullptr)
        throw Error(
            PYJEPA_UNSUPPORTED,
            "the planner tree needs the model's own predictor: what stands in for it has no single moves");
    const RolloutLimits limits{s.environments,
                               s.candidates,
                               s.steps,
                               planner_->scratch(1),
                               planner_->snapshot_size(),
                               planner_->descending(),
                               request_.prune && planner_->keeps() > 0,
                               tree};
    rollout_ = make_rollout(limits);
    if (rollout_->has_prior() && planning_->reads_goal() && request_.goal.empty())
        invalid("the planner tree asks the policy, which reads a goal: configure one");
    if (tree)
        optimiser_ = std::make_unique<TreeSearch>(*planner_, *rollout_, spec.latent_dim);
    else
        optimiser_ = std::make_unique<Optimiser>(*planner_, *rollout_);

    states_ = AlignedFloats(e * latent);
    previous_ = AlignedFloats(e * static_cast<size_t>(s.plan_dim));
    past_ = AlignedFloats(e * past_row());
    pasts_.resize(e);
    plans_ = AlignedFloats(e * plan);
    shift_.resize(e);
    draws_.resize(e);
    explored_.resize(e);
    exploration_ = AlignedFloats(static_cast<size_t>(noise_row(spec.action_dim)));
    observed_ = std::make_unique<bool[]>(e);
    planned_ = std::make_unique<bool[]>(e);
    has_previous_ = std::make_unique<bool[]>(e);
    told_ = std::make_unique<bool[]>(e);

    size_t work = 0;
    if (model.encoder() != nullptr) work = model.encoder()->workspace(1);
    if (acting_) work = std::max(work, acting_->workspace(1) + static_cast<size_t>(spec.action_dim));
    work = std::max(work, cost_.workspace(1));
    const auto lines = [](size_t floats) { return (floats + 15) / 16 * 16; };
    encoder_work_ = static_cast<ptrdiff_t>(lines(static_cast<size_t>(spec.observation_size)));
    lane_ = static_cast<size_t>(encoder_work_) + lines(work);
    work_ = AlignedFloats(lane_ * static_cast<size_t>(pool.threads()));
    if (!request_.goal.empty()) {
        goals_ = AlignedFloats(e * latent);
        encode(request_.goal.data(), goals_.data());
        cost_.set_goals(goals_.data(), s.environments);
    }
}

std::unique_ptr<Rollout> Task::make_rollout(const RolloutLimits& limits) {
    if (request_.rollout_call != nullptr) {
        if (limits.descending > 0 && !request_.rollout_gradient)
            throw Error(PYJEPA_UNSUPPORTED, "what stands in for the model's rollouts has no gradient");
        const RolloutLimits others{limits.environments, std::max(1, request_.settings.policy_candidates),
                                   limits.steps, limits.proposal_scratch_per_row, limits.proposal_snapshot};
        return std::make_unique<StandInRollout>(
            model_.spec(), request_.rollout_call, request_.rollout_call_user, limits,
            std::make_unique<NativeRollout>(model_, cost_, planning_ ? &*planning_ : nullptr, pool_, others));
    }
    if (request_.rollout == nullptr)
        return std::make_unique<NativeRollout>(model_, cost_, planning_ ? &*planning_ : nullptr, pool_,
                                               limits);
    if (limits.descending > 0)
        throw Error(PYJEPA_UNSUPPORTED,
                    "a callback rollout has no gradient: plan with an algorithm that samples");
    return std::make_unique<CallbackRollout>(model_.spec(), request_.rollout, request_.rollout_user, limits);
}

int Task::horizon() const noexcept {
    return request_.settings.steps * model_.spec().level.action_block;
}

double Task::flops() const noexcept {
    const PlannerSettings& s = request_.settings;
    double candidates = 0.0;  // back takes as much as forward
    for (int i = 0; i < s.iterations; ++i)
        candidates += planner_->count(i) * (planner_->descends(i) ? 2.0 : 1.0);
    // A simulation of a tree search carries out every action of one node, for the steps between two knots.
    if (s.algorithm == Algorithm::tree) candidates *= 1.0 * branching(s) / s.knots;
    return s.environments * (rollout_->flops_per_candidate() * candidates +
                             rollout_->flops_per_proposal() * s.policy_candidates);
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
                         lane + encoder_work_);
    });
}

size_t Task::past_row() const noexcept {
    const Spec& spec = model_.spec();
    return static_cast<size_t>(model_.window() - 1) * (latent() + static_cast<size_t>(spec.plan_dim));
}

void Task::remember(int e) noexcept {
    const auto i = static_cast<size_t>(e), size = static_cast<size_t>(model_.spec().plan_dim);
    const ptrdiff_t row = static_cast<ptrdiff_t>(latent() + size);
    float* const past = past_.data() + i * past_row();
    const int most = model_.window() - 1;
    if (most == 0) return;
    if (pasts_[i] == most)
        std::copy(past + row, past + most * row, past);
    else
        ++pasts_[i];
    float* const newest = past + (pasts_[i] - 1) * row;
    std::copy_n(state(e), latent(), newest);
    std::copy_n(previous_.data() + i * size, size, newest + latent());
}

void Task::observe(const void* observation, int steps, const float* taken) noexcept {
    const ActionSpec& box = model_.spec().actions;
    const auto size = static_cast<size_t>(model_.spec().plan_dim);
    for (int e = 0; e < environments(); ++e) {
        const auto i = static_cast<size_t>(e);
        told_[i] = taken != nullptr && observed_[i];
        if (!told_[i]) {
            pasts_[i] = 0;
            continue;
        }
        for (size_t d = 0; d < size; ++d) {
            const size_t a = d % box.center.size();
            previous_[i * size + d] = (taken[i * size + d] - box.center[a]) / box.scale[a];
        }
        has_previous_[i] = true;
        remember(e);
    }
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

void Task::draw_exploration(int e) noexcept {
    constexpr uint32_t iteration = 0xfffffffe;  // no iteration of a plan has this number
    const NoiseKey key = noise_key(request_.settings.seed, ++explored_[static_cast<size_t>(e)], 0, iteration);
    const int count = model_.spec().action_dim;
    if (!model_.spec().actions.discrete()) {
        gaussian(key, static_cast<uint32_t>(e), {0, 1}, count, exploration_.data());
        return;
    }
    uniform(key, static_cast<uint32_t>(e), {0, 1}, count, exploration_.data());
    for (int a = 0; a < count; ++a)
        exploration_[static_cast<size_t>(a)] =
            static_cast<float>(gumbel(exploration_[static_cast<size_t>(a)]));
}

void Task::act(float* actions, bool explore) noexcept {
    const Spec& spec = model_.spec();
    const bool discrete = spec.actions.discrete();
    const int latent = spec.latent_dim, count = spec.action_dim;
    for (int e = 0; e < environments(); ++e, actions += spec.action_width) {
        const ptrdiff_t at = static_cast<ptrdiff_t>(e) * latent;
        float* const action = discrete ? work_.data() : actions;
        if (explore) draw_exploration(e);
        acting_->act(simd::kernels(), states_.data() + at, latent, 1,
                     acting_->reads_goal() ? goals_.data() + at : nullptr,
                     explore ? exploration_.data() : nullptr, count, action, count,
                     work_.data() + (discrete ? count : 0));
        if (discrete) *actions = static_cast<float>(std::max_element(action, action + count) - action);
    }
}

Situation Task::situation() const noexcept {
    return {environments(),   states_.data(),      goals_.size() == 0 ? nullptr : goals_.data(),
            previous_.data(), has_previous_.get(), draws_.data(),
            past_.data(),     pasts_.data()};
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
        if (told_[i]) continue;
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
        if (out.best_cost != nullptr)
            std::copy_n(optimiser_->history(e), s.iterations + 1,
                        out.best_cost + static_cast<ptrdiff_t>(e) * (s.iterations + 1));
        if (out.converged != nullptr) out.converged[e] = optimiser_->converged(e);
        if (out.effective_samples != nullptr)
            out.effective_samples[e] = planner_->diagnosis(e).effective_samples;
        if (out.elite_spread != nullptr) out.elite_spread[e] = planner_->diagnosis(e).spread;
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

void to_one_hot(const float* indices, std::span<float> out, int count, const char* what) {
    std::fill(out.begin(), out.end(), 0.0f);
    for (size_t i = 0; i < out.size(); i += static_cast<size_t>(count), ++indices) {
        if (!(*indices >= 0.0f && *indices < static_cast<float>(count) && *indices == std::floor(*indices)))
            invalid(std::string(what) + " hold " + std::to_string(*indices) +
                    ", which is none of the actions 0 to " + std::to_string(count - 1));
        out[i + static_cast<size_t>(*indices)] = 1.0f;
    }
}

void Task::evaluate(const float* plans, int count, float* cost, float* gradient) {
    class Given final : public Proposal {
      public:
        Given(const float* all, ptrdiff_t per_environment, ptrdiff_t size)
            : plans_(all), per_environment_(per_environment), size_(size) {}
        void snapshot(float*) const noexcept override {}
        size_t snapshot_size() const noexcept override { return 0; }
        void fill(const float*, int e, int n0, int n1, float* out, float*) const noexcept override {
            std::copy_n(plans_ + e * per_environment_ + n0 * size_, (n1 - n0) * size_, out);
        }
        size_t scratch(int) const noexcept override { return 0; }

      private:
        const float* plans_;
        ptrdiff_t per_environment_, size_;
    };
    const PlannerSettings& s = request_.settings;
    const ptrdiff_t size = static_cast<ptrdiff_t>(s.steps) * s.plan_dim;
    std::vector<float> one_hot;
    if (s.count > 0) {
        if (gradient != nullptr) throw Error(PYJEPA_UNSUPPORTED, "discrete actions have no gradient");
        one_hot.resize(static_cast<size_t>(s.environments) * static_cast<size_t>(count) *
                       static_cast<size_t>(size));
        to_one_hot(plans, one_hot, s.count, "plans");
        plans = one_hot.data();
    }
    const Given given(plans, count * size, size);
    const auto rollout =
        make_rollout({s.environments, count, s.steps, 0, 0, gradient == nullptr ? 0 : count});
    if (gradient == nullptr)
        rollout->evaluate(situation(), given, count, cost, Deadline());
    else
        rollout->gradient(situation(), given, count, cost, gradient, Deadline());
}

void Task::reset(int environment) noexcept {
    for (int e = 0; e < environments(); ++e) {
        if (environment >= 0 && e != environment) continue;
        const auto i = static_cast<size_t>(e);
        planner_->reset(e);
        shift_[i] = 0.0f;
        explored_[i] = 0;
        observed_[i] = planned_[i] = has_previous_[i] = told_[i] = false;
        pasts_[i] = 0;
    }
}

}  // namespace pyjepa
