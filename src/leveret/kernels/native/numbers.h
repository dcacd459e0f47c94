// Numbers of the kernels: bfloat16 as 16 bits, a vectorizable exponential, and how work is divided among threads.
//
// bfloat16 is the upper half of a float32, so reading it is a shift; writing rounds to nearest, ties to even, and keeps
// NaN a NaN, as PyTorch does. All arithmetic is float32. Everything here is plain C++ that compilers turn into vector
// instructions of whatever set they are told to use; the same file is compiled once for each set.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <omp.h>

#define LEVERET_EXPORT extern "C" __attribute__((visibility("default")))

using bfloat16 = uint16_t;

static inline float to_float(bfloat16 bits) {
    uint32_t wide = uint32_t(bits) << 16;
    float value;
    std::memcpy(&value, &wide, sizeof value);
    return value;
}

static inline bfloat16 to_bfloat16(float value) {
    uint32_t wide;
    std::memcpy(&wide, &value, sizeof wide);
    uint32_t rounded = (wide + 0x7fffu + ((wide >> 16) & 1u)) >> 16;
    return bfloat16((wide & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}

// exp(x) for x <= 88, relative error below 2e-7: 2^n times a polynomial of degree 6 on [-ln2/2, ln2/2].
static inline float exponential(float x) {
    x = x < -87.0f ? -87.0f : x;
    float n = (x * 1.44269504088896341f + 12582912.0f) - 12582912.0f;  // 1.5 * 2^23: rounds to the nearest integer
    float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;             // x - n ln2, in two parts
    float p = 1.3888889e-3f;
    p = p * r + 8.3333338e-3f;
    p = p * r + 4.1666668e-2f;
    p = p * r + 1.6666667e-1f;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    int32_t power = (int32_t(n) + 127) << 23;
    float scale;
    std::memcpy(&scale, &power, sizeof scale);
    return p * scale;
}

static inline float sigmoid(float x) {
    float s = 1.0f / (1.0f + exponential(x < -87.0f ? 87.0f : -x));
    return x < -87.0f ? 0.0f : s;
}

// The part [first, last) of `total` that thread `index` of `count` has: always the same one, so that sums are too.
struct Share {
    int64_t first, last;
    Share(int64_t total, int index, int count) : first(total * index / count), last(total * (index + 1) / count) {}
};
