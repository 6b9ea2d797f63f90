// The weights of a stack in the layout of a policy, packed once; and where things lie in rows and pages.
#pragma once
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

#include "abi.h"
#include "product.h"
#include "rotary.h"

namespace mfalcon {

inline Index round_up(Index x, Index step) { return (x + step - 1) / step * step; }

template <class P>
inline typename P::Element to_element(float x) {
  typename P::Element lanes[P::kLanes];
  P::store_elements(lanes, P::set(x));
  return lanes[0];
}

template <class P>
inline float from_element(typename P::Element x) {
  typename P::Element elements[P::kLanes] = {x};
  float lanes[P::kLanes];
  P::store(lanes, P::load_elements(elements));
  return lanes[0];
}

// Memory aligned to a cache line; throws std::bad_alloc.
template <class T>
class Buffer {
 public:
  explicit Buffer(Index size) : memory_(static_cast<T*>(std::aligned_alloc(64, round_up(size * sizeof(T) + 1, 64)))) {
    if (!memory_) throw std::bad_alloc();
  }
  static Buffer zeros(Index size) {
    Buffer buffer(size);
    std::fill_n(buffer.get(), size, T{});
    return buffer;
  }
  T* get() const { return memory_.get(); }

 private:
  struct Free {
    void operator()(T* p) const { std::free(p); }
  };
  std::unique_ptr<T, Free> memory_;
};

// Sizes of a stack. A head is padded to whole vectors, so a row of projections is [u | q | v | k] of padded heads, and
// all that the last layer of a prefix needs (v, k) stands together at the end.
struct Shape {
  Index layers, heads, dim, qk_dim, v_dim;
  Index padded_dim, padded_qk, padded_v;
  Index q0, v0, k0, columns;  // first column of each in a row of projections; u starts at 0
  Index out_depth;            // of the output projection: one or three times v_width
  Index num_positions, num_buckets;
  bool activate_all, concat, softmax;
  float attention_scale, logit_scale, norm_eps;

  Shape(const MfConfig& c, Index lanes)
      : layers(c.num_layers),
        heads(c.num_heads),
        dim(c.dim),
        qk_dim(c.qk_dim),
        v_dim(c.v_dim),
        padded_dim(round_up(c.dim, lanes)),
        padded_qk(round_up(c.qk_dim, lanes)),
        padded_v(round_up(c.v_dim, lanes)),
        q0(heads * padded_v),
        v0(q0 + heads * padded_qk),
        k0(v0 + heads * padded_v),
        columns(k0 + heads * padded_qk),
        out_depth((c.concat ? 3 : 1) * heads * padded_v),
        num_positions(c.num_positions),
        num_buckets(c.num_buckets),
        activate_all(c.activate_all != 0),
        concat(c.concat != 0),
        softmax(c.softmax != 0),
        attention_scale(static_cast<float>(1.0 / c.attention_norm)),
        logit_scale(static_cast<float>(c.logit_scale)),
        norm_eps(static_cast<float>(c.norm_eps)) {}

  Index v_width() const { return heads * padded_v; }
};

// Where things lie in a page, in bytes; see MfPages.
struct PageLayout {
  Index tokens, heads;
  bool int8;
  Index values_at, key_scales_at, value_scales_at, head_bytes;  // within a head, which begins with its keys
  Index bytes;

  PageLayout(const Shape& s, Index page_tokens, bool in_int8, Index element_bytes)
      : tokens(page_tokens),
        heads(s.heads),
        int8(in_int8),
        values_at(tokens * s.padded_qk * (int8 ? 1 : element_bytes)),
        key_scales_at(values_at + tokens * s.padded_v * (int8 ? 1 : element_bytes)),
        value_scales_at(key_scales_at + (int8 ? tokens * Index{sizeof(float)} : 0)),
        head_bytes(value_scales_at + (int8 ? tokens * Index{sizeof(float)} : 0)),
        bytes(head_at(s.layers, 0)) {}

  Index head_at(Index layer, Index head) const {
    return tokens * Index{sizeof(std::int64_t)} + (layer * heads + head) * head_bytes;
  }
};

// Affine LayerNorm over padded columns: `valid` is 1 on true columns and 0 on padding, as are weight and bias there.
struct Norm {
  Buffer<float> valid, weight, bias;
  Index columns;
  float count;
};

// rab of one layer. Distances run backwards, so that ascending keys read ascending memory; see bias.h.
struct RelativeBias {
  Buffer<float> position;  // [heads, position_stride]
  Buffer<float> time;      // [heads, num_buckets + 1]
  Index position_stride;
};

// What a layer's tokens see of a prefix; see MfLayer.
struct Reach {
  static constexpr Index kAll = Index{1} << 40;
  Index tokens, targets, first;

  explicit Reach(const MfLayer& w)
      : tokens(w.reach_tokens < 0 ? kAll : w.reach_tokens),
        targets(w.reach_tokens < 0 ? kAll : w.reach_targets),
        first(w.reach_first) {}
};

template <class P>
struct Layer {
  using Element = typename P::Element;
  Norm norm_in, norm_out;
  Buffer<Element> uvqk, output;
  Buffer<float> uvqk_bias, output_bias;
  RelativeBias bias;
  Reach reach;
};

template <class P>
struct Stack {
  Shape shape;
  PageLayout layout;
  std::vector<std::int64_t> thresholds;
  Rotary rotary;
  std::shared_ptr<const std::vector<Layer<P>>> packed;
  const std::vector<Layer<P>>& layers;

  Stack(const MfConfig& config, const MfLayer* weights, const std::int64_t* bounds);
  // The same weights over pages of another size.
  Stack(const Stack& other, Index page_tokens)
      : shape(other.shape),
        layout(shape, page_tokens, other.layout.int8, sizeof(typename P::Element)),
        thresholds(other.thresholds),
        rotary(other.rotary),
        packed(other.packed),
        layers(*packed) {}

  Panels<P> uvqk(Index layer) const { return {layers[layer].uvqk.get(), shape.padded_dim, shape.columns}; }
  Panels<P> output(Index layer) const { return {layers[layer].output.get(), shape.out_depth, shape.padded_dim}; }
};

}  // namespace mfalcon
