/* What the test programs have in common: checks that say where they failed, numbers, and losses in plain C. */
#ifndef CHECK_H
#define CHECK_H

#include "xent.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int failures = 0;
static int checks = 0;

static void check_at(int ok, const char *what, const char *file, int line) {
    checks++;
    if (!ok) {
        failures++;
        fprintf(stderr, "%s:%d: %s; last error: %s\n", file, line, what, xent_last_error_message());
    }
}

static inline void status_at(int32_t got, int32_t expected, const char *text, const char *file, int line) {
    checks++;
    if (got != expected) {
        failures++;
        fprintf(stderr, "%s:%d: status %d (%s) instead of %d (%s): %s\n", file, line, (int)got,
                xent_status_string(got), (int)expected, xent_status_string(expected), xent_last_error_message());
    } else if (text && strcmp(text, xent_last_error_message()) != 0) {
        failures++;
        fprintf(stderr, "%s:%d: the message is `%s` instead of `%s`\n", file, line, xent_last_error_message(), text);
    }
}

static inline void close_at(double got, double expected, double within, const char *file, int line) {
    int ok;
    checks++;
    if (isnan(expected)) {
        ok = isnan(got);
    } else if (isinf(expected)) {
        ok = got == expected;
    } else {
        ok = fabs(got - expected) <= within * (1.0 + fabs(expected));
    }
    if (!ok) {
        failures++;
        fprintf(stderr, "%s:%d: %.17g instead of %.17g\n", file, line, got, expected);
    }
}

#define CHECK(ok) check_at((ok) ? 1 : 0, #ok, __FILE__, __LINE__)
#define OK(call) status_at((int32_t)(call), XENT_OK, NULL, __FILE__, __LINE__)
#define FAILS(call, status) status_at((int32_t)(call), status, NULL, __FILE__, __LINE__)
#define FAILS_WITH(call, status, text) status_at((int32_t)(call), status, text, __FILE__, __LINE__)
#define CLOSE(got, expected) close_at(got, expected, 1e-6, __FILE__, __LINE__)

/* xorshift: the same numbers on every machine. */
static uint64_t random_state = 0x9e3779b97f4a7c15u;

static inline double uniform(void) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (double)(random_state >> 11) / 9007199254740992.0;
}

/* The logsumexp of x[0], x[step], ... in two passes. */
static inline double naive_lse(const double *x, size_t n) {
    size_t j;
    double max = -INFINITY, sum = 0.0;
    for (j = 0; j < n; j++) {
        if (x[j] > max) max = x[j];
    }
    for (j = 0; j < n; j++) sum += exp(x[j] - max);
    return max + log(sum);
}

static inline void *allocate(size_t bytes) {
    void *memory = malloc(bytes ? bytes : 1);
    if (!memory) {
        fprintf(stderr, "no memory for the test\n");
        exit(2);
    }
    return memory;
}

/* A float as the upper half of its bits; exact for the numbers of these tests, which have few digits. */
static inline uint16_t to_bf16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return (uint16_t)(bits >> 16);
}

/* IEEE half precision of a number that is one, and not subnormal. */
static inline uint16_t to_f16(float x) {
    uint32_t bits, exponent;
    memcpy(&bits, &x, 4);
    if (x == 0.0f) return (uint16_t)(bits >> 16);
    exponent = ((bits >> 23) & 0xff) - 127 + 15;
    return (uint16_t)(((bits >> 16) & 0x8000) | (exponent << 10) | ((bits >> 13) & 0x3ff));
}

#endif
