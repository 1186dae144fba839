// Container and spec put together: every tensor the spec calls for is there, in its shape, finite, and
// nothing else is.
#include "agent_file/agent_file.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <unordered_map>

#include "agent_file/json.hpp"
#include "agent_file/mapping.hpp"
#include "agent_file/safetensors.hpp"
#include "agent_file/shapes.hpp"

namespace pyjepa {
namespace {

static_assert(std::endian::native == std::endian::little, "weights are used as they lie in the file");

void check_finite(const std::string& name, std::span<const float> data) {
    // Adds up instead of stopping at the first, so that the compiler vectorises: files are nearly always
    // finite.
    std::size_t bad = 0;
    for (const float value : data) bad += (std::bit_cast<std::uint32_t>(value) & 0x7f800000u) == 0x7f800000u;
    if (bad == 0) return;
    std::size_t index = 0;
    while (std::isfinite(data[index])) ++index;
    invalid("tensor " + printable(name), "non-finite value " + std::to_string(data[index]) + " at element " +
                                             std::to_string(index) + " (" + std::to_string(bad) + " in all)");
}

void check_tied(const AgentFile& agent) {
    for (const auto& [tied, to] : tied_tensors(agent.spec)) {
        const std::span<const float> own = agent.tensors.at(tied).data, other = agent.tensors.at(to).data;
        const auto [differs, unused] = std::mismatch(own.begin(), own.end(), other.begin());
        if (differs != own.end()) {
            invalid("tensor " + printable(tied), "tied to " + printable(to) + ", but differs at element " +
                                                     std::to_string(differs - own.begin()));
        }
    }
}

AgentFile read(SharedBytes file, bool mapped) {
    SafetensorsHeader header = read_safetensors_header(file.bytes);
    AgentFile agent;
    agent.mapped = mapped;
    agent.spec = read_spec(header.spec);

    std::unordered_map<std::string, const TensorEntry*> found;
    for (const TensorEntry& entry : header.tensors) found.emplace(entry.name, &entry);
    const std::span<const std::byte> data = file.bytes.subspan(header.data_start);
    for (auto& [name, shape] : expected_tensors(agent.spec)) {
        const auto place = found.find(name);
        if (place == found.end()) invalid("tensor " + printable(name), "missing, the spec calls for it");
        const TensorEntry& entry = *place->second;
        if (entry.shape != shape) {
            invalid("tensor " + printable(name),
                    "wrong shape " + shape_text(entry.shape) + ", the spec calls for " + shape_text(shape));
        }
        const std::span<const float> values(reinterpret_cast<const float*>(data.data() + entry.begin),
                                            (entry.end - entry.begin) / sizeof(float));
        check_finite(name, values);
        agent.release(values);
        agent.tensors.emplace(name, Tensor{std::move(shape), values});
        found.erase(place);
    }
    for (const TensorEntry& entry : header.tensors) {
        if (found.contains(entry.name))
            invalid("tensor " + printable(entry.name), "unknown, the spec does not call for it");
    }
    check_tied(agent);
    agent.storage = std::move(file.owner);
    return agent;
}

}  // namespace

void AgentFile::release(std::span<const float> data) const noexcept {
    if (mapped) release_mapped(std::as_bytes(data));
}

AgentFile read_agent_file(const std::string& path) {
    return read(map_file(path), true);
}

AgentFile read_agent_bytes(std::span<const std::byte> bytes) {
    return read(copy_bytes(bytes), false);
}

}  // namespace pyjepa
