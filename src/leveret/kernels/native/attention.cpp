// Causal attention over packed documents, rotary positions included, forward and backward.
//
// A row of training data holds many short documents side by side. The general way moves every document into a row of
// its own, rotates, multiplies, masks, and moves all back: a dozen passes over memory for very little arithmetic. Here
// one task is one document and one key-value head: its keys and values are rotated and laid out once, in buffers that
// stay in the cache, and the queries of the group's heads pass by in blocks. Of the square of scores only the part that
// may be read is computed; the logarithm of each row's sum is kept, so that backward finds the probabilities again
// without storing them (FlashAttention's recomputation, 2205.14135). Products are bfloat16 with float32 sums, as in a
// Linear; the softmax is float32. A task writes rows and heads that no other task writes, so the result does not depend
// on the number of threads.
//
// Layouts: query, out (tokens, H, D); key, value (tokens, K, D); cos, signed_sin (tokens, D); log_sums (tokens, H).
// A document is a run of tokens; it may look back `window` tokens (0: all). Rotation turns the pair (i, i + D/2):
// turned[i] = x[i] cos[i] + x[i +- D/2] signed_sin[i], the minus is in signed_sin.
#include "products.h"

#include <vector>

namespace {

#if defined(LEVERET_TILES)
constexpr int64_t BLOCK = 32;  // queries that pass by together: two tiles
#else
constexpr int64_t BLOCK = 48;  // even, and a multiple of ROWS
#endif

using Words = std::vector<word>;
using Floats = std::vector<float>;
using Halves = std::vector<bfloat16>;

struct Angles {
    const bfloat16 *cos, *signed_sin;
    Angles at(int64_t token, int64_t width) const { return {cos + token * width, signed_sin + token * width}; }
};

// One token's vector, turned.
void turn(const bfloat16* x, Angles angles, int64_t width, bfloat16* out) {
    int64_t half = width / 2;
    for (int64_t i = 0; i < half; i += LANES) {
        floats a = load(x + i), b = load(x + i + half);
        store(a * load(angles.cos + i) + b * load(angles.signed_sin + i), out + i);
        store(b * load(angles.cos + i + half) + a * load(angles.signed_sin + i + half), out + i + half);
    }
}

// The gradient of `turn` by its input, times `factor`.
void turn_back(const float* slope, Angles angles, int64_t width, float factor, bfloat16* out) {
    int64_t half = width / 2;
    for (int64_t i = 0; i < half; i += LANES) {
        floats a = factor * load(slope + i), b = factor * load(slope + i + half);
        store(a * load(angles.cos + i) + b * load(angles.signed_sin + i + half), out + i);
        store(b * load(angles.cos + i + half) + a * load(angles.signed_sin + i), out + i + half);
    }
}

void narrow(const float* from, int64_t width, float factor, bfloat16* to) {
    for (int64_t i = 0; i < width; i += LANES) store(factor * load(from + i), to + i);
}

struct Span {
    int64_t first, last;  // keys that a query reads
    Span(int64_t query, int64_t window) : first(window > 0 ? std::max<int64_t>(0, query - window + 1) : 0), last(query + 1) {}
};

// A document's keys and values of one group, laid out as the right sides of the products.
struct Loaded {
    Halves turned;
    Words key_columns, value_columns, key_pairs, value_pairs;
    void load(const bfloat16* key, const bfloat16* value, Angles angles, int64_t length, int64_t step, int64_t width,
              bool backward) {
        int64_t wide = padded(length);
        turned.resize(size_t(length * width));
        for (int64_t j = 0; j < length; j++) turn(key + j * step, angles.at(j, width), width, turned.data() + j * width);
        key_columns.resize(size_t(wide * width / 2));
        turn_rows(turned.data(), width, length, wide, width, key_columns.data());
        if (backward) {
            key_pairs.resize(size_t(wide * width / 2));
            value_columns.resize(size_t(wide * width / 2));
            pair_rows(turned.data(), width, length, wide, width, key_pairs.data());
            turn_rows(value, step, length, wide, width, value_columns.data());
        } else {
            value_pairs.resize(size_t(wide * width / 2));
            pair_rows(value, step, length, wide, width, value_pairs.data());
        }
    }
};

// Scores from `low` to `high` are computed, in whole registers; those outside a row's span become exp(-inf) = 0.
void hide(float* scores, Span span, int64_t low, int64_t high) {
    std::fill(scores + low, scores + span.first, -INFINITY);
    std::fill(scores + span.last, scores + high, -INFINITY);
}

// A row of scores becomes exp((score - highest) * scale); their sum, and the logarithm of the sum of exp(score * scale).
float soften(float* scores, Span span, int64_t low, int64_t high, float scale, bfloat16* chances, float& sum) {
    hide(scores, span, low, high);
    floats tops = all(-INFINITY), sums{};
    for (int64_t j = low; j < high; j += LANES) tops = larger(load(scores + j), tops);
    float highest = highest_of(tops);
    for (int64_t j = low; j < high; j += LANES) {
        floats chance = exponential((load(scores + j) - highest) * scale);
        sums += chance;
        store(chance, chances + j);
    }
    sum = sum_of(sums);
    return highest * scale + std::log(sum);
}

// A row of scores and of slopes by the probabilities becomes the probabilities and the slopes by the scaled scores.
void slope_of_scores(float* scores, const float* slopes, Span span, int64_t low, int64_t high, float scale,
                     float log_sum, float mean, bfloat16* chances, bfloat16* steep) {
    hide(scores, span, low, high);
    for (int64_t j = low; j < high; j += LANES) {
        floats chance = exponential(load(scores + j) * scale - log_sum);
        store(chance, chances + j);
        store(chance * (load(slopes + j) - mean), steep + j);
    }
}

const word* as_words(const bfloat16* numbers) { return reinterpret_cast<const word*>(numbers); }

// What a forward or backward over one document needs to know.
struct Task {
    int64_t start, length, group, heads, groups, width, window;
    float scale;
    Angles angles;
    int64_t keys_at(int64_t token) const { return ((start + token) * groups + group) * width; }
    int64_t queries_at(int64_t token, int64_t head) const { return ((start + token) * heads + head) * width; }
};

struct Forward {
    Loaded loaded;
    Halves turned, chances;
    Floats scores, answer;

