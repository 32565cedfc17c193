// All kernels of one head size, QWENVL_HEAD_DIM.
#include "attention.hpp"

#include "cache_write.cuh"
#include "decode.cuh"
#include "launch.cuh"
#include "prefill.cuh"

namespace qwenvl {
namespace {

template <typename Float, typename Cache, int D, int Rows>
cudaError_t launch_decode(const Arguments& args, const AttentionPlan& plan, cudaStream_t stream) {
    const dim3 grid(plan.splits, args.sizes.kv_heads, args.sizes.batch);
    return launch(decode_attention<Float, Cache, D, Rows>, grid, kDecodeThreads, sizeof(DecodeShared<D, Rows>), stream,
                  args, plan.splits);
}

template <typename Float, typename Cache, int D, int RowTiles>
cudaError_t launch_prefill(const Arguments& args, const AttentionPlan& plan, cudaStream_t stream) {
    using Shared = PrefillShared<Float, D, RowTiles>;
    static_assert(sizeof(Shared) <= (RowTiles == 1 ? 48 : 96) * 1024, "two blocks, or one, on a processor with 100 KB");
    const int row_blocks = divide_up(query_rows(args.sizes), plan.block_rows);
    const dim3 grid(plan.splits * args.sizes.kv_heads, row_blocks, args.sizes.batch);
    return launch_after(prefill_attention<Float, Cache, D, RowTiles>, grid, kPrefillThreads, sizeof(Shared), stream,
                        args, plan.splits);
}

template <typename Float, typename Cache, int D>
cudaError_t launch_attention(const Arguments& args, const AttentionPlan& plan, cudaStream_t stream) {
    switch (plan.block_rows) {
        case 1:
            return launch_decode<Float, Cache, D, 1>(args, plan, stream);
        case 2:
            return launch_decode<Float, Cache, D, 2>(args, plan, stream);
        case kDecodeRows:
            return launch_decode<Float, Cache, D, kDecodeRows>(args, plan, stream);
        case kPrefillRows:
            return launch_prefill<Float, Cache, D, 1>(args, plan, stream);
        default:
            if constexpr (sizeof(Cache) == 1)
                return cudaErrorInvalidValue;  // is_possible() says no
            else
                return launch_prefill<Float, Cache, D, 2>(args, plan, stream);
    }
}

template <typename Float, typename Cache, int D>
cudaError_t launch_write(const Arguments& args, cudaStream_t stream) {
    const Sizes& sizes = args.sizes;
    const int pairs = sizes.batch * sizes.tokens * sizes.kv_heads;
    const dim3 write_grid(divide_up(pairs, kWriteThreads / kWarp));
    return launch(write_cache<Float, Cache, D>, write_grid, kWriteThreads, 0, stream, args);
}

// One kernel for a few query rows: it writes the cache itself, and its last block combines, where it can count blocks.
template <typename Float, typename Cache, int D>
cudaError_t attend_as(const Arguments& args, const AttentionPlan& plan, cudaStream_t stream) {
    const bool decodes = plan.block_rows <= kDecodeRows;
    cudaError_t status = decodes ? cudaSuccess : launch_write<Float, Cache, D>(args, stream);
    if (status != cudaSuccess) return status;
    status = launch_attention<Float, Cache, D>(args, plan, stream);
    if (status != cudaSuccess || plan.splits == 1 || (decodes && args.counters != nullptr)) return status;
    const dim3 grid(query_rows(args.sizes), args.sizes.kv_heads, args.sizes.batch);
    return launch_after(combine_partials<Float, D>, grid, D, 0, stream, args, plan.splits,
                        decodes ? kDecodeKeys : kKeyTile);
}

template <typename Float, int D>
cudaError_t attend_with(const Arguments& args, const AttentionPlan& plan, cudaStream_t stream) {
    return args.int8_cache ? attend_as<Float, std::int8_t, D>(args, plan, stream)
                           : attend_as<Float, Float, D>(args, plan, stream);
}

}  // namespace

template <>
cudaError_t attend_with_head_dim<QWENVL_HEAD_DIM>(const Arguments& args, const AttentionPlan& plan,
                                                  cudaStream_t stream) {
    return args.float_type == FloatType::kHalf ? attend_with<__half, QWENVL_HEAD_DIM>(args, plan, stream)
                                               : attend_with<__nv_bfloat16, QWENVL_HEAD_DIM>(args, plan, stream);
}

}  // namespace qwenvl
