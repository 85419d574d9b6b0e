//! `Queue`: operations are recorded, not run; a whole step is queued at once when its results are asked for. A step that has been seen
//! before (the same kernels on the same memory: every decode step) is one graph, which is one call.
//!
//! What changes from step to step (token ids, positions, angles, block tables) lies in memory of its own, so that arguments stay.

use std::collections::VecDeque;

use bitnet_model::device::DeviceError;

use crate::attention::StepShape;
use crate::driver::{Buffer, Graph, HostBuffer, Kernel, Launch, Memory, Stream};
use crate::limits::{ARGUMENT_WORDS_MAX, GRAPHS_MAX, LAUNCHES_MAX, STEP_BYTES_MAX};
use crate::step::StepOfOne;

/// Shorter sequences of launches are not worth a graph.
const GRAPH_LAUNCHES_MIN: usize = 16;
/// Data of a step begins at multiples of this many words.
const ALIGNMENT_WORDS: usize = 4;

/// Records launches and runs them.
pub(crate) struct Queue {
    stream: Stream,
    memory: Memory,
    launches: Vec<Launch>,
    steps: VecDeque<RecordedStep>,
    /// Puts the operations of one token into one kernel, where this GPU can.
    step_of_one: Option<StepOfOne>,
    /// Data of the recorded launches, on the host and where the kernels read it.
    host_data: HostBuffer,
    data: Buffer,
    n_data_words: usize,
    /// Whether work that reads `host_data` may still run.
    is_running: bool,
    /// Whether everything since `begin_step` is recorded and nothing of it is queued.
    is_whole: bool,
}

/// Launches seen once, and as a graph if seen again.
struct RecordedStep {
    launches: Vec<Launch>,
    graph: Option<StepGraph>,
    shape: Option<KnownShape>,
}

/// The shape of the steps that a graph does whole, and `Memory::n_changes` when that was seen: launches are known by their shape as long as
/// all buffers are where they were.
#[derive(PartialEq)]
struct KnownShape {
    shape: StepShape,
    n_changes: usize,
}

/// A graph, and lists of operations that its kernels read.
struct StepGraph {
    graph: Graph,
    _lists: Vec<Buffer>,
}

impl Queue {
    pub(crate) fn new(stream: Stream) -> Result<Self, DeviceError> {
        let memory = stream.memory();
        let host_data = memory.host_buffer("data of a step", STEP_BYTES_MAX)?;
        let data = memory.buffer("data of a step", STEP_BYTES_MAX)?;
        Ok(Self {
            stream,
            memory,
            launches: Vec::new(),
            steps: VecDeque::new(),
            step_of_one: None,
            host_data,
            data,
            n_data_words: 0,
            is_running: false,
            is_whole: false,
        })
    }

    /// From now on the operations of one token become one kernel.
    pub(crate) fn put_together(&mut self, step_of_one: StepOfOne) {
        self.step_of_one = Some(step_of_one);
    }

    /// Memory of the GPU; what was dropped is freed first if there is no room otherwise.
    pub(crate) fn buffer(&mut self, what: &'static str, size_bytes: usize) -> Result<Buffer, DeviceError> {
        match self.memory.buffer(what, size_bytes) {
            Err(DeviceError::OutOfMemory { .. }) => {
                self.wait()?;
                self.memory.buffer(what, size_bytes)
            }
            other => other,
        }
    }

    /// Memory of the GPU that holds `bytes`.
    pub(crate) fn uploaded(&mut self, what: &'static str, bytes: &[u8]) -> Result<Buffer, DeviceError> {
        let buffer = self.buffer(what, bytes.len())?;
        self.memory.write(bytes, &buffer)?;
        Ok(buffer)
    }

    /// Memory of the GPU filled with zeros.
    pub(crate) fn zeroed(&mut self, what: &'static str, size_bytes: usize) -> Result<Buffer, DeviceError> {
        let buffer = self.buffer(what, size_bytes)?;
        self.stream.make_current()?;
        self.stream.clear(&buffer)?;
        Ok(buffer)
    }

