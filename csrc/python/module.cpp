// pyjepa._engine: the C ABI in Python. Shapes and defaults are the business of pyjepa/agent.py; here are
// handles, buffers and errors.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "pyjepa/pyjepa.h"

namespace py = pybind11;

namespace {

using Floats = py::array_t<float, py::array::c_style>;

[[noreturn]] void raise(const char* name, const std::string& message) {
    const py::object type = py::module_::import("pyjepa.errors").attr(name);
    PyErr_SetString(type.ptr(), message.c_str());
    throw py::error_already_set();
}

void check(pyjepa_status status) {
    if (status == PYJEPA_OK) return;
    const std::string message = pyjepa_last_error();
    switch (status) {
        case PYJEPA_INVALID_ARGUMENT:
            raise("InvalidArgumentError", message);
        case PYJEPA_INVALID_FILE:
            raise("AgentFileError", message);
        case PYJEPA_UNSUPPORTED:
            raise("UnsupportedError", message);
        case PYJEPA_NOT_READY:
            raise("NotReadyError", message);
        case PYJEPA_BUSY:
            raise("BusyError", message);
        case PYJEPA_CALLBACK:
            raise("RolloutError", message);
        case PYJEPA_IO:
            PyErr_SetString(PyExc_OSError, message.c_str());
            throw py::error_already_set();
        case PYJEPA_OUT_OF_MEMORY:
            PyErr_SetString(PyExc_MemoryError, message.c_str());
            throw py::error_already_set();
        default:
            raise("PyjepaError", message);
    }
}

const std::vector<std::string>& precisions() {
    static const std::vector<std::string> names = {"fp32", "bf16", "int8"};
    return names;
}

int32_t precision_code(const std::string& name) {
    const auto found = std::find(precisions().begin(), precisions().end(), name);
    if (found == precisions().end())
        raise("InvalidArgumentError", "precision must be fp32, bf16 or int8, got '" + name + "'");
    return static_cast<int32_t>(found - precisions().begin());
}

class Model {
  public:
    static Model load(const std::string& path, const std::string& precision) {
        if (path.find('\0') != std::string::npos)
            raise("InvalidArgumentError", "the path holds a null character");
        Model m;
        const int32_t code = precision_code(precision);
        pyjepa_status status;
        {
            const py::gil_scoped_release release;
            status = pyjepa_model_load_as(path.c_str(), code, &m.handle_);
        }
        check(status);
        return m;
    }
    static Model parse(const py::bytes& bytes, const std::string& precision) {
        Model m;
        const std::string_view view = bytes;
        check(pyjepa_model_parse_as(view.data(), view.size(), precision_code(precision), &m.handle_));
        return m;
    }
    Model(Model&& other) noexcept : handle_(other.handle_) { other.handle_ = nullptr; }
    Model(const Model&) = delete;
    Model& operator=(const Model&) = delete;
    ~Model() { pyjepa_model_free(handle_); }

    const pyjepa_model* handle() const { return handle_; }
    std::string spec() const { return pyjepa_model_spec(handle_); }
    py::dict dims() const {
        pyjepa_model_dims d{};
        d.size = sizeof d;
        check(pyjepa_model_get_dims(handle_, &d));
        py::dict out;
        out["observation_size"] = d.observation_size;
        out["observation_dtype"] = d.observation_dtype == PYJEPA_UINT8 ? "uint8" : "float32";
        out["action_dim"] = d.action_dim;
        out["latent_dim"] = d.latent_dim;
        out["action_block"] = d.action_block;
        out["cost_terms"] = d.cost_terms;
        out["has_encoder"] = d.has_encoder != 0;
        out["has_predictor"] = d.has_predictor != 0;
        out["has_policy"] = d.has_policy != 0;
        out["precision"] = precisions()[static_cast<size_t>(d.precision)];
        out["action_count"] = d.action_count;
        return out;
    }
    std::pair<size_t, size_t> module_sizes(const std::string& module) const {
        size_t in = 0, out = 0;
        check(pyjepa_model_module_sizes(handle_, module.c_str(), &in, &out));
        return {in, out};
    }
    Floats forward(const std::string& module, const Floats& input) const {
        const auto [in, out] = module_sizes(module);
        if (input.ndim() != 2) raise("InvalidArgumentError", "input must have shape (batch, in)");
        Floats output({input.shape(0), static_cast<py::ssize_t>(out)});
        const float* from = input.data();
        float* to = output.mutable_data();
        const auto batch = static_cast<size_t>(input.shape(0)), given = static_cast<size_t>(input.shape(1));
        pyjepa_status status;
        {
            const py::gil_scoped_release release;
            status = pyjepa_model_forward(handle_, module.c_str(), from, batch, given, to, out);
        }
        check(status);
        return output;
    }

