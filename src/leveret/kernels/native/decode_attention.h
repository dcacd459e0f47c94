// What a decode step does to a row between its products: norms, rotation, the cache, and attention over it.
#pragma once

#include "decode_linear.h"

namespace {

constexpr int64_t HEADS = 4;  // that read a value together

struct Expert {
    Linear gate, up, down;
};

struct Layer {
    const bfloat16 *attention_norm, *feed_forward_norm;
    Linear query, key, value, out;
    const bfloat16* router;  // (experts, hidden); null: there is one, and every row goes to it
    const Expert* experts;
    bfloat16 *keys, *values;  // the cache: (blocks, groups, tokens of a block, width)
};

struct Shape {
    int64_t layers, hidden, heads, groups, width, intermediate, window, experts, chosen;
    double eps;
    int64_t rounds_before_scale;
};

// Where the cache keeps each row's tokens: token s of a row is token s % tokens of block tables[s / tokens].
struct Places {
    const int64_t* tables;  // (rows, blocks); rows may share blocks, and be several new tokens of one sequence
    int64_t blocks, tokens;

    int64_t at(const Shape& shape, int64_t row, int64_t group, int64_t token) const {
        int64_t block = tables[row * blocks + token / tokens];
        return ((block * shape.groups + group) * tokens + token % tokens) * shape.width;
    }

