// A library for the Python tests: beside the C interface of the emulated kernels, the reference.
#include "../kernels/c_api.h"
#include "../reference/reference.hpp"
#include "simt.hpp"

extern "C" {

QWENVL_EXPORT void qwenvl_reference_attention(const qwenvl::Arguments* args) { qwenvl::reference_attention(*args); }

// Kernels launched since the last call.
QWENVL_EXPORT int qwenvl_emulated_launches() {
    const int found = qwenvl::simt::launches;
    qwenvl::simt::launches = 0;
    return found;
}

// Bank conflicts of ldmatrix since the last call.
QWENVL_EXPORT long qwenvl_emulated_conflicts() {
    const long found = qwenvl::simt::conflicts;
    qwenvl::simt::conflicts = 0;
    return found;
}

// Makes the threads of a block start in descending order, or not.
QWENVL_EXPORT void qwenvl_emulate_descending(int descending) { qwenvl::simt::descending = descending != 0; }
}
