// Search of matches: propagation by jumps (Cherel et al., arXiv 2202.03163, algorithm 1) or by scan lines (Barnes et
// al., PatchMatch, 2009, section 3.2), and random search in halving windows.
//
// No include guard: see patchmatch_lanes.h.

template <class T>
static PM_INLINE Runs runs_of(const Search<T>& s) {
    const int64_t ring = s.patch - 1;
    return {s.patch, s.patch * s.channels, (s.q_cols + ring) * s.channels, (s.k_cols + ring) * s.channels};
}

// One query: where its patch lies and its list of matches, best first.
template <class T>
struct Query {
    const T* patch;
    const T* keys;
    const T* key_inverse;
    const uint8_t* allowed;
    int32_t* matches;
    T* costs;
    T inverse;
};

template <class T>
static PM_INLINE Query<T> query_at(const Search<T>& s, const Runs& runs, int64_t plane, int64_t row, int64_t col) {
    const int64_t keys = s.k_rows * s.k_cols, index = plane * s.q_rows * s.q_cols + row * s.q_cols + col;
    return {
        s.q + (plane * (s.q_rows + s.patch - 1) + row) * runs.q_step + col * s.channels,
        s.k + plane * (s.k_rows + s.patch - 1) * runs.k_step,
        s.k_inverse ? s.k_inverse + plane * keys : nullptr,
        s.allowed ? s.allowed + plane / s.heads * keys : nullptr,
        s.matches + index * s.count,
        s.costs + index * s.count,
        s.q_inverse ? s.q_inverse[index] : T(1),
    };
}

template <class T, bool L2>
static PM_INLINE T cost_of(const Search<T>& s, const Runs& runs, const Query<T>& query, int64_t row, int64_t col,
                           T limit) {
    const T sum = compare<T, L2>(query.patch, query.keys + row * runs.k_step + col * s.channels, runs, limit);
    if (L2) return sum;
    return query.key_inverse ? -(sum * query.key_inverse[row * s.k_cols + col] * query.inverse) : -sum;
}

template <class T>
static PM_INLINE bool is_searched(const Search<T>& s, int64_t row, int64_t col) {
    return row >= s.ring && row < s.q_rows - s.ring && col >= s.ring && col < s.q_cols - s.ring;
}

// Offer one key: it enters the list if it exists, is allowed, is not there yet and is cheaper than the worst.
template <class T, bool L2>
static PM_INLINE void offer(const Search<T>& s, const Runs& runs, const Query<T>& query, int64_t row, int64_t col) {
    if (row < 0 || row >= s.k_rows || col < 0 || col >= s.k_cols) return;
    const int32_t key = static_cast<int32_t>(row * s.k_cols + col);
    if (query.allowed && !query.allowed[key]) return;
    for (int64_t at = 0; at < s.count; ++at)
        if (query.matches[at] == key) return;
    int64_t at = s.count - 1;
    const T cost = cost_of<T, L2>(s, runs, query, row, col, query.costs[at]);
    if (!(cost < query.costs[at])) return;
    for (; at > 0 && query.costs[at - 1] > cost; --at) {
        query.costs[at] = query.costs[at - 1];
        query.matches[at] = query.matches[at - 1];
    }
    query.costs[at] = cost;
    query.matches[at] = key;
}

// Draw distinct allowed keys for a query.
template <class T>
static PM_INLINE void draw_start(const Search<T>& s, const Start& start, int64_t plane, int64_t index, int32_t* drawn) {
    const int64_t keys = s.k_rows * s.k_cols, entry = plane / s.heads;
    const int64_t bound = start.listed ? start.counts[entry] : keys;
    const Draws draws(s, plane % s.heads, index);
    for (int64_t kept = 0; kept < s.count; ++kept) {
        int64_t rank = below(draws.hash(kept), bound);
        for (int64_t other = 0; other < kept;) {
            const bool taken = drawn[other] == rank;
            other = taken ? 0 : other + 1;
            if (taken) rank = rank + 1 == bound ? 0 : rank + 1;
        }
        drawn[kept] = static_cast<int32_t>(rank);
    }
    if (start.listed)
        for (int64_t kept = 0; kept < s.count; ++kept) drawn[kept] = start.listed[entry * keys + drawn[kept]];
}

