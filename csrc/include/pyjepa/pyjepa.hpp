// pyjepa for C++17: pyjepa.h with owners instead of handles and exceptions instead of status codes. Header
// only.
//
//     const pyjepa::Model model("agent.safetensors");
//     pyjepa::Agent agent(model, 2);
//     agent.configure(pyjepa::Task().with_goal(goal));  // goal: a std::vector<uint8_t>, or pointer and size
//     pyjepa::Plan plan = agent.make_plan();            // the last allocation
//     agent.observe(observation);
//     agent.plan(plan, 5ms);                            // plan.actions: (E, H, A)
//
// Shapes are written with the symbols of pyjepa.h, which also says how discrete actions look. Every function
// that can fail throws Error.
#ifndef PYJEPA_HPP
#define PYJEPA_HPP

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "pyjepa.h"

namespace pyjepa {
// Programs and plugins built against different versions of this header may share a process.
inline namespace v0 {

class Error : public std::runtime_error {
  public:
    Error(pyjepa_status status, const std::string& message) : std::runtime_error(message), status_(status) {}
    pyjepa_status status() const noexcept { return status_; }

  private:
    pyjepa_status status_;
};

// Throws what pyjepa_last_error() says unless all is well.
inline void check(pyjepa_status status) {
    if (status != PYJEPA_OK) throw Error(status, pyjepa_last_error());
}

inline std::string version() {
    return pyjepa_version();
}

// The instruction set in use: "baseline", "avx2", ... Throws where PYJEPA_ISA asks for one that is not there.
inline std::string isa() {
    const std::string name = pyjepa_isa();
    if (name.empty()) throw Error(PYJEPA_UNSUPPORTED, pyjepa_last_error());
    return name;
}

// Pointer and size, of any container that has data() and size(). Owns nothing.
template <class T>
class Span {
  public:
    constexpr Span() noexcept = default;
    constexpr Span(T* data, std::size_t size) noexcept : data_(data), size_(size) {}
    template <std::size_t N>
    constexpr Span(T (&array)[N]) noexcept : Span(array, N) {}
    template <class C, class = std::enable_if_t<
                           std::is_convertible_v<decltype(std::declval<C&>().data()), T*> &&
                           sizeof(std::remove_pointer_t<decltype(std::declval<C&>().data())>) == sizeof(T)>>
    constexpr Span(C&& container) noexcept : Span(container.data(), container.size()) {}

    constexpr T* data() const noexcept { return data_; }
    constexpr std::size_t size() const noexcept { return size_; }
    constexpr T* begin() const noexcept { return data_; }
    constexpr T* end() const noexcept { return data_ + size_; }
    constexpr T& operator[](std::size_t i) const noexcept { return data_[i]; }

  private:
    T* data_ = nullptr;
    std::size_t size_ = 0;
};

using Seconds = std::chrono::duration<double>;

// What a rollout of the caller's is asked: the cost (E, N) of candidates.
struct Candidates {
    Span<const float> states;   // (E, L)
    Span<const float> goals;    // (E, L), or empty
    Span<const float> actions;  // (E, N, H, A)
    std::size_t e, n, h, a, l;
    Span<float> cost;  // (E, N): write here
};
using Rollout = std::function<void(const Candidates&)>;

namespace detail {

// The exception of the rollout that runs in this thread, on its way through C.
inline std::exception_ptr& pending() noexcept {
    thread_local std::exception_ptr exception;
    return exception;
}

inline int call_rollout(void* user, const float* states, const float* goals, const float* actions,
                        std::size_t e, std::size_t n, std::size_t h, std::size_t a, std::size_t l,
                        float* cost) {
    try {
        (*static_cast<const Rollout*>(user))({{states, e * l},
                                              {goals, goals == nullptr ? 0 : e * l},
                                              {actions, e * n * h * a},
                                              e,
                                              n,
                                              h,
                                              a,
                                              l,
                                              {cost, e * n}});
        return 0;
    } catch (...) {
        pending() = std::current_exception();
        return 1;
    }
}

// Whether to stop, asked through C.
inline int call_cancel(void* user) {
    try {
        return (*static_cast<const std::function<bool()>*>(user))() ? 1 : 0;
    } catch (...) {
        pending() = std::current_exception();
        return 1;
    }
}

struct Free {
    void operator()(pyjepa_model* model) const noexcept { pyjepa_model_free(model); }
    void operator()(pyjepa_agent* agent) const noexcept { pyjepa_agent_free(agent); }
};

}  // namespace detail

// An agent file in memory. Immutable: agents and threads share it, and agents outlive it.
class Model {
  public:
    explicit Model(const std::string& path) {
        pyjepa_model* model = nullptr;
        check(pyjepa_model_load(path.c_str(), &model));
        adopt(model);
    }
    // The bytes of an agent file, which are copied.
    static Model parse(const void* bytes, std::size_t size) {
        pyjepa_model* model = nullptr;
        check(pyjepa_model_parse(bytes, size, &model));
        Model out;
        out.adopt(model);
        return out;
    }

    const pyjepa_model_dims& dims() const noexcept { return dims_; }
    std::string spec() const { return pyjepa_model_spec(handle()); }
    const pyjepa_model* handle() const noexcept { return handle_.get(); }

  private:
    Model() = default;
    void adopt(pyjepa_model* model) {
        handle_.reset(model);
        dims_.size = sizeof dims_;
        check(pyjepa_model_get_dims(model, &dims_));
    }

    std::unique_ptr<pyjepa_model, detail::Free> handle_;
    pyjepa_model_dims dims_{};
};

// What to do: the members of pyjepa_task, at their defaults. What it is given to point to must live until
// configure() has returned; the agent keeps copies, and a share of the rollout.
struct Task : pyjepa_task {
    Task() { pyjepa_task_init(this, sizeof(pyjepa_task)); }

    // Observations (E, ...) in the model's dtype.
    Task& with_goal(Span<const std::uint8_t> observations) {
        return with_goal_bytes(observations, PYJEPA_UINT8);
    }
    Task& with_goal(Span<const float> observations) { return with_goal_bytes(observations, PYJEPA_FLOAT32); }
    // The actions' bounds (A,) each, instead of the agent file's.
    Task& with_bounds(Span<const float> low, Span<const float> high) {
        low_ = low, high_ = high;
        return *this;
    }
    // Factors (T,) on the cost terms.
    Task& with_weights(Span<const float> factors) {
        weights_ = factors;
        return *this;
    }
    // Replaces the model's own prediction and cost. What it throws comes out of plan().
    Task& with_rollout(Rollout function) {
        rollout_ = std::make_shared<const Rollout>(std::move(function));
        return *this;
    }

  private:
    friend class Agent;
    template <class T>
    Task& with_goal_bytes(Span<const T> observations, pyjepa_dtype dtype) {
        goal = observations.data();
        goal_bytes = observations.size() * sizeof(T);
        goal_dtype_ = dtype;
        return *this;
    }

    std::optional<pyjepa_dtype> goal_dtype_;
    std::optional<Span<const float>> low_, high_, weights_;
    std::shared_ptr<const Rollout> rollout_;
};

// Where a plan goes; Agent::make_plan() sizes it.
struct Plan {
    std::vector<float> actions;  // (E, H, A)
    std::vector<float>
        states;               // (E, S + 1, L), the first the current one; empty for rollouts of the caller's
    std::vector<float> cost;  // (E,)
    std::vector<float> cost_terms;  // (E, T, S); empty for rollouts of the caller's
    int iterations = 0;             // completed
    Seconds elapsed{0};
    // How it was found: see pyjepa_plan_out.
    std::vector<float> best_cost;                        // (E, I + 1)
    std::vector<std::int32_t> converged;                 // (E,)
    std::vector<float> effective_samples, elite_spread;  // (E,)
};

// What an agent has perceived (paper section 3, memory): M records, oldest first.
struct Memory {
    std::vector<std::int64_t> episodes;      // (M,): no two episodes share a number
    std::vector<std::int64_t> steps;         // (M,): environment steps since the episode began
    std::vector<std::int32_t> environments;  // (M,)
    std::vector<float> states, goals;        // (M, L); a goal is NaN where the task had none
    std::vector<float> costs;                // (M,): intrinsic
};

// A model with a task. One thread at a time: a second call while one runs throws PYJEPA_BUSY; clone() for
// more.
class Agent {
  public:
    // threads >= 1 includes the caller's.
    explicit Agent(const Model& model, int threads = 1) : dims_(model.dims()) {
        pyjepa_agent* agent = nullptr;
        check(pyjepa_agent_create(model.handle(), threads, &agent));
        handle_.reset(agent);
    }
    // The same model, thread count and task, and none of the history.
    Agent clone() const {
        pyjepa_agent* agent = nullptr;
        check(pyjepa_agent_clone(handle(), &agent));
        Agent out(dims_);
        out.handle_.reset(agent);
        out.rollout_ = rollout_;
        out.room_ = room_;
        return out;
    }

    // Sets the task and allocates everything that observe, act and plan need. If it throws, the previous task
    // stays.
    void configure(const Task& task) {
        pyjepa_task request = task;
        if (task.goal_dtype_) check_dtype(*task.goal_dtype_, "the goal");
        request.action_low = sized(task.low_, dims_.action_dim, "low", request.action_low);
        request.action_high = sized(task.high_, dims_.action_dim, "high", request.action_high);
        request.weights = sized(task.weights_, dims_.cost_terms, "weights", request.weights);
        if (task.rollout_) {
            request.rollout = &detail::call_rollout;
            request.rollout_user = const_cast<Rollout*>(task.rollout_.get());
        }
        check(pyjepa_configure(handle(), &request));
        rollout_ = task.rollout_;
        measure(request.rollout == nullptr);
    }

    // Observations (E, ...) of the model's dtype. `steps`: environment steps since the last call; -1:
    // action_block.
    void observe(Span<const std::uint8_t> observation, int steps = -1) {
        check_dtype(PYJEPA_UINT8, "the observation");
        check(pyjepa_observe(handle(), observation.data(), observation.size(), steps));
    }
    void observe(Span<const float> observation, int steps = -1) {
        check_dtype(PYJEPA_FLOAT32, "the observation");
        check(pyjepa_observe(handle(), observation.data(), observation.size() * sizeof(float), steps));
    }

    // Told what was done since the last call, too: taken (E, D), what the predictor reads at one step.
    void observe(Span<const std::uint8_t> observation, Span<const float> taken, int steps = -1) {
        check_dtype(PYJEPA_UINT8, "the observation");
        check(pyjepa_observe_taken(handle(), observation.data(), observation.size(), steps, taken.data(),
                                   taken.size()));
    }
    void observe(Span<const float> observation, Span<const float> taken, int steps = -1) {
        check_dtype(PYJEPA_FLOAT32, "the observation");
        check(pyjepa_observe_taken(handle(), observation.data(), observation.size() * sizeof(float), steps,
                                   taken.data(), taken.size()));
    }

    // Mode-1: the policy's actions (E, A).
    void act(Span<float> actions) { check(pyjepa_act(handle(), actions.data(), actions.size())); }
    void explore(Span<float> actions) { check(pyjepa_explore(handle(), actions.data(), actions.size())); }

    // The current latent states (E, L).
    void state(Span<float> states) const { check(pyjepa_state(handle(), states.data(), states.size())); }

    // Room for the plans of the task at hand.
    Plan make_plan() const {
        settings();  // throws before configure
        Plan out;
        out.actions.resize(room_.actions);
        out.states.resize(room_.states);
        out.cost.resize(room_.cost);
        out.cost_terms.resize(room_.cost_terms);
        out.best_cost.resize(room_.best_cost);
        out.converged.resize(room_.cost);
        out.effective_samples.resize(room_.cost);
        out.elite_spread.resize(room_.cost);
        return out;
    }

    // Mode-2: plans from the last observation into `out`, which make_plan() made for this task; allocates
    // nothing. When `deadline` (from the call) passes, the unfinished iteration is dropped and the best
    // evaluated plan kept; one that has passed already leaves no iteration.
    // `cancel`, if given, is asked in this thread every 20 ms or so whether to stop; after true the best plan
    // so far is kept, as after a deadline. Returns false if it was stopped.
    bool plan(Plan& out, std::optional<Seconds> deadline = std::nullopt,
              const std::function<bool()>& cancel = nullptr) {
        pyjepa_plan_out raw{};
        raw.size = sizeof raw;
        raw.actions = room(out.actions, room_.actions, "actions");
        raw.states = room(out.states, room_.states, "states");
        raw.cost = room(out.cost, room_.cost, "cost");
        raw.cost_terms = room(out.cost_terms, room_.cost_terms, "cost_terms");
        raw.best_cost = room(out.best_cost, room_.best_cost, "best_cost");
        raw.converged = room(out.converged, room_.cost, "converged");
        raw.effective_samples = room(out.effective_samples, room_.cost, "effective_samples");
        raw.elite_spread = room(out.elite_spread, room_.cost, "elite_spread");
        // C takes what is not positive as "none".
        const double seconds = !deadline ? 0.0 : deadline->count() <= 0.0 ? 1e-12 : deadline->count();
        const pyjepa_status status =
            pyjepa_plan_cancellable(handle(), seconds, &raw, cancel ? &detail::call_cancel : nullptr,
                                    const_cast<std::function<bool()>*>(&cancel));
        if ((status == PYJEPA_CALLBACK || status == PYJEPA_CANCELLED) && detail::pending() != nullptr)
            std::rethrow_exception(std::exchange(detail::pending(), nullptr));
        if (status != PYJEPA_CANCELLED) check(status);
        out.iterations = raw.iterations;
        out.elapsed = Seconds(raw.elapsed);
        return status == PYJEPA_OK;
    }

    // A new episode for one environment (-1: all): forgets state, warm start and plan count.
    // Records the newest `capacity` states observed from now on; 0: none, and forgets.
    void remember(std::size_t capacity) { check(pyjepa_remember(handle(), capacity)); }
    Memory memory() const {
        std::size_t size = 0;
        check(pyjepa_memory_size(handle(), &size));
        Memory found;
        found.episodes.resize(size);
        found.steps.resize(size);
        found.environments.resize(size);
        found.costs.resize(size);
        found.states.resize(size * static_cast<std::size_t>(dims_.latent_dim));
        found.goals.resize(found.states.size());
        pyjepa_memory_out out{};
        out.size = sizeof out;
        out.episodes = found.episodes.data();
        out.steps = found.steps.data();
        out.environments = found.environments.data();
        out.states = found.states.data();
        out.goals = found.goals.data();
        out.costs = found.costs.data();
        check(pyjepa_memory_read(handle(), &out, size));
        return found;
    }

    void reset(int environment = -1) { check(pyjepa_reset(handle(), environment)); }

    // The settings in force, defaults resolved.
    pyjepa_settings settings() const {
        pyjepa_settings out{};
        out.size = sizeof out;
        check(pyjepa_get_settings(handle(), &out));
        return out;
    }

    const pyjepa_model_dims& dims() const noexcept { return dims_; }
    pyjepa_agent* handle() const noexcept { return handle_.get(); }

  private:
    explicit Agent(const pyjepa_model_dims& dims) : dims_(dims) {}

    void check_dtype(pyjepa_dtype given, const char* what) const {
        if (given != dims_.observation_dtype)
            throw Error(PYJEPA_INVALID_ARGUMENT,
                        std::string(what) + (given == PYJEPA_UINT8 ? " is uint8, expected float32"
                                                                   : " is float32, expected uint8"));
    }
    static const float* sized(const std::optional<Span<const float>>& given, std::int32_t expected,
                              const char* what, const float* otherwise) {
        if (!given) return otherwise;
        if (given->size() != static_cast<std::size_t>(expected))
            throw Error(PYJEPA_INVALID_ARGUMENT, std::string(what) + " has " + std::to_string(given->size()) +
                                                     " floats, expected " + std::to_string(expected));
        return given->data();
    }

    // Floats that plans of the task at hand take.
    struct Room {
        std::size_t actions = 0, states = 0, cost = 0, cost_terms = 0, best_cost = 0;
    };
    void measure(bool native) {
        const pyjepa_settings s = settings();
        const auto product = [](auto... factors) { return (static_cast<std::size_t>(factors) * ...); };
        const int steps = s.horizon / dims_.action_block;
        room_.actions = product(s.environments, s.horizon, dims_.action_dim);
        room_.states = native ? product(s.environments, steps + 1, dims_.latent_dim) : 0;
        room_.cost = product(s.environments);
        room_.best_cost = product(s.environments, s.iterations + 1);
        room_.cost_terms = native ? product(s.environments, dims_.cost_terms, steps) : 0;
    }
    template <class T>
    static T* room(std::vector<T>& given, std::size_t expected, const char* what) {
        if (given.size() != expected)
            throw Error(PYJEPA_INVALID_ARGUMENT, std::string("the plan's ") + what + " has " +
                                                     std::to_string(given.size()) + " elements, expected " +
                                                     std::to_string(expected) +
                                                     ": make_plan() after configure()");
        return given.empty() ? nullptr : given.data();
    }

    pyjepa_model_dims dims_{};
    Room room_;
    std::shared_ptr<const Rollout> rollout_;  // outlives the handle, which points to it
    std::unique_ptr<pyjepa_agent, detail::Free> handle_;
};

}  // namespace v0
}  // namespace pyjepa
#endif
