// AVX2 with FMA: 16 registers of 8 floats.
#if defined(__AVX2__)
#define PYJEPA_ISA avx2
#define PYJEPA_VECTOR 8
#define PYJEPA_TILE_ROWS 6
#define PYJEPA_TILE_VECTORS 2
#include "simd/body.hpp"
#endif
