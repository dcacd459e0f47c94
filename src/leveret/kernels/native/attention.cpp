// Causal attention over packed documents, rotary positions included, forward and backward.
//
// A row of training data holds many short documents side by side. The general way moves every document into a row of
// its own, rotates, multiplies, masks, and moves all back: a dozen passes over memory for very little arithmetic. Here
// one task is one document and one key-value head: its keys and values are rotated into buffers that stay in the
// cache, and its queries pass by in blocks of four. The scores of a block live in registers and one small buffer; the
// logarithm of each row's sum is kept, so that backward finds the probabilities again without storing them
// (FlashAttention's recomputation, 2205.14135). A task writes rows and heads that no other task writes, so the result
// does not depend on the number of threads.
//
// Layouts: query, out (tokens, H, D); key, value (tokens, K, D); cos, signed_sin (tokens, D); log_sums (tokens, H).
// A document is a run of tokens; it may look back `window` tokens (0: all). Rotation turns the pair (i, i + D/2):
// turned[i] = x[i] cos[i] + x[i +- D/2] signed_sin[i], the minus is in signed_sin.
#include "numbers.h"

#include <algorithm>
#include <vector>

namespace {

constexpr int ROWS = 4;    // queries of a block
constexpr int LANES = 32;  // numbers of a tile: two 512-bit registers

struct Shape {
    int64_t heads, groups, width, window;
    int64_t per_group() const { return heads / groups; }
};

int64_t padded(int64_t length) { return (length + LANES - 1) / LANES * LANES; }

// One token's vector, turned, as float32 times `factor`.
void turn(const bfloat16* x, const bfloat16* cos, const bfloat16* signed_sin, int64_t width, float factor, float* out) {
    int64_t half = width / 2;
#pragma omp simd
    for (int64_t i = 0; i < half; i++) {
        float a = to_float(x[i]), b = to_float(x[i + half]);
        out[i] = factor * (a * to_float(cos[i]) + b * to_float(signed_sin[i]));
        out[i + half] = factor * (b * to_float(cos[i + half]) + a * to_float(signed_sin[i + half]));
    }
}

// The gradient of `turn` by its input.
void turn_back(const float* slope, const bfloat16* cos, const bfloat16* signed_sin, int64_t width, float factor,
               bfloat16* out) {
    int64_t half = width / 2;
#pragma omp simd
    for (int64_t i = 0; i < half; i++) {
        float a = slope[i], b = slope[i + half];
        out[i] = to_bfloat16(factor * (a * to_float(cos[i]) + b * to_float(signed_sin[i + half])));
        out[i + half] = to_bfloat16(factor * (b * to_float(cos[i + half]) + a * to_float(signed_sin[i])));
    }
}

void widen(const bfloat16* x, int64_t width, float* out) {
#pragma omp simd
    for (int64_t i = 0; i < width; i++) out[i] = to_float(x[i]);
}

void transpose(const float* rows, int64_t length, int64_t width, int64_t stride, float* out) {
    for (int64_t i = 0; i < width; i++) {
        for (int64_t j = 0; j < length; j++) out[i * stride + j] = rows[j * width + i];
        for (int64_t j = length; j < stride; j++) out[i * stride + j] = 0.0f;
    }
}

// out[r][first .. last) = left[r] . columns, for ROWS rows; `columns` is (inner, stride), first a multiple of LANES.
void products(const float* left, int64_t inner, const float* columns, int64_t stride, int64_t first, int64_t last,
              float* out) {
    for (int64_t tile = first; tile < last; tile += LANES) {
        float sums[ROWS][LANES] = {};
        for (int64_t i = 0; i < inner; i++) {
            const float* column = columns + i * stride + tile;
            for (int r = 0; r < ROWS; r++) {
                float factor = left[r * inner + i];
#pragma omp simd
                for (int lane = 0; lane < LANES; lane++) sums[r][lane] += factor * column[lane];
            }
        }
        for (int r = 0; r < ROWS; r++) std::memcpy(out + r * stride + tile, sums[r], sizeof sums[r]);
    }
}

// out[r] = sum over j in [first, last) of weights[r][j] * rows[j], for ROWS rows of `width`.
void weighted(const float* weights, int64_t stride, const float* rows, int64_t width, int64_t first, int64_t last,
              float* out) {
    for (int64_t tile = 0; tile < width; tile += LANES) {
        float sums[ROWS][LANES] = {};
        for (int64_t j = first; j < last; j++) {
            const float* row = rows + j * width + tile;
            for (int r = 0; r < ROWS; r++) {
                float factor = weights[r * stride + j];
#pragma omp simd
                for (int lane = 0; lane < LANES; lane++) sums[r][lane] += factor * row[lane];
            }
        }
        for (int r = 0; r < ROWS; r++) std::memcpy(out + r * width + tile, sums[r], sizeof sums[r]);
    }
}

// rows[j] += sum over r of weights[r][j] * left[r], for j in [first, last).
void spread(const float* weights, int64_t stride, const float* left, int64_t width, int64_t first, int64_t last,
            float* rows) {
    for (int64_t j = first; j < last; j++) {
        float* row = rows + j * width;
        float a = weights[j], b = weights[stride + j], c = weights[2 * stride + j], d = weights[3 * stride + j];
#pragma omp simd
        for (int64_t i = 0; i < width; i++)
            row[i] += a * left[i] + b * left[width + i] + c * left[2 * width + i] + d * left[3 * width + i];
    }
}

struct Span {
    int64_t first, last;  // keys that a query reads
    Span(int64_t query, int64_t window) : first(window > 0 ? std::max<int64_t>(0, query - window + 1) : 0), last(query + 1) {}
};

// A document's keys and values of one group in float32, turned and transposed as the two directions need them.
struct Loaded {
    std::vector<float> key, value, key_columns, value_columns;
    void load(const bfloat16* k, const bfloat16* v, const bfloat16* cos, const bfloat16* sin, int64_t length,
              int64_t step, int64_t width, int64_t stride, bool backward) {
        key.resize(size_t(length * width));
        value.resize(size_t(length * width));
        key_columns.resize(size_t(stride * width));
        for (int64_t j = 0; j < length; j++) {
            turn(k + j * step, cos + j * width, sin + j * width, width, 1.0f, key.data() + j * width);
            widen(v + j * step, width, value.data() + j * width);
        }
        transpose(key.data(), length, width, stride, key_columns.data());
        if (backward) {
            value_columns.resize(size_t(stride * width));
            transpose(value.data(), length, width, stride, value_columns.data());
        }
    }
};

// Scores of ROWS rows become probabilities in place, 0 outside each row's span; log_sums[r] = log sum exp.
void soften(float* scores, int64_t stride, int64_t query, int64_t rows, int64_t low, int64_t high, int64_t window,
            float* log_sums) {
    for (int64_t r = 0; r < ROWS; r++) {
        float* row = scores + r * stride;
        if (r >= rows) {
            std::fill(row + low, row + high, 0.0f);
            continue;
        }
        Span span(query + r, window);
        float highest = -INFINITY, sum = 0.0f;
#pragma omp simd reduction(max : highest)
        for (int64_t j = span.first; j < span.last; j++) highest = row[j] > highest ? row[j] : highest;
#pragma omp simd reduction(+ : sum)
        for (int64_t j = span.first; j < span.last; j++) {
            row[j] = exponential(row[j] - highest);
            sum += row[j];
        }
        float share = 1.0f / sum;
#pragma omp simd
        for (int64_t j = span.first; j < span.last; j++) row[j] *= share;
        std::fill(row + low, row + span.first, 0.0f);
        std::fill(row + span.last, row + high, 0.0f);
        log_sums[r] = highest + std::log(sum);
    }
}

}  // namespace

