/* Every function of the C ABI, from C99: numbers against plain loops, and everything that can be wrong. */
#define _POSIX_C_SOURCE 200809L
#include "check.h"

#include <pthread.h>
#ifdef __linux__
#include <dirent.h>
#include <time.h>
#endif

enum { ROWS = 7, CLASSES = 131, STRIDE = 137 };

static float logits_f32[ROWS * STRIDE];
static double rows_f64[ROWS][CLASSES];
static int32_t targets_i32[ROWS];

/* Quarters from -8 to 8: exact in all four formats. */
static void prepare(void) {
    size_t i, j;
    for (i = 0; i < ROWS * STRIDE; i++) logits_f32[i] = NAN; /* what is never to be read */
    for (i = 0; i < ROWS; i++) {
        for (j = 0; j < CLASSES; j++) {
            rows_f64[i][j] = floor(uniform() * 64.0) / 4.0 - 8.0;
            logits_f32[i * STRIDE + j] = (float)rows_f64[i][j];
        }
        targets_i32[i] = (int32_t)(uniform() * CLASSES);
    }
    targets_i32[3] = -100;
}

static xent_matrix matrix(const void *data, size_t rows, size_t classes, size_t stride, int32_t dtype) {
    xent_matrix m;
    memset(&m, 0, sizeof m);
    m.data = data;
    m.rows = rows;
    m.classes = classes;
    m.row_stride = stride;
    m.dtype = dtype;
    return m;
}

static xent_matrix_mut matrix_mut(void *data, size_t rows, size_t classes, size_t stride, int32_t dtype) {
    xent_matrix_mut m;
    memset(&m, 0, sizeof m);
    m.data = data;
    m.rows = rows;
    m.classes = classes;
    m.row_stride = stride;
    m.dtype = dtype;
    return m;
}

static xent_ids ids(const void *data, size_t len, int32_t dtype) {
    xent_ids t;
    memset(&t, 0, sizeof t);
    t.data = data;
    t.len = len;
    t.dtype = dtype;
    return t;
}

static xent_floats floats(const void *data, size_t len, int32_t dtype) {
    xent_floats f;
    memset(&f, 0, sizeof f);
    f.data = data;
    f.len = len;
    f.dtype = dtype;
    return f;
}

static xent_matrix whole(void) { return matrix(logits_f32, ROWS, CLASSES, STRIDE, XENT_F32); }
static xent_ids all_targets(void) { return ids(targets_i32, ROWS, XENT_I32); }

static xent_call new_call(void) {
    xent_call call;
    memset(&call, 0, sizeof call);
    call.size = sizeof call;
    call.logits = whole();
    call.targets = all_targets();
    return call;
}

static xent_token_call new_token_call(void) {
    xent_token_call call;
    memset(&call, 0, sizeof call);
    call.size = sizeof call;
    call.logits = whole();
    call.out_len = ROWS;
    call.out_dtype = XENT_F32;
    return call;
}

static double loss_of_row(size_t i) { return naive_lse(rows_f64[i], CLASSES) - rows_f64[i][targets_i32[i]]; }

static double mean_loss(void) {
    double sum = 0.0;
    size_t i, n = 0;
    for (i = 0; i < ROWS; i++) {
        if (targets_i32[i] >= 0) {
            sum += loss_of_row(i);
            n++;
        }
    }
    return sum / (double)n;
}

static void test_meta(void) {
    int32_t backend = -1, available = -1;
    int32_t i;
    CHECK(strcmp(xent_version(), XENT_VERSION) == 0);
    CHECK(xent_abi_version() == XENT_ABI_VERSION);
    CHECK(strcmp(xent_status_string(XENT_OK), "ok") == 0);
    CHECK(strcmp(xent_status_string(12345), "unknown status") == 0);
    for (i = 0; i <= XENT_ERROR_OTHER; i++) CHECK(strcmp(xent_status_string(i), "unknown status") != 0);
    CHECK(xent_last_error_message()[0] == '\0');
    OK(xent_backend_selected(&backend));
    CHECK(backend >= XENT_BACKEND_SCALAR && backend <= XENT_BACKEND_AVX512);
    printf("backend %d, xent %s\n", (int)backend, xent_version());
    OK(xent_backend_available(backend, &available));
    CHECK(available == 1);
    OK(xent_backend_available(XENT_BACKEND_AUTO, &available));
    CHECK(available == 1);
    FAILS_WITH(xent_backend_available(77, &available), XENT_ERROR_OPTION, "`backend`: 77 is not an xent_backend");
    FAILS_WITH(xent_backend_selected(NULL), XENT_ERROR_NULL_POINTER, "`backend` is NULL");
    FAILS(xent_backend_available(1, NULL), XENT_ERROR_NULL_POINTER);
}

static void test_forward(void) {
    double loss = 0.0, again = 0.0;
    float losses[ROWS];
    double losses_f64[ROWS];
    int64_t targets_i64[ROWS];
    uint32_t targets_u32[ROWS];
    uint64_t targets_u64[ROWS];
    int32_t spread[2 * ROWS];
    uint16_t half[ROWS * CLASSES];
    double wide[ROWS * CLASSES];
    float columns[ROWS * CLASSES];
    size_t i, j;
    xent_options *options = NULL;
    xent_matrix x = whole();
    xent_ids t = all_targets();

    OK(xent_forward(NULL, &x, &t, &loss));
    CLOSE(loss, mean_loss());
    OK(xent_forward_into(NULL, &x, &t, losses, ROWS, XENT_F32));
    for (i = 0; i < ROWS; i++) CLOSE(losses[i], targets_i32[i] < 0 ? 0.0 : loss_of_row(i));

    /* Known constants: uniform logits, and a row in the books. */
    {
        const float zeros[10] = {0};
        const float row[3] = {1.0f, 2.0f, 3.0f};
        const int32_t two = 2;
        xent_matrix m = matrix(zeros, 1, 10, 0, XENT_F32);
        xent_ids one = ids(&two, 1, XENT_I32);
        OK(xent_forward(NULL, &m, &one, &loss));
        CLOSE(loss, 2.302585092994046);
        m = matrix(row, 1, 3, 0, XENT_F32);
        OK(xent_forward(NULL, &m, &one, &loss));
        CLOSE(loss, 0.4076059644443806);
    }

    /* Ids of all types, and ids that are apart. */
    OK(xent_forward(NULL, &x, &t, &loss));
    for (i = 0; i < ROWS; i++) {
        targets_i64[i] = targets_i32[i];
        targets_u32[i] = targets_i32[i] < 0 ? 9999u : (uint32_t)targets_i32[i];
        targets_u64[i] = targets_u32[i];
        spread[2 * i] = targets_i32[i];
        spread[2 * i + 1] = 1000000;
    }
    t = ids(targets_i64, ROWS, XENT_I64);
    OK(xent_forward(NULL, &x, &t, &again));
    CHECK(again == loss);
    t = ids(spread, ROWS, XENT_I32);
    t.stride = 2;
    OK(xent_forward(NULL, &x, &t, &again));
    CHECK(again == loss);
    OK(xent_options_new(&options));
    OK(xent_options_set_ignore_index(options, 9999));
    t = ids(targets_u32, ROWS, XENT_U32);
    OK(xent_forward(options, &x, &t, &again));
    CHECK(again == loss);
    t = ids(targets_u64, ROWS, XENT_U64);
    if (sizeof(size_t) == 8) {
        OK(xent_forward(options, &x, &t, &again));
        CHECK(again == loss);
    } else {
        FAILS(xent_forward(options, &x, &t, &again), XENT_ERROR_DTYPE);
    }
    OK(xent_options_free(options));

    /* All formats: these numbers are exact in each of them. */
    t = all_targets();
    for (i = 0; i < ROWS; i++) {
        for (j = 0; j < CLASSES; j++) {
            half[i * CLASSES + j] = to_bf16((float)rows_f64[i][j]);
            wide[i * CLASSES + j] = rows_f64[i][j];
            columns[j * ROWS + i] = (float)rows_f64[i][j];
        }
    }
    x = matrix(half, ROWS, CLASSES, 0, XENT_BF16);
    OK(xent_forward(NULL, &x, &t, &again));
    CHECK(again == loss);
    for (i = 0; i < ROWS * CLASSES; i++) half[i] = to_f16((float)wide[i]);
    x = matrix(half, ROWS, CLASSES, 0, XENT_F16);
    OK(xent_forward(NULL, &x, &t, &again));
    CHECK(again == loss);
    x = matrix(wide, ROWS, CLASSES, 0, XENT_F64);
    OK(xent_forward(NULL, &x, &t, &again));
    close_at(again, mean_loss(), 1e-13, __FILE__, __LINE__);
    OK(xent_forward_into(NULL, &x, &t, losses_f64, ROWS, XENT_F64));
    close_at(losses_f64[0], loss_of_row(0), 1e-13, __FILE__, __LINE__);
    FAILS_WITH(xent_forward_into(NULL, &x, &t, losses, ROWS, XENT_F32), XENT_ERROR_PRECISION,
               "`losses` must be XENT_F64 for these logits, not dtype 1");

    /* Classes that are apart: [classes, rows] in memory. */
    x = matrix(columns, ROWS, CLASSES, 1, XENT_F32);
    x.class_stride = ROWS;
    OK(xent_forward(NULL, &x, &t, &again));
    CHECK(again == loss);
    x.row_stride = 2;
    FAILS(xent_forward(NULL, &x, &t, &again), XENT_ERROR_SHAPE);

    /* Next-token targets without shifting them: the last row has none. */
    {
        int32_t tokens[ROWS], shifted[ROWS];
        for (i = 0; i < ROWS; i++) tokens[i] = (int32_t)i;
        for (i = 0; i < ROWS; i++) shifted[i] = i + 1 < ROWS ? tokens[i + 1] : -100;
        x = whole();
        t = ids(shifted, ROWS, XENT_I32);
        OK(xent_forward(NULL, &x, &t, &loss));
        t = ids(tokens, ROWS, XENT_I32);
        t.sequence = ROWS;
        t.shift = 1;
        OK(xent_forward(NULL, &x, &t, &again));
        CHECK(again == loss);
        t.sequence = ROWS - 1;
        FAILS(xent_forward(NULL, &x, &t, &again), XENT_ERROR_SHAPE);
        t.sequence = 0;
        FAILS(xent_forward(NULL, &x, &t, &again), XENT_ERROR_SHAPE);
    }

    /* No rows: pointers do not matter. */
    x = matrix(NULL, 0, CLASSES, 0, XENT_F32);
    t = ids(NULL, 0, XENT_I32);
    OK(xent_forward(NULL, &x, &t, &loss));
    CHECK(isnan(loss));
    OK(xent_forward_into(NULL, &x, &t, NULL, 0, XENT_F32));
}

