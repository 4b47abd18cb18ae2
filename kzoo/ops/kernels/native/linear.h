// Linear attention in chunks, with one state that is updated from chunk to chunk.
//
// The gradient goes through time twice, forward for queries and backward for keys and values, since
// it consists of sums in these directions (Katharopoulos et al. 2020, arXiv:2006.16236, section
// 3.3.1). So no state is stored.

#pragma once

#include <algorithm>
#include <vector>

#include "tile.h"

namespace kzoo {

// One head, in order of level: `at(t)` is data + t * stride, and a negative stride reverses time.
template <typename T>
struct Line {
  T* data;
  int64_t stride;

  T* at(int64_t t) const { return data + t * stride; }
};

typedef Line<const float> In;
typedef Line<float> Out;

// A span of time in one document: whole groups of equal level that together are no longer than a
// chunk, or one longer group.
struct Chunk {
  int64_t start, end;
  bool begins, group;  // it begins its document; it is a single group
};

inline std::vector<Chunk> cut(Line<const int32_t> document, Line<const int32_t> level, int64_t time,
                              int size) {
  std::vector<Chunk> chunks;
  for (int64_t t = 0, end; t < time; t = end) {
    for (end = t + 1;
         end < time && *level.at(end) == *level.at(t) && *document.at(end) == *document.at(t);)
      ++end;
    const bool begins = t == 0 || *document.at(t) != *document.at(t - 1), group = end - t > size;
    if (begins || group || chunks.back().group || end - chunks.back().start > size)
      chunks.push_back({t, end, begins, group});
    else
      chunks.back().end = end;
  }
  return chunks;
}

struct Head {
  int features, value_dim, size;  // `size` of a chunk
  In q, k, q_norm, k_norm, v;     // q_norm and k_norm: the features in the denominator
  Line<const int32_t> level;
  const std::vector<Chunk>* chunks;
};

inline void add(int size, float factor, const float* x, float* sum) {
  for (int n = 0; n < size; n += kLanes) store(sum + n, load(sum + n) + factor * load(x + n));
}

// Copies the vectors of a span of time to contiguous memory, and back.
inline void fetch(const Chunk& part, In x, int dim, float* out) {
  copy(part.end - part.start, dim, x.at(part.start), x.stride, out, dim);
}

inline void put(const Chunk& part, const float* from, int dim, Out x) {
  copy(part.end - part.start, dim, from, dim, x.at(part.start), x.stride);
}

// The part of a chunk that is computed at once: all of it, or `size` tokens of a long group.
template <typename Work>
void each_part(const Chunk& chunk, int size, const Work& work) {
  for (int64_t t = chunk.start; t < chunk.end; t += size)
    work(Chunk{t, std::min<int64_t>(chunk.end, t + size), false, chunk.group});
}

// The end of t's group of equal levels, and its start.
inline int64_t group_end(const Head& head, const Chunk& chunk, int64_t t) {
  int64_t end = chunk.group ? chunk.end : t + 1;
  while (end < chunk.end && *head.level.at(end) == *head.level.at(t)) ++end;
  return end;
}

inline int64_t group_start(const Head& head, const Chunk& chunk, int64_t t) {
  int64_t start = chunk.group ? chunk.start : t;
  while (start > chunk.start && *head.level.at(start - 1) == *head.level.at(t)) --start;
  return start;
}

// weights[i][j] = x_i y_j if j's level is at most i's, else 0. Its rows are `width` apart.
inline void pairs(const Head& head, const Chunk& chunk, const float* x, const float* y, int dim,
                  float* turned, float* weights, int width) {
  const int count = chunk.end - chunk.start;
  transpose(count, dim, y, dim, turned, width);
  product(count, width, dim, {x, dim, 1}, {turned, width}, {weights, width}, false);
  for (int64_t t = chunk.start, end; t < chunk.end; t = end) {
    end = group_end(head, chunk, t);
    for (int64_t i = t - chunk.start; i < end - chunk.start; ++i)
      std::fill(weights + i * width + end - chunk.start, weights + (i + 1) * width, 0.0f);
  }
}

// `out` and `normaliser` (the denominator) of one head. `matrix` and `vector` are kv_state and
// k_sum: the state before all tokens, which becomes that after them.
inline void linear_forward(const Head& head, Out out, Out normaliser, float* matrix,
                           float* vector) {
  const int features = head.features, value_dim = head.value_dim, size = head.size;
  const Buffer turned(features * round_up(size));
  const Buffer weights(size * round_up(size));
  const Buffer queries(size * features);
  const Buffer keys(size * features);
  const Buffer values(size * value_dim);
  const Buffer sums(size * value_dim);
  const Buffer local(features);
  for (const Chunk& chunk : *head.chunks) {
    if (chunk.begins && chunk.start > 0) {
      zero(matrix, features * value_dim);
      zero(vector, features);
    }
    const auto gather = [&](const Chunk& part) {
      product(features, value_dim, part.end - part.start, {keys, 1, features}, {values, value_dim},
              {matrix, value_dim}, true);
    };
    if (chunk.group)
      each_part(chunk, size, [&](const Chunk& part) {
        fetch(part, head.k, features, keys);
        fetch(part, head.v, value_dim, values);
        gather(part);
      });
    zero(local, features);
    int64_t met = chunk.start;  // the end of the keys in `local`
    each_part(chunk, size, [&](const Chunk& part) {
      const int count = part.end - part.start;
      fetch(part, head.q, features, queries);
      if (!chunk.group) {
        fetch(part, head.k, features, keys);
        fetch(part, head.v, value_dim, values);
        const int width = round_up(count);
        pairs(head, part, queries, keys, features, turned, weights, width);
        product(count, value_dim, count, {weights, width, 1}, {values, value_dim},
                {sums, value_dim}, false);
      }
      product(count, value_dim, features, {queries, features, 1}, {matrix, value_dim},
              {sums, value_dim}, !chunk.group);
      for (int64_t t = part.start; t < part.end; ++t) {
        for (const int64_t end = t < met ? met : group_end(head, chunk, t); met < end; ++met)
          add(features, 1, head.k_norm.at(met), local);
        const float* query = head.q_norm.at(t);
        const float total = dot(features, query, vector) + dot(features, query, local);
        const float share = total > 0 ? 1 / total : 0;
        *normaliser.at(t) = total;
        for (int n = 0; n < value_dim; n += kLanes)
          store(out.at(t) + n, load(sums + (t - part.start) * value_dim + n) * share);
      }
    });
    if (!chunk.group) gather(chunk);
    add(features, 1, local, vector);
  }
}

struct Slopes {  // gradients of `Head`; q_norm and k_norm may share the memory of q and k
  Out q, k, q_norm, k_norm, v;
};

// `matrix` and `vector` are kv_state and k_sum before all tokens. `matrix_slope` and `vector_slope`
// are the gradient of the state after all tokens, which becomes that of the state before them.
inline void linear_backward(const Head& head, In out, In normaliser, In slope, const float* matrix,
                            const float* vector, float* matrix_slope, float* vector_slope,
                            const Slopes& to) {
  const int features = head.features, value_dim = head.value_dim, size = head.size;
  const bool apart = to.q.data != to.q_norm.data;
  const Buffer turned(std::max(features, value_dim) * round_up(size));
  const Buffer weights(size * round_up(size));
  const Buffer queries(size * features);
  const Buffer keys(size * features);
  const Buffer values(size * value_dim);
  const Buffer shares(size * value_dim);  // slope / normaliser
  const Buffer of_normaliser(size);       // the gradient of the denominator
  const Buffer gathered(size * std::max(features, value_dim));
  const Buffer turned_state(value_dim * features);
  const Buffer sums(features);
  const Buffer local(features);
  const auto fetch_shares = [&](const Chunk& part) {
    for (int64_t t = part.start; t < part.end; ++t) {
      const float total = *normaliser.at(t), share = total > 0 ? 1 / total : 0;
      float* row = shares + (t - part.start) * value_dim;
      for (int n = 0; n < value_dim; n += kLanes) store(row + n, load(slope.at(t) + n) * share);
      of_normaliser[t - part.start] = -dot(value_dim, row, out.at(t));
    }
  };

  // Forward in time: the gradients of queries.
  transpose(features, value_dim, matrix, value_dim, turned_state, features);
  copy(1, features, vector, features, sums, features);
  for (const Chunk& chunk : *head.chunks) {
    if (chunk.begins && chunk.start > 0) {
      zero(turned_state, features * value_dim);
      zero(sums, features);
    }
    const auto gather = [&](const Chunk& part) {
      product(value_dim, features, part.end - part.start, {values, 1, value_dim}, {keys, features},
              {turned_state, features}, true);
    };
    if (chunk.group)
      each_part(chunk, size, [&](const Chunk& part) {
        fetch(part, head.k, features, keys);
        fetch(part, head.v, value_dim, values);
        gather(part);
      });
    zero(local, features);
    int64_t met = chunk.start;  // the end of the keys in `local`
    each_part(chunk, size, [&](const Chunk& part) {
      const int count = part.end - part.start;
      fetch_shares(part);
      if (!chunk.group) {
        fetch(part, head.k, features, keys);
        fetch(part, head.v, value_dim, values);
        const int width = round_up(count);
        pairs(head, part, shares, values, value_dim, turned, weights, width);
        product(count, features, count, {weights, width, 1}, {keys, features}, {gathered, features},
                false);
      }
      product(count, features, value_dim, {shares, value_dim, 1}, {turned_state, features},
              {gathered, features}, !chunk.group);
      put(part, gathered, features, to.q);
      for (int64_t t = part.start; t < part.end; ++t) {
        for (const int64_t end = t < met ? met : group_end(head, chunk, t); met < end; ++met)
          add(features, 1, head.k_norm.at(met), local);
        if (apart) zero(to.q_norm.at(t), features);
        add(features, of_normaliser[t - part.start], sums, to.q_norm.at(t));
        add(features, of_normaliser[t - part.start], local, to.q_norm.at(t));
      }
    });
    if (!chunk.group) gather(chunk);
    add(features, 1, local, sums);
  }

  // Backward in time: the gradients of keys and values.
  for (int64_t c = head.chunks->size() - 1; c >= 0; --c) {
    const Chunk& chunk = (*head.chunks)[c];
    const auto gather = [&](const Chunk& part) {
      product(features, value_dim, part.end - part.start, {queries, 1, features},
              {shares, value_dim}, {matrix_slope, value_dim}, true);
    };
    zero(local, features);
    if (chunk.group)
      each_part(chunk, size, [&](const Chunk& part) {
        fetch(part, head.q, features, queries);
        fetch_shares(part);
        gather(part);
        for (int64_t t = part.start; t < part.end; ++t)
          add(features, of_normaliser[t - part.start], head.q_norm.at(t), local);
      });
    transpose(features, value_dim, matrix_slope, value_dim, turned_state, features);
    each_part(chunk, size, [&](const Chunk& part) {
      const int count = part.end - part.start, width = round_up(count);
      fetch(part, head.k, features, keys);
      fetch(part, head.v, value_dim, values);
      if (!chunk.group) {
        fetch(part, head.q, features, queries);
        fetch_shares(part);
        pairs(head, part, shares, values, value_dim, turned, weights, width);
        product(count, features, count, {weights, 1, width}, {queries, features},
                {gathered, features}, false);
      }
      product(count, features, value_dim, {values, value_dim, 1}, {turned_state, features},
              {gathered, features}, !chunk.group);
      put(part, gathered, features, to.k);
      if (!chunk.group) {
        pairs(head, part, queries, keys, features, turned, weights, width);
        product(count, value_dim, count, {weights, 1, width}, {shares, value_dim},
                {gathered, value_dim}, false);
      }
      product(count, value_dim, features, {keys, features, 1}, {matrix_slope, value_dim},
              {gathered, value_dim}, !chunk.group);
      put(part, gathered, value_dim, to.v);
    });
    if (!chunk.group) gather(chunk);
    int64_t met = chunk.group ? chunk.start : chunk.end;  // the first of the queries in `local`
    for (int64_t t = chunk.end - 1; t >= chunk.start; --t) {
      for (const int64_t start = t < met ? group_start(head, chunk, t) : met; met > start;) {
        --met;
        add(features, of_normaliser[met - chunk.start], head.q_norm.at(met), local);
      }
      if (apart) zero(to.k_norm.at(t), features);
      add(features, 1, vector_slope, to.k_norm.at(t));
      add(features, 1, local, to.k_norm.at(t));
    }
    add(features, 1, local, vector_slope);
    if (chunk.begins && chunk.start > 0) {
      zero(matrix_slope, features * value_dim);
      zero(vector_slope, features);
    }
  }
}

}  // namespace kzoo
