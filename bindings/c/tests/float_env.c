/* What a program has set its floating-point environment to changes no bit of any result, raises no
   signal, and is as it was when a call returns. */
#define _GNU_SOURCE
#include "check.h"

#include <fenv.h>
#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

/* More than is left to the calling thread. */
enum { ROWS = 6, CLASSES = 20011, K = 5 };

static float x[ROWS * CLASSES], y[ROWS * CLASSES], weights[CLASSES];
static float each[ROWS], token_weights[ROWS];
static double x_f64[ROWS * CLASSES];
static int32_t targets[ROWS];
static xent_sample samples[ROWS];

/* All that is computed; 0 before. Padding is never written. */
typedef struct results {
    double loss[4], scores[ROWS][3];
    xent_evaluation evaluation, of_gradient;
    float losses[ROWS], lse[ROWS], z[ROWS], p[ROWS * CLASSES], g[ROWS * CLASSES];
    double g_f64[ROWS * CLASSES], kl[ROWS], jsd[ROWS], log_p[ROWS * CLASSES];
    int64_t ranks[ROWS], ids[ROWS * K], sampled[ROWS], drawn[ROWS];
    float logprobs[ROWS], top[ROWS * K], entropy[ROWS], varentropy[ROWS], drawn_logprobs[ROWS];
    uint8_t stats[2][ROWS * XENT_ROW_STATS_BYTES];
    xent_row_summary row;
    int32_t statuses[24];
} results;

static xent_matrix matrix(const void *data, size_t classes, int32_t dtype) {
    xent_matrix m;
    memset(&m, 0, sizeof m);
    m.data = data;
    m.rows = ROWS;
    m.classes = classes;
    m.row_stride = CLASSES;
    m.dtype = dtype;
    return m;
}

static xent_call new_call(const void *data, int32_t dtype, void *gradient) {
    xent_call call;
    memset(&call, 0, sizeof call);
    call.size = sizeof call;
    call.logits = matrix(data, CLASSES, dtype);
    call.targets.data = targets;
    call.targets.len = ROWS;
    call.targets.dtype = XENT_I32;
    if (gradient) {
        call.gradient.data = gradient;
        call.gradient.rows = ROWS;
        call.gradient.classes = CLASSES;
        call.gradient.dtype = dtype;
        call.upstream_rows.data = each;
        call.upstream_rows.len = ROWS;
        call.upstream_rows.dtype = XENT_F32;
    }
    return call;
}

static xent_token_call new_token_call(size_t first, size_t classes) {
    xent_token_call call;
    memset(&call, 0, sizeof call);
    call.size = sizeof call;
    call.logits = matrix(x + first, classes, XENT_F32);
    call.targets.data = targets;
    call.targets.len = ROWS;
    call.targets.dtype = XENT_I32;
    call.top_k = K;
    call.samples = samples;
    call.samples_len = ROWS;
    return call;
}