static void test_options(void) {
    xent_options *options = NULL, *clone = NULL;
    double loss, plain, expected;
    float weights[CLASSES];
    double weights_f64[CLASSES];
    xent_floats w;
    xent_matrix x = whole();
    xent_ids t = all_targets();
    size_t i, j;

    OK(xent_options_free(NULL));
    FAILS_WITH(xent_options_new(NULL), XENT_ERROR_NULL_POINTER, "`out` is NULL");
    FAILS_WITH(xent_options_set_z_loss(NULL, 0.1), XENT_ERROR_NULL_POINTER, "`options` is NULL");
    OK(xent_options_new(&options));
    OK(xent_forward(options, &x, &t, &plain));
    CLOSE(plain, mean_loss());

    FAILS_WITH(xent_options_set_label_smoothing(options, 1.5), XENT_ERROR_OPTION,
               "label_smoothing = 1.5 is not between 0 and 1");
    FAILS(xent_options_set_label_smoothing(options, NAN), XENT_ERROR_OPTION);
    FAILS_WITH(xent_options_set_z_loss(options, -1.0), XENT_ERROR_OPTION, "z_loss = -1 is not finite and not negative");
    FAILS(xent_options_set_logit_scale(options, 0.0), XENT_ERROR_OPTION);
    FAILS(xent_options_set_temperature(options, -0.5), XENT_ERROR_OPTION);
    FAILS(xent_options_set_temperature(options, NAN), XENT_ERROR_OPTION);
    FAILS(xent_options_set_softcap(options, INFINITY), XENT_ERROR_OPTION);
    FAILS(xent_options_set_softcap_of_all(options, -2.0), XENT_ERROR_OPTION);
    FAILS(xent_options_set_reduction(options, 7, 0.0), XENT_ERROR_OPTION);
    FAILS_WITH(xent_options_set_reduction(options, XENT_MEAN_OVER, 0.0), XENT_ERROR_OPTION,
               "a mean over 0 is not defined: the count must be finite and above 0");
    FAILS(xent_options_set_empty_mean(options, 2), XENT_ERROR_OPTION);
    FAILS(xent_options_set_backend(options, 99), XENT_ERROR_OPTION);
    FAILS(xent_options_set_threads(options, (size_t)-1 / 2), XENT_ERROR_OPTION);
    {
        int32_t backend, missing = 0;
        for (backend = XENT_BACKEND_SCALAR; backend <= XENT_BACKEND_AVX512; backend++) {
            int32_t available;
            OK(xent_backend_available(backend, &available));
            if (!available) {
                missing++;
                FAILS(xent_options_set_backend(options, backend), XENT_ERROR_BACKEND);
            } else {
                OK(xent_options_set_backend(options, backend));
                OK(xent_forward(options, &x, &t, &loss));
                CLOSE(loss, plain);
            }
        }
        CHECK(missing > 0); /* NEON and AVX are never on one machine */
        OK(xent_options_set_backend(options, XENT_BACKEND_AUTO));
    }
    /* What was refused has no effect. */
    OK(xent_forward(options, &x, &t, &loss));
    CHECK(loss == plain);

    OK(xent_options_set_reduction(options, XENT_SUM, 0.0));
    OK(xent_forward(options, &x, &t, &loss));
    CLOSE(loss, plain * (ROWS - 1));
    OK(xent_options_set_reduction(options, XENT_MEAN_OVER, 100.0));
    OK(xent_forward(options, &x, &t, &loss));
    CLOSE(loss, plain * (ROWS - 1) / 100.0);
    OK(xent_options_set_reduction(options, XENT_MEAN, 0.0));

    OK(xent_options_set_no_ignore_index(options));
    FAILS_WITH(xent_forward(options, &x, &t, &loss), XENT_ERROR_TARGET_RANGE,
               "row 3: target -100 is out of range for a vocabulary of 131; ignore_index(-100) ignores such rows");
    OK(xent_options_set_ignore_index(options, -100));

    {
        xent_matrix none = matrix(NULL, 0, 5, 0, XENT_F32);
        xent_ids no_ids = ids(NULL, 0, XENT_I64);
        OK(xent_options_set_empty_mean(options, XENT_EMPTY_MEAN_ZERO));
        OK(xent_forward(options, &none, &no_ids, &loss));
        CHECK(loss == 0.0);
        OK(xent_options_set_empty_mean(options, XENT_EMPTY_MEAN_NAN));
    }

    OK(xent_options_set_label_smoothing(options, 0.1));
    OK(xent_forward(options, &x, &t, &loss));
    expected = 0.0;
    for (i = 0; i < ROWS; i++) {
        double lse = naive_lse(rows_f64[i], CLASSES), all = 0.0;
        if (targets_i32[i] < 0) continue;
        for (j = 0; j < CLASSES; j++) all += lse - rows_f64[i][j];
        expected += 0.9 * loss_of_row(i) + 0.1 / CLASSES * all;
    }
    CLOSE(loss, expected / (ROWS - 1));
    OK(xent_options_set_label_smoothing(options, 0.0));

    OK(xent_options_set_z_loss(options, 0.01));
    OK(xent_forward(options, &x, &t, &loss));
    expected = 0.0;
    for (i = 0; i < ROWS; i++) {
        double lse = naive_lse(rows_f64[i], CLASSES);
        if (targets_i32[i] >= 0) expected += loss_of_row(i) + 0.01 * lse * lse;
    }
    CLOSE(loss, expected / (ROWS - 1));
    OK(xent_options_set_z_loss(options, 0.0));

    /* z = cap(scale x) / temperature */
    OK(xent_options_set_logit_scale(options, 0.5));
    OK(xent_options_set_temperature(options, 2.0));
    OK(xent_options_set_softcap(options, 3.0));
    OK(xent_forward(options, &x, &t, &loss));
    expected = 0.0;
    for (i = 0; i < ROWS; i++) {
        double z[CLASSES];
        if (targets_i32[i] < 0) continue;
        for (j = 0; j < CLASSES; j++) z[j] = 3.0 * tanh(0.5 * rows_f64[i][j] / 3.0) / 2.0;
        expected += naive_lse(z, CLASSES) - z[targets_i32[i]];
    }
    CLOSE(loss, expected / (ROWS - 1));
    OK(xent_options_set_softcap_of_all(options, 3.0));
    OK(xent_forward(options, &x, &t, &loss));
    CLOSE(loss, expected / (ROWS - 1));
    OK(xent_options_set_no_softcap(options));
    OK(xent_options_set_logit_scale(options, 1.0));
    OK(xent_options_set_temperature(options, 1.0));

    /* Weights are copied: what becomes of the array does not matter. */
    expected = 0.0;
    {
        double divisor = 0.0;
        for (j = 0; j < CLASSES; j++) weights[j] = 0.5f + (float)(j % 3);
        for (i = 0; i < ROWS; i++) {
            if (targets_i32[i] < 0) continue;
            expected += weights[targets_i32[i]] * loss_of_row(i);
            divisor += weights[targets_i32[i]];
        }
        expected /= divisor;
    }
    w = floats(weights, CLASSES, XENT_F32);
    OK(xent_options_set_class_weights(options, &w));
    for (j = 0; j < CLASSES; j++) weights[j] = NAN;
    OK(xent_forward(options, &x, &t, &loss));
    CLOSE(loss, expected);
    OK(xent_options_clone(options, &clone));
    OK(xent_options_set_class_weights(options, NULL));
    OK(xent_options_free(options));
    OK(xent_forward(clone, &x, &t, &loss));
    CLOSE(loss, expected);
    x.classes = CLASSES - 1;
    FAILS_WITH(xent_forward(clone, &x, &t, &loss), XENT_ERROR_INPUT_LENGTH, "class_weights: 131 values instead of 130");
    x.classes = CLASSES;
    for (j = 0; j < CLASSES; j++) weights_f64[j] = 1.0;
    w = floats(weights_f64, CLASSES, XENT_F64);
    OK(xent_options_set_class_weights(clone, &w));
    FAILS_WITH(xent_forward(clone, &x, &t, &loss), XENT_ERROR_PRECISION,
               "`class_weights` must be f32 for these logits, not f64");
    w = floats(weights_f64, CLASSES, XENT_BF16);
    FAILS(xent_options_set_class_weights(clone, &w), XENT_ERROR_DTYPE);
    w = floats(NULL, CLASSES, XENT_F32);
    FAILS_WITH(xent_options_set_class_weights(clone, &w), XENT_ERROR_NULL_POINTER, "`class_weights` is NULL");
    w = floats(NULL, 0, XENT_NONE);
    OK(xent_options_set_class_weights(clone, &w));
    OK(xent_forward(clone, &x, &t, &loss));
    CHECK(loss == plain);
    OK(xent_options_free(clone));
    OK(xent_options_clone(NULL, &clone));
    OK(xent_forward(clone, &x, &t, &loss));
    CHECK(loss == plain);
    FAILS(xent_options_clone(clone, NULL), XENT_ERROR_NULL_POINTER);
    OK(xent_options_free(clone));
}

