// The handlers that XLA calls: they check their arguments, then divide the work among its threads.

#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>

#include "checks.h"
#include "gated.h"
#include "linear.h"
#include "softmax.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;
namespace {

using kzoo::Checks;
using kzoo::In;
using kzoo::Out;
using Array = ffi::Buffer<ffi::F32>;
using Integers = ffi::Buffer<ffi::S32>;
using Filled = ffi::Result<Array>;
using Flags = ffi::Span<const int32_t>;  // one for each head

// Calls run(task) for every task below `count`. The caller works too. It waits for tasks that other
// threads have begun, but never for a thread to become free.
template <typename Run>
void parallel(ffi::ThreadPool& pool, int64_t count, const Run& run) {
  struct Shared {
    std::atomic<int64_t> next{0};
    int64_t done = 0;
    std::mutex mutex;
    std::condition_variable all;
  };
  const auto shared = std::make_shared<Shared>();
  const auto work = [shared, count, &run] {
    for (int64_t task; (task = shared->next++) < count;) {
      run(task);
      const std::lock_guard<std::mutex> lock(shared->mutex);
      if (++shared->done == count) shared->all.notify_one();
    }
  };
  for (int64_t i = 1; i < std::min(pool.num_threads(), count); ++i)
    pool.Schedule(std::function<void()>(work));
  work();
  std::unique_lock<std::mutex> lock(shared->mutex);
  shared->all.wait(lock, [&] { return shared->done == count; });
}

kzoo::Labels labels(const Integers& x) {
  const auto dims = x.dimensions();
  return {x.typed_data(), dims[0], dims[1], dims[2]};
}

// Heads are numbered through the batch. Where a head begins in [batch, time, heads, dim]:
int64_t begin(const Array& x, int64_t head) {
  const auto dims = x.dimensions();
  return (head / dims[2] * dims[1] * dims[2] + head % dims[2]) * dims[3];
}

const float* at(const Array& x, int64_t head) { return x.typed_data() + begin(x, head); }
float* at(Filled& x, int64_t head) { return x->typed_data() + begin(*x, head); }

// Softmax -----------------------------------------------------------------------------------------

kzoo::Sizes sizes(const Array& q, const Array& v) {
  const auto queries = q.dimensions(), values = v.dimensions();
  return {queries[0], queries[1], values[1], queries[2], queries[3], values[3]};
}

std::vector<kzoo::Visible> visible(const kzoo::Sizes& sizes, const Integers& query_level,
                                   const Integers& query_segment, const Integers& key_level,
                                   const Integers& key_segment) {
  const kzoo::Tokens queries{labels(query_level), labels(query_segment)};
  const kzoo::Tokens keys{labels(key_level), labels(key_segment)};
  std::vector<kzoo::Visible> heads;
  for (int64_t b = 0; b < sizes.batch; ++b)
    for (int64_t h = 0; h < sizes.heads; ++h) heads.emplace_back(queries, keys, b, h);
  return heads;
}

// The arguments that both passes take, and their checks.
Checks check_softmax(const Array& q, const Array& k, const Array& v, const Integers& query_level,
                     const Integers& query_segment, const Integers& key_level,
                     const Integers& key_segment) {
  Checks checks;
  checks.level("q", q.dimensions(), 4);
  checks.level("v", v.dimensions(), 4);
  if (!checks.hold()) return checks;
  const kzoo::Sizes s = sizes(q, v);
  checks.columns("dim", s.dim, kzoo::kMostDim);
  checks.columns("value_dim", s.value_dim, kzoo::kMostDim);
  checks.dims("k", k.dimensions(), {s.batch, s.key_time, s.heads, s.dim});
  checks.dims("v", v.dimensions(), {s.batch, s.key_time, s.heads, s.value_dim});
  checks.dims("query_level", query_level.dimensions(), {s.batch, s.heads, s.query_time}, true);
  checks.dims("query_segment", query_segment.dimensions(), {s.batch, 1, s.query_time}, true);
  checks.dims("key_level", key_level.dimensions(), {s.batch, s.heads, s.key_time}, true);
  checks.dims("key_segment", key_segment.dimensions(), {s.batch, 1, s.key_time}, true);
  return checks;
}

// Whether there is nothing to compute. The number of heads may be huge then, so allocate nothing.
bool empty(const kzoo::Sizes& s) {
  return s.batch == 0 || s.heads == 0 || (s.query_time == 0 && s.key_time == 0);
}

ffi::Error SoftmaxForward(ffi::ThreadPool pool, Array q, Array k, Array v, Integers query_level,
                          Integers query_segment, Integers key_level, Integers key_segment,
                          Filled out, Filled log_total) {
  Checks checks = check_softmax(q, k, v, query_level, query_segment, key_level, key_segment);
  if (!checks.hold()) return checks.error();
  const kzoo::Sizes s = sizes(q, v);
  checks.dims("out", out->dimensions(), {s.batch, s.query_time, s.heads, s.value_dim});
  checks.dims("log_total", log_total->dimensions(), {s.batch, s.heads, s.query_time});
  if (!checks.hold()) return checks.error();
  if (empty(s)) return ffi::Error::Success();
  const auto seen = visible(s, query_level, query_segment, key_level, key_segment);
  const int64_t blocks = (s.query_time + kzoo::kBlock - 1) / kzoo::kBlock;
  parallel(pool, s.batch * s.heads * blocks, [&](int64_t task) {
    // Under a causal mask late queries see the most keys. They go first: no long task is last.
    const int64_t head = task / blocks, block = blocks - 1 - task % blocks;
    kzoo::softmax_forward(s, seen[head], block, at(q, head), at(k, head), at(v, head),
                          at(out, head), log_total->typed_data() + head * s.query_time);
  });
  return ffi::Error::Success();
}

ffi::Error SoftmaxBackward(ffi::ThreadPool pool, Array q, Array k, Array v, Integers query_level,
                           Integers query_segment, Integers key_level, Integers key_segment,
                           Array out, Array log_total, Array slope, Filled dq, Filled dk,
                           Filled dv) {
  Checks checks = check_softmax(q, k, v, query_level, query_segment, key_level, key_segment);
  if (!checks.hold()) return checks.error();
  const kzoo::Sizes s = sizes(q, v);
  checks.dims("out", out.dimensions(), {s.batch, s.query_time, s.heads, s.value_dim});
  checks.dims("log_total", log_total.dimensions(), {s.batch, s.heads, s.query_time});
  checks.dims("slope", slope.dimensions(), {s.batch, s.query_time, s.heads, s.value_dim});
  checks.dims("dq", dq->dimensions(), {s.batch, s.query_time, s.heads, s.dim});
  checks.dims("dk", dk->dimensions(), {s.batch, s.key_time, s.heads, s.dim});
  checks.dims("dv", dv->dimensions(), {s.batch, s.key_time, s.heads, s.value_dim});
  if (!checks.hold()) return checks.error();
  if (empty(s)) return ffi::Error::Success();
  const auto seen = visible(s, query_level, query_segment, key_level, key_segment);
  parallel(pool, s.batch * s.heads, [&](int64_t head) {
    kzoo::softmax_backward(s, seen[head], at(q, head), at(k, head), at(v, head), at(out, head),
                           log_total.typed_data() + head * s.query_time, at(slope, head),
                           at(dq, head), at(dk, head), at(dv, head));
  });
  return ffi::Error::Success();
}

// Linear ------------------------------------------------------------------------------------------

// One head in order of level; a negative stride reverses time.
struct Order {
  int64_t head, time, heads;
  bool reverse;

