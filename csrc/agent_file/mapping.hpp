// Bytes behind a shared owner: a file mapped read-only, or a copy aligned for any tensor.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>

namespace pyjepa {

struct SharedBytes {
    std::shared_ptr<const void> owner;
    std::span<const std::byte> bytes;
};

// Takes mapped pages out of memory; the next read brings them back from the file.
void release_mapped(std::span<const std::byte> bytes) noexcept;

SharedBytes map_file(const std::string& path);  // throws Error(PYJEPA_IO)
SharedBytes copy_bytes(std::span<const std::byte> bytes);

}  // namespace pyjepa