    void run(const Task& task, const bfloat16* query, const bfloat16* key, const bfloat16* value, bfloat16* out,
             float* log_sums) {
        int64_t width = task.width, wide = padded(task.length), per_group = task.heads / task.groups;
        loaded.load(key + task.keys_at(0), value + task.keys_at(0), task.angles, task.length, task.groups * width,
                    width, false);
        turned.resize(size_t(BLOCK * width));
        answer.resize(size_t(BLOCK * width));
        scores.resize(size_t(BLOCK * wide));
        chances.resize(size_t(BLOCK * wide));
        for (int64_t head = task.group * per_group; head < (task.group + 1) * per_group; head++)
            for (int64_t first = 0; first < task.length; first += BLOCK)
                block(task, head, first, std::min(BLOCK, task.length - first), wide, query, out, log_sums);
    }

    void block(const Task& task, int64_t head, int64_t first, int64_t rows, int64_t wide, const bfloat16* query,
               bfloat16* out, float* log_sums) {
        int64_t width = task.width, low = Span(first, task.window).first / PADDING * PADDING, high = padded(first + rows);
        float sums[BLOCK];
        for (int64_t r = 0; r < rows; r++)
            turn(query + task.queries_at(first + r, head), task.angles.at(first + r, width), width,
                 turned.data() + r * width);
        product({as_words(turned.data()), width / 2, 1}, rows, loaded.key_columns.data() + low, wide, high - low,
                width / 2, scores.data() + low, wide, false);
        for (int64_t r = 0; r < rows; r++)
            log_sums[(task.start + first + r) * task.heads + head] =
                soften(scores.data() + r * wide, Span(first + r, task.window), low, high, task.scale,
                       chances.data() + r * wide, sums[r]);
        product({as_words(chances.data() + low), wide / 2, 1}, rows, loaded.value_pairs.data() + low / 2 * width, width,
                width, (high - low) / 2, answer.data(), width, false);
        for (int64_t r = 0; r < rows; r++) {
            narrow(answer.data() + r * width, width, 1.0f / sums[r], out + task.queries_at(first + r, head));
        }
    }
};

struct Backward {
    const bfloat16 *dout, *query, *key, *value, *out;
    const float* log_sums;
    bfloat16 *dquery, *dkey, *dvalue;
    Loaded loaded;
    Halves turned, chances, steep;
    Halves slope;
    Words turned_pairs, slope_pairs, score_pairs, score_columns;
    Floats scores, slopes, answer, key_slope, value_slope;

