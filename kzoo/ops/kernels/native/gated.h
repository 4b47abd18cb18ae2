// Linear attention whose weights decay with distance, in chunks, with one state that decays from
// chunk to chunk (Yang et al. 2023, arXiv:2312.06635, section 4.4, with a gate for each token).
//
// The gates between a key and a query are the query's and those of all tokens between the two: over
// (key, query] where the key stands before the query, over [query, key) where it stands behind. A
// decay is the exponential of such a sum, added up gate by gate: a difference of two cumulative
// sums would lose what is small beside what stands before it.
//
// Keys before a query are scanned forward in time. Keys behind it, which only groups of equal level
// have, are scanned backward, from the end of the group.

#pragma once

#include <algorithm>
#include <vector>

#include "linear.h"
#include "tile.h"

namespace kzoo {

// A chunk, or a part of a group that is longer than a chunk, which has parts ahead of this one and
// behind it.
struct Span : Chunk {
  bool ahead, behind;
};

inline std::vector<Span> spans(const std::vector<Chunk>& chunks, int size) {
  std::vector<Span> out;
  for (const Chunk& chunk : chunks) {
    const int64_t length = chunk.group ? size : chunk.end - chunk.start;
    for (int64_t t = chunk.start; t < chunk.end; t += length) {
      const int64_t end = std::min(chunk.end, t + length);
      const bool first = t == chunk.start;
      out.push_back({{t, end, chunk.begins && first, chunk.group}, !first, end < chunk.end});
    }
  }
  return out;
}

struct GatedHead {
  int features, value_dim, size;  // `size` of a chunk
  In q, k, v, gates;
  Line<const int32_t> level;
  const std::vector<Span>* spans;

  int state() const { return features * value_dim; }
};

// e^x for x <= 0; 0 where it would leave float32.
inline Floats decay(Floats x) { return x < -87.0f ? Floats{} : exponential(x); }

inline void scale(int size, float factor, float* x) {
  for (int n = 0; n < size; n += kLanes) store(x + n, load(x + n) * factor);
}

inline void scale_rows(int rows, int columns, const float* factors, float* x) {
  for (int r = 0; r < rows; ++r) scale(columns, factors[r], x + r * columns);
}

// to = factor * from + xᵀ y, or xᵀ y where there is no `from`; x and y have `count` rows.
inline void carry(const float* from, float factor, int count, const float* x, int rows,
                  const float* y, int columns, float* to) {
  if (from)
    for (int n = 0; n < rows * columns; n += kLanes) store(to + n, load(from + n) * factor);
  product(rows, columns, count, {x, 1, rows}, {y, columns}, {to, columns}, from != nullptr);
}

// The decays of a span.
class Decays {
 public:
  explicit Decays(int size)
      : first(round_up(size + 1)),
        rest(round_up(size + 1)),
        pairs(size * round_up(size)),
        gates_(size),
        sums_(round_up(size)) {}

  const Buffer first, rest;  // through the first n tokens of the span; through all after these
  const Buffer pairs;        // between key and query, 0 where hidden: rows of queries
  int count, width;          // of the tokens; of the rows
  bool shared;               // whether queries see keys behind them in the span

  float across() const { return first[count]; }

  // All but `pairs`.
  void ends(const GatedHead& head, const Span& span) {
    count = span.end - span.start;
    width = round_up(count);
    const int size = round_up(count + 1);
    zero(first, size);
    zero(rest, size);
    for (int n = 0; n < count; ++n) {
      gates_[n] = *head.gates.at(span.start + n);
      first[n + 1] = first[n] + gates_[n];
    }
    for (int n = count - 1; n >= 0; --n) rest[n] = rest[n + 1] + gates_[n];
    for (int n = 0; n < size; n += kLanes) {
      store(first + n, decay(load(first + n)));
      store(rest + n, decay(load(rest + n)));
    }
  }

