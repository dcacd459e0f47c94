// NF4 -> bfloat16: the weights of QLoRA, written out for one product.
//
// A block of numbers has one scale, so it has sixteen values. They are scaled and rounded first, sixteen at once; then
// a number is a look-up in a register, 32 (AVX-512) or 16 (AVX2) numbers at a time, and memory is the only limit.
// A byte holds two numbers, the first in its upper half.
#include "registers.h"

#include <algorithm>

constexpr int VALUES = 16;
constexpr int64_t SCALES_AT_ONCE = 256;

// scales[i] = values[codes[i]] * group_scales[i / 256] + offset, multiplied and added one after the other: the fused
// instruction would round once instead of twice, and differ from what other programs compute in the last bit.
static void nested_scales(const uint8_t* codes, const float* values, float group_scale, float offset, int64_t count,
                          float* scales) {
    for (int64_t i = 0; i < count; i++) scales[i] = values[codes[i]] * group_scale;
    asm volatile("" : : "r"(scales) : "memory");
    for (int64_t i = 0; i < count; i++) scales[i] += offset;
}

static void write_block(const uint8_t* bytes, const bfloat16* table, int64_t count, bfloat16* out) {
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

// out[i] = values[code i] * scale of its block, for the numbers [first, first + count); `first` begins a block.
// The scales are `scales`, or if that is null, themselves in 8 bits: `codes`, `code_values`, `group_scales`, `offset`.
LEVERET_EXPORT void leveret_nf4_write_out(const uint8_t* bytes, const float* values, const float* scales,
                                          const uint8_t* codes, const float* code_values, const float* group_scales,
                                          float offset, int64_t first, int64_t count, int64_t block, bfloat16* out,
                                          int threads) {
    const int64_t first_block = first / block, last_block = (first + count + block - 1) / block;
    const int64_t first_group = first_block / SCALES_AT_ONCE;
    const int64_t groups = (last_block + SCALES_AT_ONCE - 1) / SCALES_AT_ONCE - first_group;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t group = first_group; group < first_group + groups; group++) {
        const int64_t begin = std::max(group * SCALES_AT_ONCE, first_block);
        const int64_t end = std::min((group + 1) * SCALES_AT_ONCE, last_block);
        float decoded[SCALES_AT_ONCE];
        const float* here = scales == nullptr ? decoded : scales + begin;
        if (scales == nullptr)
            nested_scales(codes + begin, code_values, group_scales[group], offset, end - begin, decoded);
        for (int64_t each = begin; each < end; each++) {
            bfloat16 table[VALUES];
            for (int i = 0; i < VALUES; i += LANES) store(load(values + i) * here[each - begin], table + i);
            const int64_t start = each * block;
            write_block(bytes + start / 2, table, std::min(block, first + count - start), out + (start - first));
        }
    }
}