static void test_evaluate(void) {
    float losses[ROWS], logprobs[ROWS], lse[ROWS], z_losses[ROWS], token_weights[ROWS];
    float saved[2 * ROWS];
    int64_t argmax[ROWS];
    uint32_t words[(CLASSES + 31) / 32];
    size_t i, j;
    double sum = 0.0, square = 0.0, n = 0.0, correct = 0.0, mean, weighted = 0.0, divisor = 0.0;
    xent_options *options = NULL;
    xent_evaluation e;
    xent_call call = new_call();

    memset(&e, 0, sizeof e);
    e.size = sizeof e;
    OK(xent_options_new(&options));
    OK(xent_options_set_z_loss(options, 0.25));
    call.out_dtype = XENT_F32;
    call.out_len = ROWS;
    call.losses = losses;
    call.logprobs = logprobs;
    call.logsumexp = lse;
    call.z_losses = z_losses;
    call.saved = saved;
    call.argmax = argmax;
    OK(xent_evaluate(options, &call, &e));
    for (i = 0; i < ROWS; i++) {
        double expected = naive_lse(rows_f64[i], CLASSES);
        size_t best = 0;
        if (targets_i32[i] < 0) {
            CHECK(losses[i] == 0.0f && logprobs[i] == 0.0f && lse[i] == 0.0f && argmax[i] == -1);
            continue;
        }
        for (j = 1; j < CLASSES; j++) {
            if (rows_f64[i][j] > rows_f64[i][best]) best = j;
        }
        CLOSE(lse[i], expected);
        CLOSE(saved[2 * i] + saved[2 * i + 1], expected);
        CLOSE(logprobs[i], -loss_of_row(i));
        CLOSE(z_losses[i], 0.25 * expected * expected);
        CLOSE(losses[i], loss_of_row(i) + 0.25 * expected * expected);
        CHECK(argmax[i] == (int64_t)best);
        correct += argmax[i] == targets_i32[i];
        sum += loss_of_row(i);
        square += loss_of_row(i) * loss_of_row(i);
        n += 1.0;
    }
    mean = sum / n;
    CHECK(e.count == ROWS - 1 && e.ignored == 1 && e.correct == (int64_t)correct);
    CLOSE(e.sum, sum);
    CLOSE(e.mean, mean);
    CLOSE(e.mean_stderr, sqrt((square / n - mean * mean) / (n - 1.0)));
    CLOSE(e.perplexity, exp(mean));
    CLOSE(e.perplexity_stderr, exp(mean) * e.mean_stderr);
    CLOSE(e.bits_per_token, mean / log(2.0));
    CLOSE(e.accuracy, correct / n);
    CLOSE(e.cross_entropy, mean);
    CLOSE(e.loss, e.cross_entropy + e.z_loss);
    CHECK(e.size == sizeof e);
    OK(xent_options_free(options));

    /* What is not asked for is not known; flags; rows without an evaluation. */
    call = new_call();
    OK(xent_evaluate(NULL, &call, &e));
    CHECK(e.correct == -1 && isnan(e.accuracy) && e.z_loss == 0.0);
    call.flags = XENT_COUNT_CORRECT;
    OK(xent_evaluate(NULL, &call, &e));
    CHECK(e.correct == (int64_t)correct);
    OK(xent_evaluate(NULL, &call, NULL));
    call.flags = 1u << 30;
    FAILS(xent_evaluate(NULL, &call, &e), XENT_ERROR_STRUCT);
    call.flags = XENT_ACCUMULATE;
    FAILS_WITH(xent_evaluate(NULL, &call, &e), XENT_ERROR_OPTION,
               "`XENT_ACCUMULATE` is given, but `xent_evaluate` makes no use of it");

    /* Token weights and a mask. */
    call = new_call();
    for (i = 0; i < ROWS; i++) {
        token_weights[i] = (float)(i % 3);
        if (targets_i32[i] < 0) continue;
        weighted += token_weights[i] * loss_of_row(i);
        divisor += token_weights[i];
    }
    call.token_weights = floats(token_weights, ROWS, XENT_F32);
    OK(xent_evaluate(NULL, &call, &e));
    CLOSE(e.loss, weighted / divisor);
    call.token_weights.len = ROWS - 1;
    FAILS_WITH(xent_evaluate(NULL, &call, &e), XENT_ERROR_INPUT_LENGTH, "token_weights: 6 values instead of 7");
    call = new_call();
    memset(words, 0, sizeof words);
    for (j = 0; j < CLASSES; j += 2) words[j / 32] |= 1u << (j % 32);
    for (i = 0; i < ROWS; i++) {
        if (targets_i32[i] >= 0) words[targets_i32[i] / 32] |= 1u << (targets_i32[i] % 32);
    }
    call.allowed.words = words;
    call.allowed.len = sizeof words / 4;
    call.allowed.same_for_all = 1;
    OK(xent_evaluate(NULL, &call, &e));
    sum = 0.0;
    for (i = 0; i < ROWS; i++) {
        double z[CLASSES];
        if (targets_i32[i] < 0) continue;
        for (j = 0; j < CLASSES; j++) z[j] = words[j / 32] >> (j % 32) & 1 ? rows_f64[i][j] : -INFINITY;
        sum += naive_lse(z, CLASSES) - z[targets_i32[i]];
    }
    CLOSE(e.loss, sum / (ROWS - 1));
    call.allowed.same_for_all = 0;
    FAILS(xent_evaluate(NULL, &call, &e), XENT_ERROR_INPUT_LENGTH);
}

/* The gradient of the mean by the logit of a class, times `upstream`. */
static double naive_gradient(size_t i, size_t j, double upstream) {
    double p;
    if (targets_i32[i] < 0) return 0.0;
    p = exp(rows_f64[i][j] - naive_lse(rows_f64[i], CLASSES));
    return upstream / (ROWS - 1) * (p - (j == (size_t)targets_i32[i] ? 1.0 : 0.0));
}

static void test_gradients(void) {
    float *g = allocate(ROWS * STRIDE * sizeof *g), *in_place = allocate(sizeof logits_f32);
    float saved[2 * ROWS], each[ROWS];
    size_t i, j;
    xent_evaluation e;
    xent_call call = new_call();

    memset(&e, 0, sizeof e);
    e.size = sizeof e;
    for (i = 0; i < ROWS * STRIDE; i++) g[i] = 7.0f;
    call.gradient = matrix_mut(g, ROWS, CLASSES, STRIDE, XENT_F32);
    call.saved = saved;
    call.out_len = ROWS;
    call.out_dtype = XENT_F32;
    OK(xent_forward_backward(NULL, &call, 2.0, &e));
    CLOSE(e.loss, mean_loss());
    for (i = 0; i < ROWS; i++) {
        for (j = 0; j < CLASSES; j++) CLOSE(g[i * STRIDE + j], naive_gradient(i, j, 2.0));
        for (j = CLASSES; j < STRIDE; j++) CHECK(g[i * STRIDE + j] == 7.0f); /* between rows */
    }
    /* Added to what is there. */
    for (i = 0; i < ROWS * STRIDE; i++) g[i] = 1.0f;
    call.flags = XENT_ACCUMULATE;
    OK(xent_forward_backward(NULL, &call, 1.0, NULL));
    for (i = 0; i < ROWS; i++) {
        for (j = 0; j < CLASSES; j++) CLOSE(g[i * STRIDE + j], 1.0 + naive_gradient(i, j, 1.0));
    }
    call.flags = 0;
    /* An upstream gradient for each row, times the one for all. */
    for (i = 0; i < ROWS; i++) each[i] = (float)i - 2.0f;
    call.upstream_rows = floats(each, ROWS, XENT_F32);
    OK(xent_forward_backward(NULL, &call, 0.5, NULL));
    for (i = 0; i < ROWS; i++) CLOSE(g[i * STRIDE + 5], naive_gradient(i, 5, 0.5 * each[i]));
    OK(xent_forward_backward(NULL, &call, 1.0, NULL));
    for (i = 0; i < ROWS; i++) CLOSE(g[i * STRIDE + 5], naive_gradient(i, 5, each[i]));
    /* 0 is 0, whatever it is multiplied by. */
    OK(xent_forward_backward(NULL, &call, INFINITY, NULL));
    for (j = 0; j < CLASSES; j++) CHECK(g[2 * STRIDE + j] == 0.0f);
    call.upstream_rows.len = 3;
    FAILS(xent_forward_backward(NULL, &call, 1.0, NULL), XENT_ERROR_INPUT_LENGTH);

    /* In place. */
    memcpy(in_place, logits_f32, sizeof logits_f32);
    call = new_call();
    call.logits = matrix(NULL, 0, 0, 0, XENT_NONE);
    call.gradient = matrix_mut(in_place, ROWS, CLASSES, STRIDE, XENT_F32);
    OK(xent_forward_backward_in_place(NULL, &call, 1.0, &e));
    CLOSE(e.loss, mean_loss());
    for (i = 0; i < ROWS; i++) {
        for (j = 0; j < CLASSES; j++) CLOSE(in_place[i * STRIDE + j], naive_gradient(i, j, 1.0));
        for (j = CLASSES; j < STRIDE; j++) CHECK(isnan(in_place[i * STRIDE + j]));
    }
    call.logits = whole();
    FAILS_WITH(xent_forward_backward_in_place(NULL, &call, 1.0, &e), XENT_ERROR_OPTION,
               "`logits` is given, but `xent_forward_backward_in_place` makes no use of it");

    /* Backward, from what was saved. */
    call = new_call();
    call.saved = saved;
    call.out_len = ROWS;
    call.out_dtype = XENT_F32;
    OK(xent_evaluate(NULL, &call, NULL));
    call = new_call();
    call.saved_from = floats(saved, 2 * ROWS, XENT_F32);
    call.gradient = matrix_mut(g, ROWS, CLASSES, STRIDE, XENT_F32);
    OK(xent_backward(NULL, &call, 3.0));
    for (i = 0; i < ROWS; i++) {
        for (j = 0; j < CLASSES; j++) CLOSE(g[i * STRIDE + j], naive_gradient(i, j, 3.0));
    }
    memcpy(in_place, logits_f32, sizeof logits_f32);
    call.logits = matrix(NULL, 0, 0, 0, XENT_NONE);
    call.gradient.data = in_place;
    OK(xent_backward_in_place(NULL, &call, 3.0));
    for (i = 0; i < ROWS; i++) {
        for (j = 0; j < CLASSES; j++) CHECK(in_place[i * STRIDE + j] == g[i * STRIDE + j]);
    }

    /* What can be wrong about them. */
    call = new_call();
    call.gradient = matrix_mut(g, ROWS, CLASSES, STRIDE, XENT_F32);
    FAILS_WITH(xent_backward(NULL, &call, 1.0), XENT_ERROR_MISSING, "`gradient` needs `saved_from`");
    call.saved_from = floats(saved, 2 * ROWS - 1, XENT_F32);
    FAILS_WITH(xent_backward(NULL, &call, 1.0), XENT_ERROR_INPUT_LENGTH, "`saved_from` has 13 elements instead of 14");
    call.saved_from = floats(saved, 2 * ROWS - 2, XENT_F32);
    FAILS_WITH(xent_backward(NULL, &call, 1.0), XENT_ERROR_INPUT_LENGTH, "`saved_from` has 12 elements instead of 14");
    call.flags = XENT_COUNT_CORRECT;
    FAILS_WITH(xent_backward(NULL, &call, 1.0), XENT_ERROR_OPTION,
               "`XENT_COUNT_CORRECT` is given, but `xent_backward` makes no use of it");
    call.flags = 0;
    call.saved_from = floats(saved, ROWS, XENT_F64);
    FAILS(xent_backward(NULL, &call, 1.0), XENT_ERROR_PRECISION);
    call.saved_from = floats(NULL, 0, XENT_NONE);
    call.gradient.classes = CLASSES - 1;
    FAILS_WITH(xent_forward_backward(NULL, &call, 1.0, NULL), XENT_ERROR_SHAPE,
               "the gradient is 7 x 130, but the logits are 7 x 131");
    call.gradient.classes = CLASSES;
    call.gradient.dtype = XENT_BF16;
    FAILS(xent_forward_backward(NULL, &call, 1.0, NULL), XENT_ERROR_DTYPE);
    call.gradient.dtype = XENT_NONE;
    FAILS(xent_forward_backward(NULL, &call, 1.0, NULL), XENT_ERROR_DTYPE);
    call.gradient = matrix_mut(logits_f32, ROWS, CLASSES, STRIDE, XENT_F32);
    FAILS_WITH(xent_forward_backward(NULL, &call, 1.0, NULL), XENT_ERROR_OVERLAP,
               "`gradient` overlaps `logits`: for a result in place there are functions `.._in_place`");
    call.gradient = matrix_mut(logits_f32 + 1, 1, CLASSES, 0, XENT_F32);
    FAILS_WITH(xent_forward_backward(NULL, &call, 1.0, NULL), XENT_ERROR_OVERLAP, "`gradient` overlaps `logits`");
    call.gradient = matrix_mut(g, ROWS, CLASSES, STRIDE, XENT_F32);
    FAILS(xent_evaluate(NULL, &call, NULL), XENT_ERROR_OPTION);
    call.gradient.row_stride = CLASSES - 1;
    FAILS_WITH(xent_forward_backward(NULL, &call, 1.0, NULL), XENT_ERROR_SHAPE,
               "a row stride of 130 is smaller than the vocabulary of 131");
    free(g);
    free(in_place);
}