  private:
    Model() = default;
    pyjepa_model* handle_ = nullptr;
};

class Agent {
  public:
    Agent(const Model& model, int threads) {
        dims_.size = sizeof dims_;
        check(pyjepa_model_get_dims(model.handle(), &dims_));
        check(pyjepa_agent_create(model.handle(), threads, &handle_));
    }
    Agent(const Agent&) = delete;
    Agent& operator=(const Agent&) = delete;
    ~Agent() {
        const py::gil_scoped_release release;  // joins threads
        pyjepa_agent_free(handle_);
    }

    std::unique_ptr<Agent> clone() const {
        auto twin = std::unique_ptr<Agent>(new Agent());
        check(pyjepa_agent_clone(handle_, &twin->handle_));
        twin->dims_ = dims_;
        twin->task_ = task_;
        twin->at_ = at_;
        twin->layout_ = layout_;
        twin->layout_size_ = layout_size_;
        twin->actions_size_ = actions_size_;
        // A callback still reaches the original through its context: give the clone one of its own.
        if (!task_.rollout.is_none() || !task_.rollout_call.is_none()) twin->configure_task(task_);
        return twin;
    }

    void configure(int environments, int algorithm, int horizon, int candidates, int iterations, int elites,
                   int knots, int interpolation, float std, float min_std, float momentum, float temperature,
                   int temperature_scale, int elite_refit, float max_std, int policy_candidates, bool prune,
                   uint64_t seed, const std::optional<py::array>& goal, const std::optional<Floats>& low,
                   const std::optional<Floats>& high, const std::optional<Floats>& weights,
                   const py::object& rollout, int sampling, float noise_beta, float keep_elites, float decay,
                   float learning_rate, int restarts, int polish, float exploration, int branching,
                   float discount, const py::object& rollout_call, bool rollout_gradient) {
        Task task;
        pyjepa_task_init(&task.raw, sizeof task.raw);
        task.raw.environments = environments;
        task.raw.algorithm = algorithm;
        task.raw.horizon = horizon;
        task.raw.candidates = candidates;
        task.raw.iterations = iterations;
        task.raw.elites = elites;
        task.raw.knots = knots;
        task.raw.interpolation = interpolation;
        task.raw.std = std;
        task.raw.min_std = min_std;
        task.raw.momentum = momentum;
        task.raw.temperature = temperature;
        task.raw.temperature_scale = temperature_scale;
        task.raw.elite_refit = elite_refit;
        task.raw.max_std = max_std;
        task.raw.policy_candidates = policy_candidates;
        task.raw.prune = prune ? 1 : 0;
        task.raw.exploration = exploration;
        task.raw.branching = branching;
        task.raw.seed = seed;
        task.raw.sampling = sampling;
        task.raw.noise_beta = noise_beta;
        task.raw.keep_elites = keep_elites;
        task.raw.decay = decay;
        task.raw.learning_rate = learning_rate;
        task.raw.restarts = restarts;
        task.raw.polish = polish;
        task.raw.discount = discount;
        task.goal = goal;
        task.low = low;
        task.high = high;
        task.weights = weights;
        task.rollout = rollout;
        task.rollout_call = rollout_call;
        task.raw.rollout_gradient = rollout_gradient ? 1 : 0;
        configure_task(std::move(task));
    }

