// What merging models does to stored numbers: weighted sums, inner products, and a look for what is no finite number.
//
// All of it is for one thread, on a block that the thread has just read: the work is divided by blocks. Sums are rounded
// to bfloat16 by the bits and not by the processor's instruction, which turns the smallest numbers into 0: a model
// merged with itself must stay what it is.
#include "registers.h"

#include <algorithm>
#include <vector>

namespace {

constexpr int64_t RUN = 4096;  // numbers whose products are summed in float32, lane by lane, before they are wide

typedef uint16_t halves __attribute__((vector_size(LANES * 2), aligned(2), may_alias));

halves every_bit_rounded(floats values) {
    ints bits = (ints)values;
    ints rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    rounded = (bits & 0x7fffffff) > 0x7f800000 ? ints{} + 0x7fc0 : rounded & 0xffff;
    return __builtin_convertvector(rounded, halves);
}

void put(halves values, bfloat16* to, Whole) { *(halves*)to = values; }
void put(halves values, bfloat16* to, Some some) { std::memcpy(to, &values, size_t(some.count) * sizeof(bfloat16)); }

}  // namespace

// to = total * x_a + sum over i of c_i (x_i - x_a), for a = anchor; models of coefficient 0 are not looked at.
LEVERET_EXPORT void leveret_weighted_sum(const bfloat16* const* values, const float* coefficients, int64_t models,
                                         int64_t anchor, float total, int64_t count, bfloat16* to) {
    for_each_register(count, [&](int64_t i, auto part) {
        floats origin = part.load(values[anchor] + i), sum = total * origin;
        for (int64_t model = 0; model < models; model++) {
            if (model == anchor || coefficients[model] == 0.0f) continue;
            sum += coefficients[model] * (part.load(values[model] + i) - origin);
        }
        put(every_bit_rounded(sum), to + i, part);
    });
}

// result (models, models): inner products of x_i, or of x_i - base where base is not null.
LEVERET_EXPORT void leveret_gram(const bfloat16* const* values, const bfloat16* base, int64_t models, int64_t count,
                                 double* result) {
    std::vector<floats> sums(size_t(models * models)), row(static_cast<size_t>(models));
    std::fill(result, result + models * models, 0.0);
    for (int64_t first = 0; first < count; first += RUN) {
        int64_t length = count - first < RUN ? count - first : RUN;
        std::fill(sums.begin(), sums.end(), floats{});
        for_each_register(length, [&](int64_t place, auto part) {
            int64_t i = first + place;
            floats origin = base == nullptr ? floats{} : part.load(base + i);
            for (int64_t model = 0; model < models; model++) {
                row[size_t(model)] = part.load(values[model] + i) - origin;
                for (int64_t other = 0; other <= model; other++)
                    sums[size_t(model * models + other)] += row[size_t(model)] * row[size_t(other)];
            }
        });
        for (int64_t model = 0; model < models; model++)
            for (int64_t other = 0; other <= model; other++)
                for (int lane = 0; lane < LANES; lane++)
                    result[model * models + other] += double(sums[size_t(model * models + other)][lane]);
    }
    for (int64_t model = 0; model < models; model++)
        for (int64_t other = 0; other < model; other++)
            result[other * models + model] = result[model * models + other];
}

// 1 if no number is infinite or none at all.
LEVERET_EXPORT int leveret_all_finite(const bfloat16* values, int64_t count) {
    ints strange{};
    for_each_register(count, [&](int64_t i, auto part) {
        strange |= ((ints)part.load(values + i) & 0x7f800000) == 0x7f800000;
    });
    for (int lane = 0; lane < LANES; lane++)
        if (strange[lane] != 0) return 0;
    return 1;
}
