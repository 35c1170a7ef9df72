/* 2x2 max-pooling and the way back of its gradient, several times as fast as torch's on a CPU, with a ReLU before it where one is
   wanted. The largest of a window is chosen as torch does: the first of equals in reading order, and NaN over any number (of
   several the first, where torch takes the last).

   The numbers of a pixel that lie together are its channels, in channels last; in contiguous planes each has one. There a window
   is two words, what is left and right in its upper row and in its lower row; windows are handled in blocks, whose words are
   gathered from rows that may be short. Loops over a block or over channels are for the compiler to vectorize. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

#include "_widest.h"

#define BLOCK 64
#define LANES 16

/* The bits of a float as an integer of the same order: both zeros are equal, NaN is above all. */
INLINE int32_t rank_of_float32(uint32_t bits) {
    uint32_t size = bits & 0x7FFFFFFFu;
    int32_t rank = (int32_t)bits < 0 ? -(int32_t)size : (int32_t)size;
    return size > 0x7F800000u ? INT32_MAX : rank;
}

INLINE int32_t rank_of_bfloat16(uint32_t bits) { return rank_of_float32(bits << 16); }

/* BITS: a number's bits; WORD: two of them. x: rows of 2 * width pixels, two to a row of y; which: the place of the largest, 0 to
   3 in reading order, or 4 where a ReLU has made it zero, so that no place gets the gradient. All in windows from `first` to
   `last`, counted over all rows. */
#define POOL(NAME, BITS, WORD)                                                                                               \
    INLINE void NAME##_choose(BITS (*four)[BLOCK], BITS *one, uint8_t *which, int relu, int count) {                         \
        int32_t place[BLOCK];                                                                                                \
        for (int i = 0; i < count; i++) {                                                                                    \
            uint32_t a = four[0][i], b = four[1][i], c = four[2][i], d = four[3][i];                                         \
            int32_t p = rank_of_##NAME(a), q = rank_of_##NAME(b), r = rank_of_##NAME(c), s = rank_of_##NAME(d);              \
            int32_t top = q > p ? q : p, low = s > r ? s : r, zero = relu & (top <= 0) & (low <= 0);                         \
            uint32_t top_bits = q > p ? b : a, low_bits = s > r ? d : c, top_at = q > p, low_at = s > r ? 3 : 2;             \
            one[i] = (BITS)(zero ? 0 : low > top ? low_bits : top_bits);                                                     \
            place[i] = zero ? 4 : low > top ? low_at : top_at;                                                               \
        }                                                                                                                    \
        for (int i = 0; i < count; i++) which[i] = (uint8_t)place[i];                                                        \
    }                                                                                                                        \
    INLINE void NAME##_spread(BITS (*four)[BLOCK], BITS *one, uint8_t *which, int count) {                                   \
        int32_t place[BLOCK];                                                                                                \
        for (int i = 0; i < count; i++) place[i] = which[i];                                                                 \
        for (int n = 0; n < 4; n++)                                                                                          \
            for (int i = 0; i < count; i++) four[n][i] = one[i] & (BITS) - (place[i] == n);                                  \
    }                                                                                                                        \
    INLINE void NAME##_rows(BITS *x, WORD *upper, WORD *lower, int64_t first, int64_t count, int64_t width, int gather) {    \
        for (int64_t done = 0, run; done < count; done += run) {                                                             \
            int64_t row = (first + done) / width, column = (first + done) % width;                                           \
            run = width - column < count - done ? width - column : count - done;                                             \
            BITS *above = x + 4 * row * width + 2 * column, *below = above + 2 * width;                                      \
            memcpy(gather ? (void *)(upper + done) : above, gather ? (void *)above : upper + done, run * sizeof(WORD));      \
            memcpy(gather ? (void *)(lower + done) : below, gather ? (void *)below : lower + done, run * sizeof(WORD));      \
        }                                                                                                                    \
    }                                                                                                                        \
    WIDEST static void NAME##_planes(BITS *x, BITS *y, uint8_t *which, int64_t first, int64_t last, int64_t width, int relu, \
                                     int forward) {                                                                          \
        WORD upper[BLOCK], lower[BLOCK], half = 8 * sizeof(BITS);                                                            \
        BITS four[4][BLOCK], one[BLOCK] = {0};                                                                               \
        uint8_t place[BLOCK] = {0};                                                                                          \
        for (; first < last; first += BLOCK) {                                                                               \
            int64_t count = last - first < BLOCK ? last - first : BLOCK;                                                     \
            if (forward) {                                                                                                   \
                NAME##_rows(x, upper, lower, first, count, width, 1);                                                        \
                for (int i = 0; i < BLOCK; i++) four[0][i] = (BITS)upper[i], four[1][i] = (BITS)(upper[i] >> half);          \
                for (int i = 0; i < BLOCK; i++) four[2][i] = (BITS)lower[i], four[3][i] = (BITS)(lower[i] >> half);          \
                NAME##_choose(four, one, place, relu, BLOCK);                                                                \
                memcpy(y + first, one, count * sizeof(BITS));                                                                \
                memcpy(which + first, place, count);                                                                         \
            } else {                                                                                                         \
                memcpy(one, y + first, count * sizeof(BITS));                                                                \
                memcpy(place, which + first, count);                                                                         \
                NAME##_spread(four, one, place, BLOCK);                                                                      \
                for (int i = 0; i < BLOCK; i++) upper[i] = four[0][i] | (WORD)four[1][i] << half;                            \
                for (int i = 0; i < BLOCK; i++) lower[i] = four[2][i] | (WORD)four[3][i] << half;                            \
                NAME##_rows(x, upper, lower, first, count, width, 0);                                                        \
            }                                                                                                                \
        }                                                                                                                    \
    }                                                                                                                        \
    INLINE void NAME##_lanes(BITS *x, BITS *y, uint8_t *which, int64_t width, int64_t channels, int64_t count, int relu,     \
                             int forward) {                                                                                  \
        BITS *pixel[4] = {x, x + channels, x + 2 * width * channels, x + (2 * width + 1) * channels};                        \
        BITS four[4][BLOCK], one[LANES];                                                                                     \
        uint8_t place[LANES];                                                                                                \
        if (forward) {                                                                                                       \
            for (int n = 0; n < 4; n++) memcpy(four[n], pixel[n], count * sizeof(BITS));                                     \
            NAME##_choose(four, one, place, relu, LANES);                                                                    \
            memcpy(y, one, count * sizeof(BITS));                                                                            \
            memcpy(which, place, count);                                                                                     \
        } else {                                                                                                             \
            memcpy(one, y, count * sizeof(BITS));                                                                            \
            memcpy(place, which, count);                                                                                     \
            NAME##_spread(four, one, place, LANES);                                                                          \
            for (int n = 0; n < 4; n++) memcpy(pixel[n], four[n], count * sizeof(BITS));                                     \
        }                                                                                                                    \
    }                                                                                                                        \
    WIDEST static void NAME##_channels_last(BITS *x, BITS *y, uint8_t *which, int64_t first, int64_t last, int64_t width,    \
                                            int64_t channels, int relu, int forward) {                                       \
        for (; first < last; first++) {                                                                                      \
            BITS *window = x + (4 * (first / width) * width + 2 * (first % width)) * channels;                               \
            int64_t start = first * channels, i = 0;                                                                         \
            for (; i + LANES <= channels; i += LANES)                                                                        \
                NAME##_lanes(window + i, y + start + i, which + start + i, width, channels, LANES, relu, forward);           \
            if (i < channels)                                                                                                \
                NAME##_lanes(window + i, y + start + i, which + start + i, width, channels, channels - i, relu, forward);    \
        }                                                                                                                    \
    }                                                                                                                        \