static void test_softmax(void) {
    float p[ROWS * CLASSES], in_place[ROWS * STRIDE], lse[ROWS];
    double lse_f64[ROWS];
    uint32_t first_word[(CLASSES + 31) / 32] = {3};
    xent_allowed allowed;
    xent_options *options = NULL;
    size_t i, j;
    xent_matrix x = whole();
    xent_matrix_mut m = matrix_mut(in_place, ROWS, CLASSES, STRIDE, XENT_F32);

    OK(xent_softmax(NULL, &x, NULL, p, ROWS * CLASSES, XENT_F32));
    memcpy(in_place, logits_f32, sizeof in_place);
    OK(xent_softmax_in_place(NULL, &m, NULL));
    for (i = 0; i < ROWS; i++) {
        double expected = naive_lse(rows_f64[i], CLASSES);
        for (j = 0; j < CLASSES; j++) {
            CLOSE(p[i * CLASSES + j], exp(rows_f64[i][j] - expected));
            CHECK(p[i * CLASSES + j] == in_place[i * STRIDE + j]);
        }
    }
    OK(xent_log_softmax(NULL, &x, NULL, p, ROWS * CLASSES, XENT_F32));
    memcpy(in_place, logits_f32, sizeof in_place);
    OK(xent_log_softmax_in_place(NULL, &m, NULL));
    OK(xent_logsumexp(NULL, &x, NULL, lse, ROWS, XENT_F32));
    for (i = 0; i < ROWS; i++) {
        double expected = naive_lse(rows_f64[i], CLASSES);
        CLOSE(lse[i], expected);
        for (j = 0; j < CLASSES; j++) {
            CLOSE(p[i * CLASSES + j], rows_f64[i][j] - expected);
            CHECK(p[i * CLASSES + j] == in_place[i * STRIDE + j]);
        }
    }
    memset(&allowed, 0, sizeof allowed);
    allowed.words = first_word;
    allowed.len = sizeof first_word / 4;
    allowed.same_for_all = 1;
    OK(xent_softmax(NULL, &x, &allowed, p, ROWS * CLASSES, XENT_F32));
    CLOSE(p[0] + p[1], 1.0);
    CHECK(p[2] == 0.0f);

    FAILS_WITH(xent_softmax(NULL, &x, NULL, p, ROWS * CLASSES - 1, XENT_F32), XENT_ERROR_OUTPUT_LENGTH,
               "output `out` has 916 elements instead of 917");
    FAILS(xent_softmax(NULL, &x, NULL, p, ROWS * CLASSES, XENT_F64), XENT_ERROR_DTYPE);
    FAILS(xent_softmax(NULL, &x, NULL, NULL, ROWS * CLASSES, XENT_F32), XENT_ERROR_NULL_POINTER);
    FAILS(xent_softmax(NULL, NULL, NULL, p, ROWS * CLASSES, XENT_F32), XENT_ERROR_NULL_POINTER);
    FAILS(xent_softmax_in_place(NULL, NULL, NULL), XENT_ERROR_NULL_POINTER);
    FAILS_WITH(xent_softmax(NULL, &x, NULL, logits_f32 + 7, ROWS * CLASSES, XENT_F32), XENT_ERROR_OVERLAP,
               "`out` overlaps `logits`");
    FAILS_WITH(xent_log_softmax(NULL, &x, NULL, logits_f32, ROWS * CLASSES, XENT_F32), XENT_ERROR_OVERLAP,
               "`out` overlaps `logits`: for a result in place there are functions `.._in_place`");
    FAILS_WITH(xent_logsumexp(NULL, &x, NULL, logits_f32, ROWS, XENT_F32), XENT_ERROR_OVERLAP, "`out` overlaps `logits`");
    FAILS(xent_logsumexp(NULL, &x, NULL, lse_f64, ROWS, XENT_F64), XENT_ERROR_PRECISION);
    FAILS(xent_logsumexp(NULL, &x, NULL, lse, ROWS + 1, XENT_F32), XENT_ERROR_OUTPUT_LENGTH);
    allowed.len = 1;
    FAILS(xent_log_softmax(NULL, &x, &allowed, p, ROWS * CLASSES, XENT_F32), XENT_ERROR_INPUT_LENGTH);
    m.row_stride = 3;
    FAILS(xent_log_softmax_in_place(NULL, &m, NULL), XENT_ERROR_SHAPE);
    OK(xent_options_new(&options));
    OK(xent_options_set_temperature(options, 2.0));
    FAILS_WITH(xent_softmax(options, &x, NULL, p, ROWS * CLASSES, XENT_F32), XENT_ERROR_OPTION,
               "temperature = 2 means nothing for xent_softmax");
    OK(xent_options_free(options));
}

