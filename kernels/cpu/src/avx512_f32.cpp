// The kernel for AVX-512 in float32.
#include "avx512.h"

namespace mfalcon {
using Policy = Avx512F32;
}

#include "kernel.h"
