#include "agent_file/safetensors.hpp"

#include <algorithm>
#include <cstring>
#include <limits>
#include <string_view>

#include "agent_file/json.hpp"
#include "agent_file/limits.hpp"

namespace pyjepa {
namespace {

constexpr std::size_t length_bytes = 8;

std::uint64_t header_length(std::span<const std::byte> file) {
    if (file.empty()) invalid("file", "empty");
    if (file.size() < length_bytes) {
        invalid("file",
                "truncated: " + std::to_string(file.size()) + " bytes do not hold the header's length");
    }
    std::uint64_t length = 0;
    for (std::size_t i = 0; i < length_bytes; ++i)
        length |= std::to_integer<std::uint64_t>(file[i]) << (8 * i);
    if (length > limits::header_bytes) {
        invalid("header", "oversized: " + std::to_string(length) + " bytes, at most " +
                              std::to_string(limits::header_bytes) +
                              " are allowed (is this a safetensors file?)");
    }
    if (length > file.size() - length_bytes) {
        invalid("header", "truncated: " + std::to_string(length) + " bytes announced, " +
                              std::to_string(file.size() - length_bytes) + " present");
    }
    return length;
}

std::string read_metadata(const Json& header) {
    const auto found = header.find("__metadata__");
    if (found == header.end()) invalid("header", "key '__metadata__' is missing: not an agent file");
    const JsonObject metadata(*found, "header.__metadata__", {"pyjepa"});
    return as_text(metadata.at("pyjepa"), "header.__metadata__.pyjepa", limits::header_bytes);
}

TensorEntry read_entry(const std::string& name, const Json& value) {
    const std::string where = "tensor " + printable(name);
    const JsonObject object(value, where, {"dtype", "shape", "data_offsets"});
    TensorEntry entry;
    entry.name = name;
    const std::string& dtype = as_text(object.at("dtype"), object.where("dtype"), 16);
    if (dtype != "F32") invalid(where, "wrong dtype " + printable(dtype) + ", weights are 'F32'");

    std::uint64_t bytes = sizeof(float);
    const std::string shape = object.where("shape");
    for (const Json& size : as_list(object.at("shape"), shape, 0, limits::tensor_rank)) {
        // A weight's inner dimension is an activation's size, hence the cap on elements rather than on
        // dimensions.
        entry.shape.push_back(static_cast<int>(as_integer(size, shape, 0, limits::elements)));
        const auto factor = static_cast<std::uint64_t>(entry.shape.back());
        if (factor != 0 && bytes > std::numeric_limits<std::uint64_t>::max() / factor) {
            invalid(shape, "the tensor's size overflows");
        }
        bytes *= factor;
    }

    const std::string offsets = object.where("data_offsets");
    const Json& range = as_list(object.at("data_offsets"), offsets, 2, 2);
    constexpr auto far = std::numeric_limits<std::int64_t>::max();
    entry.begin = static_cast<std::uint64_t>(as_integer(range[0], offsets, 0, far));
    entry.end = static_cast<std::uint64_t>(as_integer(range[1], offsets, 0, far));
    if (entry.end < entry.begin) invalid(offsets, "ends before it begins");
    if (entry.begin % sizeof(float) != 0) {
        invalid(where, "misaligned: begins at byte " + std::to_string(entry.begin) + ", not a multiple of 4");
    }
    if (entry.end - entry.begin != bytes) {
        invalid(offsets, "span " + std::to_string(entry.end - entry.begin) + " bytes, the shape needs " +
                             std::to_string(bytes));
    }
    return entry;
}

// Tensors must tile the data: sorted by where they begin, each one begins where the one before it ends.
void check_layout(std::vector<TensorEntry>& tensors, std::uint64_t data_bytes) {
    std::sort(tensors.begin(), tensors.end(), [](const TensorEntry& a, const TensorEntry& b) {
        return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
    });
    std::uint64_t end = 0;
    const TensorEntry* before = nullptr;
    for (const TensorEntry& tensor : tensors) {
        const std::string where = "tensor " + printable(tensor.name);
        if (tensor.begin < end) invalid(where, "overlaps tensor " + printable(before->name));
        if (tensor.begin > end) {
            invalid(where, "gap: bytes " + std::to_string(end) + " to " + std::to_string(tensor.begin) +
                               " before it belong to no tensor");
        }
        if (tensor.end > data_bytes) {
            invalid(where, "truncated: ends at byte " + std::to_string(tensor.end) +
                               " of the data, which has " + std::to_string(data_bytes));
        }
        end = tensor.end;
        before = &tensor;
    }
    if (end != data_bytes) {
        invalid("file", std::to_string(data_bytes - end) + " trailing bytes after the last tensor");
    }
}

}  // namespace

SafetensorsHeader read_safetensors_header(std::span<const std::byte> file) {
    const auto length = static_cast<std::size_t>(header_length(file));
    const std::string_view text(reinterpret_cast<const char*>(file.data()) + length_bytes, length);
    const Json json = parse_json(text, "header");

    SafetensorsHeader header;
    header.spec = read_metadata(json);
    header.data_start = length_bytes + length;
    if (header.data_start % sizeof(float) != 0) {
        invalid("header", "misaligned: the data begins at byte " + std::to_string(header.data_start) +
                              ", not a multiple of 4");
    }
    for (const auto& entry : json.items()) {
        if (entry.key() != "__metadata__") header.tensors.push_back(read_entry(entry.key(), entry.value()));
    }
    check_layout(header.tensors, file.size() - header.data_start);
    return header;
}

}  // namespace pyjepa
