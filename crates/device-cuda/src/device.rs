//! `CudaDevice`: the operations of `bitnet_model::device::Device` on one NVIDIA GPU. Each is recorded; `argmax` and `finish` run what
//! was recorded and wait for it.
//!
//! This file only checks handles and hands work to the file of each operation; kernels are under `kernels/`.

use bitnet_checkpoint::StoredTable;
use bitnet_checkpoint::config::{Activation, ActivationPolicy};
use bitnet_model::TokenId;
use bitnet_model::batch::{BestLogits, Step};
use bitnet_model::device::{Device, DeviceDescription, DeviceError, DeviceMemory, Heads, KvLayout, Norm, Repeated, TableUse};
use bitnet_ternary::TernaryMatrix;

use crate::activations::{CudaActivations, norm_arguments};
use crate::attention::{self, CudaKvCache, SplitRoom, StagedStep, StepShape};
use crate::driver::{Buffer, GpuDescription, HostBuffer, Stream, gpus};
use crate::error::CudaError;
use crate::hidden::CudaHidden;
use crate::kernels::{HOPPER, Kernels};
use crate::limits::CAPABILITY_MIN;
use crate::linear::{self, CudaLinear, Packed, Store, activation_number, bit_linear, float_bytes};
use crate::queue::{Arguments, Queue};
use crate::screen;
use crate::step::{STEP_CAPABILITY_MIN, StepOfOne};
use crate::table::{CudaTable, TablePlace};

/// Rows of logits at a time: so many sequences read the head together.
const OUTPUT_ROWS: usize = 256;
/// Rows whose best token one call of `argmax` may ask for.
const ARGMAX_ROWS_MAX: usize = 65_536;

/// One GPU as a device.
pub struct CudaDevice {
    queue: Queue,
    kernels: Kernels,
    gpu: GpuDescription,
    isa: &'static str,
    /// The step whose data is on the GPU, and its shape; `embed` begins another.
    step: Option<(StagedStep, StepShape)>,
    /// Key of the best logit of each row and whether the row is damaged, `[ARGMAX_ROWS_MAX, 2]`.
    best: Buffer,
    host_best: HostBuffer,
    /// Made by the first attention that may need it.
    split_room: Option<SplitRoom>,
    options: CudaOptions,
}

/// What a caller looks at of logits.
#[derive(Clone, Copy, PartialEq, Eq)]
enum LogitsUse {
    Best,
    All,
}

/// How a GPU is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CudaOptions {
    /// Where large embeddings and heads are.
    pub table_place: TablePlace,
}

/// f32 vector `[n]`.
pub struct CudaVector {
    values: Buffer,
    n: usize,
}

impl CudaVector {
    pub(crate) fn address(&self) -> u64 {
        self.values.address()
    }

    pub(crate) fn len(&self) -> usize {
        self.n
    }
}

/// Whether the kernels run on this GPU.
pub fn check_gpu(gpu: &GpuDescription) -> Result<(), CudaError> {
    let (major, minor) = gpu.capability;
    if major < CAPABILITY_MIN {
        return Err(CudaError::TooOld { name: gpu.name.clone(), major, minor, needed: CAPABILITY_MIN });
    }
    Ok(())
}

impl CudaDevice {
    /// Makes GPU `ordinal` a device: loads its kernels, compiling them if this is their first use here.
    pub fn new(ordinal: usize) -> Result<Self, CudaError> {
        Self::with_options(ordinal, CudaOptions::default())
    }

