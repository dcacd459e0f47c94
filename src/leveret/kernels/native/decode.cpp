// One token of every row through all layers of a decoder: one call where there were a dozen for each layer.
//
// A token costs a small model far less than the calls that compute it, and a large one no more than reading its weights.
// So all threads go through the layers together: the rows of a norm, the tiles of a product and the heads of an
// attention are divided among them, and they wait for each other in between. Results are rounded to bfloat16 where the
// decoder's own are, and a row's do not depend on the rows beside it as long as these are few, or are said to be.
#include "eights.h"

namespace {

constexpr int64_t HEADS = 4;  // that read a value together
constexpr int64_t FEW = 8, FEW_DENSE = 4;  // rows: up to here integers, and bfloat16 weights, are multiplied as they lie

// What an adapter adds to a product with x: scale * up (down x), `rank` numbers in between.
struct Change {
    int64_t rank;
    const bfloat16* down;  // (rank, inputs)
    const bfloat16* up;    // (tiles of outputs, rank, TILE)
    double scale;
};

struct Linear {
    int64_t bits;  // 16: bfloat16 (columns, inputs); 4 or 8: as in integers.h
    int64_t inputs, outputs, columns, group;
    const void* data;
    const uint16_t* scales;
    const uint8_t* zeros;
    double zero;
    const int64_t* order;  // which input each column of the weight is for; null: the same
    int64_t rounds;        // activations in eight bits
    const Change* change;  // null: none
};

struct Layer {
    const bfloat16 *attention_norm, *feed_forward_norm;
    Linear query, key, value, out, gate, up, down;
    bfloat16 *keys, *values;  // the cache: (blocks, groups, tokens of a block, width)
};

struct Shape {
    int64_t layers, hidden, heads, groups, width, intermediate, window;
    double eps;
    int64_t rounds_before_scale;
};

// Where the cache keeps each row's tokens: token s of a row is token s % tokens of block tables[s / tokens].
struct Places {
    const int64_t* tables;  // (rows, blocks); rows may share blocks, and be several new tokens of one sequence
    int64_t blocks, tokens;

    int64_t at(const Shape& shape, int64_t row, int64_t group, int64_t token) const {
        int64_t block = tables[row * blocks + token / tokens];
        return ((block * shape.groups + group) * tokens + token % tokens) * shape.width;
    }

    // Calls use(first token, one past the last, their numbers in a group) for each block that holds some of [first, end).
    // The other groups' numbers follow those, so whoever reads several groups at once reads what lies together.
    template <class Use>
    void pieces(const Shape& shape, const bfloat16* cache, int64_t row, int64_t group, int64_t first, int64_t end,
                Use use) const {
        while (first < end) {
            int64_t next = std::min(end, (first / tokens + 1) * tokens);
            use(first, next, cache + at(shape, row, group, first));
            first = next;
        }
    }
};

// What products read: rows of bfloat16 (more of them than there are, for tiles), and for few rows the same in float32.
struct Rows {
    int64_t columns;
    bool few, few_dense;  // multiplied as few rows are: integers, bfloat16 weights
    std::vector<bfloat16> numbers;
    std::vector<float> wide;

    Rows(int64_t rows, int64_t columns, bool as_few)
        : columns(columns), few(as_few || rows <= FEW), few_dense(as_few || rows <= FEW_DENSE),
          numbers(size_t(round_up(rows, ROW_PADDING) * columns)), wide(size_t(few ? rows * columns : 0)) {}

    void put(floats values, int64_t place) {
        store(values, numbers.data() + place);
        if (!wide.empty()) store(load(numbers.data() + place), wide.data() + place);
    }
};

struct Scratch {
    std::vector<word> right;
    std::vector<float> sums, more_sums, scores, mixed, shares;
    std::vector<bfloat16> turned;

