// Numbers of the kernels: bfloat16 as 16 bits, and how work is divided among threads.
//
// bfloat16 is the upper half of a float32, so reading it is a shift; writing rounds to nearest, ties to even, and keeps
// NaN a NaN, as PyTorch does. All arithmetic is float32.
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

static inline float as_float(bfloat16 bits) { return to_float(bits); }
static inline float as_float(float value) { return value; }

static inline bfloat16 to_bfloat16(float value) {
    uint32_t wide;
    std::memcpy(&wide, &value, sizeof wide);
    uint32_t rounded = (wide + 0x7fffu + ((wide >> 16) & 1u)) >> 16;
    return bfloat16((wide & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}

// The part [first, last) of `total` that thread `index` of `count` has: always the same one, so that sums are too.
struct Share {
    int64_t first, last;
    Share(int64_t total, int index, int count) : first(total * index / count), last(total * (index + 1) / count) {}
};