  void all(const GatedHead& head, const Span& span) {
    ends(head, span);
    shared = false;
    std::fill_n(static_cast<float*>(sums_), width, kHidden);
    for (int i = 0; i < count; ++i) {
      float* row = pairs + i * width;
      sums_[i] = -gates_[i];  // with the gate it is 0
      int n = 0;
      for (; n <= i; n += kLanes) {
        store(sums_ + n, load(sums_ + n) + gates_[i]);
        store(row + n, decay(load(sums_ + n)));
      }
      zero(row + n, width - n);
    }
    for (int i = count - 1; i >= 0; --i) {
      const int64_t t = span.start + i;
      if (i + 1 == count || *head.level.at(t) != *head.level.at(t + 1)) {
        std::fill_n(static_cast<float*>(sums_), width, kHidden);
        continue;
      }
      shared = true;
      sums_[i + 1] = 0;
      float* row = pairs + i * width;
      for (int n = (i + 1) / kLanes * kLanes; n < width; n += kLanes) {
        store(sums_ + n, load(sums_ + n) + gates_[i]);
        store(row + n, load(row + n) + decay(load(sums_ + n)));
      }
    }
  }

 private:
  static constexpr float kHidden = -1e30f;  // no sum of gates is so low
  const Buffer gates_, sums_;               // from each key to the query of the row
};

// weights[i][j] = x_i y_j, in rows as those of the pairs.
inline void products(const Decays& decays, const float* x, const float* y, int dim, float* turned,
                     float* weights) {
  transpose(decays.count, dim, y, dim, turned, decays.width);
  product(decays.count, decays.width, dim, {x, dim, 1}, {turned, decays.width},
          {weights, decays.width}, false);
}

// Whatever a hidden pair's weight is, even no number, it becomes 0.
inline Floats seen(Floats weight, Floats decay) { return decay == 0.0f ? Floats{} : weight; }

// `state` is kv_state before all tokens, which becomes that after them.
inline void gated_forward(const GatedHead& head, Out out, float* state) {
  const int features = head.features, value_dim = head.value_dim, size = head.size;
  Decays decays(size);
  const Buffer turned(features * round_up(size));
  const Buffer weights(size * round_up(size));
  const Buffer queries(size * features);
  const Buffer keys(size * features);
  const Buffer values(size * value_dim);
  const Buffer sums(size * value_dim);
  const Buffer behind(head.state());

  // Backward in time: what a group's later parts give to its earlier ones.
  for (int64_t s = head.spans->size() - 1; s >= 0; --s) {
    const Span& span = (*head.spans)[s];
    if (!span.ahead && !span.behind) continue;
    decays.ends(head, span);
    if (span.behind) {
      fetch(span, head.q, features, queries);
      product(decays.count, value_dim, features, {queries, features, 1}, {behind, value_dim},
              {sums, value_dim}, false);
      scale_rows(decays.count, value_dim, decays.rest, sums);
      put(span, sums, value_dim, out);
    }
    if (span.ahead) {
      fetch(span, head.k, features, keys);
      fetch(span, head.v, value_dim, values);
      scale_rows(decays.count, features, decays.first, keys);
      carry(span.behind ? static_cast<float*>(behind) : nullptr, decays.across(), decays.count, keys, features, values,
            value_dim, behind);
    }
  }

  for (const Span& span : *head.spans) {
    if (span.begins && span.start > 0) zero(state, head.state());
    decays.all(head, span);
    const int count = decays.count, width = decays.width;
    fetch(span, head.q, features, queries);
    fetch(span, head.k, features, keys);
    fetch(span, head.v, value_dim, values);
    product(count, value_dim, features, {queries, features, 1}, {state, value_dim},
            {sums, value_dim}, false);
    scale_rows(count, value_dim, decays.first + 1, sums);
    if (span.behind)
      for (int i = 0; i < count; ++i)
        add(value_dim, 1, out.at(span.start + i), sums + i * value_dim);
    products(decays, queries, keys, features, turned, weights);
    for (int n = 0; n < count * width; n += kLanes) {
      const Floats factor = load(decays.pairs + n);
      store(weights + n, seen(load(weights + n), factor) * factor);
    }
    product(count, value_dim, count, {weights, width, 1}, {values, value_dim}, {sums, value_dim},
            true);
    put(span, sums, value_dim, out);
    scale_rows(count, features, decays.rest + 1, keys);
    carry(state, decays.across(), count, keys, features, values, value_dim, state);
  }
}

// Transposed states at the spans that have one, [value_dim, features] each.
class States {
 public:
  States(std::vector<bool> has, int64_t size)
      : index_(has.size()), size_(size), states_(place(has) * size) {}