    // Calls use(first token, one past the last, their numbers in a group) for each block that holds some of [first, end).
    // The other groups' numbers follow those, so whoever reads several groups at once reads what lies together.
    template <class Use>
    void pieces(const Shape& shape, const bfloat16* cache, int64_t row, int64_t group, int64_t first, int64_t end,
                Use use) const {
        while (first < end) {
            int64_t next = std::min(end, (first / tokens + 1) * tokens);
            use(first, next, cache + at(shape, row, group, first));
            first = next;
        }
    }
};

// x <- x + added (if there is any), then its norm.
void norm_row(const Shape& shape, bfloat16* x, const bfloat16* added, const bfloat16* weight, Rows& out, int64_t row) {
    int64_t hidden = shape.hidden;
    floats squares{};
    for (int64_t i = 0; i < hidden; i += LANES) {
        if (added != nullptr) store(load(x + i) + load(added + i), x + i);
        floats value = load(x + i);
        squares += value * value;
    }
    float scale = 1.0f / std::sqrt(sum_of(squares) / float(hidden) + float(shape.eps));
    for (int64_t i = 0; i < hidden; i += LANES) {
        floats normed = load(x + i) * scale;
        if (shape.rounds_before_scale) normed = rounded(normed);
        out.put(normed * load(weight + i), row * hidden + i);
    }
}

// (a, b) -> (a cos - b sin, b cos + a sin), rounded as the decoder does it: the first product on its own.
void turn(const bfloat16* x, const bfloat16* cos, const bfloat16* signed_sin, int64_t width, bfloat16* out) {
    int64_t half = width / 2;
    for (int64_t i = 0; i < half; i += LANES) {
        floats a = load(x + i), b = load(x + i + half);
        store(rounded(a * load(cos + i)) + b * load(signed_sin + i), out + i);
        store(rounded(b * load(cos + i + half)) + a * load(signed_sin + i + half), out + i + half);
    }
}

// The new key and value of one group of one row go to the cache.
void keep(const Shape& shape, const Layer& layer, int64_t place, const bfloat16* key, const bfloat16* value,
          const bfloat16* cos, const bfloat16* signed_sin) {
    turn(key, cos, signed_sin, shape.width, layer.keys + place);
    std::memcpy(layer.values + place, value, size_t(shape.width) * sizeof(bfloat16));
}

// What one query gives to up to LANES keys that lie together: out[s].
void score(const bfloat16* keys, int64_t count, const bfloat16* query, int64_t width, float factor, float* out) {
    floats parts[LANES];
    for (int64_t s = 0; s < LANES; s++) parts[s] = parts_of_dot(keys + std::min(s, count - 1) * width, query, width);
    floats scores = sums_of(parts) * factor;
    if (count == LANES) return store(scores, out);
    for (int64_t s = 0; s < count; s++) out[s] = scores[s];
}

// The same values for H heads, T registers of them: sums (H, width) += scores (H, stride)[s] * values (s, :).
template <int H, int T>
void mix_registers(const bfloat16* values, int64_t count, const float* scores, int64_t stride, int64_t width, float* sums) {
    floats parts[H][T];
    for (int h = 0; h < H; h++)
        for (int n = 0; n < T; n++) parts[h][n] = load(sums + h * width + n * LANES);
    for (int64_t s = 0; s < count; s++) {
        floats value[T];
        for (int n = 0; n < T; n++) value[n] = load(values + s * width + n * LANES);
        for (int h = 0; h < H; h++)
            for (int n = 0; n < T; n++) parts[h][n] += scores[h * stride + s] * value[n];
    }
    for (int h = 0; h < H; h++)
        for (int n = 0; n < T; n++) store(parts[h][n], sums + h * width + n * LANES);
}

template <int H>
void mix(const bfloat16* values, int64_t count, const float* scores, int64_t stride, int64_t width, float* sums) {
    constexpr int T = LANES == 16 ? 4 : 2;  // as many as there are registers for
    int64_t i = 0;
    for (; i + T * LANES <= width; i += T * LANES) mix_registers<H, T>(values + i, count, scores, stride, width, sums + i);
    for (; i < width; i += LANES) mix_registers<H, 1>(values + i, count, scores, stride, width, sums + i);
}

// For all heads: a few at a time, so that each value is read once for these.
void mix_heads(int64_t heads, const bfloat16* values, int64_t count, const float* scores, int64_t stride, int64_t width,
               float* sums) {
    decltype(&mix<1>) ways[HEADS] = {mix<1>, mix<2>, mix<3>, mix<4>};
    for (int64_t h = 0; h < heads; h += HEADS)
        ways[std::min(HEADS, heads - h) - 1](values, count, scores + h * stride, stride, width, sums + h * width);
}

// The softmax of a row of scores but for its sum, whose inverse it returns.
float soften(float* scores, int64_t count) {
    int64_t stride = round_up(count, LANES);
    std::fill(scores + count, scores + stride, -INFINITY);
    floats tops = all(-INFINITY), sums{};
    for (int64_t s = 0; s < stride; s += LANES) tops = larger(load(scores + s), tops);
    float highest = highest_of(tops);
    for (int64_t s = 0; s < stride; s += LANES) {
        floats chance = exponential(load(scores + s) - highest);
        store(chance, scores + s);
        sums += chance;
    }
    return 1.0f / sum_of(sums);
}

// The heads of some groups of one row, from `group` on, read the cache, in which the new key and value are already.
void attend(const Shape& shape, const Layer& layer, const Places& places, int64_t position, int64_t row, int64_t group,
            int64_t groups, const bfloat16* query, const bfloat16* cos, const bfloat16* signed_sin, Scratch& scratch,
            Rows& out) {
    int64_t width = shape.width, of_group = shape.heads / shape.groups, heads = groups * of_group;
    int64_t first = shape.window > 0 ? std::max<int64_t>(0, position - shape.window + 1) : 0, end = position + 1;
    int64_t count = end - first, stride = round_up(count, LANES), apart = places.tokens * width;
    bfloat16* turned = scratch.turned.data();
    float *scores = scratch.scores.data(), *mixed = scratch.mixed.data(), factor = 1.0f / std::sqrt(float(width));
    for (int64_t h = 0; h < heads; h++) turn(query + h * width, cos, signed_sin, width, turned + h * width);
    places.pieces(shape, layer.keys, row, group, first, end, [&](int64_t from, int64_t to, const bfloat16* keys) {
        for (int64_t h = 0; h < heads; h++)
            for (int64_t s = from; s < to; s += LANES)
                score(keys + h / of_group * apart + (s - from) * width, std::min<int64_t>(LANES, to - s), turned + h * width,
                      width, factor, scores + h * stride + s - first);
    });
    for (int64_t h = 0; h < heads; h++) scratch.shares[size_t(h)] = soften(scores + h * stride, count);
    std::fill(mixed, mixed + heads * width, 0.0f);
    places.pieces(shape, layer.values, row, group, first, end, [&](int64_t from, int64_t to, const bfloat16* values) {
        for (int64_t g = 0; g < groups; g++)
            mix_heads(of_group, values + g * apart, to - from, scores + g * of_group * stride + from - first, stride, width,
                      mixed + g * of_group * width);
    });
    for (int64_t h = 0; h < heads; h++)
        for (int64_t i = 0; i < width; i += LANES)
            out.put(load(mixed + h * width + i) * scratch.shares[size_t(h)],
                    (row * shape.heads + group * of_group + h) * width + i);
}

}  // namespace
