// The Linears of a decode step: plain or quantized weights, with what an adapter adds, a tile of outputs at a time.
#pragma once

#include "eights.h"

namespace {

constexpr int64_t FEW = 8, FEW_DENSE = 4;  // rows: up to here integers, and bfloat16 weights, are multiplied as they lie
constexpr int64_t LINE = 32;               // numbers of bfloat16 that come from memory together

// What an adapter adds to a product with x: scale * up (down x), `rank` numbers in between.
struct Change {
    int64_t rank;
    const bfloat16* down;  // (rank, inputs)
    const bfloat16* up;    // (tiles of outputs, rank, TILE)
    double scale;
};

struct Linear {
    int64_t bits;  // 16: bfloat16 (columns, inputs); 4 or 8: as in integers.h
    int64_t inputs, outputs, columns, group;
    const void* data;
    const uint16_t* scales;
    const uint8_t* zeros;
    double zero;
    const int64_t* order;  // which input each column of the weight is for; null: the same
    int64_t rounds;        // activations in eight bits
    const Change* const* changes;  // of each model that shares the weight, null where it has none; null: none of them has

    const Change* change_of(int64_t model) const { return changes == nullptr ? nullptr : changes[model]; }
};

// What products read: rows of bfloat16 (more of them than there are, for tiles), and for few rows the same in float32.
struct Rows {
    int64_t columns;
    const int64_t* models;  // which of the models that share the weights each row is for
    bool few, few_dense;  // multiplied as few rows are: integers, bfloat16 weights
    std::vector<bfloat16> numbers;
    std::vector<float> wide;

    Rows(int64_t rows, int64_t columns, const int64_t* models, bool few, bool few_dense)
        : columns(columns), models(models), few(few), few_dense(few_dense),
          numbers(size_t((rows + ROW_PADDING - 1) * columns)), wide(size_t(few ? rows * columns : 0)) {}

    void put(floats values, int64_t place) {
        store(values, numbers.data() + place);
        if (!wide.empty()) store(load(numbers.data() + place), wide.data() + place);
    }
};

struct Scratch {
    std::vector<word> right;
    std::vector<float> sums, more_sums, scores, mixed, shares;
    std::vector<bfloat16> turned;

