// Derivatives of what transformer_body.hpp computes: a part of body.hpp, included there.

// Row by row, f(at, count) over vectors and what is left of them.
template <class F>
inline void along_row(int n, F f) {
    int j = 0;
    for (; j + W <= n; j += W) f(j, W);
    if (j < n) f(j, n - j);
}

void modulated_norm_backward(const float* x, ptrdiff_t ldx, int rows, int n, const float* shift,
                             const float* scale, ptrdiff_t ldm, const float* gamma, float* g, ptrdiff_t ldg,
                             float* dshift, float* dscale, ptrdiff_t ldd) {
    const float inverse = 1.0f / static_cast<float>(n);
    for (int r = 0; r < rows;
         ++r, x += ldx, shift += ldm, scale += ldm, g += ldg, dshift += ldd, dscale += ldd) {
        const float mean = sum_row(x, n, [](V v) { return v; }) * inverse;
        const float squares = sum_row(x, n, [mean](V v) { return (v - mean) * (v - mean); });
        const float factor = 1.0f / __builtin_sqrtf(squares * inverse + 1e-6f);
        const auto normed = [&](int at, int count) { return (load_part(x + at, count) - mean) * factor; };
        // What the outer norm was given, for a moment where its derivative will be.
        along_row(n, [&](int at, int count) {
            store_part(
                dshift + at,
                normed(at, count) * (1.0f + load_part(scale + at, count)) + load_part(shift + at, count),
                count);
        });
        layer_norm_backward(dshift, ldd, 1, n, gamma, g, ldg);
        V direct{}, along{};
        along_row(n, [&](int at, int count) {
            const V slope = load_part(g + at, count), unit = normed(at, count);
            store_part(dshift + at, slope, count);
            store_part(dscale + at, slope * unit, count);
            const V inner = slope * (1.0f + load_part(scale + at, count));  // 0 behind the end, as slope is
            direct += inner;
            along += inner * unit;
            store_part(g + at, inner, count);
        });
        const float level = sum(direct) * inverse, tilt = sum(along) * inverse;
        along_row(n, [&](int at, int count) {
            store_part(g + at, factor * (load_part(g + at, count) - level - normed(at, count) * tilt), count);
        });
    }
}

void gate_backward(const float* y, ptrdiff_t ldy, const float* gate, ptrdiff_t ldgate, int rows, int n,
                   const float* g, ptrdiff_t ldg, float* dy, ptrdiff_t lddy, float* dgate,
                   ptrdiff_t lddgate) {
    for (int r = 0; r < rows; ++r, y += ldy, gate += ldgate, g += ldg, dy += lddy, dgate += lddgate)
        along_row(n, [&](int at, int count) {
            const V slope = load_part(g + at, count);
            store_part(dy + at, slope * load_part(gate + at, count), count);
            store_part(dgate + at, slope * load_part(y + at, count), count);
        });
}

inline float dot(const float* a, const float* b, int n) {
    return sum(products(a, b, n));
}

void attend_backward(const float* q, ptrdiff_t ldq, const Token* tokens, float* const* slopes, int count,
                     int rows, int heads, int head_dim, float* g, ptrdiff_t ldg) {
    const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(head_dim));
    const ptrdiff_t values = static_cast<ptrdiff_t>(heads) * head_dim;
    float weight[kMaxWindow], slope[kMaxWindow];
    for (int r = 0; r < rows; ++r, q += ldq, g += ldg)
        for (int h = 0; h < heads; ++h) {
            const ptrdiff_t at = static_cast<ptrdiff_t>(h) * head_dim;
            const auto key = [&](int i) { return tokens[i].keys + r * tokens[i].ld + at; };
            const auto to = [&](int i) { return slopes[i] + r * tokens[i].ld + at; };
            float top = -__builtin_inff(), total = 0.0f, mean = 0.0f;
            for (int i = 0; i < count; ++i) {
                weight[i] = scale * dot(q + at, key(i), head_dim);
                slope[i] = dot(g + at, key(i) + values, head_dim);
                top = weight[i] > top ? weight[i] : top;
            }
            for (int i = 0; i < count; ++i) total += weight[i] = vexp(splat(weight[i] - top))[0];
            for (int i = 0; i < count; ++i) mean += (weight[i] /= total) * slope[i];
            for (int i = 0; i < count; ++i) slope[i] = scale * weight[i] * (slope[i] - mean);
            along_row(head_dim, [&](int j, int n) {
                const V query = load_part(q + at + j, n), found = load_part(g + at + j, n);
                V own{};
                for (int i = 0; i < count; ++i) {
                    own += slope[i] * load_part(key(i) + j, n);
                    float *const dkey = to(i) + j, *const dvalue = dkey + values;
                    store_part(dkey, load_part(dkey, n) + slope[i] * query, n);
                    store_part(dvalue, load_part(dvalue, n) + weight[i] * found, n);
                }
                store_part(g + at + j, own, n);
            });
        }
}
