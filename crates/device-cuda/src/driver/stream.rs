//! One GPU's context and one stream of work on it, and the launch of a kernel.

use std::sync::Arc;

use bitnet_model::device::DeviceError;
use cudarc::driver::{result, sys};

use super::{Buffer, Graph, HostBuffer, Kernel, driver_failed, failed};
use crate::error::CudaError;
use crate::limits::ARGUMENT_WORDS_MAX;

/// A GPU's primary context, kept as long as anything on it lives.
pub(super) struct Context {
    device: sys::CUdevice,
    context: sys::CUcontext,
}

// SAFETY: a context may be used from any thread that makes it current, which every call here does (`make_current`).
unsafe impl Send for Context {}
// SAFETY: as above; the driver locks what it shares.
unsafe impl Sync for Context {}

impl Context {
    fn new(ordinal: usize) -> Result<Self, CudaError> {
        super::start_driver()?;
        let device = result::device::get(ordinal as i32).map_err(|_| CudaError::NoSuchDevice { ordinal })?;
        // SAFETY: `device` is what the driver gave.
        let context = unsafe { result::primary_ctx::retain(device) }.map_err(driver_failed("cuDevicePrimaryCtxRetain"))?;
        Ok(Self { device, context })
    }

    /// Makes this the calling thread's context.
    pub(super) fn make_current(&self) -> Result<(), result::DriverError> {
        // SAFETY: the context is retained until drop.
        unsafe { result::ctx::set_current(self.context) }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained once, in `new`; a failure at the end has nobody to hear it.
        let _ = unsafe { result::primary_ctx::release(self.device) };
    }
}

/// One kernel to run: its arguments are one block of plain words.
#[derive(Clone, Copy, PartialEq)]
pub(crate) struct Launch {
    pub(crate) kernel: Kernel,
    pub(crate) grid: [u32; 2],
    pub(crate) block: u32,
    /// Blocks of a cluster, neighbours along the grid's second side; 1: none.
    pub(crate) cluster: u32,
    /// Whether all blocks run at once and may wait for each other.
    pub(crate) is_cooperative: bool,
    pub(crate) shared_bytes: u32,
    pub(crate) arguments: [u64; ARGUMENT_WORDS_MAX],
}

/// A queue of work on one GPU.
pub(crate) struct Stream {
    stream: sys::CUstream,
    /// Whether a kernel may start before the one ahead has ended (it then waits inside, see numerics.cuh).
    overlaps: bool,
    pub(super) context: Arc<Context>,
}

// SAFETY: a stream belongs to its context and may be used from any thread that makes that current.
unsafe impl Send for Stream {}

impl Stream {
    /// A stream on GPU `ordinal`. `overlaps`: the GPU knows dependent launches (compute capability 9).
    pub(crate) fn new(ordinal: usize, overlaps: bool) -> Result<Self, CudaError> {
        let context = Arc::new(Context::new(ordinal)?);
        context.make_current().map_err(driver_failed("cuCtxSetCurrent"))?;
        let stream = result::stream::create(result::stream::StreamKind::NonBlocking).map_err(driver_failed("cuStreamCreate"))?;
        Ok(Self { stream, overlaps, context })
    }

    /// The context for memory of this GPU.
    pub(crate) fn memory(&self) -> super::Memory {
        super::Memory::new(self.context.clone())
    }

    /// Makes the calling thread ready for the calls below.
    pub(crate) fn make_current(&self) -> Result<(), DeviceError> {
        self.context.make_current().map_err(failed("cuCtxSetCurrent"))
    }