    Scratch(int64_t rows, int64_t heads, int64_t width, int64_t keys)
        : right(size_t(PART / 2 * TILE)), sums(size_t(round_up(rows, ROW_PADDING) * TILE)), more_sums(sums.size()),
          scores(size_t(heads * round_up(keys, LANES))), mixed(size_t(heads * width)), shares(size_t(heads)),
          turned(mixed.size()) {}
};

constexpr int TOGETHER = 4;  // outputs of a bfloat16 weight

// Where to ask for weights while those of TOGETHER outputs, from `weight` on, are read at once: no processor follows so many
// by itself. Some KB ahead, however short a row is, and into the second cache (eights.h).
inline const bfloat16* coming_after(const bfloat16* weight, int64_t inputs) {
    return weight + std::max<int64_t>(TOGETHER * inputs, 4096);
}

// sums (R, TILE): `count` outputs of a bfloat16 weight, from `weight` on, for x (R, inputs).
template <int R>
void dense_rows(const bfloat16* weight, int64_t inputs, int64_t count, const float* x, float* sums) {
    for (int64_t o = 0; o < count; o += TOGETHER) {
        int64_t outputs = std::min<int64_t>(TOGETHER, count - o);
        floats parts[R][TOGETHER] = {};
        const bfloat16* rows[TOGETHER];
        for (int64_t n = 0; n < TOGETHER; n++) rows[n] = weight + (o + std::min(n, outputs - 1)) * inputs;
        const bfloat16* coming = coming_after(weight + o * inputs, inputs);
        for (int64_t i = 0; i < inputs; i += LANES) {
            for (int64_t n = 0; n < TOGETHER * LANES; n += LINE) __builtin_prefetch(coming + i * TOGETHER + n, 0, 2);
            floats values[TOGETHER];
            for (int n = 0; n < TOGETHER; n++) values[n] = load(rows[n] + i);
            for (int r = 0; r < R; r++) {
                floats each = load(x + r * inputs + i);
                for (int n = 0; n < TOGETHER; n++) parts[r][n] += values[n] * each;
            }
        }
        for (int r = 0; r < R; r++)
            for (int64_t n = 0; n < outputs; n++) sums[r * TILE + o + n] = sum_of(parts[r][n]);
    }
}

#if defined(__AVX512BF16__) && !defined(LEVERET_TILES)
#define LEVERET_DOTS
constexpr int64_t DOT_INPUTS = 1024;  // shorter rows do not pay for the sums across registers at their end

// sums (R, TILE): up to TOGETHER outputs of R rows of x, by the instruction that multiplies pairs. Weights are read as they
// lie, where `product` would have to turn them first. coming: those of the next outputs.
template <int R>
void dot_rows(const bfloat16* weight, int64_t inputs, int64_t outputs, const bfloat16* x, Coming& coming, float* sums) {
    __m512 parts[LANES / TOGETHER][TOGETHER] = {};
    const bfloat16* rows[TOGETHER];
    for (int64_t n = 0; n < TOGETHER; n++) rows[n] = weight + std::min(n, outputs - 1) * inputs;
    for (int64_t i = 0; i < inputs; i += LINE) {
        coming.ask();
        __m512bh values[TOGETHER];
        for (int n = 0; n < TOGETHER; n++) values[n] = (__m512bh)_mm512_loadu_si512(rows[n] + i);
        for (int r = 0; r < R; r++) {
            __m512bh each = (__m512bh)_mm512_loadu_si512(x + r * inputs + i);
            for (int n = 0; n < TOGETHER; n++) parts[r][n] = _mm512_dpbf16_ps(parts[r][n], values[n], each);
        }
    }
    floats whole = sums_of(reinterpret_cast<const floats*>(parts));
    for (int r = 0; r < R; r++)
        for (int64_t n = 0; n < outputs; n++) sums[r * TILE + n] = whole[r * TOGETHER + n];
}

// The same for `count` outputs and any number of rows; each row gets the same bits whatever is beside it.
void dot_tile(const bfloat16* weight, int64_t inputs, int64_t count, const bfloat16* x, int64_t rows, float* sums) {
    for (int64_t o = 0; o < count; o += TOGETHER) {
        const bfloat16* few = weight + o * inputs;
        int64_t row = 0, outputs = std::min<int64_t>(TOGETHER, count - o);
        Coming coming(coming_after(few, inputs), outputs * inputs * 2, (rows + 3) / 4 * (inputs / LINE));
        for (; row + 4 <= rows; row += 4) dot_rows<4>(few, inputs, outputs, x + row * inputs, coming, sums + row * TILE + o);
        auto rest = rows - row == 3 ? dot_rows<3> : rows - row == 2 ? dot_rows<2> : dot_rows<1>;
        if (row < rows) rest(few, inputs, outputs, x + row * inputs, coming, sums + row * TILE + o);
    }
}
#endif

void dense_tile(const Linear& linear, int64_t tile, const Rows& x, int64_t begin, int64_t rows, Scratch& scratch,
                float* sums) {
    int64_t inputs = linear.inputs, count = std::min(TILE, linear.columns - tile * TILE);
    const bfloat16* weight = static_cast<const bfloat16*>(linear.data) + tile * TILE * inputs;
    const bfloat16* numbers = x.numbers.data() + begin * inputs;
#if defined(LEVERET_DOTS)
    if (inputs >= DOT_INPUTS) return dot_tile(weight, inputs, count, numbers, rows, sums);
#endif
    if (x.few_dense) {
        int64_t row = 0;
        const float* wide = x.wide.data() + begin * inputs;
        for (; row + 4 <= rows; row += 4) dense_rows<4>(weight, inputs, count, wide + row * inputs, sums + row * TILE);
        for (; row < rows; row++) dense_rows<1>(weight, inputs, count, wide + row * inputs, sums + row * TILE);
        return;
    }
    for (int64_t first = 0; first < inputs; first += PART) {
        int64_t part = std::min(PART, inputs - first);
        turn_rows(weight + first, inputs, count, TILE, part, scratch.right.data());
        Left left{reinterpret_cast<const word*>(numbers + first), inputs / 2, 1};
        product(left, round_up(rows, ROW_PADDING), scratch.right.data(), TILE, TILE, part / 2, sums, TILE, first > 0);
    }
}

template <int BITS>
void integer_tile(const Linear& linear, int64_t tile, const Rows& x, const Eights& eights, int64_t begin, int64_t rows,
                  Scratch& scratch, float* sums) {
    Weight weight{static_cast<const word*>(linear.data), linear.scales, linear.zeros, float(linear.zero),
                  linear.inputs, linear.outputs, linear.group};
    Levels<BITS> levels;
    if (linear.rounds) eights_of_tile<BITS>(weight, tile, eights.from(begin), rows, scratch.right.data(), sums);
    else if (x.few) few_rows_of_tile<BITS>(weight, levels, tile, x.wide.data() + begin * x.columns, rows, sums);
    else many_rows_of_tile<BITS>(weight, levels, tile, x.numbers.data() + begin * x.columns, rows, scratch.right.data(), sums);
}

// sums (rows, TILE) = x weight^T for one tile of outputs and the rows of x from `begin` on; eights: x as this weight
// wants it, if it rounds.
void multiply_tile(const Linear& linear, int64_t tile, const Rows& x, const Eights& eights, int64_t begin, int64_t rows,
                   Scratch& scratch, float* sums) {
    if (linear.bits == 16) dense_tile(linear, tile, x, begin, rows, scratch, sums);
    else if (linear.bits == 4) integer_tile<4>(linear, tile, x, eights, begin, rows, scratch, sums);
    else integer_tile<8>(linear, tile, x, eights, begin, rows, scratch, sums);
}

// One of the numbers in between, for one row of x.
float squeeze(const Change& change, const bfloat16* x, int64_t inputs, int64_t nth) {
    return to_float(to_bfloat16(sum_of(parts_of_dot(change.down + nth * inputs, x, inputs))));
}

// sums (TILE,) += what the change adds to one tile of outputs of one row.
void add_change(const Change& change, int64_t tile, const float* squeezed, float* sums) {
    const bfloat16* up = change.up + tile * change.rank * TILE;
    for (int64_t c = 0; c < TILE; c += LANES) {
        floats added{};
        for (int64_t nth = 0; nth < change.rank; nth++) added += squeezed[nth] * load(up + nth * TILE + c);
        store(load(sums + c) + float(change.scale) * added, sums + c);
    }
}

bool reads_alike(const Linear& a, const Linear& b) {
    return a.rounds && b.rounds && a.bits == b.bits && a.order == b.order && block_of(a.group) == block_of(b.group);
}

int64_t tiles_of(const Linear& linear) { return (linear.columns + TILE - 1) / TILE; }

}  // namespace
