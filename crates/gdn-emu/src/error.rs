//! What can go wrong.

/// A kernel could not be built or run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or the compiler could not be used.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// The compiler's messages.
    #[error("the kernel does not compile:\n{0}")]
    Compile(String),
    /// The library or one of its symbols could not be loaded.
    #[error("{0}")]
    Load(#[from] libloading::Error),
    /// Threads wait for what no thread will do.
    #[error("{entry} hangs, schedule {schedule}")]
    Deadlock {
        /// The kernel.
        entry: String,
        /// [`Launch::schedule`](crate::Launch::schedule).
        schedule: u32,
    },
}

/// [`std::result::Result`] with this crate's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;
