// One register of float32 numbers, and the ways between it and memory in bfloat16 or float32.
//
// `floats` is a vector type of the compiler's own: + - * / and comparisons work on all lanes at once, on any processor.
// Only the conversions are written out for each instruction set, for there compilers find the good instructions rarely.
#pragma once

#include "numbers.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX2__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

typedef float floats __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int32_t ints __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

static inline floats all(float value) { return floats{} + value; }

static inline floats load(const float* from) { return *(const floats*)from; }

static inline void store(floats values, float* to) { *(floats*)to = values; }

static inline floats load(const bfloat16* from) {
#if defined(__AVX512F__)
    return (floats)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)from)), 16);
#elif defined(__AVX2__)
    return (floats)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)from)), 16);
#else
    floats values;
    for (int lane = 0; lane < LANES; lane++) values[lane] = to_float(from[lane]);
    return values;
#endif
}

// Rounds to nearest, ties to even. (The bf16 instruction also turns numbers below 1e-38 into 0.)
static inline void store(floats values, bfloat16* to) {
#if defined(__AVX512BF16__)
    _mm256_storeu_si256((__m256i*)to, (__m256i)_mm512_cvtneps_pbh((__m512)values));
#elif defined(__AVX2__)
    ints bits = (ints)values;
    ints rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    rounded = (bits & 0x7fffffff) > 0x7f800000 ? ints{} + 0x7fc0 : rounded & 0xffff;
#if defined(__AVX512F__)
    _mm256_storeu_si256((__m256i*)to, _mm512_cvtepi32_epi16((__m512i)rounded));
#else
    __m256i packed = _mm256_packus_epi32((__m256i)rounded, (__m256i)rounded);
    _mm_storeu_si128((__m128i*)to, _mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 8)));
#endif
#else
    for (int lane = 0; lane < LANES; lane++) to[lane] = to_bfloat16(values[lane]);
#endif
}

// What `for_each_register` hands to its body: a whole register, or the few numbers at the end.
struct Whole {
    template <typename Number>
    floats load(const Number* from, float = 0.0f) const { return ::load(from); }
    template <typename Number>
    void store(floats values, Number* to) const { ::store(values, to); }
};

struct Some {
    int64_t count;
    template <typename Number>
    floats load(const Number* from, float others = 0.0f) const {
        Number whole[LANES] = {};
        std::memcpy(whole, from, size_t(count) * sizeof(Number));
        floats values = ::load(whole);
        for (int64_t lane = count; lane < LANES; lane++) values[lane] = others;
        return values;
    }
    template <typename Number>
    void store(floats values, Number* to) const {
        Number whole[LANES];
        ::store(values, whole);
        std::memcpy(to, whole, size_t(count) * sizeof(Number));
    }
};

// body(place, part) for every register full of `count` numbers, and for the rest.
template <typename Body>
static inline void for_each_register(int64_t count, Body body) {
    int64_t place = 0;
    for (; place + LANES <= count; place += LANES) body(place, Whole{});
    if (place < count) body(place, Some{count - place});
}

// Through bfloat16 and back.
static inline floats rounded(floats values) {
    bfloat16 halves[LANES];
    store(values, halves);
    return load(halves);
}

static inline float sum_of(floats values) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps((__m512)values);
#else
    float sum = 0.0f;
    for (int lane = 0; lane < LANES; lane++) sum += values[lane];
    return sum;
#endif
}

// The sum of each of LANES registers.
static inline floats sums_of(const floats* parts) {
#if defined(__AVX512F__)
    // Two registers become one, of sums of neighbors, until one is left; the last two times whole quarters are neighbors.
    auto pair = [](__m512 a, __m512 b) { return _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b)); };
    auto quarters = [](__m512 a, __m512 b) {
        return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
    };
    __m512 fours[4];
    for (int i = 0; i < 4; i++) {
        const floats* four = parts + 4 * i;
        fours[i] = pair(pair((__m512)four[0], (__m512)four[2]), pair((__m512)four[1], (__m512)four[3]));
    }
    return (floats)quarters(quarters(fours[0], fours[1]), quarters(fours[2], fours[3]));
#else
    floats sums;
    for (int lane = 0; lane < LANES; lane++) sums[lane] = sum_of(parts[lane]);
    return sums;
#endif
}

// Numbers whose sum is the inner product of two rows of `width` numbers, a multiple of 32.
static inline floats parts_of_dot(const bfloat16* a, const bfloat16* b, int64_t width) {
#if defined(__AVX512BF16__)
    __m512 parts = _mm512_setzero_ps();
    for (int64_t i = 0; i < width; i += 32)
        parts = _mm512_dpbf16_ps(parts, (__m512bh)_mm512_loadu_si512(a + i), (__m512bh)_mm512_loadu_si512(b + i));
    return (floats)parts;
#else
    floats parts{};
    for (int64_t i = 0; i < width; i += LANES) parts += load(a + i) * load(b + i);
    return parts;
#endif
}

static inline float highest_of(floats values) {
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps((__m512)values);
#else
    float highest = values[0];
    for (int lane = 1; lane < LANES; lane++) highest = values[lane] > highest ? values[lane] : highest;
    return highest;
#endif
}

static inline floats larger(floats a, floats b) { return a > b ? a : b; }

// To whole numbers, ties to even, for what is below 2^22.
static inline ints nearest(floats values) {
    constexpr float rounder = 12582912.0f;  // 1.5 * 2^23: adding it leaves no place for a fraction
    return __builtin_convertvector((values + rounder) - rounder, ints);
}

// exp(x) for x <= 88, relative error below 2e-7, 0 below -87: 2^n times a polynomial of degree 6 on [-ln2/2, ln2/2].
static inline floats exponential(floats x) {
    constexpr float rounder = 12582912.0f;  // 1.5 * 2^23: adding it leaves no place for a fraction
    floats n = (x * 1.44269504088896341f + rounder) - rounder;
    floats r = x - n * 0.693359375f + n * 2.12194440e-4f;
    floats p = r * 1.3888889e-3f + 8.3333338e-3f;
    p = p * r + 4.1666668e-2f;
    p = p * r + 1.6666667e-1f;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    floats scaled = p * (floats)((__builtin_convertvector(n, ints) + 127) << 23);
    return x < -87.0f ? floats{} : scaled;
}

static inline floats sigmoid(floats x) {
    floats bounded = x < -87.0f ? all(-87.0f) : x;
    return x < -87.0f ? floats{} : 1.0f / (1.0f + exponential(-bounded));
}