    /// Bytes in use, of the GPU and pinned on the host.
    pub(crate) fn used_bytes(&self) -> (usize, usize) {
        self.memory.used_bytes()
    }

    /// Pinned memory of the host.
    pub(crate) fn host_buffer(&self, what: &'static str, size_bytes: usize) -> Result<HostBuffer, DeviceError> {
        self.memory.host_buffer(what, size_bytes)
    }

    /// Makes `words` part of the step's data and says where kernels will find them.
    pub(crate) fn stage(&mut self, words: impl ExactSizeIterator<Item = u32>) -> Result<u64, DeviceError> {
        if self.is_running {
            self.stream.make_current()?;
            self.stream.wait()?;
            self.is_running = false;
        }
        let (first, n_words) = (self.n_data_words, words.len());
        if (first + n_words) * 4 > STEP_BYTES_MAX {
            let reason = format!("{} bytes of positions, angles and block tables; at most {STEP_BYTES_MAX}", (first + n_words) * 4);
            return Err(DeviceError::Unsupported { what: "a step", reason });
        }
        let room = &mut self.host_data.words_mut()[first..first + n_words];
        room.iter_mut().zip(words).for_each(|(place, word)| *place = word);
        self.n_data_words = (first + n_words).next_multiple_of(ALIGNMENT_WORDS);
        Ok(self.data.address() + first as u64 * 4)
    }

    /// Records a launch.
    pub(crate) fn record(&mut self, launch: Launch) -> Result<(), DeviceError> {
        if self.launches.len() == LAUNCHES_MAX {
            self.run()?;
        }
        self.launches.push(launch);
        Ok(())
    }

    /// Takes back the last recorded launch, for one that does more in its place.
    pub(crate) fn take_back(&mut self) {
        self.launches.pop();
    }

    /// The last recorded launch.
    pub(crate) fn last(&self) -> Option<&Launch> {
        self.launches.last()
    }

    /// Queues what is recorded; from here on a step is recorded.
    pub(crate) fn begin_step(&mut self) -> Result<(), DeviceError> {
        self.run()?;
        self.is_whole = true;
        Ok(())
    }

    /// The launches since `begin_step`, if they are recorded and will be a graph when they are queued, are what a step of this shape is.
    pub(crate) fn know(&mut self, shape: StepShape) {
        let recorded = self.steps.iter_mut().find(|step| self.is_whole && step.graph.is_some() && step.launches == self.launches);
        if let Some(recorded) = recorded {
            recorded.shape = Some(KnownShape { shape, n_changes: self.memory.n_changes() });
        }
    }

    /// Whether `repeat` will do a step of this shape.
    pub(crate) fn knows(&self, shape: StepShape) -> bool {
        self.known(shape).is_some()
    }

    /// The step of this shape whose buffers are where they are now: there may be others from before they moved.
    fn known(&self, shape: StepShape) -> Option<&RecordedStep> {
        let known = KnownShape { shape, n_changes: self.memory.n_changes() };
        self.steps.iter().find(|step| step.shape.as_ref() == Some(&known))
    }

    /// Queues the graph of steps of a shape that `knows` has confirmed, on the data staged since `begin_step`.
    pub(crate) fn repeat(&mut self, shape: StepShape) -> Result<(), DeviceError> {
        self.stream.make_current()?;
        self.stream.upload(&self.host_data, &self.data, self.n_data_words * 4)?;
        self.is_running = true;
        self.n_data_words = 0;
        let graph = self.known(shape).and_then(|step| step.graph.as_ref()).expect("only graphs get a shape, and it was asked for just now");
        self.stream.launch_graph(&graph.graph)
    }

