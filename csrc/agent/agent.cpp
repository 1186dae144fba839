#include "agent/agent.hpp"

#include <algorithm>
#include <cmath>
#include <string>

#include "error.hpp"

namespace pyjepa {
namespace {

constexpr int kMaxThreads = 1024;

int checked_threads(int threads) {
    if (threads < 1 || threads > kMaxThreads)
        throw Error(PYJEPA_INVALID_ARGUMENT, "threads must be between 1 and " + std::to_string(kMaxThreads) +
                                                 ", got " + std::to_string(threads));
    return threads;
}

void check_count(const char* what, size_t given, size_t expected) {
    if (given != expected)
        throw Error(PYJEPA_INVALID_ARGUMENT, std::string(what) + " has room for " + std::to_string(given) +
                                                 " floats, expected " + std::to_string(expected));
}

}  // namespace

Agent::Agent(std::shared_ptr<const Model> model, int threads)
    : model_(std::move(model)), pool_(checked_threads(threads)), memory_(0, model_->spec().latent_dim) {}

Agent::Hold::Hold(const Agent& agent) : agent_(agent) {
    if (agent.busy_.test_and_set(std::memory_order_acquire))
        throw Error(PYJEPA_BUSY, "another thread is inside this agent: use agent.clone() for a second one");
}

std::unique_ptr<Agent> Agent::clone() const {
    auto twin = std::make_unique<Agent>(model_, threads());
    if (task_ != nullptr) twin->take(std::make_unique<Task>(*twin->model_, twin->pool_, task_->request()));
    return twin;
}

void Agent::configure(const pyjepa_task& task) {
    pool_.revive();
    take(std::make_unique<Task>(*model_, pool_, TaskRequest(*model_, task)));
}

void Agent::take(std::unique_ptr<Task> task) {
    const auto environments = static_cast<size_t>(task->environments());
    episodes_.resize(environments);
    if (model_->spec().actions.discrete())
        taken_ = AlignedFloats(environments * static_cast<size_t>(model_->spec().plan_dim));
    task_ = std::move(task);
    for (int e = 0; e < task_->environments(); ++e) begin_episode(e);
}

void Agent::begin_episode(int environment) noexcept {
    episodes_[static_cast<size_t>(environment)] = {next_episode_++, 0, false};
}

void Agent::remember(size_t capacity) {
    const auto row = 2 * sizeof(float) * static_cast<size_t>(model_->spec().latent_dim);
    if (capacity > (size_t{1} << 40) / row)
        throw Error(PYJEPA_INVALID_ARGUMENT,
                    "a memory of " + std::to_string(capacity) + " states is too large");
    memory_ = Memory(capacity, model_->spec().latent_dim);
}

const Task& Agent::task() const {
    if (task_ == nullptr) throw Error(PYJEPA_NOT_READY, "the agent has no task yet: call configure first");
    return *task_;
}

Task& Agent::observed_task() {
    if (!task().observed())
        throw Error(PYJEPA_NOT_READY, "the agent has not seen every environment yet: call observe first");
    return *task_;
}

// What was done since the last observation, as the task takes it.
const float* Agent::checked_taken(const float* taken, size_t count, int steps) {
    const Spec& spec = model_->spec();
    const auto environments = static_cast<size_t>(task_->environments());
    const size_t width = spec.actions.discrete() ? static_cast<size_t>(spec.actions.count) : 1,
                 expected = environments * static_cast<size_t>(spec.plan_dim) / width;
    if (count != expected)
        throw Error(PYJEPA_INVALID_ARGUMENT, "taken has " + std::to_string(count) + " numbers, expected " +
                                                 std::to_string(expected) +
                                                 ": what the predictor reads at one step, per environment");
    if (steps != spec.level.action_block)
        throw Error(PYJEPA_INVALID_ARGUMENT, "taken is what one predictor step reads: steps must be " +
                                                 std::to_string(spec.level.action_block) + ", got " +
                                                 std::to_string(steps));
    if (model_->window() > 1 && task_->request().rollout_call != nullptr)
        throw Error(
            PYJEPA_UNSUPPORTED,
            "the predictor looks back on what was taken, but what stands in for its rollouts does not");
    if (spec.actions.discrete()) {
        to_one_hot(taken, taken_.span(), spec.actions.count, "taken");
        return taken_.data();
    }
    for (size_t i = 0; i < count; ++i)
        if (!std::isfinite(taken[i]))
            throw Error(PYJEPA_INVALID_ARGUMENT, "taken is not finite: element " + std::to_string(i));
    return taken;
}

void Agent::observe(const void* observation, size_t bytes, int steps, const float* taken, size_t count) {
    const Spec& spec = model_->spec();
    const size_t element = spec.observation.dtype == DType::uint8 ? 1 : sizeof(float);
    const size_t expected =
        static_cast<size_t>(task().environments()) * static_cast<size_t>(spec.observation_size) * element;
    if (bytes != expected)
        throw Error(PYJEPA_INVALID_ARGUMENT, "the observation has " + std::to_string(bytes) +
                                                 " bytes, expected " + std::to_string(expected));
    if (steps < -1)
        throw Error(PYJEPA_INVALID_ARGUMENT, "steps must not be negative, got " + std::to_string(steps));
    check_finite(spec, observation, task_->environments(), "the observation");
    if (steps == -1) steps = spec.level.action_block;
    task_->observe(observation, steps, taken == nullptr ? nullptr : checked_taken(taken, count, steps));
    for (int e = 0; e < task_->environments(); ++e) {
        Episode& episode = episodes_[static_cast<size_t>(e)];
        episode.steps += episode.observed ? steps : 0;
        episode.observed = true;
        if (memory_.capacity() != 0)
            memory_.record({episode.number, episode.steps, e, task_->intrinsic_cost(e), task_->state(e),
                            task_->goal(e)});
    }
}

void Agent::act(float* actions, size_t count, bool explore) {
    if (model_->policy() == nullptr)
        throw Error(PYJEPA_UNSUPPORTED, "this agent file has no policy: plan instead");
    Task& task = observed_task();
    check_count("actions", count,
                static_cast<size_t>(task.environments()) * static_cast<size_t>(model_->spec().action_width));
    if (model_->policy_reads_goal() && task.request().goal.empty())
        throw Error(PYJEPA_NOT_READY, "the policy reads a goal: configure one");
    if (explore && model_->spec().policy_head == PolicyHead::deterministic)
        throw Error(PYJEPA_UNSUPPORTED, "a policy of head 'deterministic' has no distribution to explore");
    task.act(actions, explore);
}

bool Agent::plan(double deadline, Interrupt& interrupt, pyjepa_plan_out& out) {
    return observed_task().plan(deadline, interrupt, out);
}

void Agent::evaluate(const float* plans, size_t count, float* cost, float* gradient) {
    Task& task = observed_task();
    if (count < 1 || count > 1 << 20)
        throw Error(PYJEPA_INVALID_ARGUMENT,
                    "between 1 and 1048576 plans can be evaluated, got " + std::to_string(count));
    task.evaluate(plans, static_cast<int>(count), cost, gradient);
}

void Agent::reset(int environment) {
    if (environment < -1 || environment >= task().environments())
        throw Error(PYJEPA_INVALID_ARGUMENT, "environment must be between 0 and " +
                                                 std::to_string(task().environments() - 1) + ", got " +
                                                 std::to_string(environment));
    task_->reset(environment);
    for (int e = 0; e < task_->environments(); ++e)
        if (environment == -1 || environment == e) begin_episode(e);
}

void Agent::states(float* out, size_t count) const {
    if (!task().observed())
        throw Error(PYJEPA_NOT_READY, "the agent has not seen every environment yet: call observe first");
    const size_t size =
        static_cast<size_t>(task_->environments()) * static_cast<size_t>(model_->spec().latent_dim);
    check_count("states", count, size);
    std::copy_n(task_->states(), size, out);
}

}  // namespace pyjepa
