#include "model/model.hpp"

#include <algorithm>

#include "error.hpp"
#include "model/dense.hpp"

namespace pyjepa {
namespace {

int input_size(const Spec& spec, const std::string& module, Input input) {
    switch (input) {
        case Input::observation:
            return spec.observation_size;
        case Input::state:
        case Input::goal:
            return spec.latent_dim;
        case Input::action:
            return module == spec.level.predictor ? spec.plan_dim : spec.action_dim;
    }
    return 0;
}

// The engine keeps a module's inputs in one order (observation, state, action, goal), whatever the spec
// lists.
std::vector<int> engine_order(const Spec& spec, const std::string& name, const ModuleSpec& module) {
    std::vector<int> order;
    for (const Input wanted : {Input::observation, Input::state, Input::action, Input::goal}) {
        int at = 0;
        for (const Input input : module.inputs) {
            const int size = input_size(spec, name, input);
            if (input == wanted)
                for (int i = 0; i < size; ++i) order.push_back(at + i);
            at += size;
        }
    }
    return std::is_sorted(order.begin(), order.end()) ? std::vector<int>{} : order;
}

simd::Precision available(simd::Precision wanted) {
    const bool there =
        wanted == simd::Precision::fp32 ||
        (wanted == simd::Precision::bf16 ? simd::bf16_kernels() != nullptr : simd::int8_kernels() != nullptr);
    return there ? wanted : simd::Precision::fp32;
}

}  // namespace

Model::Model(const AgentFile& file, simd::Precision precision)
    : spec_(file.spec), precision_(available(precision)) {
    for (const auto& [name, module] : spec_.modules) {
        const std::vector<int> order = engine_order(spec_, name, module);
        const bool predicts = name == spec_.level.predictor;
        networks_.emplace(name, Network(file, name, order, predicts ? precision_ : simd::Precision::fp32));
        input_orders_.emplace(name, order);
    }
    if (spec_.policy) {
        const auto& inputs = spec_.modules.at(*spec_.policy).inputs;
        policy_reads_goal_ = std::find(inputs.begin(), inputs.end(), Input::goal) != inputs.end();
    }
}

const Network* Model::find(const std::optional<std::string>& name) const noexcept {
    if (!name) return nullptr;
    const auto found = networks_.find(*name);
    return found == networks_.end() ? nullptr : &found->second;
}

const Network& Model::module(const std::string& name) const {
    const Network* found = find(name);
    if (found == nullptr)
        throw Error(PYJEPA_INVALID_ARGUMENT, "this agent file has no module '" + name + "'");
    return *found;
}

void Model::forward(const std::string& name, const float* input, int batch, float* output) const {
    const Network& network = module(name);
    const std::vector<int>& order = input_orders_.at(name);
    const simd::Kernels& kernels = simd::kernels();
    const int in = network.in(), out = network.out();
    // A few rows at a time, so that the scratch stays small whatever the batch.
    constexpr int block = 64;
    AlignedFloats work(network.workspace(block)),
        sorted(static_cast<size_t>(block) * static_cast<size_t>(in));
    const auto& inputs = spec_.modules.at(name).inputs;
    int state_at = 0;
    for (const Input i : inputs) {
        if (i == Input::state) break;
        state_at += input_size(spec_, name, i);
    }
    for (int from = 0; from < batch; from += block) {
        const int rows = std::min(block, batch - from);
        const float* x = input + static_cast<ptrdiff_t>(from) * in;
        float* y = output + static_cast<ptrdiff_t>(from) * out;
        if (network.residual())
            for (int r = 0; r < rows; ++r)
                std::copy_n(x + static_cast<ptrdiff_t>(r) * in + state_at, out,
                            y + static_cast<ptrdiff_t>(r) * out);
        if (!order.empty()) {
            for (int r = 0; r < rows; ++r)
                for (int j = 0; j < in; ++j)
                    sorted[static_cast<size_t>(r * in + j)] =
                        x[static_cast<ptrdiff_t>(r) * in + order[static_cast<size_t>(j)]];
            x = sorted.data();
        }
        network.forward(kernels, x, in, rows, y, out, network.residual(), work.data());
    }
}

void Model::scale_observation(const void* raw, float* out) const noexcept {
    const auto& o = spec_.observation;
    const int n = spec_.observation_size;
    if (o.dtype == DType::uint8) {
        const auto* from = static_cast<const unsigned char*>(raw);
        for (int i = 0; i < n; ++i) out[i] = static_cast<float>(from[i]) * o.scale + o.offset;
    } else {
        const auto* from = static_cast<const float*>(raw);
        for (int i = 0; i < n; ++i) out[i] = from[i] * o.scale + o.offset;
    }
}

}  // namespace pyjepa