POOL(float32, uint32_t, uint64_t)
POOL(bfloat16, uint16_t, uint32_t)

/* (address of x, of y, of which, first window, last window, windows in a row, channels, bytes of a number: 4 or 2, whether a
   ReLU comes before) */
static PyObject *call(PyObject *arguments, int forward) {
    unsigned long long x_address, y_address, which_address;
    long long first, last, width, channels;
    int size, relu;
    if (!PyArg_ParseTuple(arguments, "KKKLLLLip", &x_address, &y_address, &which_address, &first, &last, &width, &channels,
                          &size, &relu))
        return NULL;
    void *x = (void *)(uintptr_t)x_address, *y = (void *)(uintptr_t)y_address, *which = (void *)(uintptr_t)which_address;
    Py_BEGIN_ALLOW_THREADS
    if (size == 4 && channels == 1) float32_planes(x, y, which, first, last, width, relu, forward);
    else if (size == 4) float32_channels_last(x, y, which, first, last, width, channels, relu, forward);
    else if (channels == 1) bfloat16_planes(x, y, which, first, last, width, relu, forward);
    else bfloat16_channels_last(x, y, which, first, last, width, channels, relu, forward);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *forward(PyObject *module, PyObject *arguments) { return call(arguments, 1); }
static PyObject *backward(PyObject *module, PyObject *arguments) { return call(arguments, 0); }

static PyMethodDef methods[] = {
    {"forward", forward, METH_VARARGS, "Fills y and which."},
    {"backward", backward, METH_VARARGS, "Fills x with y's gradient."},
    {NULL, NULL, 0, NULL}};
static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_max_pool", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__max_pool(void) { return PyModule_Create(&definition); }
