//! The thread pool: `n_threads − 1` workers beside the caller, woken together for one task at a time. Workers spin for some
//! tens of microseconds between tasks (an operation of a decode step follows the last within that), then park. While they spin
//! they fetch what the next product will read (`ahead`).
//!
//! Work is split statically, so that a thread meets the same weights in every step; of many columns a thread that is done takes
//! chunks that a slower one has not begun. Nothing is allocated per task; a panic in any thread is carried to the caller after
//! all threads have stopped. It deliberately has no queue and no nesting, and does not decide what a part is: callers name
//! rows or columns.

#![allow(unsafe_code)]

use std::any::Any;
use std::cell::UnsafeCell;
use std::marker::PhantomData;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use crate::ahead::{Stretch, Wanted};
use crate::arch::prefetch_line;
use crate::error::CpuError;
use crate::limits::{SPIN_TURNS, THREADS_MAX};

/// How finely a thread's share of columns is cut.
const CHUNKS_PER_THREAD: usize = 20;
/// Chunks are whole multiples of so many granules, so that kernels which work on several granules at once fill them.
const MULTIPLE: usize = 8;
/// For up to `FEW_ROWS` rows: kernels work on one granule at a time.
const MULTIPLE_OF_FEW: usize = 2;
const FEW_ROWS: usize = 4;

type Task<'a> = &'a (dyn Fn(usize) + Sync);

/// What the caller and the workers share.
struct Shared {
    /// Number of the task in `task`; a worker runs a task when it sees the number grow.
    epoch: AtomicUsize,
    /// Workers that have not finished the current task.
    n_running: AtomicUsize,
    /// Written by the caller only while `n_running` is 0, read by workers only after they saw `epoch` grow.
    task: UnsafeCell<Option<Task<'static>>>,
    /// Tells workers to end.
    stop: AtomicBool,
    /// Which workers sleep, `[n_threads − 1]`.
    parked: Vec<AtomicBool>,
    /// The first panic of a worker.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    /// Chunks begun of each thread's columns, `[n_threads]`.
    cursors: Vec<Cursor>,
    /// What each worker may fetch while it waits, `[n_threads − 1]`.
    wanted: Vec<Wanted>,
}

/// A counter on a cache line of its own.
#[repr(align(64))]
struct Cursor(AtomicUsize);

// SAFETY: `task` is the only field that is not Sync by itself. The caller writes it while no worker runs (n_running is 0, read
// with Acquire) and workers read it after an Acquire load of `epoch` that sees the Release store following the write.
unsafe impl Sync for Shared {}
// SAFETY: the task reference in `task` is Sync (its type says so), so it may be used from any thread.
unsafe impl Send for Shared {}

/// Threads that run one task together.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

impl Pool {
    /// Starts `n_threads − 1` workers.
    pub(crate) fn new(n_threads: usize) -> Result<Self, CpuError> {
        assert!((1..=THREADS_MAX).contains(&n_threads), "thread count was checked by CpuOptions");
        let shared = Arc::new(Shared {
            epoch: AtomicUsize::new(0),
            n_running: AtomicUsize::new(0),
            task: UnsafeCell::new(None),
            stop: AtomicBool::new(false),
            parked: (1..n_threads).map(|_| AtomicBool::new(false)).collect(),
            panic: Mutex::new(None),
            cursors: (0..n_threads).map(|_| Cursor(AtomicUsize::new(0))).collect(),
            wanted: (1..n_threads).map(|_| Wanted::default()).collect(),
        });
        let mut pool = Self { shared, workers: Vec::with_capacity(n_threads - 1) };
        for index in 1..n_threads {
            let shared = Arc::clone(&pool.shared);
            let builder = std::thread::Builder::new().name(format!("bitnet-cpu-{index}"));
            let worker = builder.spawn(move || shared.work(index)).map_err(|source| CpuError::Spawn { index, source })?;
            pool.workers.push(worker);
        }
        Ok(pool)
    }

    /// Threads that compute, the caller among them.
    pub(crate) fn n_threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Says what the product after the next task will read: a worker that is done fetches the start of its share.
    pub(crate) fn fetch_ahead(&mut self, stretch: Option<Stretch>) {
        let n_threads = self.n_threads();
        for (thread, wanted) in (1..).zip(&self.shared.wanted) {
            wanted.set(stretch, thread, n_threads);
        }
    }

