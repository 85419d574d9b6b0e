//! `CpuHidden`: f32 rows `[m, width]` in one allocation of fixed capacity; m changes from step to step.

use bitnet_model::device::DeviceError;

use crate::arch::Memory;

/// f32 rows `[n_rows, width]`, row-major, at most as many as were asked for.
pub struct CpuHidden {
    values: Memory<f32>,
    width: usize,
    n_rows: usize,
}

impl CpuHidden {
    pub(crate) fn new(n_rows_max: usize, width: usize) -> Result<Self, DeviceError> {
        assert!(width > 0, "hidden rows have a width");
        let size_bytes = n_rows_max.saturating_mul(width).saturating_mul(size_of::<f32>());
        let refused = DeviceError::OutOfMemory { what: "hidden rows", size_bytes };
        let len = n_rows_max.checked_mul(width).ok_or_else(|| refused.clone())?;
        Ok(Self { values: Memory::zeroed(len).map_err(|_| refused)?, width, n_rows: 0 })
    }

    /// Width of a row.
    pub(crate) fn width(&self) -> usize {
        self.width
    }

    /// Rows in use.
    pub(crate) fn n_rows(&self) -> usize {
        self.n_rows
    }

    /// Sets the rows in use. Panics over the capacity.
    pub(crate) fn set_rows(&mut self, n_rows: usize) {
        let capacity = self.values.len() / self.width;
        assert!(n_rows <= capacity, "{n_rows} rows in room for {capacity}");
        self.n_rows = n_rows;
    }

    /// Rows in use, `[n_rows, width]`.
    pub(crate) fn values(&self) -> &[f32] {
        &self.values[..self.n_rows * self.width]
    }

    /// Rows in use, `[n_rows, width]`.
    pub(crate) fn values_mut(&mut self) -> &mut [f32] {
        &mut self.values[..self.n_rows * self.width]
    }
}
