// An agent file in memory, ready to run: the spec and every module's packed weights. Immutable and shared.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "agent_file/agent_file.hpp"
#include "model/network.hpp"

namespace pyjepa {

class Model {
  public:
    // `precision`: of the predictor; where the machine has no kernels for it, fp32.
    explicit Model(const AgentFile& file, simd::Precision precision = simd::Precision::fp32);

    const Spec& spec() const noexcept { return spec_; }
    simd::Precision precision() const noexcept { return precision_; }
    // nullptr where the agent file has none.
    const Network* encoder() const noexcept { return find(spec_.level.encoder); }
    const Network* predictor() const noexcept {
        return find(spec_.level.predictor);
    }  // reads [state, action]
    const Network* policy() const noexcept { return find(spec_.policy); }  // reads [state, goal]
    bool policy_reads_goal() const noexcept { return policy_reads_goal_; }

    // A module on inputs as the spec lists them; for tools and tests. Allocates.
    const Network& module(const std::string& name) const;
    void forward(const std::string& name, const float* input, int batch, float* output) const;

    // The float32 input of the encoder: raw * scale + offset.
    void scale_observation(const void* raw, float* out) const noexcept;

  private:
    const Network* find(const std::optional<std::string>& name) const noexcept;

    Spec spec_;
    std::map<std::string, Network> networks_;
    std::map<std::string, std::vector<int>> input_orders_;  // spec position of each input the network reads
    simd::Precision precision_;
    bool policy_reads_goal_ = false;
};

}  // namespace pyjepa
