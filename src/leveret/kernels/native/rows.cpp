// What is done row by row between the products of a decoder layer: RMSNorm, SwiGLU, the softmax of the loss.
//
// All of it is bound by memory, and PyTorch needs three to eight passes over it, each with a fresh tensor between.
// Here each is one pass. Rows are divided among the threads in fixed shares; sums over rows are made per thread and
// then added in the order of the threads, so a result depends on the number of threads and on nothing else.
#include "numbers.h"

#include <vector>

#define LEVERET_TEXT_OF(x) #x
#define LEVERET_TEXT(x) LEVERET_TEXT_OF(x)

// What the library was built from; Python compares it with the sources beside it.
LEVERET_EXPORT const char* leveret_source_hash() { return LEVERET_TEXT(LEVERET_SOURCE_HASH); }

// y = x * rstd * weight; rstd = 1 / sqrt(mean(x^2) + eps) is kept for backward. `rounds_before_scale`: Llama's way.
LEVERET_EXPORT void leveret_rms_norm(const bfloat16* x, const bfloat16* weight, bfloat16* y, float* rstd, int64_t rows,
                                     int64_t width, float eps, int rounds_before_scale, int threads) {
#pragma omp parallel num_threads(threads)
    {
        Share share(rows, omp_get_thread_num(), omp_get_num_threads());
        for (int64_t row = share.first; row < share.last; row++) {
            const bfloat16* in = x + row * width;
            bfloat16* out = y + row * width;
            float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
            for (int64_t i = 0; i < width; i++) sum += to_float(in[i]) * to_float(in[i]);
            float scale = 1.0f / std::sqrt(sum / float(width) + eps);
            rstd[row] = scale;
            if (rounds_before_scale) {
#pragma omp simd
                for (int64_t i = 0; i < width; i++)
                    out[i] = to_bfloat16(to_float(to_bfloat16(to_float(in[i]) * scale)) * to_float(weight[i]));
            } else {
#pragma omp simd
                for (int64_t i = 0; i < width; i++) out[i] = to_bfloat16(to_float(in[i]) * scale * to_float(weight[i]));
            }
        }
    }
}

// With g = dy * weight and n = x * rstd:  dx = rstd * (g - n * mean(g * n)),  dweight = sum over rows of dy * n.
LEVERET_EXPORT void leveret_rms_norm_backward(const bfloat16* dy, const bfloat16* x, const bfloat16* weight,
                                              const float* rstd, bfloat16* dx, float* dweight, int64_t rows,
                                              int64_t width, int threads) {
    std::vector<float> partial(size_t(threads) * width, 0.0f);
#pragma omp parallel num_threads(threads)
    {
        Share share(rows, omp_get_thread_num(), omp_get_num_threads());
        float* sums = partial.data() + omp_get_thread_num() * width;
        for (int64_t row = share.first; row < share.last; row++) {
            const bfloat16 *in = x + row * width, *slope = dy + row * width;
            bfloat16* out = dx + row * width;
            float scale = rstd[row], dot = 0.0f;
#pragma omp simd reduction(+ : dot)
            for (int64_t i = 0; i < width; i++) {
                float normed = to_float(in[i]) * scale, gradient = to_float(slope[i]);
                sums[i] += gradient * normed;
                dot += gradient * to_float(weight[i]) * normed;
            }
            dot /= float(width);
#pragma omp simd
            for (int64_t i = 0; i < width; i++)
                out[i] = to_bfloat16(scale * (to_float(slope[i]) * to_float(weight[i]) - to_float(in[i]) * scale * dot));
        }
    }
    for (int64_t i = 0; i < width; i++) {
        float sum = 0.0f;
        for (int thread = 0; thread < threads; thread++) sum += partial[size_t(thread) * width + i];
        dweight[i] = sum;
    }
}

// out = silu(gate) * up
LEVERET_EXPORT void leveret_swiglu(const bfloat16* gate, const bfloat16* up, bfloat16* out, int64_t count, int threads) {
#pragma omp parallel num_threads(threads)
    {
        Share share(count, omp_get_thread_num(), omp_get_num_threads());
#pragma omp simd
        for (int64_t i = share.first; i < share.last; i++) {
            float g = to_float(gate[i]);
            out[i] = to_bfloat16(g * sigmoid(g) * to_float(up[i]));
        }
    }
}

// d silu(g) / dg = s + g s (1 - s) with s = sigmoid(g).
LEVERET_EXPORT void leveret_swiglu_backward(const bfloat16* dout, const bfloat16* gate, const bfloat16* up,
                                            bfloat16* dgate, bfloat16* dup, int64_t count, int threads) {
#pragma omp parallel num_threads(threads)
    {
        Share share(count, omp_get_thread_num(), omp_get_num_threads());
#pragma omp simd
        for (int64_t i = share.first; i < share.last; i++) {
            float g = to_float(gate[i]), slope = to_float(dout[i]), s = sigmoid(g);
            dup[i] = to_bfloat16(slope * g * s);
            dgate[i] = to_bfloat16(slope * to_float(up[i]) * (s + g * s * (1.0f - s)));
        }
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
            float highest = -INFINITY, sum = 0.0f;
#pragma omp simd reduction(max : highest)
            for (int64_t i = 0; i < width; i++) {
                score[i] = to_float(here[i]);
                highest = score[i] > highest ? score[i] : highest;
            }
            float wanted = score[targets[row]] - highest;
#pragma omp simd reduction(+ : sum)
            for (int64_t i = 0; i < width; i++) {
                score[i] = exponential(score[i] - highest);
                sum += score[i];
            }
            float factor = factors == nullptr ? 1.0f : factors[row];
            total += double(factor) * (double(std::log(sum)) - double(wanted));
            if (slope) {
                score[targets[row]] -= sum;
                float scale = factor / sum;
#pragma omp simd
                for (int64_t i = 0; i < width; i++) here[i] = to_bfloat16(score[i] * scale);
            }
        }
        partial[size_t(omp_get_thread_num())] = total;
    }
    *loss = 0.0;
    for (double each : partial) *loss += each;
}
