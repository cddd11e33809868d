//! What the command leaves behind: files, and errors in the user's terms.

use std::{
    env,
    error::Error,
    fmt, fs,
    io::{self, Write},
    path::{Path, PathBuf},
};

use anyhow::Context;
use serde::Serialize;
use tempfile::NamedTempFile;

use crate::{
    backend::{AnyBackend, BackendInfo},
    machine::Machine,
};

/// A flag or a value that can't be used as it is given.
#[derive(Debug)]
pub(crate) struct Usage(pub(crate) String);

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for Usage {}

/// A file that is written whole or not at all.
#[derive(Debug)]
pub(crate) struct OutputFile {
    flag: &'static str,
    path: PathBuf,
}

impl OutputFile {
    /// The file that `flag` asks for, if it does; `Err` if it can't be written,
    /// so that one knows before the work is done.
    pub(crate) fn of(flag: &'static str, path: Option<&Path>) -> anyhow::Result<Option<Self>> {
        let Some(path) = path else { return Ok(None) };
        // A link stays one: what it points at is replaced.
        let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let file = Self { flag, path };
        match file.open() {
            Ok(_) => Ok(Some(file)),
            Err(error) => {
                let path = file.path.display();
                // The cause alone: the error itself names a temporary file.
                let cause = error.source().map_or(error.to_string(), |cause| cause.to_string());
                Err(Usage(format!("{flag}: can't write {path}: {cause}")).into())
            }
        }
    }

    /// Writes the file.
    pub(crate) fn write(&self, contents: &[u8]) -> anyhow::Result<()> {
        let write = || match self.open()? {
            Target::Special(mut device) => device.write_all(contents),
            Target::Regular(mut file) => {
                file.write_all(contents)?;
                file.persist(&self.path)?;
                Ok(())
            }
        };
        write().with_context(|| format!("{}: can't write {}", self.flag, self.path.display()))
    }

    /// Writes `value` as JSON.
    pub(crate) fn write_json(&self, value: &impl Serialize) -> anyhow::Result<()> {
        let mut json = serde_json::to_vec_pretty(value)?;
        json.push(b'\n');
        self.write(&json)
    }

    fn open(&self) -> io::Result<Target> {
        match fs::metadata(&self.path) {
            Ok(found) if found.is_dir() => return Err(io::ErrorKind::IsADirectory.into()),
            // A pipe or a device must not be replaced by a file.
            Ok(found) if !found.is_file() => {
                return fs::OpenOptions::new().write(true).open(&self.path).map(Target::Special);
            }
            _ => {}
        }
        let directory = match self.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let mut builder = tempfile::Builder::new();
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            builder.permissions(fs::Permissions::from_mode(0o666));
        }
        builder.tempfile_in(directory).map(Target::Regular)
    }
}

enum Target {
    Regular(NamedTempFile),
    Special(fs::File),
}

/// Where numbers come from: the head of every JSON file.
#[derive(Serialize)]
pub(crate) struct Provenance {
    version: &'static str,
    command: Vec<String>,
    date: String,
    machine: Machine,
    #[serde(flatten)]
    backend: Option<BackendInfo>,
}

impl Provenance {
    /// Of numbers that come from this machine's backend, or from none of its own.
    pub(crate) fn new(backend: Option<&AnyBackend>) -> Self {
        let args = env::args_os().map(|arg| arg.to_string_lossy().into_owned());
        Self {
            version: env!("CARGO_PKG_VERSION"),
            command: without_secrets(args),
            date: humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string(),
            machine: Machine::probe(),
            backend: backend.map(AnyBackend::describe),
        }
    }
}

/// A command line as it may be shown to others.
fn without_secrets(args: impl Iterator<Item = String>) -> Vec<String> {
    const SECRET: &str = "--api-key";
    let mut hide = false;
    let shown = args.map(|arg| match arg.split_once('=') {
        _ if std::mem::take(&mut hide) => "***".to_owned(),
        Some((SECRET, _)) => format!("{SECRET}=***"),
        _ => {
            hide = arg == SECRET;
            arg
        }
    });
    shown.collect()
}

#[cfg(test)]
mod tests {
    use super::without_secrets;

    #[test]
    fn secrets_are_not_shown() {
        let shown = |args: &str| without_secrets(args.split(' ').map(str::to_owned)).join(" ");
        assert_eq!(shown("gdn a --api-key k --json f"), "gdn a --api-key *** --json f");
        assert_eq!(shown("gdn a --api-key=k b=c"), "gdn a --api-key=*** b=c");
    }
}
