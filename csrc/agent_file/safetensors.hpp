// The safetensors container: eight bytes of header length (little-endian), a JSON header, then the tensors'
// bytes. Stricter than the format: one metadata key, float32 only, no gaps, no overlaps, nothing after the
// last tensor.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace pyjepa {

struct TensorEntry {
    std::string name;
    std::vector<int> shape;
    std::uint64_t begin = 0, end = 0;  // bytes, from the start of the data
};

struct SafetensorsHeader {
    std::string spec;                  // the text under the metadata key "pyjepa"
    std::vector<TensorEntry> tensors;  // in the order of their bytes, which they cover without gap
    std::size_t data_start = 0;        // offset of the data in the file, a multiple of 4
};

// Throws Error(PYJEPA_INVALID_FILE) naming what is wrong.
SafetensorsHeader read_safetensors_header(std::span<const std::byte> file);

}  // namespace pyjepa
