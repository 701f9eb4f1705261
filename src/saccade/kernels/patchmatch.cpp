// PatchMatch on the CPU: the compiled kernels of saccade.ops.psal.compiled, called with addresses and sizes.
//
// Each function works on a range of rows with the interpreter's lock released; Python divides the rows among threads.
// The kernels are compiled once for every instruction set of x86-64 worth having (vectors of 16, 32 and 64 bytes), and
// the widest one that this processor knows is taken when the module is loaded: a wheel runs anywhere.

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <vector>

#include "patchmatch_types.h"

#if !defined(__GNUC__)
#error "patchmatch.cpp is written with the vector extensions of GCC and Clang"
#endif

#define PM_INLINE inline __attribute__((always_inline))

#define PM_BYTES 16
namespace lanes16 {
#include "patchmatch_kernels.h"
}
#undef PM_BYTES

#if defined(__x86_64__) && !defined(__clang__)
#define PM_WIDER 1

#pragma GCC push_options
#pragma GCC target("avx2,fma,bmi,bmi2,prefer-vector-width=256")
#define PM_BYTES 32
namespace lanes32 {
#include "patchmatch_kernels.h"
}
#undef PM_BYTES
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f,avx512vl,avx512bw,avx512dq,avx2,fma,bmi,bmi2,prefer-vector-width=512")
#define PM_BYTES 64
namespace lanes64 {
#include "patchmatch_kernels.h"
}
#undef PM_BYTES
#pragma GCC pop_options
#endif

namespace {

int widest() {
#ifdef PM_WIDER
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq"))
        return 64;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2")) return 32;
#endif
    return 16;
}

int lane_bytes = 16;

// Reads the integers of one call in order.
struct Reader {
    std::vector<long long> values;
    size_t at = 0;

    template <class P>
    void next(P*& pointer) {
        pointer = reinterpret_cast<P*>(static_cast<intptr_t>(values[at++]));
    }
    void next(int64_t& value) { value = values[at++]; }
    void next(uint64_t& value) { value = static_cast<uint64_t>(values[at++]); }
    void next(int32_t& value) { value = static_cast<int32_t>(values[at++]); }

