//! `CudaHidden`: f32 rows `[m, width]` on the GPU; m changes from step to step. Memory is taken for as many rows as a step has had, and
//! their copy on the host is made when it is asked for.

use std::cell::{Cell, OnceCell};

use bitnet_model::device::DeviceError;

use crate::driver::{Buffer, HostBuffer};
use crate::queue::Queue;

/// f32 rows `[n_rows, width]`, row-major, at most as many as were asked for.
pub struct CudaHidden {
    /// `[n_rows_of_room, width]`.
    values: Buffer,
    width: usize,
    /// A power of two or `n_rows_max`.
    n_rows_of_room: usize,
    n_rows_max: usize,
    n_rows: usize,
    /// The rows as last fetched.
    host: OnceCell<HostBuffer>,
    /// Whether `host` holds the rows as they are now. Set only through a shared borrow by which nothing can change the rows, cleared by
    /// every operation that writes them.
    is_fetched: Cell<bool>,
}

impl CudaHidden {
    pub(crate) fn new(queue: &mut Queue, n_rows_max: usize, width: usize) -> Result<Self, DeviceError> {
        assert!(width > 0, "hidden rows have a width");
        let n_rows_of_room = n_rows_max.min(1);
        let values = queue.zeroed("hidden rows", n_rows_of_room * width * size_of::<f32>())?;
        Ok(Self { values, width, n_rows_of_room, n_rows_max, n_rows: 0, host: OnceCell::new(), is_fetched: Cell::new(false) })
    }

    pub(crate) fn width(&self) -> usize {
        self.width
    }

    pub(crate) fn n_rows(&self) -> usize {
        self.n_rows
    }

    /// Where a kernel reads the rows.
    pub(crate) fn address(&self) -> u64 {
        self.values.address()
    }

    /// Where a kernel writes `n_rows` rows, which are then in use. If they are more than ever before, there is new memory for them, and all
    /// of them are to be written. Panics over the capacity.
    pub(crate) fn address_for_rows(&mut self, n_rows: usize, queue: &mut Queue) -> Result<u64, DeviceError> {
        assert!(n_rows <= self.n_rows_max, "{n_rows} rows in room for {}", self.n_rows_max);
        if n_rows > self.n_rows_of_room {
            let n_rows_of_room = n_rows.next_power_of_two().min(self.n_rows_max);
            let size_bytes = n_rows_of_room.saturating_mul(self.width).saturating_mul(size_of::<f32>());
            self.values = match queue.zeroed("hidden rows", size_bytes) {
                Err(DeviceError::OutOfMemory { .. }) => {
                    // There need not be room for what there was as well; what is recorded may read it.
                    self.n_rows_of_room = 0;
                    self.values = queue.buffer("hidden rows", 0)?;
                    queue.wait()?;
                    queue.zeroed("hidden rows", size_bytes)?
                }
                other => other?,
            };
            self.n_rows_of_room = n_rows_of_room;
        }
        self.n_rows = n_rows;
        self.is_fetched.set(false);
        Ok(self.values.address())
    }

    /// The rows in use, after everything recorded has run.
    pub(crate) fn fetch<'a>(&'a self, queue: &mut Queue) -> Result<&'a [f32], DeviceError> {
        let n = self.n_rows * self.width;
        let host = match self.host.get() {
            Some(host) => host,
            None => {
                let host = queue.host_buffer("rows on the host", self.n_rows_max * self.width * size_of::<f32>())?;
                self.host.get_or_init(|| host)
            }
        };
        if !self.is_fetched.get() {
            queue.fetch(&self.values, host, n * size_of::<f32>())?;
            self.is_fetched.set(true);
        }
        Ok(host.floats(n))
    }
}
