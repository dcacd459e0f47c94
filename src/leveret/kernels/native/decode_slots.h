// Which rows of a decode step each expert of a mixture reads: a row stands in one slot for every expert that it visits.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace {

// Slots, in order of their experts. Where there is one expert and no choice, slot n is row n.
struct Slots {
    int64_t chosen;                            // experts of a row
    std::vector<int64_t> first, row, expert;   // (experts + 1): its first slot; (slots): whose it is
    std::vector<int64_t> choice, place;        // (rows, chosen): the experts of a row, and its slots
    std::vector<float> weights;                // (rows, chosen)

    Slots(int64_t rows, int64_t experts, int64_t chosen)
        : chosen(chosen), first(size_t(experts + 1)), row(size_t(rows * chosen)), expert(row.size()), choice(row.size()),
          place(row.size()), weights(row.size(), 1.0f) {
        sort();
    }

    int64_t count() const { return int64_t(row.size()); }

    // The experts of one row by the router's logits: the largest, weighted by their softmax among themselves.
    void choose(int64_t which, float* logits) {
        int64_t experts = int64_t(first.size()) - 1;
        float highest = *std::max_element(logits, logits + experts), sum = 0.0f;
        for (int64_t n = 0; n < chosen; n++) {
            int64_t best = std::max_element(logits, logits + experts) - logits, at = which * chosen + n;
            choice[size_t(at)] = best;
            sum += weights[size_t(at)] = std::exp(logits[best] - highest);
            logits[best] = -INFINITY;
        }
        for (int64_t n = 0; n < chosen; n++) weights[size_t(which * chosen + n)] /= sum;
    }

    // Slots in order of their experts.
    void sort() {
        std::fill(first.begin(), first.end(), 0);
        for (int64_t each : choice) first[size_t(each) + 1]++;
        for (size_t n = 1; n < first.size(); n++) first[n] += first[n - 1];
        std::vector<int64_t> next(first.begin(), first.end() - 1);
        for (size_t at = 0; at < choice.size(); at++) {
            int64_t slot = next[size_t(choice[at])]++;
            place[at] = slot;
            row[size_t(slot)] = int64_t(at) / chosen;
            expert[size_t(slot)] = choice[at];
        }
    }
};

}  // namespace
