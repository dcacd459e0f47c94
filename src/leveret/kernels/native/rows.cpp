// What is done row by row between the products of a decoder layer: RMSNorm, SwiGLU, the softmax of the loss.
//
// All of it is bound by memory, and PyTorch needs three to eight passes over it, each with a fresh tensor between.
// Here each is one pass. Rows are divided among the threads in fixed shares; sums over rows are made per thread and
// then added in the order of the threads, so a result depends on the number of threads and on nothing else.
#include "registers.h"

#include <vector>

#define LEVERET_TEXT_OF(x) #x
#define LEVERET_TEXT(x) LEVERET_TEXT_OF(x)

// What the library was built from; Python compares it with the sources beside it.
LEVERET_EXPORT const char* leveret_source_hash() { return LEVERET_TEXT(LEVERET_SOURCE_HASH); }

// y = s * rstd * weight with s = x + added (stored in `sum`), or s = x when `added` is null.
// rstd = 1 / sqrt(mean(s^2) + eps) is kept for backward. `rounds_before_scale`: Llama's way.
LEVERET_EXPORT void leveret_rms_norm(const bfloat16* x, const bfloat16* added, const bfloat16* weight, bfloat16* sum,
                                     bfloat16* y, float* rstd, int64_t rows, int64_t width, float eps,
                                     int rounds_before_scale, int threads) {
#pragma omp parallel num_threads(threads)
    {
        Share share(rows, omp_get_thread_num(), omp_get_num_threads());
        for (int64_t row = share.first; row < share.last; row++) {
            const bfloat16* in = x + row * width;
            floats squares{};
            if (added != nullptr) {
                const bfloat16* more = added + row * width;
                bfloat16* total = sum + row * width;
                for_each_register(width, [&](int64_t i, auto part) {
                    part.store(part.load(in + i) + part.load(more + i), total + i);
                    floats value = part.load(total + i);
                    squares += value * value;
                });
                in = total;
            } else {
                for_each_register(width, [&](int64_t i, auto part) {
                    floats value = part.load(in + i);
                    squares += value * value;
                });
            }
            float scale = 1.0f / std::sqrt(sum_of(squares) / float(width) + eps);
            rstd[row] = scale;
            bfloat16* out = y + row * width;
            for_each_register(width, [&](int64_t i, auto part) {
                floats normed = part.load(in + i) * scale;
                if (rounds_before_scale) normed = rounded(normed);
                part.store(normed * part.load(weight + i), out + i);
            });
        }
    }
}

// With g = dy * weight and n = s * rstd:  ds = rstd * (g - n * mean(g * n)),  dweight = sum over rows of dy * n.
// `dsum` (may be null) is what else reaches s, and is added.
LEVERET_EXPORT void leveret_rms_norm_backward(const bfloat16* dy, const bfloat16* dsum, const bfloat16* s,
                                              const bfloat16* weight, const float* rstd, bfloat16* ds, float* dweight,
                                              int64_t rows, int64_t width, int threads) {
    std::vector<float> partial(size_t(threads) * size_t(width), 0.0f);
#pragma omp parallel num_threads(threads)
    {
        Share share(rows, omp_get_thread_num(), omp_get_num_threads());
        float* sums = partial.data() + omp_get_thread_num() * width;
        for (int64_t row = share.first; row < share.last; row++) {
            const bfloat16 *in = s + row * width, *slope = dy + row * width;
            const bfloat16* more = dsum == nullptr ? nullptr : dsum + row * width;
            bfloat16* out = ds + row * width;
            float scale = rstd[row];
            floats dots{};
            for_each_register(width, [&](int64_t i, auto part) {
                floats product = part.load(slope + i) * part.load(in + i) * scale;
                part.store(part.load(sums + i) + product, sums + i);
                dots += product * part.load(weight + i);
            });
            float mean = sum_of(dots) / float(width) * scale;
            for_each_register(width, [&](int64_t i, auto part) {
                floats value = scale * (part.load(slope + i) * part.load(weight + i) - part.load(in + i) * mean);
                part.store(more == nullptr ? value : value + part.load(more + i), out + i);
            });
        }
    }
    for (int64_t i = 0; i < width; i++) {
        float sum = 0.0f;
        for (int thread = 0; thread < threads; thread++) sum += partial[size_t(thread * width + i)];
        dweight[i] = sum;
    }
}

