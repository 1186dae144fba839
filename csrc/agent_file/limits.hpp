// The caps on what an agent file may ask for. They bound memory and time before anything is allocated for a
// file from a stranger, and keep every size in the engine within 32 bits. docs/agent-file.md lists them.
#pragma once

#include <cstddef>
#include <cstdint>

namespace pyjepa::limits {

// The container and its JSON.
inline constexpr std::uint64_t header_bytes = std::uint64_t{16} << 20;
inline constexpr std::size_t json_nesting = 32;
inline constexpr std::size_t json_values = std::size_t{1} << 20;  // parsed, about 100 bytes each
inline constexpr std::size_t tensor_rank = 8;

// Networks.
inline constexpr int dimension = 1 << 20;          // of any tensor, layer or action
inline constexpr std::int64_t elements = 1 << 24;  // of an observation or any activation
inline constexpr std::size_t observation_rank = 8;
inline constexpr std::size_t modules = 64;
inline constexpr std::size_t blocks = 256;  // in a module
inline constexpr std::size_t layers = 256;  // in a block
inline constexpr std::size_t levels = 16;
inline constexpr int ensemble = 64;
inline constexpr float symlog = 80.0f;  // exp of it still fits in float32
inline constexpr int tokens = 4096;     // of a vision transformer
inline constexpr int kernel = 255;
inline constexpr int stride = 255;
inline constexpr int window = 256;  // states that a transformer looks back on; simd::kMaxWindow

// Cost and planner.
inline constexpr std::size_t cost_terms = 64;
inline constexpr int action_block = 1000;
inline constexpr int horizon = 100000;
inline constexpr int candidates = 1 << 20;
inline constexpr int iterations = 10000;
inline constexpr float std = 10.0f;
inline constexpr float noise_beta = 10.0f;
inline constexpr float learning_rate = 10.0f;
inline constexpr int restarts = 4096;
inline constexpr int branching = 1024;
inline constexpr std::int64_t plan_elements = std::int64_t{1} << 28;  // candidates * horizon * A

// Text, in bytes.
inline constexpr std::size_t module_name = 64;
inline constexpr std::size_t agent_name = 256;
inline constexpr std::size_t provenance_entries = 256;
inline constexpr std::size_t provenance_key = 256;
inline constexpr std::size_t provenance_value = 1 << 16;

}  // namespace pyjepa::limits
