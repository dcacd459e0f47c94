// Products of activations with weights of four or eight bits, a tile of outputs to each thread (integers.h).
#include "eights.h"

namespace {

template <int BITS, typename Number>
void multiply_few(const Weight& weight, const Number* x, int64_t rows, Number* out, int64_t columns,
                  int threads) {
    std::vector<float> wide = widened(x, rows * weight.inputs);
    Levels<BITS> levels;
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> sums(size_t(rows * TILE));
#pragma omp for schedule(static)
        for (int64_t tile = 0; tile < weight.outputs / TILE; tile++) {
            few_rows_of_tile<BITS>(weight, levels, tile, wide.data(), rows, sums.data());
            place_tile(sums.data(), rows, tile, out, columns);
        }
    }
}

template <int BITS>
void multiply_many(const Weight& weight, const bfloat16* x, int64_t rows, bfloat16* out,
                   int64_t columns, int threads) {
    Levels<BITS> levels;
    std::vector<bfloat16> padded;  // products in tiles read rows in sixteens
    if (rows % ROW_PADDING != 0) {
        padded.resize(size_t(round_up(rows, ROW_PADDING) * weight.inputs));
        std::memcpy(padded.data(), x, size_t(rows * weight.inputs) * sizeof(bfloat16));
        x = padded.data();
    }
#pragma omp parallel num_threads(threads)
    {
        Tiles tiles;
        std::vector<word> right(size_t(PART / 2 * TILE));
        std::vector<float> sums(size_t(round_up(rows, ROW_PADDING) * TILE));
#pragma omp for schedule(static)
        for (int64_t tile = 0; tile < weight.outputs / TILE; tile++) {
            many_rows_of_tile<BITS>(weight, levels, tile, x, rows, right.data(), sums.data());
            place_tile(sums.data(), rows, tile, out, columns);
        }
    }
}

// The rows in eight bits; columns in `order`, or as they are where that is null.
template <int BITS, typename Number>
void multiply_eights(const Weight& weight, const Number* x, const int64_t* order, int64_t rows, Number* out,
                     int64_t columns, int threads) {
    EightsRoom room(rows, weight.inputs);
    Eights eights = room.of(weight.inputs, block_of(weight.group));
#pragma omp parallel num_threads(threads)
    {
        Tiles tiles;
        std::vector<word> right(size_t((CHUNK / 4 + 32) * TILE));
        std::vector<float> sums(size_t(rows * TILE));
#pragma omp for schedule(static)
        for (int64_t part = 0; part < rows * eights.blocks; part++) {
            int64_t row = part / eights.blocks;
            round_part(x + row * weight.inputs, order, BITS, row, part % eights.blocks, eights);
        }
#pragma omp for schedule(static)
        for (int64_t tile = 0; tile < weight.outputs / TILE; tile++) {
            eights_of_tile<BITS>(weight, tile, eights, rows, right.data(), sums.data());
            place_tile(sums.data(), rows, tile, out, columns);
        }
    }
}

// `count` numbers in eight bits around 128, four to every TILE-th word; null: zeros. Returns their scale in float16, which is
// none if a number is, so that it is not lost.
uint16_t round_column(const bfloat16* from, int64_t count, word* to) {
    floats tops{}, sums{};
    for (int64_t i = 0; from != nullptr && i < count; i += LANES) {
        floats value = load(from + i);
        tops = larger(larger(value, -value), tops);
        sums += value * 0.0f;
    }
    uint16_t scale = to_half(highest_of(tops) / 127.0f + sum_of(sums));
    float factor = scale == 0 ? 0.0f : 1.0f / from_half(scale);
    for (int64_t i = 0; i < count; i += LANES) {
        floats value = from == nullptr ? floats{} : load(from + i) * factor;
        value = value > 127.0f ? all(127.0f) : larger(value, all(-128.0f));  // NaN: -128
        word four[LANES / 4];
        *(bytes*)four = __builtin_convertvector(nearest(value), bytes) ^ int8_t(-128);
        for (int64_t place = 0; place < LANES / 4; place++) to[(i / 4 + place) * TILE] = four[place];
    }
    return scale;
}

}  // namespace

