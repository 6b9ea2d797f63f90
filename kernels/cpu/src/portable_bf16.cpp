// The kernel for any processor, bfloat16 products, slow.
#include "portable.h"

namespace mfalcon {
using Policy = Portable<std::uint16_t>;
}

#include "kernel.h"