    /// Queues a kernel.
    pub(crate) fn launch(&self, launch: &Launch) -> Result<(), DeviceError> {
        let attribute = |id, value| sys::CUlaunchAttribute { id, pad: Default::default(), value };
        let overlap = attribute(
            sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
        );
        let cluster = sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x: 1, y: launch.cluster, z: 1 };
        let cluster =
            attribute(sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION, sys::CUlaunchAttributeValue { clusterDim: cluster });
        let cooperative =
            attribute(sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_COOPERATIVE, sys::CUlaunchAttributeValue { cooperative: 1 });
        // Only a GPU that knows clusters gets a launch with one, and it knows overlapping, too. A launch whose blocks wait for each other
        // begins when there is room for all.
        let mut attributes = if launch.is_cooperative { [cooperative, cluster] } else { [overlap, cluster] };
        let config = sys::CUlaunchConfig {
            gridDimX: launch.grid[0],
            gridDimY: launch.grid[1],
            gridDimZ: 1,
            blockDimX: launch.block,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: launch.shared_bytes,
            hStream: self.stream,
            attrs: attributes.as_mut_ptr(),
            numAttrs: if self.overlaps || launch.is_cooperative { 1 + u32::from(launch.cluster > 1) } else { 0 },
        };
        let mut arguments = launch.arguments;
        let mut parameters = [arguments.as_mut_ptr().cast()];
        // SAFETY: the kernel takes one block of arguments, no longer than `arguments` (Module::kernel checks); the driver copies it before
        // the call returns. What the arguments point to lives until the stream has passed this launch (Memory::collect).
        let status =
            unsafe { sys::cuLaunchKernelEx(&raw const config, launch.kernel.function(), parameters.as_mut_ptr(), std::ptr::null_mut()) };
        status.result().map_err(failed("cuLaunchKernelEx"))
    }

    /// Records `launches` as one graph.
    pub(crate) fn capture(&self, launches: &[Launch]) -> Result<Graph, DeviceError> {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream lives.
        unsafe { result::stream::begin_capture(self.stream, mode) }.map_err(failed("cuStreamBeginCapture"))?;
        let launched = launches.iter().try_for_each(|launch| self.launch(launch));
        // SAFETY: the capture begun above is ended here whatever happened between.
        let graph = unsafe { result::stream::end_capture(self.stream) }.map_err(failed("cuStreamEndCapture"))?;
        let graph = Graph::instantiate(graph, self.context.clone());
        launched?;
        graph
    }

    /// Queues a recorded graph.
    pub(crate) fn launch_graph(&self, graph: &Graph) -> Result<(), DeviceError> {
        // SAFETY: both live, and the graph was made on this context (`capture`).
        unsafe { result::graph::launch(graph.executable(), self.stream) }.map_err(failed("cuGraphLaunch"))
    }

    /// Queues a copy of the first `size_bytes` of `from`. The caller must not write to `from` before `wait`.
    pub(crate) fn upload(&self, from: &HostBuffer, to: &Buffer, size_bytes: usize) -> Result<(), DeviceError> {
        assert!(size_bytes <= from.size_bytes() && size_bytes <= to.size_bytes(), "the copy fits both buffers");
        // SAFETY: both buffers hold size_bytes (asserted) and live until the stream has passed (Memory::collect).
        let status = unsafe { sys::cuMemcpyHtoDAsync_v2(to.address(), from.pointer().cast(), size_bytes, self.stream) };
        status.result().map_err(failed("cuMemcpyHtoDAsync"))
    }

    /// Queues a copy of the first `size_bytes` of `from`, which is on the host after `wait`.
    pub(crate) fn download(&self, from: &Buffer, to: &HostBuffer, size_bytes: usize) -> Result<(), DeviceError> {
        assert!(size_bytes <= from.size_bytes() && size_bytes <= to.size_bytes(), "the copy fits both buffers");
        // SAFETY: both buffers hold size_bytes (asserted); the host buffer is read only after `wait` (its readers say so).
        let status = unsafe { sys::cuMemcpyDtoHAsync_v2(to.pointer().cast(), from.address(), size_bytes, self.stream) };
        status.result().map_err(failed("cuMemcpyDtoHAsync"))
    }

    /// Queues zeros for all of `buffer`.
    pub(crate) fn clear(&self, buffer: &Buffer) -> Result<(), DeviceError> {
        // SAFETY: the buffer lives until the stream has passed (Memory::collect) and holds that many bytes.
        unsafe { result::memset_d8_async(buffer.address(), 0, buffer.size_bytes(), self.stream) }.map_err(failed("cuMemsetD8Async"))
    }

    /// Waits until everything queued is done.
    pub(crate) fn wait(&self) -> Result<(), DeviceError> {
        // SAFETY: the stream lives.
        unsafe { result::stream::synchronize(self.stream) }.map_err(failed("cuStreamSynchronize"))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.context.make_current().is_ok() {
            // SAFETY: made in `new`, destroyed once; work still queued is finished by the driver first.
            let _ = unsafe { result::stream::destroy(self.stream) };
        }
    }
}
