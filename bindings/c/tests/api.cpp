// xent.hpp and xent.h from C++11: classes, exceptions, std::thread.
#include "xent.hpp"

#include "check.h"

#include <cstdint>
#include <cstring>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace {

struct Batch {
    size_t rows, classes;
    std::vector<float> logits;
    std::vector<int32_t> targets;

    Batch(size_t rows_, size_t classes_) : rows(rows_), classes(classes_), logits(rows_ * classes_), targets(rows_) {
        for (float &x : logits) x = static_cast<float>(uniform() * 20.0 - 10.0);
        for (int32_t &t : targets) t = static_cast<int32_t>(uniform() * static_cast<double>(classes));
    }

    double loss(size_t row, double temperature = 1.0) const {
        std::vector<double> z(classes);
        for (size_t j = 0; j < classes; j++) z[j] = logits[row * classes + j] / temperature;
        return naive_lse(z.data(), classes) - z[static_cast<size_t>(targets[row])];
    }
};

// The status that a call throws, and its text.
template <class F> std::pair<xent_status, std::string> thrown(F f) {
    try {
        f();
    } catch (const xent::error &e) {
        return std::make_pair(e.status(), std::string(e.what()));
    }
    return std::make_pair(XENT_OK, std::string());
}

void test_losses(const Batch &batch) {
    const xent_matrix x = xent::logits(batch.logits.data(), batch.rows, batch.classes);
    const xent_ids t = xent::ids(batch.targets.data(), batch.targets.size());
    double loss = 0.0, expected = 0.0;
    for (size_t i = 0; i < batch.rows; i++) expected += batch.loss(i);
    xent::check(xent_forward(nullptr, &x, &t, &loss));
    CLOSE(loss, expected / static_cast<double>(batch.rows));

    xent::options options;
    options.sum().threads(2).ignore_index(-1);
    xent::check(xent_forward(options.get(), &x, &t, &loss));
    CLOSE(loss, expected);
    options.mean_over(10.0).temperature(2.0);
    xent::check(xent_forward(options.get(), &x, &t, &loss));
    expected = 0.0;
    for (size_t i = 0; i < batch.rows; i++) expected += batch.loss(i, 2.0);
    CLOSE(loss, expected / 10.0);

    // What the first two rows have as targets is ignored; with none ignored they count again.
    xent::options some;
    const int64_t first_two[] = {batch.targets[0], batch.targets[1]};
    double kept = 0.0, listed = 0.0, all = 0.0, expected_kept = 0.0, expected_all = 0.0;
    for (size_t i = 0; i < batch.rows; i++) {
        expected_all += batch.loss(i);
        if (batch.targets[i] != first_two[0] && batch.targets[i] != first_two[1]) expected_kept += batch.loss(i);
    }
    some.sum().ignore_indices(first_two, 2);
    xent::check(xent_forward(some.get(), &x, &t, &kept));
    CLOSE(kept, expected_kept);
    some.ignore_indices({first_two[1], -100, first_two[0], first_two[1]});
    xent::check(xent_forward(some.get(), &x, &t, &listed));
    CHECK(listed == kept);
    some.ignore_indices({});
    xent::check(xent_forward(some.get(), &x, &t, &all));
    CLOSE(all, expected_all);

    // A copy is independent; what was moved from is freed without harm.
    xent::options copy(options);
    options.temperature(1.0).mean();
    double of_copy = 0.0;
    xent::check(xent_forward(copy.get(), &x, &t, &of_copy));
    CHECK(of_copy == loss);
    xent::options moved(std::move(copy));
    copy = moved;
    xent::check(xent_forward(copy.get(), &x, &t, &of_copy));
    CHECK(of_copy == loss);

    std::vector<double> weights(batch.classes, 0.5);
    moved.class_weights(xent::floats(weights.data(), weights.size()))
        .label_smoothing(0.1)
        .z_loss(1e-4)
        .logit_scale(0.5)
        .softcap(30.0)
        .softcap_of_all(30.0)
        .no_softcap()
        .no_ignore_index()
        .empty_mean(XENT_EMPTY_MEAN_ZERO)
        .backend(XENT_BACKEND_SCALAR);
    const auto precision = thrown([&] { xent::check(xent_forward(moved.get(), &x, &t, &loss)); });
    CHECK(precision.first == XENT_ERROR_PRECISION);
    std::vector<double> wide(batch.logits.begin(), batch.logits.end());
    const xent_matrix x64 = xent::logits(wide.data(), batch.rows, batch.classes);
    xent::check(xent_forward(moved.get(), &x64, &t, &loss));
    CHECK(std::isfinite(loss));
}

