// The float operations of bitnet_model::numerics, in the same order and without fused multiply-add (this
// file is compiled with -fmad=false). It stands before every kernel. Shapes as everywhere: m tokens, n out features, k in features.
typedef unsigned char u8;
typedef signed char i8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define LANES 16
#define BLOCK_TOKENS 16
#define FULL_WARP 0xffffffffu
#define NEGATIVE_INFINITY __int_as_float(0xff800000)

// An IEEE half in memory.
struct Half {
    u16 bits;
};

__device__ __forceinline__ float as_float(float value) { return value; }
__device__ __forceinline__ float as_float(u16 bfloat) { return __int_as_float((u32)bfloat << 16); }
__device__ __forceinline__ float as_float(Half half) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(half.bits));
    return value;
}

// Two neighbouring halves, the lower bits first.
__device__ __forceinline__ float2 two_halves(u32 bits) { return make_float2(as_float(Half{(u16)bits}), as_float(Half{(u16)(bits >> 16)})); }

// What the cache keeps of a key or value: itself, or numerics::round_to_f16.
__device__ __forceinline__ void store(float* to, float value) { *to = value; }
__device__ __forceinline__ void store(Half* to, float value) {
    value = value > 65504.0f ? 65504.0f : value;
    value = value < -65504.0f ? -65504.0f : value;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(to->bits) : "f"(value));
}

// Waits until the kernels before this one have finished. Every kernel calls it before it touches what another wrote.
__device__ __forceinline__ void await_predecessors() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Lets the next kernel start as soon as there is room; it waits in await_predecessors.
__device__ __forceinline__ void admit_successor() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// `a` unless `b` is larger; NaN in `b` is passed over.
__device__ __forceinline__ float larger(float a, float b) { return b > a ? b : a; }

// Each half of a warp holds 16 lanes of a sum; lane 0 of the half gets it.
__device__ __forceinline__ float sum_lanes(float lane) {
#pragma unroll
    for (int half = LANES / 2; half > 0; half /= 2) lane += __shfl_down_sync(FULL_WARP, lane, half, LANES);
    return lane;
}

// Four neighbouring threads hold lanes 4t..4t+4 of a sum; the first of them gets it.
__device__ __forceinline__ float sum_lanes_of_four(float4 lanes) {
    lanes.x += __shfl_down_sync(FULL_WARP, lanes.x, 2, 4);
    lanes.y += __shfl_down_sync(FULL_WARP, lanes.y, 2, 4);
    lanes.z += __shfl_down_sync(FULL_WARP, lanes.z, 2, 4);
    lanes.w += __shfl_down_sync(FULL_WARP, lanes.w, 2, 4);
    lanes.x += __shfl_down_sync(FULL_WARP, lanes.x, 1, 4);
    lanes.y += __shfl_down_sync(FULL_WARP, lanes.y, 1, 4);
    lanes.z += __shfl_down_sync(FULL_WARP, lanes.z, 1, 4);
    lanes.w += __shfl_down_sync(FULL_WARP, lanes.w, 1, 4);
    return (lanes.x + lanes.z) + (lanes.y + lanes.w);
}

// numerics::exp
__device__ __forceinline__ float exp_exact(float x) {
    x = x < -87.33654f ? -87.33654f : x;
    x = x > 88.37626f ? 88.37626f : x;
    const float n = (x * 1.44269504088896340735992468100189214f + 12582912.0f) - 12582912.0f;
    const float r = (x - n * 0.6933594f) - n * -2.1219444e-4f;
    float p = 1.9875691e-4f;
    p = p * r + 1.3981999e-3f;
    p = p * r + 8.333452e-3f;
    p = p * r + 4.1665796e-2f;
    p = p * r + 1.6666665e-1f;
    p = p * r + 5.0000003e-1f;
    const float mantissa = (p * (r * r) + r) + 1.0f;
    return mantissa * __int_as_float((__float2int_rz(n) + 127) << 23);
}

// activation(gate) · up
#define RELU2 0
#define SILU 1
__device__ __forceinline__ float gated(u32 activation, float gate, float up) {
    if (activation == RELU2) {
        const float positive = gate > 0.0f ? gate : 0.0f;
        return (positive * positive) * up;
    }
    return (gate / (1.0f + exp_exact(-gate))) * up;
}

