/* Standard normals from xoshiro128++ in lanes, several times as fast as the Mersenne twister and the Box-Muller of a CPU tensor.

   Blackman and Vigna, "Scrambled linear pseudorandom number generators" (ACM TOMS 2021); Steele, Lea and Flood, "Fast
   splittable pseudorandom number generators" (OOPSLA 2014), for the seeds; Box and Muller (1958). The numbers come in streams
   of STREAM, each seeded by the key and its index alone, whatever the number of threads. Loops over LANES are for the compiler to
   vectorize, in the widest registers that the machine turns out to have. With -ffp-contract=off every operation is rounded alike
   on all of them, so that equal keys give equal numbers. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#define NEEDS_FMA
#include "_widest.h"

#define LANES 32
#define BLOCK (4 * LANES)                /* normals from four words of each lane */
#define STREAM (1 << 14)                 /* normals from one seed */

#define EACH_LANE for (size_t i = 0; i < LANES; i++)

/* The finaliser of SplitMix64. */
INLINE uint64_t mixed(uint64_t z) {
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
}

/* The four words of each lane's state, from SplitMix64. */
INLINE void seed(uint32_t state[4][LANES], uint64_t key, uint64_t stream) {
    uint64_t counter = mixed(key + stream);
    for (int word = 0; word < 4; word++)
        EACH_LANE state[word][i] = (uint32_t)(mixed(counter += 0x9E3779B97F4A7C15u) >> 32);
}

INLINE uint32_t rotated(uint32_t x, int bits) { return x << bits | x >> (32 - bits); }

/* The next word of each lane. */
INLINE void next(uint32_t state[4][LANES], uint32_t words[LANES]) {
    EACH_LANE {
        uint32_t s0 = state[0][i], s1 = state[1][i], s2 = state[2][i] ^ s0, s3 = state[3][i] ^ s1;
        words[i] = rotated(s0 + state[3][i], 7) + s0;
        state[0][i] = s0 ^ s3;
        state[1][i] = s1 ^ s2;
        state[2][i] = s2 ^ s1 << 9;
        state[3][i] = rotated(s3, 11);
    }
}

/* -2 ln u for u = (bits / 2 + 1/2) / 2^31 in (0, 1]; series of ln((1 + t) / (1 - t)), |t| < 0.172: error below 2 ulp. */
INLINE float minus_two_log(uint32_t bits) {
    float u = fmaf((float)(int32_t)(bits >> 1), 0x1p-31f, 0x1p-32f);
    int32_t word;
    memcpy(&word, &u, 4);
    int32_t exponent = (word - 0x3F3504F3) >> 23;        /* u = m 2^exponent, m in [sqrt(1/2), sqrt(2)) */
    word -= exponent * (1 << 23);
    float m;
    memcpy(&m, &word, 4);
    float t = (m - 1.0f) / (m + 1.0f), s = t * t;
    float series = fmaf(s, fmaf(s, fmaf(s, fmaf(s, 2.0f / 9, 2.0f / 7), 2.0f / 5), 2.0f / 3), 2.0f);
    return -2.0f * fmaf((float)exponent, 0.69314718f, t * series);
}

/* Two normals: the square root of -2 ln u1 times the cosine and the sine of 2 pi u2. The angle is reduced to a quadrant by
   the two top bits, and what is left, at most pi / 4, goes into the Taylor series, whose error is below an ulp. */
INLINE void box_muller(uint32_t a, uint32_t b, float *first, float *second) {
    float radius = sqrtf(minus_two_log(a));
    uint32_t quadrant = (b + (1u << 29)) >> 30;
    float angle = (float)(int32_t)(b - (quadrant << 30)) * (6.2831853f * 0x1p-32f), s = angle * angle;
    float sine = angle * fmaf(s, fmaf(s, fmaf(s, fmaf(s, 1.0f / 362880, -1.0f / 5040), 1.0f / 120), -1.0f / 6), 1.0f);
    float cosine = fmaf(s, fmaf(s, fmaf(s, fmaf(s, 1.0f / 40320, -1.0f / 720), 1.0f / 24), -0.5f), 1.0f);
    float x = quadrant & 1 ? sine : cosine, y = quadrant & 1 ? cosine : sine;
    *first = (quadrant + 1) & 2 ? -radius * x : radius * x;
    *second = quadrant & 2 ? -radius * y : radius * y;
}

/* Standard normals, or mean + std * normal where these are given. */
WIDEST static void normals(float *restrict out, int64_t size, uint64_t key, uint64_t stream, const float *restrict mean,
                           const float *restrict std) {
    uint32_t state[4][LANES], a[LANES], b[LANES];
    float z[BLOCK];
    for (int64_t start = 0; start < size; start += BLOCK) {
        if (start % STREAM == 0) seed(state, key, stream++);
        for (int half = 0; half < BLOCK; half += BLOCK / 2) {
            next(state, a);
            next(state, b);
            EACH_LANE box_muller(a[i], b[i], z + half + i, z + half + LANES + i);
        }
        size_t count = size - start < BLOCK ? size - start : BLOCK;
        if (mean)
            for (size_t i = 0; i < count; i++) out[start + i] = fmaf(std[start + i], z[i], mean[start + i]);
        else
            memcpy(out + start, z, count * sizeof(float));
    }
}

/* fill(address of float32 numbers, how many, key, index of the first stream, address of their means and of their stds or 0) */
static PyObject *fill(PyObject *module, PyObject *arguments) {
    unsigned long long address, key, stream, mean, std;
    long long size;
    if (!PyArg_ParseTuple(arguments, "KLKKKK", &address, &size, &key, &stream, &mean, &std)) return NULL;
    Py_BEGIN_ALLOW_THREADS
    normals((float *)(uintptr_t)address, size, key, stream, (float *)(uintptr_t)mean, (float *)(uintptr_t)std);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"fill", fill, METH_VARARGS, "fill(address, size, key, stream, mean, std): float32 normals, stream by stream of 2^14."},
    {NULL, NULL, 0, NULL}};
static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_normals", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__normals(void) { return PyModule_Create(&definition); }
