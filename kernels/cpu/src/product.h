// The one matrix product of the kernel: a few rows times packed panels of columns, sums in registers.
#pragma once
#include <algorithm>
#include <cstdint>

namespace mfalcon {

using Index = std::int64_t;

constexpr int kTileRows = 6;

// A matrix [depth, columns] in panels of `kPanel` columns, each [depth / kStep][width][kStep]. Columns are a multiple
// of the vector's lanes; the last panel may be narrower.
template <class P>
struct Panels {
  static constexpr Index kPanel = P::kLanes * P::kPanelVectors;
  const typename P::Element* data;
  Index depth;
  Index columns;
};

// Offset of element (row, column) in such a matrix.
template <class P>
inline Index panel_offset(Index depth, Index columns, Index row, Index column) {
  constexpr Index kPanel = Panels<P>::kPanel;
  const Index first = column / kPanel * kPanel;
  const Index width = std::min(kPanel, columns - first);
  return first * depth + (row / P::kStep * width + column - first) * P::kStep + row % P::kStep;
}

// Rows of such a matrix that lie in one place: `steps` steps, from row `skip` of the panels at `data`.
template <class P>
struct Piece {
  const typename P::Element* data;
  Index skip;  // a multiple of kStep
  Index steps;
};

// Columns [column, column + Groups * Vectors * lanes) of rows a times the pieces of b, which have `steps` steps or
// more. Init gives a sum its start, Done takes it. offset: from a piece's data to these columns. width: of their
// panels. Steps four at a time: the end of a loop of 64 is foreseen too seldom (up to 9% of a score).
template <class P, int Rows, int Vectors, int Groups, class Init, class Done>
[[gnu::always_inline]] inline void tile(const typename P::Element* a, Index a_stride, const Piece<P>* piece,
                                        Index steps, Index offset, Index width, Index group_stride, Index column,
                                        Init init, Done done) {
  constexpr int kColumns = Groups * Vectors;
  typename P::Vector sum[Rows][kColumns];
#pragma GCC unroll 8
  for (int r = 0; r < Rows; r++) {
#pragma GCC unroll 16
    for (int c = 0; c < kColumns; c++) sum[r][c] = init(r, column + c * P::kLanes);
  }
  for (; steps > 0; steps -= piece++->steps) {
    const auto* b = piece->data + offset + piece->skip * width;
    const Index here = std::min(steps, piece->steps);
#pragma GCC unroll 4
    for (Index s = 0; s < here; s++) {
      typename P::Operand operand[kColumns];
#pragma GCC unroll 4
      for (int g = 0; g < Groups; g++) {
#pragma GCC unroll 4
        for (int c = 0; c < Vectors; c++) {
          operand[g * Vectors + c] = P::operand(b + g * group_stride + c * P::kLanes * P::kStep);
        }
      }
#pragma GCC unroll 8
      for (int r = 0; r < Rows; r++) {
        const auto row = P::broadcast(a + r * a_stride);
#pragma GCC unroll 16
        for (int c = 0; c < kColumns; c++) sum[r][c] = P::dot(sum[r][c], row, operand[c]);
      }
      a += P::kStep;
      b += width * P::kStep;
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < Rows; r++) {
#pragma GCC unroll 16
    for (int c = 0; c < kColumns; c++) done(r, column + c * P::kLanes, sum[r][c]);
  }
}

// Columns [first, last) of a [Rows, steps * kStep] times the pieces of a matrix of this depth and number of columns.
// `first` starts a panel, `last` ends a vector. Few rows take several panels at once: one row alone would wait for its
// own sums.
template <class P, int Rows, class Init, class Done>
[[gnu::always_inline]] inline void product(const typename P::Element* a, Index a_stride, const Piece<P>* pieces,
                                           Index depth, Index columns, Index first, Index last, Index steps, Init init,
                                           Done done) {
  constexpr Index kPanel = Panels<P>::kPanel;
  constexpr int kGroups = Rows == 1 ? 4 : Rows == 2 ? 2 : 1;
  Index column = first;
  if constexpr (kGroups > 1) {
    for (; column + kGroups * kPanel <= last; column += kGroups * kPanel) {
      tile<P, Rows, P::kPanelVectors, kGroups>(a, a_stride, pieces, steps, column * depth, kPanel, kPanel * depth,
                                               column, init, done);
    }
  }
  for (; column + kPanel <= last; column += kPanel) {
    tile<P, Rows, P::kPanelVectors, 1>(a, a_stride, pieces, steps, column * depth, kPanel, 0, column, init, done);
  }
  const Index panel = column, width = std::min(kPanel, columns - panel);
  for (; column < last; column += P::kLanes) {
    tile<P, Rows, 1, 1>(a, a_stride, pieces, steps, panel * depth + (column - panel) * P::kStep, width, 0, column, init,
                        done);
  }
}

// The same of a whole matrix.
template <class P, int Rows, class Init, class Done>
[[gnu::always_inline]] inline void product(const typename P::Element* a, Index a_stride, Panels<P> b, Index first,
                                           Index last, Init init, Done done) {
  const Index steps = b.depth / P::kStep;
  const Piece<P> whole{b.data, 0, steps};
  product<P, Rows>(a, a_stride, &whole, b.depth, b.columns, first, last, steps, init, done);
}

// Calls body.template operator()<R>(row) over all rows, at most kTileRows at a time.
template <class Body>
[[gnu::always_inline]] inline void for_row_tiles(Index rows, Body body) {
  Index row = 0;
  for (; row + kTileRows <= rows; row += kTileRows) body.template operator()<kTileRows>(row);
  switch (rows - row) {
    case 5: body.template operator()<5>(row); break;
    case 4: body.template operator()<4>(row); break;
    case 3: body.template operator()<3>(row); break;
    case 2: body.template operator()<2>(row); break;
    case 1: body.template operator()<1>(row); break;
    default: break;
  }
}

// Columns [first, last) of [rows, depth] times b, panel by panel, so that a panel stays in the cache for all rows.
template <class P, class Init, class Done>
inline void linear(const typename P::Element* a, Index a_stride, Index rows, Panels<P> b, Index first, Index last,
                   Init init, Done done) {
  const Index chunk = (rows <= 2 ? 4 : 1) * Panels<P>::kPanel;
  for (Index column = first; column < last; column += chunk) {
    const Index end = std::min(column + chunk, last);
    for_row_tiles(rows, [&]<int R>(Index row) {
      product<P, R>(
          a + row * a_stride, a_stride, b, column, end,
          [&](int, Index c) { return init(c); },
          [&](int r, Index c, typename P::Vector x) { done(row + r, c, x); });
    });
  }
}

}  // namespace mfalcon
