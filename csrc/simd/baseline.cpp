// What every machine of this architecture has (SSE2 on x86-64): 16 registers of 4 floats.
#define PYJEPA_ISA baseline
#define PYJEPA_VECTOR 4
#define PYJEPA_TILE_ROWS 4
#define PYJEPA_TILE_VECTORS 2
#include "simd/body.hpp"
