/* One pass each over a factorised normal posterior, N(mean, exp(log_std)^2) for every weight: a draw with its KL, the gradients,
   the natural gradient's step. `posterior.py` has the same in torch's words, for where this was not compiled. prior_std is that of
   all weights handed over; 0 says that the KL counts none of them. Loops over a block are for the compiler to vectorize. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#define NEEDS_FMA
#include "_widest.h"

#define BLOCK 512                        /* numbers that are summed in float before they are in double */

#define EACH_BLOCK for (int64_t start = 0, count; count = size - start < BLOCK ? size - start : BLOCK, start < size; start += BLOCK)
#define IN_BLOCK for (int64_t i = start; i < start + count; i++)

/* exp(x) = 2^n exp(r) with |r| <= ln 2 / 2, whose Taylor series has an error below an ulp; NaN stays NaN. Beyond 88 and -87, which
   no log_std within `constrain_`'s bounds comes near, it is that of the bound. */
INLINE float exponential(float x) {
    x = x > 88.0f ? 88.0f : x < -87.0f ? -87.0f : x;
    float n = rintf(x * 1.44269504f), r = fmaf(n, -0x1.7f7d1cp-20f, fmaf(n, -0x1.62e4p-1f, x));      /* ln 2 in two parts */
    float series = 1.0f + r * (1.0f + r * (1.0f / 2 + r * (1.0f / 6 + r * (1.0f / 24 + r * (1.0f / 120 + r * (1.0f / 720))))));
    uint32_t word;
    memcpy(&word, &series, 4);
    word += (uint32_t)(int32_t)n << 23;
    memcpy(&series, &word, 4);
    return series;
}

/* w = mean + std * eps, shift = std * eps in the place of eps; returns the KL (Eq. 6), summed. */
WIDEST static double draw(float *restrict weights, float *restrict shift, const float *restrict mean, const float *restrict log_std,
                          int64_t size, double prior_std) {
    double squares = 0, logs = 0;
    EACH_BLOCK {
        float some_squares = 0, some_logs = 0;
        IN_BLOCK {
            float std = exponential(log_std[i]);
            shift[i] *= std;
            weights[i] = mean[i] + shift[i];
            some_squares += std * std + mean[i] * mean[i];
            some_logs += log_std[i];
        }
        squares += some_squares;
        logs += some_logs;
    }
    return prior_std ? squares / (2 * prior_std * prior_std) - logs + (log(prior_std) - 0.5) * (double)size : 0;
}

/* dL/dmean and dL/dlog_std from grad = d nll/dw, with grad_kl the gradient of the KL. */
WIDEST static void gradients(float *restrict grad_mean, float *restrict grad_log_std, const float *restrict grad,
                             const float *restrict shift, const float *restrict mean, const float *restrict log_std, int64_t size,
                             double prior_std, float grad_kl) {
    float precision = prior_std ? (float)(1 / (prior_std * prior_std)) : 0, slope = prior_std ? grad_kl : 0;
    for (int64_t i = 0; i < size; i++) {
        grad_mean[i] = grad[i] + slope * precision * mean[i];
        grad_log_std[i] = grad[i] * shift[i] + slope * (precision * exponential(2 * log_std[i]) - 1);
    }
}

/* log_std -= rate * clamp(share D^2 + kl_weight dKL/dlog_std, -bound, bound); sums: of D and of D^2. */
WIDEST static void step(float *restrict log_std, const float *restrict grad, int64_t size, double prior_std, float kl_weight,
                        float share, float rate, float bound, double sums[2]) {
    float precision = prior_std ? (float)(1 / (prior_std * prior_std)) : 0, slope = prior_std ? kl_weight : 0;
    EACH_BLOCK {
        float some = 0, some_squares = 0;
        IN_BLOCK {
            float of_kl = slope * (precision * exponential(2 * log_std[i]) - 1), of_draws = grad[i] - of_kl;
            float pull = fmaf(share * of_draws, of_draws, of_kl);      /* in this order: the square alone may be 0 or inf */
            some += of_draws;
            some_squares += of_draws * of_draws;
            log_std[i] -= rate * (pull > bound ? bound : pull < -bound ? -bound : pull);
        }
        sums[0] += some;
        sums[1] += some_squares;
    }
}

/* Each vector is given by the address of its first float32 number. */
#define VECTOR(ADDRESS) ((float *)(uintptr_t)(ADDRESS))

static PyObject *py_draw(PyObject *module, PyObject *arguments) {
    unsigned long long weights, shift, mean, log_std;
    long long size;
    double prior_std, kl;
    if (!PyArg_ParseTuple(arguments, "KKKKLd", &weights, &shift, &mean, &log_std, &size, &prior_std)) return NULL;
    Py_BEGIN_ALLOW_THREADS
    kl = draw(VECTOR(weights), VECTOR(shift), VECTOR(mean), VECTOR(log_std), size, prior_std);
    Py_END_ALLOW_THREADS
    return PyFloat_FromDouble(kl);
}

static PyObject *py_gradients(PyObject *module, PyObject *arguments) {
    unsigned long long grad_mean, grad_log_std, grad, shift, mean, log_std;
    long long size;
    double prior_std, grad_kl;
    if (!PyArg_ParseTuple(arguments, "KKKKKKLdd", &grad_mean, &grad_log_std, &grad, &shift, &mean, &log_std, &size, &prior_std,
                          &grad_kl))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    gradients(VECTOR(grad_mean), VECTOR(grad_log_std), VECTOR(grad), VECTOR(shift), VECTOR(mean), VECTOR(log_std), size, prior_std,
              (float)grad_kl);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *py_step(PyObject *module, PyObject *arguments) {
    unsigned long long log_std, grad;
    long long size;
    double prior_std, sums[2] = {0, 0};
    float kl_weight, share, rate, bound;
    if (!PyArg_ParseTuple(arguments, "KKLdffff", &log_std, &grad, &size, &prior_std, &kl_weight, &share, &rate, &bound)) return NULL;
    Py_BEGIN_ALLOW_THREADS
    step(VECTOR(log_std), VECTOR(grad), size, prior_std, kl_weight, share, rate, bound, sums);
    Py_END_ALLOW_THREADS
    return Py_BuildValue("dd", sums[0], sums[1]);
}

static PyMethodDef methods[] = {
    {"draw", py_draw, METH_VARARGS, "draw(weights, shift, mean, log_std, size, prior_std): the KL."},
    {"gradients", py_gradients, METH_VARARGS,
     "gradients(grad_mean, grad_log_std, grad, shift, mean, log_std, size, prior_std, grad_kl)"},
    {"step", py_step, METH_VARARGS, "step(log_std, grad, size, prior_std, kl_weight, share, rate, bound): sums of D and D^2."},
    {NULL, NULL, 0, NULL}};
static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_posterior", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__posterior(void) { return PyModule_Create(&definition); }
