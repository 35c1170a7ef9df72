/* Standard normals from Philox4x32-10, several times as fast as the Mersenne twister and the Box-Muller of a CPU tensor.

   Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011); Box and Muller (1958). The
   generator is counter-based: number i depends on the key and i alone, whatever the number of threads. Loops over LANES are
   for the compiler to vectorize, in the widest registers that the machine turns out to have. With -ffp-contract=off every
   operation is rounded alike on all of them, so that equal keys give equal numbers. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#define LANES 32
#define BLOCK (4 * LANES)                /* normals from one counter in each lane */
#define ROUNDS 10

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>
#define HAS_AVX512_VERSION
#define WIDEST __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define WIDEST
#endif

#define EACH_LANE for (size_t i = 0; i < LANES; i++)

/* x[j][i]: word j of the block with counter LANES * block + i, as Random123's philox4x32 with ten rounds. The word is the lower
   half of a lane; what is left in the upper half is never read, which spares the packing. */
static void philox(uint64_t x[4][LANES], uint64_t block, uint64_t key) {
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
    uint64_t first = block * LANES;
    EACH_LANE { x[0][i] = first + i; x[1][i] = first >> 32; x[2][i] = 0; x[3][i] = 0; }
    for (int round = 0; round < ROUNDS; round++) {
        EACH_LANE {
            uint64_t a = (uint64_t)0xD2511F53u * (uint32_t)x[0][i], b = (uint64_t)0xCD9E8D57u * (uint32_t)x[2][i];
            x[0][i] = (b >> 32) ^ x[1][i] ^ k0;
            x[1][i] = b;
            x[2][i] = (a >> 32) ^ x[3][i] ^ k1;
            x[3][i] = a;
        }
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
}

#ifdef HAS_AVX512_VERSION
/* The same with the one instruction for 32-bit factors, which compilers miss: their 64-bit product takes three times as long. */
__attribute__((target("avx512f"))) static void philox_avx512(uint64_t x[4][LANES], uint64_t block, uint64_t key) {
    const __m512i first_factor = _mm512_set1_epi64(0xD2511F53u), second_factor = _mm512_set1_epi64(0xCD9E8D57u);
    for (size_t start = 0; start < LANES; start += 8) {
        __m512i first = _mm512_add_epi64(_mm512_set1_epi64((int64_t)(block * LANES + start)),
                                         _mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0));
        __m512i x0 = first, x1 = _mm512_srli_epi64(first, 32), x2 = _mm512_setzero_si512(), x3 = x2;
        uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
        for (int round = 0; round < ROUNDS; round++) {
            __m512i a = _mm512_mul_epu32(x0, first_factor), b = _mm512_mul_epu32(x2, second_factor);
            x0 = _mm512_xor_si512(_mm512_xor_si512(_mm512_srli_epi64(b, 32), x1), _mm512_set1_epi64(k0));
            x1 = b;
            x2 = _mm512_xor_si512(_mm512_xor_si512(_mm512_srli_epi64(a, 32), x3), _mm512_set1_epi64(k1));
            x3 = a;
            k0 += 0x9E3779B9u;
            k1 += 0xBB67AE85u;
        }
        _mm512_storeu_si512(x[0] + start, x0);
        _mm512_storeu_si512(x[1] + start, x1);
        _mm512_storeu_si512(x[2] + start, x2);
        _mm512_storeu_si512(x[3] + start, x3);
    }
}
#endif

static void (*best_philox)(uint64_t x[4][LANES], uint64_t block, uint64_t key) = philox;

/* -2 ln u for u = (bits / 2 + 1/2) / 2^31 in (0, 1]; series of ln((1 + t) / (1 - t)), |t| < 0.172: error below 2 ulp. */
static inline __attribute__((always_inline)) float minus_two_log(uint32_t bits) {
    float u = (float)(int32_t)(bits >> 1) * 0x1p-31f + 0x1p-32f;
    int32_t word;
    memcpy(&word, &u, 4);
    int32_t exponent = (word - 0x3F3504F3) >> 23;        /* u = m 2^exponent, m in [sqrt(1/2), sqrt(2)) */
    word -= exponent * (1 << 23);
    float m;
    memcpy(&m, &word, 4);
    float t = (m - 1.0f) / (m + 1.0f), s = t * t;
    float series = 2.0f + s * (2.0f / 3 + s * (2.0f / 5 + s * (2.0f / 7 + s * (2.0f / 9))));
    return -2.0f * ((float)exponent * 0.69314718f + t * series);
}