    /// The same, used as `options` say.
    pub fn with_options(ordinal: usize, options: CudaOptions) -> Result<Self, CudaError> {
        let gpu = gpus()?.into_iter().nth(ordinal).ok_or(CudaError::NoSuchDevice { ordinal })?;
        check_gpu(&gpu)?;
        let (major, minor) = gpu.capability;
        let stream = Stream::new(ordinal, major >= 9)?;
        // Static shared memory counts, too; no kernel with much dynamic memory has more than this.
        const STATIC_SHARED_BYTES: usize = 9 << 10;
        let architecture = if gpu.capability == (9, 0) { HOPPER.to_string() } else { format!("sm_{major}{minor}") };
        let kernels = Kernels::load(&stream, &architecture, gpu.shared_bytes_max - STATIC_SHARED_BYTES)?;
        let mut queue = Queue::new(stream)?;
        if major >= STEP_CAPABILITY_MIN {
            queue.put_together(StepOfOne::new(&kernels, (gpu.n_multiprocessors, gpu.shared_bytes_max - STATIC_SHARED_BYTES)));
        }
        let best_bytes = ARGMAX_ROWS_MAX * 2 * size_of::<u64>();
        let (best, host_best) = (queue.buffer("best logits", best_bytes)?, queue.host_buffer("best logits", best_bytes)?);
        let isa = match (major, minor) {
            (8, 0) => "sm_80",
            (8, 9) => "sm_89",
            (8, _) => "sm_8x",
            (9, _) => "sm_90",
            (10, _) => "sm_100",
            (12, _) => "sm_120",
            _ => "sm_new",
        };
        Ok(Self { queue, kernels, gpu, isa, step: None, best, host_best, split_room: None, options })
    }

    /// The GPU.
    pub fn gpu(&self) -> &GpuDescription {
        &self.gpu
    }

    /// What records work and the kernels, for measuring.
    pub(crate) fn parts(&mut self) -> (&mut Queue, &Kernels) {
        (&mut self.queue, &self.kernels)
    }

    /// The step's data on the GPU, brought there by the first operation that needs it.
    fn staged(&mut self, step: &Step) -> Result<StagedStep, DeviceError> {
        if self.step.is_none() {
            let has_wgmma = self.kernels.has_tiles;
            self.step = Some((StagedStep::new(step, has_wgmma, &mut self.queue)?, StepShape::new(step, has_wgmma)));
        }
        let (staged, _) = self.step.as_ref().expect("filled just now");
        Ok(*staged)
    }

    /// The best of each row, when everything queued has run.
    fn fetch_best(&mut self, n_rows: usize) -> Result<impl Iterator<Item = (TokenId, bool)>, DeviceError> {
        self.queue.fetch(&self.best, &self.host_best, n_rows * 2 * size_of::<u64>())?;
        let rows = self.host_best.words(n_rows * 4).chunks_exact(4);
        // The lower half of a key is the index's complement; key 0 says that nothing is above −∞.
        Ok(rows.map(|words| (TokenId(if words[1] == 0 { 0 } else { !words[0] }), words[2] != 0)))
    }

    /// For each row of logits, the index of the largest and whether a value is NaN or +∞; logits that nobody looks at need not be there after.
    fn best(&mut self, logits: &CudaHidden, logits_use: LogitsUse) -> Result<impl Iterator<Item = (TokenId, bool)>, DeviceError> {
        /// Columns that one block looks at.
        const BLOCK_COLUMNS: usize = 1024;
        let (n_rows, width) = (logits.n_rows(), logits.width());
        assert!(n_rows <= ARGMAX_ROWS_MAX, "{n_rows} rows of logits");
        let behind_screen = match logits_use {
            LogitsUse::Best => {
                screen::best_behind_screen((logits.address(), n_rows, self.best.address()), (&mut self.queue, &self.kernels))
            }
            LogitsUse::All => None,
        };
        let forgets = usize::from(logits_use == LogitsUse::Best);
        let arguments = |width| Arguments::new().address(logits.address()).address(self.best.address()).word(width).word(forgets);
        let begin = arguments(n_rows * 2).launch(self.kernels.argmax_begin, [(n_rows * 2).div_ceil(256), 1], (256, 0));
        self.queue.record(begin)?;
        let argmax = arguments(width).launch(self.kernels.argmax, [width.div_ceil(BLOCK_COLUMNS), n_rows], (256, 0));
        self.queue.record(behind_screen.unwrap_or(argmax))?;
        if let (LogitsUse::Best, Some((_, shape))) = (logits_use, self.step) {
            self.queue.know(shape);
        }
        self.fetch_best(n_rows)
    }