/* No arithmetic is in here: it would be that of this program. */
static void compute(const xent_options *options, xent_options *changed, results *r) {
    xent_matrix logits = matrix(x, CLASSES, XENT_F32), wide = matrix(x_f64, CLASSES, XENT_F64);
    xent_call call = new_call(x, XENT_F32, NULL), gradient = new_call(x, XENT_F32, r->g);
    xent_call gradient_f64 = new_call(x_f64, XENT_F64, r->g_f64);
    xent_call sequences = new_call(x, XENT_F32, NULL);
    xent_token_call tokens = new_token_call(0, CLASSES);
    xent_compare_call compared;
    xent_filters filters;
    xent_shard shard;
    size_t i, offsets[3] = {0, 2, ROWS};
    xent_sequence_score scores[2];
    int32_t *status = r->statuses;

    /* Options are compared too. */
    *status++ = xent_options_set_temperature(changed, 1e-310);
    *status++ = xent_options_set_temperature(changed, 1e-40);
    *status++ = xent_options_set_label_smoothing(changed, 1e-310);
    *status++ = xent_options_set_z_loss(changed, -1e-310);

    *status++ = xent_forward(options, &logits, &call.targets, &r->loss[0]);
    *status++ = xent_forward(options, &wide, &call.targets, &r->loss[1]);
    *status++ = xent_forward(changed, &wide, &call.targets, &r->loss[2]);
    call.out_dtype = XENT_F32;
    call.out_len = ROWS;
    call.losses = r->losses;
    call.logsumexp = r->lse;
    call.z_losses = r->z;
    call.token_weights.data = token_weights;
    call.token_weights.len = ROWS;
    call.token_weights.dtype = XENT_F32;
    r->evaluation.size = sizeof r->evaluation;
    *status++ = xent_evaluate(options, &call, &r->evaluation);
    r->of_gradient.size = sizeof r->of_gradient;
    *status++ = xent_forward_backward(options, &gradient, 0.3, &r->of_gradient);
    *status++ = xent_forward_backward(NULL, &gradient_f64, 1e-310, NULL);
    memset(scores, 0, sizeof scores);
    *status++ = xent_sequences(NULL, &sequences, offsets, 3, scores, 2);
    for (i = 0; i < 2; i++) r->scores[i][0] = scores[i].logprob;

    *status++ = xent_softmax(NULL, &logits, NULL, r->p, ROWS * CLASSES, XENT_F32);
    *status++ = xent_log_softmax(NULL, &wide, NULL, r->log_p, ROWS * CLASSES, XENT_F64);

    tokens.out_dtype = XENT_F32;
    tokens.out_len = ROWS;
    tokens.logprobs = r->logprobs;
    tokens.ranks = r->ranks;
    tokens.top_ids = r->ids;
    tokens.top_logprobs = r->top;
    tokens.entropy = r->entropy;
    tokens.varentropy = r->varentropy;
    tokens.sampled = r->sampled;
    tokens.sampled_logprobs = r->drawn_logprobs;
    *status++ = xent_tokens(NULL, &tokens);
    memset(&filters, 0, sizeof filters);
    filters.size = sizeof filters;
    filters.used = XENT_FILTER_TOP_K | XENT_FILTER_TOP_P;
    filters.top_k = K;
    filters.top_p = 0.5;
    for (i = 0; i < ROWS; i++) {
        const xent_sample *sample = &samples[i];
        r->statuses[20] = xent_draw(&filters, r->ids, r->top, K, CLASSES, sample, &r->drawn[i]);
    }

    memset(&shard, 0, sizeof shard);
    shard.size = sizeof shard;
    shard.vocab = CLASSES;
    tokens = new_token_call(0, 555);
    *status++ = xent_row_stats(NULL, &tokens, &shard, r->stats[0], sizeof r->stats[0]);
    shard.first = 555;
    tokens = new_token_call(555, CLASSES - 555);
    *status++ = xent_row_stats(NULL, &tokens, &shard, r->stats[1], sizeof r->stats[1]);
    *status++ = xent_row_stats_merge(r->stats[0], r->stats[1], r->stats[0]);
    r->row.size = sizeof r->row;
    *status++ = xent_row_stats_summary(r->stats[0], &r->row);

    memset(&compared, 0, sizeof compared);
    compared.size = sizeof compared;
    compared.base = logits;
    compared.other = matrix(y, CLASSES, XENT_F32);
    compared.out_len = ROWS;
    compared.kl = r->kl;
    compared.jsd = r->jsd;
    *status++ = xent_compare(NULL, &compared);
}

typedef struct setting {
    const char *name;
    int rounding;
    unsigned flushed; /* of MXCSR */
    int signals;
} setting;

static int rounding_of(const setting *s) { return s->rounding < 0 ? FE_TONEAREST : s->rounding; }

