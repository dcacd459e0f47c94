// Small products of bfloat16 matrices in registers: the inside of attention.
//
// A word is two bfloat16 numbers that lie side by side along the inner dimension of a product; one instruction
// (AVX-512 bf16) multiplies two words and adds both products to a float32. So the right matrix is kept as words
// (K/2, N), and the left one is read word by word and spread over a register. Processors without the instruction widen the
// left matrix to float32 first and the right one as it is read, by a shift or a mask, and multiply and add twice.
//
// A tile of ROWS x COLUMNS registers of sums stays in registers for the whole inner loop. Shapes are whatever attention
// needs: M and K are free, N is a multiple of PADDING. The order of the additions depends on the shape alone.
#pragma once

#include "registers.h"

#include <algorithm>

using word = uint32_t;

#if defined(__AVX512F__)
constexpr int ROWS = 6, COLUMNS = 4;
#elif defined(__AVX2__)
constexpr int ROWS = 6, COLUMNS = 2;
#else
constexpr int ROWS = 2, COLUMNS = 4;
#endif
#if defined(LEVERET_TILES)
#include "tiles.h"
constexpr int PADDING = 32, ROW_PADDING = 16;
#else
constexpr int PADDING = 16, ROW_PADDING = 1;
struct Tiles {
    Tiles() {}
};
#endif

typedef word words __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

static inline int64_t round_up(int64_t count, int64_t step) { return (count + step - 1) / step * step; }
static inline int64_t padded(int64_t count) { return round_up(count, PADDING); }

#if !defined(LEVERET_TILES) && !defined(__AVX512BF16__)
constexpr int64_t DEPTH = 128;

// The two numbers of each of `count` words that are `step` apart.
static inline void widen(const word* from, int64_t step, int64_t count, float* low, float* high) {
    int64_t k = 0;
    if (step == 1)
        for (; k + LANES <= count; k += LANES) {
            words both = *(const words*)(from + k);
            *(floats*)(low + k) = (floats)(both << 16);
            *(floats*)(high + k) = (floats)(both & 0xffff0000u);
        }
    for (; k < count; k++) {
        low[k] = to_float(bfloat16(from[k * step]));
        high[k] = to_float(bfloat16(from[k * step] >> 16));
    }
}
#endif

// The left matrix: word (m, k) lies at data[m * row + k * step].
struct Left {
    const word* data;
    int64_t row, step;
};

#if !defined(LEVERET_TILES)
template <int R, int C>
static inline void tile(Left left, const word* right, int64_t right_row, int64_t inner, float* out, int64_t out_row,
                        bool adds) {
    floats sums[R][C];
    for (int r = 0; r < R; r++)
        for (int c = 0; c < C; c++)
            sums[r][c] = adds ? *(const floats*)(out + r * out_row + c * LANES) : floats{};
#if defined(__AVX512BF16__)
    for (int64_t k = 0; k < inner; k++) {
        words columns[C];
        for (int c = 0; c < C; c++) columns[c] = *(const words*)(right + k * right_row + c * LANES);
        for (int r = 0; r < R; r++) {
            words each = words{} + left.data[r * left.row + k * left.step];
            for (int c = 0; c < C; c++)
                sums[r][c] = (floats)_mm512_dpbf16_ps((__m512)sums[r][c], (__m512bh)each, (__m512bh)columns[c]);
        }
    }
#else
    float wide[2][R][DEPTH];  // the lower and the upper numbers of the left words
    for (int64_t first = 0; first < inner; first += DEPTH) {
        int64_t depth = std::min(DEPTH, inner - first);
        for (int r = 0; r < R; r++) widen(left.data + r * left.row + first * left.step, left.step, depth, wide[0][r], wide[1][r]);
        for (int64_t k = 0; k < depth; k++)
            for (int half = 0; half < 2; half++) {
                floats columns[C];
                for (int c = 0; c < C; c++) {
                    words both = *(const words*)(right + (first + k) * right_row + c * LANES);
                    columns[c] = (floats)(half == 0 ? both << 16 : both & 0xffff0000u);
                }
                for (int r = 0; r < R; r++)
                    for (int c = 0; c < C; c++) sums[r][c] += wide[half][r][k] * columns[c];
            }
    }
#endif
    for (int r = 0; r < R; r++)
        for (int c = 0; c < C; c++) *(floats*)(out + r * out_row + c * LANES) = sums[r][c];
}

template <int C>
static void strip(Left left, int64_t rows, const word* right, int64_t right_row, int64_t inner, float* out,
                  int64_t out_row, bool adds) {
    int64_t m = 0;
    auto at = [&](int64_t first) { return Left{left.data + first * left.row, left.row, left.step}; };
    for (; m + ROWS <= rows; m += ROWS) tile<ROWS, C>(at(m), right, right_row, inner, out + m * out_row, out_row, adds);
    for (; m + 2 <= rows; m += 2) tile<2, C>(at(m), right, right_row, inner, out + m * out_row, out_row, adds);
    if (m < rows) tile<1, C>(at(m), right, right_row, inner, out + m * out_row, out_row, adds);
}
#endif