static void test_tokens(void) {
    enum { K = 5 };
    float logprobs[ROWS], candidates[2 * ROWS], top[K * ROWS], entropy[ROWS], varentropy[ROWS], lse[ROWS], drawn[ROWS];
    int64_t ranks[ROWS], strict[ROWS], top_ids[K * ROWS], argmax[ROWS], sampled[ROWS], again[ROWS];
    uint32_t wanted[2 * ROWS], words[(CLASSES + 31) / 32];
    xent_sample samples[ROWS];
    xent_bias bias[2];
    size_t offsets[ROWS + 1];
    xent_options *options = NULL;
    xent_token_call call = new_token_call();
    size_t i, j;

    for (i = 0; i < ROWS; i++) {
        wanted[2 * i] = 0;
        wanted[2 * i + 1] = CLASSES - 1;
        samples[i].seed = 42;
        samples[i].position = i;
        samples[i].temperature = i == 0 ? 0.0 : 1.0;
    }
    call.targets = all_targets();
    call.candidates = ids(wanted, 2 * ROWS, XENT_U32);
    call.candidates_per_row = 2;
    call.top_k = K;
    call.samples = samples;
    call.samples_len = ROWS;
    call.logprobs = logprobs;
    call.ranks = ranks;
    call.strict_ranks = strict;
    call.candidate_logprobs = candidates;
    call.top_ids = top_ids;
    call.top_logprobs = top;
    call.argmax = argmax;
    call.entropy = entropy;
    call.varentropy = varentropy;
    call.logsumexp = lse;
    call.sampled = sampled;
    call.sampled_logprobs = drawn;
    OK(xent_tokens(NULL, &call));
    for (i = 0; i < ROWS; i++) {
        double all = naive_lse(rows_f64[i], CLASSES), h = 0.0, square = 0.0;
        int64_t ge = 0, gt = 0;
        if (targets_i32[i] < 0) {
            CHECK(logprobs[i] == 0.0f && argmax[i] == -1 && sampled[i] == -1 && top_ids[i * K] == -1);
            continue;
        }
        for (j = 0; j < CLASSES; j++) {
            double l = rows_f64[i][j] - all;
            h -= exp(l) * l;
            square += exp(l) * l * l;
            ge += rows_f64[i][j] >= rows_f64[i][targets_i32[i]];
            gt += rows_f64[i][j] > rows_f64[i][targets_i32[i]];
        }
        CLOSE(logprobs[i], rows_f64[i][targets_i32[i]] - all);
        CLOSE(lse[i], all);
        CLOSE(entropy[i], h);
        close_at(varentropy[i], square - h * h, 1e-5, __FILE__, __LINE__);
        CHECK(ranks[i] == ge && strict[i] == gt + 1);
        CLOSE(candidates[2 * i], rows_f64[i][0] - all);
        CLOSE(candidates[2 * i + 1], rows_f64[i][CLASSES - 1] - all);
        CHECK(argmax[i] == top_ids[i * K]);
        for (j = 0; j < K; j++) {
            CLOSE(top[i * K + j], rows_f64[i][top_ids[i * K + j]] - all);
            CHECK(j == 0 || top[i * K + j] <= top[i * K + j - 1]);
        }
        CHECK(sampled[i] >= 0 && sampled[i] < CLASSES);
        CLOSE(drawn[i], rows_f64[i][sampled[i]] - all);
    }
    CHECK(sampled[0] == argmax[0]);
    call.sampled = again;
    OK(xent_tokens(NULL, &call));
    for (i = 0; i < ROWS; i++) CHECK(again[i] == sampled[i]);

    /* Draw from the top k of a row: at temperature 0 the first; with top_k 1 too. */
    {
        xent_filters filters;
        xent_sample sample = {1, 2, 0.0};
        int64_t token = -7;
        memset(&filters, 0, sizeof filters);
        filters.size = sizeof filters;
        OK(xent_draw(NULL, top_ids, top, K, CLASSES, &sample, &token));
        CHECK(token == top_ids[0]);
        sample.temperature = 1.0;
        FAILS(xent_draw(NULL, top_ids, top, K, CLASSES, &sample, &token), XENT_ERROR_NOT_DRAWN);
        filters.used = XENT_FILTER_TOP_K;
        filters.top_k = 1;
        OK(xent_draw(&filters, top_ids, top, K, CLASSES, &sample, &token));
        CHECK(token == top_ids[0]);
        filters.top_k = 0; /* off: more is needed than is known */
        FAILS(xent_draw(&filters, top_ids, top, K, CLASSES, &sample, &token), XENT_ERROR_NOT_DRAWN);
        OK(xent_draw(&filters, top_ids, top, K, K, &sample, &token));
        filters.top_k = SIZE_MAX; /* all */
        OK(xent_draw(&filters, top_ids, top, K, K, &sample, &token));
        {
            /* Of four equal tokens: what reaches the bound but for rounding has reached it. */
            const float log_4 = -1.38629436f, equal[2] = {log_4, log_4};
            const int64_t first[2] = {0, 1};
            int both = 0;
            uint64_t n;
            filters.used = XENT_FILTER_TOP_P;
            for (n = 0; n < 100; n++) {
                xent_sample drawn = {7, n, 1.0};
                filters.top_p = 0.25;
                OK(xent_draw(&filters, first, equal, 2, 4, &drawn, &token));
                CHECK(token == 0);
                filters.top_p = 0.5;
                OK(xent_draw(&filters, first, equal, 2, 4, &drawn, &token));
                both |= 1 << token;
            }
            CHECK(both == 3);
            filters.used = XENT_FILTER_TOP_K;
        }
        filters.top_k = K;
        filters.used |= XENT_FILTER_TOP_P | XENT_FILTER_MIN_P;
        filters.top_p = 0.9;
        filters.min_p = 0.01;
        OK(xent_draw(&filters, top_ids, top, K, CLASSES, &sample, &token));
        for (j = 0; j < K && top_ids[j] != token; j++) {}
        CHECK(j < K);
        filters.top_p = -1.0;
        FAILS_WITH(xent_draw(&filters, top_ids, top, K, CLASSES, &sample, &token), XENT_ERROR_OPTION,
                   "top_p = -1 is not at least 0");
        filters.used = 64;
        FAILS(xent_draw(&filters, top_ids, top, K, CLASSES, &sample, &token), XENT_ERROR_STRUCT);
        filters.used = 0;
        filters.size = 3;
        FAILS(xent_draw(&filters, top_ids, top, K, CLASSES, &sample, &token), XENT_ERROR_STRUCT);
        FAILS(xent_draw(NULL, NULL, top, K, CLASSES, &sample, &token), XENT_ERROR_NULL_POINTER);
        FAILS(xent_draw(NULL, top_ids, top, K, CLASSES, NULL, &token), XENT_ERROR_NULL_POINTER);
        FAILS(xent_draw(NULL, top_ids, top, K, CLASSES, &sample, NULL), XENT_ERROR_NULL_POINTER);
        FAILS(xent_draw(NULL, NULL, NULL, 0, CLASSES, &sample, &token), XENT_ERROR_NOT_DRAWN);
    }

    /* Temperature, bias and mask. */
    call = new_token_call();
    call.argmax = argmax;
    call.logprobs = logprobs;
    call.targets = all_targets();
    bias[0].id = 4;
    bias[0].value = 100.0f;
    bias[1].id = 9;
    bias[1].value = -INFINITY;
    call.bias = bias;
    call.bias_len = 2;
    OK(xent_options_new(&options));
    OK(xent_options_set_temperature(options, 4.0));
    OK(xent_tokens(options, &call));
    for (i = 0; i < ROWS; i++) {
        double z[CLASSES];
        if (targets_i32[i] < 0) continue;
        for (j = 0; j < CLASSES; j++) z[j] = rows_f64[i][j] / 4.0;
        z[4] += 25.0;
        z[9] = -INFINITY;
        CHECK(argmax[i] == 4);
        CLOSE(logprobs[i], z[targets_i32[i]] - naive_lse(z, CLASSES));
    }
    for (i = 0; i <= ROWS; i++) offsets[i] = i == 0 ? 0 : 1; /* the first entry for row 0 alone */
    call.bias_offsets = offsets;
    call.bias_offsets_len = ROWS + 1;
    OK(xent_tokens(NULL, &call));
    CHECK(argmax[0] == 4);
    call.bias_offsets_len = ROWS;
    FAILS(xent_tokens(NULL, &call), XENT_ERROR_INPUT_LENGTH);
    call.bias_offsets = NULL;
    FAILS_WITH(xent_tokens(NULL, &call), XENT_ERROR_NULL_POINTER, "`bias_offsets` is NULL");
    call.bias_offsets_len = 0;
    bias[1].id = 3;
    FAILS_WITH(xent_tokens(NULL, &call), XENT_ERROR_OPTION, 
               "logit bias, entry 1 (token 3, value -inf): its token must be above that of the entry before it; "
               "sort entries by token, with each token once");
    call.bias = NULL;
    FAILS_WITH(xent_tokens(NULL, &call), XENT_ERROR_NULL_POINTER, "`bias` is NULL");
    call.bias_len = 0;
    memset(words, 0, sizeof words);
    words[1] = 1;
    call.allowed.words = words;
    call.allowed.len = sizeof words / 4;
    call.allowed.same_for_all = 1;
    OK(xent_tokens(NULL, &call));
    CHECK(argmax[0] == 32);
    OK(xent_options_set_softcap(options, 5.0));
    FAILS_WITH(xent_tokens(options, &call), XENT_ERROR_OPTION, "softcap = 5 means nothing for xent_tokens");
    OK(xent_options_set_softcap(options, 1e-37));
    FAILS_WITH(xent_tokens(options, &call), XENT_ERROR_OPTION, "softcap = 1e-37 means nothing for xent_tokens");
    OK(xent_options_free(options));

    /* What can be wrong. */
    call = new_token_call();
    OK(xent_tokens(NULL, &call)); /* asks nothing */
    call.logprobs = logprobs;
    FAILS_WITH(xent_tokens(NULL, &call), XENT_ERROR_MISSING, "output `logprobs` needs targets");
    call.logprobs = NULL;
    call.candidate_logprobs = candidates;
    FAILS(xent_tokens(NULL, &call), XENT_ERROR_MISSING);
    wanted[3] = CLASSES;
    call.candidates = ids(wanted, 2 * ROWS, XENT_U32);
    call.candidates_per_row = 2;
    call.candidates.shift = 1;
    FAILS_WITH(xent_tokens(NULL, &call), XENT_ERROR_OPTION,
               "`candidates.shift` is given, but `xent_tokens` makes no use of it");
    call.candidates.shift = 0;
    call.candidates.sequence = 2;
    FAILS_WITH(xent_tokens(NULL, &call), XENT_ERROR_OPTION,
               "`candidates.sequence` is given, but `xent_tokens` makes no use of it");
    call.candidates.sequence = 0;
    FAILS_WITH(xent_tokens(NULL, &call), XENT_ERROR_TARGET_RANGE,
               "row 1: candidate 131 is out of range for a vocabulary of 131");
    call = new_token_call();
    call.top_ids = top_ids;
    FAILS(xent_tokens(NULL, &call), XENT_ERROR_MISSING);
    call.top_ids = allocate(ROWS * 129 * sizeof(int64_t));
    call.top_logprobs = allocate(ROWS * 129 * sizeof(float));
    call.logits = matrix(logits_f32, ROWS, 5, STRIDE, XENT_F32);
    call.top_k = 6;
    FAILS_WITH(xent_tokens(NULL, &call), XENT_ERROR_OPTION, "top_k = 6 is not at most the number of classes");
    call.logits = new_token_call().logits;
    call.top_k = XENT_MAX_TOP_K + 1;
    FAILS_WITH(xent_tokens(NULL, &call), XENT_ERROR_OPTION,
               "top_k = 129 is not at most 128, the most tokens that are found of a row");
    free(call.top_ids);
    free(call.top_logprobs);
    call = new_token_call();
    call.sampled = sampled;
    FAILS(xent_tokens(NULL, &call), XENT_ERROR_MISSING);
    samples[2].temperature = NAN;
    call.samples = samples;
    call.samples_len = ROWS;
    FAILS_WITH(xent_tokens(NULL, &call), XENT_ERROR_OPTION,
               "row 2: temperature NaN of a sample is not finite and at least 0");
    call.samples_len = ROWS - 1;
    FAILS(xent_tokens(NULL, &call), XENT_ERROR_INPUT_LENGTH);
    call.samples = NULL;
    call.sampled = NULL;
    FAILS_WITH(xent_tokens(NULL, &call), XENT_ERROR_NULL_POINTER, "`samples` is NULL");
    call = new_token_call();
    call.entropy = entropy;
    call.varentropy = entropy + 1;
    FAILS_WITH(xent_tokens(NULL, &call), XENT_ERROR_OVERLAP, "`varentropy` overlaps `entropy`");
    call.varentropy = NULL;
    call.out_dtype = XENT_F64;
    FAILS(xent_tokens(NULL, &call), XENT_ERROR_PRECISION);
    call.out_dtype = XENT_F32;
    call.out_len = ROWS - 1;
    FAILS_WITH(xent_tokens(NULL, &call), XENT_ERROR_OUTPUT_LENGTH, "output `entropy` has 6 elements instead of 7");
    call.shard_flags = XENT_SHARD_RANKS;
    FAILS(xent_tokens(NULL, &call), XENT_ERROR_OPTION);
}

/* Several ids that are ignored, everywhere: what any of them is the target of is as if it were -100. */
static void test_ignore_indices(void) {
    enum { IDS = 5 };
    xent_options *options = NULL, *clone = NULL;
    int64_t *list = allocate(IDS * sizeof *list);
    int32_t targets[ROWS], with_ids[ROWS];
    uint32_t unsigned_ids[ROWS];
    double loss = 0.0, again = 0.0;
    float losses[ROWS], again_losses[ROWS];
    int64_t ranks[ROWS], again_ranks[ROWS];
    double kl[ROWS], again_kl[ROWS];
    unsigned char *stats = allocate(ROWS * XENT_ROW_STATS_BYTES), *again_stats = allocate(ROWS * XENT_ROW_STATS_BYTES);
    xent_matrix x = whole();
    xent_ids t, u;
    size_t i;

    memcpy(targets, targets_i32, sizeof targets);
    for (i = 0; i < ROWS; i++) {
        if (targets[i] < 4 || targets[i] > CLASSES - 2) targets[i] = 4;
    }
    memcpy(with_ids, targets, sizeof targets);
    targets[0] = targets[2] = targets[5] = -100;
    with_ids[0] = 1;
    with_ids[2] = 3;
    with_ids[5] = -7;
    t = ids(targets, ROWS, XENT_I32);
    u = ids(with_ids, ROWS, XENT_I32);
    list[0] = 1;
    list[1] = 3;
    list[2] = 1;
    list[3] = -7;
    list[4] = INT64_MIN;

    OK(xent_options_new(&options));
    OK(xent_options_set_ignore_indices(options, list, IDS));
    memset(list, 0, IDS * sizeof *list); /* they were copied */
    OK(xent_options_clone(options, &clone));
    OK(xent_options_free(options));
    options = clone;
    OK(xent_forward(NULL, &x, &t, &loss));
    OK(xent_forward(options, &x, &u, &again));
    CHECK(again == loss);
    OK(xent_forward_into(NULL, &x, &t, losses, ROWS, XENT_F32));
    OK(xent_forward_into(options, &x, &u, again_losses, ROWS, XENT_F32));
    CHECK(memcmp(losses, again_losses, sizeof losses) == 0 && losses[0] == 0.0f && losses[5] == 0.0f);
    {
        xent_token_call call = new_token_call();
        xent_shard shard;
        call.targets = t;
        call.logprobs = losses;
        call.ranks = ranks;
        OK(xent_tokens(NULL, &call));
        call.targets = u;
        call.logprobs = again_losses;
        call.ranks = again_ranks;
        OK(xent_tokens(options, &call));
        CHECK(memcmp(losses, again_losses, sizeof losses) == 0 && memcmp(ranks, again_ranks, sizeof ranks) == 0);
        CHECK(ranks[0] == 0 && ranks[1] > 0);
        call.logprobs = NULL;
        call.ranks = NULL;
        call.out_len = 0;
        call.out_dtype = 0;
        memset(&shard, 0, sizeof shard);
        shard.size = sizeof shard;
        shard.vocab = CLASSES;
        OK(xent_row_stats(options, &call, &shard, again_stats, ROWS * XENT_ROW_STATS_BYTES));
        call.targets = t;
        OK(xent_row_stats(NULL, &call, &shard, stats, ROWS * XENT_ROW_STATS_BYTES));
        CHECK(memcmp(stats, again_stats, ROWS * XENT_ROW_STATS_BYTES) == 0);
    }
    {
        xent_compare_call call;
        memset(&call, 0, sizeof call);
        call.size = sizeof call;
        call.base = matrix(logits_f32, ROWS, CLASSES - 1, STRIDE, XENT_F32);
        call.other = matrix(logits_f32 + 1, ROWS, CLASSES - 1, STRIDE, XENT_F32);
        call.out_len = ROWS;
        call.targets = t;
        call.kl = kl;
        OK(xent_compare(NULL, &call));
        call.targets = u;
        call.kl = again_kl;
        OK(xent_compare(options, &call));
        CHECK(memcmp(kl, again_kl, sizeof kl) == 0 && kl[0] == 0.0 && kl[1] > 0.0 && kl[5] == 0.0);
    }

    /* Targets without a sign are never a negative id, whatever their bits are. */
    for (i = 0; i < ROWS; i++) unsigned_ids[i] = (uint32_t)with_ids[i];
    u = ids(unsigned_ids, ROWS, XENT_U32);
    FAILS_WITH(xent_forward(options, &x, &u, &again), XENT_ERROR_TARGET_RANGE,
               "row 5: target 4294967289 is out of range for a vocabulary of 131");

    /* What is refused changes nothing. */
    u = ids(with_ids, ROWS, XENT_I32);
    FAILS_WITH(xent_options_set_ignore_indices(options, NULL, 2), XENT_ERROR_NULL_POINTER, "`ids` is NULL");
    FAILS(xent_options_set_ignore_indices(options, (const int64_t *)(const void *)((const char *)list + 4), 2),
          XENT_ERROR_MISALIGNED);
    FAILS(xent_options_set_ignore_indices(options, list, (size_t)-1), XENT_ERROR_OVERFLOW);
    FAILS_WITH(xent_options_set_ignore_indices(NULL, list, 2), XENT_ERROR_NULL_POINTER, "`options` is NULL");
    OK(xent_forward(options, &x, &u, &again));
    CHECK(again == loss);

    /* The last setter counts; -100 is ignored if it is on the list. */
    FAILS_WITH(xent_forward(options, &x, &t, &again), XENT_ERROR_TARGET_RANGE,
               "row 0: target -100 is out of range for a vocabulary of 131; ignore_index(-100) ignores such rows");
    list[0] = -100;
    OK(xent_options_set_ignore_indices(options, list, 1));
    OK(xent_forward(options, &x, &t, &again));
    CHECK(again == loss);
    OK(xent_options_set_ignore_indices(options, NULL, 0));
    FAILS(xent_forward(options, &x, &t, &again), XENT_ERROR_TARGET_RANGE);
    OK(xent_options_set_ignore_indices(options, list, 2));
    OK(xent_options_set_ignore_index(options, -100));
    OK(xent_forward(options, &x, &t, &again));
    CHECK(again == loss);
    OK(xent_options_free(options));
    free(list);
    free(stats);
    free(again_stats);
}

