// Products of activations with weights of four or eight bits, a tile of outputs to each thread (integers.h).
#include "integers.h"

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

}  // namespace

// out (rows, columns) = x (rows, inputs) weight^T. inputs and group: multiples of 32.
// bits: 4 or 8.
// written_out: multiply with parts of the weight in bfloat16 (bfloat16 activations only), which pays for many rows.
LEVERET_EXPORT void leveret_integer_product(const void* x, int64_t rows, int is_bfloat16, int written_out, int bits,
                                            const uint32_t* words, const uint16_t* scales, const uint8_t* zeros, float zero,
                                            int64_t inputs, int64_t outputs, int64_t group, void* out,
                                            int64_t columns, int threads) {
    Weight weight{words, scales, zeros, zero, inputs, outputs, group};
    auto few = [&](auto number) {
        using Number = decltype(number);
        auto multiply = bits == 4 ? multiply_few<4, Number> : multiply_few<8, Number>;
        multiply(weight, static_cast<const Number*>(x), rows, static_cast<Number*>(out), columns, threads);
    };
    if (written_out) {
        auto multiply = bits == 4 ? multiply_many<4> : multiply_many<8>;
        multiply(weight, static_cast<const bfloat16*>(x), rows, static_cast<bfloat16*>(out), columns, threads);
    } else if (is_bfloat16) {
        few(bfloat16{});
    } else {
        few(float{});
    }
}
