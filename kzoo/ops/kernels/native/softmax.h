// Softmax attention in blocks that stay in the cache; blocks that the mask hides are skipped.
//
// Forward: Milakov and Gimelshein 2018, arXiv:1805.02867. Backward: the weights are computed again
// from the logarithm of their sums (Dao et al. 2022, arXiv:2205.14135).

#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "tile.h"

namespace kzoo {

constexpr int kBlock = 64;  // queries, or keys, in a block
constexpr float kHidden = -1e30f;

// Integers [batch or 1, heads or 1, time].
struct Labels {
  const int32_t* data;
  int64_t batch, heads, time;

  const int32_t* at(int64_t b, int64_t h) const {
    return data + ((batch == 1 ? 0 : b) * heads + (heads == 1 ? 0 : h)) * time;
  }
};

// A query sees the keys of its own segment (but not of segment 0, padding) whose level is at most
// its own.
struct Tokens {
  Labels level, segment;
};

struct Sizes {
  int64_t batch, query_time, key_time, heads, dim, value_dim;
};

// The least and the greatest label of every block of one head.
struct Ranges {
  std::vector<int32_t> low, high;

  Ranges(const int32_t* labels, int64_t time) {
    for (int64_t t = 0; t < time; t += kBlock) {
      const auto [least, most] =
          std::minmax_element(labels + t, labels + std::min(t + kBlock, time));
      low.push_back(*least);
      high.push_back(*most);
    }
  }
};

// Which pairs of a head's queries and keys are visible.
struct Visible {
  enum Kind { kNone, kSome, kAll };
  const int32_t *query_level, *query_segment, *key_level, *key_segment;
  Ranges query_levels, query_segments, key_levels, key_segments;

  Visible(const Tokens& queries, const Tokens& keys, int64_t b, int64_t h)
      : query_level(queries.level.at(b, h)),
        query_segment(queries.segment.at(b, 0)),
        key_level(keys.level.at(b, h)),
        key_segment(keys.segment.at(b, 0)),
        query_levels(query_level, queries.level.time),
        query_segments(query_segment, queries.level.time),
        key_levels(key_level, keys.level.time),
        key_segments(key_segment, keys.level.time) {}

  Kind blocks(int64_t i, int64_t j) const {
    const int low = key_segments.low[j], high = key_segments.high[j];
    if (key_levels.low[j] > query_levels.high[i] || high == 0) return kNone;
    if (low > query_segments.high[i] || high < query_segments.low[i]) return kNone;
    const bool one = low == high && query_segments.low[i] == low && query_segments.high[i] == low;
    return one && key_levels.high[j] <= query_levels.low[i] ? kAll : kSome;
  }

