// Weights of four or eight bits, and the products of one tile of them with activations.
//
// A token that is generated reads every weight once, so the fewer bytes a weight has, the sooner it is done. Sixty-four
// outputs are a tile: for each of them a word holds the next eight levels (four bits) or four (eight bits) along the
// inputs, so that a register has one word of several outputs, and a shift and a table turn it into as many float32
// numbers. A level stands for
//
//     weight = scale * (level - zero)      scale and zero of the output's group of inputs
//
// and scale and zero are applied once a group, to sums. For many rows a part of a tile is written out in bfloat16 instead,
// small enough for the first-level cache, and multiplied like any matrix.
#pragma once

#include "products.h"

#include <initializer_list>
#include <vector>

namespace {

constexpr int64_t TILE = 64, PART = 256;  // outputs; inputs that are written out at a time
constexpr int REGISTERS = TILE / LANES;
#if defined(__AVX512F__)
constexpr int ROWS_TOGETHER = 4;
#else
constexpr int ROWS_TOGETHER = 1;
#endif

float from_half(uint16_t half) {
    uint32_t sign = uint32_t(half & 0x8000u) << 16, rest = half & 0x7fffu;
    float value;
    if (rest >= 0x7c00u) {
        uint32_t wide = sign | 0x7f800000u | (rest & 0x3ffu) << 13;
        std::memcpy(&value, &wide, sizeof value);
        return value;
    }
    uint32_t wide = rest << 13;  // times 2^112 this is right for small numbers too
    std::memcpy(&value, &wide, sizeof value);
    value *= 5.192296858534828e33f;
    return sign ? -value : value;
}

// To nearest, ties to even; NaN for what is too large.
uint16_t to_half(float value) {
    uint32_t sign, bits;
    std::memcpy(&bits, &value, sizeof bits);
    sign = bits >> 16 & 0x8000u;
    value = std::fabs(value);
    if (!(value < 65520.0f)) return uint16_t(sign | 0x7e00u);
    if (value < 6.103515625e-05f) {  // steps of 2^-24
        float steps = value * 16777216.0f + 12582912.0f;
        std::memcpy(&bits, &steps, sizeof bits);
        return uint16_t(sign | (bits & 0x7ffu));
    }
    std::memcpy(&bits, &value, sizeof bits);
    bits += 0xfffu + (bits >> 13 & 1u);
    return uint16_t(sign | (bits - 0x38000000u) >> 13);
}

floats load_halves(const uint16_t* from) {
#if defined(__AVX512F__)
    return (floats)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)from));
#else
    floats values;
    for (int lane = 0; lane < LANES; lane++) values[lane] = from_half(from[lane]);
    return values;
#endif
}

floats load_bytes(const uint8_t* from) {
    floats values;
    for (int lane = 0; lane < LANES; lane++) values[lane] = float(from[lane]);
    return values;
}

struct Weight {
    const word* words;      // (outputs / TILE, inputs * BITS / 32, TILE)
    const uint16_t* scales;  // (outputs / TILE, groups, TILE) float16
    const uint8_t* zeros;    // the same shape, or null: `zero` for all
    float zero;
    int64_t inputs, outputs, group;  // outputs: rounded up to whole tiles

    // Where the scales of a tile's group begin.
    int64_t place(int64_t tile, int64_t number) const { return (tile * (inputs / group) + number) * TILE; }
};

// What the levels of a word's field `j` are worth.
template <int BITS>
struct Levels {
    static constexpr int FIELDS = 32 / BITS;
    floats table{};

    Levels() {
        for (int lane = 0; lane < LANES; lane++) table[lane] = float(lane);
    }

    floats operator()(ints words, int j) const {
#if defined(__AVX512F__)
        if (BITS == 4) return (floats)_mm512_permutexvar_ps((__m512i)(words >> (4 * j)), (__m512)table);
#endif
        ints levels = (words >> (BITS * j)) & ((1 << BITS) - 1);
        return __builtin_convertvector(levels, floats);
    }
};

floats zero_of(const Weight& weight, int64_t place) {
    return weight.zeros == nullptr ? all(weight.zero) : load_bytes(weight.zeros + place);
}