  Order(int64_t head, const Array& q, Flags reverse)
      : head(head),
        time(q.dimensions()[1]),
        heads(q.dimensions()[2]),
        reverse(reverse[head % heads]) {}

  template <typename T>
  kzoo::Line<T> line(T* first, int64_t stride) const {
    if (!reverse || time == 0) return {first, stride};
    return {first + (time - 1) * stride, -stride};
  }
  In operator()(const Array& x) const { return line(at(x, head), heads * x.dimensions()[3]); }
  Out operator()(Filled& x) const { return line(at(x, head), heads * x->dimensions()[3]); }
  kzoo::Line<const int32_t> operator()(const Integers& x) const {
    return line(labels(x).at(head / heads, head % heads), 1);
  }
  template <typename T>
  kzoo::Line<T> scalars(T* x) const {  // of [batch, heads, time]
    return line(x + head * time, 1);
  }
  template <typename T>
  kzoo::Line<T> by_token(T* x) const {  // of [batch, time, heads]
    return line(x + head / heads * time * heads + head % heads, heads);
  }
};

// The arguments that both passes take, with decays or without, and their checks.
Checks check_linear(const Array& q, const Array& k, const Array& v, const Integers& document,
                    const Integers& level, const Array& matrix, int64_t chunk, Flags reverse) {
  Checks checks;
  checks.level("q", q.dimensions(), 4);
  checks.level("v", v.dimensions(), 4);
  if (!checks.hold()) return checks;
  const kzoo::Sizes s = sizes(q, v);
  checks.columns("features", s.dim, kzoo::kMostFeatures);
  checks.columns("value_dim", s.value_dim, kzoo::kMostDim);
  checks.range("chunk", chunk, 1, kzoo::kMostChunk);
  checks.dims("k", k.dimensions(), {s.batch, s.query_time, s.heads, s.dim});
  checks.dims("v", v.dimensions(), {s.batch, s.query_time, s.heads, s.value_dim});
  checks.dims("document", document.dimensions(), {s.batch, s.heads, s.query_time}, true);
  checks.dims("level", level.dimensions(), {s.batch, s.heads, s.query_time}, true);
  checks.dims("matrix", matrix.dimensions(), {s.batch, s.heads, s.dim, s.value_dim});
  const int64_t flags[] = {static_cast<int64_t>(reverse.size())};
  checks.dims("reverse", Checks::Dims(flags, 1), {s.heads});
  return checks;
}

Checks::Dims dims(const Array& x) { return x.dimensions(); }
Checks::Dims dims(Filled x) { return x->dimensions(); }

// The features of the denominator, or their gradients: the remaining arrays, two of the shape of q,
// or none if they are the same as those of the numerator.
template <typename Type, typename Remaining>
std::pair<Type, Type> both(Checks& checks, Type q, Type k, const Remaining& remaining) {
  if (remaining.size() == 0) return {q, k};
  const auto q_norm = remaining.template get<Array>(0), k_norm = remaining.template get<Array>(1);
  checks.require(remaining.size() == 2 && q_norm.has_value() && k_norm.has_value(), [] {
    return std::string("the normaliser has float32 features of queries and keys, or none");
  });
  if (!checks.hold()) return {q, k};
  checks.dims("q_norm", dims(*q_norm), dims(q));
  checks.dims("k_norm", dims(*k_norm), dims(q));
  return {*q_norm, *k_norm};
}

ffi::Error LinearForward(ffi::ThreadPool pool, Array q, Array k, Array v, Integers document,
                         Integers level, Array matrix, Array vector, ffi::RemainingArgs norms,
                         Filled out, Filled normaliser, Filled matrix_after, Filled vector_after,
                         int64_t chunk, Flags reverse) {
  Checks checks = check_linear(q, k, v, document, level, matrix, chunk, reverse);
  if (!checks.hold()) return checks.error();
  const kzoo::Sizes s = sizes(q, v);
  checks.dims("vector", vector.dimensions(), {s.batch, s.heads, s.dim});
  checks.dims("out", out->dimensions(), v.dimensions());
  checks.dims("normaliser", normaliser->dimensions(), {s.batch, s.heads, s.query_time});
  checks.dims("matrix_after", matrix_after->dimensions(), matrix.dimensions());
  checks.dims("vector_after", vector_after->dimensions(), vector.dimensions());
  const auto norm = both(checks, q, k, norms);
  if (!checks.hold()) return checks.error();
  const int features = s.dim, value_dim = s.value_dim;
  const int64_t state = features * value_dim;
  parallel(pool, q.dimensions()[0] * q.dimensions()[2], [&](int64_t head) {
    const Order order(head, q, reverse);
    const auto chunks = kzoo::cut(order(document), order(level), order.time, chunk);
    float* sums = matrix_after->typed_data() + head * state;
    float* norm_sums = vector_after->typed_data() + head * features;
    std::copy_n(matrix.typed_data() + head * state, state, sums);
    std::copy_n(vector.typed_data() + head * features, features, norm_sums);
    kzoo::linear_forward({features, value_dim, int(chunk), order(q), order(k), order(norm.first),
                          order(norm.second), order(v), order(level), &chunks},
                         order(out), order.scalars(normaliser->typed_data()), sums, norm_sums);
  });
  return ffi::Error::Success();
}

ffi::Error LinearBackward(ffi::ThreadPool pool, Array q, Array k, Array v, Integers document,
                          Integers level, Array matrix, Array vector, Array out, Array normaliser,
                          Array slope, Array matrix_after, Array vector_after,
                          ffi::RemainingArgs norms, Filled dq, Filled dk, Filled dv,
                          Filled matrix_slope, Filled vector_slope, ffi::RemainingRets dnorms,
                          int64_t chunk, Flags reverse) {
  Checks checks = check_linear(q, k, v, document, level, matrix, chunk, reverse);
  if (!checks.hold()) return checks.error();
  const kzoo::Sizes s = sizes(q, v);
  checks.dims("vector", vector.dimensions(), {s.batch, s.heads, s.dim});
  checks.dims("out", out.dimensions(), v.dimensions());
  checks.dims("normaliser", normaliser.dimensions(), {s.batch, s.heads, s.query_time});
  checks.dims("slope", slope.dimensions(), v.dimensions());
  checks.dims("matrix_after", matrix_after.dimensions(), matrix.dimensions());
  checks.dims("vector_after", vector_after.dimensions(), vector.dimensions());
  checks.dims("dq", dq->dimensions(), q.dimensions());
  checks.dims("dk", dk->dimensions(), q.dimensions());
  checks.dims("dv", dv->dimensions(), v.dimensions());
  checks.dims("matrix_slope", matrix_slope->dimensions(), matrix.dimensions());
  checks.dims("vector_slope", vector_slope->dimensions(), vector.dimensions());
  const auto norm = both(checks, q, k, norms);
  auto norm_slopes = both(checks, dq, dk, dnorms);
  checks.require(norms.size() == dnorms.size(), [] {
    return std::string("there is a gradient for each of the features of the normaliser");
  });
  if (!checks.hold()) return checks.error();
  const int features = s.dim, value_dim = s.value_dim;
  const int64_t state = features * value_dim;
  parallel(pool, q.dimensions()[0] * q.dimensions()[2], [&](int64_t head) {
    const Order order(head, q, reverse);
    const auto chunks = kzoo::cut(order(document), order(level), order.time, chunk);
    float* sums = matrix_slope->typed_data() + head * state;
    float* norm_sums = vector_slope->typed_data() + head * features;
    std::copy_n(matrix_after.typed_data() + head * state, state, sums);
    std::copy_n(vector_after.typed_data() + head * features, features, norm_sums);
    const float* normalisers = normaliser.typed_data();
    kzoo::linear_backward({features, value_dim, int(chunk), order(q), order(k),
                           order(norm.first), order(norm.second), order(v), order(level), &chunks},
                          order(out), order.scalars(normalisers), order(slope),
                          matrix.typed_data() + head * state, vector.typed_data() + head * features,
                          sums, norm_sums,
                          {order(dq), order(dk), order(norm_slopes.first),
                           order(norm_slopes.second), order(dv)});
  });
  return ffi::Error::Success();
}

// Linear with decays ------------------------------------------------------------------------------

std::vector<kzoo::Span> spans(const Order& order, const Integers& document, const Integers& level,
                              int64_t chunk) {
  return kzoo::spans(kzoo::cut(order(document), order(level), order.time, chunk), chunk);
}

ffi::Error GatedForward(ffi::ThreadPool pool, Array q, Array k, Array v, Array gates,
                        Integers document, Integers level, Array matrix, Filled out,
                        Filled matrix_after, int64_t chunk, Flags reverse) {
  Checks checks = check_linear(q, k, v, document, level, matrix, chunk, reverse);
  if (!checks.hold()) return checks.error();
  const kzoo::Sizes s = sizes(q, v);
  checks.dims("gates", gates.dimensions(), {s.batch, s.query_time, s.heads});
  checks.dims("out", out->dimensions(), v.dimensions());
  checks.dims("matrix_after", matrix_after->dimensions(), matrix.dimensions());
  if (!checks.hold()) return checks.error();
  const int features = s.dim, value_dim = s.value_dim;
  const int64_t state = features * value_dim;
  parallel(pool, s.batch * s.heads, [&](int64_t head) {
    const Order order(head, q, reverse);
    const auto parts = spans(order, document, level, chunk);
    const float* decays = gates.typed_data();
    float* sums = matrix_after->typed_data() + head * state;
    std::copy_n(matrix.typed_data() + head * state, state, sums);
    kzoo::gated_forward({features, value_dim, int(chunk), order(q), order(k), order(v),
                         order.by_token(decays), order(level), &parts},
                        order(out), sums);
  });
  return ffi::Error::Success();
}

ffi::Error GatedBackward(ffi::ThreadPool pool, Array q, Array k, Array v, Array gates,
                         Integers document, Integers level, Array matrix, Array slope,
                         Array matrix_after, Filled dq, Filled dk, Filled dv, Filled dgates,
                         Filled matrix_slope, int64_t chunk, Flags reverse) {
  Checks checks = check_linear(q, k, v, document, level, matrix, chunk, reverse);
  if (!checks.hold()) return checks.error();
  const kzoo::Sizes s = sizes(q, v);
  checks.dims("gates", gates.dimensions(), {s.batch, s.query_time, s.heads});
  checks.dims("slope", slope.dimensions(), v.dimensions());
  checks.dims("matrix_after", matrix_after.dimensions(), matrix.dimensions());
  checks.dims("dq", dq->dimensions(), q.dimensions());
  checks.dims("dk", dk->dimensions(), q.dimensions());
  checks.dims("dv", dv->dimensions(), v.dimensions());
  checks.dims("dgates", dgates->dimensions(), gates.dimensions());
  checks.dims("matrix_slope", matrix_slope->dimensions(), matrix.dimensions());
  if (!checks.hold()) return checks.error();
  const int features = s.dim, value_dim = s.value_dim;
  const int64_t state = features * value_dim;
  parallel(pool, s.batch * s.heads, [&](int64_t head) {
    const Order order(head, q, reverse);
    const auto parts = spans(order, document, level, chunk);
    float* sums = matrix_slope->typed_data() + head * state;
    std::copy_n(matrix_after.typed_data() + head * state, state, sums);
    const float* decays = gates.typed_data();
    const kzoo::GatedHead inputs{features, value_dim, int(chunk), order(q), order(k), order(v),
                                 order.by_token(decays), order(level), &parts};
    const kzoo::GatedSlopes slopes{order(dq), order(dk), order(dv),
                                   order.by_token(dgates->typed_data())};
    kzoo::GatedBackward(inputs, order(slope), matrix.typed_data() + head * state, slopes).run(sums);
  });
  return ffi::Error::Success();
}

}  // namespace

