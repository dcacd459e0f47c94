// One token of every row through all layers of a decoder: one call where there were a dozen for each layer.
//
// A token costs a small model far less than the calls that compute it, and a large one no more than reading its weights.
// So all threads go through the layers together: the rows of a norm, the tiles of a product and the heads of an
// attention are divided among them, and they wait for each other in between. Results are rounded to bfloat16 where the
// decoder's own are, and a row's do not depend on the rows beside it as long as these are few, or are said to be.
//
// A feed-forward block is an expert that all rows visit. With a mixture of experts each row visits a few: it then stands
// in several slots, which are in order of their experts, and every expert multiplies its own slots.
//
// Rows may be for different models that share all weights and differ in what an adapter adds to them: the weights are
// read once for all, and each row gets what its own adapter adds.
#include "decode_attention.h"
#include "decode_slots.h"

namespace {

// The new tokens of a call, and what they read and write.
struct Tokens {
    bfloat16* x;  // (rows, hidden)
    int64_t rows;
    const int64_t *positions, *models;
    Places places;
    const bfloat16 *cos, *signed_sin;  // (rows, width)
    bool as_few;
};

// What each thread has of its own.
struct Mine {
    Tiles tiles;
    Scratch scratch;
    Eights eights[3];  // of what up to three Linears read
};

// Of the changes that the rows of a call need.
int64_t most_rank(const Shape& shape, const Layer* layers, const Tokens& t) {
    std::vector<int64_t> models(t.models, t.models + t.rows);
    std::sort(models.begin(), models.end());
    models.erase(std::unique(models.begin(), models.end()), models.end());
    int64_t most = 0;
    auto see = [&](const Linear& each) {
        for (int64_t model : models)
            if (const Change* change = each.change_of(model)) most = std::max(most, change->rank);
    };
    for (const Layer* layer = layers; layer < layers + shape.layers; layer++) {
        for (const Linear* each : {&layer->query, &layer->key, &layer->value, &layer->out}) see(*each);
        for (int64_t n = 0; n < shape.experts; n++)
            for (auto part : {&Expert::gate, &Expert::up, &Expert::down}) see(layer->experts[n].*part);
    }
    return most;
}

// Its methods are called by all threads, which share the work of each.
class Step {
  public:
    Step(const Shape& shape, const Layer* layers, const Tokens& tokens, int threads)
        : shape(shape), layers(layers), t(tokens), query_size(shape.heads * shape.width),
          key_size(shape.groups * shape.width), together(t.rows >= 2 * threads ? shape.groups : 1),
          longest(*std::max_element(t.positions, t.positions + t.rows) + 1), few(t.as_few || t.rows <= FEW),
          few_dense(t.as_few || t.rows <= FEW_DENSE), mixture(layers->router != nullptr), rank(most_rank(shape, layers, t)),
          slots(t.rows, shape.experts, shape.chosen), slot_models(size_t(slots.count())),
          normed(t.rows, shape.hidden, t.models, few, few_dense), attended(t.rows, query_size, t.models, few, few_dense),
          gathered(mixture ? slots.count() : 0, shape.hidden, slot_models.data(), few, few_dense),
          gated(slots.count(), shape.intermediate, slot_models.data(), few, few_dense), query(size_t(t.rows * query_size)),
          key(size_t(t.rows * key_size)), value(key.size()), added(size_t(t.rows * shape.hidden)),
          answers(mixture ? size_t(slots.count() * shape.hidden) : 0) {
        int64_t widest = std::max({shape.hidden, query_size, shape.intermediate});
        for (int n = 0; n < 3; n++) rooms.emplace_back(slots.count(), n == 0 ? widest : shape.hidden);
        for (auto& each : squeezed) each.resize(size_t(slots.count() * rank));
        find_slot_models();
    }

    void run(const bfloat16* last_norm, const Linear& head, bfloat16* logits) {
        Mine mine{{}, Scratch(slots.count(), together * (shape.heads / shape.groups), shape.width, longest), {}};
        for (const Layer* layer = layers; layer < layers + shape.layers; layer++) {
            norm(layer == layers ? nullptr : added.data(), layer->attention_norm);
            attention(mine, *layer);
            norm(added.data(), layer->feed_forward_norm);
            feed_forward(mine, *layer);
        }
        norm(added.data(), last_norm);
        prepare(mine, normed, {&head});
#pragma omp for schedule(static)
        for (int64_t tile = 0; tile < tiles_of(head); tile++) multiply(mine, head, tile, normed, logits);
    }

  private:
    const Shape& shape;
    const Layer* layers;
    const Tokens& t;
    int64_t query_size, key_size;
    int64_t together;  // groups of a row that one thread reads: they lie side by side in each block
    int64_t longest;
    bool few, few_dense, mixture;
    int64_t rank;  // of changes, at the most
    Slots slots;
    std::vector<int64_t> slot_models;
    Rows normed, attended, gathered, gated;
    std::vector<bfloat16> query, key, value, added, answers;
    std::vector<EightsRoom> rooms;
    std::vector<float> squeezed[3];