    void run(const Task& task) {
        int64_t width = task.width, wide = padded(task.length), per_group = task.heads / task.groups;
        int64_t place = task.keys_at(0), step = task.groups * width;
        loaded.load(key + place, value + place, task.angles, task.length, step, width, true);
        for (Halves* each : {&chances, &steep}) each->resize(size_t(BLOCK * wide));
        for (Floats* each : {&scores, &slopes}) each->resize(size_t(BLOCK * wide));
        for (Words* each : {&score_pairs, &score_columns}) each->resize(size_t(BLOCK / 2 * wide));
        for (Words* each : {&turned_pairs, &slope_pairs}) each->resize(size_t(BLOCK / 2 * width));
        for (Halves* each : {&turned, &slope}) each->resize(size_t(BLOCK * width));
        answer.resize(size_t(BLOCK * width));
        key_slope.assign(size_t(wide * width), 0.0f);
        value_slope.assign(size_t(wide * width), 0.0f);
        for (int64_t head = task.group * per_group; head < (task.group + 1) * per_group; head++)
            for (int64_t first = 0; first < task.length; first += BLOCK)
                block(task, head, first, std::min(BLOCK, task.length - first), wide);
        for (int64_t j = 0; j < task.length; j++) {
            turn_back(key_slope.data() + j * width, task.angles.at(j, width), width, task.scale, dkey + place + j * step);
            narrow(value_slope.data() + j * width, width, 1.0f, dvalue + place + j * step);
        }
    }

    void block(const Task& task, int64_t head, int64_t first, int64_t rows, int64_t wide) {
        int64_t width = task.width, low = Span(first, task.window).first / PADDING * PADDING, high = padded(first + rows);
        for (int64_t r = 0; r < rows; r++) {
            int64_t place = task.queries_at(first + r, head);
            turn(query + place, task.angles.at(first + r, width), width, turned.data() + r * width);
            std::memcpy(slope.data() + r * width, dout + place, size_t(width) * sizeof(bfloat16));
        }
        product({as_words(turned.data()), width / 2, 1}, rows, loaded.key_columns.data() + low, wide, high - low,
                width / 2, scores.data() + low, wide, false);
        product({as_words(slope.data()), width / 2, 1}, rows, loaded.value_columns.data() + low, wide, high - low,
                width / 2, slopes.data() + low, wide, false);
        for (int64_t r = 0; r < rows; r++) {
            const bfloat16 *mine = slope.data() + r * width, *answered = out + task.queries_at(first + r, head);
            floats means{};
            for (int64_t d = 0; d < width; d += LANES) means += load(mine + d) * load(answered + d);
            slope_of_scores(scores.data() + r * wide, slopes.data() + r * wide, Span(first + r, task.window), low, high,
                            task.scale, log_sums[(task.start + first + r) * task.heads + head], sum_of(means),
                            chances.data() + r * wide, steep.data() + r * wide);
        }
        product({as_words(steep.data() + low), wide / 2, 1}, rows, loaded.key_pairs.data() + low / 2 * width, width,
                width, (high - low) / 2, answer.data(), width, false);
        for (int64_t r = 0; r < rows; r++)
            turn_back(answer.data() + r * width, task.angles.at(first + r, width), width, task.scale,
                      dquery + task.queries_at(first + r, head));
        int64_t even = ROW_PADDING > 1 ? BLOCK : round_up(rows, 2);
        pair_rows(turned.data(), width, rows, even, width, turned_pairs.data());
        pair_rows(slope.data(), width, rows, even, width, slope_pairs.data());
        add_by_key(chances, rows, even, low, high, wide, width, slope_pairs, value_slope);
        add_by_key(steep, rows, even, low, high, wide, width, turned_pairs, key_slope);
    }

