// Muon's direction: rounds of X <- a X + b (X X^T) X + c (X X^T)^2 X, a matrix to each thread.
//
// Products of matrices this small cost more between them than within: a library rounds, copies and adds in passes of its
// own, and computes both halves of the symmetric X X^T and (X X^T)^2. Here a matrix and all that a round makes of it stay in
// the core's second-level cache, only the upper blocks of a symmetric product are computed, and what follows a product
// is done with its numbers at hand.
#include "products.h"

#include <vector>

namespace {

constexpr int64_t BLOCK = 64, SQUARE = 16;

const word* as_words(const bfloat16* numbers) { return reinterpret_cast<const word*>(numbers); }

// A matrix with its sides rounded up to whole blocks (what is added stays zero), and room for what a round makes of it.
struct Work {
    int64_t side, width;
    std::vector<bfloat16> matrix, square, factor;
    std::vector<word> right;
    std::vector<float> sums;

    Work(int64_t rows, int64_t columns)
        : side(round_up(rows, BLOCK)), width(round_up(columns, BLOCK)), matrix(size_t(side * width)),
          square(size_t(side * side)), factor(size_t(side * side)), right(size_t(side * width / 2)),
          sums(size_t(BLOCK * width)) {}
};

// to (columns, rows) = from (rows, columns), turned.
void turn(const bfloat16* from, int64_t from_row, int64_t rows, int64_t columns, bfloat16* to, int64_t to_row) {
    for (int64_t i = 0; i < rows; i += SQUARE)
        for (int64_t j = 0; j < columns; j++)
            for (int64_t k = i; k < std::min(i + SQUARE, rows); k++) to[j * to_row + k] = from[k * from_row + j];
}

// Sixteen by sixteen numbers, turned and rounded.
void turn_rounded(const float* from, int64_t from_row, bfloat16* to, int64_t to_row) {
    float turned[SQUARE * SQUARE];
#if defined(__AVX512F__)
    __m512i rows[SQUARE];
    for (int64_t i = 0; i < SQUARE; i++) rows[i] = _mm512_loadu_si512(from + i * from_row);
    turn_square(rows, reinterpret_cast<word*>(turned), SQUARE);
#else
    for (int64_t i = 0; i < SQUARE; i++)
        for (int64_t j = 0; j < SQUARE; j++) turned[j * SQUARE + i] = from[i * from_row + j];
#endif
    for (int64_t j = 0; j < SQUARE; j++)
        for (int64_t i = 0; i < SQUARE; i += LANES) store(load(turned + j * SQUARE + i), to + j * to_row + i);
}

// out (side, side) = finish(left right), which is symmetric: left (side, 2 inner) in rows, right (inner, side) as words.
// finish(sums, i): what becomes of the sums that belong to out[i], out[i + 1], ...
template <typename Finish>
void symmetric_product(const bfloat16* left, const word* right, int64_t inner, int64_t side, float* sums, bfloat16* out,
                       Finish finish) {
    for (int64_t first = 0; first < side; first += BLOCK) {
        int64_t count = side - first;
        product({as_words(left + first * 2 * inner), inner, 1}, BLOCK, right + first, side, count, inner, sums, count, false);
        for (int64_t r = 0; r < BLOCK; r++)
            for (int64_t c = 0; c < count; c += LANES) {
                int64_t place = (first + r) * side + first + c;
                floats finished = finish(load(sums + r * count + c), place);
                store(finished, sums + r * count + c);
                store(finished, out + place);
            }
        for (int64_t c = BLOCK; c < count; c += SQUARE)
            for (int64_t r = 0; r < BLOCK; r += SQUARE)
                turn_rounded(sums + r * count + c, count, out + (first + c) * side + first + r, side);
    }
}

void one_round(Work& work, float a, float b, float c) {
    int64_t side = work.side, width = work.width;
    bfloat16 *matrix = work.matrix.data(), *square = work.square.data(), *factor = work.factor.data();
    word* right = work.right.data();
    float* sums = work.sums.data();
    turn_rows(matrix, width, side, side, width, right);
    symmetric_product(matrix, right, width / 2, side, sums, square, [](floats sum, int64_t) { return sum; });
    pair_rows(square, side, side, side, side, right);
    symmetric_product(square, right, side / 2, side, sums, factor,
                      [=](floats sum, int64_t place) { return b * load(square + place) + c * sum; });
    pair_rows(matrix, width, side, side, width, right);
    for (int64_t first = 0; first < side; first += BLOCK) {
        product({as_words(factor + first * side), side / 2, 1}, BLOCK, right, width, width, side / 2, sums, width, false);
        bfloat16* rows = matrix + first * width;
        for (int64_t i = 0; i < BLOCK * width; i += LANES) store(a * load(rows + i) + load(sums + i), rows + i);
    }
}

}  // namespace

// matrices (count, rows, columns), in place. Of a tall matrix the turned one goes through the rounds.
LEVERET_EXPORT void leveret_orthogonalize(bfloat16* matrices, int64_t count, int64_t rows, int64_t columns, int rounds,
                                          float a, float b, float c, int threads) {
    bool tall = rows > columns;
#pragma omp parallel num_threads(threads)
    {
        Tiles tiles;
        Work work(std::min(rows, columns), std::max(rows, columns));
#pragma omp for schedule(static)
        for (int64_t n = 0; n < count; n++) {
            bfloat16* given = matrices + n * rows * columns;
            if (tall) turn(given, columns, rows, columns, work.matrix.data(), work.width);
            else
                for (int64_t i = 0; i < rows; i++)
                    std::memcpy(work.matrix.data() + i * work.width, given + i * columns, size_t(columns) * sizeof(bfloat16));
            for (int round = 0; round < rounds; round++) one_round(work, a, b, c);
            if (tall) turn(work.matrix.data(), work.width, columns, rows, given, columns);
            else
                for (int64_t i = 0; i < rows; i++)
                    std::memcpy(given + i * columns, work.matrix.data() + i * work.width, size_t(columns) * sizeof(bfloat16));
        }
    }
}