    void observe(const py::array& observation, int steps, const std::optional<Floats>& taken) {
        const void* data = observation.data();
        const auto bytes = static_cast<size_t>(observation.nbytes());
        const float* const what = taken ? taken->data() : nullptr;
        const size_t count = taken ? static_cast<size_t>(taken->size()) : 0;
        pyjepa_status status;
        {
            const py::gil_scoped_release release;
            status = what == nullptr ? pyjepa_observe(handle_, data, bytes, steps)
                                     : pyjepa_observe_taken(handle_, data, bytes, steps, what, count);
        }
        check(status);
    }

    void act(Floats& out, bool explore) {
        const auto size = static_cast<size_t>(out.size());
        check(explore ? pyjepa_explore(handle_, out.mutable_data(), size)
                      : pyjepa_act(handle_, out.mutable_data(), size));
    }
    void state(Floats& out) const {
        check(pyjepa_state(handle_, out.mutable_data(), static_cast<size_t>(out.size())));
    }

    // Where plan() puts each result among its numbers: name -> (first, end).
    const std::map<std::string, std::pair<size_t, size_t>>& plan_layout() const { return layout_; }

    // Writes into the arrays given, `numbers` as plan_layout says; returns (iterations, elapsed). A plan
    // takes tenths of a millisecond, and pybind11 a third of a microsecond to make sure of an array_t.
    std::pair<int, double> plan(double deadline, py::array& actions, py::array& numbers) {
        float* const to = floats(numbers, layout_size_, "numbers");
        pyjepa_plan_out out{};
        out.size = sizeof out;
        out.actions = floats(actions, actions_size_, "actions");
        out.cost = to + at_.cost;
        out.states = native() ? to + at_.states : nullptr;
        out.cost_terms = native() ? to + at_.cost_terms : nullptr;
        out.best_cost = to + at_.best_cost;
        out.converged = reinterpret_cast<int32_t*>(to + at_.converged);
        out.effective_samples = to + at_.effective_samples;
        out.elite_spread = to + at_.elite_spread;
        std::optional<py::error_already_set> signal;
        const bool main = runs_signal_handlers();
        pyjepa_status status;
        {
            const py::gil_scoped_release release;
            status = pyjepa_plan_cancellable(handle_, deadline, &out, main ? &Agent::check_signals : nullptr,
                                             &signal);
        }
        if (status == PYJEPA_CANCELLED && signal) throw std::move(*signal);
        check_plan(status);
        return {out.iterations, out.elapsed};
    }

    void remember(size_t capacity) { check(pyjepa_remember(handle_, capacity)); }

    py::dict memory(size_t latent) const {
        size_t size = 0;
        check(pyjepa_memory_size(handle_, &size));
        const auto rows = static_cast<py::ssize_t>(size), columns = static_cast<py::ssize_t>(latent);
        py::array_t<int64_t> episodes(rows), steps(rows);
        py::array_t<int32_t> environments(rows);
        Floats states({rows, columns}), goals({rows, columns}), costs(rows);
        pyjepa_memory_out out{};
        out.size = sizeof out;
        out.episodes = episodes.mutable_data();
        out.steps = steps.mutable_data();
        out.environments = environments.mutable_data();
        out.states = states.mutable_data();
        out.goals = goals.mutable_data();
        out.costs = costs.mutable_data();
        check(pyjepa_memory_read(handle_, &out, size));
        py::dict found;
        found["episodes"] = episodes;
        found["steps"] = steps;
        found["environments"] = environments;
        found["states"] = states;
        found["goals"] = goals;
        found["costs"] = costs;
        return found;
    }

    // plans (E, n, S, D) -> costs (E, n), and the gradient if asked for.
    std::pair<Floats, std::optional<Floats>> evaluate(const Floats& plans, bool gradient) {
        if (plans.ndim() != 4) raise("InvalidArgumentError", "plans must have shape (E, n, S, D)");
        Floats cost({plans.shape(0), plans.shape(1)});
        std::optional<Floats> slope;
        if (gradient) slope = Floats({plans.shape(0), plans.shape(1), plans.shape(2), plans.shape(3)});
        const auto n = static_cast<size_t>(plans.shape(1));
        const float* from = plans.data();
        float* to = cost.mutable_data();
        float* slopes = slope ? slope->mutable_data() : nullptr;
        pyjepa_status status;
        {
            const py::gil_scoped_release release;
            status = pyjepa_evaluate(handle_, from, n, to, slopes);
        }
        check_plan(status);
        return {cost, slope};
    }

