// NEON, which every AArch64 machine has: 32 registers of 4 floats, and unlike the baseline fused
// multiply-add.
#if defined(__aarch64__)
#define PYJEPA_ISA neon
#define PYJEPA_VECTOR 4
#define PYJEPA_TILE_ROWS 6
#define PYJEPA_TILE_VECTORS 4
#include "simd/body.hpp"
#endif
