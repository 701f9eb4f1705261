// Exact search by shift planes: for one displacement between query and key, squared differences (or products) of the
// pixels, then a running box of the patch's size, then a comparison with the worst match kept so far.
//
// No include guard: see patchmatch_lanes.h.

// Column displacements that share the loads of a query, and those whose products are held at once.
constexpr int64_t TOGETHER = 4, IN_FLIGHT = 16;

// Sums over channels of one row's pairs at TOGETHER displacements: out[shift * step + x] for x from `from` up to `to`,
// rounded up to whole blocks.
template <class T, bool L2>
static PM_INLINE void row_products(const T* q, const T* k, T* out, int64_t step, int64_t from, int64_t to,
                                   int64_t channels, int64_t q_plane, int64_t k_plane) {
    constexpr int64_t width = Lanes<T>::width;
    for (int64_t x = from; x < to; x += 2 * width) {
        typename Lanes<T>::type sums[TOGETHER][2] = {};
        const T *at_q = q + x, *at_k = k + x;
        for (int64_t channel = 0; channel < channels; ++channel, at_q += q_plane, at_k += k_plane) {
            const auto left = load(at_q), right = load(at_q + width);
#pragma GCC unroll 4
            for (int64_t shift = 0; shift < TOGETHER; ++shift) {
                const auto a = load(at_k + shift), b = load(at_k + shift + width);
                sums[shift][0] += L2 ? (left - a) * (left - a) : left * a;
                sums[shift][1] += L2 ? (right - b) * (right - b) : right * b;
            }
        }
#pragma GCC unroll 4
        for (int64_t shift = 0; shift < TOGETHER; ++shift) {
            store<T>(out + shift * step + x, sums[shift][0]);
            store<T>(out + shift * step + x + width, sums[shift][1]);
        }
    }
}

// Sums of boxes of `patch` rows, `step` apart, and `patch` columns: out[x] for x from `from` up to `to`.
template <class T>
static PM_INLINE void boxes(const T* rows, int64_t step, int64_t patch, T* columns, T* out, int64_t from, int64_t to) {
    constexpr int64_t width = Lanes<T>::width;
    for (int64_t x = from; x < to + patch - 1; x += width) {
        auto sum = load(rows + x);
        for (int64_t i = 1; i < patch; ++i) sum += load(rows + i * step + x);
        store<T>(columns + x, sum);
    }
    for (int64_t x = from; x < to; x += width) {
        auto sum = load(columns + x);
        for (int64_t j = 1; j < patch; ++j) sum += load(columns + x + j);
        store<T>(out + x, sum);
    }
}

// Sums of products -> costs: minus the products, multiplied by the inverse lengths that there are.
template <class T>
static PM_INLINE void negative(T* box, int64_t count, const T* q_inverse, const T* k_inverse) {
    for (int64_t x = 0; x < count; ++x) box[x] = -box[x];
    if (q_inverse)
        for (int64_t x = 0; x < count; ++x) box[x] *= q_inverse[x];
    if (k_inverse)
        for (int64_t x = 0; x < count; ++x) box[x] *= k_inverse[x];
}

// Enter the row's candidates that beat the worst match of their query. `matches` and `costs` are at the row's start.
template <class T>
static PM_INLINE void keep_better(const T* found, int64_t count, int32_t first_key, int64_t kept, int64_t step,
                                  int32_t* matches, T* costs) {
    T* worst = costs + (kept - 1) * step;
    constexpr int64_t block = 32;
    for (int64_t from = 0; from < count; from += block) {
        const int64_t to = std::min(from + block, count);
        int better = 0;
        for (int64_t x = from; x < to; ++x) better |= found[x] < worst[x];
        if (!better) continue;
        for (int64_t x = from; x < to; ++x) {
            if (!(found[x] < worst[x])) continue;
            int64_t at = kept - 1;
            for (; at > 0 && costs[(at - 1) * step + x] > found[x]; --at) {
                costs[at * step + x] = costs[(at - 1) * step + x];
                matches[at * step + x] = matches[(at - 1) * step + x];
            }
            costs[at * step + x] = found[x];
            matches[at * step + x] = first_key + static_cast<int32_t>(x);
        }
    }
}