// out = silu(gate) * up
LEVERET_EXPORT void leveret_swiglu(const bfloat16* gate, const bfloat16* up, bfloat16* out, int64_t count, int threads) {
#pragma omp parallel num_threads(threads)
    {
        Share share(count, omp_get_thread_num(), omp_get_num_threads());
        for_each_register(share.last - share.first, [&](int64_t place, auto part) {
            int64_t i = share.first + place;
            floats g = part.load(gate + i);
            part.store(g * sigmoid(g) * part.load(up + i), out + i);
        });
    }
}

// d silu(g) / dg = s + g s (1 - s) with s = sigmoid(g).
LEVERET_EXPORT void leveret_swiglu_backward(const bfloat16* dout, const bfloat16* gate, const bfloat16* up,
                                            bfloat16* dgate, bfloat16* dup, int64_t count, int threads) {
#pragma omp parallel num_threads(threads)
    {
        Share share(count, omp_get_thread_num(), omp_get_num_threads());
        for_each_register(share.last - share.first, [&](int64_t place, auto part) {
            int64_t i = share.first + place;
            floats g = part.load(gate + i), slope = part.load(dout + i), s = sigmoid(g);
            floats passed = g * s;
            part.store(slope * passed, dup + i);
            part.store(slope * part.load(up + i) * (s + passed * (1.0f - s)), dgate + i);
        });
    }
}

// For each row of logits: loss = factor * (log sum exp - target logit); with `slope` the logits become dloss/dlogits.
// The sum of the losses is returned in `loss`. `factors` may be null (1 each).
LEVERET_EXPORT void leveret_cross_entropy(bfloat16* logits, const int64_t* targets, const float* factors, double* loss,
                                          int64_t rows, int64_t width, int slope, int threads) {
    std::vector<double> partial(size_t(threads), 0.0);
#pragma omp parallel num_threads(threads)
    {
        Share share(rows, omp_get_thread_num(), omp_get_num_threads());
        std::vector<float> scores(static_cast<size_t>(width));
        double total = 0.0;
        for (int64_t row = share.first; row < share.last; row++) {
            bfloat16* here = logits + row * width;
            float* score = scores.data();
            floats tops = all(-INFINITY), sums{};
            for_each_register(width, [&](int64_t i, auto part) { tops = larger(part.load(here + i, -INFINITY), tops); });
            float highest = highest_of(tops), wanted = to_float(here[targets[row]]) - highest;
            for_each_register(width, [&](int64_t i, auto part) {
                floats value = exponential(part.load(here + i, -INFINITY) - highest);
                part.store(value, score + i);
                sums += value;
            });
            float sum = sum_of(sums), factor = factors == nullptr ? 1.0f : factors[row];
            total += double(factor) * (std::log(double(sum)) - double(wanted));
            if (slope) {
                score[targets[row]] -= sum;
                float scale = factor / sum;
                for_each_register(width, [&](int64_t i, auto part) { part.store(part.load(score + i) * scale, here + i); });
            }
        }
        partial[size_t(omp_get_thread_num())] = total;
    }
    *loss = 0.0;
    for (double each : partial) *loss += each;
}

// Where `wanted`, which is there, stands first. Blocks are asked without a branch in them, so many numbers at once.
static int64_t first_place(const bfloat16* here, int64_t width, float wanted) {
    constexpr int64_t block = 256;
    int64_t place = 0;
    for (; place + block < width; place += block) {
        unsigned found = 0;
        for (int64_t i = 0; i < block; i++) found |= unsigned(to_float(here[place + i]) == wanted);
        if (found) break;
    }
    while (place < width - 1 && to_float(here[place]) != wanted) place++;
    return place;
}

// The first of the largest numbers of each row; -1 if one of them is infinite or no number.
LEVERET_EXPORT void leveret_likeliest(const bfloat16* logits, int64_t rows, int64_t width, int64_t* ids, int threads) {
#pragma omp parallel for num_threads(threads < rows ? threads : int(rows)) schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        const bfloat16* here = logits + row * width;
        floats tops = all(-INFINITY), none{};
        for_each_register(width, [&](int64_t i, auto part) {
            floats value = part.load(here + i, -INFINITY);
            tops = larger(value, tops);
            none = value == value ? none : all(1.0f);
        });
        float highest = highest_of(tops);
        if (sum_of(none) > 0.0f || !(highest < INFINITY)) {
            ids[row] = -1;
            continue;
        }
        ids[row] = first_place(here, width, highest);
    }
}
