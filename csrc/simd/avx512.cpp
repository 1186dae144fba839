// AVX-512 (F, BW, DQ, VL): 32 registers of 16 floats.
#if defined(__AVX512F__)
#define PYJEPA_ISA avx512
#define PYJEPA_VECTOR 16
#define PYJEPA_TILE_ROWS 6
#define PYJEPA_TILE_VECTORS 4
#include "simd/body.hpp"
#endif
