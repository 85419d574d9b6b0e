//! Speed of the operations that decide decode and prefill, on the shapes of BitNet b1.58 2B4T, as `op/device/isa/shape` lines
//! with their rate against the roofs of the machine, measured between the kernels of the same run.
//!
//! Weights of a shape are copied until they exceed every cache, as a model's layers do. Arguments: words that a line must
//! contain; the exact name of an instruction set measures no other. No statistics: the best of several runs, since others may
//! use the machine.

use std::time::{Duration, Instant};

use bitnet_checkpoint::config::ActivationPolicy::{self, Int8PerGroup, Int8PerToken, Unquantised};
use bitnet_checkpoint::config::{Rope, RopeScaling};
use bitnet_checkpoint::{DenseTensor, DenseType, Tensor};
use bitnet_device_cpu::{CpuDevice, CpuOptions, IsaChoice, RoofMeter, Roofs};
use bitnet_model::TokenId;
use bitnet_model::batch::{Batch, BatchSequence, BestLogits, BlockId, Rows, Step};
use bitnet_model::device::{Device, Heads, KvLayout, KvType, Norm, TableUse};
use bitnet_model::random::RandomWeights;
use bitnet_model::rope::RopeTable;
use bitnet_model::{RunnerOptions, Session, TransformerRunner};
use bitnet_ternary::{Scales, TernaryMatrix};

/// Weights that no cache holds, in bytes of 2-bit codes.
const BEYOND_CACHE: usize = 96 << 20;
/// Measurements of the roofs, each followed by calls for `ROUND`.
const ROUNDS: usize = 4;
const ROUND: Duration = Duration::from_millis(200);

/// Work of one measured call.
struct Work {
    bytes: f64,
    macs: f64,
}

/// The device under measurement and where lines go.
struct Bench {
    device: CpuDevice,
    meter: RoofMeter,
    words: Vec<String>,
}

impl Bench {
    fn is_wanted(&self, name: &str) -> bool {
        self.words.iter().all(|word| name.contains(word.as_str()))
    }

    fn name(&self, op: &str, shape: &str) -> String {
        let description = self.device.describe();
        format!("{op}/{}/{}/{shape}/t={}", description.name, description.isa, description.n_threads)
    }

    /// Best of several runs of `call`, each beside a measurement of the roofs.
    fn measure(&mut self, name: &str, work: &Work, mut call: impl FnMut(&mut CpuDevice)) {
        call(&mut self.device);
        let (mut seconds, mut best) = (f64::INFINITY, Roofs { read_bytes_per_s: 0.0, int8_macs_per_s: None });
        for _ in 0..ROUNDS {
            let roofs = self.meter.measure(&mut self.device);
            best.read_bytes_per_s = best.read_bytes_per_s.max(roofs.read_bytes_per_s);
            best.int8_macs_per_s = larger(best.int8_macs_per_s, roofs.int8_macs_per_s);
            let round = Instant::now();
            while round.elapsed() < ROUND {
                let start = Instant::now();
                call(&mut self.device);
                seconds = seconds.min(start.elapsed().as_secs_f64());
            }
        }
        let (bytes, macs) = (work.bytes / seconds, work.macs / seconds);
        let read = 100.0 * bytes / best.read_bytes_per_s;
        let arithmetic = best.int8_macs_per_s.map_or(String::new(), |roof| format!(", {:.0}% of {:.0}", 100.0 * macs / roof, roof / 1e9));
        let (rate, roof) = (bytes / 1e9, best.read_bytes_per_s / 1e9);
        println!("{name}: {:.3} ms, {rate:.2} GB/s ({read:.0}% of {roof:.1}), {:.1} GMAC/s{arithmetic}", seconds * 1e3, macs / 1e9);
    }
}

fn larger(a: Option<f64>, b: Option<f64>) -> Option<f64> {
    a.into_iter().chain(b).reduce(f64::max)
}

