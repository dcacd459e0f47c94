// Products of bfloat16 matrices on processors that have no instruction for them: read as bfloat16, multiplied as float32.
//
// Without such an instruction libraries take two to ten times as long for bfloat16 as for float32. But reading bfloat16 is
// a shift, and a large product copies what it multiplies anyway, into the order in which it will be read (Goto and van de
// Geijn 2008, "Anatomy of High-Performance Matrix Multiplication"): here the copy is float32, and the rest is a product
// of float32 matrices. A task is a piece of the result whose sums, and the parts of both matrices they are made of, fit
// the second cache; the sums of TALL x WIDE registers stay in registers for DEEP steps.
//
// Every number of the result is one chain of additions in the order of the inner dimension, whoever computes it: the
// result is the same for any number of threads and beside any other rows.
#include "products.h"

#include <memory>

namespace {

#if defined(__AVX512F__)
constexpr int TALL = 6, WIDE = 4;
#elif defined(__AVX2__)
constexpr int TALL = 6, WIDE = 2;
#else
constexpr int TALL = 4, WIDE = 2;
#endif
constexpr int64_t WIDTH = WIDE * LANES;
constexpr int64_t ROWS_OF_PIECE = 192, COLUMNS_OF_PIECE = 256, DEEP = 256;

// Number (i, k) lies at data[i * row + k * step]; of a right matrix i counts the columns.
struct Strided {
    const bfloat16* data;
    int64_t row, step;
    Strided from(int64_t i, int64_t k) const { return {data + i * row + k * step, row, step}; }
};

#if defined(__AVX512F__)
constexpr int64_t SIDE = 16;
// Sixteen rows of 32 neighbors, turned: numbers k of all rows go to[k * to_row].
void turn(const bfloat16* from, int64_t row, int64_t rows, float* to, int64_t to_row) {
    __m512i square[SIDE];
    for (int64_t i = 0; i < SIDE; i++)
        square[i] = i < rows ? _mm512_loadu_si512(from + i * row) : _mm512_setzero_si512();
    alignas(64) word turned[SIDE * SIDE];
    turn_square(square, turned, SIDE);
    for (int64_t p = 0; p < SIDE; p++) {
        words both = *(const words*)(turned + p * SIDE);
        store((floats)(both << 16), to + 2 * p * to_row);
        store((floats)(both & 0xffff0000u), to + (2 * p + 1) * to_row);
    }
}
#else
constexpr int64_t SIDE = LANES;
void turn(const bfloat16* from, int64_t row, int64_t rows, float* to, int64_t to_row) {
    for (int64_t k = 0; k < 2 * SIDE; k++)
        for (int64_t i = 0; i < SIDE; i++) to[k * to_row + i] = i < rows ? to_float(from[i * row + k]) : 0.0f;
}
#endif

// The first `height` of the `rows` that are there (what is missing is 0), `depth` numbers each -> to[k * height + i]. Up to
// SIDE numbers behind the end may be written.
void pack_panel(Strided from, int64_t rows, int64_t height, int64_t depth, float* to) {
    int64_t k = 0;
    if (from.row == 1) {
        int64_t whole = rows < round_up(height, LANES) ? 0 : height;  // numbers that registers may hold, and some more
        for (; k < depth; k++) {
            const bfloat16* numbers = from.data + k * from.step;
            float* row = to + k * height;
            for (int64_t i = 0; i < whole; i += LANES) store(load(numbers + i), row + i);
            for (int64_t i = whole; i < height; i++) row[i] = i < rows ? to_float(numbers[i]) : 0.0f;
        }
        return;
    }
    if (from.step == 1)
        for (; k + 2 * SIDE <= depth; k += 2 * SIDE)
            for (int64_t i = 0; i < height; i += SIDE)
                turn(from.data + i * from.row + k, from.row, std::min(rows, height) - i, to + k * height + i, height);
    for (; k < depth; k++)
        for (int64_t i = 0; i < height; i++)
            to[k * height + i] = i < rows ? to_float(from.data[i * from.row + k * from.step]) : 0.0f;
}

void pack(Strided from, int64_t rows, int64_t height, int64_t depth, float* to) {
    for (int64_t i = 0; i < rows; i += height)
        pack_panel(from.from(i, 0), rows - i, height, depth, to + i * depth);
}

// sums (TALL, WIDTH) = or += left (depth, TALL), turned, times right (depth, WIDTH).
inline void multiply_panels(const float* left, const float* right, int64_t depth, float* sums, int64_t row, bool adds) {
    floats kept[TALL][WIDE];
    for (int r = 0; r < TALL; r++)
        for (int c = 0; c < WIDE; c++) kept[r][c] = adds ? load(sums + r * row + c * LANES) : floats{};
    for (int64_t k = 0; k < depth; k++) {
        floats columns[WIDE];
        for (int c = 0; c < WIDE; c++) columns[c] = load(right + k * WIDTH + c * LANES);
        for (int r = 0; r < TALL; r++)
            for (int c = 0; c < WIDE; c++) kept[r][c] += left[k * TALL + r] * columns[c];
    }
    for (int r = 0; r < TALL; r++)
        for (int c = 0; c < WIDE; c++) store(kept[r][c], sums + r * row + c * LANES);
}

// What a thread works in, kept for its next product; whole lines of the cache, or every other load would touch two.
struct Room {
    alignas(64) float left[ROWS_OF_PIECE * DEEP + LANES], right[COLUMNS_OF_PIECE * DEEP + LANES];
    alignas(64) float sums[ROWS_OF_PIECE * COLUMNS_OF_PIECE];
};

// The sums of a piece: left (rows, depth), right (columns, depth).
void multiply_piece(Strided left, Strided right, int64_t rows, int64_t columns, int64_t depth, Room& room) {
    for (int64_t k = 0; k < depth; k += DEEP) {
        int64_t deep = std::min(DEEP, depth - k);
        pack(left.from(0, k), rows, TALL, deep, room.left);
        pack(right.from(0, k), columns, WIDTH, deep, room.right);
        for (int64_t n = 0; n < columns; n += WIDTH)
            for (int64_t m = 0; m < rows; m += TALL)
                multiply_panels(room.left + m * deep, room.right + n * deep, deep,
                                room.sums + m * COLUMNS_OF_PIECE + n, COLUMNS_OF_PIECE, k > 0);
    }
}

template <typename Number>
void write_out(const Room& room, int64_t rows, int64_t columns, float scale, bool adds, Number* out, int64_t row) {
    for (int64_t m = 0; m < rows; m++) {
        const float* sums = room.sums + m * COLUMNS_OF_PIECE;
        for_each_register(columns, [&](int64_t n, auto part) {
            floats sum = scale * part.load(sums + n);
            part.store(adds ? sum + part.load(out + m * row + n) : sum, out + m * row + n);
        });
    }
}

template <typename Number>
void multiply(Strided left, Strided right, Number* out, int64_t out_row, int64_t rows, int64_t columns, int64_t depth,
              float scale, bool adds, int threads) {
    int64_t across = (columns + COLUMNS_OF_PIECE - 1) / COLUMNS_OF_PIECE, height = ROWS_OF_PIECE;
    while (height > 8 * TALL && (rows + height - 1) / height * across < 4 * threads) height /= 2;
    height = round_up(height, TALL);
    int64_t down = (rows + height - 1) / height;
    height = round_up((rows + down - 1) / down, TALL);
    int64_t width = round_up((columns + across - 1) / across, WIDTH);
#pragma omp parallel num_threads(threads)
    {
        static thread_local auto kept = std::make_unique<Room>();
        Room& room = *kept;
#pragma omp for schedule(dynamic)
        for (int64_t piece = 0; piece < down * across; piece++) {
            int64_t m = piece / across * height, n = piece % across * width;
            int64_t tall = std::min(height, rows - m), wide = std::min(width, columns - n);
            if (tall <= 0 || wide <= 0) continue;
            multiply_piece(left.from(m, 0), right.from(n, 0), tall, wide, depth, room);
            write_out(room, tall, wide, scale, adds, out + m * out_row + n, out_row);
        }
    }
}

}  // namespace

// out (rows, columns) = scale * left (rows, depth) right (depth, columns), or that added to out, in float32 or bfloat16.
// A matrix's number (i, j) lies at i * its row + j * its step; one of the two is 1 where it should be fast.
LEVERET_EXPORT void leveret_multiply(const bfloat16* left, int64_t left_row, int64_t left_step, const bfloat16* right,
                                     int64_t right_row, int64_t right_step, void* out, int64_t out_row, int out_floats,
                                     int64_t rows, int64_t columns, int64_t depth, float scale, int adds, int threads) {
    Strided a{left, left_row, left_step}, b{right, right_step, right_row};
    if (out_floats) multiply(a, b, (float*)out, out_row, rows, columns, depth, scale, adds != 0, threads);
    else multiply(a, b, (bfloat16*)out, out_row, rows, columns, depth, scale, adds != 0, threads);
}