    template <class... Fields>
    void read(Fields&... fields) {
        int in_order[] = {(next(fields), 0)...};
        (void)in_order;
    }
};

enum Work { START, JUMP, SCAN, EXACT, GRADIENT };

// How many integers follow (double, l2, first, last), by kind of work.
constexpr size_t LENGTHS[] = {24, 25, 25, 17, 14};

template <class T>
Search<T> read_search(Reader& in) {
    Search<T> s;
    in.read(s.q, s.k, s.q_inverse, s.k_inverse, s.allowed, s.matches, s.costs, s.heads, s.q_rows, s.q_cols, s.k_rows,
            s.k_cols, s.channels, s.patch, s.count, s.ring, s.windows, s.seed);
    return s;
}

Pass read_pass(Reader& in) {
    Pass pass;
    in.read(pass.now, pass.next, pass.jump, pass.draw, pass.widest, pass.number, pass.seen);
    return pass;
}

#ifdef PM_WIDER
#define PM_CALL(function, ...)                                              \
    (lane_bytes == 64   ? lanes64::function(__VA_ARGS__)                    \
     : lane_bytes == 32 ? lanes32::function(__VA_ARGS__)                    \
                        : lanes16::function(__VA_ARGS__))
#else
#define PM_CALL(function, ...) lanes16::function(__VA_ARGS__)
#endif

template <class T>
void work(Work kind, Reader& in, bool l2, int64_t first, int64_t last) {
    if (kind == START) {
        const Search<T> s = read_search<T>(in);
        Start start;
        in.read(start.listed, start.counts, start.offered, start.best, start.offers, start.planes);
        PM_CALL(start_rows<T>, s, start, l2, first, last);
    } else if (kind == JUMP || kind == SCAN) {
        const Search<T> s = read_search<T>(in);
        const Pass pass = read_pass(in);
        if (kind == JUMP)
            PM_CALL(jump_rows<T>, s, pass, l2, first, last);
        else
            PM_CALL(scan_rows<T>, s, pass, l2, first, last);
    } else if (kind == EXACT) {
        Exact<T> s;
        in.read(s.q, s.k, s.q_inverse, s.k_inverse, s.penalty, s.matches, s.costs, s.heads, s.q_rows, s.q_cols,
                s.k_rows, s.k_cols, s.channels, s.patch, s.count, s.q_step, s.k_step);
        PM_CALL(exact_search<T>, s, l2, first, last);
    } else {
        Gradient<T> s;
        int64_t of_queries = 0;
        in.read(s.q, s.k, s.matches, s.weights, s.grad, s.q_rows, s.q_cols, s.k_rows, s.k_cols, s.channels, s.patch,
                s.count, s.plane, of_queries);
        PM_CALL(pair_gradient<T>, s, l2, of_queries != 0, first, last);
    }
}

PyObject* call(Work kind, PyObject* const* arguments, Py_ssize_t count) {
    Reader in;
    if (static_cast<size_t>(count) != LENGTHS[kind] + 4) {
        PyErr_Format(PyExc_TypeError, "expected %zu integers, got %zd", LENGTHS[kind] + 4, count);
        return nullptr;
    }
    for (Py_ssize_t at = 0; at < count; ++at) {
        in.values.push_back(PyLong_AsLongLong(arguments[at]));
        if (PyErr_Occurred()) return nullptr;
    }
    int64_t wide, l2, first, last;
    in.read(wide, l2, first, last);
    bool memory = true;
    Py_BEGIN_ALLOW_THREADS
    try {
        if (wide)
            work<double>(kind, in, l2 != 0, first, last);
        else
            work<float>(kind, in, l2 != 0, first, last);
    } catch (const std::bad_alloc&) {
        memory = false;
    }
    Py_END_ALLOW_THREADS
    if (!memory) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

template <Work kind>
PyObject* entry(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
    return call(kind, arguments, count);
}

PyObject* set_lanes(PyObject*, PyObject* argument) {
    const long bytes = PyLong_AsLong(argument);
    if (PyErr_Occurred()) return nullptr;
    if ((bytes != 16 && bytes != 32 && bytes != 64) || bytes > widest()) {
        PyErr_Format(PyExc_ValueError, "vectors have 16 to %d bytes here; got %ld", widest(), bytes);
        return nullptr;
    }
    lane_bytes = static_cast<int>(bytes);
    Py_RETURN_NONE;
}

PyObject* lanes(PyObject*, PyObject*) { return PyLong_FromLong(lane_bytes); }

#define PM_ENTRY(name, kind, text) \
    {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&entry<kind>)), METH_FASTCALL, text}

PyMethodDef methods[] = {
    PM_ENTRY("start", START, "Start lists of the queries in the rows [first, last)."),
    PM_ENTRY("jump", JUMP, "One jump, with or without random search, of the rows [first, last)."),
    PM_ENTRY("scan", SCAN, "One scan, with or without random search, of the band of rows [first, last)."),
    PM_ENTRY("exact", EXACT, "The cheapest keys of the queries in the rows [first, last) of one plane."),
    PM_ENTRY("gradient", GRADIENT, "Gradient of one map in its padded rows [first, last)."),
    {"set_lanes", set_lanes, METH_O, "Use vectors of 16, 32 or 64 bytes."},
    {"lanes", lanes, METH_NOARGS, "Bytes of the vectors in use."},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef module = {PyModuleDef_HEAD_INIT, "_patchmatch", "Compiled kernels of PatchMatch attention.", -1, methods,
                      nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__patchmatch() {
    lane_bytes = widest();
    return PyModule_Create(&module);
}