    fn check_width(&self, what: &'static str, width: usize) -> Result<(), DeviceError> {
        let limit = (self.gpu.shared_bytes_max - (16 << 10)) / 6;
        if width > limit {
            return Err(DeviceError::Unsupported { what, reason: format!("rows of {width}; this GPU's shared memory holds {limit}") });
        }
        Ok(())
    }
}

impl Device for CudaDevice {
    type Vector = CudaVector;
    type Linear = CudaLinear;
    type Table = CudaTable;
    type Hidden = CudaHidden;
    type Activations = CudaActivations;
    type KvCache = CudaKvCache;

    fn describe(&self) -> DeviceDescription {
        DeviceDescription { name: "cuda", isa: self.isa, n_threads: self.gpu.n_multiprocessors }
    }

    fn vector(&mut self, values: &[f32]) -> Result<CudaVector, DeviceError> {
        Ok(CudaVector { values: self.queue.uploaded("vector", &float_bytes(values))?, n: values.len() })
    }

    fn linear(&mut self, weights: &TernaryMatrix, policy: ActivationPolicy) -> Result<CudaLinear, DeviceError> {
        self.check_width("a linear layer", weights.n_cols())?;
        Ok(CudaLinear { packed: Packed::new(weights, policy, (&mut self.queue, &self.kernels))?, policy })
    }

    fn table(&mut self, rows: StoredTable, table_use: TableUse) -> Result<CudaTable, DeviceError> {
        let rows = rows.into_tensor().map_err(|error| DeviceError::unreadable(&error))?;
        CudaTable::new((&rows, table_use, self.options.table_place), (&mut self.queue, &self.kernels))
    }

    fn hidden(&mut self, n_rows_max: usize, width: usize) -> Result<CudaHidden, DeviceError> {
        CudaHidden::new(&mut self.queue, n_rows_max, width)
    }

    fn activations(&mut self, n_rows_max: usize, width_max: usize, policy: ActivationPolicy) -> Result<CudaActivations, DeviceError> {
        self.check_width("activations", width_max)?;
        CudaActivations::new(&mut self.queue, n_rows_max, width_max, policy)
    }

    fn kv_cache(&mut self, layout: KvLayout) -> Result<CudaKvCache, DeviceError> {
        CudaKvCache::new(&mut self.queue, layout)
    }

    fn n_output_rows(&self) -> usize {
        OUTPUT_ROWS
    }

    fn embed(&mut self, table: &CudaTable, token_ids: &[TokenId], x: &mut CudaHidden) -> Result<(), DeviceError> {
        self.queue.begin_step()?;
        self.step = None;
        table.embed(token_ids, x, (&mut self.queue, &self.kernels))
    }

    fn norm_quantize(&mut self, x: &CudaHidden, norms: &[Norm<CudaVector>], out: &mut CudaActivations) -> Result<(), DeviceError> {
        out.fill(x, norms, (&mut self.queue, &self.kernels))
    }

    fn bit_linear(
        &mut self,
        x: &CudaActivations,
        weights: &CudaLinear,
        out: &mut CudaHidden,
        first_column: usize,
    ) -> Result<(), DeviceError> {
        let device = (&mut self.queue, &self.kernels, self.gpu.n_multiprocessors);
        bit_linear(x, weights, (out, Store::Write { first_column }), device)
    }

    fn bit_linear_add(&mut self, x: &CudaActivations, weights: &CudaLinear, residual: &mut CudaHidden) -> Result<(), DeviceError> {
        let device = (&mut self.queue, &self.kernels, self.gpu.n_multiprocessors);
        bit_linear(x, weights, (residual, Store::Add), device)
    }

    fn rope_append(
        &mut self,
        qkv: &mut CudaHidden,
        heads: &Heads<'_, CudaVector>,
        step: &Step,
        (cache, layer): (&mut CudaKvCache, usize),
    ) -> Result<(), DeviceError> {
        let staged = self.staged(step)?;
        attention::rope_append(qkv, heads, &staged, (cache, layer), (&mut self.queue, &self.kernels))
    }