    /// Queues everything recorded.
    pub(crate) fn run(&mut self) -> Result<(), DeviceError> {
        if self.launches.is_empty() {
            return Ok(());
        }
        self.stream.make_current()?;
        self.stream.upload(&self.host_data, &self.data, self.n_data_words * 4)?;
        self.is_running = true;
        self.is_whole = false;
        self.n_data_words = 0;
        let queued = self.run_launches();
        self.launches.clear();
        queued
    }

    fn run_launches(&mut self) -> Result<(), DeviceError> {
        if self.launches.len() < GRAPH_LAUNCHES_MIN {
            return self.launches.iter().try_for_each(|launch| self.stream.launch(launch));
        }
        let Some(index) = self.steps.iter().position(|step| step.launches == self.launches) else {
            if self.steps.len() == GRAPHS_MAX {
                self.steps.pop_front();
            }
            self.steps.push_back(RecordedStep { launches: self.launches.clone(), graph: None, shape: None });
            return self.launches.iter().try_for_each(|launch| self.stream.launch(launch));
        };
        // What comes again stays longest.
        let found = self.steps.remove(index).expect("found above");
        self.steps.push_back(found);
        let step = self.steps.back_mut().expect("put there just now");
        let known = match &step.graph {
            Some(known) => known,
            None => {
                let (launches, lists) = match &self.step_of_one {
                    Some(step_of_one) => step_of_one.put_together(&self.launches, &self.memory)?,
                    None => (self.launches.clone(), Vec::new()),
                };
                step.graph.insert(StepGraph { graph: self.stream.capture(&launches)?, _lists: lists })
            }
        };
        self.stream.launch_graph(&known.graph)
    }

    /// Queues everything recorded and a copy of the first `size_bytes` of `from`, and waits for all of it.
    pub(crate) fn fetch(&mut self, from: &Buffer, to: &HostBuffer, size_bytes: usize) -> Result<(), DeviceError> {
        self.run()?;
        self.stream.make_current()?;
        self.stream.download(from, to, size_bytes)?;
        self.wait()
    }

    /// Queues everything recorded and waits for it.
    pub(crate) fn wait(&mut self) -> Result<(), DeviceError> {
        self.run()?;
        self.stream.make_current()?;
        self.stream.wait()?;
        self.is_running = false;
        self.memory.collect();
        Ok(())
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // Nothing may run on memory that is freed next; what a failure would say, the last operation has said.
        let _ = self.stream.make_current().and_then(|()| self.stream.wait());
        self.memory.collect();
    }
}

/// A kernel's block of arguments, laid out as C lays out its struct.
#[derive(Clone, Copy)]
pub(crate) struct Arguments {
    words: [u64; ARGUMENT_WORDS_MAX],
    n_halves: usize,
}

impl Arguments {
    pub(crate) fn new() -> Self {
        Self { words: [0; ARGUMENT_WORDS_MAX], n_halves: 0 }
    }

    /// A pointer.
    pub(crate) fn address(mut self, address: u64) -> Self {
        self.n_halves = self.n_halves.next_multiple_of(2);
        self.words[self.n_halves / 2] = address;
        self.n_halves += 2;
        self
    }

    /// A `u32`. Panics if it does not fit, which the sizes checked at load exclude.
    pub(crate) fn word(mut self, value: usize) -> Self {
        let value = u32::try_from(value).expect("sizes were checked when the handles were made");
        self.words[self.n_halves / 2] |= u64::from(value) << (32 * (self.n_halves % 2));
        self.n_halves += 1;
        self
    }

    /// An `f32`.
    pub(crate) fn float(self, value: f32) -> Self {
        self.word(value.to_bits() as usize)
    }

    /// Ready to launch.
    pub(crate) fn launch(self, kernel: Kernel, grid: [usize; 2], (block, shared_bytes): (usize, usize)) -> Launch {
        let grid = grid.map(|n| u32::try_from(n).expect("sizes were checked when the handles were made"));
        Launch {
            kernel,
            grid,
            block: block as u32,
            cluster: 1,
            is_cooperative: false,
            shared_bytes: shared_bytes as u32,
            arguments: self.words,
        }
    }
}
