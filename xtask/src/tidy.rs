//! What no compiler checks.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use walkdir::WalkDir;

/// A file that one reads in a sitting.
const MAX_LINES: usize = 600;

/// What may hold unsafe code, a module or a folder, each with a reason in
/// ARCHITECTURE.md.
const UNSAFE: [&str; 15] = [
    "crates/gdn-cli/src/bench/gpu.rs",
    "crates/gdn-cuda/",
    "crates/gdn-emu/",
    "crates/gdn-model/src/cuda/device.rs",
    "crates/gdn-model/src/cuda/kernels.rs",
    "crates/gdn-model/src/cuda/mod.rs",
    "crates/gdn-model/src/cuda/views.rs",
    "crates/gdn-model/src/weights/map.rs",
    "crates/gdn/src/cuda/hardware.rs",
    "crates/gdn/src/cuda/launch.rs",
    "crates/gdn/src/cuda/runtime.rs",
    "crates/gdn/src/cpu/delta.rs",
    "crates/gdn/src/cpu/tiles.rs",
    "crates/gdn/src/pool/state.rs",
    "crates/gdn/src/views.rs",
];

/// What the folder of an operator holds, beside its kernel `<operator>.cu`.
const OPERATOR_FILES: [&str; 4] = ["mod.rs", "cpu.rs", "cuda.rs", "notes.md"];

/// Prints what is untidy, and fails if anything is.
pub(crate) fn run(root: &Path) -> anyhow::Result<()> {
    let mut found = Vec::new();
    for path in sources(root)? {
        let name = path.strip_prefix(root)?.to_string_lossy().replace('\\', "/");
        let text = fs::read_to_string(&path).with_context(|| format!("{name} can't be read"))?;
        check_file(&name, &text, &mut found);
        if name.ends_with(".md") {
            check_links(&path, &name, &text, &mut found);
        }
    }
    for operator in fs::read_dir(root.join("crates/gdn/src/ops"))? {
        let operator = operator?.path();
        let Some(name) = operator.file_name().filter(|_| operator.is_dir()) else { continue };
        let kernel = format!("{}.cu", name.to_string_lossy());
        for file in OPERATOR_FILES.into_iter().chain([kernel.as_str()]) {
            if !operator.join(file).is_file() {
                found.push(format!("{}: has no {file}", operator.display()));
            }
        }
    }
    if found.is_empty() {
        return Ok(());
    }
    bail!("untidy:\n  {}", found.join("\n  "));
}

fn sources(root: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let hidden_or_built = |name: &str| name == "target" || (name.starts_with('.') && name != ".");
    let files = WalkDir::new(root).into_iter().filter_entry(|entry| {
        entry.depth() == 0 || !hidden_or_built(&entry.file_name().to_string_lossy())
    });
    let mut sources = Vec::new();
    for file in files {
        let path = file?.into_path();
        if path.extension().is_some_and(|extension| extension == "rs" || extension == "md") {
            sources.push(path);
        }
    }
    Ok(sources)
}

fn check_file(name: &str, text: &str, found: &mut Vec<String>) {
    let lines = text.lines().count();
    if name.ends_with(".rs") && lines > MAX_LINES {
        found.push(format!("{name}: {lines} lines; split it by what it is about"));
    }
    let allows = ["expect(unsafe_code", "allow(unsafe_code"].iter().any(|lint| text.contains(lint));
    let in_tests = ["/tests/", "/examples/"].iter().any(|folder| name.contains(folder))
        || name.starts_with("xtask/");
    let listed = UNSAFE.iter().any(|place| match place.ends_with('/') {
        true => name.starts_with(place),
        false => name == *place,
    });
    if allows && !in_tests && !listed {
        found.push(format!("{name}: holds unsafe code; keep that to {UNSAFE:?}"));
    }
}

/// Every relative link of a document leads to a file.
fn check_links(path: &Path, name: &str, text: &str, found: &mut Vec<String>) {
    let folder = path.parent().expect("a file lies in a folder");
    for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
        let target = link.split('#').next().unwrap_or_default();
        if !target.is_empty() && !target.contains("://") && !folder.join(target).exists() {
            found.push(format!("{name}: links to {link}, which is not there"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn untidy(name: &str, text: &str) -> Vec<String> {
        let mut found = Vec::new();
        check_file(name, text, &mut found);
        check_links(Path::new("/nowhere/file.md"), name, text, &mut found);
        found
    }

    #[test]
    fn each_rule_finds_its_breach() {
        assert!(untidy("crates/gdn/src/a.rs", "fn a() {}\n").is_empty());
        assert_eq!(untidy("crates/gdn/src/a.rs", &"\n".repeat(MAX_LINES + 1)).len(), 1);
        let lint = concat!("#![expect(unsafe", "_code, reason = \"\")]");
        assert_eq!(untidy("crates/gdn/src/a.rs", lint).len(), 1);
        assert!(untidy("crates/gdn/src/views.rs", lint).is_empty());
        assert!(untidy("crates/gdn-cuda/src/any.rs", lint).is_empty());
        assert_eq!(untidy("crates/gdn/src/views.rs.rs", lint).len(), 1);
        assert_eq!(untidy("a.md", "see [b](b.md)").len(), 1);
        assert!(untidy("a.md", "see [b](https://example.org) and [c](#c)").is_empty());
    }
}
