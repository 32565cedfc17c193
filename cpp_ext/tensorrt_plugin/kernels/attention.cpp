#include "attention.hpp"

#include "validity.hpp"

namespace qwenvl {

cudaError_t attend(const Arguments& args, const AttentionPlan& plan, cudaStream_t stream) {
    if (!are_valid(args.sizes) || !is_possible(plan, args)) return cudaErrorInvalidValue;
    switch (args.sizes.head_dim) {
        case 64:
            return attend_with_head_dim<64>(args, plan, stream);
        case 72:
            return attend_with_head_dim<72>(args, plan, stream);
        case 80:
            return attend_with_head_dim<80>(args, plan, stream);
        case 96:
            return attend_with_head_dim<96>(args, plan, stream);
        case 104:
            return attend_with_head_dim<104>(args, plan, stream);
        default:
            return attend_with_head_dim<128>(args, plan, stream);
    }
}

}  // namespace qwenvl