    fn attention(
        &mut self,
        qkv: &CudaHidden,
        heads: &Heads<'_, CudaVector>,
        step: &Step,
        cache: (&CudaKvCache, usize),
        out: &mut CudaHidden,
    ) -> Result<(), DeviceError> {
        let staged = self.staged(step)?;
        attention::attention((qkv, out), heads, &staged, cache, (&mut self.queue, &self.kernels, &self.gpu, &mut self.split_room))
    }

    fn linear_bytes(&self, weights: &CudaLinear) -> u64 {
        weights.packed.size_bytes()
    }

    fn memory(&self, cache: &CudaKvCache) -> Option<DeviceMemory> {
        let (used_bytes, host_bytes) = self.queue.used_bytes();
        Some(DeviceMemory { used_bytes: used_bytes as u64, kv_cache_bytes: cache.size_bytes(), host_bytes: host_bytes as u64 })
    }

    fn head_bytes(&self, head: &CudaTable) -> u64 {
        head.read_bytes()
    }

    fn gate(&mut self, gate_up: &CudaHidden, activation: Activation, out: &mut CudaHidden) -> Result<(), DeviceError> {
        const THREADS: usize = 256;
        let (width, n_rows) = (out.width(), gate_up.n_rows());
        assert_eq!(gate_up.width(), 2 * width, "gate and up are as wide as the output");
        let address = out.address_for_rows(n_rows, &mut self.queue)?;
        let device = (&mut self.queue, &self.kernels, self.gpu.n_multiprocessors);
        if linear::gate_behind_product(gate_up, (activation, address), device)? {
            return Ok(());
        }
        let arguments = Arguments::new().address(gate_up.address()).address(address).word(width).word(activation_number(activation));
        self.queue.record(arguments.launch(self.kernels.gate, [width.div_ceil(THREADS), n_rows], (THREADS, 0)))
    }

    fn final_norm(&mut self, x: &CudaHidden, norm: &Norm<CudaVector>, rows: &[usize], out: &mut CudaHidden) -> Result<(), DeviceError> {
        let width = x.width();
        assert_eq!(out.width(), width, "normed rows keep their width");
        assert!(rows.iter().all(|&row| row < x.n_rows()), "rows of {}", x.n_rows());
        self.check_width("rows", width)?;
        let staged = self.queue.stage(rows.iter().map(|&row| row as u32))?;
        let out = out.address_for_rows(rows.len(), &mut self.queue)?;
        let arguments = Arguments::new().address(x.address()).address(staged).address(out);
        let arguments = norm_arguments(arguments, std::slice::from_ref(norm), width).word(width).word(0);
        self.queue.record(arguments.launch(self.kernels.final_norm, [rows.len(), 1], (512, width * size_of::<f32>())))
    }

    fn logits(
        &mut self,
        x: &CudaHidden,
        head: &mut CudaTable,
        wanted: &[Option<BestLogits>],
        out: &mut CudaHidden,
    ) -> Result<(), DeviceError> {
        head.logits((x, wanted), out, (&mut self.queue, &self.kernels))
    }

    fn argmax(&mut self, logits: &CudaHidden, out: &mut Vec<TokenId>) -> Result<(), DeviceError> {
        let best = self.best(logits, LogitsUse::All)?;
        out.clear();
        out.extend(best.map(|(token_id, _)| token_id));
        Ok(())
    }

    fn argmax_checked(&mut self, logits: &CudaHidden, out: &mut Vec<TokenId>) -> Result<Option<usize>, DeviceError> {
        Ok(first_damaged(self.best(logits, LogitsUse::Best)?, out))
    }

