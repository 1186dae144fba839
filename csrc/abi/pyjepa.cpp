// The C ABI: handles, status codes, and nothing thrown across it.
#include "pyjepa/pyjepa.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <span>
#include <string>

#include "agent/agent.hpp"
#include "error.hpp"
#include "simd/peak.hpp"

struct pyjepa_model {
    std::shared_ptr<const pyjepa::Model> model;
};

struct pyjepa_agent {
    std::unique_ptr<pyjepa::Agent> agent;
};

namespace {

using pyjepa::Agent;
using pyjepa::Error;

// A fixed buffer: reporting an error must not itself need memory.
thread_local char last_error[1024] = "";

pyjepa_status fail(pyjepa_status status, const char* message) noexcept {
    std::strncpy(last_error, message, sizeof last_error - 1);
    return status;
}

template <class F>
pyjepa_status guarded(F&& body) noexcept {
    try {
        body();
        return PYJEPA_OK;
    } catch (const Error& e) {
        return fail(e.status(), e.what());
    } catch (const std::bad_alloc&) {
        return fail(PYJEPA_OUT_OF_MEMORY, "out of memory");
    } catch (const std::exception& e) {
        return fail(PYJEPA_INTERNAL, e.what());
    } catch (...) {
        return fail(PYJEPA_INTERNAL, "an unknown exception");
    }
}

template <class T>
T& not_null(T* pointer, const char* name) {
    if (pointer == nullptr) throw Error(PYJEPA_INVALID_ARGUMENT, std::string(name) + " is NULL");
    return *pointer;
}

// A struct that may come from a caller compiled against an older or newer header: as much of it as both know,
// the rest from `defaults`.
template <class T>
T versioned(const T* given, const T& defaults, const char* name) {
    T out = defaults;
    const size_t size = not_null(given, name).size;
    if (size < sizeof(size_t)) throw Error(PYJEPA_INVALID_ARGUMENT, std::string(name) + ".size is not set");
    std::memcpy(static_cast<void*>(&out), given, size < sizeof(T) ? size : sizeof(T));
    out.size = sizeof(T);
    return out;
}

template <class T>
void give_back(T* to, const T& from) {
    const size_t size = to->size;
    std::memcpy(static_cast<void*>(to), &from, size < sizeof(T) ? size : sizeof(T));
    to->size = size;
}

pyjepa::simd::Precision checked_precision(int32_t precision) {
    if (precision < PYJEPA_FP32 || precision > PYJEPA_INT8)
        throw Error(PYJEPA_INVALID_ARGUMENT,
                    "precision must be a pyjepa_precision, got " + std::to_string(precision));
    return static_cast<pyjepa::simd::Precision>(precision);
}

}  // namespace