    // sums[j] += sum over the block's queries i of by_query[i][j] * right[i], for keys j from low to high.
    void add_by_key(const Halves& by_query, int64_t rows, int64_t even, int64_t low, int64_t high, int64_t wide,
                    int64_t width, const Words& right, Floats& sums) {
        pair_rows(by_query.data() + low, wide, rows, even, high - low, score_pairs.data());
        Left left{score_pairs.data(), 1, high - low};
        if (ROW_PADDING > 1) {
            turn_words(score_pairs.data(), high - low, score_columns.data());
            left = {score_columns.data(), 16, 1};
        }
        product(left, high - low, right.data(), width, width, even / 2, sums.data() + low * width, width, true);
    }
};

template <typename Work, typename Run>
void for_each_task(Work work, int64_t documents, const int64_t* starts, const int64_t* lengths, Task common, int threads,
                   Run run) {
#pragma omp parallel num_threads(threads) firstprivate(work)
    {
        Tiles tiles;
#pragma omp for schedule(dynamic, 1)
        for (int64_t number = 0; number < documents * common.groups; number++) {
            Task task = common;
            task.start = starts[number / task.groups], task.length = lengths[number / task.groups];
            task.group = number % task.groups;
            task.angles = common.angles.at(task.start, task.width);
            run(work, task);
        }
    }
}

}  // namespace

// The width is a multiple of 32.
LEVERET_EXPORT void leveret_packed_attention(const bfloat16* query, const bfloat16* key, const bfloat16* value,
                                             const bfloat16* cos, const bfloat16* signed_sin, const int64_t* starts,
                                             const int64_t* lengths, int64_t documents, int64_t heads, int64_t groups,
                                             int64_t width, int64_t window, bfloat16* out, float* log_sums,
                                             int threads) {
    Task common{0, 0, 0, heads, groups, width, window, 1.0f / std::sqrt(float(width)), {cos, signed_sin}};
    for_each_task(Forward{}, documents, starts, lengths, common, threads, [&](Forward& work, const Task& task) {
        work.run(task, query, key, value, out, log_sums);
    });
}

LEVERET_EXPORT void leveret_packed_attention_backward(
    const bfloat16* dout, const bfloat16* query, const bfloat16* key, const bfloat16* value, const bfloat16* out,
    const float* log_sums, const bfloat16* cos, const bfloat16* signed_sin, const int64_t* starts,
    const int64_t* lengths, int64_t documents, int64_t heads, int64_t groups, int64_t width, int64_t window,
    bfloat16* dquery, bfloat16* dkey, bfloat16* dvalue, int threads) {
    Task common{0, 0, 0, heads, groups, width, window, 1.0f / std::sqrt(float(width)), {cos, signed_sin}};
    Backward work{};
    work.dout = dout, work.query = query, work.key = key, work.value = value, work.out = out, work.log_sums = log_sums;
    work.dquery = dquery, work.dkey = dkey, work.dvalue = dvalue;
    for_each_task(work, documents, starts, lengths, common, threads,
                  [](Backward& mine, const Task& task) { mine.run(task); });
}

// Whether the products of this build are right on this processor: 0, or the number of what is wrong. It is asked in a
// process of its own before the build is used, for an instruction that is not there ends the process.
LEVERET_EXPORT int leveret_check_products() {
#if defined(LEVERET_TILES)
    if (!may_use_tiles()) return 1;
#endif
    Tiles tiles;
    constexpr int64_t rows = 48, columns = 64, inner = 48;  // words
    Halves left(rows * inner * 2), right(inner * 2 * columns);
    for (size_t i = 0; i < left.size(); i++) left[i] = to_bfloat16(float(int64_t(i * 7919 % 31) - 15));
    for (size_t i = 0; i < right.size(); i++) right[i] = to_bfloat16(float(int64_t(i * 104729 % 29) - 14));
    Words pairs(inner * columns);
    pair_rows(right.data(), columns, inner * 2, inner * 2, columns, pairs.data());
    Floats found(rows * columns, 1.0f);
    for (bool adds : {false, true}) {
        product({as_words(left.data()), inner, 1}, rows, pairs.data(), columns, columns, inner, found.data(), columns, adds);
        for (int64_t m = 0; m < rows; m++)
            for (int64_t n = 0; n < columns; n++) {
                float exact = 0.0f;  // small whole numbers: every order of addition gives this
                for (int64_t k = 0; k < 2 * inner; k++)
                    exact += to_float(left[size_t(m * 2 * inner + k)]) * to_float(right[size_t(k * columns + n)]);
                if (found[size_t(m * columns + n)] != (adds ? 2.0f : 1.0f) * exact) return adds ? 3 : 2;
            }
    }
    return 0;
}
