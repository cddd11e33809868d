//! Binaries on disk: one file each, written whole or not at all, and never believed unchecked.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::source::{CacheKey, fnv1a};

/// First bytes of a file; the last one is the version of the format.
const MAGIC: [u8; 8] = *b"gdncub\0\x01";
/// Magic, key length, binary length, checksum.
const HEADER: usize = 8 + 8 + 8 + 16;

#[derive(Debug)]
pub(crate) struct DiskCache {
    dir: PathBuf,
}

#[derive(Debug, PartialEq)]
pub(crate) enum Lookup {
    Hit(Vec<u8>),
    Miss,
    /// There is a file, but it is damaged or not of this key.
    Rejected,
}

impl DiskCache {
    pub(crate) fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn load(&self, key: &CacheKey) -> Lookup {
        match fs::read(self.dir.join(&key.file_name)) {
            Ok(file) => unpack(key, &file).map_or(Lookup::Rejected, Lookup::Hit),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Lookup::Miss,
            Err(_) => Lookup::Rejected,
        }
    }

    /// Writes beside the final place and renames, so that a reader, or a second writer, sees a
    /// whole file or none. No sync to disk: the checksum finds what a power cut tears.
    pub(crate) fn store(&self, key: &CacheKey, cubin: &[u8]) -> io::Result<()> {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        fs::create_dir_all(&self.dir)?;
        let (process, count) = (std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed));
        let temporary = self.dir.join(format!(".{}.{process}.{count}.tmp", key.file_name));
        let written = fs::File::create(&temporary)
            .and_then(|mut file| file.write_all(&pack(key, cubin)))
            .and_then(|()| fs::rename(&temporary, self.dir.join(&key.file_name)));
        if written.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        written
    }
}

fn pack(key: &CacheKey, cubin: &[u8]) -> Vec<u8> {
    let mut file = Vec::with_capacity(HEADER + key.text.len() + cubin.len());
    file.extend_from_slice(&MAGIC);
    file.extend_from_slice(&(key.text.len() as u64).to_le_bytes());
    file.extend_from_slice(&(cubin.len() as u64).to_le_bytes());
    file.extend_from_slice(&fnv1a(&[&key.text, cubin]).to_le_bytes());
    file.extend_from_slice(&key.text);
    file.extend_from_slice(cubin);
    file
}

/// The binary in `file`, if it is whole and of `key`.
fn unpack(key: &CacheKey, file: &[u8]) -> Option<Vec<u8>> {
    let (header, body) = file.split_at_checked(HEADER)?;
    let number = |at: usize| Some(u64::from_le_bytes(header.get(at..at + 8)?.try_into().ok()?));
    let checksum = u128::from_le_bytes(header[24..].try_into().ok()?);
    let (text, cubin) = body.split_at_checked(key.text.len())?;
    let sound = header.starts_with(&MAGIC)
        && number(8)? == text.len() as u64
        && number(16)? == cubin.len() as u64
        && text == key.text
        && fnv1a(&[text, cubin]) == checksum;
    sound.then(|| cubin.to_vec())
}

