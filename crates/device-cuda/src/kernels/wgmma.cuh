// What kernels on Hopper's tensor cores (wgmma) share: products, barriers that count arrivals and bytes, bulk copies, blocks of a cluster.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// sums[64 rows, 2 · N_SUMS tokens] += left[64, 32] · activations[32, tokens], a warpgroup together; `x` describes the activations in shared memory.
// `types` are those of left and activations; `places` numbers the sums, and what follows them.
#define WGMMA(n_tokens, types, places, following, ...) \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" #n_tokens "k32.s32." types " {" places "}, " following \
                 : __VA_ARGS__ \
                 : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "l"(x))
#define FOUR_SUMS(first) "+r"(sums[first]), "+r"(sums[first + 1]), "+r"(sums[first + 2]), "+r"(sums[first + 3])
#define SIXTEEN_SUMS(first) FOUR_SUMS(first), FOUR_SUMS(first + 4), FOUR_SUMS(first + 8), FOUR_SUMS(first + 12)
#define SUMS_32(first) SIXTEEN_SUMS(first), SIXTEEN_SUMS(first + 16)
#define SUMS_64(first) SUMS_32(first), SUMS_32(first + 32)
#define PLACES_8 "%0,%1,%2,%3,%4,%5,%6,%7"
#define PLACES_16 PLACES_8 ",%8,%9,%10,%11,%12,%13,%14,%15"
#define PLACES_32 PLACES_16 ",%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define PLACES_64 PLACES_32 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55" \
    ",%56,%57,%58,%59,%60,%61,%62,%63"
#define PLACES_80 PLACES_64 ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79"
#define PLACES_128 PLACES_80 ",%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95,%96,%97,%98,%99,%100,%101,%102,%103" \
    ",%104,%105,%106,%107,%108,%109,%110,%111,%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"

// Codes of weights.
__device__ __forceinline__ void multiply_tile(int (&sums)[8], const u32 (&left)[4], u64 x) {
    WGMMA(16, "u8.s8", PLACES_8, "{%8,%9,%10,%11}, %12, 1;", FOUR_SUMS(0), FOUR_SUMS(4));
}
__device__ __forceinline__ void multiply_tile(int (&sums)[16], const u32 (&left)[4], u64 x) {
    WGMMA(32, "u8.s8", PLACES_16, "{%16,%17,%18,%19}, %20, 1;", SIXTEEN_SUMS(0));
}
__device__ __forceinline__ void multiply_tile(int (&sums)[32], const u32 (&left)[4], u64 x) {
    WGMMA(64, "u8.s8", PLACES_32, "{%32,%33,%34,%35}, %36, 1;", SUMS_32(0));
}
__device__ __forceinline__ void multiply_tile(int (&sums)[64], const u32 (&left)[4], u64 x) {
    WGMMA(128, "u8.s8", PLACES_64, "{%64,%65,%66,%67}, %68, 1;", SUMS_64(0));
}
__device__ __forceinline__ void multiply_tile(int (&sums)[80], const u32 (&left)[4], u64 x) {
    WGMMA(160, "u8.s8", PLACES_80, "{%80,%81,%82,%83}, %84, 1;", SUMS_64(0), SIXTEEN_SUMS(64));
}

