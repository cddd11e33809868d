//! The one error type of the crate.

use crate::{DType, DecodePath, Place};

/// The result of every fallible call of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error, raised before anything was written.
///
/// [`Error::kind`] tells the cases apart; the message names the argument, what
/// was expected and what came.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{kind}")]
pub struct Error {
    kind: ErrorKind,
}

impl Error {
    /// What went wrong, to match on.
    pub fn kind(&self) -> &ErrorKind {
        &self.kind
    }
}

impl From<ErrorKind> for Error {
    fn from(kind: ErrorKind) -> Self {
        Self { kind }
    }
}

/// The cases of [`Error`].
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A dimension differs from what the layer or the batch asks for.
    #[error("{argument}: expected {expected} {unit}, got {got}")]
    Dim {
        /// The argument, as it is named in the call.
        argument: &'static str,
        /// What is counted: "rows", "columns", "elements".
        unit: &'static str,
        /// The count that the layer or the batch asks for.
        expected: usize,
        /// The count that came.
        got: usize,
    },
    /// A value outside its domain.
    #[error("{argument}: expected {expected}, got {got}")]
    Value {
        /// The argument, as it is named in the call.
        argument: &'static str,
        /// The domain, in words.
        expected: &'static str,
        /// What came.
        got: String,
    },
    /// The value heads can't be shared out evenly among the query/key heads.
    #[error("v_heads: expected a multiple of q_heads = {q_heads}, got {v_heads}")]
    HeadRatio {
        /// H, the number of query/key heads.
        q_heads: usize,
        /// HV, the number of value heads.
        v_heads: usize,
    },
    /// A tensor of another element type than its partners.
    #[error("{argument}: expected dtype {expected}, got {got}")]
    DType {
        /// The argument, as it is named in the call.
        argument: &'static str,
        /// The dtype that its partners have.
        expected: DType,
        /// The dtype that came.
        got: DType,
    },
    /// A row stride or slot pitch that makes rows or slots overlap, or a
    /// strided tensor where a dense one is asked for.
    #[error("{argument}: expected a stride of {expected}, got {got} elements")]
    Stride {
        /// The argument, as it is named in the call.
        argument: &'static str,
        /// The strides that are accepted, in words.
        expected: String,
        /// The stride that came, in elements.
        got: usize,
    },
    /// A buffer shorter than its shape and stride ask for.
    #[error("{argument}: expected a buffer of at least {expected} elements, got {got}")]
    Buffer {
        /// The argument, as it is named in the call.
        argument: &'static str,
        /// The elements that shape and stride ask for.
        expected: usize,
        /// The elements that came.
        got: usize,
    },
    /// A slot past the end of the pool.
    #[error("slots[{row}]: expected a slot below {slots} or a negative one (padding), got {got}")]
    SlotOutOfRange {
        /// The row of the batch that asks for it.
        row: usize,
        /// The number of slots in the pool.
        slots: usize,
        /// The slot that came.
        got: i64,
    },
    /// Two rows of one batch on one slot: both would update one state.
    #[error("slots[{second}]: expected a slot of its own, got {slot}, which slots[{first}] has")]
    DuplicateSlot {
        /// The slot.
        slot: usize,
        /// The first row that has it.
        first: usize,
        /// The second row that has it.
        second: usize,
    },
    /// A slot that is not allocated was freed, copied or restored.
    #[error("{argument}: expected an allocated slot, got {got}")]
    SlotNotAllocated {
        /// The argument, as it is named in the call.
        argument: &'static str,
        /// The slot that came.
        got: i64,
    },
    /// Every slot of the pool is taken.
    #[error("pool: all {slots} slots are taken; free one, or make the pool larger")]
    PoolFull {
        /// The number of slots in the pool.
        slots: usize,
    },
    /// Two things that must be made for one layer were made for different ones.
    #[error("{argument}: expected {expected}, got {got}")]
    Mismatch {
        /// The argument, as it is named in the call.
        argument: &'static str,
        /// What its partner is made for.
        expected: String,
        /// What it is made for.
        got: String,
    },
    /// A tensor in memory that the backend, or a partner of it, can't reach.
    #[error("{argument}: expected {expected}, got {got}")]
    Place {
        /// The argument, as it is named in the call.
        argument: &'static str,
        /// The memory that is asked for.
        expected: Place,
        /// The memory that came.
        got: Place,
    },
    /// A path was forced that the backend does not have for this layer.
    #[error("path: {path} is not supported by the {backend} backend: {reason}")]
    Unsupported {
        /// The forced path.
        path: DecodePath,
        /// The backend's name.
        backend: &'static str,
        /// Why not.
        reason: String,
    },
    /// There is no such GPU, no driver for it, or no compiler for its kernels.
    #[error("no {backend} backend: {reason}")]
    Unavailable {
        /// The backend's name.
        backend: &'static str,
        /// What is missing, and how to get it.
        reason: String,
    },
    /// A GPU refused or failed.
    #[error("{place}: {reason}")]
    Device {
        /// The GPU.
        place: Place,
        /// What it says.
        reason: String,
    },
    /// The operating system gave no memory or no threads.
    #[error("{what}: the operating system refused: {reason}")]
    System {
        /// What was asked for.
        what: String,
        /// Its answer.
        reason: String,
    },
}

/// `Err` unless the two counts are equal.
pub(crate) fn expect_dim(
    argument: &'static str,
    unit: &'static str,
    expected: usize,
    got: usize,
) -> Result<()> {
    if expected == got {
        return Ok(());
    }
    Err(ErrorKind::Dim { argument, unit, expected, got }.into())
}

/// `Err` unless the two dtypes are equal.
pub(crate) fn expect_dtype(argument: &'static str, expected: DType, got: DType) -> Result<()> {
    if expected == got {
        return Ok(());
    }
    Err(ErrorKind::DType { argument, expected, got }.into())
}

impl Place {
    /// `Err` unless the tensor lies in this memory.
    pub(crate) fn expect(self, argument: &'static str, expected: Self) -> Result<()> {
        if self == expected {
            return Ok(());
        }
        Err(ErrorKind::Place { argument, expected, got: self }.into())
    }
}
