// Gradients of the costs of given matches.
//
// No include guard: see patchmatch_lanes.h.

template <class T, bool L2>
static PM_INLINE void add_run(T* __restrict to, const T* mine, const T* other, T weight, int64_t run) {
    for (int64_t at = 0; at < run; ++at) to[at] += weight * (L2 ? mine[at] - other[at] : other[at]);
}

// The padded rows [first, last) of the gradient. Every row adds in the order of the queries, so the sums do not depend
// on how the rows are divided among threads.
template <class T, bool L2, bool OfQueries>
static void gradient_rows(const Gradient<T>& s, int64_t first, int64_t last) {
    const int64_t ring = s.patch - 1, run = s.patch * s.channels;
    const int64_t q_step = (s.q_cols + ring) * s.channels, k_step = (s.k_cols + ring) * s.channels;
    const T* q = s.q + s.plane * (s.q_rows + ring) * q_step;
    const T* k = s.k + s.plane * (s.k_rows + ring) * k_step;
    T* grad = s.grad + s.plane * (OfQueries ? (s.q_rows + ring) * q_step : (s.k_rows + ring) * k_step);
    const int64_t from = OfQueries ? std::max<int64_t>(0, first - ring) : 0;
    const int64_t to = OfQueries ? std::min(s.q_rows, last) : s.q_rows;
    for (int64_t row = from; row < to; ++row) {
        for (int64_t kept = 0; kept < s.count; ++kept) {
            const int64_t start = ((s.plane * s.count + kept) * s.q_rows + row) * s.q_cols;
            for (int64_t col = 0; col < s.q_cols; ++col) {
                const int64_t key_row = s.matches[start + col] / s.k_cols, key_col = s.matches[start + col] % s.k_cols;
                const int64_t own = OfQueries ? row : key_row;
                const int64_t top = std::max<int64_t>(0, first - own), bottom = std::min(s.patch, last - own);
                for (int64_t i = top; i < bottom; ++i) {
                    const int64_t at_q = (row + i) * q_step + col * s.channels;
                    const int64_t at_k = (key_row + i) * k_step + key_col * s.channels;
                    if (OfQueries)
                        add_run<T, L2>(grad + at_q, q + at_q, k + at_k, s.weights[start + col], run);
                    else
                        add_run<T, L2>(grad + at_k, k + at_k, q + at_q, s.weights[start + col], run);
                }
            }
        }
    }
}
