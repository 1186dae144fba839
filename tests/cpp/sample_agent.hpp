// Agent files made in memory for tests: a spec's JSON and random weights of the shapes it calls for.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <string>

#include "agent_file/agent_file.hpp"

namespace pyjepa::testing {

inline std::string agent_bytes(const std::string& spec_json, unsigned seed) {
    std::string header = R"({"__metadata__":{"pyjepa":")";
    for (const char c : spec_json) {
        if (c == '"') header += '\\';
        header += c == '\n' ? ' ' : c;
    }
    header += "\"}";
    std::mt19937 generator(seed);
    std::string data;
    for (const auto& [name, shape] : expected_tensors(read_spec(spec_json))) {
        size_t count = 1;
        std::string dims;
        for (const int d : shape) {
            count *= static_cast<size_t>(d);
            if (!dims.empty()) dims += ',';
            dims += std::to_string(d);
        }
        const size_t fan_in = shape.size() > 1 ? count / static_cast<size_t>(shape[0]) : 1;
        std::normal_distribution<float> normal(0.0f, 1.0f / std::sqrt(static_cast<float>(fan_in)));
        header += ",\"" + name + R"(":{"dtype":"F32","shape":[)" + dims + R"(],"data_offsets":[)" +
                  std::to_string(data.size()) + "," + std::to_string(data.size() + 4 * count) + "]}";
        for (size_t i = 0; i < count; ++i) {
            const float value = normal(generator);
            data.append(reinterpret_cast<const char*>(&value), sizeof value);
        }
    }
    header += "}";
    while (header.size() % 8 != 0) header += ' ';
    std::string out;
    for (int i = 0; i < 8; ++i)
        out += static_cast<char>((static_cast<uint64_t>(header.size()) >> (8 * i)) & 255);
    return out + header + data;
}

// Pixels in, two actions held for four steps, a residual predictor: Two Rooms in small.
inline const char* const pixel_spec = R"({
"observation": {"shape": [2, 16, 16], "dtype": "uint8", "scale": 0.00392156862745098},
"actions": {"low": [-3, -3], "high": [3, 3]},
"modules": {
  "encoder": {"inputs": ["observation"], "blocks": [
     {"kind": "conv", "layers": [{"out": 8, "kernel": 4, "stride": 2, "padding": 1, "activation": "relu"},
                                 {"out": 12, "kernel": 3, "stride": 2, "padding": 1, "activation": "relu"}]},
     {"kind": "mlp", "layers": [{"out": 24}]}]},
  "predictor": {"inputs": ["state", "action"], "residual": true, "blocks": [
     {"kind": "mlp", "layers": [{"out": 40, "activation": "relu"}, {"out": 40, "activation": "relu"}, {"out": 24}]}]},
  "policy": {"inputs": ["state", "goal"], "blocks": [
     {"kind": "mlp", "layers": [{"out": 16, "activation": "mish"}, {"out": 2}]}]}},
"levels": [{"encoder": "encoder", "predictor": "predictor", "action_block": 4, "hold": true}],
"policy": "policy",
"cost": [{"kind": "goal_distance"}, {"kind": "action_size", "stage": 0.01, "terminal": 0.01},
         {"kind": "action_change", "stage": 0.02, "terminal": 0.02}],
"planner": {"horizon": 24, "candidates": 100, "iterations": 4, "elites": 12},
"version": 1})";

// EB-JEPA in small: a GRU cell predicts.
inline const char* const recurrent_spec = R"({
"observation": {"shape": [2, 16, 16], "dtype": "uint8", "scale": 0.00392156862745098},
"actions": {"low": [-3, -3], "high": [3, 3]},
"modules": {
  "encoder": {"inputs": ["observation"], "blocks": [
     {"kind": "impala", "channels": [4, 6]}, {"kind": "mlp", "layers": [{"out": 24, "norm": "layer"}]}]},
  "predictor": {"inputs": ["state", "action"], "combine": "cell", "blocks": [
     {"kind": "gru", "hidden": 24, "norm": "layer"}]},
  "policy": {"inputs": ["state", "goal"], "blocks": [
     {"kind": "mlp", "layers": [{"out": 16, "activation": "mish"}, {"out": 2}]}]}},
"levels": [{"encoder": "encoder", "predictor": "predictor", "action_block": 4, "hold": true}],
"policy": "policy",
"cost": [{"kind": "goal_distance", "metric": "squared_l2"}, {"kind": "action_size", "stage": 0.01, "terminal": 0.01},
         {"kind": "action_change", "stage": 0.02, "terminal": 0.02}],
"planner": {"horizon": 24, "candidates": 100, "iterations": 4, "elites": 12},
"version": 1})";

