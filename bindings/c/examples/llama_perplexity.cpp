// What llama.cpp's perplexity tool and server compute about logits, the way they do it, and with xent: the same numbers,
// and how long each takes. The logits are made up.
//
//     g++ -std=c++11 -O3 llama_perplexity.cpp $(pkg-config --cflags --libs xent) -lpthread && ./a.out 512 50257 21
//
// The arguments: rows, classes, rounds. The code of the namespace `by_hand` is written after what those programs do, as
// docs/c.md describes it, not copied from them.
#include "xent.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <mutex>
#include <stdexcept>
#include <thread>
#include <utility>
#include <vector>

struct Perplexity {
    double nll, stderr_of_mean;
};

struct Token {
    int32_t id;
    float p;
};

namespace by_hand {

// Two passes: the largest logit, then a double sum of float exponentials.
double log_probability(const float *logits, int n_vocab, int32_t token) {
    float largest = logits[0];
    for (int j = 1; j < n_vocab; j++) largest = std::max(largest, logits[j]);
    double sum = 0.0;
    for (int j = 0; j < n_vocab; j++) sum += expf(logits[j] - largest);
    return logits[token] - largest - log(sum);
}

// Threads started for each batch, which take the next row under a mutex.
Perplexity perplexity(const float *logits, const int32_t *tokens, int n_rows, int n_vocab, unsigned n_threads) {
    std::mutex mutex;
    int next = 0;
    double nll = 0.0, nll2 = 0.0;
    auto work = [&] {
        double mine = 0.0, mine2 = 0.0;
        for (;;) {
            std::unique_lock<std::mutex> lock(mutex);
            const int row = next++;
            if (row >= n_rows) {
                nll += mine;
                nll2 += mine2;
                return;
            }
            lock.unlock();
            const double v = -log_probability(logits + size_t(row) * n_vocab, n_vocab, tokens[row + 1]);
            mine += v;
            mine2 += v * v;
        }
    };
    std::vector<std::thread> workers;
    for (unsigned i = 1; i < n_threads; i++) workers.emplace_back(work);
    work();
    for (auto &worker : workers) worker.join();
    const double mean = nll / n_rows;
    return {mean, std::sqrt((nll2 / n_rows - mean * mean) / (n_rows - 1))};
}

// All tokens in an array of pairs, partly sorted, then a float sum of exponentials.
std::vector<Token> most_probable(const float *logits, int n_vocab, int n_top) {
    std::vector<std::pair<float, int32_t>> all(n_vocab);
    for (int32_t id = 0; id < n_vocab; id++) all[id] = {logits[id], id};
    std::partial_sort(all.begin(), all.begin() + n_top, all.end(), std::greater<std::pair<float, int32_t>>());
    float sum = 0.0f;
    for (const auto &x : all) sum += expf(x.first - all[0].first);
    std::vector<Token> top;
    for (int i = 0; i < n_top; i++) top.push_back({all[i].second, expf(all[i].first - all[0].first) / sum});
    return top;
}

// KL(P||Q) of a row: the softmax of both, and a sum over all classes.
double divergence(const float *p, const float *q, int n_vocab) {
    float p_largest = p[0], q_largest = q[0];
    for (int j = 1; j < n_vocab; j++) {
        p_largest = std::max(p_largest, p[j]);
        q_largest = std::max(q_largest, q[j]);
    }
    double p_sum = 0.0, q_sum = 0.0;
    for (int j = 0; j < n_vocab; j++) {
        p_sum += expf(p[j] - p_largest);
        q_sum += expf(q[j] - q_largest);
    }
    const float p_lse = p_largest + (float)log(p_sum), q_lse = q_largest + (float)log(q_sum);
    double sum = 0.0;
    for (int j = 0; j < n_vocab; j++) {
        const float log_p = p[j] - p_lse;
        sum += expf(log_p) * (log_p - (q[j] - q_lse));
    }
    return sum;
}

} // namespace by_hand