// Signed bytes.
__device__ __forceinline__ void multiply_bytes(int (&sums)[8], const u32 (&left)[4], u64 x) {
    WGMMA(16, "s8.s8", PLACES_8, "{%8,%9,%10,%11}, %12, 1;", FOUR_SUMS(0), FOUR_SUMS(4));
}
__device__ __forceinline__ void multiply_bytes(int (&sums)[16], const u32 (&left)[4], u64 x) {
    WGMMA(32, "s8.s8", PLACES_16, "{%16,%17,%18,%19}, %20, 1;", SIXTEEN_SUMS(0));
}
__device__ __forceinline__ void multiply_bytes(int (&sums)[32], const u32 (&left)[4], u64 x) {
    WGMMA(64, "s8.s8", PLACES_32, "{%32,%33,%34,%35}, %36, 1;", SUMS_32(0));
}
__device__ __forceinline__ void multiply_bytes(int (&sums)[64], const u32 (&left)[4], u64 x) {
    WGMMA(128, "s8.s8", PLACES_64, "{%64,%65,%66,%67}, %68, 1;", SUMS_64(0));
}
__device__ __forceinline__ void multiply_bytes(int (&sums)[128], const u32 (&left)[4], u64 x) {
    WGMMA(256, "s8.s8", PLACES_128, "{%128,%129,%130,%131}, %132, 1;", SUMS_64(0), SUMS_64(64));
}

// A descriptor of activations in shared memory: rows of 128 bytes, swizzled, those of the next eight tokens 1,024 bytes behind.
__device__ __forceinline__ u64 describe(u32 shared) {
    const u64 swizzled = 1, unused = 1, tokens_step = 1024 >> 4;
    return (u64)(shared >> 4) | (unused << 16) | (tokens_step << 32) | (swizzled << 62);
}

__device__ __forceinline__ void make_barrier(u32 barrier, u32 n_arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(n_arrivals) : "memory");
}

__device__ __forceinline__ void arrive(u32 barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

__device__ __forceinline__ void expect_bytes(u32 barrier, u32 n_bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(n_bytes) : "memory");
}

__device__ __forceinline__ void await(u32 barrier, u32 parity) {
    asm volatile(
        "{\n .reg .pred done;\n"
        "again:\n mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        " @done bra ready;\n bra again;\nready:\n}" ::"r"(barrier), "r"(parity) : "memory");
}

__device__ __forceinline__ void fetch(u32 to, const void* from, u32 n_bytes, u32 barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to), "l"(from), "r"(n_bytes),
                 "r"(barrier)
                 : "memory");
}

__device__ __forceinline__ void cluster_barrier() {
    asm volatile("barrier.cluster.arrive;\nbarrier.cluster.wait;" ::: "memory");
}

// The two halves of a barrier of the cluster that orders no memory: what the blocks exchange behind it, they announce themselves.
__device__ __forceinline__ void arrive_at_cluster() { asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory"); }
__device__ __forceinline__ void await_cluster() { asm volatile("barrier.cluster.wait;" ::: "memory"); }

// Sends four words to where `shared` is in block `rank` of the cluster, whose barrier at `barrier` counts their bytes.
__device__ __forceinline__ void send_words(const int* words, u32 shared, u32 barrier, u32 rank) {
    u32 address, remote_barrier;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(shared), "r"(rank));
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote_barrier) : "r"(barrier), "r"(rank));
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.s32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(address), "r"(words[0]),
                 "r"(words[1]), "r"(words[2]), "r"(words[3]), "r"(remote_barrier)
                 : "memory");
}

// Puts four words where `shared` is.
__device__ __forceinline__ void keep_words(const int* words, u32 shared) {
    asm volatile("st.shared.v4.s32 [%0], {%1, %2, %3, %4};" ::"r"(shared), "r"(words[0]), "r"(words[1]), "r"(words[2]), "r"(words[3]) : "memory");
}

// Starts to copy a word of memory to shared memory.
__device__ __forceinline__ void copy_word(const void* shared, const void* from) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"((u32)__cvta_generic_to_shared(shared)), "l"(from) : "memory");
}

// Adds four words of shared memory of block `rank` of the cluster.
__device__ __forceinline__ void add_remote_words(int (&sums)[4], u32 shared, u32 rank) {
    u32 address;
    int words[4];
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(shared), "r"(rank));
    asm volatile("ld.shared::cluster.v4.s32 {%0, %1, %2, %3}, [%4];" : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3]) : "r"(address));
#pragma unroll
    for (int part = 0; part < 4; part++) sums[part] += words[part];
}

#endif
