// What screening is (screen.cu) where it multiplies.
struct ScreenArgs {
    const i8* x;          // [m, screen_stride]
    const i8* quantized;  // [n, screen_stride]
    const float* scales;  // [n]
    const float* norms;   // [n, 2]
    const float* tokens;  // [m, 4]
    int* thresholds;      // [m]
    float* out;           // [m, n]
    u32 m;
    u32 n;
    u32 screen_stride;
    float rounding;       // of the exact sum, as a share of ‖w‖‖x‖
    float* uppers;        // [m, ⌈n / 16⌉]: largest upper bound of sixteen rows; by `screen_tiles` only
    u32 n_stages;         // of `screen_tiles`
    u32 unused;
};

// Floats in the order of integers.
__device__ __forceinline__ int ordered(float value) {
    const int bits = __float_as_int(value);
    return bits >= 0 ? bits : bits ^ 0x7fffffff;
}

__device__ __forceinline__ float from_ordered(int key) { return __int_as_float(key >= 0 ? key : key ^ 0x7fffffff); }

// How far a screened logit may be from the exact one.
__device__ __forceinline__ float bound(float2 row, float4 token, float rounding) {
    return (row.y * token.y + (row.x + row.y) * token.z + rounding * row.x * token.y) * 1.001f;
}

