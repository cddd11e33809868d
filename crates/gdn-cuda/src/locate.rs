//! Where NVRTC's library may lie: the loader's own path, a CUDA toolkit, pip's packages.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

/// Libraries to try, best first. `var` reads the environment.
///
/// `GDN_NVRTC` is a decision: nothing else is tried then. Bare names (no folder) are left to the
/// system's loader; the rest are files that exist.
pub(crate) fn nvrtc_candidates(var: impl Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    if let Some(path) = var("GDN_NVRTC").filter(|path| !path.is_empty()) {
        return vec![path.into()];
    }
    let mut found: Vec<PathBuf> =
        ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"].map(PathBuf::from).into();
    let absolute = |name: &str| var(name).map(PathBuf::from).filter(|path| path.is_absolute());

    let mut toolkits: Vec<PathBuf> =
        ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(absolute).collect();
    toolkits.extend(["/usr/local/cuda", "/opt/cuda"].map(PathBuf::from));
    for toolkit in toolkits {
        for part in ["lib64", "lib", "targets/x86_64-linux/lib", "targets/sbsa-linux/lib"] {
            found.extend(nvrtc_in(&toolkit.join(part)));
        }
    }

    // A Python environment is named by a variable, or is the one whose `bin` is on the path.
    let mut prefixes: Vec<PathBuf> =
        ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(absolute).collect();
    if let Some(path) = var("PATH") {
        let bins = std::env::split_paths(&path).filter(|bin| bin.ends_with("bin"));
        prefixes.extend(bins.filter_map(|bin| bin.parent().map(Path::to_owned)));
    }
    prefixes.extend(absolute("HOME").map(|home| home.join(".local")));
    prefixes.extend(["/usr/local", "/usr"].map(PathBuf::from));
    for prefix in prefixes {
        let lib = prefix.join("lib");
        found.extend(nvrtc_in(&lib)); // Conda's own package lies here.
        for python in sorted(&lib, |name| name.starts_with("python3")) {
            for packages in ["site-packages", "dist-packages"] {
                for part in ["nvidia/cu13/lib", "nvidia/cuda_nvrtc/lib"] {
                    found.extend(nvrtc_in(&python.join(packages).join(part)));
                }
            }
        }
    }
    let mut seen = HashSet::new();
    found.retain(|path| seen.insert(path.clone()));
    found
}

/// The part that NVRTC itself loads by bare name, if it lies beside `nvrtc`: pip's packages are
/// on no search path, so it must be loaded before.
pub(crate) fn builtins_beside(nvrtc: &Path) -> Vec<PathBuf> {
    match nvrtc.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => {
            sorted(dir, |name| name.starts_with("libnvrtc-builtins.so"))
        }
        _ => Vec::new(),
    }
}

fn nvrtc_in(dir: &Path) -> Vec<PathBuf> {
    sorted(dir, |name| name.starts_with("libnvrtc.so"))
}

/// Entries of `dir` whose name passes, the highest name first; none if `dir` cannot be read.
fn sorted(dir: &Path, pass: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else {
        return Vec::new();
    };
    let mut paths: Vec<PathBuf> = entries
        .flatten()
        .filter(|entry| entry.file_name().to_str().is_some_and(&pass))
        .map(|entry| entry.path())
        .collect();
    paths.sort_unstable();
    paths.reverse();
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touch(path: &Path) -> PathBuf {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "").unwrap();
        path.to_owned()
    }

    /// Candidates with folders, under `root` alone.
    fn under(root: &Path, vars: &[(&str, PathBuf)]) -> Vec<PathBuf> {
        let var = |name: &str| {
            vars.iter().find(|(n, _)| *n == name).map(|(_, v)| v.clone().into_os_string())
        };
        nvrtc_candidates(var).into_iter().filter(|path| path.starts_with(root)).collect()
    }

    #[test]
    fn finds_toolkits_virtual_environments_and_the_python_on_the_path_in_this_order() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let toolkit = touch(&root.join("cuda/lib64/libnvrtc.so.13"));
        let older = touch(&root.join("cuda/lib64/libnvrtc.so.12"));
        touch(&root.join("cuda/lib64/libnvrtc-builtins.so.13.0"));
        touch(&root.join("cuda/lib64/libnvrtc.alt.so.13"));
        let venv =
            touch(&root.join("venv/lib/python3.12/site-packages/nvidia/cu13/lib/libnvrtc.so.13"));
        let on_path = touch(
            &root.join("py/lib/python3.11/site-packages/nvidia/cuda_nvrtc/lib/libnvrtc.so.12"),
        );
        let found = under(
            root,
            &[
                ("CUDA_HOME", root.join("cuda")),
                ("VIRTUAL_ENV", root.join("venv")),
                ("PATH", root.join("py/bin")),
            ],
        );
        assert_eq!(found, [toolkit, older, venv, on_path]);
    }

    #[test]
    fn one_place_is_listed_once() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let library =
            touch(&root.join("lib/python3.12/site-packages/nvidia/cu13/lib/libnvrtc.so.13"));
        let vars = [("VIRTUAL_ENV", root.to_owned()), ("PATH", root.join("bin"))];
        assert_eq!(under(root, &vars), [library]);
    }

    #[test]
    fn an_explicit_path_excludes_all_others() {
        let found = nvrtc_candidates(|name| (name == "GDN_NVRTC").then(|| "/x/y.so".into()));
        assert_eq!(found, [PathBuf::from("/x/y.so")]);
        let found = nvrtc_candidates(|name| (name == "GDN_NVRTC").then(OsString::new));
        assert_eq!(found[0], PathBuf::from("libnvrtc.so.13"));
    }

    #[test]
    fn builtins_are_those_of_the_same_folder() {
        let dir = tempfile::tempdir().unwrap();
        let builtins = touch(&dir.path().join("libnvrtc-builtins.so.13.0"));
        touch(&dir.path().join("libnvrtc-builtins.alt.so.13.0"));
        assert_eq!(builtins_beside(&dir.path().join("libnvrtc.so.13")), [builtins]);
        assert!(builtins_beside(Path::new("libnvrtc.so.13")).is_empty());
    }
}
