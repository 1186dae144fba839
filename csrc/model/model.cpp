#include "model/model.hpp"

#include <algorithm>

#include "error.hpp"
#include "model/dense.hpp"

namespace pyjepa {
namespace {

int input_size(const Spec& spec, Input input) {
    switch (input) {
        case Input::observation:
            return spec.observation_size;
        case Input::state:
        case Input::goal:
            return spec.latent_dim;
        case Input::action:
            return spec.plan_dim;
    }
    return 0;
}

// The engine keeps a module's inputs in one order (observation, state, action, goal), whatever the spec
// lists.
std::vector<int> engine_order(const Spec& spec, const ModuleSpec& module) {
    std::vector<int> order;
    for (const Input wanted : {Input::observation, Input::state, Input::action, Input::goal}) {
        int at = 0;
        for (const Input input : module.inputs) {
            const int size = input_size(spec, input);
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
        const std::vector<int> order = engine_order(spec_, module);
        // What the agent sees stays in fp32, unless the file says how low each of the encoder's layers may
        // go.
        const bool perceives = name == spec_.level.encoder && module.precisions.empty();
        const simd::Precision own = perceives ? simd::Precision::fp32 : precision_;
        std::vector<Network>& made = networks_[name];
        for (int k = 0; k < module.ensemble; ++k) made.emplace_back(file, name, order, own, k);
        if (name == spec_.policy && precision_ != simd::Precision::fp32)
            policy_.emplace(file, name, order, simd::Precision::fp32);
        input_orders_.emplace(name, order);
    }
}

int Model::window() const noexcept {
    if (!spec_.level.predictor) return 1;
    const auto* first =
        std::get_if<AdalnTransformerSpec>(&spec_.modules.find(*spec_.level.predictor)->second.blocks.front());
    return first == nullptr ? 1 : first->window;
}

const Network* Model::find(const std::optional<std::string>& name) const noexcept {
    if (!name) return nullptr;
    const auto found = networks_.find(*name);
    return found == networks_.end() ? nullptr : &found->second.front();
}

const std::vector<Network>& Model::members(const std::string& module) const {
    const auto found = networks_.find(module);
    if (found == networks_.end())
        throw Error(PYJEPA_INVALID_ARGUMENT, "this agent file has no module '" + module + "'");
    return found->second;
}

bool Model::reads(const std::string& module, Input input) const {
    const auto& inputs = spec_.modules.at(module).inputs;
    return std::find(inputs.begin(), inputs.end(), input) != inputs.end();
}

int Model::output_size(const std::string& module) const {
    const std::vector<Network>& networks = members(module);
    return networks.front().out() * static_cast<int>(networks.size());
}

void Model::forward(const std::string& name, const float* input, int batch, float* output) const {
    const std::vector<Network>& networks = members(name);
    const Network& first = networks.front();
    const std::vector<int>& order = input_orders_.at(name);
    const simd::Kernels& kernels = simd::kernels();
    const int in = first.in(), out = output_size(name);
    // A few rows at a time, so that the scratch stays small whatever the batch.
    const int block = std::min(64, batch);
    AlignedFloats work(first.workspace(block)),
        sorted(order.empty() ? 0 : static_cast<size_t>(block) * static_cast<size_t>(in));
    int state_at = 0;
    for (const Input i : spec_.modules.at(name).inputs) {
        if (i == Input::state) break;
        state_at += pyjepa::input_size(spec_, i);
    }
    for (int from = 0; from < batch; from += block) {
        const int rows = std::min(block, batch - from);
        const float* x = input + static_cast<ptrdiff_t>(from) * in;
        float* y = output + static_cast<ptrdiff_t>(from) * out;
        if (first.residual())
            for (int r = 0; r < rows; ++r)
                for (int k = 0; k < out; k += first.out())
                    std::copy_n(x + static_cast<ptrdiff_t>(r) * in + state_at, first.out(),
                                y + static_cast<ptrdiff_t>(r) * out + k);
        if (!order.empty()) {
            for (int r = 0; r < rows; ++r)
                for (int j = 0; j < in; ++j)
                    sorted[static_cast<size_t>(r * in + j)] =
                        x[static_cast<ptrdiff_t>(r) * in + order[static_cast<size_t>(j)]];
            x = sorted.data();
        }
        for (const Network& network : networks) {
            network.forward(kernels, x, in, rows, y, out, network.residual(), work.data());
            y += network.out();
        }
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
