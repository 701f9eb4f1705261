// What the kernels of every instruction set share: descriptions of the maps, and the counter-based random numbers.

#pragma once

#include <cstdint>

template <class T>
struct Bits;
template <>
struct Bits<float> {
    typedef int32_t type;
};
template <>
struct Bits<double> {
    typedef int64_t type;
};

// One search. Maps are padded by patch / 2 zeros on every side and end in spare numbers (patchmatch_lanes.h).
template <class T>
struct Search {
    const T* q;              // (planes, rows, cols, channels), padded
    const T* k;              // (planes, rows, cols, channels), padded
    const T* q_inverse;      // (planes, queries), or null: costs are multiplied by it
    const T* k_inverse;      // (planes, keys), or null
    const uint8_t* allowed;  // (planes / heads, keys), or null for all
    int32_t* matches;        // (planes, queries, count), best first
    T* costs;                // (planes, queries, count)
    int64_t heads, q_rows, q_cols, k_rows, k_cols, channels, patch, count, ring, windows;
    uint64_t seed;
};

// The best match of a query, and the number of the last pass that changed it.
struct Best {
    int32_t match, changed;
};

// What lists start from: draws among the allowed keys, then offers in order, -1 for none.
struct Start {
    const int32_t* listed;   // (planes / heads, keys): the allowed keys in flat order, or null for all
    const int64_t* counts;   // (planes / heads): how many there are
    const int64_t* offered;  // (offers, planes, queries)
    Best* best;              // (planes, queries): written
    int64_t offers, planes;
};

// One pass over the queries: a jump (`jump` > 0 rows and columns) or a scan (+1 forwards, -1 backwards), then the
// random search whose first draw is number `draw` (of the widest window; `widest` windows are left out), or none if
// that is negative.
struct Pass {
    const Best* now;
    Best* next;
    int64_t jump, draw, widest;
    int32_t number, seen;
};

// Windows of a random search: the longer side of a key map is below 2^32.
constexpr int64_t MOST_WINDOWS = 32;

static inline uint32_t mix(uint32_t x) {
    x ^= x >> 16;
    x *= 0x7feb352du;
    x ^= x >> 15;
    x *= 0x846ca68bu;
    return x ^ (x >> 16);
}

// Draws of one query: a hash of seed, head, query and number of the draw, the same for every batch entry.
struct Draws {
    uint32_t key, offset;

    template <class T>
    Draws(const Search<T>& s, int64_t head, int64_t query)
        : key(mix(static_cast<uint32_t>(s.seed) + 0x9E3779B9u * static_cast<uint32_t>(query + 1))),
          offset(static_cast<uint32_t>(s.seed >> 32) + 0xC2B2AE35u * static_cast<uint32_t>(head)) {}

    uint32_t hash(int64_t draw) const { return mix(key ^ (static_cast<uint32_t>(draw) * 0x85EBCA6Bu + offset)); }
};

// A number in [0, count).
static inline int64_t below(uint32_t hash, int64_t count) {
    return static_cast<int64_t>((static_cast<uint64_t>(hash) * static_cast<uint64_t>(count)) >> 32);
}

// Exact search. Maps are (planes, channels, rows, step), padded by patch / 2 zeros and at least patch / 2 more columns.
template <class T>
struct Exact {
    const T* q;
    const T* k;
    const T* q_inverse;  // (planes, queries), or null: costs are multiplied by it
    const T* k_inverse;  // (planes, keys), or null
    const T* penalty;    // (planes / heads, keys), or null: added to the costs, infinite where a key is not allowed
    int32_t* matches;   // (planes, count, queries)
    T* costs;           // (planes, count, queries)
    int64_t heads, q_rows, q_cols, k_rows, k_cols, channels, patch, count, q_step, k_step;
};

// Gradient of one of the maps whose patches are compared, from weights of the matches: for squared differences it adds
// weight * (mine - other) to the patch, for products weight * other.
template <class T>
struct Gradient {
    const T* q;              // (planes, rows, cols, channels), padded
    const T* k;              // (planes, rows, cols, channels), padded
    const int32_t* matches;  // (planes, count, queries)
    const T* weights;        // (planes, count, queries)
    T* grad;                 // (planes, rows, cols, channels), padded: of q or of k
    int64_t q_rows, q_cols, k_rows, k_cols, channels, patch, count, plane;
};
