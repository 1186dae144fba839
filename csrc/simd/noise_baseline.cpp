#define PYJEPA_ISA baseline
#include "simd/noise_body.hpp"
