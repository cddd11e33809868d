//! NVRTC where it is installed; neither a GPU nor a driver is needed.

#![allow(unsafe_code, clippy::print_stdout)]

use gdn_cuda::{Compiler, ErrorKind, KernelSource};

mod common;

fn compiler() -> Option<Compiler> {
    match Compiler::find() {
        Ok(compiler) => {
            println!("{compiler:?}");
            Some(compiler)
        }
        Err(e) => {
            assert_eq!(e.kind(), ErrorKind::NoCompiler);
            assert!(e.to_string().contains("pip install nvidia-cuda-nvrtc"), "{e}");
            println!("skipped: no NVRTC");
            None
        }
    }
}

#[test]
fn compiles_to_machine_code_for_each_architecture() {
    let Some(compiler) = compiler() else { return };
    for arch in ["sm_80", "sm_90a"] {
        let started = std::time::Instant::now();
        let compiled = compiler.compile(&KernelSource::new("axpy", common::AXPY), arch).unwrap();
        println!("{arch}: {} bytes in {:?}", compiled.cubin.len(), started.elapsed());
        assert!(compiled.cubin.starts_with(b"\x7fELF"), "not machine code");
        assert_eq!(compiled.log, "");
    }
}

#[test]
fn headers_and_options_reach_the_compiler() {
    let Some(compiler) = compiler() else { return };
    let text = "#include \"dims.h\"\n\
                extern \"C\" __global__ void k(float* x) { static_assert(A + B == 7, \"\"); }";
    let source = KernelSource::new("k", text).header("dims.h", "#define A 3\n");
    assert!(compiler.compile(&source.clone().option("-DB=4"), "sm_90a").is_ok());
    let e = compiler.compile(&source.option("-DB=5"), "sm_90a").unwrap_err();
    assert!(e.compile_log().unwrap().contains("static assertion failed"), "{e}");
}

#[test]
fn a_compile_error_carries_the_log_with_file_and_line() {
    let Some(compiler) = compiler() else { return };
    let source = KernelSource::new("broken", "\nextern \"C\" __global__ void k() { oops; }");
    let e = compiler.compile(&source, "sm_90a").unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Compile);
    let log = e.compile_log().unwrap();
    assert!(log.contains("broken.cu(2)") && log.contains("\"oops\" is undefined"), "{log}");
    assert!(e.to_string().starts_with("kernel `broken` does not compile for sm_90a"), "{e}");
}

#[test]
fn an_unknown_architecture_is_refused_before_compiling() {
    let Some(compiler) = compiler() else { return };
    for arch in ["sm_999a", "sm_", "90"] {
        let e = compiler.compile(&KernelSource::new("k", ""), arch).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::NoCompiler);
        assert!(e.to_string().contains("cannot compile for"), "{e}");
    }
}

#[test]
fn a_nul_byte_is_an_error() {
    let Some(compiler) = compiler() else { return };
    let e = compiler.compile(&KernelSource::new("k", "\0"), "sm_90a").unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Compile);
}
