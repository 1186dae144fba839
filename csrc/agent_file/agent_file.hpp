// Reading an agent file: a safetensors container with the spec under one metadata key. The only validator
// there is.
//
// Everything read here comes from strangers. `read_agent_file` either returns a spec and tensors that fit
// each other exactly, or throws Error(PYJEPA_INVALID_FILE or PYJEPA_UNSUPPORTED) whose message names what is
// wrong and where.
#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "model/spec.hpp"

namespace pyjepa {

struct Tensor {
    std::vector<int> shape;
    std::span<const float> data;  // points into AgentFile::storage; aligned for float
};

struct AgentFile {
    Spec spec;
    std::map<std::string, Tensor> tensors;  // by name: module.block.param
    std::shared_ptr<const void> storage;    // keeps the mapping or buffer behind the tensors alive
    bool mapped = false;

    // Gives a tensor's memory back until it is read again, where the file is mapped: a reader that takes one
    // tensor after the other never holds the whole file.
    void release(std::span<const float> data) const noexcept;
};

AgentFile read_agent_file(const std::string& path);            // maps the file
AgentFile read_agent_bytes(std::span<const std::byte> bytes);  // copies the bytes

// The spec alone, checked against nothing but itself.
Spec read_spec(const std::string& json);

// Every tensor a spec calls for, by name, with its shape; in file order of modules, blocks and parameters.
std::vector<std::pair<std::string, std::vector<int>>> expected_tensors(const Spec& spec);

// The shape of a module's combined input: (C, H, W) where its only input is an image, else (size,).
Shape module_input_shape(const Spec& spec, const ModuleSpec& module);

// The shape after one block. Throws Error(PYJEPA_INVALID_FILE) naming `where` if the block does not fit its
// input.
Shape block_output_shape(const BlockSpec& block, const Shape& input, const std::string& where);

}  // namespace pyjepa
