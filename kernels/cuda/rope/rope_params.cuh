// What kernels that norm and rotate heads are given.
#pragma once
#include "kv_cache.cuh"

struct RopeParams {
    const float* cosine;         // [num_tokens, num_pairs]
    const float* sine;           // [num_tokens, num_pairs]
    const float* query_factors;  // [num_tokens] by which rotated queries are multiplied; null: by 1
    const float* query_norm;     // [head_dim] or null: no norms
    const float* key_norm;       // [head_dim]
    i32 num_pairs;               // even; 0: no rotation
    i32 neox;
    float query_epsilon, key_epsilon;
};
