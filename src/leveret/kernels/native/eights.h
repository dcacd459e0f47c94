// Rows of activations in eight bits, and their products with levels in whole numbers.
//
// A row is cut into blocks of inputs. In each the largest number becomes 127 or -127 and the others follow, rounded to
// nearest: x = scale * number. One instruction (VNNI) multiplies four such numbers with four levels and adds them up, and
//
//     x . weight = sum over blocks of  scale of x * scale of weight * (sum of number * level - zero * sum of number)
//
// where the inner sums are exact. So a row's results are the same bits however many rows are beside it, and by whichever
// instructions the whole numbers are multiplied: VNNI, sixteen-bit products without it, or AMX tiles for many rows.
// What rounding costs: half a percent of a product's length, which is what llama.cpp's formats pay too.
//
// Four bits: a word's eight levels are taken apart by one mask, the even ones first; the numbers lie in the same order.
#pragma once

#include "integers.h"

namespace {

constexpr int64_t BLOCK = 128;  // inputs, at most
#if defined(__AVX512F__)
constexpr int EIGHTS_TOGETHER = 6, EIGHTS_AS_STORED = 4;  // rows
#else
constexpr int EIGHTS_TOGETHER = 1, EIGHTS_AS_STORED = 1;
#endif
constexpr int64_t FEW_EIGHTS = 8;  // more rows pay for tiles
constexpr word EVERY_BYTE = 0x01010101u;

typedef int8_t bytes __attribute__((vector_size(LANES), aligned(1), may_alias));

// The longest block that divides a group.
int64_t block_of(int64_t group) {
    int64_t block = std::min(group, BLOCK) / 32 * 32;
    while (group % block != 0) block -= 32;
    return block;
}

// Rows in eight bits, somewhere in memory.
struct Eights {
    int64_t words = 0, blocks = 0;  // a row
    word* numbers = nullptr;        // (rows, words): four numbers each; more rows for tiles
    float* scales = nullptr;        // (rows, blocks)
    int32_t* totals = nullptr;      // (rows, blocks): sums of the numbers
};

// Memory for them, whatever the blocks.
class EightsRoom {
  public:
    EightsRoom(int64_t rows, int64_t inputs)
        : numbers(size_t(round_up(rows, ROW_PADDING) * inputs / 4)), scales(size_t(rows * inputs / 32)), totals(scales.size()) {}

    Eights of(int64_t inputs, int64_t block) {
        return {inputs / 4, inputs / block, numbers.data(), scales.data(), totals.data()};
    }

  private:
    std::vector<word> numbers;
    std::vector<float> scales;
    std::vector<int32_t> totals;
};

// A number that is none makes the scale none, so that it is not lost.
void round_block(const float* x, int64_t count, int8_t* to, float& scale, int32_t& total) {
    constexpr float rounder = 12582912.0f;  // 1.5 * 2^23: adding it leaves no place for a fraction
    floats tops{}, sums{};
    for (int64_t i = 0; i < count; i += LANES) {
        floats value = load(x + i);
        tops = larger(larger(value, -value), tops);
        sums += value;
    }
    float highest = highest_of(tops), factor = highest > 1e-30f ? 127.0f / highest : 0.0f;
    ints added{};
    for (int64_t i = 0; i < count; i += LANES) {
        ints number = __builtin_convertvector((load(x + i) * factor + rounder) - rounder, ints);
        added += number;
        *(bytes*)(to + i) = __builtin_convertvector(number, bytes);
    }
    scale = highest / 127.0f + 0.0f * sum_of(sums);
    total = 0;
    for (int lane = 0; lane < LANES; lane++) total += added[lane];
}

// Of each eight bytes the even ones, then the odd ones.
void part_bytes(int8_t* all, int64_t count) {
    auto gather = [](uint64_t spread) {
        spread &= 0x00ff00ff00ff00ffull;
        spread = (spread | spread >> 8) & 0x0000ffff0000ffffull;
        return (spread | spread >> 16) & 0xffffffffull;
    };
    for (int64_t i = 0; i < count; i += 8) {
        uint64_t eight;
        std::memcpy(&eight, all + i, 8);
        eight = gather(eight) | gather(eight >> 8) << 32;
        std::memcpy(all + i, &eight, 8);
    }
}

// One block of one row of x, whose columns are taken in `order` (null: as they are).
template <typename Number>
void round_part(const Number* x, const int64_t* order, int bits, int64_t row, int64_t block,
                const Eights& to) {
    int64_t size = to.words * 4 / to.blocks, first = block * size;
    float wide[BLOCK];
    if (order == nullptr) {
        for (int64_t i = 0; i < size; i += LANES) store(load(x + first + i), wide + i);
    } else {
        for (int64_t i = 0; i < size; i++) wide[i] = as_float(x[order[first + i]]);
    }
    int8_t* numbers = reinterpret_cast<int8_t*>(to.numbers + row * to.words) + first;
    int64_t place = row * to.blocks + block;
    round_block(wide, size, numbers, to.scales[place], to.totals[place]);
    if (bits == 4) part_bytes(numbers, size);
}

// sum + the products of four bytes without sign and four with sign, for each lane.
inline ints add_four(ints sum, ints levels, word numbers) {
#if defined(__AVX512VNNI__)
    return (ints)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)levels, _mm512_set1_epi32(int(numbers)));
