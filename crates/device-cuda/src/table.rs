//! `CudaTable`: an embedding or head, dense in stored precision or ternary, and the operations `embed` and `logits`.

use bitnet_checkpoint::config::ActivationPolicy;
use bitnet_checkpoint::{DenseTensor, DenseType, Tensor};
use bitnet_model::TokenId;
use bitnet_model::batch::BestLogits;
use bitnet_model::device::{DeviceError, TableUse};

use crate::activations::BLOCK_COLUMNS;
use crate::driver::{Buffer, HostBuffer};
use crate::hidden::CudaHidden;
use crate::kernels::Kernels;
use crate::limits::TABLE_BYTES_ON_GPU_MAX;
use crate::linear::{F32Rows, Packed, f32_logits};
use crate::queue::{Arguments, Queue};
use crate::screen::{DenseHead, Screen, dtype_number};

/// Rows are filled up to a multiple of this many elements.
const LANES: usize = 16;
/// Widest head that is screened: sums of products of 127 · 127 stay exact in 32 bits.
const SCREEN_COLUMNS_MAX: usize = 131_072;

/// Embedding or head `[n_vocab, k]` on the GPU.
pub struct CudaTable {
    rows: TableRows,
    /// Of a dense head.
    screen: Option<Screen>,
    n: usize,
    k: usize,
}

enum TableRows {
    /// `[n, stride]`, zero beyond k.
    Dense {
        values: Values,
        dtype: DenseType,
        stride: usize,
    },
    Ternary(Packed),
}

/// Where a dense table's numbers are, and where kernels read them.
enum Values {
    Gpu(Buffer),
    /// Pinned on the host: a step reads the rows that it embeds, and of a head those that may be the largest logit, over the bus.
    Host(HostBuffer, u64),
}

impl Values {
    fn new(bytes: &[u8], place: TablePlace, queue: &mut Queue) -> Result<Self, DeviceError> {
        if place == TablePlace::Device || bytes.len() <= TABLE_BYTES_ON_GPU_MAX {
            return Ok(Self::Gpu(queue.uploaded("table", bytes)?));
        }
        let mut pinned = queue.host_buffer("table", bytes.len())?;
        pinned.bytes_mut().copy_from_slice(bytes);
        let address = pinned.address()?;
        Ok(Self::Host(pinned, address))
    }

    fn address(&self) -> u64 {
        match self {
            Self::Gpu(buffer) => buffer.address(),
            Self::Host(_, address) => *address,
        }
    }

    fn size_bytes(&self) -> u64 {
        match self {
            Self::Gpu(buffer) => buffer.size_bytes() as u64,
            Self::Host(buffer, _) => buffer.size_bytes() as u64,
        }
    }
}

/// Where large dense tables are: embeddings and heads in stored precision. Their ternary and int8 parts are on the GPU in any case, and
/// results are the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TablePlace {
    /// On the GPU: best where sampling needs all logits.
    #[default]
    Device,
    /// In the host's memory, where a step reads the rows that it needs. All logits of a step then take as long as the bus takes for all
    /// of the table.
    Host,
}

impl CudaTable {
    pub(crate) fn new(
        (rows, table_use, place): (&Tensor, TableUse, TablePlace),
        (queue, kernels): (&mut Queue, &Kernels),
    ) -> Result<Self, DeviceError> {
        let refused = |reason| DeviceError::Unsupported { what: "a table", reason };
        let &[n, k] = rows.shape().as_slice() else {
            return Err(refused(format!("expected 2 dimensions, got {:?}", rows.shape())));
        };
        if n == 0 || k == 0 || u32::try_from(n.max(k)).is_err() {
            return Err(refused(format!("{n} rows of {k} columns")));
        }
        let rows = match rows {
            Tensor::Dense(dense) => dense_rows((dense, place), k, queue)?,
            Tensor::Ternary(matrix) => TableRows::Ternary(Packed::new(matrix, ActivationPolicy::Unquantised, (queue, kernels))?),
        };
        let mut table = Self { rows, screen: None, n, k };
        if let (Some(head), TableUse::Head, 2..=SCREEN_COLUMNS_MAX) = (table.dense(), table_use, k) {
            table.screen = Some(Screen::new(head, (queue, kernels))?);
        }
        Ok(table)
    }

    /// Bytes that finding the best logits reads at least.
    pub(crate) fn read_bytes(&self) -> u64 {
        match (&self.rows, &self.screen) {
            (_, Some(screen)) => screen.size_bytes(),
            (TableRows::Dense { values, .. }, None) => values.size_bytes(),
            (TableRows::Ternary(packed), None) => packed.size_bytes(),
        }
    }