static void test_sequences(void) {
    size_t offsets[4] = {0, 2, 2, ROWS};
    xent_sequence_score scores[3];
    xent_call call = new_call();
    double sum = 0.0;
    size_t i;

    for (i = 2; i < ROWS; i++) {
        if (targets_i32[i] >= 0) sum -= loss_of_row(i);
    }
    OK(xent_sequences(NULL, &call, offsets, 4, scores, 3));
    CLOSE(scores[0].logprob, -loss_of_row(0) - loss_of_row(1));
    CHECK(scores[0].tokens == 2);
    CHECK(scores[1].logprob == 0.0 && scores[1].tokens == 0 && scores[1].first_mismatch == -1);
    CLOSE(scores[2].logprob, sum);
    CHECK(scores[2].tokens == ROWS - 3);
    memset(scores, 0x55, sizeof scores);
    offsets[2] = 1;
    FAILS_WITH(xent_sequences(NULL, &call, offsets, 4, scores, 3), XENT_ERROR_OFFSETS,
               "offset 2 is 1, less than the 2 before it");
    offsets[2] = 2;
    offsets[3] = ROWS - 1;
    FAILS(xent_sequences(NULL, &call, offsets, 4, scores, 3), XENT_ERROR_OFFSETS);
    FAILS(xent_sequences(NULL, &call, NULL, 0, NULL, 0), XENT_ERROR_OFFSETS);
    offsets[3] = ROWS;
    FAILS(xent_sequences(NULL, &call, offsets, 4, scores, 2), XENT_ERROR_OUTPUT_LENGTH);
    FAILS(xent_sequences(NULL, &call, NULL, 4, scores, 3), XENT_ERROR_NULL_POINTER);
    CHECK(((unsigned char *)scores)[5] == 0x55); /* nothing was written */
    {
        float losses[ROWS];
        call.losses = losses;
        FAILS(xent_sequences(NULL, &call, offsets, 4, scores, 3), XENT_ERROR_OPTION);
        call.losses = NULL;
        call.token_weights = floats(losses, ROWS, XENT_F32);
        FAILS_WITH(xent_sequences(NULL, &call, offsets, 4, scores, 3), XENT_ERROR_OPTION,
                   "`token_weights` is given, but `xent_sequences` makes no use of it");
    }
}

static void test_shards(void) {
    enum { CUT = 60, K = 3 };
    unsigned char *a = allocate(ROWS * XENT_ROW_STATS_BYTES), *b = allocate(ROWS * XENT_ROW_STATS_BYTES);
    unsigned char *merged = allocate(XENT_ROW_STATS_BYTES);
    float target_logits[ROWS];
    int64_t ids_of_top[K + 1];
    float top[K + 1];
    size_t i, count = 0;
    xent_row_summary s;
    xent_shard shard;
    xent_token_call call = new_token_call();

    memset(&s, 0, sizeof s);
    s.size = sizeof s;
    memset(&shard, 0, sizeof shard);
    shard.size = sizeof shard;
    shard.vocab = CLASSES;
    for (i = 0; i < ROWS; i++) target_logits[i] = targets_i32[i] < 0 ? 0.0f : (float)rows_f64[i][targets_i32[i]];
    shard.target_logits = target_logits;
    shard.target_logits_len = ROWS;
    call.targets = all_targets();
    call.top_k = K;
    call.shard_flags = XENT_SHARD_RANKS | XENT_SHARD_ENTROPY | XENT_SHARD_VARENTROPY;
    call.logits = matrix(logits_f32, ROWS, CUT, STRIDE, XENT_F32);
    OK(xent_row_stats(NULL, &call, &shard, a, ROWS * XENT_ROW_STATS_BYTES));
    call.logits = matrix(logits_f32 + CUT, ROWS, CLASSES - CUT, STRIDE, XENT_F32);
    shard.first = CUT;
    OK(xent_row_stats(NULL, &call, &shard, b, ROWS * XENT_ROW_STATS_BYTES));
    for (i = 0; i < ROWS; i++) {
        unsigned char *left = a + i * XENT_ROW_STATS_BYTES, *right = b + i * XENT_ROW_STATS_BYTES;
        size_t j;
        double all = naive_lse(rows_f64[i], CLASSES), h = 0.0;
        uint64_t ge = 0;
        if (targets_i32[i] < 0) continue;
        OK(xent_row_stats_merge(left, right, merged));
        OK(xent_row_stats_merge(right, left, right)); /* in place, in the other order */
        CHECK(memcmp(merged, right, XENT_ROW_STATS_BYTES) == 0);
        OK(xent_row_stats_check(merged, i));
        FAILS(xent_row_stats_check(left, i), XENT_ERROR_SHARD);
        FAILS(xent_row_stats_merge(left, left, merged), XENT_ERROR_SHARD);
        FAILS(xent_row_stats_merge(merged, left, merged), XENT_ERROR_SHARD);
        CHECK(memcmp(merged, right, XENT_ROW_STATS_BYTES) == 0);
        OK(xent_row_stats_summary(merged, &s));
        for (j = 0; j < CLASSES; j++) {
            h -= exp(rows_f64[i][j] - all) * (rows_f64[i][j] - all);
            ge += rows_f64[i][j] >= rows_f64[i][targets_i32[i]];
        }
        CLOSE(s.loss, loss_of_row(i));
        CLOSE(s.logsumexp, all);
        CLOSE(s.entropy, h);
        CHECK(s.varentropy > 0.0 && s.rank == ge && s.strict_rank >= 1 && s.sampled == -1);
        CHECK(s.target_logit == target_logits[i]);
        CLOSE(s.saved_hi + s.saved_lo, all);
        OK(xent_row_stats_top(merged, K + 1, ids_of_top, top, &count));
        CHECK(count == K && ids_of_top[0] == s.argmax);
        CLOSE(top[0], rows_f64[i][ids_of_top[0]] - all);
        {
            xent_filters filters;
            xent_sample sample = {5, i, 1.0};
            int64_t token = -7, by_logprobs = -8;
            memset(&filters, 0, sizeof filters);
            filters.size = sizeof filters;
            FAILS(xent_row_stats_draw(NULL, merged, CLASSES, &sample, &token), XENT_ERROR_NOT_DRAWN);
            filters.used = XENT_FILTER_TOP_K | XENT_FILTER_TOP_P;
            filters.top_k = K;
            filters.top_p = 0.9;
            OK(xent_row_stats_draw(&filters, merged, CLASSES, &sample, &token));
            OK(xent_draw(&filters, ids_of_top, top, K, CLASSES, &sample, &by_logprobs));
            CHECK(token == by_logprobs);
            sample.temperature = 0.0;
            OK(xent_row_stats_draw(NULL, merged, CLASSES, &sample, &token));
            CHECK(token == s.argmax);
            filters.used = 8;
            FAILS(xent_row_stats_draw(&filters, merged, CLASSES, &sample, &token), XENT_ERROR_STRUCT);
            FAILS(xent_row_stats_draw(NULL, NULL, CLASSES, &sample, &token), XENT_ERROR_NULL_POINTER);
            FAILS(xent_row_stats_draw(NULL, merged, CLASSES, NULL, &token), XENT_ERROR_NULL_POINTER);
            FAILS(xent_row_stats_draw(NULL, merged, CLASSES, &sample, NULL), XENT_ERROR_NULL_POINTER);
        }
    }
    FAILS(xent_row_stats(NULL, &call, &shard, a, XENT_ROW_STATS_BYTES), XENT_ERROR_OUTPUT_LENGTH);
    shard.first = CLASSES;
    FAILS_WITH(xent_row_stats(NULL, &call, &shard, a, ROWS * XENT_ROW_STATS_BYTES), XENT_ERROR_SHARD,
               "a shard of 71 classes from 131 on is not part of a vocabulary of 131");
    shard.first = CUT;
    call.shard_flags = 64;
    FAILS(xent_row_stats(NULL, &call, &shard, a, ROWS * XENT_ROW_STATS_BYTES), XENT_ERROR_STRUCT);
    call.shard_flags = 0;
    shard.target_logits = NULL;
    FAILS_WITH(xent_row_stats(NULL, &call, &shard, a, ROWS * XENT_ROW_STATS_BYTES), XENT_ERROR_NULL_POINTER,
               "`target_logits` is NULL");
    shard.target_logits = target_logits;
    call.argmax = ids_of_top;
    FAILS(xent_row_stats(NULL, &call, &shard, a, ROWS * XENT_ROW_STATS_BYTES), XENT_ERROR_OPTION);
    call.argmax = NULL;
    call.logits.dtype = XENT_F64;
    FAILS(xent_row_stats(NULL, &call, &shard, a, ROWS * XENT_ROW_STATS_BYTES), XENT_ERROR_DTYPE);
    memset(a, 0xff, XENT_ROW_STATS_BYTES);
    FAILS(xent_row_stats_merge(a, b, merged), XENT_ERROR_SHARD);
    FAILS(xent_row_stats_summary(a, &s), XENT_ERROR_SHARD);
    FAILS(xent_row_stats_top(a, 0, NULL, NULL, &count), XENT_ERROR_SHARD);
    {
        xent_sample sample = {5, 6, 1.0};
        int64_t token = -7;
        FAILS(xent_row_stats_draw(NULL, a, CLASSES, &sample, &token), XENT_ERROR_SHARD);
        CHECK(token == -7);
    }
    FAILS(xent_row_stats_merge(NULL, b, merged), XENT_ERROR_NULL_POINTER);
    FAILS(xent_row_stats_summary(NULL, &s), XENT_ERROR_NULL_POINTER);
    FAILS(xent_row_stats_summary(merged, NULL), XENT_ERROR_NULL_POINTER);
    free(a);
    free(b);
    free(merged);
}

