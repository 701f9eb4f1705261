// The kernels of one instruction set, and the loops over rows that patchmatch.cpp calls.
//
// No include guard: see patchmatch_lanes.h. Rows of queries are counted through all planes.

#include "patchmatch_lanes.h"
#include "patchmatch_search.h"
#include "patchmatch_exact.h"
#include "patchmatch_gradient.h"

template <class T>
void start_rows(const Search<T>& s, const Start& start, bool l2, int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row)
        if (l2)
            start_row<T, true>(s, start, row / s.q_rows, row % s.q_rows);
        else
            start_row<T, false>(s, start, row / s.q_rows, row % s.q_rows);
}

template <class T>
void jump_rows(const Search<T>& s, const Pass& pass, bool l2, int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row)
        if (l2)
            jump_row<T, true>(s, pass, row / s.q_rows, row % s.q_rows);
        else
            jump_row<T, false>(s, pass, row / s.q_rows, row % s.q_rows);
}

template <class T>
void scan_rows(const Search<T>& s, const Pass& pass, bool l2, int64_t first, int64_t last) {
    const int64_t plane = first / s.q_rows, start = plane * s.q_rows;
    if (l2)
        scan_band<T, true>(s, pass, plane, first - start, last - start);
    else
        scan_band<T, false>(s, pass, plane, first - start, last - start);
}

template <class T>
void exact_search(const Exact<T>& s, bool l2, int64_t first, int64_t last) {
    const int64_t plane = first / s.q_rows, start = plane * s.q_rows;
    if (l2)
        exact_rows<T, true>(s, plane, first - start, last - start);
    else
        exact_rows<T, false>(s, plane, first - start, last - start);
}

template <class T>
void pair_gradient(const Gradient<T>& s, bool l2, bool of_queries, int64_t first, int64_t last) {
    if (l2 && of_queries)
        gradient_rows<T, true, true>(s, first, last);
    else if (l2)
        gradient_rows<T, true, false>(s, first, last);
    else if (of_queries)
        gradient_rows<T, false, true>(s, first, last);
    else
        gradient_rows<T, false, false>(s, first, last);
}