// out (rows, columns) = x (rows, inputs) weight^T. inputs and group: multiples of 32.
// bits: 4 or 8.
// way: 0 with the activations as they are; 1 with parts of the weight in bfloat16 (bfloat16 activations only), which pays
// for many rows; 2 with activations in eight bits.
// order (inputs,): which column of x each of the weight's inputs is, for way 2; null: the same.
LEVERET_EXPORT void leveret_integer_product(const void* x, int64_t rows, int is_bfloat16, int way, int bits,
                                            const uint32_t* words, const uint16_t* scales, const uint8_t* zeros, float zero,
                                            int64_t inputs, int64_t outputs, int64_t group, const int64_t* order,
                                            void* out, int64_t columns, int threads) {
    Weight weight{words, scales, zeros, zero, inputs, outputs, group};
    auto few = [&](auto number) {
        using Number = decltype(number);
        auto multiply = bits == 4 ? multiply_few<4, Number> : multiply_few<8, Number>;
        multiply(weight, static_cast<const Number*>(x), rows, static_cast<Number*>(out), columns, threads);
    };
    auto eights = [&](auto number) {
        using Number = decltype(number);
        auto multiply = bits == 4 ? multiply_eights<4, Number> : multiply_eights<8, Number>;
        multiply(weight, static_cast<const Number*>(x), order, rows, static_cast<Number*>(out), columns, threads);
    };
    if (way == 2) {
        if (is_bfloat16) eights(bfloat16{});
        else eights(float{});
    } else if (way == 1) {
        auto multiply = bits == 4 ? multiply_many<4> : multiply_many<8>;
        multiply(weight, static_cast<const bfloat16*>(x), rows, static_cast<bfloat16*>(out), columns, threads);
    } else if (is_bfloat16) {
        few(bfloat16{});
    } else {
        few(float{});
    }
}

// A bfloat16 weight (columns, inputs) in eight bits, around 128, in the layout of integers.h; group: a multiple of 32.
LEVERET_EXPORT void leveret_round_weight(const bfloat16* weight, int64_t columns, int64_t inputs, int64_t group,
                                         uint32_t* words, uint16_t* scales, int threads) {
    int64_t tiles = (columns + TILE - 1) / TILE, groups = inputs / group;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t part = 0; part < tiles * groups; part++) {
        int64_t tile = part / groups, first = part % groups * group;
        word* to = words + (tile * inputs + first) / 4 * TILE;
        for (int64_t o = 0; o < TILE; o++, to++) {
            int64_t column = tile * TILE + o;
            scales[part * TILE + o] = round_column(column < columns ? weight + column * inputs + first : nullptr, group, to);
        }
    }
}

// Products of small whole numbers with activations in eight bits, one row and many; 0 when all are right.
LEVERET_EXPORT int leveret_check_eights() {
    constexpr int64_t rows = 40, inputs = 256, group = 128;
    std::vector<float> x(size_t(rows * inputs));
    for (size_t i = 0; i < x.size(); i++) x[i] = i % 128 == 0 ? 127.0f : float(int64_t(i * 7919 % 255) - 127);  // scale: 1
    std::vector<uint16_t> scales(size_t(inputs / group * TILE), 0x3c00);  // 1
    for (int bits : {4, 8}) {
        int64_t fields = 32 / bits;
        std::vector<word> words(size_t(inputs / fields * TILE));
        for (size_t i = 0; i < words.size(); i++) words[i] = word(i * 2654435761u) ^ word(i << 7);
        for (int64_t count : {int64_t(1), rows}) {
            std::vector<float> found(size_t(count * TILE));
            leveret_integer_product(x.data(), count, 0, 2, bits, words.data(), scales.data(), nullptr, 7.0f, inputs, TILE,
                                    group, nullptr, found.data(), TILE, 1);
            for (int64_t row = 0; row < count; row++)
                for (int64_t o = 0; o < TILE; o++) {
                    int64_t exact = 0;
                    for (int64_t i = 0; i < inputs; i++) {
                        word level = words[size_t(i / fields * TILE + o)] >> (i % fields * bits) & ((1u << bits) - 1);
                        exact += (int64_t(level) - 7) * int64_t(x[size_t(row * inputs + i)]);
                    }
                    if (found[size_t(row * TILE + o)] != float(exact)) return bits;
                }
        }
    }
    return 0;
}