// quantise::weight_inverse_scale: a bfloat16 where one is within a unit in the last place.
__device__ __forceinline__ float weight_inverse_scale(float weight_scale) {
    const float inverse = 1.0f / weight_scale;
    const u32 bits = __float_as_uint(inverse), published = (bits + 0x7fffu + ((bits >> 16) & 1)) & 0xffff0000u;
    const bool is_near = published - bits + 1 <= 2;
    return is_near ? __uint_as_float(published) : inverse;
}

// numerics::dequantise
__device__ __forceinline__ float dequantise_inverse(int accumulator, float weight_inverse_scale, float x_inverse_scale) {
    return (float)accumulator / (x_inverse_scale * weight_inverse_scale);
}

// Whether a scale is so far from the ends of what f32 holds that quotients of it need no care.
__device__ __forceinline__ bool is_ordinary(float scale) { return scale > 0x1p-40f && scale < 0x1p40f; }

// 1 / divisor for quotient_by, where the divisor is a product of two ordinary scales.
__device__ __forceinline__ float reciprocal_of_ordinary(float divisor) {
    float reciprocal;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(reciprocal) : "f"(divisor));
    return __fmaf_rn(reciprocal, __fmaf_rn(-divisor, reciprocal, 1.0f), reciprocal);
}

// dividend / divisor, correctly rounded, where the dividend is an integer: what the compiler makes of a division, without its way for the rest, which would
// be most of the code.
__device__ __forceinline__ float quotient_by(float dividend, float divisor, float reciprocal) {
    float quotient = __fmaf_rn(dividend, reciprocal, 0.0f);
    quotient = __fmaf_rn(reciprocal, __fmaf_rn(-divisor, quotient, dividend), quotient);
    return __fmaf_rn(reciprocal, __fmaf_rn(-divisor, quotient, dividend), quotient);
}

__device__ __forceinline__ float quotient_of_ordinary(float dividend, float divisor) {
    return quotient_by(dividend, divisor, reciprocal_of_ordinary(divisor));
}

__device__ __forceinline__ float dequantise(int accumulator, float weight_scale, float x_inverse_scale) {
    return dequantise_inverse(accumulator, weight_inverse_scale(weight_scale), x_inverse_scale);
}

// quantise::ActivationScale: 127 / largest, rounded twice.
__device__ __forceinline__ float inverse_absmax_scale(float largest) { return (1.0f / largest) * 127.0f; }

// quantise::quantise_one: ties to even, NaN to 0, never −128.
__device__ __forceinline__ int quantise_one(float value, float inverse_scale) {
    float rounded = rintf(value * inverse_scale);
    rounded = rounded < -127.0f ? -127.0f : rounded;
    rounded = rounded > 127.0f ? 127.0f : rounded;
    return __float2int_rn(rounded);
}

// An integer below SMALL_INTEGER_END in magnitude as a float, by additions: a multiprocessor does four times as many of them as conversions.
#define SMALL_INTEGER_END (1u << 22)
#define SMALL_INTEGER_BIAS 0x4b400000
__device__ __forceinline__ float biased_integer(int biased) { return __int_as_float(biased) - 12582912.0f; }
__device__ __forceinline__ float small_integer(int value) { return biased_integer(SMALL_INTEGER_BIAS + value); }

// Four of them, as bytes. A sum with 1.5 · 2²³ is rounded to an integer, ties to even, which its lowest byte then holds.
__device__ __forceinline__ u32 four_quantised(float4 values, float inverse_scale) {
    const float products[4] = {values.x * inverse_scale, values.y * inverse_scale, values.z * inverse_scale, values.w * inverse_scale};
    u32 integers[4];
#pragma unroll
    for (int part = 0; part < 4; part++) {
        const float number = products[part] == products[part] ? products[part] : 0.0f;
        integers[part] = __float_as_uint(fminf(fmaxf(number, -127.0f), 127.0f) + 12582912.0f);
    }
    return __byte_perm(__byte_perm(integers[0], integers[1], 0x0040), __byte_perm(integers[2], integers[3], 0x0040), 0x5410);
}

// Norms applied one after another.
struct Norms {
    const float* weights[2];
    float epsilons[2];
    u32 n;
    u32 unused;
};

// Loops are unrolled no further than their loads need: kernels of a step run one after another, so their code comes from afar each time, and
// a line of code that is run once costs more than a turn of a loop.

// How often a loop from `first` to `end` by `stride` runs. Loops are counted in signed integers by one: only such a loop is unrolled so that
// its loads are in flight together, and a sum of one lane is a chain that must not wait for memory at each link.
__device__ __forceinline__ int n_turns(u32 first, u32 end, int stride) { return ((int)end - (int)first + stride - 1) / stride; }