    void reset(int environment) { check(pyjepa_reset(handle_, environment)); }

    py::dict settings() const {
        pyjepa_settings s{};
        s.size = sizeof s;
        check(pyjepa_get_settings(handle_, &s));
        py::dict out;
        out["environments"] = s.environments;
        out["algorithm"] = s.algorithm;
        out["horizon"] = s.horizon;
        out["candidates"] = s.candidates;
        out["iterations"] = s.iterations;
        out["elites"] = s.elites;
        out["knots"] = s.knots;
        out["interpolation"] = s.interpolation;
        out["threads"] = s.threads;
        out["std"] = s.std;
        out["min_std"] = s.min_std;
        out["momentum"] = s.momentum;
        out["temperature"] = s.temperature;
        out["temperature_scale"] = s.temperature_scale;
        out["elite_refit"] = s.elite_refit != 0;
        out["max_std"] = s.max_std;
        out["policy_candidates"] = s.policy_candidates;
        out["sampling"] = s.sampling;
        out["noise_beta"] = s.noise_beta;
        out["keep_elites"] = s.keep_elites;
        out["decay"] = s.decay;
        out["learning_rate"] = s.learning_rate;
        out["restarts"] = s.restarts;
        out["polish"] = s.polish;
        out["exploration"] = s.exploration;
        out["branching"] = s.branching;
        out["discount"] = s.discount;
        out["flops"] = s.flops;
        out["tile"] = s.tile;
        return out;
    }

  private:
    struct Task {
        pyjepa_task raw{};
        std::optional<py::array> goal;
        std::optional<Floats> low, high, weights;
        py::object rollout = py::none(), rollout_call = py::none();
    };

    Agent() = default;

    bool native() const { return task_.rollout.is_none(); }

    static float* floats(py::array& array, size_t count, const char* name) {
        if (array.dtype().kind() != 'f' || array.itemsize() != sizeof(float) ||
            static_cast<size_t>(array.size()) != count || (array.flags() & py::array::c_style) == 0 ||
            !array.writeable())
            raise("InvalidArgumentError",
                  std::string(name) + " must be a contiguous float32 array of " + std::to_string(count));
        return static_cast<float*>(array.mutable_data());
    }

    void lay_out() {
        pyjepa_settings s{};
        s.size = sizeof s;
        check(pyjepa_get_settings(handle_, &s));
        const auto e = static_cast<size_t>(s.environments), i = static_cast<size_t>(s.iterations);
        const size_t steps = static_cast<size_t>(s.horizon / dims_.action_block);
        const auto latent = static_cast<size_t>(dims_.latent_dim),
                   terms = static_cast<size_t>(dims_.cost_terms);
        layout_.clear();
        layout_size_ = 0;
        const auto take = [this](const char* name, size_t count) {
            const size_t first = layout_size_;
            layout_size_ += count;
            layout_[name] = {first, layout_size_};
            return first;
        };
        at_ = {take("cost", e),
               take("best_cost", e * (i + 1)),
               take("converged", e),
               take("effective_samples", e),
               take("elite_spread", e),
               take("states", native() ? e * (steps + 1) * latent : 0),
               take("cost_terms", native() ? e * terms * steps : 0)};
        actions_size_ = e * static_cast<size_t>(s.horizon) *
                        static_cast<size_t>(dims_.action_count > 0 ? 1 : dims_.action_dim);
    }

    // Of a call that may have called back: the callback's own exception, if that is what went wrong.
    void check_plan(pyjepa_status status) {
        if (status == PYJEPA_CALLBACK && callback_error_) {
            py::error_already_set error = std::move(*callback_error_);
            callback_error_.reset();
            if (!error.matches(PyExc_Exception))
                throw error;  // KeyboardInterrupt, SystemExit: no rollout's failure
            const py::object type = py::module_::import("pyjepa.errors").attr("RolloutError");
            error.restore();
            py::raise_from(type.ptr(), "the rollout callback raised an exception");
            throw py::error_already_set();
        }
        if (status == PYJEPA_CALLBACK && !callback_message_.empty()) {
            const std::string message = std::move(callback_message_);
            callback_message_.clear();
            raise("RolloutError", message);
        }
        check(status);
    }

