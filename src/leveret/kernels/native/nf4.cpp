// NF4 -> bfloat16: the weights of QLoRA, written out for one product. Memory is the only limit.
#include "nf4.h"

// out[i] = number first + i; `first` begins a block.
LEVERET_EXPORT void leveret_nf4_write_out(const FourBits* numbers, int64_t first, int64_t count, bfloat16* out, int threads) {
    const int64_t part = SCALES_AT_ONCE * numbers->block, first_part = first / part;
    const int64_t parts = (first + count + part - 1) / part - first_part;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t each = first_part; each < first_part + parts; each++) {
        const int64_t begin = std::max(each * part, first), end = std::min((each + 1) * part, first + count);
        write_numbers(*numbers, begin, end - begin, out + (begin - first));
    }
}