// Buffers of one exact search: products of the last `patch` rows at IN_FLIGHT displacements, and two rows of sums.
template <class T>
struct Room {
    int64_t step, shift_step;
    std::vector<T> products, columns, box;

    explicit Room(const Exact<T>& s)
        : step(s.q_cols + s.patch + 4 * Lanes<T>::width),
          shift_step(step * s.patch),
          products(shift_step * IN_FLIGHT + step),
          columns(step),
          box(step) {}
};

// All queries of one row against the keys `dy` rows and `dx` columns away, from the products in `room`.
template <class T, bool L2>
static PM_INLINE void finish_row(const Exact<T>& s, Room<T>& room, int64_t plane, int64_t row, int64_t dy, int64_t dx,
                                 int64_t shift) {
    const int64_t queries = s.q_rows * s.q_cols, keys = s.k_rows * s.k_cols;
    const int64_t left = std::max<int64_t>(0, -dx), right = std::min(s.q_cols, s.k_cols - dx), count = right - left;
    if (count <= 0) return;
    const T* products = room.products.data() + shift * room.shift_step;
    boxes(products, room.step, s.patch, room.columns.data(), room.box.data(), left, right);
    T* box = room.box.data() + left;
    const int64_t key = (row + dy) * s.k_cols + left + dx, query = row * s.q_cols + left;
    if (!L2)
        negative(box, count, s.q_inverse ? s.q_inverse + plane * queries + query : nullptr,
                 s.k_inverse ? s.k_inverse + plane * keys + key : nullptr);
    if (s.penalty) {
        const T* penalty = s.penalty + plane / s.heads * keys + key;
        for (int64_t x = 0; x < count; ++x) box[x] += penalty[x];
    }
    const int64_t at = plane * s.count * queries + query;
    keep_better(box, count, static_cast<int32_t>(key), s.count, queries, s.matches + at, s.costs + at);
}

// The `count` cheapest keys of every query in the rows [first, last) of a plane; `costs` holds infinity before. A query
// meets its keys in flat order, so of equal ones the lower is kept; the order of additions does not depend on the rows.
template <class T, bool L2>
static void exact_rows(const Exact<T>& s, int64_t plane, int64_t first, int64_t last) {
    const int64_t ring = s.patch - 1, q_plane = (s.q_rows + ring) * s.q_step, k_plane = (s.k_rows + ring) * s.k_step;
    const T* q = s.q + plane * s.channels * q_plane;
    const T* k = s.k + plane * s.channels * k_plane;
    Room<T> room(s);
    for (int64_t dy = 1 - last; dy < s.k_rows - first; ++dy) {
        const int64_t top = std::max(first, -dy), bottom = std::min(last, s.k_rows - dy);
        for (int64_t block = 1 - s.q_cols; block < s.k_cols; block += IN_FLIGHT) {
            for (int64_t line = top; line < bottom + ring; ++line) {
                for (int64_t shift = 0; shift < IN_FLIGHT; shift += TOGETHER) {
                    const int64_t dx = block + shift, from = std::max<int64_t>(0, 1 - TOGETHER - dx);
                    const int64_t to = std::min(s.q_cols, s.k_cols - dx) + ring;
                    row_products<T, L2>(q + line * s.q_step, k + (line + dy) * s.k_step + dx,
                                        room.products.data() + shift * room.shift_step + line % s.patch * room.step,
                                        room.shift_step, from, to, s.channels, q_plane, k_plane);
                }
                if (line - ring < top) continue;
                for (int64_t shift = 0; shift < IN_FLIGHT; ++shift)
                    finish_row<T, L2>(s, room, plane, line - ring, dy, block + shift, shift);
            }
        }
    }
}
