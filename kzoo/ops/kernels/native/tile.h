// Vectors of floats, products of small matrices, and other functions on small arrays.
//
// Matrices are rows of floats a stride apart; a left factor may be read along either axis.

#pragma once

#include <cstdint>
#include <cstring>
#include <new>

namespace kzoo {

#if defined(__AVX512F__)
constexpr int kBytes = 64, kRows = 12;  // of a vector; of a tile that fits in the registers
#elif defined(__AVX__)
constexpr int kBytes = 32, kRows = 6;
#else
constexpr int kBytes = 16, kRows = 6;
#endif
constexpr int kLanes = kBytes / 4;
constexpr int kMultiple = 16;  // of columns; the vectors of every architecture divide it

typedef float Floats __attribute__((vector_size(kBytes), aligned(4), may_alias));
typedef int32_t Ints __attribute__((vector_size(kBytes), aligned(4), may_alias));

inline Floats load(const float* x) { return *reinterpret_cast<const Floats*>(x); }
inline Ints load(const int32_t* x) { return *reinterpret_cast<const Ints*>(x); }
inline void store(float* x, Floats value) { *reinterpret_cast<Floats*>(x) = value; }

struct Left {  // a[row * rows + k * steps]
  const float* data;
  int64_t rows, steps;
};

struct Right {  // b[k * rows + column]
  const float* data;
  int64_t rows;
};

struct Result {
  float* data;
  int64_t rows;
};

template <int kTile, int kVectors>
inline __attribute__((always_inline)) void tile(int depth, Left a, Right b, Result c, bool add) {
  Floats sums[kTile][kVectors];
  for (int r = 0; r < kTile; ++r)
    for (int n = 0; n < kVectors; ++n)
      sums[r][n] = add ? load(c.data + r * c.rows + n * kLanes) : Floats{};
  for (int k = 0; k < depth; ++k) {
    Floats right[kVectors];
    for (int n = 0; n < kVectors; ++n) right[n] = load(b.data + k * b.rows + n * kLanes);
    for (int r = 0; r < kTile; ++r) {
      const float left = a.data[r * a.rows + k * a.steps];
      for (int n = 0; n < kVectors; ++n) sums[r][n] += left * right[n];
    }
  }
  for (int r = 0; r < kTile; ++r)
    for (int n = 0; n < kVectors; ++n) store(c.data + r * c.rows + n * kLanes, sums[r][n]);
}

template <int kTile, int kVectors>
inline void rest(int rows, int depth, Left a, Right b, Result c, bool add) {
  if constexpr (kTile > 0) {
    if (rows == kTile)
      tile<kTile, kVectors>(depth, a, b, c, add);
    else
      rest<kTile - 1, kVectors>(rows, depth, a, b, c, add);
  }
}

template <int kVectors>
inline void columns(int rows, int depth, Left a, Right b, Result c, bool add) {
  for (; rows >= kRows; rows -= kRows) {
    tile<kRows, kVectors>(depth, a, b, c, add);
    a.data += kRows * a.rows;
    c.data += kRows * c.rows;
  }
  rest<kRows - 1, kVectors>(rows, depth, a, b, c, add);
}

// c = a b, or c += a b. `width`, the columns of b and c, is a multiple of kMultiple.
__attribute__((noinline)) inline void product(int rows, int width, int depth, Left a, Right b,
                                              Result c, bool add) {
  int n = 0;
  for (; n + 2 * kLanes <= width; n += 2 * kLanes)
    columns<2>(rows, depth, a, {b.data + n, b.rows}, {c.data + n, c.rows}, add);
  if (n < width) columns<1>(rows, depth, a, {b.data + n, b.rows}, {c.data + n, c.rows}, add);
}

// out[column * width + row] = x[row * stride + column]; rows up to `width` are zeros.
inline void transpose(int rows, int columns, const float* x, int64_t stride, float* out,
                      int width) {
  for (int r = 0; r < rows; ++r)
    for (int c = 0; c < columns; ++c) out[c * width + r] = x[r * stride + c];
  for (int c = 0; rows < width && c < columns; ++c)
    memset(out + c * width + rows, 0, sizeof(float) * (width - rows));
}

inline void zero(float* x, int64_t size) { memset(x, 0, sizeof(float) * size); }

// Copies rows from one stride to another. What products read repeatedly is made contiguous first,
// since the vectors of one head lie a power of two apart and would evict each other from the cache.
inline void copy(int rows, int columns, const float* x, int64_t stride, float* out,
                 int64_t out_stride) {
  for (int r = 0; r < rows; ++r, x += stride, out += out_stride)
    for (int n = 0; n < columns; n += kLanes) store(out + n, load(x + n));
}

inline int round_up(int x) { return (x + kMultiple - 1) / kMultiple * kMultiple; }

inline float sum(Floats x) {
  float total = 0;
  for (int i = 0; i < kLanes; ++i) total += x[i];
  return total;
}

inline float dot(int size, const float* a, const float* b) {
  Floats sums{};
  for (int i = 0; i < size; i += kLanes) sums += load(a + i) * load(b + i);
  return sum(sums);
}

// e^x for x <= 0, within 2e-7 of its value; e^-87 for x below -87.
inline Floats exponential(Floats x) {
  x = x < -87.0f ? Floats{} - 87.0f : x;
  const Floats shifted = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: rounds to an integer
  const Floats n = shifted - 12582912.0f;
  const Floats r = x - n * 0.693359375f + n * 2.12194440e-4f;
  Floats y = r * 1.9875691500e-4f + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = y * r * r + r + 1.0f;
  return y * (Floats)(((Ints)shifted - 0x4B400000 + 127) << 23);
}

// The working memory of a task.
class Buffer {
 public:
  explicit Buffer(int64_t floats)
      : data_(static_cast<float*>(::operator new(sizeof(float) * floats, kAligned))) {}
  ~Buffer() { ::operator delete(data_, kAligned); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  operator float*() const { return data_; }

 private:
  static constexpr std::align_val_t kAligned{64};
  float* data_;
};

}  // namespace kzoo