  float* operator[](int64_t span) const {
    return index_[span] < 0 ? nullptr : states_ + index_[span] * size_;
  }

 private:
  int64_t place(const std::vector<bool>& has) {
    int64_t count = 0;
    for (size_t s = 0; s < has.size(); ++s) index_[s] = has[s] ? count++ : -1;
    return count;
  }

  std::vector<int64_t> index_;
  int64_t size_;
  Buffer states_;
};

struct GatedSlopes {  // gradients of `GatedHead`
  Out q, k, v, gates;
};

// The gradient of a head.
class GatedBackward {
 public:
  // `state` is kv_state before all tokens.
  GatedBackward(const GatedHead& head, In slope, const float* state, const GatedSlopes& to)
      : head_(head),
        slope_(slope),
        to_(to),
        decays_(head.size),
        queries_(head.size * features()),
        keys_(head.size * features()),
        values_(head.size * value_dim()),
        slopes_(head.size * value_dim()),
        weights_(head.size * round_up(head.size)),
        weight_slopes_(head.size * round_up(head.size)),
        gathered_(head.size * most()),
        turned_(most() * round_up(head.size)),
        turned_state_(head.state()),
        group_slope_(head.state()),
        column_(round_up(head.size)),
        gates_(head.size),
        before_(starts(), head.state()),
        behind_(continues(), head.state()) {
    gather_states(state);
  }

  // `state_slope` is the gradient of the state after all tokens, which becomes that of the state
  // before them.
  void run(float* state_slope) {
    for (int64_t s = count() - 1; s >= 0; --s) {
      own(s, state_slope);
      if (span(s).begins && s > 0) zero(state_slope, head_.state());
    }
    for (int64_t s = 0; s < count(); ++s)
      if (span(s).ahead || span(s).behind) of_group(s);
  }

 private:
  int features() const { return head_.features; }
  int value_dim() const { return head_.value_dim; }
  int most() const { return std::max(features(), value_dim()); }
  int64_t count() const { return head_.spans->size(); }
  const Span& span(int64_t s) const { return (*head_.spans)[s]; }

  std::vector<bool> starts() const {  // the spans that see a state before them
    std::vector<bool> out;
    for (const Span& span : *head_.spans) out.push_back(out.empty() || !span.begins);
    return out;
  }

  std::vector<bool> continues() const {  // those that see one behind them
    std::vector<bool> out;
    for (const Span& span : *head_.spans) out.push_back(span.behind);
    return out;
  }

  // to = the decayed state `from` and the keys of a span, decayed by `factors`.
  void advance(const Span& span, const float* from, const float* factors, float* to) {
    fetch(span, head_.k, features(), keys_);
    fetch(span, head_.v, value_dim(), values_);
    scale_rows(decays_.count, features(), factors, keys_);
    carry(from, decays_.across(), decays_.count, values_, value_dim(), keys_, features(), to);
  }