// out (rows, columns) = left (rows, 2 inner) right (2 inner, columns), or that added to out.
// Columns are a multiple of PADDING. With tiles, rows are rounded up to ROW_PADDING (what the additional ones hold does
// not matter, but they must be there), inner is a multiple of 16, and the left matrix has a step of 1.
static void product(Left left, int64_t rows, const word* right, int64_t right_row, int64_t columns, int64_t inner,
                    float* out, int64_t out_row, bool adds) {
#if defined(LEVERET_TILES)
    for (int64_t m = 0; m < rows; m += 32)
        for (int64_t n = 0; n < columns; n += 32) {
            auto multiply = rows - m > 16 ? tile_product<true> : tile_product<false>;
            multiply(left.data + m * left.row, left.row, right + n, right_row, inner, out + m * out_row + n, out_row, adds);
        }
#else
    int64_t n = 0, step = COLUMNS * LANES;
    for (; n + step <= columns; n += step)
        strip<COLUMNS>(left, rows, right + n, right_row, inner, out + n, out_row, adds);
    int64_t rest = (columns - n) / LANES;
    if (rest == 1) strip<1>(left, rows, right + n, right_row, inner, out + n, out_row, adds);
    if (rest == 2) strip<2>(left, rows, right + n, right_row, inner, out + n, out_row, adds);
    if (rest == 3) strip<3>(left, rows, right + n, right_row, inner, out + n, out_row, adds);
#endif
}

// Rows of bfloat16 (count, width) -> words (count / 2, width): word (p, d) = (row 2p, row 2p + 1) at d; missing rows 0.
static void pair_rows(const bfloat16* rows, int64_t row, int64_t count, int64_t padded_count, int64_t width,
                             word* to) {
    for (int64_t p = 0; p < padded_count / 2; p++) {
        const bfloat16 *a = rows + 2 * p * row, *b = a + row;
        word* out = to + p * width;
        if (2 * p + 1 < count) {
#pragma omp simd
            for (int64_t d = 0; d < width; d++) out[d] = word(a[d]) | word(b[d]) << 16;
        } else if (2 * p < count) {
            for (int64_t d = 0; d < width; d++) out[d] = a[d];
        } else {
            std::memset(out, 0, size_t(width) * sizeof(word));
        }
    }
}

#if defined(__AVX512F__)
// Sixteen rows of sixteen words, turned on their side.
static inline void turn_square(const __m512i (&rows)[16], word* to, int64_t to_row) {
    __m512i a[16], b[16];
    for (int i = 0; i < 16; i += 2) {
        a[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
        a[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int j = 0; j < 2; j++) {
            b[i + 2 * j] = _mm512_unpacklo_epi64(a[i + j], a[i + 2 + j]);
            b[i + 2 * j + 1] = _mm512_unpackhi_epi64(a[i + j], a[i + 2 + j]);
        }
    for (int j = 0; j < 4; j++) {  // b[4 g + j] holds columns j, 4 + j, 8 + j, 12 + j of rows 4 g ... 4 g + 3
        __m512i low = _mm512_shuffle_i32x4(b[j], b[4 + j], 0x44), high = _mm512_shuffle_i32x4(b[j], b[4 + j], 0xee);
        __m512i low2 = _mm512_shuffle_i32x4(b[8 + j], b[12 + j], 0x44);
        __m512i high2 = _mm512_shuffle_i32x4(b[8 + j], b[12 + j], 0xee);
        _mm512_storeu_si512(to + j * to_row, _mm512_shuffle_i32x4(low, low2, 0x88));
        _mm512_storeu_si512(to + (4 + j) * to_row, _mm512_shuffle_i32x4(low, low2, 0xdd));
        _mm512_storeu_si512(to + (8 + j) * to_row, _mm512_shuffle_i32x4(high, high2, 0x88));
        _mm512_storeu_si512(to + (12 + j) * to_row, _mm512_shuffle_i32x4(high, high2, 0xdd));
    }
}
#endif

// Rows of bfloat16 (count, width) -> words (width / 2, padded_count): word (p, j) = numbers 2p, 2p + 1 of row j;
// missing rows are 0. The width is a multiple of 32.
static void turn_rows(const bfloat16* rows, int64_t row, int64_t count, int64_t padded_count, int64_t width,
                             word* to) {
    for (int64_t first = 0; first < padded_count; first += 16) {
        int64_t last = std::min(first + 16, count);
#if defined(__AVX512F__)
        for (int64_t p = 0; p < width / 2; p += 16) {
            __m512i square[16];
            for (int64_t j = 0; j < 16; j++)
                square[j] = first + j < last ? _mm512_loadu_si512(rows + (first + j) * row + 2 * p) : _mm512_setzero_si512();
            turn_square(square, to + p * padded_count + first, padded_count);
        }
#else
        for (int64_t p = 0; p < width / 2; p++) {
            word* out = to + p * padded_count;
            for (int64_t j = first; j < last; j++) std::memcpy(out + j, rows + j * row + 2 * p, sizeof(word));
            for (int64_t j = std::max(first, last); j < first + 16; j++) out[j] = 0;
        }
#endif
    }
}

// Words (16, count) -> words (count, 16); count is a multiple of 16.
static inline void turn_words(const word* rows, int64_t count, word* to) {
    for (int64_t first = 0; first < count; first += 16) {
#if defined(__AVX512F__)
        __m512i square[16];
        for (int64_t p = 0; p < 16; p++) square[p] = _mm512_loadu_si512(rows + p * count + first);
        turn_square(square, to + first * 16, 16);
#else
        for (int64_t j = first; j < first + 16; j++)
            for (int64_t p = 0; p < 16; p++) to[j * 16 + p] = rows[p * count + j];
#endif
    }
}