#elif defined(__AVX512BW__)
    __m512i low = _mm512_set1_epi32(0x00ff00ff), spread = _mm512_set1_epi32(int(numbers)), from = (__m512i)levels;
    __m512i even = _mm512_srai_epi16(_mm512_slli_epi16(spread, 8), 8), odd = _mm512_srai_epi16(spread, 8);
    __m512i added = _mm512_add_epi32(_mm512_madd_epi16(_mm512_and_si512(from, low), even),
                                     _mm512_madd_epi16(_mm512_srli_epi16(from, 8), odd));
    return sum + (ints)added;
#elif defined(__AVX2__)
    __m256i low = _mm256_set1_epi32(0x00ff00ff), spread = _mm256_set1_epi32(int(numbers)), from = (__m256i)levels;
    __m256i even = _mm256_srai_epi16(_mm256_slli_epi16(spread, 8), 8), odd = _mm256_srai_epi16(spread, 8);
    __m256i added = _mm256_add_epi32(_mm256_madd_epi16(_mm256_and_si256(from, low), even),
                                     _mm256_madd_epi16(_mm256_srli_epi16(from, 8), odd));
    return sum + (ints)added;
#else
    for (int j = 0; j < 4; j++) sum += ((levels >> (8 * j)) & 0xff) * int32_t(int8_t(numbers >> (8 * j)));
    return sum;
#endif
}

// What the sums of one block and one tile are multiplied with, and what is taken from them first.
struct BlockScales {
    floats scales[REGISTERS];
    ints zeros[REGISTERS];

    BlockScales(const Weight& weight, int64_t tile, int64_t first) {
        int64_t place = first / weight.group * weight.outputs + tile * TILE;
        for (int c = 0; c < REGISTERS; c++) {
            scales[c] = load_halves(weight.scales + place + c * LANES);
            zeros[c] = __builtin_convertvector(zero_of(weight, place + c * LANES), ints);
        }
    }
};

inline void add_scaled(ints whole, const BlockScales& by, int c, float scale, int32_t total, float* out) {
    floats exact = __builtin_convertvector(whole - by.zeros[c] * total, floats);
    store(load(out) + exact * (by.scales[c] * scale), out);
}

// Adds one block's part to sums (R, TILE) of rows from `row` on. levels (words of the block, TILE).
template <int BITS, int R>
void add_block(const word* levels, const BlockScales& by, const Eights& x, int64_t row, int64_t block, float* sums) {
    int64_t count = x.words / x.blocks;
    const word* numbers = x.numbers + row * x.words + block * count;
    ints whole[R][REGISTERS] = {};
    for (int64_t k = 0; k < count; k += 8 / BITS, levels += TILE) {
        ints stored[REGISTERS];
        for (int c = 0; c < REGISTERS; c++) stored[c] = *(const ints*)(levels + c * LANES);
        if (BITS == 8) {
            for (int r = 0; r < R; r++)
                for (int c = 0; c < REGISTERS; c++) whole[r][c] = add_four(whole[r][c], stored[c], numbers[r * x.words + k]);
        } else {
            for (int half = 0; half < 2; half++)
                for (int c = 0; c < REGISTERS; c++) {
                    ints four = (stored[c] >> (4 * half)) & 0x0f0f0f0f;
                    for (int r = 0; r < R; r++)
                        whole[r][c] = add_four(whole[r][c], four, numbers[r * x.words + k + half]);
                }
        }
    }
    for (int r = 0; r < R; r++) {
        int64_t place = (row + r) * x.blocks + block;
        for (int c = 0; c < REGISTERS; c++)
            add_scaled(whole[r][c], by, c, x.scales[place], x.totals[place], sums + (row + r) * TILE + c * LANES);
    }
}