    void find_slot_models() {
        for (size_t slot = 0; slot < slot_models.size(); slot++) slot_models[slot] = t.models[slots.row[slot]];
    }

    void norm(const bfloat16* more, const bfloat16* weight) {
#pragma omp for schedule(static)
        for (int64_t row = 0; row < t.rows; row++)
            norm_row(shape, t.x + row * shape.hidden, more == nullptr ? nullptr : more + row * shape.hidden, weight, normed, row);
    }

    // What the n-th Linear of those that read `from` needs of it; row r is multiplied by linear_of(r).
    template <class LinearOf>
    void prepare(Mine& mine, const Rows& from, int64_t rows, int n, bool as_before, LinearOf linear_of) {
        const Linear& any = linear_of(0);
        const bfloat16* numbers = from.numbers.data();
        if (any.changes != nullptr) {
#pragma omp for schedule(static)
            for (int64_t place = 0; place < rows * rank; place++) {
                int64_t row = place / rank, nth = place % rank;
                const Change* change = linear_of(row).change_of(from.models[row]);
                if (change != nullptr && nth < change->rank)
                    squeezed[n][size_t(place)] = squeeze(*change, numbers + row * from.columns, from.columns, nth);
            }
        }
        if (as_before) {
            mine.eights[n] = mine.eights[0];
        } else if (any.rounds) {
            Eights eights = mine.eights[n] = rooms[size_t(n)].of(any.inputs, block_of(any.group));
#pragma omp for schedule(static)
            for (int64_t part = 0; part < rows * eights.blocks; part++) {
                int64_t row = part / eights.blocks;
                round_part(numbers + row * from.columns, linear_of(row).order, int(any.bits), row, part % eights.blocks, eights);
            }
        }
    }

    void prepare(Mine& mine, const Rows& from, std::initializer_list<const Linear*> linears) {
        int n = 0;
        for (const Linear* linear : linears) {
            bool as_before = n > 0 && reads_alike(*linear, **linears.begin());
            prepare(mine, from, t.rows, n++, as_before, [=](int64_t) -> const Linear& { return *linear; });
        }
    }

    // sums (rows, TILE): one tile of what a Linear makes of the rows of `from` from `begin` on.
    void multiply_into(Mine& mine, const Linear& linear, int64_t tile, const Rows& from, int64_t begin, int64_t rows, int nth,
                       float* sums) {
        multiply_tile(linear, tile, from, mine.eights[nth], begin, rows, mine.scratch, sums);
        if (linear.changes == nullptr) return;
        for (int64_t row = 0; row < rows; row++)
            if (const Change* change = linear.change_of(from.models[begin + row]))
                add_change(*change, tile, squeezed[nth].data() + (begin + row) * rank, sums + row * TILE);
    }

    void multiply(Mine& mine, const Linear& linear, int64_t tile, const Rows& from, bfloat16* to, int nth = 0) {
        multiply_into(mine, linear, tile, from, 0, t.rows, nth, mine.scratch.sums.data());
        place_tile(mine.scratch.sums.data(), t.rows, tile, to, linear.columns);
    }

    void attention(Mine& mine, const Layer& layer) {
        prepare(mine, normed, {&layer.query, &layer.key, &layer.value});
        int64_t query_tiles = tiles_of(layer.query), key_tiles = tiles_of(layer.key), groups = t.rows * shape.groups;
#pragma omp for schedule(static)
        for (int64_t task = 0; task < query_tiles + 2 * key_tiles; task++) {
            if (task < query_tiles) multiply(mine, layer.query, task, normed, query.data());
            else if (task < query_tiles + key_tiles) multiply(mine, layer.key, task - query_tiles, normed, key.data(), 1);
            else multiply(mine, layer.value, task - query_tiles - key_tiles, normed, value.data(), 2);
        }
        if (t.rows > 1)  // the rows of one sequence read each other's keys
#pragma omp for schedule(static)
            for (int64_t task = 0; task < groups; task++) keep_one(layer, task);
#pragma omp for schedule(static)
        for (int64_t task = 0; task < groups; task += together) {
            int64_t row = task / shape.groups, group = task % shape.groups;
            if (t.rows == 1) keep_one(layer, task);
            attend(shape, layer, t.places, t.positions[row], row, group, together,
                   query.data() + row * query_size + group * (query_size / shape.groups), t.cos + row * shape.width,
                   t.signed_sin + row * shape.width, mine.scratch, attended);
        }
        prepare(mine, attended, {&layer.out});
#pragma omp for schedule(static)
        for (int64_t tile = 0; tile < tiles_of(layer.out); tile++) multiply(mine, layer.out, tile, attended, added.data());
    }

    void keep_one(const Layer& layer, int64_t task) {
        int64_t row = task / shape.groups, width = shape.width;
        int64_t place = t.places.at(shape, row, task % shape.groups, t.positions[row]);
        keep(shape, layer, place, key.data() + task * width, value.data() + task * width, t.cos + row * width,
             t.signed_sin + row * width);
    }

