//! Speed of whole steps of random models of published shapes on the first GPU, against its roofs measured in the same run:
//! `step/cuda/ISA/SHAPE`. Arguments choose: a shape, `b` and a number of sequences that write, `p` and a length of prompt to read, as
//! `2b4t b1 b64 p2048 8b b1`; `n` and a number of tokens to write, `c` and a context to start from.

use std::time::Instant;

use bitnet_checkpoint::config::ActivationPolicy;
use bitnet_device_cuda::limits::STEP_TOKENS;
use bitnet_device_cuda::{CudaDevice, CudaRoofMeter, CudaRoofs};
use bitnet_model::batch::{Batch, BatchSequence, BlockId, Rows};
use bitnet_model::device::KvType;
use bitnet_model::limits::BLOCK_TOKENS;
use bitnet_model::random::RandomWeights;
use bitnet_model::{Runner, RunnerOptions, TokenId, TransformerRunner, WeightSource};

const REPETITIONS: usize = 5;
const SEQUENCES_MAX: usize = 256;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    let device = match CudaDevice::new(0) {
        Ok(device) => device,
        Err(error) => return println!("no GPU to measure: {error}"),
    };
    let mut meter = CudaRoofMeter::new(device).expect("memory for the roofs");
    let roofs = (0..4).map(|_| meter.measure().expect("the GPU works")).reduce(best).expect("four measurements");
    drop(meter);
    println!("roofs: {:.0} GB/s read, {:.0} TMAC/s int8", roofs.read_bytes_per_s / 1e9, roofs.int8_macs_per_s / 1e12);
    let default = ["2b4t", "b1", "b64", "b256", "p512", "p2048", "8b", "b1"].map(String::from).to_vec();
    let mut bench: Option<Bench> = None;
    for argument in if arguments.is_empty() { default } else { arguments } {
        let (kind, number) = argument.split_at(1);
        match (kind, number.parse::<usize>(), &mut bench) {
            ("b", Ok(n_sequences), Some(bench)) => bench.write(n_sequences, roofs),
            ("p", Ok(n_tokens), Some(bench)) => bench.read(n_tokens, roofs),
            ("n", Ok(n_tokens), Some(bench)) => bench.n_written = n_tokens,
            ("c", Ok(n_tokens), Some(bench)) => bench.n_context = n_tokens,
            _ => bench = Some(Bench::load(&argument)),
        }
    }
}

fn best(a: CudaRoofs, b: CudaRoofs) -> CudaRoofs {
    CudaRoofs { read_bytes_per_s: a.read_bytes_per_s.max(b.read_bytes_per_s), int8_macs_per_s: a.int8_macs_per_s.max(b.int8_macs_per_s) }
}

struct Bench {
    name: String,
    runner: TransformerRunner<CudaDevice>,
    macs_per_token: f64,
    n_written: usize,
    n_context: usize,
}

impl Bench {
    fn load(shape: &str) -> Self {
        let weights = RandomWeights::published(shape, 1).expect("a published shape");
        // As `bitnet bench` does: decision 0010.
        let policy = match weights.config().activation_policy {
            ActivationPolicy::Unquantised => ActivationPolicy::Int8PerGroup,
            policy => policy,
        };
        let weights = weights.with_activation_policy(policy);
        let options = RunnerOptions { n_tokens_max: STEP_TOKENS, n_cached_tokens: SEQUENCES_MAX * 256, kv_type: KvType::F16 };
        let started = Instant::now();
        let runner = TransformerRunner::load(CudaDevice::new(0).expect("worked above"), &weights, options, &mut |_| {}).expect("loads");
        let config = runner.config();
        let linear = config.hidden_size * (2 * config.q_size() + 2 * config.kv_size() + 3 * config.intermediate_size) * config.n_layers;
        println!("{shape}: loaded in {:.1} s, {:.0} MB read a token", started.elapsed().as_secs_f64(), runner.decode_bytes() as f64 / 1e6);
        Self { name: format!("cuda/{}/{shape}", runner.device().isa), macs_per_token: linear as f64, runner, n_written: 64, n_context: 128 }
    }

    /// Median seconds of a step, after one that is not counted.
    fn seconds(&mut self, batches: &[Batch]) -> f64 {
        let mut seconds: Vec<f64> = Vec::new();
        for repetition in 0..=REPETITIONS {
            let started = Instant::now();
            for batch in batches {
                self.runner.step(batch).expect("the batch is valid");
            }
            if repetition > 0 {
                seconds.push(started.elapsed().as_secs_f64());
            }
        }
        seconds.sort_by(f64::total_cmp);
        seconds[REPETITIONS / 2]
    }

    fn write(&mut self, n_sequences: usize, roofs: CudaRoofs) {
        let (first, n) = (self.n_context, self.n_written);
        let batches: Vec<Batch> = (first..first + n).map(|position| self.batch(n_sequences, position..position + 1)).collect();
        let seconds = self.seconds(&batches) / n as f64;
        let bytes = self.runner.decode_bytes() as f64 / seconds;
        println!(
            "step/{} b{n_sequences} at {first}: {:.3} ms, {:.0} tokens/s, {:.0}% of memory, {:.0}% of int8",
            self.name,
            seconds * 1e3,
            n_sequences as f64 / seconds,
            100.0 * bytes / roofs.read_bytes_per_s,
            100.0 * self.macs_per_token * n_sequences as f64 / seconds / roofs.int8_macs_per_s
        );
    }

    fn read(&mut self, n_tokens: usize, roofs: CudaRoofs) {
        let starts: Vec<usize> = (0..n_tokens).step_by(STEP_TOKENS).collect();
        let batches: Vec<Batch> = starts.iter().map(|&start| self.batch(1, start..n_tokens.min(start + STEP_TOKENS))).collect();
        let seconds = self.seconds(&batches);
        println!(
            "step/{} p{n_tokens}: {:.2} ms, {:.0} tokens/s, {:.0}% of int8",
            self.name,
            seconds * 1e3,
            n_tokens as f64 / seconds,
            100.0 * self.macs_per_token * n_tokens as f64 / seconds / roofs.int8_macs_per_s
        );
    }

    fn batch(&self, n_sequences: usize, positions: std::ops::Range<usize>) -> Batch {
        let blocks_each = self.runner.limits().n_blocks / n_sequences;
        let n_vocab = self.runner.config().n_vocab;
        let sequence = |index: usize| BatchSequence {
            n_tokens: positions.len(),
            first_position: positions.start,
            block_table: (0..positions.end.div_ceil(BLOCK_TOKENS)).map(|block| BlockId((index * blocks_each + block) as u32)).collect(),
            rows: Rows::LastGreedy,
        };
        let token = |index: usize, position: usize| TokenId(((index * 104_729 + position * 7919) % n_vocab) as u32);
        let tokens = (0..n_sequences).flat_map(|index| positions.clone().map(move |position| (index, position)));
        Batch {
            token_ids: tokens.map(|(index, position)| token(index, position)).collect(),
            sequences: (0..n_sequences).map(sequence).collect(),
        }
    }
}