LEVERET_EXPORT void leveret_packed_attention(const bfloat16* query, const bfloat16* key, const bfloat16* value,
                                             const bfloat16* cos, const bfloat16* signed_sin, const int64_t* starts,
                                             const int64_t* lengths, int64_t documents, int64_t heads, int64_t groups,
                                             int64_t width, int64_t window, bfloat16* out, float* log_sums,
                                             int threads) {
    Shape shape{heads, groups, width, window};
    float scale = 1.0f / std::sqrt(float(width));
#pragma omp parallel num_threads(threads)
    {
        Loaded loaded;
        std::vector<float> turned(size_t(ROWS * width)), answer(size_t(ROWS * width)), scores;
#pragma omp for schedule(dynamic, 4)
        for (int64_t task = 0; task < documents * groups; task++) {
            int64_t start = starts[task / groups], length = lengths[task / groups], group = task % groups;
            int64_t stride = padded(length);
            const bfloat16 *c = cos + start * width, *s = signed_sin + start * width;
            int64_t offset = (start * groups + group) * width;
            loaded.load(key + offset, value + offset, c, s, length, groups * width, width, stride, false);
            scores.resize(size_t(ROWS * stride));
            for (int64_t head = group * shape.per_group(); head < (group + 1) * shape.per_group(); head++) {
                for (int64_t i = 0; i < length; i += ROWS) {
                    int64_t rows = std::min<int64_t>(ROWS, length - i);
                    for (int64_t r = 0; r < rows; r++)
                        turn(query + ((start + i + r) * heads + head) * width, c + (i + r) * width, s + (i + r) * width,
                             width, scale, turned.data() + r * width);
                    int64_t low = Span(i, window).first / LANES * LANES, high = padded(i + rows);
                    products(turned.data(), width, loaded.key_columns.data(), stride, low, high, scores.data());
                    float sums[ROWS];
                    soften(scores.data(), stride, i, rows, low, high, window, sums);
                    weighted(scores.data(), stride, loaded.value.data(), width, low, i + rows, answer.data());
                    for (int64_t r = 0; r < rows; r++) {
                        bfloat16* target = out + ((start + i + r) * heads + head) * width;
                        for (int64_t d = 0; d < width; d++) target[d] = to_bfloat16(answer[size_t(r * width + d)]);
                        log_sums[(start + i + r) * heads + head] = sums[r];
                    }
                }
            }
        }
    }
}

