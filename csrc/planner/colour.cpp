#include "planner/colour.hpp"

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "planner/sampling.hpp"

namespace pyjepa {
namespace {

// cos(2 pi part / whole), 0 <= part < whole: within an eighth of a turn by its Taylor series.
double turn_cosine(int64_t part, int64_t whole) noexcept {
    constexpr double tau = 6.283185307179586;
    part = part * 2 > whole ? whole - part : part;  // cos(-x) = cos(x)
    if (part * 4 > whole) return -turn_cosine(whole - 2 * part, 2 * whole);
    const bool steep = part * 8 > whole;  // cos(x) = sin(quarter - x)
    const double x = steep ? tau * static_cast<double>(whole - 4 * part) / static_cast<double>(4 * whole)
                           : tau * static_cast<double>(part) / static_cast<double>(whole);
    double term = steep ? x : 1.0, total = term;
    for (int i = steep ? 2 : 1; i <= 20; i += 2) {
        term = -term * x * x / (static_cast<double>(i) * (i + 1));
        total += term;
    }
    return total;
}

double turn_sine(int64_t part, int64_t whole) noexcept {  // a quarter of a turn behind
    return turn_cosine((4 * part + 3 * whole) % (4 * whole), 4 * whole);
}

// ln n for n >= 1: its power of two, and the series of artanh for the rest.
double logarithm(int n) noexcept {
    int power = 0;
    double m = n;
    while (m > 1.5) m /= 2, ++power;
    const double t = (m - 1.0) / (m + 1.0);
    double term = t, total = 0.0;
    for (int i = 1; i < 40; i += 2) {
        total += term / i;
        term *= t * t;
    }
    return 2.0 * total + power * 0.6931471805599453;
}

}  // namespace

std::vector<float> colour_matrix(int knots, float beta) {
    const auto size = static_cast<size_t>(knots);
    std::vector<double> columns(size * size);  // (K, K), unscaled
    double variance = 0.0;
    size_t column = 0;
    for (int f = 0; column < size; ++f) {
        const double amplitude = stable_exp(-0.5 * static_cast<double>(beta) * logarithm(f < 1 ? 1 : f));
        // A frequency has a cosine and a sine; the constant and, of an even number, the alternation only one.
        const bool alone = f == 0 || 2 * f == knots;
        const double share = alone ? amplitude : std::sqrt(2.0) * amplitude;
        for (int part = 0; part < (alone ? 1 : 2); ++part, ++column)
            for (int k = 0; k < knots; ++k) {
                const int64_t at = static_cast<int64_t>(f) * k % knots;
                columns[static_cast<size_t>(k) * size + column] =
                    share * (part == 0 ? turn_cosine(at, knots) : turn_sine(at, knots));
            }
        variance += amplitude * amplitude * (alone ? 1.0 : 2.0);
    }
    std::vector<float> out(size * size);
    const double scale = 1.0 / std::sqrt(variance);
    for (size_t i = 0; i < out.size(); ++i) out[i] = static_cast<float>(columns[i] * scale);
    return out;
}

}  // namespace pyjepa
