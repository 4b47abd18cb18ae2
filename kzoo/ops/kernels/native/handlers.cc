// The calls that XLA makes, their operands checked in Python: tasks shared out over its threads.

#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>

#include "linear.h"
#include "softmax.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;
namespace {

using kzoo::In;
using kzoo::Out;
using Array = ffi::Buffer<ffi::F32>;
using Integers = ffi::Buffer<ffi::S32>;
using Filled = ffi::Result<Array>;
using Flags = ffi::Span<const int32_t>;  // one for each head

// run(task) for every task below `count`. The caller works too, and waits for tasks that others
// have begun: never for a thread to become free.
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
  for (int64_t i = 1; i < std::min(pool.num_threads(), count); ++i) pool.Schedule(std::function<void()>(work));
  work();
  std::unique_lock<std::mutex> lock(shared->mutex);
  shared->all.wait(lock, [&] { return shared->done == count; });
}

kzoo::Labels labels(const Integers& x) {
  const auto dims = x.dimensions();
  return {x.typed_data(), dims[0], dims[1], dims[2]};
}

kzoo::Sizes sizes(const Array& q, const Array& k, const Array& v) {
  const auto queries = q.dimensions(), values = v.dimensions();
  return {queries[0], queries[1], values[1], queries[2], queries[3], values[3]};
}

std::vector<kzoo::Visible> visible(const kzoo::Sizes& sizes, const Integers& query_rank,
                                   const Integers& query_segment, const Integers& key_rank,
                                   const Integers& key_segment) {
  std::vector<kzoo::Visible> heads;
  for (int64_t b = 0; b < sizes.batch; ++b)
    for (int64_t h = 0; h < sizes.heads; ++h)
      heads.emplace_back(kzoo::Places{labels(query_rank), labels(query_segment)},
                         kzoo::Places{labels(key_rank), labels(key_segment)}, b, h);
  return heads;
}

// Where one head of one example begins in [batch, time, heads, dim].
int64_t begin(int64_t b, int64_t h, int64_t time, int64_t heads, int64_t dim) {
  return (b * time * heads + h) * dim;
}

ffi::Error SoftmaxForward(ffi::ThreadPool pool, Array q, Array k, Array v, Integers query_rank,
                          Integers query_segment, Integers key_rank, Integers key_segment,
                          Filled out, Filled log_total) {
  const kzoo::Sizes s = sizes(q, k, v);
  const auto seen = visible(s, query_rank, query_segment, key_rank, key_segment);
  const int64_t blocks = (s.query_time + kzoo::kBlock - 1) / kzoo::kBlock;
  parallel(pool, s.batch * s.heads * blocks, [&](int64_t task) {
    const int64_t head = task / blocks, b = head / s.heads, h = head % s.heads;
    const int64_t keys = begin(b, h, s.key_time, s.heads, s.dim);
    // Late queries see most under a causal mask: they go first, so that none is waited for.
    kzoo::softmax_forward(
        s, seen[head], blocks - 1 - task % blocks,
        q.typed_data() + begin(b, h, s.query_time, s.heads, s.dim), k.typed_data() + keys,
        v.typed_data() + begin(b, h, s.key_time, s.heads, s.value_dim),
        out->typed_data() + begin(b, h, s.query_time, s.heads, s.value_dim),
        log_total->typed_data() + head * s.query_time);
  });
  return ffi::Error::Success();
}

ffi::Error SoftmaxBackward(ffi::ThreadPool pool, Array q, Array k, Array v, Integers query_rank,
                           Integers query_segment, Integers key_rank, Integers key_segment,
                           Array out, Array log_total, Array slope, Filled dq, Filled dk,
                           Filled dv) {
  const kzoo::Sizes s = sizes(q, k, v);
  const auto seen = visible(s, query_rank, query_segment, key_rank, key_segment);
  parallel(pool, s.batch * s.heads, [&](int64_t head) {
    const int64_t b = head / s.heads, h = head % s.heads;
    const int64_t queries = begin(b, h, s.query_time, s.heads, s.dim);
    const int64_t keys = begin(b, h, s.key_time, s.heads, s.dim);
    const int64_t values = begin(b, h, s.key_time, s.heads, s.value_dim);
    const int64_t outs = begin(b, h, s.query_time, s.heads, s.value_dim);
    kzoo::softmax_backward(s, seen[head], q.typed_data() + queries, k.typed_data() + keys,
                           v.typed_data() + values, out.typed_data() + outs,
                           log_total.typed_data() + head * s.query_time, slope.typed_data() + outs,
                           dq->typed_data() + queries, dk->typed_data() + keys,
                           dv->typed_data() + values);
  });
  return ffi::Error::Success();
}

// One head of one example of a call, in the order of rank.
class Order {
 public:
  Order(const Array& q, int64_t head, Flags reverse)
      : time_(q.dimensions()[1]),
        heads_(q.dimensions()[2]),
        b_(head / heads_),
        h_(head % heads_),
        reverse_(reverse[h_]) {}

  In operator()(const Array& x) const { return line(const_cast<const float*>(x.typed_data()), dim(x)); }
  Out operator()(Filled& x) const { return line(x->typed_data(), dim(*x)); }
  template <typename T>
  kzoo::Line<T> of_heads(T* x) const {  // [batch, heads, time]
    x += (b_ * heads_ + h_) * time_;
    return {reverse_ ? x + time_ - 1 : x, reverse_ ? -1 : 1};
  }
  kzoo::Line<const int32_t> operator()(const Integers& x) const {
    const int32_t* row = labels(x).row(b_, h_);
    return {reverse_ ? row + time_ - 1 : row, reverse_ ? -1 : 1};
  }

