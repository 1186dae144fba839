#if defined(__aarch64__)
#define PYJEPA_ISA neon
#include "simd/noise_body.hpp"
#endif