// clang-format off
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    kzoo_softmax_forward, SoftmaxForward,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>()
        .Arg<Array>().Arg<Array>().Arg<Array>()  // q, k, v
        .Arg<Integers>().Arg<Integers>().Arg<Integers>().Arg<Integers>()  // levels and segments
        .Ret<Array>().Ret<Array>());  // out, log_total
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    kzoo_softmax_backward, SoftmaxBackward,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>()
        .Arg<Array>().Arg<Array>().Arg<Array>()  // q, k, v
        .Arg<Integers>().Arg<Integers>().Arg<Integers>().Arg<Integers>()  // levels and segments
        .Arg<Array>().Arg<Array>().Arg<Array>()  // out, log_total, slope
        .Ret<Array>().Ret<Array>().Ret<Array>());  // of q, k, v
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    kzoo_linear_forward, LinearForward,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>()
        .Arg<Array>().Arg<Array>().Arg<Array>()  // q, k, v
        .Arg<Integers>().Arg<Integers>()  // document, level
        .Arg<Array>().Arg<Array>()  // the state before
        .RemainingArgs()  // q_norm, k_norm
        .Ret<Array>().Ret<Array>()  // out, normaliser
        .Ret<Array>().Ret<Array>()  // the state after
        .Attr<int64_t>("chunk").Attr<Flags>("reverse"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    kzoo_linear_backward, LinearBackward,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>()
        .Arg<Array>().Arg<Array>().Arg<Array>()  // q, k, v
        .Arg<Integers>().Arg<Integers>()  // document, level
        .Arg<Array>().Arg<Array>()  // the state before
        .Arg<Array>().Arg<Array>().Arg<Array>()  // out, normaliser, slope
        .Arg<Array>().Arg<Array>()  // the slope of the state after
        .RemainingArgs()  // q_norm, k_norm
        .Ret<Array>().Ret<Array>().Ret<Array>()  // of q, k, v
        .Ret<Array>().Ret<Array>()  // of the state before
        .RemainingRets()  // of q_norm, k_norm
        .Attr<int64_t>("chunk").Attr<Flags>("reverse"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    kzoo_gated_forward, GatedForward,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>()
        .Arg<Array>().Arg<Array>().Arg<Array>().Arg<Array>()  // q, k, v, gates
        .Arg<Integers>().Arg<Integers>()  // document, level
        .Arg<Array>()  // the state before
        .Ret<Array>().Ret<Array>()  // out, the state after
        .Attr<int64_t>("chunk").Attr<Flags>("reverse"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    kzoo_gated_backward, GatedBackward,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>()
        .Arg<Array>().Arg<Array>().Arg<Array>().Arg<Array>()  // q, k, v, gates
        .Arg<Integers>().Arg<Integers>()  // document, level
        .Arg<Array>()  // the state before
        .Arg<Array>().Arg<Array>()  // slope, that of the state after
        .Ret<Array>().Ret<Array>().Ret<Array>().Ret<Array>()  // of q, k, v, gates
        .Ret<Array>()  // of the state before
        .Attr<int64_t>("chunk").Attr<Flags>("reverse"));
