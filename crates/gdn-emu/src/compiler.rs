//! From a `.cu` file to a library of the host.

use std::{
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    path::{Path, PathBuf},
    process::{self, Command},
};

use crate::{Error, Kernels, Result};

/// What to build a kernel with.
#[derive(Clone, Debug, Default)]
pub struct Build {
    /// Macros: name and value.
    pub defines: Vec<(&'static str, String)>,
    /// With AddressSanitizer and UBSan. The process must have libasan loaded
    /// first: see [`Compiler::sanitizer_library`].
    pub sanitize: bool,
}

impl Build {
    /// The same with one macro more.
    #[must_use]
    pub fn define(mut self, name: &'static str, value: impl ToString) -> Self {
        self.defines.push((name, value.to_string()));
        self
    }
}

/// g++ with the shim, and a folder for what it makes.
#[derive(Clone, Debug)]
pub struct Compiler {
    headers: PathBuf,
    out: PathBuf,
}

const SHIM: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/shim");

impl Compiler {
    /// A compiler for kernels that include from `headers`, leaving libraries in
    /// `out`; or why there is none here.
    ///
    /// # Errors
    /// Why, in a few words.
    pub fn new(headers: &Path, out: &Path) -> Result<Self, &'static str> {
        if !cfg!(all(target_arch = "x86_64", target_os = "linux")) {
            return Err("the emulator needs x86-64 Linux");
        }
        let found = Command::new("g++").arg("--version").output().is_ok_and(|o| o.status.success());
        if !found {
            return Err("no g++");
        }
        Ok(Self { headers: headers.to_owned(), out: out.to_owned() })
    }

    /// Compiles `source`, unless the same was compiled before.
    ///
    /// # Errors
    /// [`Error::Compile`] with what the compiler says; [`Error::Io`].
    pub fn kernels(&self, source: &Path, build: &Build) -> Result<Kernels> {
        let shim = format!("{SHIM}/emu.h");
        Kernels::load(&self.library(source, &["-include", &shim, "-x", "c++"], build)?)
    }

    /// Writes a source and what it includes to files, and gives a compiler for it.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn source(
        &self,
        name: &str,
        text: &str,
        headers: &[(&str, &str)],
    ) -> Result<(Self, PathBuf)> {
        let mut hasher = DefaultHasher::new();
        (name, text, headers).hash(&mut hasher);
        let folder = self.out.join(format!("{name}-{:016x}", hasher.finish()));
        let source = folder.join(format!("{name}.cu"));
        if !folder.exists() {
            let part = beside(&folder);
            fs::create_dir_all(&part)?;
            for (name, text) in headers {
                fs::write(part.join(name), text)?;
            }
            fs::write(part.join(format!("{name}.cu")), text)?;
            if let Err(e) = fs::rename(&part, &folder) {
                fs::remove_dir_all(part)?;
                // Another thread was faster.
                if !folder.exists() {
                    return Err(e.into());
                }
            }
        }
        Ok((Self { headers: folder, out: self.out.clone() }, source))
    }

    /// The size of each struct of `params.cuh`, in its order.
    ///
    /// # Errors
    /// As [`kernels`](Self::kernels).
    pub fn parameter_sizes<const N: usize>(&self) -> Result<[usize; N]> {
        let library = self.library(&Path::new(SHIM).join("layout.cpp"), &[], &Build::default())?;
        // SAFETY: the library has no initialisers; the symbol is an array of as many
        // sizes as there are structs, which the caller counts.
        unsafe {
            let library = libloading::Library::new(library)?;
            Ok(**library.get::<*const [usize; N]>(b"gdn_emu_sizes\0")?)
        }
    }

    /// What LD_PRELOAD must name for kernels built with [`Build::sanitize`].
    ///
    /// # Errors
    /// [`Error::Io`] if g++ does not start.
    pub fn sanitizer_library(&self) -> Result<String> {
        let output = Command::new("g++").arg("-print-file-name=libasan.so").output()?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    fn library(&self, source: &Path, language: &[&str], build: &Build) -> Result<PathBuf> {
        let mut command = Command::new("g++");
        command.args(["-std=c++17", "-O1", "-g1", "-fPIC", "-shared", "-w", "-ffp-contract=off"]);
        if build.sanitize {
            command.args(["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]);
        }
        command.args(build.defines.iter().map(|(name, value)| format!("-D{name}={value}")));
        command.arg("-I").arg(&self.headers).args(language).arg(source);

        let name = source.file_stem().unwrap_or_default().to_string_lossy();
        let hash = self.hash(source, &format!("{command:?}"))?;
        let library = self.out.join(format!("{name}-{hash:016x}.so"));
        if library.exists() {
            return Ok(library);
        }
        fs::create_dir_all(&self.out)?;
        let part = beside(&library);
        let output = command.arg("-o").arg(&part).output()?;
        if !output.status.success() {
            return Err(Error::Compile(String::from_utf8_lossy(&output.stderr).into_owned()));
        }
        fs::rename(part, &library)?;
        Ok(library)
    }

    /// Of the command and of everything that the source may include.
    fn hash(&self, source: &Path, command: &str) -> Result<u64> {
        let mut files = vec![source.to_owned()];
        for folder in [&self.headers, Path::new(SHIM)] {
            for file in fs::read_dir(folder)? {
                files.push(file?.path());
            }
        }
        files.sort();
        let mut hasher = DefaultHasher::new();
        command.hash(&mut hasher);
        for file in files {
            fs::read(file)?.hash(&mut hasher);
        }
        Ok(hasher.finish())
    }
}

/// Where to make a file or a folder before it is moved to `path`, so that who finds it finds
/// it whole.
fn beside(path: &Path) -> PathBuf {
    let thread = std::thread::current().id();
    path.with_extension(format!("{}-{thread:?}", process::id()))
}
