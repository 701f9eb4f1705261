// Vectors of the width that one instruction set offers, and the comparison of two patches with them.
//
// No include guard: patchmatch.cpp includes this file once for every instruction set, each time inside another
// namespace and with another PM_BYTES.

template <class T>
struct Lanes {
    static constexpr int width = PM_BYTES / static_cast<int>(sizeof(T));
    typedef T type __attribute__((vector_size(PM_BYTES)));
    typedef typename Bits<T>::type bits __attribute__((vector_size(PM_BYTES)));
};

template <class T>
static PM_INLINE typename Lanes<T>::type load(const T* from) {
    typename Lanes<T>::type lanes;
    std::memcpy(&lanes, from, sizeof lanes);
    return lanes;
}

template <class T>
static PM_INLINE void store(T* to, typename Lanes<T>::type lanes) {
    std::memcpy(to, &lanes, sizeof lanes);
}

// Ones in the first `count` lanes, for the end of a run that does not fill a vector.
template <class T>
static PM_INLINE typename Lanes<T>::bits first_lanes(int64_t count) {
    typename Lanes<T>::bits bits;
    for (int lane = 0; lane < Lanes<T>::width; ++lane) bits[lane] = lane < count ? -1 : 0;
    return bits;
}

template <class T>
static PM_INLINE T total(typename Lanes<T>::type lanes) {
    typedef T Half __attribute__((vector_size(PM_BYTES / 2)));
    Half low, high;
    std::memcpy(&low, &lanes, sizeof low);
    std::memcpy(&high, reinterpret_cast<const char*>(&lanes) + sizeof low, sizeof high);
    low += high;
    T sum = 0;
    if (sizeof(Half) > 16) {
        typedef T Quarter __attribute__((vector_size(16)));
        Quarter part, quarter;
        std::memcpy(&quarter, &low, sizeof quarter);
        for (size_t at = sizeof quarter; at < sizeof low; at += sizeof quarter) {
            std::memcpy(&part, reinterpret_cast<const char*>(&low) + at, sizeof part);
            quarter += part;
        }
        for (size_t lane = 0; lane < sizeof quarter / sizeof(T); ++lane) sum += quarter[lane];
    } else {
        for (size_t lane = 0; lane < sizeof low / sizeof(T); ++lane) sum += low[lane];
    }
    return sum;
}

// Rows of two patches: `rows` runs of `run` numbers, `q_step` and `k_step` apart. Buffers end in spare numbers, so a
// whole vector may be read at the end of a run.
struct Runs {
    int64_t rows, run, q_step, k_step;
};

// Sum of squared differences (L2) or of products. L2 gives up, with a partial sum, once it is not below `limit`.
template <class T, bool L2>
static PM_INLINE T compare(const T* q, const T* k, const Runs& runs, T limit) {
    constexpr int width = Lanes<T>::width;
    typename Lanes<T>::type even = {}, odd = {};
    const int64_t full = runs.run - runs.run % width, pairs = full - full % (2 * width), rest = runs.run - full;
    for (int64_t row = 0; row < runs.rows; ++row, q += runs.q_step, k += runs.k_step) {
        for (int64_t at = 0; at < pairs; at += 2 * width) {
            const auto a = load(q + at), b = load(k + at), c = load(q + at + width), d = load(k + at + width);
            even += L2 ? (a - b) * (a - b) : a * b;
            odd += L2 ? (c - d) * (c - d) : c * d;
        }
        if (pairs < full) {
            const auto a = load(q + pairs), b = load(k + pairs);
            even += L2 ? (a - b) * (a - b) : a * b;
        }
        if (rest) {
            typedef typename Lanes<T>::type V;
            typedef typename Lanes<T>::bits I;
            const I mask = first_lanes<T>(rest);
            const V a = (V)((I)load(q + full) & mask), b = (V)((I)load(k + full) & mask);
            odd += L2 ? (a - b) * (a - b) : a * b;
        }
        if (L2 && row + 1 < runs.rows) {
            const T so_far = total<T>(even + odd);
            if (so_far >= limit) return so_far;
        }
    }
    return total<T>(even + odd);
}