namespace with_xent {

Perplexity perplexity(const xent::options &options, const float *logits, const int32_t *tokens,
                      int n_rows, int n_vocab) {
    auto call = xent::sized<xent_call>();
    call.logits = xent::logits(logits, n_rows, n_vocab);
    call.targets = xent::ids(tokens + 1, n_rows); // the token after each row
    auto result = xent::sized<xent_evaluation>();
    xent::check(xent_evaluate(options.get(), &call, &result));
    return {result.mean, result.mean_stderr};
}

std::vector<Token> most_probable(const xent::options &options, const float *logits, int n_vocab,
                                 int n_top) {
    if (n_top < 0 || n_top > XENT_MAX_TOP_K) throw std::invalid_argument("n_top is out of range");
    std::vector<int64_t> ids(n_top);
    std::vector<float> logprobs(n_top);
    auto call = xent::sized<xent_token_call>();
    call.logits = xent::logits(logits, 1, n_vocab);
    call.top_k = n_top;
    call.top_ids = ids.data();
    call.top_logprobs = logprobs.data();
    call.out_len = 1;
    call.out_dtype = XENT_F32;
    xent::check(xent_tokens(options.get(), &call));
    std::vector<Token> top;
    for (int i = 0; i < n_top; i++) top.push_back({int32_t(ids[i]), std::exp(logprobs[i])});
    return top;
}

std::vector<double> divergences(const xent::options &options, const float *p, const float *q,
                                int n_rows, int n_vocab) {
    std::vector<double> kl(n_rows);
    auto call = xent::sized<xent_compare_call>();
    call.base = xent::logits(p, n_rows, n_vocab);
    call.other = xent::logits(q, n_rows, n_vocab);
    call.kl = kl.data();
    call.out_len = kl.size();
    xent::check(xent_compare(options.get(), &call));
    return kl;
}

} // namespace with_xent

namespace {

bool agree = true;

void close(const char *what, double hand, double with, double within) {
    const bool ok = std::fabs(hand - with) <= within * (1.0 + std::fabs(hand));
    if (!ok) std::printf("%s: %.9g by hand, %.9g with xent\n", what, hand, with);
    agree = agree && ok;
}

// Both in turn, so that what else the machine does meets both; medians.
template <class A, class B> void race(const char *what, int rounds, A hand, B with) {
    std::vector<double> a, b, ratios;
    for (int i = 0; i < rounds; i++) {
        const auto start = std::chrono::steady_clock::now();
        hand();
        const auto middle = std::chrono::steady_clock::now();
        with();
        const auto end = std::chrono::steady_clock::now();
        a.push_back(std::chrono::duration<double, std::micro>(middle - start).count());
        b.push_back(std::chrono::duration<double, std::micro>(end - middle).count());
        ratios.push_back(a.back() / b.back());
    }
    for (auto *v : {&a, &b, &ratios}) std::sort(v->begin(), v->end());
    const size_t m = a.size() / 2;
    std::printf("%-34s by hand %11.1f us, xent %9.1f us, ratio %5.1f\n", what, a[m], b[m], ratios[m]);
}

} // namespace

