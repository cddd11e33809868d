//! Split decode: the recurrence as the steps that serving engines ran.
//!
//! Its arguments are those of packed decode, [`Decode`](crate::Decode).

pub(crate) mod cpu;
pub(crate) mod cuda;