fn random_codes(n: usize) -> Vec<u8> {
    let mut state = 1u32;
    let code = |value: u32| ((value % 3) | ((value / 3 % 3) << 2) | ((value / 9 % 3) << 4) | ((value / 27) << 6)) as u8;
    (0..n)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            code((state >> 24) % 81)
        })
        .collect()
}

fn random_rows(device: &mut CpuDevice, m: usize, width: usize) -> <CpuDevice as Device>::Hidden {
    let mut state = 7u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    let values: Vec<f32> = (0..width * 8).map(|_| next()).collect();
    let table = DenseTensor::from_f32(vec![8, width], &values).expect("shape");
    let table = device.table(Tensor::Dense(table).into(), TableUse::Embedding).expect("memory");
    let mut rows = device.hidden(m, width).expect("memory");
    let token_ids: Vec<TokenId> = (0..m as u32).map(|i| TokenId(i % 8)).collect();
    device.embed(&table, &token_ids, &mut rows).expect("embed");
    rows
}

/// One linear layer shape at several numbers of tokens.
fn bench_linear(bench: &mut Bench, (label, n, k): (&str, usize, usize), policy: ActivationPolicy, group: Option<usize>) {
    let shape = |m: usize| format!("{n}x{k}-{label}{}/m={m}", group.map_or(String::new(), |group| format!("-g{group}")));
    let (op, counts) = match policy {
        Int8PerToken => ("bit_linear", vec![1, 2, 4, 8, 64, 512]),
        Int8PerGroup => ("bit_linear_groups", vec![1, 2, 4, 8, 32, 64, 512]),
        Unquantised => ("bit_linear_f32", vec![1, 8, 64]),
    };
    if !counts.iter().any(|&m| bench.is_wanted(&bench.name(op, &shape(m)))) {
        return;
    }
    let scales = match group {
        None => Scales::Tensor(0.02),
        Some(group_size) => Scales::Group { group_size, scales: vec![0.02; n * (k / group_size)] },
    };
    let matrix = TernaryMatrix::from_codes(n, k, random_codes(n * k / 4), scales).expect("valid");
    let copies = BEYOND_CACHE.div_ceil(n * k / 4);
    let layers: Vec<_> = (0..copies).map(|_| bench.device.linear(&matrix, policy).expect("memory")).collect();
    for m in counts {
        let name = bench.name(op, &shape(m));
        if !bench.is_wanted(&name) {
            continue;
        }
        let used = if m >= 64 { 1.max(copies / m) } else { copies };
        let x = random_rows(&mut bench.device, m, k);
        let mut activations = bench.device.activations(m, k, policy).expect("memory");
        bench.device.norm_quantize(&x, &[], &mut activations).expect("norm_quantize");
        let mut out = bench.device.hidden(m, n).expect("memory");
        let bytes: u64 = layers.iter().take(used).map(|layer| bench.device.linear_bytes(layer)).sum();
        let work = Work { bytes: bytes as f64, macs: (used * m * n * k) as f64 };
        bench.measure(&name, &work, |device| {
            layers.iter().take(used).for_each(|layer| device.bit_linear(&activations, layer, &mut out, 0).expect("bit_linear"));
        });
    }
}

fn bench_head(bench: &mut Bench, dtype: DenseType) {
    let (n, k) = (128_256, 2560);
    let shape = |m: usize| format!("{n}x{k}-{dtype:?}/m={m}");
    if !bench.is_wanted(&bench.name("logits", &shape(1))) {
        return;
    }
    // Normal numbers of both signs, exponents within two octaves; the hardest case for a screen, since no row stands out.
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        [(state >> 8) as u8, 0x3c | ((state >> 16) as u8 & 0x81)]
    };
    let bytes = (0..n * k).flat_map(|_| next()).collect();
    let table = DenseTensor::from_bytes(vec![n, k], dtype, bytes).expect("shape");
    let mut table = bench.device.table(Tensor::Dense(table).into(), TableUse::Head).expect("memory");
    for m in [1, 2, 8] {
        let x = random_rows(&mut bench.device, m, k);
        let mut out = bench.device.hidden(m, n).expect("memory");
        let work = Work { bytes: (n * k * dtype.size_bytes()) as f64, macs: (m * n * k) as f64 };
        let name = bench.name("logits", &shape(m));
        bench.measure(&name, &work, |device| device.logits(&x, &mut table, &vec![None; m], &mut out).expect("logits"));
        let best = vec![Some(BestLogits { n: 1, within: 0.0 }); m];
        let name = bench.name("best_logits", &shape(m));
        bench.measure(&name, &work, |device| device.logits(&x, &mut table, &best, &mut out).expect("logits"));
    }
}

