// The kernel for AVX-512 with bfloat16 products.
#include "avx512.h"

namespace mfalcon {
using Policy = Avx512Bf16;
}

#include "kernel.h"