    Scratch(int64_t rows, int64_t heads, int64_t width, int64_t keys)
        : right(size_t(PART / 2 * TILE)), sums(size_t(round_up(rows, ROW_PADDING) * TILE)), more_sums(sums.size()),
          scores(size_t(heads * round_up(keys, LANES))), mixed(size_t(heads * width)), shares(size_t(heads)),
          turned(mixed.size()) {}
};

// sums (R, TILE): `count` outputs of a bfloat16 weight, from `weight` on, for x (R, inputs).
template <int R>
void dense_rows(const bfloat16* weight, int64_t inputs, int64_t count, const float* x, float* sums) {
    constexpr int TOGETHER = 4;
    for (int64_t o = 0; o < count; o += TOGETHER) {
        int64_t outputs = std::min<int64_t>(TOGETHER, count - o);
        floats parts[R][TOGETHER] = {};
        const bfloat16* rows[TOGETHER];
        for (int64_t n = 0; n < TOGETHER; n++) rows[n] = weight + (o + std::min(n, outputs - 1)) * inputs;
        for (int64_t i = 0; i < inputs; i += LANES) {
            floats values[TOGETHER];
            for (int n = 0; n < TOGETHER; n++) values[n] = load(rows[n] + i);
            for (int r = 0; r < R; r++) {
                floats each = load(x + r * inputs + i);
                for (int n = 0; n < TOGETHER; n++) parts[r][n] += values[n] * each;
            }
        }
        for (int r = 0; r < R; r++)
            for (int64_t n = 0; n < outputs; n++) sums[r * TILE + o + n] = sum_of(parts[r][n]);
    }
}

void dense_tile(const Linear& linear, int64_t tile, const Rows& x, int64_t rows, Scratch& scratch, float* sums) {
    int64_t inputs = linear.inputs, count = std::min(TILE, linear.columns - tile * TILE);
    const bfloat16* weight = static_cast<const bfloat16*>(linear.data) + tile * TILE * inputs;
    if (x.few_dense) {
        int64_t row = 0;
        const float* wide = x.wide.data();
        for (; row + 4 <= rows; row += 4) dense_rows<4>(weight, inputs, count, wide + row * inputs, sums + row * TILE);
        for (; row < rows; row++) dense_rows<1>(weight, inputs, count, wide + row * inputs, sums + row * TILE);
        return;
    }
    for (int64_t first = 0; first < inputs; first += PART) {
        int64_t part = std::min(PART, inputs - first);
        turn_rows(weight + first, inputs, count, TILE, part, scratch.right.data());
        Left left{reinterpret_cast<const word*>(x.numbers.data() + first), inputs / 2, 1};
        product(left, round_up(rows, ROW_PADDING), scratch.right.data(), TILE, TILE, part / 2, sums, TILE, first > 0);
    }
}

template <int BITS>
void integer_tile(const Linear& linear, int64_t tile, const Rows& x, const Eights& eights, int64_t rows, Scratch& scratch,
                  float* sums) {
    Weight weight{static_cast<const word*>(linear.data), linear.scales, linear.zeros, float(linear.zero),
                  linear.inputs, linear.outputs, linear.group};
    Levels<BITS> levels;
    if (linear.rounds) eights_of_tile<BITS>(weight, tile, eights, rows, scratch.right.data(), sums);
    else if (x.few) few_rows_of_tile<BITS>(weight, levels, tile, x.wide.data(), rows, sums);
    else many_rows_of_tile<BITS>(weight, levels, tile, x.numbers.data(), rows, scratch.right.data(), sums);
}

// sums (rows, TILE) = x weight^T for one tile of outputs; eights: x as this weight wants it, if it rounds.
void multiply_tile(const Linear& linear, int64_t tile, const Rows& x, const Eights& eights, int64_t rows, Scratch& scratch,
                   float* sums) {
    if (linear.bits == 16) dense_tile(linear, tile, x, rows, scratch, sums);
    else if (linear.bits == 4) integer_tile<4>(linear, tile, x, eights, rows, scratch, sums);
    else integer_tile<8>(linear, tile, x, eights, rows, scratch, sums);
}

// Numbers in between: of each row of x, (rows, rank), one after the other.
void squeeze(const Change& change, const Rows& x, int64_t place, float* squeezed) {
    int64_t row = place / change.rank, nth = place % change.rank;
    float sum = sum_of(parts_of_dot(change.down + nth * x.columns, x.numbers.data() + row * x.columns, x.columns));
    squeezed[place] = to_float(to_bfloat16(sum));
}

// sums (rows, TILE) += what the change adds to one tile of outputs.
void add_change(const Change& change, int64_t tile, const float* squeezed, int64_t rows, float* sums) {
    const bfloat16* up = change.up + tile * change.rank * TILE;
    for (int64_t row = 0; row < rows; row++)
        for (int64_t c = 0; c < TILE; c += LANES) {
            floats added{};
            for (int64_t nth = 0; nth < change.rank; nth++)
                added += squeezed[row * change.rank + nth] * load(up + nth * TILE + c);
            float* out = sums + row * TILE + c;
            store(load(out) + float(change.scale) * added, out);
        }
}

bool reads_alike(const Linear& a, const Linear& b) {
    return a.rounds && b.rounds && a.bits == b.bits && a.order == b.order && block_of(a.group) == block_of(b.group);
}

int64_t most_rank(const Layer* layers, int64_t count) {
    int64_t most = 0;
    for (const Layer* layer = layers; layer < layers + count; layer++)
        for (const Linear* each : {&layer->query, &layer->key, &layer->value, &layer->out, &layer->gate, &layer->up, &layer->down})
            if (each->change != nullptr) most = std::max(most, each->change->rank);
    return most;
}

int64_t tiles_of(const Linear& linear) { return (linear.columns + TILE - 1) / TILE; }

// x <- x + added (if there is any), then its norm.
void norm_row(const Shape& shape, bfloat16* x, const bfloat16* added, const bfloat16* weight, Rows& out, int64_t row) {
    int64_t hidden = shape.hidden;
    floats squares{};
    for (int64_t i = 0; i < hidden; i += LANES) {
        if (added != nullptr) store(load(x + i) + load(added + i), x + i);
        floats value = load(x + i);
        squares += value * value;
    }
    float scale = 1.0f / std::sqrt(sum_of(squares) / float(hidden) + float(shape.eps));
    for (int64_t i = 0; i < hidden; i += LANES) {
        floats normed = load(x + i) * scale;
        if (shape.rounds_before_scale) normed = rounded(normed);
        out.put(normed * load(weight + i), row * hidden + i);
    }
}

// (a, b) -> (a cos - b sin, b cos + a sin), rounded as the decoder does it: the first product on its own.
void turn(const bfloat16* x, const bfloat16* cos, const bfloat16* signed_sin, int64_t width, bfloat16* out) {
    int64_t half = width / 2;
    for (int64_t i = 0; i < half; i += LANES) {
        floats a = load(x + i), b = load(x + i + half);
        store(rounded(a * load(cos + i)) + b * load(signed_sin + i), out + i);
        store(rounded(b * load(cos + i + half)) + a * load(signed_sin + i + half), out + i + half);
    }
}

// The new key and value of one group of one row go to the cache.
void keep(const Shape& shape, const Layer& layer, int64_t place, const bfloat16* key, const bfloat16* value,
          const bfloat16* cos, const bfloat16* signed_sin) {
    turn(key, cos, signed_sin, shape.width, layer.keys + place);
    std::memcpy(layer.values + place, value, size_t(shape.width) * sizeof(bfloat16));
}

// What one query gives to up to LANES keys that lie together: out[s].
void score(const bfloat16* keys, int64_t count, const bfloat16* query, int64_t width, float factor, float* out) {
    floats parts[LANES];
    for (int64_t s = 0; s < LANES; s++) parts[s] = parts_of_dot(keys + std::min(s, count - 1) * width, query, width);
    floats scores = sums_of(parts) * factor;
    if (count == LANES) return store(scores, out);
    for (int64_t s = 0; s < count; s++) out[s] = scores[s];
}

// The same values for H heads, T registers of them: sums (H, width) += scores (H, stride)[s] * values (s, :).
template <int H, int T>
void mix_registers(const bfloat16* values, int64_t count, const float* scores, int64_t stride, int64_t width, float* sums) {
    floats parts[H][T];
    for (int h = 0; h < H; h++)
        for (int n = 0; n < T; n++) parts[h][n] = load(sums + h * width + n * LANES);
    for (int64_t s = 0; s < count; s++) {
        floats value[T];
        for (int n = 0; n < T; n++) value[n] = load(values + s * width + n * LANES);
        for (int h = 0; h < H; h++)
            for (int n = 0; n < T; n++) parts[h][n] += scores[h * stride + s] * value[n];
    }
    for (int h = 0; h < H; h++)
        for (int n = 0; n < T; n++) store(parts[h][n], sums + h * width + n * LANES);
}

template <int H>
void mix(const bfloat16* values, int64_t count, const float* scores, int64_t stride, int64_t width, float* sums) {
    constexpr int T = LANES == 16 ? 4 : 2;  // as many as there are registers for
    int64_t i = 0;
    for (; i + T * LANES <= width; i += T * LANES) mix_registers<H, T>(values + i, count, scores, stride, width, sums + i);
    for (; i < width; i += LANES) mix_registers<H, 1>(values + i, count, scores, stride, width, sums + i);
}

// For all heads: a few at a time, so that each value is read once for these.
void mix_heads(int64_t heads, const bfloat16* values, int64_t count, const float* scores, int64_t stride, int64_t width,
               float* sums) {
    decltype(&mix<1>) ways[HEADS] = {mix<1>, mix<2>, mix<3>, mix<4>};
    for (int64_t h = 0; h < heads; h += HEADS)
        ways[std::min(HEADS, heads - h) - 1](values, count, scores + h * stride, stride, width, sums + h * width);
}

// The softmax of a row of scores but for its sum, whose inverse it returns.
float soften(float* scores, int64_t count) {
    int64_t stride = round_up(count, LANES);
    std::fill(scores + count, scores + stride, -INFINITY);
    floats tops = all(-INFINITY), sums{};
    for (int64_t s = 0; s < stride; s += LANES) tops = larger(load(scores + s), tops);
    float highest = highest_of(tops);
    for (int64_t s = 0; s < stride; s += LANES) {
        floats chance = exponential(load(scores + s) - highest);
        store(chance, scores + s);
        sums += chance;
    }
    return 1.0f / sum_of(sums);
}

// The heads of some groups of one row, from `group` on, read the cache, in which the new key and value are already.
void attend(const Shape& shape, const Layer& layer, const Places& places, int64_t position, int64_t row, int64_t group,
            int64_t groups, const bfloat16* query, const bfloat16* cos, const bfloat16* signed_sin, Scratch& scratch,
            Rows& out) {
    int64_t width = shape.width, of_group = shape.heads / shape.groups, heads = groups * of_group;
    int64_t first = shape.window > 0 ? std::max<int64_t>(0, position - shape.window + 1) : 0, end = position + 1;
    int64_t count = end - first, stride = round_up(count, LANES), apart = places.tokens * width;
    bfloat16* turned = scratch.turned.data();
    float *scores = scratch.scores.data(), *mixed = scratch.mixed.data(), factor = 1.0f / std::sqrt(float(width));
    for (int64_t h = 0; h < heads; h++) turn(query + h * width, cos, signed_sin, width, turned + h * width);
    places.pieces(shape, layer.keys, row, group, first, end, [&](int64_t from, int64_t to, const bfloat16* keys) {
        for (int64_t h = 0; h < heads; h++)
            for (int64_t s = from; s < to; s += LANES)
                score(keys + h / of_group * apart + (s - from) * width, std::min<int64_t>(LANES, to - s), turned + h * width,
                      width, factor, scores + h * stride + s - first);
    });
    for (int64_t h = 0; h < heads; h++) scratch.shares[size_t(h)] = soften(scores + h * stride, count);
    std::fill(mixed, mixed + heads * width, 0.0f);
    places.pieces(shape, layer.values, row, group, first, end, [&](int64_t from, int64_t to, const bfloat16* values) {
        for (int64_t g = 0; g < groups; g++)
            mix_heads(of_group, values + g * apart, to - from, scores + g * of_group * stride + from - first, stride, width,
                      mixed + g * of_group * width);
    });
    for (int64_t h = 0; h < heads; h++)
        for (int64_t i = 0; i < width; i += LANES)
            out.put(load(mixed + h * width + i) * scratch.shares[size_t(h)],
                    (row * shape.heads + group * of_group + h) * width + i);
}

}  // namespace