    /// Runs `task(thread)` once on every thread, `0..n_threads`, and returns when all have finished.
    pub(crate) fn run(&mut self, task: Task<'_>) {
        if self.workers.is_empty() {
            return task(0);
        }
        assert_eq!(self.shared.n_running.load(Ordering::Acquire), 0, "tasks do not overlap");
        // SAFETY: only the lifetime changes. Workers use the reference only until they count themselves out of `n_running`,
        // and this function returns or unwinds only after `n_running` is 0 again.
        let task_for_workers = unsafe { std::mem::transmute::<Task<'_>, Task<'static>>(task) };
        // SAFETY: n_running is 0 (asserted above) and `&mut self` keeps other callers out, so nothing else touches the cell.
        unsafe { *self.shared.task.get() = Some(task_for_workers) };
        self.shared.n_running.store(self.workers.len(), Ordering::Relaxed);
        self.shared.epoch.fetch_add(1, Ordering::SeqCst);
        self.wake();
        let outcome = catch_unwind(AssertUnwindSafe(|| task(0)));
        self.wait();
        if let Err(panic) = outcome {
            resume_unwind(panic);
        }
        let panic = self.shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }

    /// Runs `task` on every thread with a state of its own. Panics if there are fewer states than threads.
    pub(crate) fn run_with<S: Send>(&mut self, states: &mut [S], task: impl Fn(usize, &mut S) + Sync) {
        assert!(states.len() >= self.n_threads(), "every thread has a state");
        let states = Shareable(states.as_mut_ptr());
        self.run(&|thread| {
            let state = states.get().wrapping_add(thread);
            // SAFETY: thread < n_threads <= states.len() (asserted), and `run` calls each thread index once, so this is the only
            // reference to the state.
            task(thread, unsafe { &mut *state });
        });
    }

    /// Runs `task` on every thread that has a part. Panics if there are more parts than threads.
    pub(crate) fn run_parts<S: Send, P: Send>(&mut self, states: &mut [S], parts: Parts<P>, task: impl Fn(&mut S, P) + Sync) {
        let Parts { mut slots, n_parts } = parts;
        assert!(n_parts <= self.n_threads(), "every part has a thread");
        if n_parts == 1 {
            // One part needs no one woken.
            return slots[0].take().into_iter().zip(states.first_mut()).for_each(|(part, state)| task(state, part));
        }
        let slots = Shareable(slots.as_mut_ptr());
        self.run_with(states, |thread, state| {
            if thread >= n_parts {
                return;
            }
            let slot = slots.get().wrapping_add(thread);
            // SAFETY: thread < n_parts <= slots.len(), and each thread index is run once, so this is the only reference.
            if let Some(part) = unsafe { &mut *slot }.take() {
                task(state, part);
            }
        });
    }

