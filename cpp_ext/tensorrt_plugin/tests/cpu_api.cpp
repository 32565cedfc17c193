// A library for the Python tests: beside the C interface of the emulated kernels, the reference.
#include "../kernels/c_api.h"
#include "../reference/reference.hpp"
#include "simt.hpp"

extern "C" {

QWENVL_EXPORT void qwenvl_reference_attention(const qwenvl::Arguments* args) { qwenvl::reference_attention(*args); }

// Whether the threads of a block start in descending order.
QWENVL_EXPORT void qwenvl_emulate_descending(int descending) { qwenvl::simt::descending = descending != 0; }
}
