#include "agent_file/mapping.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <new>
#include <system_error>

#include "agent_file/json.hpp"
#include "error.hpp"

namespace pyjepa {
namespace {

class Descriptor {
  public:
    explicit Descriptor(int fd) : fd_(fd) {}
    ~Descriptor() {
        if (fd_ >= 0) ::close(fd_);
    }
    Descriptor(const Descriptor&) = delete;
    Descriptor& operator=(const Descriptor&) = delete;
    int get() const { return fd_; }

  private:
    int fd_;
};

[[noreturn]] void io_error(const std::string& path, const std::string& reason) {
    throw Error(PYJEPA_IO, "cannot read " + printable(path) + ": " + reason);
}

std::string reason(int error) {
    return std::generic_category().message(error);
}

}  // namespace

SharedBytes map_file(const std::string& path) {
    if (path.find('\0') != path.npos) io_error(path, "the path holds a NUL byte");
    // Non-blocking, or opening a FIFO would wait for a writer.
    const Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
    if (file.get() < 0) io_error(path, reason(errno));
    struct stat status{};
    if (::fstat(file.get(), &status) != 0) io_error(path, reason(errno));
    if (S_ISDIR(status.st_mode)) io_error(path, reason(EISDIR));
    if (!S_ISREG(status.st_mode)) io_error(path, "not a regular file");
    const auto size = static_cast<std::size_t>(status.st_size);
    if (size == 0) return {};  // cannot be mapped; the reader names it
    void* data = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file.get(), 0);
    if (data == MAP_FAILED) io_error(path, reason(errno));
    std::shared_ptr<const void> owner(data, [size](void* mapped) { ::munmap(mapped, size); });
    return {std::move(owner), {static_cast<const std::byte*>(data), size}};
}

void release_mapped(std::span<const std::byte> bytes) noexcept {
    const auto page = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
    const auto begin = reinterpret_cast<std::uintptr_t>(bytes.data()) / page * page;
    const auto end = reinterpret_cast<std::uintptr_t>(bytes.data()) + bytes.size();
    if (!bytes.empty()) ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

SharedBytes copy_bytes(std::span<const std::byte> bytes) {
    if (bytes.empty()) return {};
    // operator new aligns for any fundamental type, so for float.
    std::shared_ptr<void> owner(::operator new(bytes.size()), [](void* data) { ::operator delete(data); });
    std::memcpy(owner.get(), bytes.data(), bytes.size());
    const auto* data = static_cast<const std::byte*>(owner.get());
    return {std::move(owner), {data, bytes.size()}};
}

}  // namespace pyjepa