/// Attention of `m` tokens behind `first_position` others.
fn bench_attention(bench: &mut Bench, first_position: usize, m: usize) {
    let (n_heads, n_kv_heads, head_dim, n_blocks) = (20, 5, 128, 256);
    let name = bench.name("attention", &format!("h={n_heads}/{n_kv_heads}x{head_dim}-at{first_position}/m={m}"));
    if !bench.is_wanted(&name) {
        return;
    }
    let layout = KvLayout { n_layers: 1, n_kv_heads, head_dim, n_blocks, kv_type: KvType::F16 };
    let mut cache = bench.device.kv_cache(layout).expect("memory");
    let rope = RopeTable::new(&Rope { theta: 500_000.0, scaling: RopeScaling::None }, head_dim);
    let heads = Heads { n_heads, n_kv_heads, head_dim, qk_norms: None, epsilon: 1e-5 };
    let mut step = Step::default();
    let block_table = (0..n_blocks as u32).map(BlockId).collect();
    let sequence = BatchSequence { n_tokens: m, first_position, block_table, rows: Rows::Last };
    step.fill(&Batch { token_ids: vec![TokenId(0); m], sequences: vec![sequence] }, &rope);
    let mut qkv = random_rows(&mut bench.device, m, (n_heads + 2 * n_kv_heads) * head_dim);
    bench.device.rope_append(&mut qkv, &heads, &step, (&mut cache, 0)).expect("rope_append");
    let mut out = bench.device.hidden(m, n_heads * head_dim).expect("memory");
    let pairs: usize = step.positions.iter().map(|position| position + 1).sum();
    let read = (first_position + m) * n_kv_heads * head_dim * 2 * 4;
    let work = Work { bytes: read as f64, macs: (pairs * n_heads * head_dim * 2) as f64 };
    bench.measure(&name, &work, |device| device.attention(&qkv, &heads, &step, (&cache, 0), &mut out).expect("attention"));
}

/// The operations between the products.
fn bench_rows(bench: &mut Bench, m: usize) {
    let hidden = 6912;
    let norms = [Norm { weight: bench.device.vector(&vec![1.0; hidden]).expect("memory"), epsilon: 1e-5 }];
    let x = random_rows(&mut bench.device, m, hidden);
    let mut activations = bench.device.activations(m, hidden, Int8PerToken).expect("memory");
    let name = bench.name("norm_quantize", &format!("{hidden}/m={m}"));
    let work = Work { bytes: (m * hidden * 5) as f64, macs: (m * hidden) as f64 };
    if bench.is_wanted(&name) {
        bench.measure(&name, &work, |device| {
            device.norm_quantize(&x, &norms, &mut activations).expect("norm_quantize");
        });
    }
    let gate_up = random_rows(&mut bench.device, m, 2 * hidden);
    let mut out = bench.device.hidden(m, hidden).expect("memory");
    for activation in [bitnet_checkpoint::config::Activation::Relu2, bitnet_checkpoint::config::Activation::Silu] {
        let name = bench.name("gate", &format!("{hidden}-{activation:?}/m={m}"));
        let work = Work { bytes: (m * hidden * 12) as f64, macs: (m * hidden) as f64 };
        if bench.is_wanted(&name) {
            bench.measure(&name, &work, |device| device.gate(&gate_up, activation, &mut out).expect("gate"));
        }
    }
}