    /// Divides the columns of `target` between the threads at multiples of its granule. `task` is called with some columns of all
    /// rows at a time: each thread takes its own share chunk by chunk, then what is left of the others'.
    pub(crate) fn run_columns<S: Send>(
        &mut self,
        states: &mut [S],
        target: ColumnTarget<'_>,
        task: impl Fn(&mut S, &mut ColumnsMut<'_>) + Sync,
    ) {
        let ColumnTarget { values, width, columns, granule } = target;
        assert!(columns.start <= columns.end && columns.end <= width, "columns {columns:?} are outside rows of {width}");
        let n_rows = values.len() / width;
        let (n_threads, n_granules) = (self.n_threads(), columns.len().div_ceil(granule));
        let n_chunk = chunk_granules(n_granules, n_threads, if n_rows <= FEW_ROWS { MULTIPLE_OF_FEW } else { MULTIPLE });
        let base = Shareable(values.as_mut_ptr());
        let shared = Arc::clone(&self.shared);
        shared.cursors.iter().for_each(|cursor| cursor.0.store(0, Ordering::Relaxed));
        self.run_with(states, |thread, state| {
            for owner in (thread..n_threads).chain(0..thread) {
                // No number of a cursor is given twice, so no two calls share a column.
                let chunks = std::iter::repeat_with(|| shared.cursors[owner].0.fetch_add(1, Ordering::Relaxed));
                let part = share(n_granules, owner, n_threads);
                let starts = chunks.map(|chunk| part.start + chunk * n_chunk).take_while(|&start| start < part.end);
                for start in starts {
                    let range = start * granule..((start + n_chunk).min(part.end) * granule).min(columns.len());
                    let mut view = ColumnsMut { base: base.get(), width, n_rows, offset: columns.start, range, owner: PhantomData };
                    task(state, &mut view);
                }
            }
        });
    }

    /// Wakes the workers that sleep.
    fn wake(&self) {
        for (parked, worker) in self.shared.parked.iter().zip(&self.workers) {
            if parked.swap(false, Ordering::SeqCst) {
                worker.thread().unpark();
            }
        }
    }

    /// Waits until every worker has finished the task.
    fn wait(&self) {
        let mut turns = 0usize;
        while self.shared.n_running.load(Ordering::Acquire) != 0 {
            turns += 1;
            if turns.is_multiple_of(SPIN_TURNS) {
                std::thread::yield_now();
            }
            std::hint::spin_loop();
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.epoch.fetch_add(1, Ordering::SeqCst);
        self.wake();
        for worker in self.workers.drain(..) {
            // Task panics are caught in `work`, so a worker itself does not end by one; if it did, drop must not panic.
            let _ = worker.join();
        }
    }
}

impl Shared {
    /// The life of worker `index`.
    fn work(&self, index: usize) {
        let mut seen = 0;
        loop {
            seen = self.next_epoch(seen, index - 1);
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            // SAFETY: the epoch was seen to grow with Acquire, so the caller's write of the task happened before, and it writes
            // again only after this worker has left `n_running`.
            let task = unsafe { *self.task.get() };
            let outcome = catch_unwind(AssertUnwindSafe(|| task.into_iter().for_each(|task| task(index))));
            if let Err(panic) = outcome {
                self.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(panic);
            }
            self.n_running.fetch_sub(1, Ordering::Release);
        }
    }

    /// Spins, then sleeps, until the epoch is no longer `seen`.
    fn next_epoch(&self, seen: usize, worker: usize) -> usize {
        let mut lines = self.wanted[worker].take();
        let mut turns = 0;
        while turns < SPIN_TURNS {
            let epoch = self.epoch.load(Ordering::Acquire);
            if epoch != seen {
                return epoch;
            }
            match lines.next() {
                Some(line) => prefetch_line(line),
                None => {
                    turns += 1;
                    std::hint::spin_loop();
                }
            }
        }
        let parked = &self.parked[worker];
        loop {
            // Either the caller sees `parked` and unparks, or this load sees its new epoch: both sides are SeqCst.
            parked.store(true, Ordering::SeqCst);
            let epoch = self.epoch.load(Ordering::SeqCst);
            if epoch != seen {
                parked.store(false, Ordering::SeqCst);
                return epoch;
            }
            std::thread::park();
        }
    }
}

/// A pointer to memory whose parts go to different threads.
struct Shareable<T>(*mut T);

impl<T> Shareable<T> {
    fn get(&self) -> *mut T {
        self.0
    }
}

// SAFETY: the pointer is only turned into references by functions of this file that give each thread a part of its own, and
// `T: Send` lets those parts be used there.
unsafe impl<T: Send> Sync for Shareable<T> {}

/// One part of the work for each thread, made without allocation.
pub(crate) struct Parts<P> {
    slots: [Option<P>; THREADS_MAX],
    n_parts: usize,
}

impl<P> Parts<P> {
    /// `part(range)` for each thread's range of `0..n_items`, in order; fewer parts than threads if there are fewer items.
    pub(crate) fn new(n_items: usize, n_threads: usize, mut part: impl FnMut(Range<usize>) -> P) -> Self {
        let n_parts = n_threads.min(n_items);
        let mut slots = [const { None }; THREADS_MAX];
        for (index, slot) in slots.iter_mut().take(n_parts).enumerate() {
            *slot = Some(part(share(n_items, index, n_parts)));
        }
        Self { slots, n_parts }
    }
}

/// Which of `n_items` fall to `part` of `n_parts`: contiguous, sizes differing by one at most.
pub(crate) fn share(n_items: usize, part: usize, n_parts: usize) -> Range<usize> {
    n_items * part / n_parts..n_items * (part + 1) / n_parts
}

/// Granules of a chunk: a thread's whole share, unless that is many chunks' worth.
fn chunk_granules(n_granules: usize, n_threads: usize, multiple: usize) -> usize {
    let n_share = n_granules.div_ceil(n_threads);
    let chunk = n_share / CHUNKS_PER_THREAD / multiple * multiple;
    if n_threads == 1 || chunk == 0 { n_share.max(1) } else { chunk }
}

/// Columns of row-major rows that are to be written: `values[n_rows, width]`, `columns` of each row, cut at multiples of
/// `granule` from the first.
pub(crate) struct ColumnTarget<'a> {
    pub(crate) values: &'a mut [f32],
    pub(crate) width: usize,
    pub(crate) columns: Range<usize>,
    pub(crate) granule: usize,
}

/// Some columns of all rows, this thread's alone.
pub(crate) struct ColumnsMut<'a> {
    base: *mut f32,
    width: usize,
    n_rows: usize,
    offset: usize,
    range: Range<usize>,
    owner: PhantomData<&'a mut [f32]>,
}

