// A block with rows of the products: what it has of them, where it has it, and what all products are made of.
#pragma once
#include "../norm/norm.cuh"
#include "decode_layers_weights.cuh"

constexpr int FEED_WARP = LAYER_WARPS - 1;  // it copies weights
constexpr int GATE_WARPS = FEED_WARP;       // as many as a block's tiles of gates have partitions
// These unpack what the down projection will need: no partition of output is theirs.
constexpr int UNPACK_WARPS = 8;

// A row of x of each token; rows lie on different banks.
constexpr int X_STRIDE = MAX_WIDTH + (TOKENS > 1 ? 8 : 0);
// The down projection is multiplied by so many tokens at a time. The columns that a warp has of their x are there in as
// many phases as they are.
constexpr int DOWN_TOKENS = TOKENS < 4 ? TOKENS : 4;
constexpr int PHASE_CHUNKS = DOWN_CHUNKS / DOWN_TOKENS, PHASE_STRIDE = PHASE_CHUNKS * 64 + 8;
constexpr int MAX_DOWN_WARPS = DOWN_SUMS / 2;
// Four tokens have less shared memory than they would like: what gates and the down projection multiply has one place.
constexpr bool SHARES_X = TOKENS > 2;
// With several tokens the next layer's gates come while this one's are multiplied, as on their way earlier they would
// delay the words of what attention gives; with eight, once the next layer has begun. With one that takes longer.
constexpr bool GATES_AFTER_X = TOKENS > 4, GATES_AFTER_MIDDLE = TOKENS > 1 && !GATES_AFTER_X;
constexpr int X_COLUMNS = TOKENS * X_STRIDE, PHASE_COLUMNS = 2 * DOWN_TOKENS * PHASE_STRIDE;
constexpr int ACTIVATED_AT = SHARES_X ? 0 : X_COLUMNS, ACTIVATED_END = ACTIVATED_AT + MAX_DOWN_WARPS * PHASE_COLUMNS;
constexpr int ALL_COLUMNS = ACTIVATED_END > X_COLUMNS ? ACTIVATED_END : X_COLUMNS;
// Eight tokens leave no place for the down projection's unpacked weights: they are unpacked once gates are multiplied.
constexpr bool UNPACKS_LATE = TOKENS > 4;
constexpr int TILE_STRIDE = TOKENS > 2 ? 8 : TILE_SUMS;

struct ProductScratch {
    u64 barriers[3][2];  // of `WeightBuffer`s: of Q, K and V or output, of gates, of down projections
    u64 stream_barrier;  // the residual stream has come to a layer, or to its gates: those of the next may be copied
    alignas(16) float norm_sums[TOKENS][NORM_PARTITIONS];  // -0 where a row has no partition
    // Of a row's partitions; those that it has not are -0, which changes no bit.
    float tile_sums[TOKENS][16][TILE_STRIDE];
    union {
        float gate_sums[MAX_GATE_TILES][TOKENS][16][GATE_SUMS];
        u64 ranks[TOKENS][GATE_WARPS];  // of the largest logits of each warp, behind all layers
    };
    float down_sums[TOKENS][8][DOWN_SUMS];
    alignas(16) float residuals[TOKENS][8];  // of the block's rows of the down projection
    alignas(16) u16 columns[ALL_COLUMNS];

    DEVICE u16* x(int token) { return columns + token * X_STRIDE; }
    // A row of what a warp multiplies in a phase of the down projection.
    DEVICE u16* activated(int warp, int row) {
        return columns + ACTIVATED_AT + warp * PHASE_COLUMNS + row * PHASE_STRIDE;
    }
};

template <int FOURS>
DEVICE float sum_in_order(const float* row) {
    float4 fours[FOURS];
#pragma unroll
    for (int i = 0; i < FOURS; i++) fours[i] = ((const float4*)row)[i];
    float sum = -0.0f;
#pragma unroll
    for (int i = 0; i < FOURS; i++) sum = sum + fours[i].x + fours[i].y + fours[i].z + fours[i].w;
    return sum;
}

class LayerBlock {
   protected:
    enum Barrier {
        NORM_BARRIER = 1,
        QKV_X_BARRIER,
        TILE_BARRIER,
        GATE_X_BARRIER,
        GATE_BARRIER,
        DOWN_BARRIER,
        FREE_BARRIER,
        READY_BARRIER,
        HEAD_BARRIER,
        RANK_BARRIER,
        READ_BARRIER
    };

    static constexpr int PASSES = (TOKENS + 1) / 2;
    // Rows of several tokens are normed by twice as many warps, each of half of them.
    static constexpr int NORM_GROUPS = TOKENS > 1 ? 2 : 1, GROUP_TOKENS = TOKENS / NORM_GROUPS;
    static constexpr u32 NOWHERE = 0xFFFFFFFFu;