  void gather_states(const float* state) {
    if (count() == 0) return;
    transpose(features(), value_dim(), state, value_dim(), before_[0], features());
    for (int64_t s = 0; s + 1 < count(); ++s) {
      if (!before_[s + 1]) continue;
      decays_.ends(head_, span(s));
      advance(span(s), before_[s], decays_.rest + 1, before_[s + 1]);
    }
    for (int64_t s = count() - 1; s > 0; --s) {
      if (!behind_[s - 1]) continue;
      decays_.ends(head_, span(s));
      advance(span(s), behind_[s], decays_.first, behind_[s - 1]);
    }
  }

  // gathered = x times a state, each row decayed, of which the products with y go to `dots`.
  void from_state(const float* x, int dim, const float* state, const float* factors, const float* y,
                  int columns, float* gathered, float* dots) {
    product(decays_.count, columns, dim, {x, dim, 1}, {state, columns}, {gathered, columns}, false);
    scale_rows(decays_.count, columns, factors, gathered);
    for (int i = 0; y && i < decays_.count; ++i)
      dots[i] = dot(columns, y + i * columns, gathered + i * columns);
  }

  void fetch_all(const Span& span) {
    fetch(span, head_.q, features(), queries_);
    fetch(span, head_.k, features(), keys_);
    fetch(span, head_.v, value_dim(), values_);
    fetch(span, slope_, value_dim(), slopes_);
  }

  // gates += what pairs with one token before the span or in it add: from the first to the last,
  // or from the last to the first, each gate gets the sum of those that it stands between.
  void add_forth(const float* dots, int shift) {
    float total = 0;
    for (int n = 0; n + shift < decays_.count; ++n) gates_[n + shift] += total += dots[n];
  }
  void add_back(const float* dots, int shift) {
    float total = 0;
    for (int n = decays_.count - 1; n >= shift; --n) gates_[n - shift] += total += dots[n];
  }
  void add_everywhere(const float* state, const float* slope) {
    const float total = decays_.across() * dot(head_.state(), state, slope);
    for (int n = 0; n < decays_.count; ++n) gates_[n] += total;
  }

  // All that concerns the pairs of a span, and the keys before it.
  void own(int64_t s, float* state_slope) {
    const int count = span(s).end - span(s).start, width = round_up(count);
    decays_.all(head_, span(s));
    fetch_all(span(s));
    std::fill_n(static_cast<float*>(gates_), count, 0.0f);
    products(decays_, queries_, keys_, features(), turned_, weights_);
    products(decays_, slopes_, values_, value_dim(), turned_, weight_slopes_);
    of_pairs();

    of_queries(s);
    product(count, features(), count, {weight_slopes_, width, 1}, {keys_, features()},
            {gathered_, features()}, true);
    put(span(s), gathered_, features(), to_.q);

    transpose(features(), value_dim(), state_slope, value_dim(), turned_state_, features());
    if (before_[s]) add_everywhere(before_[s], turned_state_);
    from_state(values_, value_dim(), turned_state_, decays_.rest + 1, keys_, features(), gathered_,
               column_);
    add_forth(column_, 1);
    product(count, features(), count, {weight_slopes_, 1, width}, {queries_, features()},
            {gathered_, features()}, true);
    put(span(s), gathered_, features(), to_.k);

    from_state(keys_, features(), state_slope, decays_.rest + 1, nullptr, value_dim(), gathered_,
               nullptr);
    product(count, value_dim(), count, {weights_, 1, width}, {slopes_, value_dim()},
            {gathered_, value_dim()}, true);
    put(span(s), gathered_, value_dim(), to_.v);

    scale_rows(count, features(), decays_.first + 1, queries_);
    carry(state_slope, decays_.across(), count, queries_, features(), slopes_, value_dim(),
          state_slope);
    for (int n = 0; n < count; ++n) *to_.gates.at(span(s).start + n) = gates_[n];
  }

