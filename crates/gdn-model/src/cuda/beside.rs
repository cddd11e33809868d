//! A second stream.

use gdn::Cuda;
use gdn_cuda::{Event, Stream};

use super::failed;
use crate::Result;

/// Where a mixed pass runs the recurrence of its prompts, a chain of small kernels, beside that
/// of single tokens.
#[derive(Debug)]
pub(super) struct Beside {
    pub(super) cuda: Cuda,
    main: Stream,
    stream: Stream,
    begin: Event,
    end: Event,
}

impl Beside {
    /// `None` on a runtime without streams.
    pub(super) fn new(cuda: &Cuda) -> Result<Option<Self>> {
        let (Some(main), Some(cuda)) = (cuda.runtime().stream().cloned(), cuda.beside()?) else {
            return Ok(None);
        };
        let stream = cuda.stream().clone();
        let event = || {
            let ordinal = stream.device().info().ordinal;
            Event::untimed(stream.device()).map_err(|error| failed(error, ordinal))
        };
        let (begin, end) = (event()?, event()?);
        Ok(Some(Self { cuda, main, stream, begin, end }))
    }

    /// What is enqueued here from now on starts behind all that the first stream has.
    pub(super) fn begin(&self) -> Result<()> {
        order(&self.begin, &self.main, &self.stream)
    }

    /// What the first stream is given from now on starts behind all that was enqueued here.
    pub(super) fn end(&self) -> Result<()> {
        order(&self.end, &self.stream, &self.main)
    }
}

/// What `behind` is given from now on starts behind all that `before` has.
fn order(event: &Event, before: &Stream, behind: &Stream) -> Result<()> {
    let ordered = before.record(event).and_then(|()| behind.wait(event));
    ordered.map_err(|error| failed(error, before.device().info().ordinal))
}