LEVERET_EXPORT void leveret_packed_attention_backward(
    const bfloat16* dout, const bfloat16* query, const bfloat16* key, const bfloat16* value, const bfloat16* out,
    const float* log_sums, const bfloat16* cos, const bfloat16* signed_sin, const int64_t* starts,
    const int64_t* lengths, int64_t documents, int64_t heads, int64_t groups, int64_t width, int64_t window,
    bfloat16* dquery, bfloat16* dkey, bfloat16* dvalue, int threads) {
    Shape shape{heads, groups, width, window};
    float scale = 1.0f / std::sqrt(float(width));
#pragma omp parallel num_threads(threads)
    {
        Loaded loaded;
        std::vector<float> turned(size_t(ROWS * width)), slope(size_t(ROWS * width)), answer(size_t(ROWS * width));
        std::vector<float> chances, slopes, key_slope, value_slope;
#pragma omp for schedule(dynamic, 4)
        for (int64_t task = 0; task < documents * groups; task++) {
            int64_t start = starts[task / groups], length = lengths[task / groups], group = task % groups;
            int64_t stride = padded(length), step = groups * width;
            const bfloat16 *c = cos + start * width, *s = signed_sin + start * width;
            int64_t offset = (start * groups + group) * width;
            loaded.load(key + offset, value + offset, c, s, length, step, width, stride, true);
            chances.resize(size_t(ROWS * stride));
            slopes.resize(size_t(ROWS * stride));
            key_slope.assign(size_t(length * width), 0.0f);
            value_slope.assign(size_t(length * width), 0.0f);
            for (int64_t head = group * shape.per_group(); head < (group + 1) * shape.per_group(); head++) {
                for (int64_t i = 0; i < length; i += ROWS) {
                    int64_t rows = std::min<int64_t>(ROWS, length - i);
                    std::fill(turned.begin(), turned.end(), 0.0f);
                    std::fill(slope.begin(), slope.end(), 0.0f);
                    float delta[ROWS] = {};
                    for (int64_t r = 0; r < rows; r++) {
                        int64_t place = ((start + i + r) * heads + head) * width;
                        turn(query + place, c + (i + r) * width, s + (i + r) * width, width, scale,
                             turned.data() + r * width);
                        widen(dout + place, width, slope.data() + r * width);
                        float dot = 0.0f;
#pragma omp simd reduction(+ : dot)
                        for (int64_t d = 0; d < width; d++) dot += to_float(dout[place + d]) * to_float(out[place + d]);
                        delta[r] = dot;
                    }
                    int64_t low = Span(i, window).first / LANES * LANES, high = padded(i + rows);
                    products(turned.data(), width, loaded.key_columns.data(), stride, low, high, chances.data());
                    products(slope.data(), width, loaded.value_columns.data(), stride, low, high, slopes.data());
                    for (int64_t r = 0; r < ROWS; r++) {
                        float *chance = chances.data() + r * stride, *steep = slopes.data() + r * stride;
                        Span span = r < rows ? Span(i + r, window) : Span(-1, 0);
                        float log_sum = r < rows ? log_sums[(start + i + r) * heads + head] : 0.0f;
                        std::fill(chance + low, chance + std::max(low, span.first), 0.0f);
                        std::fill(steep + low, steep + std::max(low, span.first), 0.0f);
#pragma omp simd
                        for (int64_t j = span.first; j < span.last; j++) {
                            chance[j] = exponential(chance[j] - log_sum);
                            steep[j] = chance[j] * (steep[j] - delta[r]);
                        }
                        std::fill(chance + std::max(low, span.last), chance + high, 0.0f);
                        std::fill(steep + std::max(low, span.last), steep + high, 0.0f);
                    }
                    weighted(slopes.data(), stride, loaded.key.data(), width, low, i + rows, answer.data());
                    spread(slopes.data(), stride, turned.data(), width, low, i + rows, key_slope.data());
                    spread(chances.data(), stride, slope.data(), width, low, i + rows, value_slope.data());
                    for (int64_t r = 0; r < rows; r++)
                        turn_back(answer.data() + r * width, c + (i + r) * width, s + (i + r) * width, width, scale,
                                  dquery + ((start + i + r) * heads + head) * width);
                }
            }
            for (int64_t j = 0; j < length; j++) {
                turn_back(key_slope.data() + j * width, c + j * width, s + j * width, width, 1.0f,
                          dkey + offset + j * step);
                for (int64_t d = 0; d < width; d++)
                    dvalue[offset + j * step + d] = to_bfloat16(value_slope[size_t(j * width + d)]);
            }
        }
    }
}