// Levels of four bits in bytes: (count, TILE) words -> (2 count, TILE).
inline void write_bytes(const word* levels, int64_t count, word* to) {
    for (int64_t k = 0; k < count; k++)
        for (int c = 0; c < REGISTERS; c++) {
            ints stored = *(const ints*)(levels + k * TILE + c * LANES);
            *(ints*)(to + 2 * k * TILE + c * LANES) = stored & 0x0f0f0f0f;
            *(ints*)(to + (2 * k + 1) * TILE + c * LANES) = (stored >> 4) & 0x0f0f0f0f;
        }
}

#if defined(LEVERET_TILES)
// The same as add_block<8> for all rows, in AMX tiles; whole: room for (32, TILE).
inline void add_block_in_tiles(const word* levels, const BlockScales& by, const Eights& x, int64_t rows, int64_t block,
                               int32_t* whole, float* sums) {
    int64_t count = x.words / x.blocks;
    for (int64_t m = 0; m < rows; m += 32) {
        const word* numbers = x.numbers + m * x.words + block * count;
        for (int64_t n = 0; n < TILE; n += 32) {
            auto multiply = rows - m > 16 ? tile_product<true, true> : tile_product<false, true>;
            multiply(numbers, x.words, levels + n, TILE, count, reinterpret_cast<float*>(whole) + n, TILE, false);
        }
        for (int64_t row = m; row < std::min(m + 32, rows); row++) {
            int64_t place = row * x.blocks + block;
            for (int c = 0; c < REGISTERS; c++)
                add_scaled(*(const ints*)(whole + (row - m) * TILE + c * LANES), by, c, x.scales[place], x.totals[place],
                           sums + row * TILE + c * LANES);
        }
    }
}
#endif

template <int BITS, int R>
void add_rows(const word* levels, const BlockScales& by, const Eights& x, int64_t& row, int64_t rows, int64_t block,
              float* sums) {
    for (; row + R <= rows; row += R) add_block<BITS, R>(levels, by, x, row, block, sums);
}

// sums (rows, TILE) of one tile. right: room for BLOCK / 4 * TILE words, and as much again with tiles.
template <int BITS>
void eights_of_tile(const Weight& weight, int64_t tile, const Eights& x, int64_t rows, word* right, float* sums) {
    std::memset(sums, 0, sizeof(float) * size_t(rows * TILE));
    int64_t size = weight.inputs / x.blocks, stored = size * BITS / 32;
    for (int64_t block = 0; block < x.blocks; block++) {
        BlockScales by(weight, tile, block * size);
        const word* levels = weight.words + (tile * x.blocks + block) * stored * TILE;
        int64_t row = 0;
        if (BITS == 4 && rows <= EIGHTS_AS_STORED) {
            if (EIGHTS_AS_STORED >= 4) add_rows<BITS, 4>(levels, by, x, row, rows, block, sums);
            if (EIGHTS_AS_STORED >= 2) add_rows<BITS, 2>(levels, by, x, row, rows, block, sums);
            add_rows<BITS, 1>(levels, by, x, row, rows, block, sums);
            continue;
        }
        if (BITS == 4) {
            write_bytes(levels, stored, right);
            levels = right;
        }
#if defined(LEVERET_TILES)
        if (rows > FEW_EIGHTS && size % 64 == 0) {
            add_block_in_tiles(levels, by, x, rows, block, reinterpret_cast<int32_t*>(right + BLOCK / 4 * TILE), sums);
            continue;
        }
#endif
        add_rows<8, EIGHTS_TOGETHER>(levels, by, x, row, rows, block, sums);
        if (EIGHTS_TOGETHER > 2) add_rows<8, 2>(levels, by, x, row, rows, block, sums);
        add_rows<8, 1>(levels, by, x, row, rows, block, sums);
    }
}

}  // namespace