 private:
  static int64_t dim(const Array& x) { return x.dimensions()[3]; }

  template <typename T>
  kzoo::Line<T> line(T* x, int64_t dim) const {
    x += begin(b_, h_, time_, heads_, dim);
    const int64_t stride = heads_ * dim;
    return {reverse_ ? x + (time_ - 1) * stride : x, reverse_ ? -stride : stride};
  }

  int64_t time_, heads_, b_, h_;
  bool reverse_;
};

// What remains of the operands: the features of the normaliser, if they are others.
Array norm(const Array& x, ffi::RemainingArgs& norms, int i) {
  return norms.size() ? *norms.get<Array>(i) : x;
}

ffi::Error LinearForward(ffi::ThreadPool pool, Array q, Array k, Array v, Integers document,
                         Integers rank, Array matrix, Array vector, ffi::RemainingArgs norms,
                         Filled out, Filled normaliser, Filled matrix_after, Filled vector_after,
                         int64_t chunk, Flags reverse) {
  const int64_t time = q.dimensions()[1];
  const int features = q.dimensions()[3], value_dim = v.dimensions()[3];
  const Array q_norm = norm(q, norms, 0), k_norm = norm(k, norms, 1);
  parallel(pool, q.dimensions()[0] * q.dimensions()[2], [&](int64_t task) {
    const Order order(q, task, reverse);
    const auto chunks = kzoo::cut(order(document), order(rank), time, chunk);
    const kzoo::Head head{features,      value_dim,     int(chunk), order(q),    order(k),
                          order(q_norm), order(k_norm), order(v),   order(rank), &chunks};
    float* sums = matrix_after->typed_data() + task * features * value_dim;
    float* norms = vector_after->typed_data() + task * features;
    std::copy_n(matrix.typed_data() + task * features * value_dim, features * value_dim, sums);
    std::copy_n(vector.typed_data() + task * features, features, norms);
    kzoo::linear_forward(head, order(out), order.of_heads(normaliser->typed_data()), sums, norms);
  });
  return ffi::Error::Success();
}

ffi::Error LinearBackward(ffi::ThreadPool pool, Array q, Array k, Array v, Integers document,
                          Integers rank, Array matrix, Array vector, Array out, Array normaliser,
                          Array slope, Array matrix_after, Array vector_after,
                          ffi::RemainingArgs norms, Filled dq, Filled dk, Filled dv,
                          Filled matrix_slope, Filled vector_slope, ffi::RemainingRets dnorms,
                          int64_t chunk, Flags reverse) {
  const int64_t time = q.dimensions()[1];
  const int features = q.dimensions()[3], value_dim = v.dimensions()[3];
  const Array q_norm = norm(q, norms, 0), k_norm = norm(k, norms, 1);
  Filled dq_norm = dnorms.size() ? *dnorms.get<Array>(0) : dq;
  Filled dk_norm = dnorms.size() ? *dnorms.get<Array>(1) : dk;
  const int64_t state = features * value_dim;
  parallel(pool, q.dimensions()[0] * q.dimensions()[2], [&](int64_t task) {
    const Order order(q, task, reverse);
    const auto chunks = kzoo::cut(order(document), order(rank), time, chunk);
    const kzoo::Head head{features,      value_dim,     int(chunk), order(q),    order(k),
                          order(q_norm), order(k_norm), order(v),   order(rank), &chunks};
    const kzoo::Slopes to{order(dq), order(dk), order(dq_norm), order(dk_norm), order(dv)};
    float* sums = matrix_slope->typed_data() + task * state;
    float* norms = vector_slope->typed_data() + task * features;
    std::copy_n(matrix_after.typed_data() + task * state, state, sums);
    std::copy_n(vector_after.typed_data() + task * features, features, norms);
    const float* normalisers = normaliser.typed_data();
    kzoo::linear_backward(head, order(out), order.of_heads(normalisers), order(slope),
                          matrix.typed_data() + task * state, vector.typed_data() + task * features,
                          sums, norms, to);
  });
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(kzoo_softmax_forward, SoftmaxForward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Arg<Integers>()
                                  .Arg<Integers>()
                                  .Arg<Integers>()
                                  .Arg<Integers>()
                                  .Ret<Array>()
                                  .Ret<Array>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(kzoo_softmax_backward, SoftmaxBackward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Arg<Integers>()
                                  .Arg<Integers>()
                                  .Arg<Integers>()
                                  .Arg<Integers>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Ret<Array>()
                                  .Ret<Array>()
                                  .Ret<Array>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(kzoo_linear_forward, LinearForward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Arg<Integers>()
                                  .Arg<Integers>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .RemainingArgs()
                                  .Ret<Array>()
                                  .Ret<Array>()
                                  .Ret<Array>()
                                  .Ret<Array>()
                                  .Attr<int64_t>("chunk")
                                  .Attr<Flags>("reverse"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(kzoo_linear_backward, LinearBackward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Arg<Integers>()
                                  .Arg<Integers>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .RemainingArgs()
                                  .Ret<Array>()
                                  .Ret<Array>()
                                  .Ret<Array>()
                                  .Ret<Array>()
                                  .Ret<Array>()
                                  .RemainingRets()
                                  .Attr<int64_t>("chunk")
                                  .Attr<Flags>("reverse"));
