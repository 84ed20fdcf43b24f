#ifndef PL_API_H
#define PL_API_H

/* All that Python sees, by subject: csrc/build_cffi.py joins these files to cffi's cdef. Plain C declarations and integer
 * #defines only; another part is named by its #include, in one line. */

#include "api/cpu.h"
#include "api/files.h"
#include "api/kv.h"
#include "api/plan.h"
#include "api/sampling.h"
#include "api/status.h"
#include "api/text.h"
#include "api/types.h"
#include "api/weights.h"

#endif
