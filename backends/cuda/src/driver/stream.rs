//! The stream all work goes through, events, and CUDA graphs captured from the stream.

use cudarc::driver::sys;

use super::DriverError;
use super::error::check;
use crate::launch::DevicePtr;

/// An ordered queue of device work.
#[derive(Debug)]
pub(crate) struct Stream {
    handle: sys::CUstream,
}

// SAFETY: streams may be used from any thread that has their context current.
unsafe impl Send for Stream {}

impl Stream {
    /// A stream that does not wait for the legacy default stream.
    pub(crate) fn create() -> Result<Self, DriverError> {
        let mut handle = std::ptr::null_mut();
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: a context is current; the pointer is to a live pointer.
        check("cuStreamCreate", unsafe { sys::cuStreamCreate(&raw mut handle, flags) })?;
        Ok(Self { handle })
    }

    pub(super) const fn handle(&self) -> sys::CUstream {
        self.handle
    }

    /// Waits for everything queued.
    pub(crate) fn synchronize(&self) -> Result<(), DriverError> {
        // SAFETY: the stream is live.
        check("cuStreamSynchronize", unsafe { sys::cuStreamSynchronize(self.handle) })
    }

    /// Queues a fill of `bytes` bytes (a multiple of 4) with a 32-bit pattern.
    pub(crate) fn fill(&self, to: DevicePtr, pattern: u32, bytes: usize) -> Result<(), DriverError> {
        if bytes < 4 {
            return Ok(());
        }
        // SAFETY: the range is an arena's own.
        let code = unsafe { sys::cuMemsetD32Async(to.0, pattern, bytes / 4, self.handle) };
        check("cuMemsetD32Async", code)
    }

    /// Queues a copy between two places on the device.
    pub(crate) fn copy(&self, from: DevicePtr, to: DevicePtr, bytes: usize) -> Result<(), DriverError> {
        // SAFETY: both ranges are arenas' own and do not overlap.
        let code = unsafe { sys::cuMemcpyDtoDAsync_v2(to.0, from.0, bytes, self.handle) };
        check("cuMemcpyDtoDAsync", code)
    }

    /// Records what `work` queues into a graph instead of running it, and makes the graph ready to launch.
    pub(crate) fn capture<E: From<DriverError>>(
        &self,
        work: impl FnOnce() -> Result<(), E>,
    ) -> Result<GraphExec, E> {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is live and not capturing: capture ends below on every path.
        check("cuStreamBeginCapture", unsafe { sys::cuStreamBeginCapture_v2(self.handle, mode) })?;
        let worked = work();
        let mut graph = std::ptr::null_mut();
        // SAFETY: the stream is capturing; the pointer is to a live pointer.
        let ended =
            check("cuStreamEndCapture", unsafe { sys::cuStreamEndCapture(self.handle, &raw mut graph) });
        let graph = Graph(graph);
        worked?;
        ended?;
        let mut exec = std::ptr::null_mut();
        // SAFETY: the graph is live until the end of this function; the executable copies what it needs.
        let code = unsafe { sys::cuGraphInstantiateWithFlags(&raw mut exec, graph.0, 0) };
        check("cuGraphInstantiate", code)?;
        let exec = GraphExec { handle: exec };
        // SAFETY: both are live. The upload moves its cost from the first launch to here.
        check("cuGraphUpload", unsafe { sys::cuGraphUpload(exec.handle, self.handle) })?;
        Ok(exec)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: created once; the driver lets queued work finish.
        let _ = unsafe { sys::cuStreamDestroy_v2(self.handle) };
    }
}

/// A captured graph, until it is instantiated.
struct Graph(sys::CUgraph);

impl Drop for Graph {
    fn drop(&mut self) {
        if !self.0.is_null() {
            // SAFETY: came from a capture, destroyed once.
            let _ = unsafe { sys::cuGraphDestroy(self.0) };
        }
    }
}

/// A graph ready to launch.
#[derive(Debug)]
pub(crate) struct GraphExec {
    handle: sys::CUgraphExec,
}

// SAFETY: as for streams.
unsafe impl Send for GraphExec {}

impl GraphExec {
    /// Queues one replay.
    pub(crate) fn launch(&self, stream: &Stream) -> Result<(), DriverError> {
        // SAFETY: both are live; the memory its kernels use belongs to the backend, which outlives it.
        check("cuGraphLaunch", unsafe { sys::cuGraphLaunch(self.handle, stream.handle) })
    }
}

impl Drop for GraphExec {
    fn drop(&mut self) {
        // SAFETY: instantiated once; the driver defers destruction until a running launch is done.
        let _ = unsafe { sys::cuGraphExecDestroy(self.handle) };
    }
}

/// A mark in a stream.
#[derive(Debug)]
pub(crate) struct Event {
    handle: sys::CUevent,
}

// SAFETY: as for streams.
unsafe impl Send for Event {}

impl Event {
    /// An event, with or without a clock.
    pub(crate) fn create(timed: bool) -> Result<Self, DriverError> {
        let flags = if timed {
            sys::CUevent_flags::CU_EVENT_DEFAULT
        } else {
            sys::CUevent_flags::CU_EVENT_DISABLE_TIMING
        };
        let mut handle = std::ptr::null_mut();
        // SAFETY: a context is current; the pointer is to a live pointer.
        check("cuEventCreate", unsafe { sys::cuEventCreate(&raw mut handle, flags as u32) })?;
        Ok(Self { handle })
    }

    /// Marks the end of what is queued now.
    pub(crate) fn record(&self, stream: &Stream) -> Result<(), DriverError> {
        // SAFETY: both are live and of one context.
        check("cuEventRecord", unsafe { sys::cuEventRecord(self.handle, stream.handle) })
    }

    /// As `record`, but while a graph is captured: every replay sets the mark.
    pub(crate) fn record_in_graph(&self, stream: &Stream) -> Result<(), DriverError> {
        let flags = sys::CUevent_record_flags::CU_EVENT_RECORD_EXTERNAL as u32;
        // SAFETY: both are live and of one context; the graph is dropped before the event.
        let code = unsafe { sys::cuEventRecordWithFlags(self.handle, stream.handle, flags) };
        check("cuEventRecordWithFlags", code)
    }

    /// Waits until the mark is passed; returns at once if it was never set.
    pub(crate) fn wait(&self) -> Result<(), DriverError> {
        // SAFETY: the event is live.
        check("cuEventSynchronize", unsafe { sys::cuEventSynchronize(self.handle) })
    }

    /// Microseconds from `earlier` to this mark; both timed and passed.
    pub(crate) fn microseconds_since(&self, earlier: &Self) -> Result<f64, DriverError> {
        let mut milliseconds = 0.0_f32;
        // SAFETY: both are live; the pointer is to a live float.
        let code = unsafe { sys::cuEventElapsedTime_v2(&raw mut milliseconds, earlier.handle, self.handle) };
        check("cuEventElapsedTime", code)?;
        Ok(f64::from(milliseconds) * 1000.0)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: created once; the driver defers destruction until it is passed.
        let _ = unsafe { sys::cuEventDestroy_v2(self.handle) };
    }
}
