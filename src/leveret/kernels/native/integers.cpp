// Products of activations with weights of four or eight bits, which are read as they are stored.
//
// A token that is generated reads every weight once, so the fewer bytes a weight has, the sooner it is done. Sixty-four
// outputs are a tile: for each of them a word holds the next eight levels (four bits) or four (eight bits) along the inputs,
// so that a register has one word of several outputs, and a shift and a table turn it into as many float32 numbers. A
// level stands for
//
//     weight = scale * (level - zero)      scale and zero of the output's group of inputs
//
// and scale and zero are applied once a group, to sums. For many rows a part of a tile is written out in bfloat16 instead,
// small enough for the first-level cache, and multiplied like any matrix.
#include "products.h"

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
    const uint16_t* scales;  // (groups, outputs) float16
    const uint8_t* zeros;    // (groups, outputs), or null: `zero` for all
    float zero;
    int64_t inputs, outputs, group;  // outputs: rounded up to whole tiles
};

// What the levels of a word's field `j` are worth.
template <int BITS>
struct Levels {
    static constexpr int FIELDS = 32 / BITS;
    floats table{};

    explicit Levels(const float* values) {
        if (BITS == 4)
            for (int lane = 0; lane < std::min(LANES, 16); lane++) table[lane] = values == nullptr ? float(lane) : values[lane];
        values_ = values;
    }

    floats operator()(ints words, int j) const {
#if defined(__AVX512F__)
        if (BITS == 4) return (floats)_mm512_permutexvar_ps((__m512i)(words >> (4 * j)), (__m512)table);
#endif
        ints levels = (words >> (BITS * j)) & ((1 << BITS) - 1);
        if (BITS == 8 || values_ == nullptr) return __builtin_convertvector(levels, floats);
        floats found;
        for (int lane = 0; lane < LANES; lane++) found[lane] = values_[levels[lane]];
        return found;
    }

private:
    const float* values_;
};

floats zero_of(const Weight& weight, int64_t place) {
    return weight.zeros == nullptr ? all(weight.zero) : load_bytes(weight.zeros + place);
}