impl ColumnsMut<'_> {
    /// The columns, counted from the target's first column.
    pub(crate) fn range(&self) -> Range<usize> {
        self.range.clone()
    }

    /// Rows of the target.
    pub(crate) fn n_rows(&self) -> usize {
        self.n_rows
    }

    /// Some of these columns, alone. Panics if they are not among them.
    pub(crate) fn part(&mut self, range: Range<usize>) -> ColumnsMut<'_> {
        assert!(self.range.start <= range.start && range.end <= self.range.end, "columns {range:?} of {:?}", self.range);
        ColumnsMut { range, owner: PhantomData, ..*self }
    }

    /// The columns of one row. Panics if there is no such row.
    #[inline]
    pub(crate) fn row_mut(&mut self, row: usize) -> &mut [f32] {
        assert!(row < self.n_rows, "row {row} of {}", self.n_rows);
        let start = self.base.wrapping_add(row * self.width + self.offset + self.range.start);
        // SAFETY: row < n_rows and offset + range.end <= width (asserted in `run_columns`), so the slice lies in the target's
        // rows; ranges of different threads are disjoint and `&mut self` keeps this thread to one slice at a time.
        unsafe { std::slice::from_raw_parts_mut(start, self.range.len()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn run_calls_every_thread_once_many_times() {
        for n_threads in 1..=4 {
            let mut pool = Pool::new(n_threads).expect("threads");
            let mut counts = vec![0usize; n_threads];
            for _ in 0..500 {
                pool.run_with(&mut counts, |thread, count| *count += thread + 1);
            }
            assert!(counts.iter().enumerate().all(|(thread, &count)| count == 500 * (thread + 1)), "{counts:?}");
        }
    }

    #[test]
    fn parked_workers_wake_for_the_next_task() {
        let mut pool = Pool::new(2).expect("threads");
        for _ in 0..20 {
            while !pool.shared.parked[0].load(Ordering::SeqCst) {
                std::thread::yield_now();
            }
            let ran = AtomicUsize::new(0);
            pool.run(&|_| {
                ran.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(ran.into_inner(), 2);
        }
    }

    #[test]
    fn panic_of_any_thread_reaches_the_caller_and_the_pool_lives_on() {
        let mut pool = Pool::new(3).expect("threads");
        for panicking in 0..3 {
            let task = |thread| assert!(thread != panicking, "thread {thread} panics on purpose");
            let outcome = catch_unwind(AssertUnwindSafe(|| pool.run(&task)));
            let message = *outcome.expect_err("the panic arrives").downcast::<String>().expect("a formatted message");
            assert!(message.contains(&format!("thread {panicking} panics")), "{message}");
            let ran = AtomicUsize::new(0);
            pool.run(&|_| {
                ran.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(ran.into_inner(), 3);
        }
    }

    #[test]
    fn columns_are_divided_without_gap_or_overlap() {
        for (n_threads, n_columns, granule) in
            [(1, 7, 4), (2, 7, 4), (3, 64, 4), (4, 3, 4), (4, 130, 64), (3, 5, 1), (2, 4 * 8 * 12 * 5 + 3, 4)]
        {
            let mut pool = Pool::new(n_threads).expect("threads");
            let width = n_columns + 5;
            let mut values = vec![0.0f32; 3 * width];
            let target = ColumnTarget { values: &mut values, width, columns: 2..2 + n_columns, granule };
            pool.run_columns(&mut vec![(); n_threads], target, |_, columns| {
                assert_eq!(columns.range().start % granule, 0);
                for row in 0..columns.n_rows() {
                    columns.row_mut(row).iter_mut().for_each(|value| *value += 1.0);
                }
            });
            for row in values.chunks(width) {
                assert!(row.iter().enumerate().all(|(i, &v)| v == f32::from(u8::from((2..2 + n_columns).contains(&i)))), "{row:?}");
            }
        }
    }

    #[test]
    fn parts_cover_all_items_in_order() {
        let mut pool = Pool::new(4).expect("threads");
        for n_items in 0..9 {
            let mut items = vec![0u32; n_items];
            let mut rest = items.as_mut_slice();
            let parts = Parts::new(n_items, 4, |range| {
                let (part, tail) = std::mem::take(&mut rest).split_at_mut(range.len());
                rest = tail;
                part
            });
            pool.run_parts(&mut [(); 4], parts, |(), part| part.iter_mut().for_each(|item| *item += 1));
            assert_eq!(items, vec![1; n_items]);
        }
    }
}
