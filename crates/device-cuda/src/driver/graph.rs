//! A recorded sequence of launches that is queued with one call.

use std::sync::Arc;

use bitnet_model::device::DeviceError;
use cudarc::driver::{result, sys};

use super::failed;
use super::stream::Context;

/// An executable graph.
pub(crate) struct Graph {
    executable: sys::CUgraphExec,
    context: Arc<Context>,
}

// SAFETY: a graph belongs to its context and may be launched from any thread that makes that current.
unsafe impl Send for Graph {}

impl Graph {
    /// Takes a captured graph and destroys it once an executable is made.
    pub(super) fn instantiate(graph: sys::CUgraph, context: Arc<Context>) -> Result<Self, DeviceError> {
        // SAFETY: `graph` is what cuStreamEndCapture gave.
        let executable = unsafe { result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0)) };
        // SAFETY: given by cuStreamEndCapture and destroyed once; the executable does not need it.
        let destroyed = unsafe { result::graph::destroy(graph) };
        let executable = executable.map_err(failed("cuGraphInstantiate"))?;
        let graph = Self { executable, context };
        destroyed.map_err(failed("cuGraphDestroy"))?;
        Ok(graph)
    }

    pub(super) fn executable(&self) -> sys::CUgraphExec {
        self.executable
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if self.context.make_current().is_ok() {
            // SAFETY: made in `instantiate`, destroyed once; the driver keeps it until launches of it have ended.
            let _ = unsafe { result::graph::exec_destroy(self.executable) };
        }
    }
}