// sums (R, TILE) of the outputs of one tile; x (R, inputs), its sums over each group (R, groups). A row's sums do not
// depend on how many are done together.
template <int BITS, int R>
void few_rows(const Weight& weight, const Levels<BITS>& levels, int64_t tile, const float* x, const float* group_sums,
              float* sums) {
    constexpr int FIELDS = Levels<BITS>::FIELDS;
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
        for (int c = 0; c < REGISTERS; c++) {
            int64_t place = g * weight.outputs + tile * TILE + c * LANES;
            floats scale = load_halves(weight.scales + place), zero = zero_of(weight, place);
            for (int r = 0; r < R; r++) {
                float* out = sums + r * TILE + c * LANES;
                store(load(out) + scale * (part[r][c] - zero * group_sums[r * groups + g]), out);
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
        int64_t row = (first + k * FIELDS) / weight.group * weight.outputs + tile * TILE;
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

template <int BITS, typename Number>
void multiply_few(const Weight& weight, const float* values, const Number* x, int64_t rows, Number* out,
                  int64_t out_columns, int threads) {
    int64_t groups = weight.inputs / weight.group;
    std::vector<float> wide(size_t(rows * weight.inputs)), group_sums(size_t(rows * groups));
    for (int64_t i = 0; i < rows * weight.inputs; i += LANES) store(load(x + i), wide.data() + i);
    for (int64_t n = 0; n < rows * groups; n++) {
        floats sum{};
        for (int64_t i = 0; i < weight.group; i += LANES) sum += load(wide.data() + n * weight.group + i);
        group_sums[size_t(n)] = sum_of(sum);
    }
    Levels<BITS> levels(values);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t tile = 0; tile < weight.outputs / TILE; tile++) {
        int64_t count = std::min(TILE, out_columns - tile * TILE);
        for (int64_t row = 0; row < rows;) {
            float sums[ROWS_TOGETHER * TILE] = {};
            const float *part = wide.data() + row * weight.inputs, *part_sums = group_sums.data() + row * groups;
            int64_t together = 1;
#if defined(__AVX512F__)
            if (rows - row >= 4) few_rows<BITS, 4>(weight, levels, tile, part, part_sums, sums), together = 4;
            else if (rows - row >= 2) few_rows<BITS, 2>(weight, levels, tile, part, part_sums, sums), together = 2;
            else
#endif
                few_rows<BITS, 1>(weight, levels, tile, part, part_sums, sums);
            for (int64_t r = 0; r < together; r++, row++)
                for_each_register(count, [&](int64_t i, auto lanes) {
                    lanes.store(lanes.load(sums + r * TILE + i), out + row * out_columns + tile * TILE + i);
                });
        }
    }
}

template <int BITS>
void multiply_many(const Weight& weight, const float* values, const bfloat16* x, int64_t rows, bfloat16* out,
                   int64_t out_columns, int threads) {
    Levels<BITS> levels(values);
    int64_t whole = rows / ROW_PADDING * ROW_PADDING, left_over = rows - whole;  // tiles read rows in sixteens
    std::vector<bfloat16> last(size_t(left_over == 0 ? 0 : ROW_PADDING * weight.inputs));
    if (left_over != 0) std::memcpy(last.data(), x + whole * weight.inputs, size_t(left_over * weight.inputs) * sizeof(bfloat16));
#pragma omp parallel num_threads(threads)
    {
        Tiles tiles;
        std::vector<word> right(size_t(PART / 2 * TILE));
        std::vector<float> sums(size_t(round_up(rows, ROW_PADDING) * TILE));
#pragma omp for schedule(static)
        for (int64_t tile = 0; tile < weight.outputs / TILE; tile++) {
            for (int64_t first = 0; first < weight.inputs; first += PART) {
                int64_t count = std::min(PART, weight.inputs - first), inner = weight.inputs / 2;
                write_out<BITS>(weight, levels, tile, first, count, right.data());
                auto multiply = [&](const bfloat16* from, int64_t number, float* to) {
                    Left left{reinterpret_cast<const word*>(from + first), inner, 1};
                    product(left, number, right.data(), TILE, TILE, count / 2, to, TILE, first > 0);
                };
                if (whole != 0) multiply(x, whole, sums.data());
                if (left_over != 0) multiply(last.data(), ROW_PADDING, sums.data() + whole * TILE);
            }
            int64_t count = std::min(TILE, out_columns - tile * TILE);
            for (int64_t row = 0; row < rows; row++)
                for_each_register(count, [&](int64_t i, auto lanes) {
                    lanes.store(lanes.load(sums.data() + row * TILE + i), out + row * out_columns + tile * TILE + i);
                });
        }
    }
}

}  // namespace

// out (rows, out_columns) = x (rows, inputs) weight^T. inputs and group: multiples of 32.
// bits: 4 or 8. table: what the sixteen levels of four bits are worth, or null: their numbers.
// written_out: multiply with parts of the weight in bfloat16 (bfloat16 activations only), which pays for many rows.
LEVERET_EXPORT void leveret_integer_product(const void* x, int64_t rows, int is_bfloat16, int written_out, int bits,
                                            const uint32_t* words, const uint16_t* scales, const uint8_t* zeros, float zero,
                                            const float* table, int64_t inputs, int64_t outputs, int64_t group, void* out,
                                            int64_t out_columns, int threads) {
    Weight weight{words, scales, zeros, zero, inputs, outputs, group};
    auto few = [&](auto number) {
        using Number = decltype(number);
        auto multiply = bits == 4 ? multiply_few<4, Number> : multiply_few<8, Number>;
        multiply(weight, table, static_cast<const Number*>(x), rows, static_cast<Number*>(out), out_columns, threads);
    };
    if (written_out) {
        auto multiply = bits == 4 ? multiply_many<4> : multiply_many<8>;
        multiply(weight, table, static_cast<const bfloat16*>(x), rows, static_cast<bfloat16*>(out), out_columns, threads);
    } else if (is_bfloat16) {
        few(bfloat16{});
    } else {
        few(float{});
    }
}