    fn repeat(&mut self, step: &Step, out: &mut Vec<TokenId>) -> Result<Repeated, DeviceError> {
        let shape = StepShape::new(step, self.kernels.has_tiles);
        if !self.queue.knows(shape) {
            return Ok(Repeated::Not);
        }
        self.queue.begin_step()?;
        self.step = None;
        // As `embed`, the first use of the step and `final_norm` stage it.
        self.queue.stage(step.token_ids.iter().map(|token_id| token_id.0))?;
        StagedStep::new(step, self.kernels.has_tiles, &mut self.queue)?;
        self.queue.stage(step.output_tokens.iter().map(|&row| row as u32))?;
        self.queue.repeat(shape)?;
        Ok(Repeated::Whole { damaged: first_damaged(self.fetch_best(step.output_tokens.len())?, out) })
    }

    fn finish<'a>(&mut self, x: &'a CudaHidden) -> Result<&'a [f32], DeviceError> {
        x.fetch(&mut self.queue)
    }
}

/// Puts the best tokens into `out`; the first row that is damaged, if there is one.
fn first_damaged(best: impl Iterator<Item = (TokenId, bool)>, out: &mut Vec<TokenId>) -> Option<usize> {
    out.clear();
    let mut damaged = None;
    for (row, (token_id, is_damaged)) in best.enumerate() {
        out.push(token_id);
        damaged = damaged.or(is_damaged.then_some(row));
    }
    damaged
}

#[cfg(test)]
mod tests {
    use bitnet_model::batch::{Batch, BatchSequence, BlockId, Rows};
    use bitnet_model::device::KvType;
    use bitnet_model::random::{RandomWeights, small_config};
    use bitnet_model::{Runner, RunnerError, RunnerOptions, TransformerRunner};

    use super::*;

    /// Says to the test's own process that it is to lose the GPU: nothing else of this process could use it afterwards.
    const LOSES: &str = "BITNET_TEST_LOSES_THE_GPU";

    /// Runs a kernel that writes where there is no memory.
    fn lose(device: &mut CudaDevice) -> Result<(), DeviceError> {
        let nowhere = Arguments::new().address(64).address(128).word(256).word(0);
        device.queue.record(nowhere.launch(device.kernels.gate, [1, 1], (256, 0)))?;
        device.queue.wait()
    }

    fn step(runner: &mut TransformerRunner<CudaDevice>) -> Result<(), RunnerError> {
        let sequence = BatchSequence { n_tokens: 2, first_position: 0, block_table: vec![BlockId(0)], rows: Rows::Last };
        runner.step(&Batch { token_ids: vec![TokenId(1), TokenId(2)], sequences: vec![sequence] }).map(|_| ())
    }

    #[test]
    fn kernel_that_writes_nowhere_loses_the_gpu_and_every_later_step_says_so() {
        let mut device = match CudaDevice::new(0) {
            Ok(device) => device,
            Err(error @ (CudaError::NoDriver | CudaError::NoDevice)) => return println!("not run: {error}"),
            Err(error) => panic!("the GPU does not work: {error}"),
        };
        if std::env::var_os(LOSES).is_none() {
            let test = "device::tests::kernel_that_writes_nowhere_loses_the_gpu_and_every_later_step_says_so";
            let mut own = std::process::Command::new(std::env::current_exe().expect("this program"));
            let status = own.args(["--exact", test, "--nocapture"]).env(LOSES, "1").status().expect("it starts again");
            assert!(status.success(), "{status}");
            assert!(device.hidden(1, 64).is_ok(), "another process's loss is not ours");
            return;
        }
        let other = CudaDevice::new(0).expect("the GPU works");
        let options = RunnerOptions { n_tokens_max: 16, n_cached_tokens: 64, kv_type: KvType::F16 };
        let weights = RandomWeights::new(small_config(), 5);
        let mut runner = TransformerRunner::load(other, &weights, options, &mut |_| {}).expect("a small model loads");
        assert_eq!(step(&mut runner), Ok(()));
        assert!(matches!(lose(&mut device), Err(DeviceError::Lost { .. })));
        for _ in 0..2 {
            let got = step(&mut runner);
            assert!(matches!(got, Err(RunnerError::Device(DeviceError::Lost { .. }))), "{got:?}");
        }
        assert!(matches!(device.hidden(1, 64).err(), Some(DeviceError::Lost { .. })), "nor is there memory of it");
    }
}
