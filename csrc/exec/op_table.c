/* ops.def as data: names and fields for whoever makes plans, functions for the executor. */
#include "exec/op_cost.h"
#include "exec/plan.h"
#include <stddef.h>

/* fields_<name>: where each field lies in a pl_op. */
#define F(type, name) {#name, PL_FIELD_##type, 1, 0, (int64_t)(offsetof(pl_op, embed) + offsetof(fields_of, name))},
#define OPTIONAL(type, name) {#name, PL_FIELD_##type, 1, 1, (int64_t)(offsetof(pl_op, embed) + offsetof(fields_of, name))},
#define F_N(type, name, n) {#name, PL_FIELD_##type, n, 1, (int64_t)(offsetof(pl_op, embed) + offsetof(fields_of, name))},
#define OP(op, rows, cost, amount, fields) \
    static const pl_op_field *fields_##op(int *n) \
    { \
        typedef pl_op_##op fields_of; \
        static const pl_op_field all[] = {fields}; \
        *n = (int)(sizeof all / sizeof *all); \
        return all; \
    }
#include "exec/ops.def"
#undef OP
#undef F_N
#undef OPTIONAL
#undef F

#define OP(name, rows, cost, amount, fields) \
    {#name, PL_ROWS_##rows, amount, fields_##name, check_##name, run_##name, cost_##cost},
const pl_op_kind pl_op_kinds[PL_OP_COUNT] = {
#include "exec/ops.def"
};
#undef OP

pl_op_scratch *const pl_op_scratches[PL_OP_COUNT] = {
    [PL_OP_segment_matmul] = pl_segment_scratch,
    [PL_OP_self_attention] = pl_self_attention_scratch,
    [PL_OP_disentangled_attention] = pl_disentangled_scratch,
    [PL_OP_tile_attention] = pl_tile_attention_scratch,
};

int64_t pl_op_bytes(void) { return (int64_t)sizeof(pl_op); }
const char *pl_op_name(int kind) { return kind >= 0 && kind < PL_OP_COUNT ? pl_op_kinds[kind].name : NULL; }
int pl_op_rows_allowed(int kind) { return kind >= 0 && kind < PL_OP_COUNT ? pl_op_kinds[kind].rows : PL_EINVAL; }

const pl_op_field *pl_op_fields(int kind, int *n)
{
    *n = 0;
    return kind >= 0 && kind < PL_OP_COUNT ? pl_op_kinds[kind].fields(n) : NULL;
}