static void test_compare(void) {
    uint16_t rounded[ROWS * CLASSES];
    double q[CLASSES];
    double kl[ROWS], reverse[ROWS], jsd[ROWS], tv[ROWS], base[ROWS], other[ROWS], delta[ROWS];
    uint8_t same[ROWS];
    size_t i, j;
    xent_compare_call call;

    for (i = 0; i < ROWS; i++) {
        for (j = 0; j < CLASSES; j++) rounded[i * CLASSES + j] = to_bf16((float)(rows_f64[i][j] * 0.75));
    }
    memset(&call, 0, sizeof call);
    call.size = sizeof call;
    call.base = whole();
    call.other = matrix(rounded, ROWS, CLASSES, 0, XENT_BF16);
    call.targets = all_targets();
    call.out_len = ROWS;
    call.kl = kl;
    call.reverse_kl = reverse;
    call.jsd = jsd;
    call.total_variation = tv;
    call.base_logprobs = base;
    call.other_logprobs = other;
    call.delta_p = delta;
    call.same_top = same;
    OK(xent_compare(NULL, &call));
    for (i = 0; i < ROWS; i++) {
        double p_all = naive_lse(rows_f64[i], CLASSES), q_all, forward = 0.0, back = 0.0, half = 0.0, mixed = 0.0;
        if (targets_i32[i] < 0) {
            CHECK(kl[i] == 0.0 && same[i] == 0);
            continue;
        }
        for (j = 0; j < CLASSES; j++) q[j] = rows_f64[i][j] * 0.75;
        q_all = naive_lse(q, CLASSES);
        for (j = 0; j < CLASSES; j++) {
            double lp = rows_f64[i][j] - p_all, lq = q[j] - q_all, m = log(0.5 * (exp(lp) + exp(lq)));
            forward += exp(lp) * (lp - lq);
            back += exp(lq) * (lq - lp);
            half += 0.5 * fabs(exp(lp) - exp(lq));
            mixed += 0.5 * exp(lp) * (lp - m) + 0.5 * exp(lq) * (lq - m);
        }
        CLOSE(kl[i], forward);
        CLOSE(reverse[i], back);
        CLOSE(tv[i], half);
        CLOSE(jsd[i], mixed);
        CLOSE(base[i], -loss_of_row(i));
        CLOSE(other[i], q[targets_i32[i]] - q_all);
        CLOSE(delta[i], exp(other[i]) - exp(base[i]));
        CHECK(same[i] == 1); /* scaling keeps the order */
    }
    call.other.classes = CLASSES - 1;
    FAILS(xent_compare(NULL, &call), XENT_ERROR_SHAPE);
    call.other.classes = CLASSES;
    call.out_len = ROWS - 1;
    FAILS(xent_compare(NULL, &call), XENT_ERROR_OUTPUT_LENGTH);
    call.out_len = ROWS;
    call.other.dtype = 17;
    FAILS_WITH(xent_compare(NULL, &call), XENT_ERROR_DTYPE,
               "`other`: dtype 17 is not XENT_F32, XENT_F64, XENT_BF16 or XENT_F16");
}

static void test_special_values(void) {
    float x[4 * 3] = {0.0f, -INFINITY, 0.0f, 1.0f, NAN, 0.0f, INFINITY, 0.0f, 0.0f, -INFINITY, -INFINITY, -INFINITY};
    const int32_t t[4] = {0, 0, 1, 2};
    float losses[4], entropy[4];
    int64_t argmax[4];
    xent_matrix m = matrix(x, 4, 3, 0, XENT_F32);
    xent_ids targets = ids(t, 4, XENT_I32);
    xent_token_call call = new_token_call();

    OK(xent_forward_into(NULL, &m, &targets, losses, 4, XENT_F32));
    CLOSE(losses[0], log(2.0));
    CHECK(isnan(losses[1]) && isnan(losses[2]) && isnan(losses[3]));
    call.logits = m;
    call.out_len = 4;
    call.argmax = argmax;
    call.entropy = entropy;
    OK(xent_tokens(NULL, &call));
    CLOSE(entropy[0], log(2.0));
    CHECK(isnan(entropy[1]) && isnan(entropy[2]) && isnan(entropy[3]));
    CHECK(argmax[0] == 0 && argmax[1] == 1 && argmax[2] == 0 && argmax[3] == 0);
    /* A row without a distribution is never right, and one without weight does not count. */
    {
        const int32_t best[4] = {0, 1, 0, 0};
        const float weights[4] = {1.0f, 0.0f, 0.0f, 0.0f};
        xent_evaluation e;
        xent_call all = new_call();
        memset(&e, 0, sizeof e);
        e.size = sizeof e;
        all.logits = m;
        all.targets = ids(best, 4, XENT_I32);
        all.flags = XENT_COUNT_CORRECT;
        OK(xent_evaluate(NULL, &all, &e));
        CHECK(e.correct == 1 && e.count == 4 && e.ignored == 0 && isnan(e.mean));
        all.token_weights = floats(weights, 4, XENT_F32);
        OK(xent_evaluate(NULL, &all, &e));
        CHECK(e.correct == 1 && e.count == 1 && e.ignored == 3 && isnan(e.loss));
        CLOSE(e.perplexity, 2.0);
    }
    /* A target that is masked. */
    m = matrix(x, 1, 3, 0, XENT_F32);
    {
        const int32_t masked = 1;
        targets = ids(&masked, 1, XENT_I32);
        OK(xent_forward_into(NULL, &m, &targets, losses, 1, XENT_F32));
        CHECK(losses[0] == INFINITY);
    }
}