  // For the query at `t` and a vector of keys from `at` on: -1 where it sees the key, else 0.
  Ints lanes(int64_t t, int64_t at) const {
    const Ints segment = load(key_segment + at);
    return (load(key_level + at) <= query_level[t]) & (segment == query_segment[t]) & (segment != 0);
  }
};

inline void hide(const Visible& visible, int64_t t, int64_t first, int count, int width,
                 Ints* seen) {
  for (int n = 0; n < width; n += kLanes) {
    if (n + kLanes <= count) {
      seen[n / kLanes] = visible.lanes(t, first + n);
      continue;
    }
    for (int lane = 0; lane < kLanes; ++lane) {  // the last key is in this vector
      const int64_t at = first + n + lane;
      const bool see = n + lane < count && visible.key_level[at] <= visible.query_level[t] &&
                       visible.key_segment[at] == visible.query_segment[t] &&
                       visible.key_segment[at] != 0;
      seen[n / kLanes][lane] = see ? -1 : 0;
    }
  }
}

// One block of queries of one head: `out`, and the logarithm of the sum of the exponentials.
inline void softmax_forward(const Sizes& sizes, const Visible& visible, int64_t block,
                            const float* q, const float* k, const float* v, float* out,
                            float* log_total) {
  const int64_t stride = sizes.heads * sizes.dim, value_stride = sizes.heads * sizes.value_dim;
  const int dim = sizes.dim, value_dim = sizes.value_dim;
  const int64_t start = block * kBlock;
  const int rows = std::min<int64_t>(kBlock, sizes.query_time - start);
  const Buffer queries(kBlock * dim), transposed(kBlock * dim), values(kBlock * value_dim);
  const Buffer scores(kBlock * kBlock), sums(kBlock * value_dim);
  float highest[kBlock], total[kBlock];
  std::fill_n(highest, kBlock, kHidden / 2);  // above the scores of hidden keys
  zero(total, kBlock);
  zero(sums, rows * value_dim);
  copy(rows, dim, q + start * stride, stride, queries, dim);
  for (int64_t j = 0, first = 0; first < sizes.key_time; ++j, first += kBlock) {
    const Visible::Kind kind = visible.blocks(block, j);
    if (kind == Visible::kNone) continue;
    const int keys = std::min<int64_t>(kBlock, sizes.key_time - first), width = round_up(keys);
    transpose(keys, dim, k + first * stride, stride, transposed, width);
    product(rows, width, dim, {queries, dim, 1}, {transposed, width}, {scores, kBlock}, false);
    for (int r = 0; r < rows; ++r) {
      float* score = scores + r * kBlock;
      Ints seen[kBlock / kLanes];
      const bool all = kind == Visible::kAll && keys == width;
      if (!all) hide(visible, start + r, first, keys, width, seen);
      Floats most = Floats{} + highest[r];
      for (int n = 0; n < width; n += kLanes) {
        Floats x = load(score + n);
        if (!all) x = seen[n / kLanes] ? x : Floats{} + kHidden;
        most = x > most ? x : most;
      }
      float higher = highest[r];
      for (int lane = 0; lane < kLanes; ++lane) higher = std::max(higher, most[lane]);
      Floats added{};
      for (int n = 0; n < width; n += kLanes) {
        Floats power = exponential(load(score + n) - higher);
        if (!all) power = seen[n / kLanes] ? power : Floats{};
        added += power;
        store(score + n, power);
      }
      if (higher > highest[r]) {
        const float shrink = std::exp(highest[r] - higher);
        total[r] *= shrink;
        for (int n = 0; n < value_dim; n += kLanes)
          store(sums + r * value_dim + n, load(sums + r * value_dim + n) * shrink);
        highest[r] = higher;
      }
      total[r] += sum(added);
    }
    copy(keys, value_dim, v + first * value_stride, value_stride, values, value_dim);
    product(rows, value_dim, keys, {scores, kBlock, 1}, {values, value_dim}, {sums, value_dim},
            true);
  }
  for (int r = 0; r < rows; ++r) {
    const float share = total[r] == 0 ? 0 : 1 / total[r];
    for (int n = 0; n < value_dim; n += kLanes)
      store(out + (start + r) * value_stride + n, load(sums + r * value_dim + n) * share);
    log_total[start + r] = total[r] == 0 ? 0 : highest[r] + std::log(total[r]);
  }
}

// One head: the gradients of its queries, keys and values.
inline void softmax_backward(const Sizes& sizes, const Visible& visible, const float* q,
                             const float* k, const float* v, const float* out,
                             const float* log_total, const float* slope, float* dq, float* dk,
                             float* dv) {
  const int64_t stride = sizes.heads * sizes.dim, value_stride = sizes.heads * sizes.value_dim;
  const int dim = sizes.dim, value_dim = sizes.value_dim;
  const Buffer own(kBlock * dim), transposed(kBlock * dim), transposed_values(kBlock * value_dim);
  const Buffer queries(kBlock * dim), given(kBlock * value_dim);
  const Buffer weights(kBlock * kBlock), slopes(kBlock * kBlock), inner(sizes.query_time);
  for (int64_t t = 0; t < sizes.query_time; ++t) {
    inner[t] = dot(value_dim, out + t * value_stride, slope + t * value_stride);
    zero(dq + t * stride, dim);
  }
  for (int64_t j = 0, first = 0; first < sizes.key_time; ++j, first += kBlock) {
    const int keys = std::min<int64_t>(kBlock, sizes.key_time - first), width = round_up(keys);
    copy(keys, dim, k + first * stride, stride, own, dim);
    transpose(keys, dim, own, dim, transposed, width);
    transpose(keys, value_dim, v + first * value_stride, value_stride, transposed_values, width);
    const Result to_keys{dk + first * stride, stride};
    const Result to_values{dv + first * value_stride, value_stride};
    bool begun = false;
    for (int64_t i = 0, start = 0; start < sizes.query_time; ++i, start += kBlock) {
      const Visible::Kind kind = visible.blocks(i, j);
      if (kind == Visible::kNone) continue;
      const int rows = std::min<int64_t>(kBlock, sizes.query_time - start);
      copy(rows, dim, q + start * stride, stride, queries, dim);
      copy(rows, value_dim, slope + start * value_stride, value_stride, given, value_dim);
      product(rows, width, dim, {queries, dim, 1}, {transposed, width}, {weights, kBlock}, false);
      product(rows, width, value_dim, {given, value_dim, 1}, {transposed_values, width},
              {slopes, kBlock}, false);
      for (int r = 0; r < rows; ++r) {
        Ints seen[kBlock / kLanes];
        const bool all = kind == Visible::kAll && keys == width;
        if (!all) hide(visible, start + r, first, keys, width, seen);
        for (int n = 0; n < width; n += kLanes) {
          Floats weight = exponential(load(weights + r * kBlock + n) - log_total[start + r]);
          if (!all) weight = seen[n / kLanes] ? weight : Floats{};
          store(weights + r * kBlock + n, weight);
          store(slopes + r * kBlock + n,
                weight * (load(slopes + r * kBlock + n) - inner[start + r]));
        }
      }
      product(keys, value_dim, rows, {weights, 1, kBlock}, {given, value_dim}, to_values, begun);
      product(keys, dim, rows, {slopes, 1, kBlock}, {queries, dim}, to_keys, begun);
      product(rows, dim, keys, {slopes, kBlock, 1}, {own, dim}, {dq + start * stride, stride},
              true);
      begun = true;
    }
    for (int r = 0; !begun && r < keys; ++r) {  // keys that no query sees
      zero(to_keys.data + r * stride, dim);
      zero(to_values.data + r * value_stride, value_dim);
    }
  }
}

}  // namespace kzoo
