/* xent for C++11: errors as exceptions, options that free themselves, structures filled in. Everything else is that of xent.h.
 *
 * Licence: MIT OR Apache-2.0
 */
#ifndef XENT_HPP
#define XENT_HPP

#include "xent.h"

#include <initializer_list>
#include <stdexcept>
#include <type_traits>

namespace xent {

/** What a call was refused for: the text names row and value. */
class error : public std::runtime_error {
public:
    explicit error(xent_status status) : std::runtime_error(xent_last_error_message()), status_(status) {}

    xent_status status() const noexcept { return status_; }

private:
    xent_status status_;
};

/** Throws unless a call was fine: `xent::check(xent_forward(..))`. */
inline void check(xent_status status) {
    if (status != XENT_OK) throw error(status);
}

/** The `xent_dtype` of a type. 16-bit types have no C++ type: make an `xent_matrix` with `of_bits`. */
template <class T> struct dtype;
template <> struct dtype<float> { static constexpr int32_t value = XENT_F32; };
template <> struct dtype<double> { static constexpr int32_t value = XENT_F64; };

/** The `xent_id_dtype` of a type. */
template <class T> struct id_dtype {
    static_assert(std::is_integral<T>::value && (sizeof(T) == 4 || sizeof(T) == 8), "ids have 32 or 64 bits");
    static constexpr int32_t value = sizeof(T) == 4 ? (std::is_signed<T>::value ? XENT_I32 : XENT_U32)
                                                    : (std::is_signed<T>::value ? XENT_I64 : XENT_U64);
};

/** `[rows, classes]` logits; `row_stride` 0: rows next to each other. */
template <class T>
inline xent_matrix logits(const T *data, size_t rows, size_t classes, size_t row_stride = 0) {
    xent_matrix m = {};
    m.data = data;
    m.rows = rows;
    m.classes = classes;
    m.row_stride = row_stride;
    m.dtype = dtype<T>::value;
    return m;
}

/** Logits of which there are the bits, of `XENT_BF16` or `XENT_F16`. */
inline xent_matrix of_bits(int32_t dtype, const uint16_t *data, size_t rows, size_t classes, size_t row_stride = 0) {
    xent_matrix m = {};
    m.data = data;
    m.rows = rows;
    m.classes = classes;
    m.row_stride = row_stride;
    m.dtype = dtype;
    return m;
}

/** A matrix to be written. */
template <class T>
inline xent_matrix_mut matrix(T *data, size_t rows, size_t classes, size_t row_stride = 0) {
    xent_matrix_mut m = {};
    m.data = data;
    m.rows = rows;
    m.classes = classes;
    m.row_stride = row_stride;
    m.dtype = dtype<T>::value;
    return m;
}

/** Class ids. */
template <class T> inline xent_ids ids(const T *data, size_t len) {
    xent_ids t = {};
    t.data = data;
    t.len = len;
    t.dtype = id_dtype<T>::value;
    return t;
}

/** Tokens as they went into the model, each row predicting the one that is `shift` places later. */
template <class T> inline xent_ids shifted(const T *data, size_t len, size_t sequence, size_t shift = 1) {
    xent_ids t = ids(data, len);
    t.sequence = sequence;
    t.shift = shift;
    return t;
}

/** Weights. */
template <class T> inline xent_floats floats(const T *data, size_t len) {
    xent_floats f = {};
    f.data = data;
    f.len = len;
    f.dtype = dtype<T>::value;
    return f;
}

/** An `xent_call`, `xent_token_call`, .. with its size set and all else 0. */
template <class T> inline T sized() {
    T value = {};
    value.size = sizeof(T);
    return value;
}

/** Options, freed at the end. Setters can be chained; an invalid value throws and changes nothing. */
class options {
public:
    options() : handle_(nullptr) { check(xent_options_new(&handle_)); }
    options(const options &other) : handle_(nullptr) { check(xent_options_clone(other.handle_, &handle_)); }
    options(options &&other) noexcept : handle_(other.handle_) { other.handle_ = nullptr; }
    options &operator=(options other) noexcept {
        xent_options *handle = handle_;
        handle_ = other.handle_;
        other.handle_ = handle;
        return *this;
    }
    ~options() { xent_options_free(handle_); }

    /** For functions of xent.h. */
    const xent_options *get() const noexcept { return handle_; }

    options &ignore_index(int64_t index) { return done(xent_options_set_ignore_index(handle_, index)); }
    options &ignore_indices(const int64_t *ids, size_t len) {
        return done(xent_options_set_ignore_indices(handle_, ids, len));
    }
    options &ignore_indices(std::initializer_list<int64_t> ids) { return ignore_indices(ids.begin(), ids.size()); }
    options &no_ignore_index() { return done(xent_options_set_no_ignore_index(handle_)); }
    options &sum() { return done(xent_options_set_reduction(handle_, XENT_SUM, 0.0)); }
    options &mean() { return done(xent_options_set_reduction(handle_, XENT_MEAN, 0.0)); }
    options &mean_over(double count) { return done(xent_options_set_reduction(handle_, XENT_MEAN_OVER, count)); }
    options &empty_mean(int32_t what) { return done(xent_options_set_empty_mean(handle_, what)); }
    options &label_smoothing(double e) { return done(xent_options_set_label_smoothing(handle_, e)); }
    options &class_weights(const xent_floats &weights) {
        return done(xent_options_set_class_weights(handle_, &weights));
    }
    options &z_loss(double factor) { return done(xent_options_set_z_loss(handle_, factor)); }
    options &logit_scale(double scale) { return done(xent_options_set_logit_scale(handle_, scale)); }
    options &temperature(double t) { return done(xent_options_set_temperature(handle_, t)); }
    options &softcap(double c) { return done(xent_options_set_softcap(handle_, c)); }
    options &softcap_of_all(double c) { return done(xent_options_set_softcap_of_all(handle_, c)); }
    options &no_softcap() { return done(xent_options_set_no_softcap(handle_)); }
    options &threads(size_t n) { return done(xent_options_set_threads(handle_, n)); }
    options &backend(int32_t backend) { return done(xent_options_set_backend(handle_, backend)); }

private:
    options &done(xent_status status) {
        check(status);
        return *this;
    }

    xent_options *handle_;
};

} // namespace xent

#endif