extern "C" {

const char* pyjepa_version(void) {
    return PYJEPA_VERSION;
}

const char* pyjepa_isa(void) {
    const char* name = "";
    guarded([&] { name = pyjepa::simd::kernels().name; });
    return name;
}

const char* pyjepa_precision_isa(int32_t precision) {
    const char* name = "";
    guarded([&] { name = pyjepa::simd::kernels_name(checked_precision(precision)); });
    return name;
}

const char* pyjepa_last_error(void) {
    return last_error;
}

// ---- model
// ----------------------------------------------------------------------------------------------------------

pyjepa_status pyjepa_model_load(const char* path, pyjepa_model** out) {
    return pyjepa_model_load_as(path, PYJEPA_FP32, out);
}

pyjepa_status pyjepa_model_load_as(const char* path, int32_t precision, pyjepa_model** out) {
    return guarded([&] {
        not_null(path, "path");
        not_null(out, "out") = nullptr;
        pyjepa::simd::kernels();  // an unknown PYJEPA_ISA is reported here rather than at the first plan
        *out = new pyjepa_model{std::make_shared<const pyjepa::Model>(pyjepa::read_agent_file(path),
                                                                      checked_precision(precision))};
    });
}

pyjepa_status pyjepa_model_parse(const void* bytes, size_t size, pyjepa_model** out) {
    return pyjepa_model_parse_as(bytes, size, PYJEPA_FP32, out);
}

pyjepa_status pyjepa_model_parse_as(const void* bytes, size_t size, int32_t precision, pyjepa_model** out) {
    return guarded([&] {
        not_null(out, "out") = nullptr;
        if (bytes == nullptr && size != 0) throw Error(PYJEPA_INVALID_ARGUMENT, "bytes is NULL");
        pyjepa::simd::kernels();
        const std::span<const std::byte> all(static_cast<const std::byte*>(bytes), size);
        *out = new pyjepa_model{std::make_shared<const pyjepa::Model>(pyjepa::read_agent_bytes(all),
                                                                      checked_precision(precision))};
    });
}

void pyjepa_model_free(pyjepa_model* model) {
    delete model;
}

pyjepa_status pyjepa_model_get_dims(const pyjepa_model* model, pyjepa_model_dims* out) {
    return guarded([&] {
        const pyjepa::Model& m = *not_null(model, "model").model;
        const pyjepa::Spec& s = m.spec();
        pyjepa_model_dims dims = versioned(out, pyjepa_model_dims{}, "out");
        dims.observation_size = s.observation_size;
        dims.observation_dtype = s.observation.dtype == pyjepa::DType::uint8 ? PYJEPA_UINT8 : PYJEPA_FLOAT32;
        dims.action_dim = s.action_width;
        dims.latent_dim = s.latent_dim;
        dims.action_block = s.level.action_block;
        dims.cost_terms = static_cast<int32_t>(s.cost.size());
        dims.has_encoder = m.encoder() != nullptr;
        dims.has_predictor = m.predictor() != nullptr;
        dims.has_policy = m.policy() != nullptr;
        dims.precision = static_cast<int32_t>(m.precision());
        dims.action_count = s.actions.count;
        give_back(out, dims);
    });
}

const char* pyjepa_model_spec(const pyjepa_model* model) {
    return model == nullptr ? nullptr : model->model->spec().json.c_str();
}

pyjepa_status pyjepa_model_module_sizes(const pyjepa_model* model, const char* module, size_t* in_size,
                                        size_t* out_size) {
    return guarded([&] {
        not_null(module, "module");
        const pyjepa::Model& m = *not_null(model, "model").model;
        not_null(in_size, "in_size") = static_cast<size_t>(m.input_size(module));
        not_null(out_size, "out_size") = static_cast<size_t>(m.output_size(module));
    });
}

pyjepa_status pyjepa_model_forward(const pyjepa_model* model, const char* module, const float* input,
                                   size_t batch, size_t in_size, float* output, size_t out_size) {
    return guarded([&] {
        not_null(module, "module");
        const pyjepa::Model& m = *not_null(model, "model").model;
        const int in = m.input_size(module), expected = m.output_size(module);
        if (batch > static_cast<size_t>(std::numeric_limits<int>::max()))
            throw Error(PYJEPA_INVALID_ARGUMENT, "batch is too large: " + std::to_string(batch));
        if (in_size != static_cast<size_t>(in) || out_size != static_cast<size_t>(expected))
            throw Error(PYJEPA_INVALID_ARGUMENT, "module '" + std::string(module) + "' maps " +
                                                     std::to_string(in) + " to " + std::to_string(expected) +
                                                     " values, got " + std::to_string(in_size) + " and " +
                                                     std::to_string(out_size));
        if (batch == 0) return;
        m.forward(module, &not_null(input, "input"), static_cast<int>(batch), &not_null(output, "output"));
    });
}

// ---- agent
// ----------------------------------------------------------------------------------------------------------

pyjepa_status pyjepa_agent_create(const pyjepa_model* model, int32_t threads, pyjepa_agent** out) {
    return guarded([&] {
        not_null(out, "out") = nullptr;
        *out = new pyjepa_agent{std::make_unique<Agent>(not_null(model, "model").model, threads)};
    });
}

pyjepa_status pyjepa_agent_clone(const pyjepa_agent* agent, pyjepa_agent** out) {
    return guarded([&] {
        not_null(out, "out") = nullptr;
        const Agent& original = *not_null(agent, "agent").agent;
        const Agent::Hold hold(original);
        *out = new pyjepa_agent{original.clone()};
    });
}

void pyjepa_agent_free(pyjepa_agent* agent) {
    delete agent;
}

void pyjepa_task_init(pyjepa_task* task, size_t size) {
    if (task == nullptr || size < sizeof(size_t)) return;
    // What this library does not know of a newer caller's struct is zero, as the header promises it may be.
    std::memset(static_cast<void*>(task), 0, size);
    pyjepa_task defaults{};
    defaults.environments = 1;
    defaults.horizon = defaults.candidates = defaults.iterations = defaults.elites = defaults.knots = -1;
    defaults.elite_refit = defaults.policy_candidates = defaults.prune = defaults.branching = -1;
    defaults.std = defaults.min_std = defaults.momentum = defaults.temperature = defaults.max_std =
        std::nanf("");
    defaults.noise_beta = defaults.keep_elites = defaults.decay = defaults.learning_rate =
        defaults.exploration = defaults.discount = std::nanf("");
    defaults.restarts = defaults.polish = -1;
    std::memcpy(static_cast<void*>(task), &defaults, size < sizeof defaults ? size : sizeof defaults);
    task->size = size;
}

pyjepa_status pyjepa_configure(pyjepa_agent* agent, const pyjepa_task* task) {
    return guarded([&] {
        Agent& a = *not_null(agent, "agent").agent;
        pyjepa_task defaults;
        pyjepa_task_init(&defaults, sizeof defaults);
        const pyjepa_task request = versioned(task, defaults, "task");
        const Agent::Hold hold(a);
        a.configure(request);
    });
}

pyjepa_status pyjepa_observe(pyjepa_agent* agent, const void* observation, size_t bytes, int32_t steps) {
    return guarded([&] {
        Agent& a = *not_null(agent, "agent").agent;
        if (observation == nullptr) throw Error(PYJEPA_INVALID_ARGUMENT, "observation is NULL");
        const Agent::Hold hold(a);
        a.observe(observation, bytes, steps);
    });
}

pyjepa_status pyjepa_observe_taken(pyjepa_agent* agent, const void* observation, size_t bytes, int32_t steps,
                                   const float* taken, size_t count) {
    return guarded([&] {
        Agent& a = *not_null(agent, "agent").agent;
        if (observation == nullptr) throw Error(PYJEPA_INVALID_ARGUMENT, "observation is NULL");
        not_null(taken, "taken");
        const Agent::Hold hold(a);
        a.observe(observation, bytes, steps, taken, count);
    });
}

pyjepa_status pyjepa_state(const pyjepa_agent* agent, float* states, size_t count) {
    return guarded([&] {
        const Agent& a = *not_null(agent, "agent").agent;
        not_null(states, "states");
        const Agent::Hold hold(a);
        a.states(states, count);
    });
}

pyjepa_status pyjepa_act(pyjepa_agent* agent, float* actions, size_t count) {
    return guarded([&] {
        Agent& a = *not_null(agent, "agent").agent;
        not_null(actions, "actions");
        const Agent::Hold hold(a);
        a.act(actions, count, false);
    });
}

pyjepa_status pyjepa_explore(pyjepa_agent* agent, float* actions, size_t count) {
    return guarded([&] {
        Agent& a = *not_null(agent, "agent").agent;
        not_null(actions, "actions");
        const Agent::Hold hold(a);
        a.act(actions, count, true);
    });
}

pyjepa_status pyjepa_plan(pyjepa_agent* agent, double deadline, pyjepa_plan_out* out) {
    return pyjepa_plan_cancellable(agent, deadline, out, nullptr, nullptr);
}

pyjepa_status pyjepa_plan_cancellable(pyjepa_agent* agent, double deadline, pyjepa_plan_out* out,
                                      pyjepa_cancel_fn cancel, void* user) {
    return guarded([&] {
        Agent& a = *not_null(agent, "agent").agent;
        if (std::isnan(deadline)) throw Error(PYJEPA_INVALID_ARGUMENT, "deadline is NaN");
        pyjepa_plan_out plan = versioned(out, pyjepa_plan_out{}, "out");
        const Agent::Hold hold(a);
        pyjepa::Interrupt interrupt(cancel, user);
        const bool cancelled = a.plan(deadline, interrupt, plan);
        give_back(out, plan);
        if (cancelled) throw Error(PYJEPA_CANCELLED, "the plan was cancelled");
    });
}

pyjepa_status pyjepa_reset(pyjepa_agent* agent, int32_t environment) {
    return guarded([&] {
        Agent& a = *not_null(agent, "agent").agent;
        const Agent::Hold hold(a);
        a.reset(environment);
    });
}

pyjepa_status pyjepa_get_settings(const pyjepa_agent* agent, pyjepa_settings* out) {
    return guarded([&] {
        const Agent& a = *not_null(agent, "agent").agent;
        pyjepa_settings settings = versioned(out, pyjepa_settings{}, "out");
        const Agent::Hold hold(a);
        const pyjepa::Task& task = a.task();
        const pyjepa::PlannerSettings& s = task.request().settings;
        settings.environments = s.environments;
        settings.algorithm = static_cast<int32_t>(s.algorithm) + 1;
        settings.horizon = task.horizon();
        settings.candidates = s.candidates;
        settings.iterations = s.iterations;
        settings.elites = pyjepa::uses_elites(s.algorithm) || s.elite_refit ? s.elites : 0;
        settings.knots = s.knots;
        settings.interpolation = static_cast<int32_t>(s.interpolation) + 1;
        settings.threads = a.threads();
        settings.std = s.std;
        settings.min_std = s.min_std;
        settings.momentum = s.momentum;
        settings.temperature = s.temperature;
        settings.flops = task.flops();
        settings.tile = task.tile();
        settings.temperature_scale = static_cast<int32_t>(s.temperature_scale) + 1;
        settings.elite_refit = s.elite_refit;
        settings.policy_candidates = s.policy_candidates;
        settings.max_std = s.max_std;
        if (pyjepa::draws_noise(s.algorithm)) {
            settings.sampling = static_cast<int32_t>(s.sampling) + 1;
            settings.noise_beta = s.noise_beta;
        }
        if (s.algorithm == pyjepa::Algorithm::icem) {
            settings.keep_elites = s.keep_elites;
            settings.decay = s.decay;
        }
        if (pyjepa::uses_gradient(s.algorithm)) {
            settings.restarts = s.restarts;
            settings.learning_rate = s.learning_rate;
        }
        if (s.algorithm == pyjepa::Algorithm::hybrid) settings.polish = s.polish;
        if (s.algorithm == pyjepa::Algorithm::categorical_cem) settings.exploration = s.exploration;
        if (s.algorithm == pyjepa::Algorithm::tree) settings.branching = s.branching;
        settings.discount = task.cost().discount();
        give_back(out, settings);
    });
}

pyjepa_status pyjepa_remember(pyjepa_agent* agent, size_t capacity) {
    return guarded([&] {
        Agent& a = *not_null(agent, "agent").agent;
        const Agent::Hold hold(a);
        a.remember(capacity);
    });
}

pyjepa_status pyjepa_memory_size(const pyjepa_agent* agent, size_t* size) {
    return guarded([&] {
        const Agent& a = *not_null(agent, "agent").agent;
        not_null(size, "size");
        const Agent::Hold hold(a);
        *size = a.memory().size();
    });
}

pyjepa_status pyjepa_memory_read(const pyjepa_agent* agent, const pyjepa_memory_out* out, size_t count) {
    return guarded([&] {
        const Agent& a = *not_null(agent, "agent").agent;
        const pyjepa_memory_out to = versioned(out, pyjepa_memory_out{}, "out");
        const Agent::Hold hold(a);
        if (count > a.memory().size())
            throw Error(PYJEPA_INVALID_ARGUMENT, "the memory holds " + std::to_string(a.memory().size()) +
                                                     " states, asked for " + std::to_string(count));
        a.memory().read(to, count);
    });
}

pyjepa_status pyjepa_measure_peak(int32_t precision, double seconds, double* gflops) {
    return guarded([&] {
        double& out = not_null(gflops, "gflops");
        const pyjepa::simd::Precision checked = checked_precision(precision);
        if (!(seconds >= 0.0 && seconds <= 10.0))
            throw Error(PYJEPA_INVALID_ARGUMENT, "seconds must be between 0 and 10");
        const double found = pyjepa::simd::measure_peak(checked, seconds);
        if (found == 0.0)
            throw Error(PYJEPA_UNSUPPORTED, "this machine has no instructions for this precision");
        out = found * 1e-9;
    });
}

pyjepa_status pyjepa_evaluate(pyjepa_agent* agent, const float* plans, size_t n, float* cost,
                              float* gradient) {
    return guarded([&] {
        Agent& a = *not_null(agent, "agent").agent;
        const Agent::Hold hold(a);
        a.evaluate(&not_null(plans, "plans"), n, &not_null(cost, "cost"), gradient);
    });
}

}  // extern "C"
