// What a transformer does beside its dense layers: the part of body.hpp that normalises, attends and gates.
// Included there, so that it shares the vectors and elementary functions.

// y = LayerNorm(LayerNorm(x) * (1 + scale) + shift) * gamma + beta; the inner one has no parameters, eps
// 1e-6.
void modulated_norm(const float* x, ptrdiff_t ldx, int rows, int n, const float* shift, const float* scale,
                    ptrdiff_t ldm, const float* gamma, const float* beta, float* y, ptrdiff_t ldy) {
    const float inverse = 1.0f / static_cast<float>(n);
    for (int r = 0; r < rows; ++r, x += ldx, shift += ldm, scale += ldm, y += ldy) {
        const float mean = sum_row(x, n, [](V v) { return v; }) * inverse;
        const float squares = sum_row(x, n, [mean](V v) { return (v - mean) * (v - mean); });
        const float factor = 1.0f / __builtin_sqrtf(squares * inverse + 1e-6f);
        int j = 0;
        for (; j + W <= n; j += W)
            store(y + j, (load(x + j) - mean) * factor * (1.0f + load(scale + j)) + load(shift + j));
        if (j < n) {
            const int left = n - j;
            const V v = (load_part(x + j, left) - mean) * factor;
            store_part(y + j, v * (1.0f + load_part(scale + j, left)) + load_part(shift + j, left), left);
        }
        layer_norm_as<Act::none>(y, ldy, 1, n, gamma, beta);
    }
}

// x += gate * y
void add_gated(const float* y, ptrdiff_t ldy, const float* gate, ptrdiff_t ldg, int rows, int n, float* x,
               ptrdiff_t ldx) {
    for (int r = 0; r < rows; ++r, y += ldy, gate += ldg, x += ldx) {
        int j = 0;
        for (; j + W <= n; j += W) store(x + j, load(x + j) + load(gate + j) * load(y + j));
        if (j < n)
            store_part(x + j, load_part(x + j, n - j) + load_part(gate + j, n - j) * load_part(y + j, n - j),
                       n - j);
    }
}

// The products of two vectors of n, not yet summed.
inline V products(const float* a, const float* b, int n) {
    V total[2] = {};
    int j = 0;
    for (; j + 2 * W <= n; j += 2 * W) {
        total[0] += load(a + j) * load(b + j);
        total[1] += load(a + j + W) * load(b + j + W);
    }
    for (; j + W <= n; j += W) total[0] += load(a + j) * load(b + j);
    if (j < n) total[1] += load_part(a + j, n - j) * load_part(b + j, n - j);
    return total[0] + total[1];
}

// Heads side by side in the lanes of a vector: their softmax over the tokens needs no lane of another.
void attend(float* q, ptrdiff_t ldq, const Token* tokens, int count, int rows, int heads, int head_dim) {
    static_assert(W >= 4);
    const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(head_dim));
    const ptrdiff_t values = static_cast<ptrdiff_t>(heads) * head_dim;  // from a row's keys to its values
    alignas(64) float weight[kMaxWindow][W];
    for (int r = 0; r < rows; ++r, q += ldq)
        for (int h0 = 0; h0 < heads; h0 += W) {
            const int lanes = heads - h0 < W ? heads - h0 : W;
            float* const queries = q + static_cast<ptrdiff_t>(h0) * head_dim;
            const auto keys = [&](int i) {
                return tokens[i].keys + r * tokens[i].ld + static_cast<ptrdiff_t>(h0) * head_dim;
            };
            V top = splat(-__builtin_inff());
            for (int i = 0; i < count; ++i) {
                const float* const key = keys(i);
                for (int h = 0; h < W; h += 4) {
                    V parts[4] = {};
                    for (int g = 0; g < 4 && h + g < lanes; ++g)
                        parts[g] = products(queries + (h + g) * head_dim, key + (h + g) * head_dim, head_dim);
                    sums(parts, weight[i] + h);
                }
                top = vmax(load(weight[i]), top);
            }
            V total{};
            for (int i = 0; i < count; ++i) {
                const V e = vexp((load(weight[i]) - top) * scale);
                total += e;
                store(weight[i], e);
            }
            const V inverse = 1.0f / total;
            for (int i = 0; i < count; ++i) store(weight[i], load(weight[i]) * inverse);
            for (int h = 0; h < lanes; ++h) {
                const ptrdiff_t at = static_cast<ptrdiff_t>(h) * head_dim;
                int j = 0;
                for (; j + W <= head_dim; j += W) {
                    V mixed{};
                    for (int i = 0; i < count; ++i) mixed += weight[i][h] * load(keys(i) + values + at + j);
                    store(queries + at + j, mixed);
                }
                if (j < head_dim) {
                    V mixed{};
                    for (int i = 0; i < count; ++i)
                        mixed += weight[i][h] * load_part(keys(i) + values + at + j, head_dim - j);
                    store_part(queries + at + j, mixed, head_dim - j);
                }
            }
        }
}