/* Everything that can be wrong about pointers and structures. Outputs stay as they were. */
static void test_misuse(void) {
    double loss = 123.0;
    float losses[ROWS];
    size_t i;
    xent_matrix x = whole();
    xent_ids t = all_targets();
    int32_t bad[ROWS];
    xent_call call;
    xent_evaluation e;
    unsigned char *bytes = allocate(2 * sizeof call + 64);

    for (i = 0; i < ROWS; i++) losses[i] = 5.0f;
    FAILS_WITH(xent_forward(NULL, NULL, &t, &loss), XENT_ERROR_NULL_POINTER, "`logits` is NULL");
    FAILS_WITH(xent_forward(NULL, &x, NULL, &loss), XENT_ERROR_NULL_POINTER, "`targets` is NULL");
    FAILS_WITH(xent_forward(NULL, &x, &t, NULL), XENT_ERROR_NULL_POINTER, "`loss` is NULL");
    x.data = NULL;
    FAILS_WITH(xent_forward(NULL, &x, &t, &loss), XENT_ERROR_NULL_POINTER, "`logits` is NULL");
    x = whole();
    t.data = NULL;
    FAILS_WITH(xent_forward(NULL, &x, &t, &loss), XENT_ERROR_NULL_POINTER, "`targets` is NULL");
    t = all_targets();
    FAILS(xent_forward_into(NULL, &x, &t, NULL, ROWS, XENT_F32), XENT_ERROR_NULL_POINTER);

    x.data = (const char *)logits_f32 + 1;
    FAILS(xent_forward(NULL, &x, &t, &loss), XENT_ERROR_MISALIGNED);
    CHECK(strstr(xent_last_error_message(), "`logits` at address") != NULL);
    CHECK(strstr(xent_last_error_message(), "is not aligned to 4 bytes") != NULL);
    x = whole();
    t.data = (const char *)targets_i32 + 2;
    t.len = ROWS - 1;
    FAILS(xent_forward(NULL, &x, &t, &loss), XENT_ERROR_MISALIGNED);
    t = all_targets();

    x.rows = (size_t)-1;
    FAILS(xent_forward(NULL, &x, &t, &loss), XENT_ERROR_OVERFLOW);
    x = whole();
    x.row_stride = (size_t)-1;
    FAILS(xent_forward(NULL, &x, &t, &loss), XENT_ERROR_OVERFLOW);
    x.rows = x.classes = x.row_stride = x.class_stride = (size_t)-1;
    FAILS(xent_forward(NULL, &x, &t, &loss), XENT_ERROR_OVERFLOW);
    x = whole();
    t.stride = (size_t)-1;
    FAILS(xent_forward(NULL, &x, &t, &loss), XENT_ERROR_OVERFLOW);
    t = all_targets();
    t.len = (size_t)-1;
    FAILS(xent_forward(NULL, &x, &t, &loss), XENT_ERROR_OVERFLOW);
    t = all_targets();
    x.row_stride = CLASSES - 1;
    FAILS_WITH(xent_forward(NULL, &x, &t, &loss), XENT_ERROR_SHAPE,
               "a row stride of 130 is smaller than the vocabulary of 131");
    x = whole();
    x.dtype = XENT_NONE;
    FAILS(xent_forward(NULL, &x, &t, &loss), XENT_ERROR_DTYPE);
    x.dtype = -1;
    FAILS(xent_forward(NULL, &x, &t, &loss), XENT_ERROR_DTYPE);
    x = whole();
    t.dtype = 17;
    FAILS(xent_forward(NULL, &x, &t, &loss), XENT_ERROR_DTYPE);
    t.dtype = XENT_NO_IDS;
    FAILS_WITH(xent_forward(NULL, &x, &t, &loss), XENT_ERROR_MISSING,
               "`loss` needs `targets`, whose dtype is XENT_NO_IDS");
    t = all_targets();
    x.reserved = 1;
    FAILS_WITH(xent_forward(NULL, &x, &t, &loss), XENT_ERROR_STRUCT, "`logits`: the reserved member is 1 instead of 0");
    x = whole();
    t.reserved = 3;
    FAILS(xent_forward(NULL, &x, &t, &loss), XENT_ERROR_STRUCT);
    t = all_targets();
    t.len = ROWS - 1;
    FAILS_WITH(xent_forward(NULL, &x, &t, &loss), XENT_ERROR_TARGET_COUNT,
               "6 targets for 7 rows; where each row predicts the next token, give all tokens to Targets::shifted");

    /* A target out of range in the last row: nothing is written. */
    memcpy(bad, targets_i32, sizeof bad);
    bad[ROWS - 1] = CLASSES;
    t = ids(bad, ROWS, XENT_I32);
    FAILS_WITH(xent_forward_into(NULL, &x, &t, losses, ROWS, XENT_F32), XENT_ERROR_TARGET_RANGE,
               "row 6: target 131 is out of range for a vocabulary of 131");
    FAILS(xent_forward(NULL, &x, &t, &loss), XENT_ERROR_TARGET_RANGE);
    bad[ROWS - 1] = -1;
    FAILS_WITH(xent_forward_into(NULL, &x, &t, losses, ROWS, XENT_F32), XENT_ERROR_TARGET_RANGE,
               "row 6: target -1 is out of range for a vocabulary of 131; ignore_index(-1) ignores such rows");
    call = new_call();
    call.targets = t;
    call.losses = losses;
    call.out_len = ROWS;
    call.out_dtype = XENT_F32;
    memset(&e, 0, sizeof e);
    e.size = sizeof e;
    e.loss = 9.0;
    FAILS(xent_evaluate(NULL, &call, &e), XENT_ERROR_TARGET_RANGE);
    CHECK(e.loss == 9.0);

    /* Outputs of the wrong length or place. */
    call.targets = all_targets();
    call.out_len = ROWS + 1;
    FAILS(xent_evaluate(NULL, &call, &e), XENT_ERROR_OUTPUT_LENGTH);
    call.out_len = ROWS;
    call.out_dtype = XENT_NONE;
    FAILS(xent_evaluate(NULL, &call, &e), XENT_ERROR_PRECISION);
    call.out_dtype = XENT_F32;
    call.logprobs = losses;
    FAILS_WITH(xent_evaluate(NULL, &call, &e), XENT_ERROR_OVERLAP, "`logprobs` overlaps `losses`");
    call.logprobs = logits_f32 + CLASSES; /* between two rows */
    FAILS_WITH(xent_evaluate(NULL, &call, &e), XENT_ERROR_OVERLAP, "`logprobs` overlaps `logits`");
    call.logprobs = bad;
    OK(xent_evaluate(NULL, &call, &e)); /* `bad` is not the targets any more */
    call.targets = t;
    bad[0] = bad[1] = bad[2] = bad[3] = bad[4] = bad[5] = bad[6] = 0;
    FAILS_WITH(xent_evaluate(NULL, &call, &e), XENT_ERROR_OVERLAP, "`logprobs` overlaps `targets`");
    call.logprobs = (char *)losses + 2;
    FAILS(xent_evaluate(NULL, &call, &e), XENT_ERROR_MISALIGNED);

    /* Single results too have their memory for themselves. */
    {
        double wide[4] = {1.0, 2.0, 3.0, 4.0};
        int64_t five[5] = {0, 1, 2, 3, 4};
        const float below[5] = {-1.0f, -2.0f, -3.0f, -4.0f, -5.0f};
        unsigned char *stats = allocate(XENT_ROW_STATS_BYTES);
        xent_sample sample = {1, 2, 0.0};
        xent_shard shard;
        xent_token_call token_call = new_token_call();
        xent_call of_doubles = new_call();
        size_t count = 0;
        union {
            xent_evaluation evaluation;
            double losses[2];
            xent_row_summary summary;
            unsigned char stats[XENT_ROW_STATS_BYTES];
            int64_t top[2];
            size_t count;
        } same;
        const int32_t two[2] = {0, 1};
        memset(&same, 0, sizeof same);
        x = matrix(wide, 2, 2, 0, XENT_F64);
        t = ids(two, 2, XENT_I32);
        FAILS_WITH(xent_forward(NULL, &x, &t, wide + 1), XENT_ERROR_OVERLAP, "`loss` overlaps `logits`");
        of_doubles.logits = x;
        of_doubles.targets = t;
        of_doubles.out_len = 2;
        of_doubles.out_dtype = XENT_F64;
        of_doubles.losses = same.losses;
        same.evaluation.size = sizeof same.evaluation;
        FAILS(xent_evaluate(NULL, &of_doubles, &same.evaluation), XENT_ERROR_OVERLAP);
        CHECK(strstr(xent_last_error_message(), "`evaluation`") && strstr(xent_last_error_message(), "`losses`"));
        CHECK(same.evaluation.size == sizeof same.evaluation);
        FAILS_WITH(xent_draw(NULL, five, below, 5, 5, &sample, five + 4), XENT_ERROR_OVERLAP, "`token` overlaps `ids`");
        CHECK(wide[1] == 2.0 && five[4] == 4);

        memset(&shard, 0, sizeof shard);
        shard.size = sizeof shard;
        shard.vocab = CLASSES;
        token_call.logits.rows = 1;
        OK(xent_row_stats(NULL, &token_call, &shard, stats, XENT_ROW_STATS_BYTES));
        memcpy(same.stats, stats, sizeof same.stats);
        same.summary.size = sizeof same.summary;
        FAILS_WITH(xent_row_stats_summary(same.stats, &same.summary), XENT_ERROR_OVERLAP, "`summary` overlaps `stats`");
        memset(&same, 0, sizeof same);
        FAILS(xent_row_stats_top(stats, 2, same.top, losses, &same.count), XENT_ERROR_OVERLAP);
        CHECK(strstr(xent_last_error_message(), "`count` overlaps `ids`") != NULL);
        OK(xent_row_stats_top(stats, 2, same.top, losses, &count));
        CHECK(count == 0);
        free(stats);
    }

    /* Sizes of structures: those of later versions, whose rest is 0, are fine. */
    call = new_call();
    call.size = sizeof call - 1;
    FAILS(xent_evaluate(NULL, &call, &e), XENT_ERROR_STRUCT);
    call.size = 0;
    FAILS(xent_evaluate(NULL, &call, &e), XENT_ERROR_STRUCT);
    memset(bytes, 0, 2 * sizeof call + 64);
    call.size = sizeof call + 64;
    memcpy(bytes, &call, sizeof call);
    OK(xent_evaluate(NULL, (const xent_call *)(const void *)bytes, &e));
    bytes[sizeof call + 63] = 1;
    FAILS(xent_evaluate(NULL, (const xent_call *)(const void *)bytes, &e), XENT_ERROR_STRUCT);
    FAILS(xent_evaluate(NULL, NULL, &e), XENT_ERROR_NULL_POINTER);
    call = new_call();
    e.size = 1;
    FAILS(xent_evaluate(NULL, &call, &e), XENT_ERROR_STRUCT);
    FAILS(xent_tokens(NULL, NULL), XENT_ERROR_NULL_POINTER);
    FAILS(xent_compare(NULL, NULL), XENT_ERROR_NULL_POINTER);
    free(bytes);

    CHECK(loss == 123.0);
}

/* Options that threads share: 1, 3 of their own, and those of the process. Every result has the same bits. */
enum { MANY = 40, WIDE = 4096, THREADS = 8 };

struct work {
    const xent_options *options;
    const float *logits;
    const int32_t *targets;
    double loss;
    int failed;
    char message[128];
};

static void *run_thread(void *argument) {
    struct work *work = argument;
    xent_matrix x = matrix(work->logits, MANY, WIDE, 0, XENT_F32);
    xent_ids t = ids(work->targets, MANY, XENT_I32);
    int i;
    for (i = 0; i < 3; i++) {
        double loss = 0.0;
        if (xent_forward(work->options, &x, &t, &loss) != XENT_OK || (i > 0 && loss != work->loss)) work->failed = 1;
        work->loss = loss;
    }
    /* Each thread has its own message. */
    x.classes = WIDE - (size_t)(work->targets[0] + 1);
    x.row_stride = 1;
    if (xent_forward(work->options, &x, &t, &work->loss) != XENT_ERROR_SHAPE) work->failed = 1;
    strncpy(work->message, xent_last_error_message(), sizeof work->message - 1);
    if (xent_forward(NULL, NULL, NULL, NULL) != XENT_ERROR_NULL_POINTER) work->failed = 1;
    return NULL;
}

/* That there is no thread but this one. The kernel may take a moment to forget one that has ended. */
static int is_alone(void) {
#ifdef __linux__
    int tries;
    for (tries = 0; tries < 2000; tries++) {
        const struct timespec millisecond = {0, 1000000};
        int threads = 0;
        const struct dirent *entry;
        DIR *tasks = opendir("/proc/self/task");
        if (!tasks) return 1; /* nothing to be known */
        while ((entry = readdir(tasks)) != NULL) threads += entry->d_name[0] != '.';
        closedir(tasks);
        if (threads == 1) return 1;
        nanosleep(&millisecond, NULL);
    }
    return 0;
#else
    return 1;
#endif
}

/* Below what is worth a thread none is started, whatever the layout: not by the defaults either. */
static void test_small_calls(void) {
    const float columns[2 * 3] = {1.0f, 4.0f, 2.0f, 5.0f, 3.0f, 6.0f};
    const int32_t t[2] = {0, 1};
    float p[2 * 3];
    double loss;
    xent_matrix x = matrix(columns, 2, 3, 1, XENT_F32);
    xent_ids targets = ids(t, 2, XENT_I32);
    x.class_stride = 2;
    OK(xent_forward(NULL, &x, &targets, &loss));
    CLOSE(loss, 0.5 * (2.4076059644443806 + 1.4076059644443806));
    OK(xent_softmax(NULL, &x, NULL, p, 6, XENT_F32));
    CLOSE(p[0] + p[1] + p[2], 1.0);
    x = whole();
    targets = all_targets();
    OK(xent_forward(NULL, &x, &targets, &loss));
    CHECK(is_alone());
}

static void test_threads(void) {
    float *x = allocate(MANY * WIDE * sizeof *x);
    int32_t *t = allocate(THREADS * MANY * sizeof *t);
    double expected = 0.0;
    size_t i, n;

    for (i = 0; i < MANY * WIDE; i++) x[i] = (float)(uniform() * 16.0);
    for (i = 0; i < MANY; i++) t[i] = (int32_t)(i * 7);
    for (n = 0; n < 3; n++) {
        xent_options *options = NULL;
        pthread_t threads[THREADS];
        struct work work[THREADS];
        OK(xent_options_new(&options));
        OK(xent_options_set_threads(options, n == 0 ? 1 : n == 1 ? 3 : 0));
        for (i = 0; i < THREADS; i++) {
            memset(&work[i], 0, sizeof work[i]);
            work[i].options = options;
            work[i].logits = x;
            work[i].targets = t;
            CHECK(pthread_create(&threads[i], NULL, run_thread, &work[i]) == 0);
        }
        for (i = 0; i < THREADS; i++) {
            CHECK(pthread_join(threads[i], NULL) == 0);
            CHECK(!work[i].failed);
            CHECK(strcmp(work[i].message, "a row stride of 1 is smaller than the vocabulary of 4095") == 0);
            if (n == 0 && i == 0) expected = work[i].loss;
            CHECK(work[i].loss == expected);
        }
        OK(xent_options_free(options));
        /* One thread starts none, and threads of options end with them; those of the process stay. */
        if (n < 2) CHECK(is_alone());
    }
    free(x);
    free(t);
}

int main(void) {
    prepare();
    test_meta();
    test_small_calls();
    test_threads(); /* before anything starts the pool of the process */
    test_forward();
    test_options();
    test_evaluate();
    test_gradients();
    test_softmax();
    test_tokens();
    test_ignore_indices();
    test_sequences();
    test_shards();
    test_compare();
    test_special_values();
    test_misuse();
    printf("%d checks, %d failures\n", checks, failures);
    return failures != 0;
}
