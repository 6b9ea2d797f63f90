// Keys and values of one head in the pages of a state: written token by token, read in blocks of keys.
#pragma once
#include <cmath>

#include "int8.h"

namespace mfalcon {

constexpr Index kPageStep = 64;   // page_tokens is a multiple of it, and it is one of every panel,
constexpr Index kSmallPage = 32;  // or page_tokens is this, which is one of a panel or half of one

// Keys [0, P::kKeyBlock) of a block or fewer: places where they lie, in order. Piece i of both is the same tokens.
template <class P>
struct KeyBlock {
  static_assert(P::kKeyBlock % kPageStep == 0 && kPageStep % Panels<P>::kPanel == 0);
  Panels<P> keys[P::kKeyBlock / kSmallPage];
  Piece<P> values[P::kKeyBlock / kSmallPage];
  Index value_depth;  // of the panels of values
};

// Room for one block of keys and values that stand in the pages in int8; empty where they do not.
template <class P>
struct BlockSpace {
  using Element = typename P::Element;
  Buffer<Element> keys, values;

  BlockSpace(const Shape& s, bool int8)
      : keys(int8 ? P::kKeyBlock * s.padded_qk : 0), values(int8 ? P::kKeyBlock * s.padded_v : 0) {}
};

// Keys are columns, so that logits are a product; tokens of values are rows.
template <class P>
class HeadPages {
  using Element = typename P::Element;

 public:
  HeadPages(const Stack<P>& stack, MfPages pages, Index layer, Index head)
      : pages_(pages),
        layout_(stack.layout),
        at_(stack.layout.head_at(layer, head)),
        panel_(std::min(Panels<P>::kPanel, layout_.tokens)),
        padded_qk_(stack.shape.padded_qk),
        padded_v_(stack.shape.padded_v) {}

