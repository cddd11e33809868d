//! Recording a step once and replaying it as one submission.

use std::fmt;

use cudarc::driver::sys::{self, CUgraphExecUpdateResult, CUresult, CUstreamCaptureMode};

use crate::device::Device;
use crate::error::{Error, Repr, Result, check};
use crate::stream::Stream;

impl Stream {
    /// Records what `work` enqueues on this stream, which does not run, as a [`Graph`].
    ///
    /// While it records, nothing may wait: [`synchronize`](Stream::synchronize), events and tracked
    /// copies are refused.
    ///
    /// # Safety
    /// For as long as the graph, or a [`GraphExec`] made or updated from it, may be replayed, every
    /// buffer and [`Function`](crate::Function) that `work` used must stay alive, and the promises
    /// made at its launches must hold at every replay.
    ///
    /// # Errors
    /// What `work` returns, or the driver's refusal to record something it did. The stream is
    /// usable again in either case, and after a panic of `work`.
    pub unsafe fn capture<E: From<Error>>(
        &self,
        work: impl FnOnce(&Stream) -> Result<(), E>,
    ) -> Result<Graph, E> {
        self.not_capturing("Stream::capture")?;
        self.device().bind()?;
        // Thread-local: other threads may allocate and load modules meanwhile.
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is alive and its context current.
        let result = unsafe { sys::cuStreamBeginCapture_v2(self.as_raw(), mode) };
        check(result, "cuStreamBeginCapture")?;
        self.set_capturing(true);
        let recording = Recording(self);
        work(self)?;
        Ok(recording.end()?)
    }
}

/// A capture under way; dropping it, on an error or a panic, throws the recording away.
struct Recording<'a>(&'a Stream);

impl Recording<'_> {
    fn end(self) -> Result<Graph> {
        let stream = self.0;
        std::mem::forget(self);
        end_capture(stream)
    }
}

impl Drop for Recording<'_> {
    fn drop(&mut self) {
        let _ = end_capture(self.0);
    }
}

fn end_capture(stream: &Stream) -> Result<Graph> {
    stream.set_capturing(false);
    stream.device().bind()?;
    let mut raw = std::ptr::null_mut();
    // SAFETY: `raw` is a valid place for one handle; the stream is alive and being captured by
    // this thread, as a stream does not leave its thread while it is borrowed.
    let result = unsafe { sys::cuStreamEndCapture(stream.as_raw(), &mut raw) };
    check(result, "cuStreamEndCapture")?;
    Ok(Graph { device: stream.device().clone(), raw })
}

/// A recorded step, from which a [`GraphExec`] is made or updated.
pub struct Graph {
    device: Device,
    raw: sys::CUgraph,
}

// SAFETY: an opaque handle without thread affinity. (Not `Sync`: the driver does not order calls
// on one graph.)
unsafe impl Send for Graph {}

impl Graph {
    /// Number of recorded operations.
    ///
    /// # Errors
    /// Whatever the driver refuses.
    pub fn len(&self) -> Result<usize> {
        let mut count = 0;
        // SAFETY: without an array the driver only writes the count; the graph is alive.
        let result = unsafe { sys::cuGraphGetNodes(self.raw, std::ptr::null_mut(), &mut count) };
        check(result, "cuGraphGetNodes")?;
        Ok(count)
    }

    /// Whether nothing was recorded.
    ///
    /// # Errors
    /// As [`len`](Self::len).
    pub fn is_empty(&self) -> Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Makes it ready to run, and moves it to the GPU through `stream`, so that the first replay
    /// costs no more than the others.
    ///
    /// # Errors
    /// [`InvalidArgument`](crate::ErrorKind::InvalidArgument) for a stream of another GPU or one
    /// that is being captured, and whatever the driver refuses.
    pub fn instantiate(&self, stream: &Stream) -> Result<GraphExec> {
        self.device.expect_same(stream.device(), "Graph::instantiate")?;
        stream.not_capturing("Graph::instantiate")?;
        self.device.bind()?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: `raw` is a valid place for one handle; the graph is alive; no flags.
        let result = unsafe { sys::cuGraphInstantiateWithFlags(&mut raw, self.raw, 0) };
        check(result, "cuGraphInstantiateWithFlags")?;
        let exec = GraphExec { device: self.device.clone(), raw };
        // SAFETY: both are alive, of one context, which is current.
        let result = unsafe { sys::cuGraphUpload(exec.raw, stream.as_raw()) };
        check(result, "cuGraphUpload")?;
        Ok(exec)
    }
}

impl fmt::Debug for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Graph({:?} operations)", self.len().ok())
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        let _ = self.device.bind();
        // SAFETY: the only handle to the graph; what was made from it is independent of it.
        let _ = unsafe { sys::cuGraphDestroy(self.raw) };
    }
}

/// A graph ready to run.
pub struct GraphExec {
    device: Device,
    raw: sys::CUgraphExec,
}

// SAFETY: as for `Graph`.
unsafe impl Send for GraphExec {}

impl GraphExec {
    /// Enqueues the whole graph on `stream`; returns at once. What keeps this sound was promised
    /// at [`Stream::capture`].
    ///
    /// # Errors
    /// [`InvalidArgument`](crate::ErrorKind::InvalidArgument) for a stream of another GPU or one
    /// that is being captured.
    #[inline]
    pub fn launch(&self, stream: &Stream) -> Result<()> {
        if !self.device.same(stream.device()) {
            self.device.expect_same(stream.device(), "GraphExec::launch")?;
        }
        stream.not_capturing("GraphExec::launch")?;
        self.device.bind()?;
        // SAFETY: both are alive, of one context, which is current.
        let result = unsafe { sys::cuGraphLaunch(self.raw, stream.as_raw()) };
        check(result, "cuGraphLaunch")
    }

    /// Takes over the parameters and shapes of `graph`, a new recording of the same operations in
    /// the same order: much cheaper than to instantiate it. Replays already enqueued keep the old.
    ///
    /// # Errors
    /// [`GraphUpdate`](crate::ErrorKind::GraphUpdate) if the operations differ: instantiate
    /// `graph` in place of this one.
    pub fn update(&mut self, graph: &Graph) -> Result<()> {
        self.device.expect_same(&graph.device, "GraphExec::update")?;
        self.device.bind()?;
        let mut info = sys::CUgraphExecUpdateResultInfo {
            result: CUgraphExecUpdateResult::CU_GRAPH_EXEC_UPDATE_SUCCESS,
            errorNode: std::ptr::null_mut(),
            errorFromNode: std::ptr::null_mut(),
        };
        // SAFETY: `info` is a valid place for the outcome, and both graphs are alive.
        match unsafe { sys::cuGraphExecUpdate_v2(self.raw, graph.raw, &mut info) } {
            CUresult::CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE => {
                let name = format!("{:?}", info.result);
                let reason = name.trim_start_matches("CU_GRAPH_EXEC_UPDATE_").to_lowercase();
                Err(Repr::GraphUpdate { reason }.into())
            }
            other => check(other, "cuGraphExecUpdate"),
        }
    }
}

impl fmt::Debug for GraphExec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GraphExec({:?} of {:?})", self.raw, self.device)
    }
}

impl Drop for GraphExec {
    fn drop(&mut self) {
        let _ = self.device.bind();
        // SAFETY: the only handle to it; the driver keeps it until replays under way are done.
        let _ = unsafe { sys::cuGraphExecDestroy(self.raw) };
    }
}