    // The agent keeps its previous task, and the callback that belongs to it, until the new one is in force.
    void configure_task(Task task) {
        pyjepa_task raw = task.raw;
        if (task.goal) {
            raw.goal = task.goal->data();
            raw.goal_bytes = static_cast<size_t>(task.goal->nbytes());
        }
        raw.action_low = task.low ? task.low->data() : nullptr;
        raw.action_high = task.high ? task.high->data() : nullptr;
        raw.weights = task.weights ? task.weights->data() : nullptr;
        if (!task.rollout.is_none()) {
            raw.rollout = &Agent::call_back;
            raw.rollout_user = this;
        }
        if (!task.rollout_call.is_none()) {
            raw.rollout_call = &Agent::stand_in;
            raw.rollout_call_user = this;
        }
        pyjepa_status status;
        {
            const py::gil_scoped_release release;
            status = pyjepa_configure(handle_, &raw);
        }
        check(status);
        callback_ = task.rollout_call.is_none() ? task.rollout : task.rollout_call;
        task_ = std::move(task);
        lay_out();
    }

    // Python runs signal handlers (Ctrl-C's raises KeyboardInterrupt) in its main thread, and only if asked
    // while it is in here.
    static bool runs_signal_handlers() {
        static PyObject* const main_thread =  // for as long as the process runs
            py::object(py::module_::import("threading").attr("main_thread")).release().ptr();
        const py::object main = py::handle(main_thread)();
        return main.attr("ident").cast<unsigned long>() == PyThread_get_thread_ident();
    }
    static int check_signals(void* user) {
        const py::gil_scoped_acquire acquire;
        if (PyErr_CheckSignals() == 0) return 0;
        static_cast<std::optional<py::error_already_set>*>(user)->emplace();
        return 1;
    }

    // The user's rollout: arrays in (copies, theirs to keep), an array of costs (E, N) out.
    static int call_back(void* user, const float* states, const float* goals, const float* actions, size_t e,
                         size_t n, size_t h, size_t a, size_t l, float* cost) {
        auto& self = *static_cast<Agent*>(user);
        const py::gil_scoped_acquire acquire;
        try {
            const py::object goal =
                goals == nullptr ? py::object(py::none()) : py::object(Floats({e, l}, goals));
            const py::object result =
                self.callback_(Floats({e, l}, states), goal, Floats({e, n, h, a}, actions));
            const py::array_t<float, py::array::c_style | py::array::forcecast> costs(result);
            if (costs.ndim() != 2 || costs.shape(0) != static_cast<py::ssize_t>(e) ||
                costs.shape(1) != static_cast<py::ssize_t>(n)) {
                self.callback_message_ = "the rollout callback returned costs of shape " +
                                         py::str(costs.attr("shape")).cast<std::string>() + ", expected (" +
                                         std::to_string(e) + ", " + std::to_string(n) + ")";
                return 2;
            }
            std::copy_n(costs.data(), e * n, cost);
            return 0;
        } catch (py::error_already_set& error) {
            self.callback_error_.emplace(std::move(error));
            return 1;
        }
    }

    // What stands in for the model's rollouts: arrays that last for the call, `cost` and `gradient` to be
    // filled.
    static int stand_in(void* user, const pyjepa_rollout_call* call) {
        auto& self = *static_cast<Agent*>(user);
        const py::gil_scoped_acquire acquire;
        const size_t e = call->environments, n = call->candidates, s = call->steps, d = call->plan_dim;
        const auto view = [](std::vector<size_t> shape, const float* data) -> py::object {
            if (data == nullptr) return py::none();
            return Floats(std::move(shape), data, py::none());  // with a base it copies nothing
        };
        try {
            self.callback_(view({e, call->latent_dim}, call->states),
                           view({e, call->latent_dim}, call->goals), view({e, n, s, d}, call->plans),
                           view({e, d}, call->previous), py::array_t<uint64_t>({e}, call->draws, py::none()),
                           view({e, n}, call->cost), view({e, n, s, d}, call->gradient));
            return 0;
        } catch (py::error_already_set& error) {
            self.callback_error_.emplace(std::move(error));
            return 1;
        }
    }

