//! `CpuTable`: an embedding or head `[n_vocab, k]`, dense in its stored precision (two bytes stay two bytes, wherever they are) or
//! ternary, with `embed` and `logits`.

use bitnet_checkpoint::StoredTable;
use bitnet_model::TokenId;
use bitnet_model::batch::BestLogits;
use bitnet_model::device::{DeviceError, TableUse};
use bitnet_model::numerics::LANES;

use crate::arch::OutOfMemory;
use crate::hidden::CpuHidden;
use crate::kernels::{F32Rows, Kernels, Scratch, Store, first_failure};
use crate::pool::{ColumnTarget, Parts, Pool};
use crate::rows::DenseTable;
use crate::screen::{Screen, Screening};
use crate::ternary_screen::TernaryScreen;
use crate::tile::{BLOCK_COLUMNS, TILE_ROWS, Tiles};

/// A head is screened for at most one of this many of its rows.
const WORTH_SCREENING: usize = 16;

/// An embedding or head on the CPU.
pub struct CpuTable {
    rows: TableRows,
    /// What finds the best logits of a dense head without reading all of it.
    screen: Option<Screen>,
}

enum TableRows {
    Dense(DenseTable),
    Ternary(Tiles, Option<Box<TernaryScreen>>),
}

impl CpuTable {
    /// Takes a table; a dense one is kept in memory if it has at most `resident_bytes_max`.
    pub(crate) fn new(
        (rows, table_use): (StoredTable, TableUse),
        resident_bytes_max: usize,
        (pool, scratch): (&mut Pool, &mut [Scratch]),
        kernels: &dyn Kernels,
    ) -> Result<Self, DeviceError> {
        match rows {
            StoredTable::Ternary(matrix) => {
                let refused = |memory: OutOfMemory| DeviceError::OutOfMemory { what: "table", size_bytes: memory.size_bytes };
                let ternary_screen = match table_use {
                    TableUse::Head => Some(Box::new(TernaryScreen::new(&matrix, pool, scratch).map_err(refused)?)),
                    TableUse::Embedding => None,
                };
                let tiles = Tiles::new(&matrix, pool, scratch).map_err(refused)?;
                Ok(Self { rows: TableRows::Ternary(tiles, ternary_screen), screen: None })
            }
            StoredTable::Dense(source) => {
                let dense = DenseTable::new(source, resident_bytes_max, scratch)?;
                let screen = match table_use {
                    TableUse::Head => Screen::new(&dense, (pool, scratch), kernels)?,
                    TableUse::Embedding => None,
                };
                Ok(Self { rows: TableRows::Dense(dense), screen })
            }
        }
    }

    /// Rows and columns.
    fn shape(&self) -> (usize, usize) {
        match &self.rows {
            TableRows::Dense(dense) => (dense.n(), dense.k()),
            TableRows::Ternary(tiles, _) => (tiles.n(), tiles.k()),
        }
    }

    /// Bytes that finding the best logits reads at least, as the last step did it.
    pub(crate) fn screened_bytes(&self) -> u64 {
        match (&self.rows, &self.screen) {
            (_, Some(screen)) => screen.read_bytes(),
            (TableRows::Dense(dense), None) => dense.size_bytes(),
            (TableRows::Ternary(_, Some(screen)), None) => screen.read_bytes(),
            (TableRows::Ternary(tiles, None), None) => tiles.size_bytes(),
        }
    }

    /// `x[i] = table[token_ids[i]]`. `buffer` is that of the first thread.
    pub(crate) fn embed(&self, token_ids: &[TokenId], x: &mut CpuHidden, buffer: &mut [u8]) -> Result<(), DeviceError> {
        let (n, k) = self.shape();
        assert_eq!(x.width(), k, "hidden rows are as wide as the table");
        x.set_rows(token_ids.len());
        for (values, token_id) in x.values_mut().chunks_exact_mut(k).zip(token_ids) {
            let row = token_id.index();
            assert!(row < n, "token {token_id} of {n}");
            match &self.rows {
                TableRows::Dense(dense) => dense.read(row..row + 1, buffer)?.read(row, values),
                TableRows::Ternary(tiles, _) => {
                    for (column, value) in values.iter_mut().enumerate() {
                        *value = f32::from(tiles.trit(row, column)) * tiles.scale(row, column);
                    }
                }
            }
        }
        Ok(())
    }

