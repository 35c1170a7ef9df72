/* 2x2 max-pooling of contiguous planes and the way back of its gradient, several times as fast as torch's on a CPU, which takes
   one number at a time. The largest of a window is chosen as torch does: the first of equals in reading order, and NaN over
   any number.

   A window is two words: what is left and right in its upper row, and in its lower row. Windows are handled in blocks, whose
   words are gathered from rows that may be short; loops over a block are for the compiler to vectorize. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

#define BLOCK 64

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define WIDEST __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define WIDEST
#endif
#define INLINE static inline __attribute__((always_inline))

/* The bits of a float as an integer of the same order: both zeros are equal, NaN is above all. */
INLINE int32_t rank_of_float32(uint32_t bits) {
    uint32_t size = bits & 0x7FFFFFFFu;
    int32_t rank = (int32_t)bits < 0 ? -(int32_t)size : (int32_t)size;
    return size > 0x7F800000u ? INT32_MAX : rank;
}

INLINE int32_t rank_of_bfloat16(uint32_t bits) { return rank_of_float32(bits << 16); }

/* BITS: a number's bits; WORD: two of them. x: rows of 2 * width numbers, two to a row of y; which: 0 to 3 in reading order;
   both in windows from `first` to `last`, counted over all rows. */
#define POOL(NAME, BITS, WORD)                                                                                               \
    INLINE void NAME##_rows(BITS *x, WORD *upper, WORD *lower, int64_t first, int64_t count, int64_t width, int gather) {    \
        for (int64_t done = 0, run; done < count; done += run) {                                                             \
            int64_t row = (first + done) / width, column = (first + done) % width;                                           \
            run = width - column < count - done ? width - column : count - done;                                             \
            BITS *above = x + 4 * row * width + 2 * column, *below = above + 2 * width;                                      \
            memcpy(gather ? (void *)(upper + done) : above, gather ? (void *)above : upper + done, run * sizeof(WORD));      \
            memcpy(gather ? (void *)(lower + done) : below, gather ? (void *)below : lower + done, run * sizeof(WORD));      \
        }                                                                                                                    \
    }                                                                                                                        \
    WIDEST static void NAME##_forward(BITS *x, BITS *restrict y, uint8_t *restrict which, int64_t first, int64_t last,       \
                                      int64_t width) {                                                                       \
        WORD upper[BLOCK], lower[BLOCK];                                                                                     \
        BITS largest[BLOCK];                                                                                                 \
        uint8_t at[BLOCK];                                                                                                   \
        for (; first < last; first += BLOCK) {                                                                               \
            int64_t count = last - first < BLOCK ? last - first : BLOCK;                                                     \
            NAME##_rows(x, upper, lower, first, count, width, 1);                                                            \
            for (int i = 0; i < BLOCK; i++) {                                                                                \
                uint32_t a = (BITS)upper[i], b = (BITS)(upper[i] >> 8 * sizeof(BITS));                                       \
                uint32_t c = (BITS)lower[i], d = (BITS)(lower[i] >> 8 * sizeof(BITS));                                       \
                int32_t p = rank_of_##NAME(a), q = rank_of_##NAME(b), r = rank_of_##NAME(c), s = rank_of_##NAME(d);          \
                int32_t top = q > p ? q : p, low = s > r ? s : r;                                                            \
                uint32_t top_bits = q > p ? b : a, low_bits = s > r ? d : c, top_at = q > p, low_at = s > r ? 3 : 2;         \
                largest[i] = (BITS)(low > top ? low_bits : top_bits);                                                        \
                at[i] = (uint8_t)(low > top ? low_at : top_at);                                                              \
            }                                                                                                                \
            memcpy(y + first, largest, count * sizeof(BITS));                                                                \
            memcpy(which + first, at, count);                                                                                \
        }                                                                                                                    \
    }                                                                                                                        \
    WIDEST static void NAME##_backward(BITS *x, const BITS *restrict y, const uint8_t *restrict which, int64_t first,        \
                                       int64_t last, int64_t width) {                                                        \
        WORD upper[BLOCK], lower[BLOCK];                                                                                     \
        BITS grad[BLOCK] = {0};                                                                                              \
        uint8_t at[BLOCK] = {0};                                                                                             \
        for (; first < last; first += BLOCK) {                                                                               \
            int64_t count = last - first < BLOCK ? last - first : BLOCK;                                                     \
            memcpy(grad, y + first, count * sizeof(BITS));                                                                   \
            memcpy(at, which + first, count);                                                                                \
            for (int i = 0; i < BLOCK; i++) {                                                                                \
                WORD word = (WORD)grad[i] << (at[i] & 1 ? 8 * sizeof(BITS) : 0);                                             \
                upper[i] = at[i] < 2 ? word : 0;                                                                             \
                lower[i] = at[i] < 2 ? 0 : word;                                                                             \
            }                                                                                                                \
            NAME##_rows(x, upper, lower, first, count, width, 0);                                                            \
        }                                                                                                                    \
    }

POOL(float32, uint32_t, uint64_t)
POOL(bfloat16, uint16_t, uint32_t)

/* (address of x, of y, of which, first window, last window, windows in a row, bytes of a number: 4 or 2) */
static PyObject *call(PyObject *arguments, int forward) {
    unsigned long long x_address, y_address, which_address;
    long long first, last, width;
    int size;
    if (!PyArg_ParseTuple(arguments, "KKKLLLi", &x_address, &y_address, &which_address, &first, &last, &width, &size))
        return NULL;
    void *x = (void *)(uintptr_t)x_address, *y = (void *)(uintptr_t)y_address, *which = (void *)(uintptr_t)which_address;
    Py_BEGIN_ALLOW_THREADS
    if (size == 4 && forward) float32_forward(x, y, which, first, last, width);
    else if (size == 4) float32_backward(x, y, which, first, last, width);
    else if (forward) bfloat16_forward(x, y, which, first, last, width);
    else bfloat16_backward(x, y, which, first, last, width);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *forward(PyObject *module, PyObject *arguments) { return call(arguments, 1); }
static PyObject *backward(PyObject *module, PyObject *arguments) { return call(arguments, 0); }

static PyMethodDef methods[] = {
    {"forward", forward, METH_VARARGS, "forward(x, y, which, first, last, width, size): fills y and which."},
    {"backward", backward, METH_VARARGS, "backward(x, y, which, first, last, width, size): fills x with y's gradient."},
    {NULL, NULL, 0, NULL}};
static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_max_pool", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__max_pool(void) { return PyModule_Create(&definition); }
