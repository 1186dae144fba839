// An agent file in memory, ready to run: the spec and every module's packed weights. Immutable and shared.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "agent_file/agent_file.hpp"
#include "model/network.hpp"

namespace pyjepa {

class Model {
  public:
    // `precision`: of the networks that planning runs, and of an encoder whose layers' precisions the file
    // has; where the machine has no kernels for it, fp32.
    explicit Model(const AgentFile& file, simd::Precision precision = simd::Precision::fp32);

    const Spec& spec() const noexcept { return spec_; }
    simd::Precision precision() const noexcept { return precision_; }
    // nullptr where the agent file has none. The policy comes twice: to act it stays in fp32.
    const Network* encoder() const noexcept { return find(spec_.level.encoder); }
    const Network* predictor() const noexcept {
        return find(spec_.level.predictor);
    }  // reads [state, action]
    const Network* policy() const noexcept { return policy_ ? &*policy_ : find(spec_.policy); }
    const Network* planning_policy() const noexcept { return find(spec_.policy); }  // reads [state, goal]
    // States that the predictor looks at, the present one among them: 1 where it does not look back.
    int window() const noexcept;
    bool policy_reads_goal() const noexcept { return spec_.policy && reads(*spec_.policy, Input::goal); }

    bool reads(const std::string& module, Input input) const;
    // The networks of a module's ensemble; one where it has none.
    const std::vector<Network>& members(const std::string& module) const;
    // A module on inputs as the spec lists them, its members' outputs one after the other; for tools and
    // tests. Allocates.
    int input_size(const std::string& module) const { return members(module).front().in(); }
    int output_size(const std::string& module) const;
    void forward(const std::string& name, const float* input, int batch, float* output) const;

    // The float32 input of the encoder: raw * scale + offset.
    void scale_observation(const void* raw, float* out) const noexcept;

  private:
    const Network* find(const std::optional<std::string>& name) const noexcept;

    Spec spec_;
    std::map<std::string, std::vector<Network>> networks_;
    std::optional<Network> policy_;                         // in fp32, where the others are not
    std::map<std::string, std::vector<int>> input_orders_;  // spec position of each input the network reads
    simd::Precision precision_;
};

}  // namespace pyjepa