// LeWM in small: a transformer that looks back predicts from blocks of actions.
inline const char* const adaln_spec = R"({
"observation": {"shape": [2, 16, 16], "dtype": "uint8", "scale": 0.00392156862745098},
"actions": {"low": [-3, -3], "high": [3, 3]},
"modules": {
  "encoder": {"inputs": ["observation"], "blocks": [{"kind": "mlp", "layers": [{"out": 24, "norm": "layer"}]}]},
  "predictor": {"inputs": ["state", "action"], "combine": "adaln", "blocks": [
     {"kind": "adaln_transformer", "window": 3, "depth": 2, "width": 24, "heads": 3, "head_dim": 16, "hidden": 40,
      "embedding": 20},
     {"kind": "mlp", "layers": [{"out": 40, "activation": "gelu"}, {"out": 24}]}]},
  "policy": {"inputs": ["state", "goal"], "blocks": [
     {"kind": "mlp", "layers": [{"out": 16, "activation": "mish"}, {"out": 2}]}]}},
"levels": [{"encoder": "encoder", "predictor": "predictor", "action_block": 4}],
"policy": "policy",
"cost": [{"kind": "goal_distance", "metric": "squared_l2"}, {"kind": "action_size", "stage": 0.01, "terminal": 0.01},
         {"kind": "action_change", "stage": 0.02, "terminal": 0.02}],
"planner": {"horizon": 24, "candidates": 100, "iterations": 4, "elites": 12},
"version": 1})";

// TD-MPC2 in small: heads, a critic with an ensemble, a policy that proposes candidates and reads the goal.
inline const char* const heads_spec = R"({
"observation": {"shape": [2, 16, 16], "dtype": "uint8", "scale": 0.00392156862745098},
"actions": {"low": [-3, -3], "high": [3, 3]},
"modules": {
  "encoder": {"inputs": ["observation"], "blocks": [
     {"kind": "mlp", "layers": [{"out": 24, "norm": "layer+simnorm"}]}]},
  "predictor": {"inputs": ["state", "action"], "blocks": [
     {"kind": "mlp", "layers": [{"out": 40, "norm": "layer", "activation": "mish"}, {"out": 24, "norm": "layer+simnorm"}]}]},
  "policy": {"inputs": ["state", "goal"], "blocks": [{"kind": "mlp", "layers": [{"out": 16, "activation": "mish"}, {"out": 4}]}]},
  "reward": {"inputs": ["action", "state"], "blocks": [
     {"kind": "mlp", "layers": [{"out": 16, "norm": "layer", "activation": "mish"}, {"out": 21}]},
     {"kind": "two_hot", "bins": 21, "low": -5, "high": 5}]},
  "place": {"inputs": ["state"], "ensemble": 2, "blocks": [{"kind": "mlp", "layers": [{"out": 3}]}]},
  "q": {"inputs": ["state", "action", "goal"], "ensemble": 5, "blocks": [
     {"kind": "mlp", "layers": [{"out": 16, "norm": "layer", "activation": "mish"}, {"out": 21}]},
     {"kind": "two_hot", "bins": 21, "low": -5, "high": 5}]}},
"levels": [{"encoder": "encoder", "predictor": "predictor", "action_block": 4, "hold": true}],
"policy": "policy", "policy_head": "gaussian_tanh", "critic": "q", "discount": 0.97,
"cost": [{"kind": "reward", "module": "reward"}, {"kind": "critic", "stage": 0, "members": 2},
         {"kind": "goal_distance", "module": "place", "metric": "l1"}],
"planner": {"horizon": 24, "candidates": 100, "iterations": 4, "elites": 12, "elite_refit": true, "policy_candidates": 9},
"version": 1})";

// pixel_spec with five discrete actions.
inline const char* const discrete_spec = R"({
"observation": {"shape": [2, 16, 16], "dtype": "uint8", "scale": 0.00392156862745098},
"actions": {"kind": "discrete", "count": 5},
"modules": {
  "encoder": {"inputs": ["observation"], "blocks": [{"kind": "mlp", "layers": [{"out": 24}]}]},
  "predictor": {"inputs": ["state", "action"], "residual": true, "blocks": [
     {"kind": "mlp", "layers": [{"out": 40, "activation": "relu"}, {"out": 24}]}]},
  "policy": {"inputs": ["state", "goal"], "blocks": [
     {"kind": "mlp", "layers": [{"out": 16, "activation": "mish"}, {"out": 5}]}]}},
"levels": [{"encoder": "encoder", "predictor": "predictor", "action_block": 4, "hold": true}],
"policy": "policy", "policy_head": "categorical",
"cost": [{"kind": "goal_distance"}, {"kind": "action_size", "stage": 0.01, "terminal": 0.01},
         {"kind": "action_change", "stage": 0.02, "terminal": 0.02}],
"planner": {"algorithm": "categorical-cem", "horizon": 24, "candidates": 100, "iterations": 4, "elites": 12},
"version": 1})";

// No modules at all: the state is the observation, and rollouts come from a callback.
inline const char* const callback_spec = R"({
"observation": {"shape": [3]}, "actions": {"low": [-1, -1], "high": [1, 1]},
"planner": {"horizon": 6, "candidates": 50, "iterations": 3, "elites": 8}, "version": 1})";

}  // namespace pyjepa::testing
