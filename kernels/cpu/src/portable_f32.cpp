// The kernel for any processor, float32.
#include "portable.h"

namespace mfalcon {
using Policy = Portable<float>;
}

#include "kernel.h"
