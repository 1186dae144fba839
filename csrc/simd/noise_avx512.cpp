#if defined(__AVX512F__)
#define PYJEPA_ISA avx512
#include "simd/noise_body.hpp"
#endif