    void route(const Layer& layer) {
        int64_t hidden = shape.hidden;
#pragma omp for schedule(static)
        for (int64_t row = 0; row < t.rows; row++) {
            std::vector<float> logits(size_t(shape.experts));
            for (int64_t n = 0; n < shape.experts; n++) {
                float sum = sum_of(parts_of_dot(layer.router + n * hidden, normed.numbers.data() + row * hidden, hidden));
                logits[size_t(n)] = to_float(to_bfloat16(sum));
            }
            slots.choose(row, logits.data());
        }
#pragma omp single
        {
            slots.sort();
            find_slot_models();
        }
#pragma omp for schedule(static)
        for (int64_t slot = 0; slot < slots.count(); slot++)
            for (int64_t i = 0; i < hidden; i += LANES)
                gathered.put(load(normed.numbers.data() + slots.row[size_t(slot)] * hidden + i), slot * hidden + i);
    }

    // use(expert, its first slot, how many, tile) for all experts that have any, and this thread's share of the tiles.
    template <class Use>
    void by_expert(const Layer& layer, int64_t tiles, Use use) {
        Share share(tiles, omp_get_thread_num(), omp_get_num_threads());
        for (int64_t n = 0; n < shape.experts; n++) {
            int64_t begin = slots.first[size_t(n)], count = slots.first[size_t(n + 1)] - begin;
            if (count == 0) continue;
            for (int64_t tile = share.first; tile < share.last; tile++) use(layer.experts[n], begin, count, tile);
        }
#pragma omp barrier
    }

    void feed_forward(Mine& mine, const Layer& layer) {
        bool alike = true;
        if (mixture) route(layer);
        const Rows& from = mixture ? gathered : normed;
        auto part_of = [&](Linear Expert::*part) {
            return [&, part](int64_t slot) -> const Linear& { return layer.experts[slots.expert[size_t(slot)]].*part; };
        };
        for (int64_t n = 0; n < shape.experts; n++) alike &= reads_alike(layer.experts[n].gate, layer.experts[n].up);
        prepare(mine, from, slots.count(), 0, false, part_of(&Expert::gate));
        prepare(mine, from, slots.count(), 1, alike, part_of(&Expert::up));
        float *gates = mine.scratch.sums.data(), *ups = mine.scratch.more_sums.data();
        by_expert(layer, tiles_of(layer.experts->gate), [&](const Expert& expert, int64_t begin, int64_t rows, int64_t tile) {
            multiply_into(mine, expert.gate, tile, from, begin, rows, 0, gates);
            multiply_into(mine, expert.up, tile, from, begin, rows, 1, ups);
            int64_t count = std::min(TILE, shape.intermediate - tile * TILE);
            for (int64_t row = 0; row < rows; row++)
                for (int64_t i = 0; i < count; i += LANES) {
                    floats gate = rounded(load(gates + row * TILE + i)), up = rounded(load(ups + row * TILE + i));
                    gated.put(gate * sigmoid(gate) * up, (begin + row) * shape.intermediate + tile * TILE + i);
                }
        });
        prepare(mine, gated, slots.count(), 0, false, part_of(&Expert::down));
        bfloat16* to = mixture ? answers.data() : added.data();
        by_expert(layer, tiles_of(layer.experts->down), [&](const Expert& expert, int64_t begin, int64_t rows, int64_t tile) {
            multiply_into(mine, expert.down, tile, gated, begin, rows, 0, gates);
            place_tile(gates, rows, tile, to + begin * shape.hidden, shape.hidden);
        });
        if (mixture) mix_answers();
    }

    void mix_answers() {
#pragma omp for schedule(static)
        for (int64_t row = 0; row < t.rows; row++)
            for (int64_t i = 0; i < shape.hidden; i += LANES) {
                floats sum{};
                for (int64_t at = row * slots.chosen; at < (row + 1) * slots.chosen; at++)
                    sum += slots.weights[size_t(at)] * load(answers.data() + slots.place[size_t(at)] * shape.hidden + i);
                store(sum, added.data() + row * shape.hidden + i);
            }
    }
};

}  // namespace

// x (rows, hidden): the embeddings of the new tokens. positions (rows,): where in its sequence each of them comes; tables
// (rows, blocks): where the cache keeps that sequence; models (rows,): which model it is for, by its place among the
// changes of each Linear. Several rows may be tokens of one sequence that follow each other.
// cos, signed_sin (rows, width). logits (rows, vocabulary): the head's products with the last norm's output. as_few: to
// the bit what each row would give alone, however many there are.
LEVERET_EXPORT void leveret_decode_step(const Shape* shape, const Layer* layers, const bfloat16* last_norm,
                                        const Linear* head, bfloat16* x, int64_t rows, const int64_t* positions,
                                        const int64_t* tables, int64_t blocks, int64_t block_tokens,
                                        const int64_t* models, const bfloat16* cos, const bfloat16* signed_sin,
                                        bfloat16* logits, int64_t as_few, int threads) {
    Tokens tokens{x, rows, positions, models, {tables, blocks, block_tokens}, cos, signed_sin, as_few != 0};
    Step step(*shape, layers, tokens, threads);
#pragma omp parallel num_threads(threads)
    step.run(last_norm, *head, logits);
}
