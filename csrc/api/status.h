#ifndef PL_API_STATUS_H
#define PL_API_STATUS_H
#include <stddef.h>
#include <stdint.h>

/* Functions return 0 (or a count) when all is well and a negative PL_E… otherwise. */
#define PL_OK 0
#define PL_EINVAL -1
#define PL_ENOMEM -2
#define PL_EINTERRUPTED -3
#define PL_EUNSUPPORTED -4
#define PL_EREAD -5

#endif
