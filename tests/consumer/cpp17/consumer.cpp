// Loads the agent file named on the command line, plans three times and acts; prints every action, bit for
// bit, then the files that are mapped into the process. What ../c99/consumer.c does, in C++ with the wrapper.
#include <cstdio>
#include <fstream>
#include <iostream>
#include <pyjepa/pyjepa.hpp>
#include <type_traits>
#include <vector>

namespace {

// An observation that a test can make again: element i is i * factor mod 251, floats are 1/256 of that.
template <class T>
std::vector<T> pattern(const pyjepa_model_dims& dims, std::size_t factor) {
    std::vector<T> out(static_cast<std::size_t>(dims.observation_size));
    for (std::size_t i = 0; i < out.size(); ++i) {
        const auto value = static_cast<T>(i * factor % 251);
        out[i] = std::is_same_v<T, float> ? static_cast<T>(static_cast<float>(value) / 256.0f) : value;
    }
    return out;
}

void print(const char* name, const std::vector<float>& values) {
    std::printf("%s", name);
    for (const float value : values) std::printf(" %a", static_cast<double>(value));
    std::printf("\n");
}

template <class T>
void run(const pyjepa::Model& model) {
    pyjepa::Agent agent(model, 2);
    pyjepa::Task task;
    task.seed = 9;
    const std::vector<T> goal = pattern<T>(model.dims(), 37);
    agent.configure(task.with_goal(goal));
    pyjepa::Plan plan = agent.make_plan();
    for (std::size_t i = 0; i < 3; ++i) {
        agent.observe(pattern<T>(model.dims(), 13 + i));
        agent.plan(plan);
        print("plan", plan.actions);
    }
    if (model.dims().has_policy != 0) {
        std::vector<float> action(static_cast<std::size_t>(model.dims().action_dim));
        agent.act(action);
        print("act", action);
    }
}

}  // namespace

int main(int argc, char** argv) try {
    if (argc != 2) return 2;
    std::printf("version %s\n", pyjepa::version().c_str());
    const pyjepa::Model model(argv[1]);
    if (model.dims().observation_dtype == PYJEPA_FLOAT32)
        run<float>(model);
    else
        run<std::uint8_t>(model);
    std::printf("maps\n");
    std::fflush(stdout);
    std::cout << std::ifstream("/proc/self/maps").rdbuf();
    return 0;
} catch (const pyjepa::Error& error) {
    std::fprintf(stderr, "status %d: %s\n", static_cast<int>(error.status()), error.what());
    return 1;
}