  // gathered = what the states before a span and behind it give to the gradient of its queries.
  void of_queries(int64_t s) {
    zero(gathered_, decays_.count * features());
    if (before_[s]) {
      from_state(slopes_, value_dim(), before_[s], decays_.first + 1, queries_, features(),
                 gathered_, column_);
      add_back(column_, 0);
    }
    if (behind_[s]) {
      from_state(slopes_, value_dim(), behind_[s], decays_.rest, queries_, features(), turned_,
                 column_);
      add_forth(column_, 0);
      add(decays_.count * features(), 1, turned_, gathered_);
    }
  }

  // Decays weights and their slopes, and adds to each gate what the pairs on its two sides give.
  void of_pairs() {
    const int count = decays_.count, width = decays_.width;
    float* both = decays_.pairs;  // becomes the slope of the logarithm of each decay
    for (int n = 0; n < count * width; n += kLanes) {
      const Floats factor = load(both + n), weight = seen(load(weights_ + n), factor) * factor;
      const Floats slope = seen(load(weight_slopes_ + n), factor);
      store(weights_ + n, weight);
      store(weight_slopes_ + n, slope * factor);
      store(both + n, weight * slope);
    }
    zero(column_, width);  // sums over the queries from the gate on, of each key
    for (int i = count - 1; i > 0; --i) {
      add((i + kLanes - 1) / kLanes * kLanes, 1, both + i * width, column_);
      const int whole = i / kLanes * kLanes;
      Floats total{};
      for (int n = 0; n < whole; n += kLanes) total += load(column_ + n);
      for (int n = whole; n < i; ++n) gates_[i] += column_[n];
      gates_[i] += sum(total);
    }
    if (!decays_.shared) return;
    zero(column_, width);  // sums over the queries up to the gate
    for (int i = 0; i + 1 < count; ++i) {
      const int begin = (i + 1) / kLanes * kLanes, whole = begin + kLanes;
      add(width - begin, 1, both + i * width + begin, column_ + begin);
      for (int n = i + 1; n < whole; ++n) gates_[i] += column_[n];
      Floats total{};
      for (int n = whole; n < width; n += kLanes) total += load(column_ + n);
      gates_[i] += sum(total);
    }
  }

  // What the queries of a group's earlier parts give to the keys of a later one.
  void of_group(int64_t s) {
    decays_.ends(head_, span(s));
    const int count = decays_.count;
    fetch_all(span(s));
    if (span(s).ahead) {
      for (int n = 0; n < count; ++n) gates_[n] = *to_.gates.at(span(s).start + n);
      transpose(features(), value_dim(), group_slope_, value_dim(), turned_state_, features());
      if (behind_[s]) add_everywhere(behind_[s], turned_state_);
      from_state(values_, value_dim(), turned_state_, decays_.first, keys_, features(), gathered_,
                 column_);
      add_back(column_, 1);
      for (int n = 0; n < count; ++n) {
        add(features(), 1, gathered_ + n * features(), to_.k.at(span(s).start + n));
        *to_.gates.at(span(s).start + n) = gates_[n];
      }
      from_state(keys_, features(), group_slope_, decays_.first, nullptr, value_dim(), gathered_,
                 nullptr);
      for (int n = 0; n < count; ++n)
        add(value_dim(), 1, gathered_ + n * value_dim(), to_.v.at(span(s).start + n));
    }
    if (!span(s).behind) return;
    scale_rows(count, features(), decays_.rest, queries_);
    carry(span(s).ahead ? static_cast<float*>(group_slope_) : nullptr, decays_.across(), count, queries_, features(),
          slopes_, value_dim(), group_slope_);
  }

  const GatedHead& head_;
  const In slope_;
  const GatedSlopes& to_;
  Decays decays_;
  const Buffer queries_, keys_, values_, slopes_;
  const Buffer weights_, weight_slopes_;
  const Buffer gathered_, turned_, turned_state_, group_slope_;
  const Buffer column_, gates_;  // one float for each token
  const States before_, behind_;
};

}  // namespace kzoo