void test_errors(const Batch &batch) {
    xent::options options;
    const auto smoothing = thrown([&] { options.label_smoothing(-0.5); });
    CHECK(smoothing.first == XENT_ERROR_OPTION);
    CHECK(smoothing.second == "label_smoothing = -0.5 is not between 0 and 1");
    const std::vector<int64_t> bad(batch.rows, -5);
    const xent_matrix x = xent::logits(batch.logits.data(), batch.rows, batch.classes);
    const xent_ids t = xent::ids(bad.data(), bad.size());
    const auto target = thrown([&] {
        double loss;
        xent::check(xent_forward(options.get(), &x, &t, &loss));
    });
    CHECK(target.first == XENT_ERROR_TARGET_RANGE);
    CHECK(target.second.find("row 0: target -5 is out of range") == 0);
}

void test_gradient_and_tokens(const Batch &batch) {
    std::vector<float> gradient(batch.logits);
    auto call = xent::sized<xent_call>();
    call.gradient = xent::matrix(gradient.data(), batch.rows, batch.classes);
    call.targets = xent::ids(batch.targets.data(), batch.rows);
    auto evaluation = xent::sized<xent_evaluation>();
    xent::check(xent_forward_backward_in_place(nullptr, &call, 1.0, &evaluation));
    std::vector<float> p(batch.logits.size());
    const xent_matrix x = xent::logits(batch.logits.data(), batch.rows, batch.classes);
    xent::check(xent_softmax(nullptr, &x, nullptr, p.data(), p.size(), XENT_F32));
    for (size_t i = 0; i < batch.rows; i++) {
        const size_t t = static_cast<size_t>(batch.targets[i]), at = i * batch.classes;
        CLOSE(gradient[at + t], (p[at + t] - 1.0) / static_cast<double>(batch.rows));
        CLOSE(gradient[at + (t + 1) % batch.classes],
              p[at + (t + 1) % batch.classes] / static_cast<double>(batch.rows));
    }

    // Next-token targets, and bits of 16-bit logits.
    std::vector<uint16_t> bits;
    for (float logit : batch.logits) bits.push_back(to_bf16(logit));
    std::vector<float> rounded;
    for (uint16_t b : bits) {
        const uint32_t wide = static_cast<uint32_t>(b) << 16;
        float value;
        std::memcpy(&value, &wide, 4);
        rounded.push_back(value);
    }
    double of_bits = 0.0, of_floats = 1.0;
    const xent_ids next = xent::shifted(batch.targets.data(), batch.rows, batch.rows);
    const xent_matrix half = xent::of_bits(XENT_BF16, bits.data(), batch.rows, batch.classes);
    const xent_matrix wide = xent::logits(rounded.data(), batch.rows, batch.classes);
    xent::check(xent_forward(nullptr, &half, &next, &of_bits));
    xent::check(xent_forward(nullptr, &wide, &next, &of_floats));
    CHECK(of_bits == of_floats);

    std::vector<int64_t> top(4 * batch.rows);
    std::vector<float> logprobs(4 * batch.rows);
    auto tokens = xent::sized<xent_token_call>();
    tokens.logits = x;
    tokens.out_len = batch.rows;
    tokens.out_dtype = XENT_F32;
    tokens.top_k = 4;
    tokens.top_ids = top.data();
    tokens.top_logprobs = logprobs.data();
    xent::check(xent_tokens(nullptr, &tokens));
    for (size_t i = 0; i < top.size(); i++) {
        const size_t at = i / 4 * batch.classes + static_cast<size_t>(top[i]);
        CLOSE(logprobs[i], std::log(static_cast<double>(p[at])));
    }
}

// One object of options for many threads; each has its own last error.
void test_threads(const Batch &batch) {
    xent::options options;
    options.threads(3);
    std::vector<double> losses(6);
    std::vector<std::string> messages(losses.size());
    std::vector<std::thread> threads;
    for (size_t i = 0; i < losses.size(); i++) {
        threads.emplace_back([&, i] {
            const xent_matrix x = xent::logits(batch.logits.data(), batch.rows, batch.classes);
            const xent_ids t = xent::ids(batch.targets.data(), batch.rows);
            const xent_ids few = xent::ids(batch.targets.data(), i);
            for (int n = 0; n < 4; n++) {
                xent::check(xent_forward(options.get(), &x, &t, &losses[i]));
                double none;
                messages[i] = thrown([&] { xent::check(xent_forward(options.get(), &x, &few, &none)); }).second;
            }
        });
    }
    for (std::thread &thread : threads) thread.join();
    for (size_t i = 0; i < losses.size(); i++) {
        CHECK(losses[i] == losses[0]);
        CHECK(messages[i].find(std::to_string(i) + " targets for " + std::to_string(batch.rows) + " rows") == 0);
    }
}

} // namespace

int main() {
    const Batch batch(40, 3001);
    test_losses(batch);
    test_errors(batch);
    test_gradient_and_tokens(batch);
    test_threads(batch);
    std::printf("%d checks, %d failures\n", checks, failures);
    return failures != 0;
}