// Tell the processor to fetch the first rows of a key's patch: what a comparison reads unless it goes on.
template <class T>
static PM_INLINE void fetch(const Search<T>& s, const Runs& runs, const T* keys, int64_t row, int64_t col,
                            int64_t rows) {
    const T* from = keys + row * runs.k_step + col * s.channels;
    for (int64_t i = 0; i < std::min(rows, s.patch); ++i, from += runs.k_step)
        for (int64_t at = 0; at < runs.run; at += 64 / static_cast<int64_t>(sizeof(T))) __builtin_prefetch(from + at);
}

// Start lists of a row: the cheapest of the offers from outside and of the keys drawn. The offers come first, so that
// most of the drawn ones are refused early. Queries in the ring that is not searched keep the drawn keys at cost 0.
template <class T, bool L2>
static void start_row(const Search<T>& s, const Start& start, int64_t plane, int64_t row) {
    const Runs runs = runs_of(s);
    const int64_t queries = s.q_rows * s.q_cols, first = row * s.q_cols;
    std::vector<int32_t> drawn(s.q_cols * s.count);
    for (int64_t col = 0; col < s.q_cols; ++col) draw_start(s, start, plane, first + col, drawn.data() + col * s.count);
    for (int64_t col = 0; col < s.q_cols; ++col) {
        const Query<T> query = query_at(s, runs, plane, row, col);
        const int32_t* keys = drawn.data() + col * s.count;
        const bool searched = is_searched(s, row, col);
        std::fill(query.costs, query.costs + s.count, searched ? std::numeric_limits<T>::infinity() : T(0));
        std::fill(query.matches, query.matches + s.count, -1);
        for (int64_t kept = 0; kept < s.count && searched && col + 1 < s.q_cols; ++kept)
            fetch(s, runs, query.keys, keys[s.count + kept] / s.k_cols, keys[s.count + kept] % s.k_cols, 2);
        for (int64_t other = 0; searched && other < start.offers; ++other) {
            const int64_t key = start.offered[(other * start.planes + plane) * queries + first + col];
            if (key >= 0) offer<T, L2>(s, runs, query, key / s.k_cols, key % s.k_cols);
        }
        for (int64_t kept = 0; searched && kept < s.count; ++kept)
            offer<T, L2>(s, runs, query, keys[kept] / s.k_cols, keys[kept] % s.k_cols);
        // costs that are not finite enter no list: whatever the maps hold, every match is a key
        for (int64_t kept = 0; kept < s.count; ++kept)
            if (query.matches[kept] < 0) query.matches[kept] = keys[kept];
        start.best[plane * queries + first + col] = {query.matches[0], 0};
    }
}

// Offer one key drawn from each window around the best match. All of them are drawn, and the processor told to fetch
// their first rows, before the first is compared.
template <class T, bool L2>
static PM_INLINE void search_windows(const Search<T>& s, const Runs& runs, const Query<T>& query, const Draws& draws,
                                     const Pass& pass) {
    const int64_t row = query.matches[0] / s.k_cols, col = query.matches[0] % s.k_cols;
    uint32_t hashes[2 * MOST_WINDOWS];
    int64_t rows[MOST_WINDOWS], cols[MOST_WINDOWS];
    for (int64_t at = 2 * pass.widest; at < 2 * s.windows; ++at) hashes[at] = draws.hash(pass.draw + at);
    for (int64_t z = pass.widest; z < s.windows; ++z) {
        const int64_t half = std::max(s.k_rows, s.k_cols) >> z;
        rows[z] = row - half + below(hashes[2 * z], 2 * half);
        cols[z] = col - half + below(hashes[2 * z + 1], 2 * half);
        if (rows[z] < 0 || rows[z] >= s.k_rows || cols[z] < 0 || cols[z] >= s.k_cols) continue;
        fetch(s, runs, query.keys, rows[z], cols[z], 1);
    }
    for (int64_t z = pass.widest; z < s.windows; ++z) offer<T, L2>(s, runs, query, rows[z], cols[z]);
}