  // Elements [first, last) of one token's key: kStep of them side by side, the next a panel's width on.
  template <class T>
  void put_key(Index token, Index first, Index last, const T* from) const {
    T* at = key<T>(token, first);
    for (Index i = first; i < last; i += P::kStep, at += panel_ * P::kStep) {
      for (int step = 0; step < P::kStep; step++) at[step] = *from++;
    }
  }
  // Elements [first, last) of one token's value, whole vectors.
  template <class T>
  void put_value(Index token, Index first, Index last, const T* from) const {
    for (Index i = first; i < last; i += P::kLanes) {
      T* at = value<T>(token, i);
      for (int lane = 0; lane < P::kLanes; lane++, at += P::kStep) *at = *from++;
    }
  }
  // A whole token, in int8 if the pages are. codes: room for the longer of the two.
  void put(Index token, const Element* k, const Element* v, std::int8_t* codes) const {
    if (!layout_.int8) {
      put_key(token, 0, padded_qk_, k);
      put_value(token, 0, padded_v_, v);
      return;
    }
    *scale(layout_.key_scales_at, token) = quantise<P>(k, padded_qk_, codes);
    put_key(token, 0, padded_qk_, codes);
    *scale(layout_.value_scales_at, token) = quantise<P>(v, padded_v_, codes);
    put_value(token, 0, padded_v_, codes);
  }
  // The first k_dim and v_dim elements of a token.
  void get(Index token, Index k_dim, float* k, Index v_dim, float* v) const {
    if (!layout_.int8) {
      for (Index i = 0; i < k_dim; i++) k[i] = from_element<P>(*key<Element>(token, i));
      for (Index i = 0; i < v_dim; i++) v[i] = from_element<P>(*value<Element>(token, i));
      return;
    }
    const float k_scale = *scale(layout_.key_scales_at, token), v_scale = *scale(layout_.value_scales_at, token);
    for (Index i = 0; i < k_dim; i++) k[i] = static_cast<float>(*key<std::int8_t>(token, i)) * k_scale;
    for (Index i = 0; i < v_dim; i++) v[i] = static_cast<float>(*value<std::int8_t>(token, i)) * v_scale;
  }
  // Tokens of a panel of keys.
  Index panel() const { return panel_; }
  // Whether all numbers of tokens [token, token + count), of one panel of keys, are finite; of codes, all scales.
  bool is_finite(Index token, Index count) const {
    auto not_finite = P::zero();  // 0 or NaN
    const auto look = [&](const Element* from, Index size) {
      for (Index i = 0; i < size; i += P::kLanes) {
        Element lanes[P::kLanes] = {};
        const bool whole = i + P::kLanes <= size;
        if (!whole) std::copy_n(from + i, size - i, lanes);
        not_finite = P::fma(P::load_elements(whole ? from + i : lanes), P::zero(), not_finite);
      }
    };
    if (layout_.int8) {
      const float *of_keys = scale(layout_.key_scales_at, token), *of_values = scale(layout_.value_scales_at, token);
      const auto is = [](float x) { return std::isfinite(x); };
      return std::all_of(of_keys, of_keys + count, is) && std::all_of(of_values, of_values + count, is);
    }
    for (Index i = 0; i < padded_qk_; i += P::kStep) look(key<Element>(token, i), count * P::kStep);
    for (Index i = 0; i < padded_v_; i += Panels<P>::kPanel) {
      const Index width = std::min(Panels<P>::kPanel, padded_v_ - i), stop = token + count;
      for (Index t = token; t < stop;) {
        const bool whole = t % P::kStep == 0 && t + P::kStep <= stop;  // else a neighbour may be nobody's token
        const Element* at = value<Element>(t, i);
        if (whole) look(at, width * P::kStep);
        for (Index column = 0; !whole && column < width; column++) look(at + column * P::kStep, 1);
        t += whole ? P::kStep : 1;
      }
    }
    return P::sum(not_finite) == 0.0f;
  }
  // Tokens [first, first + count), count at most P::kKeyBlock; first is a multiple of kPageStep. From int8 they are
  // written into `space`.
  KeyBlock<P> block(Index first, Index count, const BlockSpace<P>& space) const {
    KeyBlock<P> out;
    out.value_depth = layout_.int8 ? P::kKeyBlock : layout_.tokens;
    int i = 0;
    for (Index done = 0; done < count; i++) {
      const Index page = (first + done) / layout_.tokens, skip = (first + done) % layout_.tokens;
      const Index room = std::min(layout_.tokens - skip, P::kKeyBlock - done);  // of whole steps and panels
      if (layout_.int8) {
        const Index here = std::min(room, count - done);
        dequantise_keys<P>(keys<std::int8_t>(page) + skip * padded_qk_, panel_,
                           scale(layout_.key_scales_at, first + done), padded_qk_, here, space.keys.get(), done);
        dequantise_values<P>(values<std::int8_t>(page), layout_.tokens, skip,
                             scale(layout_.value_scales_at, first + done), padded_v_, here, space.values.get(),
                             P::kKeyBlock, done);
      } else {
        out.keys[i] = {keys<Element>(page) + skip * padded_qk_, padded_qk_, room};
        out.values[i] = {values<Element>(page), skip, room / P::kStep};
      }
      done += room;
    }
    if (layout_.int8) {
      out.keys[0] = {space.keys.get(), padded_qk_, P::kKeyBlock};
      out.values[0] = {space.values.get(), 0, P::kKeyBlock / P::kStep};
    }
    return out;
  }

  // Tokens [0, count) as they stand, to pages of another size. What shares a panel of 32 with them comes along.
  void copy_to(const HeadPages& to, Index count) const {
    layout_.int8 ? copy_elements<std::int8_t>(to, count) : copy_elements<Element>(to, count);
    for (Index t = 0; t < count && layout_.int8; t++) {
      *to.scale(to.layout_.key_scales_at, t) = *scale(layout_.key_scales_at, t);
      *to.scale(to.layout_.value_scales_at, t) = *scale(layout_.value_scales_at, t);
    }
  }

 private:
  template <class T>
  void copy_elements(const HeadPages& to, Index count) const {
    const Index panel = std::min(panel_, to.panel_);  // a part of every page and of every panel of either
    for (Index t = 0; t < count; t += panel) {
      for (Index i = 0; i < padded_qk_; i += P::kStep) std::copy_n(key<T>(t, i), panel * P::kStep, to.key<T>(t, i));
      for (Index i = 0; i < padded_v_; i += Panels<P>::kPanel) {
        std::copy_n(value<T>(t, i), panel * std::min(Panels<P>::kPanel, padded_v_ - i), to.value<T>(t, i));
      }
    }
  }
  template <class T>
  T* in_page(Index page, Index offset) const {
    return reinterpret_cast<T*>(static_cast<std::byte*>(pages_[page]) + at_ + offset);
  }
  template <class T>
  T* keys(Index page) const {
    return in_page<T>(page, 0);
  }
  template <class T>
  T* values(Index page) const {
    return in_page<T>(page, layout_.values_at);
  }
  template <class T>
  T* key(Index token, Index i) const {
    return keys<T>(token / layout_.tokens) +
           panel_offset<P>(padded_qk_, layout_.tokens, i, token % layout_.tokens);
  }
  template <class T>
  T* value(Index token, Index i) const {
    return values<T>(token / layout_.tokens) + panel_offset<P>(layout_.tokens, padded_v_, token % layout_.tokens, i);
  }
  float* scale(Index scales_at, Index token) const {
    return in_page<float>(token / layout_.tokens, scales_at) + token % layout_.tokens;
  }

