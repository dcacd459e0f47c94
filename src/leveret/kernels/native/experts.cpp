// What a mixture of experts does between its products: the gate with its weight, and the way back to the tokens.
//
// The rows of all experts lie one expert after the other, filled up with zeros; row `places[n * choices + j]` is what the j-th expert of token
// n answered. So every token finds its rows, and no two threads ever write the same one.
#include "registers.h"

// out[i] = rows[wanted[i]], or zeros where that is -1.
LEVERET_EXPORT void leveret_gather(const bfloat16* rows, const int64_t* wanted, bfloat16* out, int64_t count,
                                   int64_t width, int threads) {
    size_t bytes = size_t(width) * sizeof(bfloat16);
#pragma omp parallel num_threads(threads)
    {
        Share share(count, omp_get_thread_num(), omp_get_num_threads());
        for (int64_t i = share.first; i < share.last; i++) {
            if (wanted[i] < 0)
                std::memset(out + i * width, 0, bytes);
            else
                std::memcpy(out + i * width, rows + wanted[i] * width, bytes);
        }
    }
}

// out[n] = sum over j of weights[n, j] * rows[places[n, j]]; weights may be null (1 each).
LEVERET_EXPORT void leveret_combine(const bfloat16* rows, const int64_t* places, const float* weights, bfloat16* out,
                                    int64_t tokens, int64_t choices, int64_t width, int threads) {
#pragma omp parallel num_threads(threads)
    {
        Share share(tokens, omp_get_thread_num(), omp_get_num_threads());
        for (int64_t token = share.first; token < share.last; token++) {
            const int64_t* mine = places + token * choices;
            const float* shares = weights == nullptr ? nullptr : weights + token * choices;
            for_each_register(width, [&](int64_t i, auto part) {
                floats sum{};
                for (int64_t j = 0; j < choices; j++)
                    sum += (shares == nullptr ? 1.0f : shares[j]) * part.load(rows + mine[j] * width + i);
                part.store(sum, out + token * width + i);
            });
        }
    }
}

// Backward of weight * down(silu(gate) * up), from slope = dout . down for each row:
//   dgate = weight * slope * up * (s + g s (1 - s)),   dup = weight * slope * silu(g),   with s = sigmoid(g)
//   weighted = weight * silu(g) * up (what the gradient of `down` is made of),   dweight = sum of slope * silu(g) * up
LEVERET_EXPORT void leveret_weighted_swiglu_backward(const bfloat16* slope, const bfloat16* gate, const bfloat16* up,
                                                     const float* weights, bfloat16* dgate, bfloat16* dup,
                                                     bfloat16* weighted, float* dweights, int64_t rows, int64_t width,
                                                     int threads) {
#pragma omp parallel num_threads(threads)
    {
        Share share(rows, omp_get_thread_num(), omp_get_num_threads());
        for (int64_t row = share.first; row < share.last; row++) {
            int64_t first = row * width;
            float weight = weights[row];
            floats dots{};
            for_each_register(width, [&](int64_t place, auto part) {
                int64_t i = first + place;
                floats g = part.load(gate + i), u = part.load(up + i), d = part.load(slope + i), s = sigmoid(g);
                floats passed = g * s;
                dots += d * passed * u;
                part.store(weight * passed * u, weighted + i);
                part.store(weight * d * passed, dup + i);
                part.store(weight * d * u * (s + passed * (1.0f - s)), dgate + i);
            });
            dweights[row] = sum_of(dots);
        }
    }
}
