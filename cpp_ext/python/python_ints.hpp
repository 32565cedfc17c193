// Values of Python's ints, read without a function call.
#pragma once

#include <Python.h>
#if PY_VERSION_HEX < 0x030B0000
#include <longintrepr.h>
#endif

#include <cstdint>

namespace qwenvl {

// The value of an int from 0 to 2**30 - 1, which CPython stores as one digit; -1 for everything else.
inline std::int64_t small_int(PyObject* object) {
    if (!PyLong_CheckExact(object)) return -1;
    const auto* number = reinterpret_cast<const PyLongObject*>(object);
#if PY_VERSION_HEX >= 0x030C0000
    return PyUnstable_Long_IsCompact(number) ? PyUnstable_Long_CompactValue(number) : -1;
#else
    if (Py_SIZE(object) == 0) return 0;
    return Py_SIZE(object) == 1 ? static_cast<std::int64_t>(number->ob_digit[0]) : -1;
#endif
}

}  // namespace qwenvl
