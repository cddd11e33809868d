//! Files of weights, mapped.
#![expect(unsafe_code, reason = "someone may change a file while it is mapped")]

use std::{fs::File, path::Path};

use memmap2::Mmap;

use crate::{Error, Result};

/// Maps a file to read.
pub(super) fn map(path: &Path) -> Result<Mmap> {
    let error = |source| Error::Io { path: path.to_owned(), source };
    let file = File::open(path).map_err(error)?;
    // SAFETY: weights are written once and then only read; who changes a model
    // while it is loaded gets other numbers or a bus error. Only bytes are read
    // through the map, and every bit pattern of them is a number.
    unsafe { Mmap::map(&file) }.map_err(error)
}
