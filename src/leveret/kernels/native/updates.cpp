// What an optimizer does elementwise over flat float32 buffers: sums of gradients, and what surrounds Muon's products.
//
// It reads and writes a few numbers a parameter and computes almost nothing, so every pass saved is time saved. Muon is
// two passes before its products (the momentum and its length, then the scaled direction in bfloat16) and one after
// them, which also writes the model's bfloat16 weights.
#include "registers.h"

#include <algorithm>
#include <vector>

namespace {

constexpr int64_t PIECE = 16384;  // numbers that are summed before their sum is added to others: a fixed order

int64_t pieces_of(int64_t count) { return (count + PIECE - 1) / PIECE; }

}  // namespace

// For each matrix of `count` numbers, which begins at starts[n] of the flat buffers:
//   m <- mu m + g    d = g + mu m    directions[n] = d / |d|        with g = factor * gradient
LEVERET_EXPORT void leveret_muon_directions(const float* gradients, float* momenta, const int64_t* starts,
                                            int64_t matrices, int64_t count, float factor, float mu,
                                            bfloat16* directions, int threads) {
    int64_t pieces = pieces_of(count);
    std::vector<float> partial(size_t(matrices * pieces));
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (int64_t task = 0; task < matrices * pieces; task++) {
            int64_t first = task % pieces * PIECE, length = std::min(PIECE, count - first);
            const float* gradient = gradients + starts[task / pieces] + first;
            float* momentum = momenta + starts[task / pieces] + first;
            floats sum{};
            for_each_register(length, [&](int64_t i, auto part) {
                floats g = factor * part.load(gradient + i), m = mu * part.load(momentum + i) + g;
                part.store(m, momentum + i);
                floats direction = g + mu * m;
                sum += direction * direction;
            });
            partial[size_t(task)] = sum_of(sum);
        }
#pragma omp for schedule(static)
        for (int64_t task = 0; task < matrices * pieces; task++) {
            int64_t matrix = task / pieces, first = task % pieces * PIECE, length = std::min(PIECE, count - first);
            double sum = 0.0;
            for (int64_t piece = 0; piece < pieces; piece++) sum += partial[size_t(matrix * pieces + piece)];
            float share = 1.0f / (float(std::sqrt(sum)) + 1e-7f);
            const float *gradient = gradients + starts[matrix] + first, *momentum = momenta + starts[matrix] + first;
            bfloat16* direction = directions + matrix * count + first;
            for_each_register(length, [&](int64_t i, auto part) {
                part.store(share * (factor * part.load(gradient + i) + mu * part.load(momentum + i)), direction + i);
            });
        }
    }
}

// w <- keep w - size * update for each matrix; `weights` (may be null) receives them rounded.
LEVERET_EXPORT void leveret_muon_apply(float* masters, bfloat16* weights, const int64_t* starts, int64_t matrices,
                                       int64_t count, const bfloat16* updates, float keep, float size, int threads) {
    int64_t pieces = pieces_of(count);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t task = 0; task < matrices * pieces; task++) {
        int64_t matrix = task / pieces, first = task % pieces * PIECE, length = std::min(PIECE, count - first);
        float* master = masters + starts[matrix] + first;
        const bfloat16* update = updates + matrix * count + first;
        bfloat16* weight = weights == nullptr ? nullptr : weights + starts[matrix] + first;
        for_each_register(length, [&](int64_t i, auto part) {
            floats w = keep * part.load(master + i) - size * part.load(update + i);
            part.store(w, master + i);
            if (weight != nullptr) part.store(w, weight + i);
        });
    }
}

// total <- gradient, or total + gradient.
LEVERET_EXPORT void leveret_collect(const bfloat16* gradient, float* total, int64_t count, int adds, int threads) {
#pragma omp parallel num_threads(threads)
    {
        Share share(count, omp_get_thread_num(), omp_get_num_threads());
        for_each_register(share.last - share.first, [&](int64_t place, auto part) {
            int64_t i = share.first + place;
            floats value = part.load(gradient + i);
            part.store(adds ? value + part.load(total + i) : value, total + i);
        });
    }
}