    /// `out[r, v] = x[r] · table[v]`, or −∞ where that is proved not to be wanted. `padded` is a buffer that is kept between calls.
    pub(crate) fn logits(
        &mut self,
        (x, wanted): (&CpuHidden, &[Option<BestLogits>]),
        (out, padded): (&mut CpuHidden, &mut Vec<f32>),
        (pool, scratch): (&mut Pool, &mut [Scratch]),
        kernels: &dyn Kernels,
    ) -> Result<(), DeviceError> {
        let (n, k) = self.shape();
        assert_eq!((x.width(), out.width()), (k, n), "hidden rows and logits fit the head");
        out.set_rows(x.n_rows());
        let rows = match &self.rows {
            TableRows::Ternary(..) => pad_rows(x, BLOCK_COLUMNS, padded, (pool, scratch)),
            TableRows::Dense(_) => pad_rows(x, LANES, padded, (pool, scratch)),
        };
        let is_screened = wanted.iter().all(|wanted| wanted.is_some_and(|best| best.n <= n / WORTH_SCREENING));
        if let TableRows::Ternary(head, Some(screen)) = &mut self.rows
            && is_screened
            && screen.run((head, x, rows), wanted, out, (pool, scratch), kernels)
        {
            return Ok(());
        }
        if let (TableRows::Dense(head), Some(screen)) = (&self.rows, &mut self.screen)
            && is_screened
        {
            let screening = Screening { head, x: rows, kernels };
            if screening.run(screen, (x, wanted), out, (pool, scratch))? {
                return Ok(());
            }
        }
        let target = ColumnTarget { values: out.values_mut(), width: n, columns: 0..n, granule: TILE_ROWS };
        match &self.rows {
            TableRows::Dense(dense) => pool.run_columns(scratch, target, |scratch, columns| {
                scratch.with_rows(|buffer, scratch| {
                    dense.blocks(columns.range()).try_for_each(|block| {
                        let table = dense.read(block.clone(), buffer)?;
                        kernels.logits(rows, &table, &mut columns.part(block), scratch);
                        Ok(())
                    })
                });
            }),
            TableRows::Ternary(tiles, _) => pool.run_columns(scratch, target, |scratch, columns| {
                kernels.linear_f32(rows, tiles, Store::Write, columns, scratch);
            }),
        }
        first_failure(scratch)
    }
}

/// The rows of `x` with zeros up to a multiple of `granule` columns: `x` itself where it has that width.
fn pad_rows<'a>(x: &'a CpuHidden, granule: usize, padded: &'a mut Vec<f32>, (pool, scratch): (&mut Pool, &mut [Scratch])) -> F32Rows<'a> {
    let (width, stride) = (x.width(), x.width().next_multiple_of(granule));
    if width == stride {
        return F32Rows { values: x.values(), stride };
    }
    padded.resize(x.n_rows() * stride, 0.0);
    let mut rest = &mut padded[..];
    let parts = Parts::new(x.n_rows(), pool.n_threads(), |range| {
        let part = rest.split_off_mut(..range.len() * stride).expect("sized above");
        (range, part)
    });
    pool.run_parts(scratch, parts, |_, (range, part)| {
        for (row, padded) in range.zip(part.chunks_exact_mut(stride)) {
            let (values, padding) = padded.split_at_mut(width);
            values.copy_from_slice(&x.values()[row * width..(row + 1) * width]);
            padding.fill(0.0);
        }
    });
    F32Rows { values: padded, stride }
}
