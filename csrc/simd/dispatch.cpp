// Chooses the instruction set once, at the first call.
#include <cstdlib>
#include <cstring>
#include <string>

#include "error.hpp"
#include "simd/kernels.hpp"

namespace pyjepa::simd {

namespace baseline {
extern const Kernels table;
}
#if defined(__x86_64__)
namespace avx2 {
extern const Kernels table;
}
namespace avx512 {
extern const Kernels table;
}
namespace avx512_bf16 {
extern const Bf16Kernels table;
}
namespace avx512_vnni {
extern const Int8Kernels table;
}
#endif

namespace {

struct Entry {
    const Kernels* kernels;
    bool available;
};

// Best first. The compiler's run-time check also asks whether the operating system saves the registers.
const Entry* begin_entries(size_t& count) noexcept {
#if defined(__x86_64__)
    static const Entry entries[] = {
        {&avx512::table, __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")},
        {&avx2::table, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")},
        {&baseline::table, true},
    };
#else
    static const Entry entries[] = {{&baseline::table, true}};
#endif
    count = sizeof entries / sizeof entries[0];
    return entries;
}

const Kernels& choose() {
    size_t count = 0;
    const Entry* entries = begin_entries(count);
    const char* wanted = std::getenv("PYJEPA_ISA");
    if (wanted != nullptr && *wanted != '\0') {
        if (const Kernels* found = find_kernels(wanted)) return *found;
        std::string known;
        for (size_t i = 0; i < count; ++i)
            if (entries[i].available)
                known += std::string(known.empty() ? "" : ", ") + entries[i].kernels->name;
        throw Error(PYJEPA_UNSUPPORTED, "PYJEPA_ISA: '" + std::string(wanted) +
                                            "' is not available here (available: " + known + ")");
    }
    for (size_t i = 0; i < count; ++i)
        if (entries[i].available) return *entries[i].kernels;
    return baseline::table;
}

}  // namespace

const Kernels* find_kernels(const char* name) noexcept {
    size_t count = 0;
    const Entry* entries = begin_entries(count);
    for (size_t i = 0; i < count; ++i)
        if (entries[i].available && std::strcmp(entries[i].kernels->name, name) == 0)
            return entries[i].kernels;
    return nullptr;
}

const Kernels& kernels() {
    static const Kernels& chosen = choose();
    return chosen;
}

const Bf16Kernels* bf16_kernels() {
#if defined(__x86_64__)
    if (&kernels() == &avx512::table && __builtin_cpu_supports("avx512bf16")) return &avx512_bf16::table;
#endif
    return nullptr;
}

const Int8Kernels* int8_kernels() {
#if defined(__x86_64__)
    if (&kernels() == &avx512::table && __builtin_cpu_supports("avx512vnni")) return &avx512_vnni::table;
#endif
    return nullptr;
}

}  // namespace pyjepa::simd
