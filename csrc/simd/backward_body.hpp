// Derivatives, row by row: the part of body.hpp that turns dL/dy into dL/dx. Included there, so that it
// shares the vectors and elementary functions.

// The derivative of apply(x, act). At the kink of ReLU 0, as in torch; there x may be the output as well.
inline V slope(V x, Act act) {
    const V one = splat(1.0f);
    switch (act) {
        case Act::none:
            return one;
        case Act::relu:
            return choose(x > 0.0f, one, V{});
        case Act::gelu:
            return 0.5f * (1.0f + verf(x * 0.70710678f)) + x * 0.39894228f * vexp(-0.5f * x * x);
        case Act::silu: {
            const V s = 1.0f / (1.0f + vexp(-x));
            return s * (1.0f + x * (1.0f - s));
        }
        case Act::mish: {
            const V e = vexp(vmin(x, splat(20.0f))), n = e * (e + 2.0f), t = n / (n + 2.0f);
            return choose(x > 20.0f, one, t + x * (1.0f - t * t) * (e / (1.0f + e)));
        }
        case Act::tanh: {
            const V t = vtanh(x);
            return 1.0f - t * t;
        }
    }
    return one;
}

void activate_backward(const float* x, ptrdiff_t ldx, int rows, int n, Act act, float* g, ptrdiff_t ldg) {
    for (int r = 0; r < rows; ++r, x += ldx, g += ldg)
        for_row(g, n, [x, act](V v, int at, int count) { return v * slope(load_part(x + at, count), act); });
}

void layer_norm_backward(const float* x, ptrdiff_t ldx, int rows, int n, const float* gamma, float* g,
                         ptrdiff_t ldg) {
    const float inverse = 1.0f / static_cast<float>(n);
    for (int r = 0; r < rows; ++r, x += ldx, g += ldg) {
        V total{};
        for (int j = 0; j < n; j += W) total += load_part(x + j, n - j < W ? n - j : W);
        const float mean = sum(total) * inverse;
        V squares{}, direct{}, along{};
        for (int j = 0; j < n; j += W) {
            const int count = n - j < W ? n - j : W;
            V d = load_part(x + j, count) - mean;
            for (int i = count; i < W; ++i) d[i] = 0.0f;
            const V weighted = load_part(g + j, count) * load_part(gamma + j, count);
            squares += d * d;
            direct += weighted;
            along += weighted * d;
        }
        const float scale = 1.0f / __builtin_sqrtf(sum(squares) * inverse + 1e-5f);
        const float level = sum(direct) * inverse, tilt = sum(along) * inverse * scale * scale;
        for_row(g, n, [&](V v, int at, int count) {
            return scale *
                   (v * load_part(gamma + at, count) - level - (load_part(x + at, count) - mean) * tilt);
        });
    }
}

void simnorm_backward(const float* y, ptrdiff_t ldy, int rows, int n, int group, float* g, ptrdiff_t ldg) {
    for (int r = 0; r < rows; ++r, y += ldy, g += ldg)
        for (int at = 0; at < n; at += group) {
            float level = 0.0f;
            for (int i = at; i < at + group; ++i) level += y[i] * g[i];
            for (int i = at; i < at + group; ++i) g[i] = y[i] * (g[i] - level);
        }
}

void gru_backward(const float* gates, ptrdiff_t ldgates, int stride, const float* h, ptrdiff_t ldh, int rows,
                  int n, float* g, ptrdiff_t ldg, float* d, ptrdiff_t ldd) {
    const auto sigmoid = [](V x) { return 1.0f / (1.0f + vexp(-x)); };
    for (int row = 0; row < rows; ++row, gates += ldgates, h += ldh, g += ldg, d += ldd)
        for (int j = 0; j < stride; j += W) {
            const int count = n - j < W ? (n - j < 0 ? 0 : n - j) : W;
            const float* const at = gates + j;
            const V r = sigmoid(load(at + stride)), z = sigmoid(load(at + 2 * stride));
            const V through = load(at + 3 * stride), fresh = vtanh(load(at) + r * through);
            const V slope = load_part(g + j, count);  // beyond n: 0, and so are all that follow from it
            const V sum = slope * (1.0f - z) * (1.0f - fresh * fresh);
            store(d + j, sum);
            store(d + j + stride, sum * through * r * (1.0f - r));
            store(d + j + 2 * stride, slope * (load_part(h + j, count) - fresh) * z * (1.0f - z));
            store(d + j + 3 * stride, sum * r);
            store_part(g + j, slope * z, count);
        }
}