// Most chunks of a row that fits in shared memory.
#define CHUNKS_MAX 256
#define CHUNK_COLUMNS 256

__device__ __forceinline__ float sum_of_four(float4 x) { return (x.x + x.z) + (x.y + x.w); }
__device__ __forceinline__ float4 square_of_four(float4 x) { return make_float4(x.x * x.x, x.y * x.y, x.z * x.z, x.w * x.w); }
__device__ __forceinline__ float4 added(float4 a, float4 b) { return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w); }

// The first of the two fours of a chunk that a lane of a warp has; the other is 32 columns behind. Sums of squares go in the order of
// numerics::sum_of_squares.
__device__ __forceinline__ u32 column_in_chunk() { return (threadIdx.x & 7) * 4 + (threadIdx.x & 31) / 8 * 64; }

// Σ of squares of the sixteen numbers that are 16 apart and neighbours, of which this lane has half.
__device__ __forceinline__ float squares_of_sixteen(float4 first, float4 second) {
    float4 sums = added(square_of_four(first), square_of_four(second));
    sums.x += __shfl_xor_sync(FULL_WARP, sums.x, 4);
    sums.y += __shfl_xor_sync(FULL_WARP, sums.y, 4);
    sums.z += __shfl_xor_sync(FULL_WARP, sums.z, 4);
    sums.w += __shfl_xor_sync(FULL_WARP, sums.w, 4);
    return sum_of_four(sums);
}

// Σ of squares of a chunk, for all lanes of the warp.
__device__ __forceinline__ float squares_of_chunk(float4 first, float4 second) {
    float sum = squares_of_sixteen(first, second);
    sum += __shfl_xor_sync(FULL_WARP, sum, 16);
    sum += __shfl_xor_sync(FULL_WARP, sum, 8);
    sum += __shfl_xor_sync(FULL_WARP, sum, 2);
    return sum + __shfl_xor_sync(FULL_WARP, sum, 1);
}

// The sum of chunks in shared memory, zeros behind the last up to a multiple of four.
__device__ __forceinline__ float sum_of_chunks(const float* chunks, u32 n) {
    float4 lanes = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    const int n_fours = (int)(n + 3) / 4;
#pragma unroll 4
    for (int four = 0; four < n_fours; four++) lanes = added(lanes, ((const float4*)chunks)[four]);
    return sum_of_four(lanes);
}

__device__ __forceinline__ float inverse_rms(float sum_of_squares, u32 k, float epsilon) { return 1.0f / sqrtf(sum_of_squares / (float)k + epsilon); }

// Four values of row[k] in shared memory from `column`, zeros beyond its end.
__device__ __forceinline__ float4 four_of_row(const float* row, u32 column, u32 k) {
    if (column + 4 <= k) return *(const float4*)(row + column);
    return make_float4(column < k ? row[column] : 0.0f, column + 1 < k ? row[column + 1] : 0.0f, column + 2 < k ? row[column + 2] : 0.0f, 0.0f);
}

// 1 / √(mean(x²) + ε) of row[k] in shared memory, for all threads of the block. `chunks` is room in shared memory for CHUNKS_MAX.
__device__ __forceinline__ float inverse_rms_of_block(const float* row, u32 k, float epsilon, float* chunks) {
    const u32 n = (k + CHUNK_COLUMNS - 1) / CHUNK_COLUMNS;
    __syncthreads();
#pragma unroll 1
    for (u32 chunk = threadIdx.x / 32; chunk < (n + 3) / 4 * 4; chunk += blockDim.x / 32) {
        const u32 column = chunk * CHUNK_COLUMNS + column_in_chunk();
        const float sum = squares_of_chunk(four_of_row(row, column, k), four_of_row(row, column + 32, k));
        if ((threadIdx.x & 31) == 0) chunks[chunk] = sum;
    }
    __syncthreads();
    return inverse_rms(sum_of_chunks(chunks, n), k, epsilon);
}