  MfPages pages_;
  const PageLayout& layout_;
  Index at_, panel_, padded_qk_, padded_v_;
};

// Times of the first `count` tokens, from all pages.
inline std::vector<std::int64_t> gather_times(const PageLayout& layout, MfPages pages, Index count) {
  std::vector<std::int64_t> times(count);
  for (Index first = 0; first < count; first += layout.tokens) {
    const auto* from = static_cast<const std::int64_t*>(pages[first / layout.tokens]);
    std::copy_n(from, std::min(layout.tokens, count - first), times.data() + first);
  }
  return times;
}

// The first `count` tokens with their times as they stand, to pages of another size.
template <class P>
void copy_tokens(const Stack<P>& stack, MfPages pages, const Stack<P>& other, MfPages to, Index count) {
  const auto times = gather_times(stack.layout, pages, count);
  for (Index first = 0; first < count; first += other.layout.tokens) {
    const Index here = std::min(other.layout.tokens, count - first);
    std::copy_n(times.data() + first, here, static_cast<std::int64_t*>(to[first / other.layout.tokens]));
  }
  for (Index layer = 0; layer < stack.shape.layers; layer++) {
    for (Index head = 0; head < stack.shape.heads; head++) {
      HeadPages<P>(stack, pages, layer, head).copy_to(HeadPages<P>(other, to, layer, head), count);
    }
  }
}

// Plain keys and values of a layer, tokens from `first` on, into pages. Throws std::bad_alloc.
template <class P>
void write_plain(const Stack<P>& stack, MfPages pages, Index layer, Index first, const float* k, const float* v,
                 Index tokens) {
  const Shape& s = stack.shape;
  const auto size = static_cast<std::size_t>(std::max(s.padded_qk, s.padded_v));
  std::vector<typename P::Element> key(size), value(size);  // the padding stays zero
  std::vector<std::int8_t> codes(size);
  for (Index head = 0; head < s.heads; head++) {
    const HeadPages<P> kv(stack, pages, layer, head);
    for (Index t = 0; t < tokens; t++) {
      const float *from_k = k + (head * tokens + t) * s.qk_dim, *from_v = v + (head * tokens + t) * s.v_dim;
      std::transform(from_k, from_k + s.qk_dim, key.begin(), to_element<P>);
      std::transform(from_v, from_v + s.v_dim, value.begin(), to_element<P>);
      kv.put(first + t, key.data(), value.data(), codes.data());
    }
  }
}

// The inverse.
template <class P>
void read_plain(const Stack<P>& stack, MfPages pages, Index layer, Index first, float* k, float* v, Index tokens) {
  const Shape& s = stack.shape;
  for (Index head = 0; head < s.heads; head++) {
    const HeadPages<P> kv(stack, pages, layer, head);
    for (Index t = 0; t < tokens; t++) {
      kv.get(first + t, s.qk_dim, k + (head * tokens + t) * s.qk_dim, s.v_dim, v + (head * tokens + t) * s.v_dim);
    }
  }
}

// Whether all keys and values of a layer's tokens from `first` on are finite.
template <class P>
bool is_finite(const Stack<P>& stack, MfPages pages, Index layer, Index first, Index tokens) {
  for (Index head = 0; head < stack.shape.heads; head++) {
    const HeadPages<P> kv(stack, pages, layer, head);
    for (Index t = first; t < first + tokens;) {
      const Index count = std::min(kv.panel() - t % kv.panel(), first + tokens - t);
      if (!kv.is_finite(t, count)) return false;
      t += count;
    }
  }
  return true;
}

}  // namespace mfalcon
