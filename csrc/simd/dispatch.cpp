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
#elif defined(__aarch64__)
namespace neon {
extern const Kernels table;
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
#elif defined(__aarch64__)
    static const Entry entries[] = {{&neon::table, true}, {&baseline::table, true}};
#else
    static const Entry entries[] = {{&baseline::table, true}};
#endif
    count = sizeof entries / sizeof entries[0];
    return entries;
}

struct Choice {
    const Kernels* kernels;
    const Bf16Kernels* bf16 = nullptr;
    const Int8Kernels* int8 = nullptr;
};

Choice choose() {
    size_t count = 0;
    const Entry* entries = begin_entries(count);
    const char* wanted = std::getenv("PYJEPA_ISA");
    const Bf16Kernels* bf16 = nullptr;
    const Int8Kernels* int8 = nullptr;
#if defined(__x86_64__)
    if (entries[0].available && __builtin_cpu_supports("avx512bf16")) bf16 = &avx512_bf16::table;
    if (entries[0].available && __builtin_cpu_supports("avx512vnni")) int8 = &avx512_vnni::table;
#endif
    if (wanted != nullptr && *wanted != '\0') {
        if (const Kernels* found = find_kernels(wanted)) return {found};
        // Processors have had VNNI longer than BF16.
        if (int8 != nullptr && std::strcmp(wanted, "avx512_vnni") == 0)
            return {entries[0].kernels, nullptr, int8};
        if (bf16 != nullptr && std::strcmp(wanted, "avx512_bf16") == 0)
            return {entries[0].kernels, bf16, int8};
        std::string known = bf16 != nullptr ? "avx512_bf16" : "";
        if (int8 != nullptr) known += std::string(known.empty() ? "" : ", ") + "avx512_vnni";
        for (size_t i = 0; i < count; ++i)
            if (entries[i].available)
                known += std::string(known.empty() ? "" : ", ") + entries[i].kernels->name;
        throw Error(PYJEPA_UNSUPPORTED, "PYJEPA_ISA: '" + std::string(wanted) +
                                            "' is not available here (available: " + known + ")");
    }
    for (size_t i = 0; i < count; ++i)
        if (entries[i].available) return {entries[i].kernels, bf16, int8};
    return {&baseline::table};
}

const Choice& chosen() {
    static const Choice choice = choose();
    return choice;
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
    return *chosen().kernels;
}

const Bf16Kernels* bf16_kernels() {
    return chosen().bf16;
}

const Int8Kernels* int8_kernels() {
    return chosen().int8;
}

const char* kernels_name(Precision precision) {
    if (precision == Precision::bf16) return bf16_kernels() == nullptr ? "" : "avx512_bf16";
    if (precision == Precision::int8) return int8_kernels() == nullptr ? "" : "avx512_vnni";
    return kernels().name;
}

}  // namespace pyjepa::simd