// RMSNorms in place on row[k] in shared memory, by the THREADS threads of the block. `chunks` is room in shared memory for CHUNKS_MAX.
template <int THREADS>
__device__ __forceinline__ void norm_block(float* row, u32 k, const Norms& norms, float* chunks) {
#pragma unroll 1
    for (u32 norm = 0; norm < norms.n; norm++) {
        const float factor = inverse_rms_of_block(row, k, norm == 0 ? norms.epsilons[0] : norms.epsilons[1], chunks);
        const float* weights = norm == 0 ? norms.weights[0] : norms.weights[1];
        if (k % 4 == 0) {
            const int n = n_turns(threadIdx.x, k / 4, THREADS);
#pragma unroll 3
            for (int turn = 0; turn < n; turn++) {
                const u32 four = turn * THREADS + threadIdx.x;
                const float4 w = __ldg((const float4*)weights + four), x = ((const float4*)row)[four];
                ((float4*)row)[four] = make_float4((x.x * factor) * w.x, (x.y * factor) * w.y, (x.z * factor) * w.z, (x.w * factor) * w.w);
            }
            continue;
        }
        const int n = n_turns(threadIdx.x, k, THREADS);
#pragma unroll 5
        for (int turn = 0; turn < n; turn++) {
            const u32 index = turn * THREADS + threadIdx.x;
            row[index] = (row[index] * factor) * __ldg(weights + index);
        }
    }
    __syncthreads();
}

// Asks for norm weights before they are needed: a step reads more than the cache holds, so they are far away each time.
__device__ __forceinline__ void prefetch_norms(const Norms& norms, u32 k) {
#pragma unroll
    for (u32 norm = 0; norm < 2; norm++) {
        if (norm >= norms.n) break;
        for (u32 line = threadIdx.x; line * 32 < k; line += blockDim.x)
            asm volatile("prefetch.global.L2 [%0];" ::"l"(norms.weights[norm] + line * 32));
    }
}

// Copies row[k] to shared memory, by the THREADS threads of the block. Rows whose width is a multiple of four, here and above, go by 16 bytes.
template <int THREADS>
__device__ __forceinline__ void copy_row(float* row, const float* x, u32 k) {
    if (k % 4 == 0) {
        const int n = n_turns(threadIdx.x, k / 4, THREADS);
#pragma unroll 3
        for (int turn = 0; turn < n; turn++) ((float4*)row)[turn * THREADS + threadIdx.x] = ((const float4*)x)[turn * THREADS + threadIdx.x];
        return;
    }
    const int n = n_turns(threadIdx.x, k, THREADS);
#pragma unroll 5
    for (int turn = 0; turn < n; turn++) row[turn * THREADS + threadIdx.x] = x[turn * THREADS + threadIdx.x];
}

// The largest magnitude of row[k] in shared memory that this thread looks at, of THREADS.
template <int THREADS>
__device__ __forceinline__ float largest_of_thread(const float* row, u32 k) {
    float largest = 0.0f;
    const int n = n_turns(threadIdx.x, (k + 3) / 4, THREADS);
#pragma unroll 3
    for (int turn = 0; turn < n; turn++) {
        const float4 four = four_of_row(row, (turn * THREADS + threadIdx.x) * 4, k);
        largest = larger(larger(largest, fabsf(four.x)), fabsf(four.y));
        largest = larger(larger(largest, fabsf(four.z)), fabsf(four.w));
    }
    return largest;
}

// The largest of the block's values, for all threads. `scratch` is 32 floats in shared memory.
__device__ __forceinline__ float largest_of_block(float value, float* scratch) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) value = larger(value, __shfl_xor_sync(FULL_WARP, value, step));
    __syncthreads();
    if ((threadIdx.x & 31) == 0) scratch[threadIdx.x / 32] = value;
    __syncthreads();
    value = scratch[0];
    for (u32 warp = 1; warp < blockDim.x / 32; warp++) value = larger(value, scratch[warp]);
    return value;
}

// The largest of the block's magnitudes, none of which is NaN, for all threads. `scratch` is 32 floats in shared memory that nobody reads before.
__device__ __forceinline__ float largest_magnitude_of_block(float value, float* scratch) {
    // Their bits are in their order.
    value = __uint_as_float(__reduce_max_sync(FULL_WARP, __float_as_uint(value)));
    if ((threadIdx.x & 31) == 0) scratch[threadIdx.x / 32] = value;
    __syncthreads();
    const u32 lane = threadIdx.x & 31;
    return __uint_as_float(__reduce_max_sync(FULL_WARP, lane < blockDim.x / 32 ? __float_as_uint(scratch[lane]) : 0));
}

// The sum of the block's integers, for all threads. `scratch` is 32 integers in shared memory.
__device__ __forceinline__ int sum_of_block(int value, int* scratch) {
    value = __reduce_add_sync(FULL_WARP, value);
    __syncthreads();
    if ((threadIdx.x & 31) == 0) scratch[threadIdx.x / 32] = value;
    __syncthreads();
    value = scratch[0];
    for (u32 warp = 1; warp < blockDim.x / 32; warp++) value += scratch[warp];
    return value;
}