    pyjepa_agent* handle_ = nullptr;
    pyjepa_model_dims dims_{};
    Task task_;
    struct {
        size_t cost, best_cost, converged, effective_samples, elite_spread, states, cost_terms;
    } at_{};
    std::map<std::string, std::pair<size_t, size_t>> layout_;
    size_t layout_size_ = 0, actions_size_ = 0;
    py::object callback_ = py::none();
    std::optional<py::error_already_set> callback_error_;
    std::string callback_message_;
};

}  // namespace

PYBIND11_MODULE(_engine, m) {
    m.doc() = "The engine behind pyjepa; use pyjepa.load.";
    m.def("version", &pyjepa_version);
    m.def("isa", [] {
        const std::string name = pyjepa_isa();
        if (name.empty()) raise("UnsupportedError", pyjepa_last_error());
        return name;
    });

    m.def(
        "precision_isa",
        [](const std::string& precision) { return pyjepa_precision_isa(precision_code(precision)); },
        py::arg("precision"));

    m.def(
        "measure_peak",
        [](const std::string& precision, double seconds) {
            const int32_t code = precision_code(precision);
            double gflops = 0.0;
            pyjepa_status status;
            {
                const py::gil_scoped_release release;
                status = pyjepa_measure_peak(code, seconds, &gflops);
            }
            check(status);
            return gflops;
        },
        py::arg("precision"), py::arg("seconds"));

    py::class_<Model>(m, "Model")
        .def_static("load", &Model::load, py::arg("path"), py::arg("precision") = "fp32")
        .def_static("parse", &Model::parse, py::arg("data"), py::arg("precision") = "fp32")
        .def_property_readonly("spec", &Model::spec)
        .def_property_readonly("dims", &Model::dims)
        .def("module_sizes", &Model::module_sizes, py::arg("module"))
        .def("forward", &Model::forward, py::arg("module"), py::arg("input"));

    py::class_<Agent>(m, "Agent")
        .def(py::init<const Model&, int>(), py::arg("model"), py::arg("threads"))
        .def("clone", &Agent::clone)
        .def("configure", &Agent::configure, py::kw_only(), py::arg("environments"), py::arg("algorithm"),
             py::arg("horizon"), py::arg("candidates"), py::arg("iterations"), py::arg("elites"),
             py::arg("knots"), py::arg("interpolation"), py::arg("std"), py::arg("min_std"),
             py::arg("momentum"), py::arg("temperature"), py::arg("temperature_scale"),
             py::arg("elite_refit"), py::arg("max_std"), py::arg("policy_candidates"), py::arg("prune"),
             py::arg("seed"), py::arg("goal"), py::arg("low"), py::arg("high"), py::arg("weights"),
             py::arg("rollout"), py::arg("sampling"), py::arg("noise_beta"), py::arg("keep_elites"),
             py::arg("decay"), py::arg("learning_rate"), py::arg("restarts"), py::arg("polish"),
             py::arg("exploration"), py::arg("branching"), py::arg("discount"),
             py::arg("rollout_call") = py::none(), py::arg("rollout_gradient") = false)
        .def("observe", &Agent::observe, py::arg("observation"), py::arg("steps"),
             py::arg("taken") = py::none())
        .def("act", &Agent::act, py::arg("out").noconvert(), py::arg("explore"))
        .def("state", &Agent::state, py::arg("out").noconvert())
        .def_property_readonly("plan_layout", &Agent::plan_layout)
        .def("plan", &Agent::plan, py::arg("deadline"), py::arg("actions"), py::arg("numbers"))
        .def("evaluate", &Agent::evaluate, py::arg("plans"), py::arg("gradient"))
        .def("reset", &Agent::reset, py::arg("environment"))
        .def("remember", &Agent::remember, py::arg("capacity"))
        .def("memory", &Agent::memory, py::arg("latent"))
        .def("settings", &Agent::settings);
}
