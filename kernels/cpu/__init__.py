"""The fused CPU kernel: prefill, append and score of a whole stack of layers as one call each.

The second height of the seam (ARCHITECTURE.md). `check.load` gives a compiled policy, `stack.FusedStack` packs the
weights of a stack for it and calls it over pages. The C++ is in `src/`; `build_library` compiles it into `build/`.
"""
