// The kernel for AVX2 and FMA in float32.
#include "avx2_f32.h"

namespace mfalcon {
using Policy = Avx2F32;
}

#include "kernel.h"