/// Where binaries go: `$GDN_CACHE_DIR`, else `gdn/kernels` under `$XDG_CACHE_HOME` or
/// `$HOME/.cache`. Relative paths count as unset, as the XDG specification has it.
pub(crate) fn default_dir(var: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let absolute = |name: &str| var(name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute("GDN_CACHE_DIR").or_else(|| {
        let base = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))?;
        Some(base.join("gdn").join("kernels"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::Version;
    use crate::source::KernelSource;

    fn key(text: &str) -> CacheKey {
        KernelSource::new("k", text).key("sm_90a", Version::new(13, 0))
    }

    fn cache() -> (tempfile::TempDir, DiskCache) {
        let dir = tempfile::tempdir().unwrap();
        let cache = DiskCache::new(dir.path().join("not/yet/there"));
        (dir, cache)
    }

    #[test]
    fn what_is_stored_is_found_under_its_key_alone() {
        let (_dir, cache) = cache();
        assert_eq!(cache.load(&key("a")), Lookup::Miss);
        cache.store(&key("a"), b"binary").unwrap();
        assert_eq!(cache.load(&key("a")), Lookup::Hit(b"binary".to_vec()));
        assert_eq!(cache.load(&key("b")), Lookup::Miss);
        cache.store(&key("a"), b"newer").unwrap();
        assert_eq!(cache.load(&key("a")), Lookup::Hit(b"newer".to_vec()));
    }

    #[test]
    fn any_damaged_byte_and_any_cut_is_rejected() {
        let (_dir, cache) = cache();
        let key = key("a");
        cache.store(&key, b"binary").unwrap();
        let path = cache.dir().join(&key.file_name);
        let whole = fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x10;
            fs::write(&path, &damaged).unwrap();
            assert_eq!(cache.load(&key), Lookup::Rejected, "byte {at}");
            fs::write(&path, &whole[..at]).unwrap();
            assert_eq!(cache.load(&key), Lookup::Rejected, "cut at {at}");
        }
        fs::write(&path, [&whole[..], b"x"].concat()).unwrap();
        assert_eq!(cache.load(&key), Lookup::Rejected, "longer");
    }

    #[test]
    fn a_file_of_another_key_is_rejected() {
        let (_dir, cache) = cache();
        let (a, b) = (key("a"), key("b"));
        cache.store(&a, b"binary").unwrap();
        fs::rename(cache.dir().join(&a.file_name), cache.dir().join(&b.file_name)).unwrap();
        assert_eq!(cache.load(&b), Lookup::Rejected);
    }

    /// Readers beside writers of large files: each sees nothing or one whole binary.
    #[test]
    fn a_reader_never_sees_half_a_file() {
        let (dir, cache) = cache();
        let key = key("a");
        let binary = |byte: u8| vec![byte; 200_000];
        std::thread::scope(|scope| {
            for byte in 0..2 {
                let (cache, key) = (&cache, &key);
                scope.spawn(move || {
                    for _ in 0..20 {
                        cache.store(key, &binary(byte)).unwrap();
                    }
                });
            }
            let mut hits = 0;
            while hits < 20 {
                match cache.load(&key) {
                    Lookup::Hit(found) => {
                        assert!(found == binary(0) || found == binary(1));
                        hits += 1;
                    }
                    Lookup::Miss => assert_eq!(hits, 0, "it was there before"),
                    Lookup::Rejected => panic!("half a file"),
                }
            }
        });
        let files = fs::read_dir(cache.dir()).unwrap().count();
        assert_eq!(files, 1, "temporary files are left");
        drop(dir);
    }

    #[test]
    fn a_failed_store_leaves_nothing_behind() {
        let (_dir, cache) = cache();
        let key = key("a");
        // A folder in the file's place makes the rename fail.
        fs::create_dir_all(cache.dir().join(&key.file_name).join("x")).unwrap();
        cache.store(&key, b"binary").unwrap_err();
        assert_eq!(fs::read_dir(cache.dir()).unwrap().count(), 1);
        assert_eq!(cache.load(&key), Lookup::Rejected);
    }

    #[test]
    fn the_folder_follows_the_environment() {
        let dir = |vars: &[(&str, &str)]| {
            let vars = vars.to_vec();
            default_dir(move |name| {
                vars.iter().find(|(n, _)| *n == name).map(|(_, v)| OsString::from(v))
            })
        };
        assert_eq!(dir(&[]), None);
        assert_eq!(dir(&[("HOME", "/h")]), Some("/h/.cache/gdn/kernels".into()));
        let xdg = ("XDG_CACHE_HOME", "/x");
        assert_eq!(dir(&[("HOME", "/h"), xdg]), Some("/x/gdn/kernels".into()));
        assert_eq!(dir(&[xdg, ("GDN_CACHE_DIR", "/g")]), Some("/g".into()));
        let relative = [("HOME", "/h"), ("XDG_CACHE_HOME", "x"), ("GDN_CACHE_DIR", "")];
        assert_eq!(dir(&relative), Some("/h/.cache/gdn/kernels".into()));
    }
}
