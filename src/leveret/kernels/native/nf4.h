// Numbers of four bits with a scale for each block, looked up: the weights of QLoRA.
//
// A block has one scale, so it has sixteen values. They are scaled and rounded first, sixteen at once; then a number is a
// look-up in a register, 32 (AVX-512) or 16 (AVX2) numbers at a time. A byte holds two numbers, the first in its upper half.
#pragma once

#include "registers.h"

#include <algorithm>

namespace {

constexpr int VALUES = 16;
constexpr int64_t SCALES_AT_ONCE = 256;

// Number i is values[its four bits] * scale of its block. The scales are `scales`, or if that is null, themselves in 8
// bits: code_values[codes[b]] * group_scales[b / 256] + offset.
struct FourBits {
    const uint8_t* bytes;
    const float *values, *scales;
    const uint8_t* codes;
    const float *code_values, *group_scales;
    double offset;
    int64_t block;
};

// scales[i] = values[codes[i]] * group_scales[i / 256] + offset, multiplied and added one after the other: the fused
// instruction would round once instead of twice, and differ from what other programs compute in the last bit.
void nested_scales(const uint8_t* codes, const float* values, float group_scale, float offset, int64_t count,
                          float* scales) {
    for (int64_t i = 0; i < count; i++) scales[i] = values[codes[i]] * group_scale;
    asm volatile("" : : "r"(scales) : "memory");
    for (int64_t i = 0; i < count; i++) scales[i] += offset;
}

void write_block(const uint8_t* bytes, const bfloat16* table, int64_t count, bfloat16* out) {
    int64_t i = 0;
#if defined(__AVX512BW__)
    const __m512i both = _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i*)table));  // bit 4 of an index is free
    for (; i + 32 <= count; i += 32) {
        __m512i wide = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)(bytes + i / 2)));
        __m512i indices = _mm512_or_si512(_mm512_srli_epi32(wide, 4), _mm512_slli_epi32(wide, 16));
        _mm512_storeu_si512(out + i, _mm512_permutexvar_epi16(indices, both));
    }
#elif defined(__AVX2__)
    const __m128i first = _mm_loadu_si128((const __m128i*)table), second = _mm_loadu_si128((const __m128i*)(table + 8));
    const __m128i low_byte = _mm_set1_epi16(0xff), nibble = _mm_set1_epi8(0x0f);
    const __m128i lows = _mm_packus_epi16(_mm_and_si128(first, low_byte), _mm_and_si128(second, low_byte));
    const __m128i highs = _mm_packus_epi16(_mm_srli_epi16(first, 8), _mm_srli_epi16(second, 8));
    for (; i + 16 <= count; i += 16) {
        __m128i pairs = _mm_loadl_epi64((const __m128i*)(bytes + i / 2));
        __m128i upper = _mm_and_si128(_mm_srli_epi16(pairs, 4), nibble), lower = _mm_and_si128(pairs, nibble);
        __m128i indices = _mm_unpacklo_epi8(upper, lower);
        __m128i low = _mm_shuffle_epi8(lows, indices), high = _mm_shuffle_epi8(highs, indices);
        _mm_storeu_si128((__m128i*)(out + i), _mm_unpacklo_epi8(low, high));
        _mm_storeu_si128((__m128i*)(out + i + 8), _mm_unpackhi_epi8(low, high));
    }
#endif
    for (; i < count; i++) out[i] = table[i % 2 == 0 ? bytes[i / 2] >> 4 : bytes[i / 2] & 15];
}

// out = the numbers [first, first + count); `first` begins a block.
void write_numbers(const FourBits& numbers, int64_t first, int64_t count, bfloat16* out) {
    float decoded[SCALES_AT_ONCE];
    int64_t begin = first / numbers.block, last = (first + count + numbers.block - 1) / numbers.block;
    while (begin < last) {
        int64_t group = begin / SCALES_AT_ONCE, end = std::min((group + 1) * SCALES_AT_ONCE, last);
        const float* scales = numbers.scales == nullptr ? decoded : numbers.scales + begin;
        if (numbers.scales == nullptr)
            nested_scales(numbers.codes + begin, numbers.code_values, numbers.group_scales[group], float(numbers.offset),
                          end - begin, decoded);
        for (int64_t each = begin; each < end; each++) {
            bfloat16 table[VALUES];
            for (int i = 0; i < VALUES; i += LANES) store(load(numbers.values + i) * scales[each - begin], table + i);
            int64_t start = each * numbers.block;
            write_block(numbers.bytes + start / 2, table, std::min(numbers.block, first + count - start), out + (start - first));
        }
        begin = end;
    }
}

}  // namespace