    const DecodeLayersParams& p;
    ProductScratch& scratch;

    // What follows is found anew wherever it is asked for: registers are for weights.
    DEVICE static int warp() { return threadIdx.x / 32; }
    DEVICE static int lane() { return threadIdx.x % 32; }
    DEVICE static int block() {
        int index;
        asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(index));
        return index;
    }
    DEVICE WeightBuffer buffer(const DecodeProduct& product, int number) const {
        const u32 shared = shared_address(&scratch) - p.cut.scratch_at;
        const u32 barriers = shared_address(scratch.barriers[number]);
        return {shared + product.buffer_at, barriers, barriers + 8};
    }
    DEVICE WeightBuffer tile_buffer() const { return buffer(p.qkv, 0); }
    DEVICE WeightBuffer gate_buffer() const { return buffer(p.gate_up, 1); }
    DEVICE WeightBuffer down_buffer() const { return buffer(p.down, 2); }

    DEVICE int qkv_tile() const { return block() - p.cut.qkv_block; }
    DEVICE bool has_qkv() const { return (u32)qkv_tile() < p.qkv.num_tiles; }
    DEVICE bool has_output() const { return block() < p.output.num_tiles; }
    // Which of the fills of a block's tile buffer is a layer's: a block with both tiles has output's after the other.
    DEVICE int tile_fill(int layer, bool is_output) const {
        return TOKENS > 2 && has_qkv() && has_output() ? 2 * layer + is_output : layer;
    }
    DEVICE int first_gate_tile() const { return block() * p.cut.gate_tiles; }
    DEVICE int num_gate_tiles() const { return min(p.cut.gate_tiles, p.gate_up.num_tiles - first_gate_tile()); }
    DEVICE bool has_down() const { return block() < 2 * p.down.num_tiles; }

    // A row's partitions, of which a warp norms one, of the tokens of its group.
    DEVICE int num_norm_partitions() const { return p.cut.width / NORM_WIDTH; }
    DEVICE int num_norm_warps() const { return num_norm_partitions() * NORM_GROUPS; }
    DEVICE int norm_group() const { return NORM_GROUPS > 1 && warp() >= num_norm_partitions(); }
    DEVICE int norm_partition() const { return warp() - norm_group() * num_norm_partitions(); }
    DEVICE int norm_token(int i) const { return norm_group() * GROUP_TOKENS + i; }
    // The partition of a tile of Q, K and V or output that this warp has. Of one token these warps norm nothing.
    DEVICE static int tile_partition(const DecodeProduct& product) {
        return warp() - (FEED_WARP - product.num_partitions);
    }
    DEVICE int num_feeding_warps() const { return max(num_down_warps(), UNPACK_WARPS); }
    DEVICE int num_down_warps() const { return (p.down.num_partitions + 1) / 2; }

   public:
    DEVICE LayerBlock(const DecodeLayersParams& p, u8* shared)
        : p(p), scratch(*(ProductScratch*)(shared + p.cut.scratch_at)) {
        auto fill = [](float* values, int count, float value) {
            for (int i = threadIdx.x; i < count; i += blockDim.x) values[i] = value;
        };
        fill(scratch.norm_sums[0], TOKENS * NORM_PARTITIONS, -0.0f);
        fill(scratch.tile_sums[0][0], TOKENS * 16 * TILE_STRIDE, -0.0f);
        fill(scratch.gate_sums[0][0][0], MAX_GATE_TILES * TOKENS * 16 * GATE_SUMS, -0.0f);
        fill(scratch.down_sums[0][0], TOKENS * 8 * DOWN_SUMS, -0.0f);
        if (threadIdx.x == 0) {
            tile_buffer().init(has_qkv() ? p.qkv.num_partitions : p.output.num_partitions);
            gate_buffer().init(GATE_WARPS);
            down_buffer().init(UNPACKS_LATE ? num_down_warps() : UNPACK_WARPS);
            barrier_init(shared_address(&scratch.stream_barrier), 1);
            publish_barriers();
        }
        __syncthreads();
    }

   protected:
    // What comes into a layer.
    DEVICE const u32* layer_x(int layer) const { return p.words + LayerWords(p, layer - 1).end(0, 0); }

    // Those of this lane's columns. They are loaded a product ahead: where weights of a block are on their way, a load
    // from the L2 cache takes as long as the words.
    DEVICE float4 norm_weights(const float* weights) const {
        float4 w = {};
        if (warp() < num_norm_warps()) w = *(const float4*)(weights + partition_column(norm_partition()));
        return w;
    }

    // The warps that have a row's partitions leave the normed rows in `scratch.x`. `keeps_residuals`: and what the down
    // projection is added to in this block in `scratch.residuals`.
    DEVICE void norm(float4 w, const u32* x, bool keeps_residuals, const i32* rows = nullptr) {
        const NormParams norm = {nullptr, nullptr, p.cut.epsilon, p.cut.width, p.cut.inverse_width};
        const int column = partition_column(norm_partition());
        const u32* places[GROUP_TOKENS];
        uint4 quads[GROUP_TOKENS];
        float4 v[GROUP_TOKENS];
        float squares[GROUP_TOKENS];
#pragma unroll
        for (int i = 0; i < GROUP_TOKENS; i++) {
            const int row = rows ? rows[norm_token(i)] : norm_token(i);
            const LayerWords words(p, 0);
            places[i] = x + (keeps_residuals ? words.in_middle(row, column) : words.in_end(row, column));
        }
        await_quads(quads, places);
        __syncwarp();
        if ((keeps_residuals ? GATES_AFTER_MIDDLE : GATES_AFTER_X) && threadIdx.x == 0)
            barrier_arrive(shared_address(&scratch.stream_barrier));
#pragma unroll
        for (int i = 0; i < GROUP_TOKENS; i++) {
            const uint4 quad = quads[i];
            v[i] = sum_of(make_float4(__uint_as_float(quad.x), __uint_as_float(quad.y), __uint_as_float(quad.z),
                                      __uint_as_float(quad.w)),
                          0.0f);
            if (keeps_residuals && (u32)(column - block() * 8) < 8)
                *(uint4*)(scratch.residuals[norm_token(i)] + (column - block() * 8)) = quad;
            squares[i] = add_squares(0.0f, v[i]);
        }
        // As `warp_sum`, those of the tokens side by side.
#pragma unroll
        for (int distance = 16; distance; distance >>= 1)
#pragma unroll
            for (int i = 0; i < GROUP_TOKENS; i++) squares[i] += __shfl_xor_sync(ALL_LANES, squares[i], distance);
#pragma unroll
        for (int i = 0; i < GROUP_TOKENS; i++)
            if (lane() == 0) scratch.norm_sums[norm_token(i)][norm_partition()] = squares[i];
        sync_warps(NORM_BARRIER, num_norm_warps());
#pragma unroll
        for (int i = 0; i < GROUP_TOKENS; i++) {
            const int token = norm_token(i);
            const float factor = norm_factor(norm, sum_in_order<NORM_PARTITIONS / 4>(scratch.norm_sums[token]));
            *(uint2*)(scratch.x(token) + column) = pack_quad(scale_quad(norm, w, column, v[i], factor));
        }
    }

    // Where word `number` is: found before the others have put their sums. Until then it is but a number, as registers
    // are for weights.
    DEVICE u32* place_of(u32 number) const {
        u32* place = p.words + number;
        compute_now(place);
        return place;
    }

    // What this lane gives to ldmatrix for the columns from chunk `first` on: the rows of the tokens, again and again.
    DEVICE u32 x_address(int first) const {
        return shared_address(scratch.x(lane() % TOKENS)) + first * 128 + (lane() >> 3) * 16;
    }
    // Calls use(token, row of the tile, sum) for what this lane has of a product.
    template <typename Use>
    DEVICE static void for_sums(const float (&acc)[4], Use use) {
#pragma unroll
        for (int e = 0; e < 2; e++) {
            const int token = (lane() & 3) * 2 + e;
            if (e >= TOKENS || token >= TOKENS) continue;
            use(token, lane() >> 2, acc[e]);
            use(token, (lane() >> 2) + 8, acc[2 + e]);
        }
    }
    template <int STRIDE>
    DEVICE static void put_sums(float (&sums)[TOKENS][16][STRIDE], int partition, const float (&acc)[4]) {
        for_sums(acc, [&](int token, int row, float sum) { sums[token][row][partition] = sum; });
    }
    // A warp finishes a tile's rows of two tokens at a time: calls use(pass, token, row of the tile, whether it is
    // one).
    template <typename Use>
    DEVICE static void for_rows(Use use) {
#pragma unroll
        for (int pass = 0; pass < PASSES; pass++)
            use(pass, 2 * pass + first_token_of_lane(), lane() % 16, lane() < 16 * TOKENS);
    }
    DEVICE static int first_token_of_lane() { return TOKENS > 1 ? lane() / 16 : 0; }
    // Whether this warp is one of those that finish a product, once `num_warps` have put their sums.
    DEVICE static bool finishes(Barrier barrier, int num_warps, bool is_one) {
        if (is_one) {
            sync_warps(barrier, num_warps);
            return true;
        }
        arrive_warps(barrier, num_warps);
        return false;
    }
};