/* Two normals: the square root of -2 ln u1 times the cosine and the sine of 2 pi u2. The angle is reduced to a quadrant by
   the two top bits, and what is left, at most pi / 4, goes into the Taylor series, whose error is below an ulp. */
static inline __attribute__((always_inline)) void box_muller(uint32_t a, uint32_t b, float *first, float *second) {
    float radius = sqrtf(minus_two_log(a));
    uint32_t quadrant = (b + (1u << 29)) >> 30;
    float angle = (float)(int32_t)(b - (quadrant << 30)) * (6.2831853f * 0x1p-32f), s = angle * angle;
    float sine = angle * (1.0f + s * (-1.0f / 6 + s * (1.0f / 120 + s * (-1.0f / 5040 + s * (1.0f / 362880)))));
    float cosine = 1.0f + s * (-0.5f + s * (1.0f / 24 + s * (-1.0f / 720 + s * (1.0f / 40320))));
    float x = quadrant & 1 ? sine : cosine, y = quadrant & 1 ? cosine : sine;
    *first = (quadrant + 1) & 2 ? -radius * x : radius * x;
    *second = quadrant & 2 ? -radius * y : radius * y;
}

/* Standard normals, or mean + std * normal where these are given. */
WIDEST static void normals(float *restrict out, int64_t size, uint64_t key, uint64_t block, const float *restrict mean,
                           const float *restrict std) {
    uint64_t x[4][LANES];
    float z[BLOCK];
    for (int64_t start = 0; start < size; start += BLOCK, block++) {
        size_t count = size - start < BLOCK ? size - start : BLOCK;
        best_philox(x, block, key);
        EACH_LANE box_muller((uint32_t)x[0][i], (uint32_t)x[1][i], z + i, z + LANES + i);
        EACH_LANE box_muller((uint32_t)x[2][i], (uint32_t)x[3][i], z + 2 * LANES + i, z + 3 * LANES + i);
        if (mean)
            for (size_t i = 0; i < count; i++) out[start + i] = mean[start + i] + std[start + i] * z[i];
        else
            memcpy(out + start, z, count * sizeof(float));
    }
}

/* fill(address of float32 numbers, how many, key, index of the first block, address of their means and of their stds or 0) */
static PyObject *fill(PyObject *module, PyObject *arguments) {
    unsigned long long address, key, block, mean, std;
    long long size;
    if (!PyArg_ParseTuple(arguments, "KLKKKK", &address, &size, &key, &block, &mean, &std)) return NULL;
    Py_BEGIN_ALLOW_THREADS
    normals((float *)(uintptr_t)address, size, key, block, (float *)(uintptr_t)mean, (float *)(uintptr_t)std);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

/* words(counter, key): the four words that the generator gives, for tests against published ones. */
static PyObject *words(PyObject *module, PyObject *arguments) {
    unsigned long long counter, key;
    uint64_t x[4][LANES];
    if (!PyArg_ParseTuple(arguments, "KK", &counter, &key)) return NULL;
    philox(x, counter / LANES, key);
    size_t i = counter % LANES;
    return Py_BuildValue("IIII", (uint32_t)x[0][i], (uint32_t)x[1][i], (uint32_t)x[2][i], (uint32_t)x[3][i]);
}

static PyMethodDef methods[] = {
    {"fill", fill, METH_VARARGS, "fill(address, size, key, block, mean, std): float32 normals, block by block of 128."},
    {"words", words, METH_VARARGS, "words(counter, key): the four words of Philox4x32-10."},
    {NULL, NULL, 0, NULL}};
static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_normals", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__normals(void) {
#ifdef HAS_AVX512_VERSION
    if (__builtin_cpu_supports("avx512f")) best_philox = philox_avx512;
#endif
    return PyModule_Create(&definition);
}