// sums (R, TILE) of the outputs of one tile, for x (R, inputs). A row's sums do not depend on how many are done together.
template <int BITS, int R>
void few_rows(const Weight& weight, const Levels<BITS>& levels, int64_t tile, const float* x, float* sums) {
    constexpr int FIELDS = Levels<BITS>::FIELDS;
    std::memset(sums, 0, sizeof(float) * R * TILE);
    int64_t groups = weight.inputs / weight.group, steps = weight.group / FIELDS;
    const word* words = weight.words + tile * (weight.inputs / FIELDS) * TILE;
    for (int64_t g = 0; g < groups; g++) {
        floats part[R][REGISTERS] = {};
        for (int64_t k = 0; k < steps; k++, words += TILE) {
            const float* inputs = x + g * weight.group + k * FIELDS;
            ints stored[REGISTERS];
            for (int c = 0; c < REGISTERS; c++) stored[c] = *(const ints*)(words + c * LANES);
#pragma GCC unroll 8
            for (int j = 0; j < FIELDS; j++)
                for (int c = 0; c < REGISTERS; c++) {
                    floats values = levels(stored[c], j);
                    for (int r = 0; r < R; r++) part[r][c] += values * inputs[r * weight.inputs + j];
                }
        }
        float of_group[R];
        for (int r = 0; r < R; r++) {
            floats sum{};
            const float* inputs = x + r * weight.inputs + g * weight.group;
            for (int64_t i = 0; i < weight.group; i += LANES) sum += load(inputs + i);
            of_group[r] = sum_of(sum);
        }
        for (int c = 0; c < REGISTERS; c++) {
            int64_t place = weight.place(tile, g) + c * LANES;
            floats scale = load_halves(weight.scales + place), zero = zero_of(weight, place);
            for (int r = 0; r < R; r++) {
                float* out = sums + r * TILE + c * LANES;
                store(load(out) + scale * (part[r][c] - zero * of_group[r]), out);
            }
        }
    }
}

// Words (count / 2, TILE) of bfloat16 pairs: inputs first ... first + count of one tile; count is a multiple of FIELDS.
template <int BITS>
void write_out(const Weight& weight, const Levels<BITS>& levels, int64_t tile, int64_t first, int64_t count, word* to) {
    constexpr int FIELDS = Levels<BITS>::FIELDS;
    const word* words = weight.words + (tile * (weight.inputs / FIELDS) + first / FIELDS) * TILE;
    for (int64_t k = 0; k < count / FIELDS; k++, words += TILE) {
        int64_t row = weight.place(tile, (first + k * FIELDS) / weight.group);
        for (int c = 0; c < REGISTERS; c++) {
            ints stored = *(const ints*)(words + c * LANES);
            floats scale = load_halves(weight.scales + row + c * LANES), zero = zero_of(weight, row + c * LANES);
#pragma GCC unroll 4
            for (int j = 0; j < FIELDS; j += 2) {
                bfloat16 low[LANES], high[LANES];
                store(scale * (levels(stored, j) - zero), low);
                store(scale * (levels(stored, j + 1) - zero), high);
                word* out = to + (k * FIELDS + j) / 2 * TILE + c * LANES;
                for (int lane = 0; lane < LANES; lane++) out[lane] = word(low[lane]) | word(high[lane]) << 16;
            }
        }
    }
}

// sums (rows, TILE) of one tile, the rows taken a few at a time.
template <int BITS>
void few_rows_of_tile(const Weight& weight, const Levels<BITS>& levels, int64_t tile, const float* x, int64_t rows,
                      float* sums) {
    int64_t row = 0;
#if defined(__AVX512F__)
    for (; row + 4 <= rows; row += 4)
        few_rows<BITS, 4>(weight, levels, tile, x + row * weight.inputs, sums + row * TILE);
    for (; row + 2 <= rows; row += 2)
        few_rows<BITS, 2>(weight, levels, tile, x + row * weight.inputs, sums + row * TILE);
#endif
    for (; row < rows; row++) few_rows<BITS, 1>(weight, levels, tile, x + row * weight.inputs, sums + row * TILE);
}

// The same for many rows of bfloat16, in whole sixteens where products are made in tiles (`rows` is rounded up there, and
// x and sums have room for it). right: room for PART / 2 * TILE words.
template <int BITS>
void many_rows_of_tile(const Weight& weight, const Levels<BITS>& levels, int64_t tile, const bfloat16* x, int64_t rows,
                       word* right, float* sums) {
    for (int64_t first = 0; first < weight.inputs; first += PART) {
        int64_t count = std::min(PART, weight.inputs - first);
        write_out<BITS>(weight, levels, tile, first, count, right);
        Left left{reinterpret_cast<const word*>(x + first), weight.inputs / 2, 1};
        product(left, round_up(rows, ROW_PADDING), right, TILE, TILE, count / 2, sums, TILE, first > 0);
    }
}

// The sums of one tile to their places among `columns` outputs of each row.
template <typename Number>
void place_tile(const float* sums, int64_t rows, int64_t tile, Number* out, int64_t columns) {
    int64_t count = std::min(TILE, columns - tile * TILE);
    for (int64_t row = 0; row < rows; row++)
        for_each_register(count, [&](int64_t i, auto lanes) {
            lanes.store(lanes.load(sums + row * TILE + i), out + row * columns + tile * TILE + i);
        });
}

// Numbers in float32.
template <typename Number>
std::vector<float> widened(const Number* from, int64_t count) {
    std::vector<float> wide(static_cast<size_t>(count));
    for (int64_t i = 0; i < count; i += LANES) store(load(from + i), wide.data() + i);
    return wide;
}

}  // namespace
