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
        let begun = self.main.record(&self.begin).and_then(|()| self.stream.wait(&self.begin));
        begun.map_err(|error| failed(error, self.stream.device().info().ordinal))
    }

    /// What the first stream is given from now on starts behind all that was enqueued here.
    pub(super) fn end(&self) -> Result<()> {
        let ended = self.stream.record(&self.end).and_then(|()| self.main.wait(&self.end));
        ended.map_err(|error| failed(error, self.stream.device().info().ordinal))
    }
}
