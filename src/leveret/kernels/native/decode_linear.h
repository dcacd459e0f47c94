// The Linears of a decode step: plain or quantized weights, with what an adapter adds, a tile of outputs at a time.
#pragma once

#include "eights.h"
#include "nf4.h"

namespace {

constexpr int64_t FEW = 8, FEW_DENSE = 4;  // rows: up to here integers, and bfloat16 weights, are multiplied as they lie
constexpr int64_t LINE = 32;               // numbers of bfloat16 that come from memory together

// What an adapter makes of a product with x: it adds scale * up (down x), `rank` numbers in between, and may then multiply
// each output by a number (DoRA).
struct Change {
    int64_t rank;
    const bfloat16* down;  // (rank, inputs)
    const bfloat16* up;    // (tiles of outputs, rank, TILE)
    const float* factors;  // (tiles of outputs, TILE): of the product with the change added; null: 1
    double scale;
};

struct Linear {
    int64_t bits;  // 16: bfloat16 (columns, inputs), or numbers to be looked up; 4 or 8: as in integers.h
    int64_t inputs, outputs, columns, group;
    const void* data;
    const uint16_t* scales;
    const uint8_t* zeros;
    double zero;
    const int64_t* order;  // which input each column of the weight is for; null: the same
    int64_t rounds;        // activations in eight bits
    const FourBits* numbers;       // null: `data` are the weights
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
    std::vector<bfloat16> turned, written;

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

// sums (R, TILE): up to TOGETHER outputs of R rows of x. coming: the weights of the next outputs.
template <int R>
void wide_rows(const bfloat16* weight, int64_t inputs, int64_t outputs, const float* x, Coming& coming, float* sums) {
    floats parts[R][TOGETHER] = {};
    const bfloat16* rows[TOGETHER];
    for (int64_t n = 0; n < TOGETHER; n++) rows[n] = weight + std::min(n, outputs - 1) * inputs;
    for (int64_t i = 0; i < inputs; i += LANES) {
        if (i % LINE == 0) coming.ask();
        floats values[TOGETHER];
        for (int n = 0; n < TOGETHER; n++) values[n] = load(rows[n] + i);
        for (int r = 0; r < R; r++) {
            floats each = load(x + r * inputs + i);
            for (int n = 0; n < TOGETHER; n++) parts[r][n] += values[n] * each;
        }
    }
    for (int r = 0; r < R; r++)
        for (int64_t n = 0; n < outputs; n++) sums[r * TILE + n] = sum_of(parts[r][n]);
}

#if defined(__AVX512BF16__)
constexpr int64_t DOT_INPUTS = 1024;  // shorter rows do not pay for the sums across registers at their end

// The same by the instruction that multiplies pairs. Weights are read as they lie, where `product` would have to turn them.
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

bool multiplies_pairs(int64_t inputs) { return inputs >= DOT_INPUTS; }

// Many rows pay for tiles, for which weights have to be turned.
#if defined(LEVERET_TILES)
bool as_they_lie(const Rows& x) { return x.few; }
#else
bool as_they_lie(const Rows&) { return true; }
#endif
#else
template <int R>
void dot_rows(const bfloat16*, int64_t, int64_t, const bfloat16*, Coming&, float*) {}

bool multiplies_pairs(int64_t) { return false; }
bool as_they_lie(const Rows&) { return false; }
#endif

// `part` inputs, from `first` on, of a few outputs' weights: where they lie, or written out.
struct Weights {
    const bfloat16* data;
    int64_t row;
};

Weights weights_of(const Linear& linear, int64_t output, int64_t outputs, int64_t first, int64_t part, Scratch& scratch) {
    int64_t place = output * linear.inputs + first;
    if (linear.numbers == nullptr) return {static_cast<const bfloat16*>(linear.data) + place, linear.inputs};
    if (int64_t(scratch.written.size()) < outputs * part) scratch.written.resize(size_t(outputs * part));
    for (int64_t n = 0; n < outputs; n++)
        write_numbers(*linear.numbers, place + n * linear.inputs, part, scratch.written.data() + n * part);
    return {scratch.written.data(), part};
}

// All rows of x, a few outputs after the other; each row gets the same bits whatever is beside it.
void dense_tile_as_it_lies(const Linear& linear, int64_t tile, const Rows& x, int64_t begin, int64_t rows, Scratch& scratch,
                           float* sums) {
    int64_t inputs = linear.inputs, count = std::min(TILE, linear.columns - tile * TILE);
    for (int64_t o = 0; o < count; o += TOGETHER) {
        int64_t outputs = std::min<int64_t>(TOGETHER, count - o);
        const bfloat16* weight = weights_of(linear, tile * TILE + o, outputs, 0, inputs, scratch).data;
        bool lies = linear.numbers == nullptr;
        Coming coming(lies ? coming_after(weight, inputs) : nullptr, lies ? outputs * inputs * 2 : 0,
                      (rows + 3) / 4 * (inputs / LINE));
        auto use = [&](auto wide, auto dot, int64_t row) {
            if (multiplies_pairs(inputs))
                dot(weight, inputs, outputs, x.numbers.data() + (begin + row) * inputs, coming, sums + row * TILE + o);
            else
                wide(weight, inputs, outputs, x.wide.data() + (begin + row) * inputs, coming, sums + row * TILE + o);
        };
        int64_t row = 0;
        for (; row + 4 <= rows; row += 4) use(wide_rows<4>, dot_rows<4>, row);
        if (rows - row == 3) use(wide_rows<3>, dot_rows<3>, row);
        if (rows - row == 2) use(wide_rows<2>, dot_rows<2>, row);
        if (rows - row == 1) use(wide_rows<1>, dot_rows<1>, row);
    }
}

void dense_tile(const Linear& linear, int64_t tile, const Rows& x, int64_t begin, int64_t rows, Scratch& scratch,
                float* sums) {
    int64_t inputs = linear.inputs, count = std::min(TILE, linear.columns - tile * TILE);
    if (x.few_dense || (multiplies_pairs(inputs) && as_they_lie(x)))
        return dense_tile_as_it_lies(linear, tile, x, begin, rows, scratch, sums);
    for (int64_t first = 0; first < inputs; first += PART) {
        int64_t part = std::min(PART, inputs - first);
        Weights weights = weights_of(linear, tile * TILE, count, first, part, scratch);
        turn_rows(weights.data, weights.row, count, TILE, part, scratch.right.data());
        Left left{reinterpret_cast<const word*>(x.numbers.data() + begin * inputs + first), inputs / 2, 1};
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
        floats sum = load(sums + c) + float(change.scale) * added;
        store(change.factors == nullptr ? sum : sum * load(change.factors + tile * TILE + c), sums + c);
    }
}

bool reads_alike(const Linear& a, const Linear& b) {
    return a.rounds && b.rounds && a.bits == b.bits && a.order == b.order && block_of(a.group) == block_of(b.group);
}

int64_t tiles_of(const Linear& linear) { return (linear.columns + TILE - 1) / TILE; }

}  // namespace
