// Twelve accumulators, two operands, nothing else: enough independent sums to hide the latency of the widest
// multiply-adds (4 to 6 cycles, two a cycle). In assembly, so that neither the compiler's flags nor its taste
// matter, and in sixteen registers, so that this file needs no flags.
#include "simd/peak.hpp"

#include <chrono>
#include <cstdint>

namespace pyjepa::simd {
namespace {

#if defined(__x86_64__)

#define PYJEPA_TWELVE(op, r)                                                                                \
    op " %%" r "12, %%" r "13, %%" r "0\n\t" op " %%" r "12, %%" r "13, %%" r "1\n\t" op " %%" r "12, %%" r \
       "13, %%" r "2\n\t" op " %%" r "12, %%" r "13, %%" r "3\n\t" op " %%" r "12, %%" r "13, %%" r         \
       "4\n\t" op " %%" r "12, %%" r "13, %%" r "5\n\t" op " %%" r "12, %%" r "13, %%" r "6\n\t" op " %%" r \
       "12, %%" r "13, %%" r "7\n\t" op " %%" r "12, %%" r "13, %%" r "8\n\t" op " %%" r "12, %%" r         \
       "13, %%" r "9\n\t" op " %%" r "12, %%" r "13, %%" r "10\n\t" op " %%" r "12, %%" r "13, %%" r        \
       "11\n\t"

// Zeroes everything, then runs `body` n times. Zeros take as long as other numbers.
#define PYJEPA_LOOP(zero, body, end)                                                                     \
    asm volatile(zero "1:\n\t" body "sub $1, %0\n\tjnz 1b\n\t" end                                       \
                 : "+r"(n)                                                                               \
                 :                                                                                       \
                 : "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", \
                   "xmm10", "xmm11", "xmm12", "xmm13")

// The formatter never settles on these.
// clang-format off
#define PYJEPA_ZERO(i) "vpxor %%xmm" i ", %%xmm" i ", %%xmm" i "\n\t"
#define PYJEPA_ZEROS                                                                                      \
    PYJEPA_ZERO("0")                                                                                      \
    PYJEPA_ZERO("1")                                                                                      \
    PYJEPA_ZERO("2") PYJEPA_ZERO("3") PYJEPA_ZERO("4") PYJEPA_ZERO("5") PYJEPA_ZERO("6") PYJEPA_ZERO("7") \
        PYJEPA_ZERO("8") PYJEPA_ZERO("9") PYJEPA_ZERO("10") PYJEPA_ZERO("11") PYJEPA_ZERO("12")           \
            PYJEPA_ZERO("13")

#define PYJEPA_SSE_ZERO(i) "xorps %%xmm" i ", %%xmm" i "\n\t"
#define PYJEPA_SSE_ZEROS                                                                                     \
    PYJEPA_SSE_ZERO("0")                                                                                     \
    PYJEPA_SSE_ZERO("1")                                                                                     \
    PYJEPA_SSE_ZERO("2") PYJEPA_SSE_ZERO("3") PYJEPA_SSE_ZERO("4") PYJEPA_SSE_ZERO("5") PYJEPA_SSE_ZERO("6") \
        PYJEPA_SSE_ZERO("7") PYJEPA_SSE_ZERO("8") PYJEPA_SSE_ZERO("9") PYJEPA_SSE_ZERO("10")                 \
            PYJEPA_SSE_ZERO("11") PYJEPA_SSE_ZERO("12")
// clang-format on

void fma512(int64_t n) noexcept {
    PYJEPA_LOOP(PYJEPA_ZEROS, PYJEPA_TWELVE("vfmadd231ps", "zmm"), "vzeroupper");
}
void fma256(int64_t n) noexcept {
    PYJEPA_LOOP(PYJEPA_ZEROS, PYJEPA_TWELVE("vfmadd231ps", "ymm"), "vzeroupper");
}
void bf16_512(int64_t n) noexcept {
    PYJEPA_LOOP(PYJEPA_ZEROS, PYJEPA_TWELVE("vdpbf16ps", "zmm"), "vzeroupper");
}
void int8_512(int64_t n) noexcept {
    PYJEPA_LOOP(PYJEPA_ZEROS, PYJEPA_TWELVE("vpdpbusd", "zmm"), "vzeroupper");
}
// Without fused instructions: six products, and six sums.
void mul_add128(int64_t n) noexcept {
    PYJEPA_LOOP(PYJEPA_SSE_ZEROS,
                "mulps %%xmm12, %%xmm0\n\taddps %%xmm12, %%xmm6\n\tmulps %%xmm12, %%xmm1\n\t"
                "addps %%xmm12, %%xmm7\n\tmulps %%xmm12, %%xmm2\n\taddps %%xmm12, %%xmm8\n\t"
                "mulps %%xmm12, %%xmm3\n\taddps %%xmm12, %%xmm9\n\tmulps %%xmm12, %%xmm4\n\t"
                "addps %%xmm12, %%xmm10\n\tmulps %%xmm12, %%xmm5\n\taddps %%xmm12, %%xmm11\n\t",
                "");
}

struct Loop {
    void (*run)(int64_t n) noexcept;
    double operations;  // per pass
};

Loop choose(Precision precision) noexcept {
    const bool wide = __builtin_cpu_supports("avx512f");
    switch (precision) {
        case Precision::fp32:
            if (wide) return {fma512, 12 * 16 * 2};
            if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return {fma256, 12 * 8 * 2};
            return {mul_add128, 12 * 4};
        case Precision::bf16:
            return wide && __builtin_cpu_supports("avx512bf16") ? Loop{bf16_512, 12 * 32 * 2}
                                                                : Loop{nullptr, 0};
        case Precision::int8:
            return wide && __builtin_cpu_supports("avx512vnni") ? Loop{int8_512, 12 * 64 * 2}
                                                                : Loop{nullptr, 0};
    }
    return {nullptr, 0};
}

#elif defined(__aarch64__)

// Sixteen accumulators: up to four a cycle, with a latency of four.
void fmla128(int64_t n) noexcept {
#define PYJEPA_FMLA(i) "fmla v" #i ".4s, v16.4s, v17.4s\n\t"
    asm volatile("1:\n\t" PYJEPA_FMLA(0) PYJEPA_FMLA(1) PYJEPA_FMLA(2) PYJEPA_FMLA(3) PYJEPA_FMLA(4)
                     PYJEPA_FMLA(5) PYJEPA_FMLA(6) PYJEPA_FMLA(7) PYJEPA_FMLA(8) PYJEPA_FMLA(9)
                         PYJEPA_FMLA(10) PYJEPA_FMLA(11) PYJEPA_FMLA(12) PYJEPA_FMLA(13) PYJEPA_FMLA(14)
                             PYJEPA_FMLA(15) "subs %0, %0, #1\n\tb.ne 1b"
                 : "+r"(n)
                 :
                 : "cc", "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v8", "v9", "v10", "v11", "v12",
                   "v13", "v14", "v15", "v16", "v17");
#undef PYJEPA_FMLA
}

struct Loop {
    void (*run)(int64_t n) noexcept;
    double operations;
};
Loop choose(Precision precision) noexcept {
    return precision == Precision::fp32 ? Loop{fmla128, 16 * 4 * 2} : Loop{nullptr, 0};
}

#else

struct Loop {
    void (*run)(int64_t n) noexcept;
    double operations;
};
Loop choose(Precision) noexcept {
    return {nullptr, 0};
}

#endif

}  // namespace

double measure_peak(Precision precision, double seconds) noexcept {
    using Clock = std::chrono::steady_clock;
    const Loop loop = choose(precision);
    if (loop.run == nullptr) return 0.0;
    constexpr int64_t passes = 100'000;  // a fraction of a millisecond: fits between two interruptions
    double best = 0.0;
    const auto start = Clock::now();
    auto before = start;
    do {
        loop.run(passes);
        const auto now = Clock::now();
        const double took = std::chrono::duration<double>(now - before).count();
        if (took > 0.0 && loop.operations * passes / took > best) best = loop.operations * passes / took;
        before = now;
    } while (std::chrono::duration<double>(before - start).count() < seconds);
    return best;
}

}  // namespace pyjepa::simd