// One jump of every query in a row: the best matches of the four queries `jump` away, as they were before this pass.
//
// A neighbour whose best match has not changed since this jump last looked (`Best::changed` before the pass `seen`)
// is passed over: its offer was answered then, and a list never gets worse.
template <class T, bool L2>
static void jump_row(const Search<T>& s, const Pass& pass, int64_t plane, int64_t row) {
    const Runs runs = runs_of(s);
    const int64_t queries = s.q_rows * s.q_cols;
    const Best* now = pass.now + plane * queries;
    Best* next = pass.next + plane * queries;
    const int64_t rows[4] = {0, pass.jump, 0, -pass.jump}, cols[4] = {pass.jump, 0, -pass.jump, 0};
    for (int64_t col = 0; col < s.q_cols; ++col) {
        const int64_t index = row * s.q_cols + col;
        if (!is_searched(s, row, col)) {
            next[index] = now[index];
            continue;
        }
        const Query<T> query = query_at(s, runs, plane, row, col);
        for (int side = 0; side < 4; ++side) {
            const int64_t r = row + rows[side], c = col + cols[side];
            if (!is_searched(s, r, c)) continue;
            const Best best = now[r * s.q_cols + c];
            if (best.changed < pass.seen) continue;
            offer<T, L2>(s, runs, query, best.match / s.k_cols - rows[side], best.match % s.k_cols - cols[side]);
        }
        if (pass.draw >= 0) search_windows<T, L2>(s, runs, query, Draws(s, plane % s.heads, index), pass);
        next[index] = {query.matches[0], query.matches[0] == now[index].match ? now[index].changed : pass.number};
    }
}

// One scan of the rows [first, last) of a band, forwards or backwards: every query is offered all matches of the two
// neighbours scanned before it, then draws. Of a neighbour outside the band, the best match before the scan is offered.
template <class T, bool L2>
static void scan_band(const Search<T>& s, const Pass& pass, int64_t plane, int64_t first, int64_t last) {
    const Runs runs = runs_of(s);
    const int64_t queries = s.q_rows * s.q_cols, step = pass.jump;
    const Best* now = pass.now + plane * queries;
    const int32_t* matches = s.matches + plane * queries * s.count;
    for (int64_t i = 0; i < last - first; ++i) {
        const int64_t row = step > 0 ? first + i : last - 1 - i, above = row - step;
        for (int64_t j = 0; j < s.q_cols; ++j) {
            const int64_t col = step > 0 ? j : s.q_cols - 1 - j, before = col - step;
            if (!is_searched(s, row, col)) continue;
            const Query<T> query = query_at(s, runs, plane, row, col);
            if (is_searched(s, row, before)) {
                const int32_t* theirs = matches + (row * s.q_cols + before) * s.count;
                for (int64_t kept = 0; kept < s.count; ++kept)
                    offer<T, L2>(s, runs, query, theirs[kept] / s.k_cols, theirs[kept] % s.k_cols + step);
            }
            if (is_searched(s, above, col)) {
                const int64_t index = above * s.q_cols + col;
                const bool inside = above >= first && above < last;
                const int32_t* theirs = inside ? matches + index * s.count : &now[index].match;
                for (int64_t kept = 0; kept < (inside ? s.count : 1); ++kept)
                    offer<T, L2>(s, runs, query, theirs[kept] / s.k_cols + step, theirs[kept] % s.k_cols);
            }
            if (pass.draw >= 0)
                search_windows<T, L2>(s, runs, query, Draws(s, plane % s.heads, row * s.q_cols + col), pass);
        }
    }
}
