#if defined(__AVX2__)
#define PYJEPA_ISA avx2
#include "simd/noise_body.hpp"
#endif
