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

constexpr int64_t BLOCK = 128;           // inputs, at most
constexpr int64_t CHUNK = 2 * BLOCK;     // inputs whose levels of four bits are written out in bytes at a time
constexpr int64_t FEW_EIGHTS = 8;        // more rows pay for tiles
#if defined(__AVX512F__)
constexpr int EIGHTS_TOGETHER = 6, EIGHTS_AS_STORED = 2;  // rows
#else
constexpr int EIGHTS_TOGETHER = 1, EIGHTS_AS_STORED = 1;
#endif

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

    // Those of the rows from one on.
    Eights from(int64_t row) const {
        return {words, blocks, numbers + row * words, scales + row * blocks, totals + row * blocks};
    }
};

// Memory for them, whatever the blocks.
class EightsRoom {
  public:
    EightsRoom(int64_t rows, int64_t inputs)
        : numbers(size_t((rows + ROW_PADDING - 1) * inputs / 4)), scales(size_t(rows * inputs / 32)), totals(scales.size()) {}

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
    floats tops{}, sums{};
    for (int64_t i = 0; i < count; i += LANES) {
        floats value = load(x + i);
        tops = larger(larger(value, -value), tops);
        sums += value;
    }
    float highest = highest_of(tops), factor = highest > 1e-30f ? 127.0f / highest : 0.0f;
    ints added{};
    for (int64_t i = 0; i < count; i += LANES) {
        ints number = nearest(load(x + i) * factor);
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

// sum + the products of four bytes without sign and four with sign, for each lane. SMALL: the former are below 16, so that
// the sum of two products fits sixteen bits.
template <bool SMALL>
inline ints add_four(ints sum, ints levels, word numbers) {
#if defined(__AVX512VNNI__)
    return (ints)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)levels, _mm512_set1_epi32(int(numbers)));
#elif defined(__AVXVNNI__)
    return (ints)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)levels, _mm256_set1_epi32(int(numbers)));
#elif defined(__AVX512BW__)
    __m512i low = _mm512_set1_epi32(0x00ff00ff), spread = _mm512_set1_epi32(int(numbers)), from = (__m512i)levels;
    if (SMALL) return sum + (ints)_mm512_madd_epi16(_mm512_maddubs_epi16(from, spread), _mm512_set1_epi16(1));
    __m512i even = _mm512_srai_epi16(_mm512_slli_epi16(spread, 8), 8), odd = _mm512_srai_epi16(spread, 8);
    __m512i added = _mm512_add_epi32(_mm512_madd_epi16(_mm512_and_si512(from, low), even),
                                     _mm512_madd_epi16(_mm512_srli_epi16(from, 8), odd));
    return sum + (ints)added;
#elif defined(__AVX2__)
    __m256i low = _mm256_set1_epi32(0x00ff00ff), spread = _mm256_set1_epi32(int(numbers)), from = (__m256i)levels;
    if (SMALL) return sum + (ints)_mm256_madd_epi16(_mm256_maddubs_epi16(from, spread), _mm256_set1_epi16(1));
    __m256i even = _mm256_srai_epi16(_mm256_slli_epi16(spread, 8), 8), odd = _mm256_srai_epi16(spread, 8);
    __m256i added = _mm256_add_epi32(_mm256_madd_epi16(_mm256_and_si256(from, low), even),
                                     _mm256_madd_epi16(_mm256_srli_epi16(from, 8), odd));
    return sum + (ints)added;
#else
    for (int j = 0; j < 4; j++) sum += ((levels >> (8 * j)) & 0xff) * int32_t(int8_t(numbers >> (8 * j)));
    return sum;
#endif
}

// What the sums of the blocks of a chunk are multiplied with, for one tile, and what the levels are counted from.
struct ChunkScales {
    bool alike;  // `zero` is the zero of all
    int32_t zero;
    float scales[CHUNK / 32][TILE];
    int32_t zeros[CHUNK / 32][TILE];

    void read(const Weight& weight, int64_t tile, int64_t first, int64_t size, int64_t blocks) {
        alike = weight.zeros == nullptr;
        zero = int32_t(weight.zero);
        for (int64_t block = 0; block < blocks; block++) {
            int64_t place = weight.place(tile, (first + block * size) / weight.group);
            for (int c = 0; c < TILE; c += LANES) {
                store(load_halves(weight.scales + place + c), scales[block] + c);
                if (!alike) *(ints*)(zeros[block] + c) = __builtin_convertvector(load_bytes(weight.zeros + place + c), ints);
            }
        }
    }

    // What a sum of products with levels begins with, so that it ends as one with level - zero.
    ints begin(int64_t block, int c, int32_t total) const {
        return alike ? ints{} - zero * total : *(const ints*)(zeros[block] + c * LANES) * -total;
    }
};