int main(int argc, char **argv) {
    const int n_rows = argc > 1 ? std::atoi(argv[1]) : 16;
    const int n_vocab = argc > 2 ? std::atoi(argv[2]) : 50257;
    const int rounds = argc > 3 ? std::atoi(argv[3]) : 3;
    if (n_rows < 2 || n_vocab < 128 || rounds < 1) {
        std::fprintf(stderr, "usage: llama_perplexity [rows, at least 2] [classes, at least 128] [rounds]\n");
        return 2;
    }
    std::vector<float> logits(size_t(n_rows) * n_vocab), other(logits.size());
    std::vector<int32_t> tokens(n_rows + 1);
    uint32_t state = 1;
    auto uniform = [&state] {
        state = state * 1664525u + 1013904223u;
        return float(state >> 8) / 16777216.0f;
    };
    for (size_t i = 0; i < logits.size(); i++) {
        // Bell-shaped, and a few tokens far above the others, as of a language model.
        logits[i] = 4.0f * (uniform() + uniform() + uniform() - 1.5f) + (uniform() < 1e-4f ? 12.0f : 0.0f);
        other[i] = logits[i] + 0.1f * (uniform() - 0.5f);
    }
    for (auto &token : tokens) token = int32_t(uniform() * n_vocab);

    const unsigned n_threads = std::max(1u, std::thread::hardware_concurrency());
    xent::options options, one;
    one.threads(1);
    const float *x = logits.data(), *y = other.data();

    const Perplexity hand = by_hand::perplexity(x, tokens.data(), n_rows, n_vocab, n_threads);
    const Perplexity with = with_xent::perplexity(options, x, tokens.data(), n_rows, n_vocab);
    close("negative log-likelihood", hand.nll, with.nll, 1e-6);
    close("standard error", hand.stderr_of_mean, with.stderr_of_mean, 1e-5);
    double worst_hand = 0.0, worst_xent = 0.0;
    const auto kl = with_xent::divergences(options, x, y, n_rows, n_vocab);
    for (int i = 0; i < n_rows; i++) {
        const float *row = x + size_t(i) * n_vocab;
        close("KL", by_hand::divergence(row, y + size_t(i) * n_vocab, n_vocab), kl[i], 1e-5);
        const auto a = by_hand::most_probable(row, n_vocab, 20);
        const auto b = with_xent::most_probable(one, row, n_vocab, 20);
        double largest = row[0], sum = 0.0;
        for (int j = 0; j < n_vocab; j++) largest = std::max(largest, double(row[j]));
        for (int j = 0; j < n_vocab; j++) sum += std::exp(row[j] - largest);
        for (int k = 0; k < 20; k++) {
            // A float sum of so many terms has lost digits: hence so wide a bound.
            close("probability", a[k].p, b[k].p, 1e-3);
            const double exact_a = std::exp(row[a[k].id] - largest) / sum, exact_b = std::exp(row[b[k].id] - largest) / sum;
            worst_hand = std::max(worst_hand, std::fabs(a[k].p / exact_a - 1.0));
            worst_xent = std::max(worst_xent, std::fabs(b[k].p / exact_b - 1.0));
        }
    }
    std::printf("perplexity %.4f +/- %.4f\n", std::exp(with.nll), std::exp(with.nll) * with.stderr_of_mean);
    std::printf("largest relative error of a top-20 probability: by hand %.1e, xent %.1e\n", worst_hand, worst_xent);
    std::printf(agree ? "both agree\n" : "they do not agree\n");

    std::printf("%d rows of %d, %u threads, medians of %d rounds in turn\n", n_rows, n_vocab, n_threads, rounds);
    volatile double sink = 0.0;
    race("perplexity of the batch", rounds,
         [&] { sink = by_hand::perplexity(x, tokens.data(), n_rows, n_vocab, n_threads).nll; },
         [&] { sink = with_xent::perplexity(options, x, tokens.data(), n_rows, n_vocab).nll; });
    race("perplexity, one thread", rounds,
         [&] { sink = by_hand::perplexity(x, tokens.data(), n_rows, n_vocab, 1).nll; },
         [&] { sink = with_xent::perplexity(one, x, tokens.data(), n_rows, n_vocab).nll; });
    race("KL divergence, one thread", rounds,
         [&] {
             for (int i = 0; i < n_rows; i++) {
                 const size_t at = size_t(i) * n_vocab;
                 sink = by_hand::divergence(x + at, y + at, n_vocab);
             }
         },
         [&] { sink = with_xent::divergences(one, x, y, n_rows, n_vocab)[0]; });
    race("top 20 of a row, as in logprobs", rounds, [&] { sink = by_hand::most_probable(x, n_vocab, 20)[0].p; },
         [&] { sink = with_xent::most_probable(one, x, n_vocab, 20)[0].p; });
    return agree ? 0 : 1;
}