// x (rows, hidden): the embeddings of the new tokens. positions (rows,): where in its sequence each of them comes; tables
// (rows, blocks): where the cache keeps that sequence. Several rows may be tokens of one sequence that follow each other.
// cos, signed_sin (rows, width). logits (rows, vocabulary): the head's products with the last norm's output. as_few: to
// the bit what each row would give alone, however many there are.
LEVERET_EXPORT void leveret_decode_step(const Shape* given, const Layer* layers, const bfloat16* last_norm,
                                        const Linear* head, bfloat16* x, int64_t rows, const int64_t* positions,
                                        const int64_t* tables, int64_t blocks, int64_t block_tokens,
                                        const bfloat16* cos, const bfloat16* signed_sin, bfloat16* logits, int64_t as_few,
                                        int threads) {
    const Shape& shape = *given;
    int64_t hidden = shape.hidden, query_size = shape.heads * shape.width, key_size = shape.groups * shape.width;
    Places places{tables, blocks, block_tokens};
    int64_t longest = *std::max_element(positions, positions + rows) + 1;
    int64_t together = rows >= 2 * threads ? shape.groups : 1;  // groups of a row: they lie side by side in each block
    Rows normed(rows, hidden, as_few), attended(rows, query_size, as_few), gated(rows, shape.intermediate, as_few);
    std::vector<bfloat16> query(size_t(rows * query_size)), key(size_t(rows * key_size)), value(size_t(rows * key_size));
    std::vector<bfloat16> added(size_t(rows * hidden));
    int64_t widest = std::max({hidden, query_size, shape.intermediate});
    EightsRoom rooms[3] = {{rows, widest}, {rows, hidden}, {rows, hidden}};
    std::vector<float> squeezed[3];  // for up to three weights that read the same
    for (auto& each : squeezed) each.resize(size_t(rows * most_rank(layers, shape.layers)));
#pragma omp parallel num_threads(threads)
    {
        Tiles tiles;
        Scratch scratch(rows, together * (shape.heads / shape.groups), shape.width, longest);
        auto norm = [&](const bfloat16* more, const bfloat16* weight) {
#pragma omp for schedule(static)
            for (int64_t row = 0; row < rows; row++)
                norm_row(shape, x + row * hidden, more == nullptr ? nullptr : more + row * hidden, weight, normed, row);
        };
        Eights eights[3];  // of what up to three weights read
        auto prepare = [&](const Rows& from, std::initializer_list<const Linear*> linears) {
            int n = 0;
            for (const Linear* linear : linears) {
                if (const Change* change = linear->change)
#pragma omp for schedule(static)
                    for (int64_t place = 0; place < rows * change->rank; place++)
                        squeeze(*change, from, place, squeezed[n].data());
                Eights& mine = eights[n];
                if (n > 0 && reads_alike(*linear, **linears.begin())) {
                    mine = eights[0];
                } else if (linear->rounds) {
                    mine = rooms[n].of(linear->inputs, block_of(linear->group));
#pragma omp for schedule(static)
                    for (int64_t part = 0; part < rows * mine.blocks; part++) {
                        int64_t row = part / mine.blocks;
                        round_part(from.numbers.data() + row * from.columns, linear->order, int(linear->bits), row,
                                   part % mine.blocks, mine);
                    }
                }
                n++;
            }
        };
        auto multiply_into = [&](const Linear& linear, int64_t tile, const Rows& from, int nth, float* sums) {
            multiply_tile(linear, tile, from, eights[nth], rows, scratch, sums);
            if (linear.change != nullptr) add_change(*linear.change, tile, squeezed[nth].data(), rows, sums);
        };
        auto multiply = [&](const Linear& linear, int64_t tile, const Rows& from, bfloat16* to, int nth = 0) {
            multiply_into(linear, tile, from, nth, scratch.sums.data());
            place_tile(scratch.sums.data(), rows, tile, to, linear.columns);
        };
        for (int64_t n = 0; n < shape.layers; n++) {
            const Layer& layer = layers[n];
            norm(n == 0 ? nullptr : added.data(), layer.attention_norm);
            prepare(normed, {&layer.query, &layer.key, &layer.value});
            int64_t query_tiles = tiles_of(layer.query), key_tiles = tiles_of(layer.key);
#pragma omp for schedule(static)
            for (int64_t task = 0; task < query_tiles + 2 * key_tiles; task++) {
                if (task < query_tiles) multiply(layer.query, task, normed, query.data());
                else if (task < query_tiles + key_tiles) multiply(layer.key, task - query_tiles, normed, key.data(), 1);
                else multiply(layer.value, task - query_tiles - key_tiles, normed, value.data(), 2);
            }
            auto keep_one = [&](int64_t task) {
                int64_t row = task / shape.groups, place = places.at(shape, row, task % shape.groups, positions[row]);
                keep(shape, layer, place, key.data() + task * shape.width, value.data() + task * shape.width,
                     cos + row * shape.width, signed_sin + row * shape.width);
            };
            if (rows > 1)  // the rows of one sequence read each other's keys
#pragma omp for schedule(static)
                for (int64_t task = 0; task < rows * shape.groups; task++) keep_one(task);
#pragma omp for schedule(static)
            for (int64_t task = 0; task < rows * shape.groups; task += together) {
                int64_t row = task / shape.groups, group = task % shape.groups;
                if (rows == 1) keep_one(task);
                attend(shape, layer, places, positions[row], row, group, together,
                       query.data() + row * query_size + group * (query_size / shape.groups), cos + row * shape.width,
                       signed_sin + row * shape.width, scratch, attended);
            }
            prepare(attended, {&layer.out});
#pragma omp for schedule(static)
            for (int64_t tile = 0; tile < tiles_of(layer.out); tile++) multiply(layer.out, tile, attended, added.data());
            norm(added.data(), layer.feed_forward_norm);
            prepare(normed, {&layer.gate, &layer.up});
#pragma omp for schedule(static)
            for (int64_t tile = 0; tile < tiles_of(layer.gate); tile++) {
                multiply_into(layer.gate, tile, normed, 0, scratch.sums.data());
                multiply_into(layer.up, tile, normed, 1, scratch.more_sums.data());
                int64_t count = std::min(TILE, shape.intermediate - tile * TILE);
                for (int64_t row = 0; row < rows; row++)
                    for (int64_t i = 0; i < count; i += LANES) {
                        floats gate = rounded(load(scratch.sums.data() + row * TILE + i));
                        floats up = rounded(load(scratch.more_sums.data() + row * TILE + i));
                        gated.put(gate * sigmoid(gate) * up, row * shape.intermediate + tile * TILE + i);
                    }
            }
            prepare(gated, {&layer.down});
#pragma omp for schedule(static)
            for (int64_t tile = 0; tile < tiles_of(layer.down); tile++) multiply(layer.down, tile, gated, added.data());
        }
        norm(added.data(), last_norm);
        prepare(normed, {head});
#pragma omp for schedule(static)
        for (int64_t tile = 0; tile < tiles_of(*head); tile++) multiply(*head, tile, normed, logits);
    }
}
