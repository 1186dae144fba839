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
        for (int j = 0; j < n; j += W) {
            const int count = n - j < W ? n - j : W;
            const V v = (load_part(x + j, count) - mean) * factor;
            store_part(y + j, v * (1.0f + load_part(scale + j, count)) + load_part(shift + j, count), count);
        }
        layer_norm_as<Act::none>(y, ldy, 1, n, gamma, beta);
    }
}

// x += gate * y
void add_gated(const float* y, ptrdiff_t ldy, const float* gate, ptrdiff_t ldg, int rows, int n, float* x,
               ptrdiff_t ldx) {
    for (int r = 0; r < rows; ++r, y += ldy, gate += ldg, x += ldx)
        for_row(x, n, [y, gate](V v, int at, int count) {
            return v + load_part(gate + at, count) * load_part(y + at, count);
        });
}

// Of one query and one key; `whole`: n is a multiple of the vector.
inline float dot(const float* a, const float* b, int n) {
    V total[2] = {};
    int j = 0;
    for (; j + 2 * W <= n; j += 2 * W) {
        total[0] += load(a + j) * load(b + j);
        total[1] += load(a + j + W) * load(b + j + W);
    }
    for (; j + W <= n; j += W) total[0] += load(a + j) * load(b + j);
    if (j < n) total[1] += load_part(a + j, n - j) * load_part(b + j, n - j);
    return sum(total[0] + total[1]);
}

void attend(float* q, ptrdiff_t ldq, const Token* tokens, int count, int rows, int heads, int head_dim) {
    const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(head_dim));
    const int values = heads * head_dim;  // from a row's keys to its values
    for (int r = 0; r < rows; ++r, q += ldq)
        for (int h = 0; h < heads; ++h) {
            float* const query = q + h * head_dim;
            const auto key = [&](int i) { return tokens[i].keys + r * tokens[i].ld + h * head_dim; };
            float weight[kMaxWindow + W];
            float top = 0.0f;
            for (int i = 0; i < count; ++i) {
                weight[i] = dot(query, key(i), head_dim) * scale;
                top = i == 0 || weight[i] > top ? weight[i] : top;
            }
            float total = 0.0f;
            for (int i = 0; i < count; i += W) {
                store(weight + i, vexp(load_part(weight + i, count - i < W ? count - i : W) - top));
                for (int j = i; j < count && j < i + W; ++j) total += weight[j];
            }
            for (int i = 0; i < count; ++i) weight[i] /= total;
            for (int j = 0; j < head_dim; j += W) {
                const int part = head_dim - j < W ? head_dim - j : W;
                V mixed{};
                for (int i = 0; i < count; ++i) mixed += weight[i] * load_part(key(i) + values + j, part);
                store_part(query + j, mixed, part);
            }
        }
}