// Adds what `blocks` blocks, from `first` on, give to sums (R, TILE) of rows from `row` on. levels (words, TILE), SMALL if
// they are below 16.
template <int BITS, int R, bool SMALL>
void add_blocks(const word* levels, const ChunkScales& by, const Eights& x, int64_t row, int64_t first, int64_t blocks,
                float* sums) {
    const int64_t count = x.words / x.blocks, words = x.words, stride = x.blocks;
    const word* numbers = x.numbers + row * words + first * count;
    const float* scales = x.scales + row * stride + first;
    const int32_t* totals = x.totals + row * stride + first;
    sums += row * TILE;
    for (int64_t block = 0; block < blocks; block++, numbers += count, scales++, totals++) {
        ints whole[R][REGISTERS];
        for (int r = 0; r < R; r++)
            for (int c = 0; c < REGISTERS; c++) whole[r][c] = by.begin(block, c, totals[r * stride]);
        for (int64_t k = 0; k < count; k += 8 / BITS, levels += TILE) {
            ints stored[REGISTERS];
            for (int c = 0; c < REGISTERS; c++) stored[c] = *(const ints*)(levels + c * LANES);
            for (int half = 0; half < 8 / BITS; half++) {
                ints level[REGISTERS];
                for (int c = 0; c < REGISTERS; c++) level[c] = BITS == 8 ? stored[c] : (stored[c] >> (4 * half)) & 0x0f0f0f0f;
                for (int r = 0; r < R; r++)
                    for (int c = 0; c < REGISTERS; c++)
                        whole[r][c] = add_four<SMALL>(whole[r][c], level[c], numbers[r * words + k + half]);
            }
        }
        for (int r = 0; r < R; r++)
            for (int c = 0; c < REGISTERS; c++) {
                floats scale = load(by.scales[block] + c * LANES) * scales[r * stride];
                float* out = sums + r * TILE + c * LANES;
                store(load(out) + __builtin_convertvector(whole[r][c], floats) * scale, out);
            }
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
// The same as add_blocks<8> for all rows and one block, in AMX tiles; whole: room for (32, TILE).
inline void add_block_in_tiles(const word* levels, const ChunkScales& by, int64_t at, const Eights& x, int64_t rows,
                               int64_t block, int32_t* whole, float* sums) {
    int64_t count = x.words / x.blocks;
    for (int64_t m = 0; m < rows; m += 32) {
        const word* numbers = x.numbers + m * x.words + block * count;
        for (int64_t n = 0; n < TILE; n += 32) {
            auto multiply = rows - m > 16 ? tile_product<true, true> : tile_product<false, true>;
            multiply(numbers, x.words, levels + n, TILE, count, reinterpret_cast<float*>(whole) + n, TILE, false);
        }
        for (int64_t row = m; row < std::min(m + 32, rows); row++)
            for (int c = 0; c < REGISTERS; c++) {
                ints sum = *(const ints*)(whole + (row - m) * TILE + c * LANES) + by.begin(at, c, x.totals[row * x.blocks + block]);
                floats scale = load(by.scales[at] + c * LANES) * x.scales[row * x.blocks + block];
                float* out = sums + row * TILE + c * LANES;
                store(load(out) + __builtin_convertvector(sum, floats) * scale, out);
            }
    }
}
#endif

// Memory that is needed soon, asked for a little at a time: while one chunk is multiplied, the next one comes. It goes to
// the second cache: the first one is as large as what is being multiplied.
struct Coming {
    const char *next, *end;
    int64_t step;

    Coming(const void* from, int64_t bytes, int64_t times)
        : next(static_cast<const char*>(from)), end(next + bytes), step((bytes / 64 + times - 1) / times * 64) {}

    void ask() {
        for (const char* last = std::min(end, next + step); next < last; next += 64) __builtin_prefetch(next, 0, 2);
    }
};

// As many rows as there are, R at a time.
template <int BITS, int R, bool SMALL>
void add_rows(const word* levels, const ChunkScales& by, const Eights& x, int64_t& row, int64_t rows, int64_t first,
              int64_t blocks, Coming& coming, float* sums) {
    for (; row + R <= rows; row += R) {
        coming.ask();
        add_blocks<BITS, R, SMALL>(levels, by, x, row, first, blocks, sums);
    }
}

// sums (rows, TILE) of one tile. right: room for CHUNK / 4 * TILE words, and with tiles for 32 * TILE more.
template <int BITS>
void eights_of_tile(const Weight& weight, int64_t tile, const Eights& x, int64_t rows, word* right, float* sums) {
    std::memset(sums, 0, sizeof(float) * size_t(rows * TILE));
    int64_t size = weight.inputs / x.blocks, words = size * BITS / 32, together = CHUNK / size;
    ChunkScales by;
    for (int64_t first = 0; first < x.blocks; first += together) {
        int64_t blocks = std::min(together, x.blocks - first), row = 0;
        by.read(weight, tile, first * size, size, blocks);
        const word* levels = weight.words + (tile * x.blocks + first) * words * TILE;
        int64_t bytes = blocks * words * TILE * 4;
        Coming coming(levels + blocks * words * TILE, rows > 1 ? bytes : 0, (rows + EIGHTS_TOGETHER - 1) / EIGHTS_TOGETHER);
        if (BITS == 4 && rows <= EIGHTS_AS_STORED) {
            if (EIGHTS_AS_STORED >= 2) add_rows<BITS, 2, true>(levels, by, x, row, rows, first, blocks, coming, sums);
            add_rows<BITS, 1, true>(levels, by, x, row, rows, first, blocks, coming, sums);
            continue;
        }
        if (BITS == 4) {
            write_bytes(levels, words * blocks, right);
            levels = right;
        }
#if defined(LEVERET_TILES)
        if (rows > FEW_EIGHTS && size % 64 == 0) {
            int32_t* whole = reinterpret_cast<int32_t*>(right + CHUNK / 4 * TILE);
            for (int64_t at = 0; at < blocks; at++)
                add_block_in_tiles(levels + at * size / 4 * TILE, by, at, x, rows, first + at, whole, sums);
            continue;
        }
#endif
        constexpr bool SMALL = BITS == 4;
        add_rows<8, EIGHTS_TOGETHER, SMALL>(levels, by, x, row, rows, first, blocks, coming, sums);
        if (EIGHTS_TOGETHER > 2) add_rows<8, 2, SMALL>(levels, by, x, row, rows, first, blocks, coming, sums);
        add_rows<8, 1, SMALL>(levels, by, x, row, rows, first, blocks, coming, sums);
    }
}

}  // namespace