    fn dense(&self) -> Option<DenseHead> {
        match &self.rows {
            TableRows::Dense { values, dtype, stride } => {
                Some(DenseHead { address: values.address(), dtype: *dtype, n: self.n, k: self.k, stride: *stride })
            }
            TableRows::Ternary(_) => None,
        }
    }

    /// Records `x[i] = table[token_ids[i]]`.
    pub(crate) fn embed(
        &self,
        token_ids: &[TokenId],
        x: &mut CudaHidden,
        (queue, kernels): (&mut Queue, &Kernels),
    ) -> Result<(), DeviceError> {
        assert_eq!(x.width(), self.k, "hidden rows are as wide as the table");
        assert!(token_ids.iter().all(|token_id| token_id.index() < self.n), "token ids of a table of {} rows", self.n);
        let ids = queue.stage(token_ids.iter().map(|token_id| token_id.0))?;
        let (rows, scales, stride, kind) = match &self.rows {
            TableRows::Dense { values, dtype, stride } => (values.address(), 0, *stride, dtype_number(*dtype)),
            TableRows::Ternary(packed) => (packed.words(), packed.scales(), self.k.div_ceil(BLOCK_COLUMNS), 3),
        };
        let (group_size, n_groups) = match &self.rows {
            TableRows::Dense { .. } => (1, 0),
            TableRows::Ternary(packed) => (packed.granularity.size(self.k), packed.granularity.n_groups(self.k)),
        };
        let out = x.address_for_rows(token_ids.len(), queue)?;
        let arguments = Arguments::new().address(rows).address(scales).address(ids).address(out);
        let arguments = arguments.word(self.k).word(stride).word(kind).word(group_size).word(n_groups).word(0);
        queue.record(arguments.launch(kernels.embed, [token_ids.len(), self.k.div_ceil(256)], (256, 0)))
    }

    /// Records `out[r, v] = x[r] · table[v]`, or −∞ where that is proved not to be wanted.
    pub(crate) fn logits(
        &self,
        (x, wanted): (&CudaHidden, &[Option<BestLogits>]),
        out: &mut CudaHidden,
        (queue, kernels): (&mut Queue, &Kernels),
    ) -> Result<(), DeviceError> {
        assert_eq!((x.width(), out.width()), (self.k, self.n), "hidden rows and logits fit the head");
        let m = x.n_rows();
        let address = out.address_for_rows(m, queue)?;
        if let (Some(screen), Some(head)) = (&self.screen, self.dense())
            && m <= Screen::n_tokens_max()
            && wanted.iter().all(|wanted| *wanted == Some(BestLogits::GREATEST))
        {
            return screen.logits(head, (x.address(), address, m), (queue, kernels));
        }
        match &self.rows {
            TableRows::Ternary(packed) => {
                f32_logits(F32Rows { address: x.address(), m, stride: self.k }, packed, address, (queue, kernels))
            }
            TableRows::Dense { values, dtype, stride } => {
                const BLOCK_ROWS: usize = 128;
                let (variant, tokens) = if m == 1 { (0, 1) } else { (1, 4) };
                let arguments = Arguments::new().address(x.address()).address(values.address()).address(address);
                let arguments = arguments.word(m).word(self.n).word(self.k).word(*stride);
                let kernel = kernels.logits[dtype_number(*dtype)][variant];
                let grid = [self.n.div_ceil(BLOCK_ROWS), m.div_ceil(tokens)];
                queue.record(arguments.launch(kernel, grid, (256, tokens * stride * size_of::<f32>())))
            }
        }
    }
}

fn dense_rows((dense, place): (&DenseTensor, TablePlace), k: usize, queue: &mut Queue) -> Result<TableRows, DeviceError> {
    let (dtype, stride) = (dense.dtype(), k.next_multiple_of(LANES));
    let element = dtype.size_bytes();
    let values = if stride == k {
        Values::new(dense.bytes(), place, queue)?
    } else {
        let mut filled = vec![0; dense.bytes().len() / (k * element) * stride * element];
        for (filled, row) in filled.chunks_exact_mut(stride * element).zip(dense.bytes().chunks_exact(k * element)) {
            filled[..row.len()].copy_from_slice(row);
        }
        Values::new(&filled, place, queue)?
    };
    Ok(TableRows::Dense { values, dtype, stride })
}