static void set(const setting *s) {
    fesetround(rounding_of(s));
#if defined(__x86_64__)
    _mm_setcsr(_mm_getcsr() | s->flushed);
#endif
#if defined(__GLIBC__)
    if (s->signals) feenableexcept(s->signals);
#endif
}

static int is_set(const setting *s) {
    int ok = fegetround() == rounding_of(s);
#if defined(__x86_64__)
    ok = ok && (_mm_getcsr() & 0x8040u) == s->flushed;
#endif
#if defined(__GLIBC__) && defined(__x86_64__)
    ok = ok && fegetexcept() == s->signals;
#endif
    return ok;
}

static results want, got;

int main(void) {
    static const setting settings[] = {
        {"what programs start with", -1, 0, 0},
        {"rounding down", FE_DOWNWARD, 0, 0},
        {"rounding up", FE_UPWARD, 0, 0},
        {"rounding to zero", FE_TOWARDZERO, 0, 0},
        {"flush to zero", -1, 0x8000u, 0},
        {"denormals are zero", -1, 0x0040u, 0},
        {"both, rounding up", FE_UPWARD, 0x8040u, 0},
        {"signals", -1, 0, FE_DIVBYZERO | FE_INVALID | FE_OVERFLOW},
        {"signals for all", FE_DOWNWARD, 0x8040u, FE_ALL_EXCEPT},
    };
    xent_options *options = NULL, *changed = NULL;
    xent_floats class_weights;
    size_t i, threads;
    for (i = 0; i < ROWS * CLASSES; i++) {
        double sum = uniform() + uniform() + uniform() + uniform() - 2.0;
        x[i] = (float)(i < CLASSES ? sum * 1e-39 : sum * 40.0);
        y[i] = (float)(sum * uniform());
        x_f64[i] = i < CLASSES ? sum * 1e-310 : sum * 400.0;
    }
    for (i = 0; i < CLASSES; i++) weights[i] = (float)(i % 3 ? uniform() : 1e-40);
    for (i = 0; i < ROWS; i++) {
        each[i] = (float)(i == 1 ? 1e-40 : uniform());
        token_weights[i] = (float)(i == 2 ? 1e-40 : uniform());
        targets[i] = (int32_t)(uniform() * CLASSES);
        samples[i].seed = 42;
        samples[i].position = i;
        samples[i].temperature = i == 3 ? 1e-310 : 0.7;
    }
    OK(xent_options_new(&options));
    OK(xent_options_set_label_smoothing(options, 0.1));
    memset(&class_weights, 0, sizeof class_weights);
    class_weights.data = weights;
    class_weights.len = CLASSES;
    class_weights.dtype = XENT_F32;
    OK(xent_options_set_class_weights(options, &class_weights));
    OK(xent_options_set_z_loss(options, 1e-4));
    OK(xent_options_set_softcap(options, 30.0));
    OK(xent_options_new(&changed));
    memset(&want, 0, sizeof want);
    compute(options, changed, &want);
    for (threads = 1; threads <= 3; threads++) {
        for (i = 0; i < sizeof settings / sizeof *settings; i++) {
            const setting *s = &settings[i];
            int32_t status;
            int still;
            fenv_t before;
            OK(xent_options_free(changed));
            OK(xent_options_new(&changed));
            memset(&got, 0, sizeof got);
            fegetenv(&before);
            set(s);
            /* Threads inherit what is set. */
            status = (int32_t)xent_options_set_threads(options, threads);
            compute(options, changed, &got);
            still = is_set(s);
            fesetenv(&before);
            CHECK(status == XENT_OK);
            CHECK(still);
            CHECK(memcmp(&got, &want, sizeof got) == 0);
            if (!still || memcmp(&got, &want, sizeof got) != 0) {
                fprintf(stderr, "%s, %d threads\n", s->name, (int)threads);
            }
        }
    }
    OK(xent_options_free(options));
    OK(xent_options_free(changed));
    printf("%d checks, %d failures\n", checks, failures);
    return failures != 0;
}