/// A whole model of a published shape with random weights: tokens a second of a prompt of 512 and of the 32 tokens after it.
fn bench_model(shape: &str, options: CpuOptions, words: &[String]) {
    let device = CpuDevice::new(options).expect("made before");
    let description = device.describe();
    let name = format!("model/{}/{}/{shape}/t={}", description.name, description.isa, description.n_threads);
    // Gigabytes of memory and a minute: only when its shape is asked for.
    if !words.iter().any(|word| word == shape) || !words.iter().all(|word| name.contains(word.as_str())) {
        return;
    }
    let source = RandomWeights::published(shape, 1).expect("a published shape");
    let start = Instant::now();
    let runner = TransformerRunner::load(device, &source, RunnerOptions::single_sequence(1024), &mut |_| {}).expect("loads");
    println!("{name}: made and loaded in {:.1} s", start.elapsed().as_secs_f64());
    let mut session = Session::new(Box::new(runner));
    let prompt: Vec<TokenId> = (0..512).map(|i| TokenId(i * 37 % 30_000)).collect();
    for _ in 0..3 {
        session.truncate(0);
        session.want(None);
        let start = Instant::now();
        session.prefill(&prompt).expect("prefill");
        let prefill = start.elapsed().as_secs_f64();
        let start = Instant::now();
        session.want(Some(BestLogits { n: 1, within: 0.0 }));
        (0..32).for_each(|i| assert!(!session.decode(TokenId(i)).expect("decode").is_empty()));
        let decode = start.elapsed().as_secs_f64();
        println!("{name}: prefill 512 at {:.1} tokens/s, decode at {:.2} tokens/s", 512.0 / prefill, 32.0 / decode);
    }
}

/// Instruction sets by name with one thread and all of them, scalar with all only; those that a word names, if one does.
fn choices(words: &[String]) -> Vec<(IsaChoice, usize)> {
    let n_threads = std::thread::available_parallelism().map_or(1, usize::from);
    let is_named = |isa: &IsaChoice| words.iter().any(|word| word == isa.name());
    let any_is_named = IsaChoice::NAMED.iter().any(is_named);
    let wanted = IsaChoice::NAMED.into_iter().filter(|isa| !any_is_named || is_named(isa));
    let with_threads = wanted.flat_map(|isa| [(isa, 1), (isa, n_threads)]);
    let mut choices: Vec<_> = with_threads.filter(|&(isa, n)| isa != IsaChoice::Scalar || n == n_threads).collect();
    choices.dedup();
    choices
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    for (isa, n_threads) in choices(&words) {
        let Ok(device) = CpuDevice::new(CpuOptions { n_threads: Some(n_threads), isa, ..CpuOptions::default() }) else { continue };
        ["0.7b", "2b4t", "8b"]
            .into_iter()
            .for_each(|shape| bench_model(shape, CpuOptions { n_threads: Some(n_threads), isa, ..CpuOptions::default() }, &words));
        let meter = RoofMeter::new().expect("512 MiB");
        let mut bench = Bench { device, meter, words: words.clone() };
        for shape in [("qkv", 3840, 2560), ("o", 2560, 2560), ("gate_up", 13_824, 2560), ("down", 2560, 6912)] {
            bench_linear(&mut bench, shape, Int8PerToken, None);
        }
        bench_linear(&mut bench, ("grouped", 2560, 2560), Int8PerToken, Some(128));
        // Those of an 8B model whose weights have groups.
        for shape in [("qkv", 6144, 4096), ("gate_up", 24_576, 4096), ("down", 4096, 12_288)] {
            bench_linear(&mut bench, shape, Int8PerGroup, Some(128));
        }
        bench_linear(&mut bench, ("rows", 2560, 2560), Int8PerGroup, None);
        bench_linear(&mut bench, ("grouped", 2560, 2560), Unquantised, Some(128));
        bench_linear(&mut bench, ("tensor", 2560, 2560), Unquantised, None);
        for dtype in [DenseType::Bf16, DenseType::F16] {
            bench_head(&mut bench, dtype);
        }
        for (first_position, m) in [(127, 1), (511, 1), (4000, 1), (0, 512)] {
            bench_attention(&mut bench, first_position, m);
        }
        for m in [1, 512] {
            bench_rows(&mut bench, m);
        }
    }
}
