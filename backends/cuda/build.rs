//! With the feature `embed-kernels`: compiles every kernel for the architectures that `WORKER_ORCD_EMBED_ARCHES` names
//! (`sm_80,sm_86,sm_89,sm_90a` when it is not set) and writes the table that `src/embedded.rs` puts into the binary, so
//! that the worker needs no NVRTC where it runs. Without the feature there is nothing to do.
//!
//! The kernels' table and its compiler are this crate's own files, built a second time as part of this program.
#![cfg_attr(
    feature = "embed-kernels",
    allow(
        dead_code,
        unused_imports,
        unreachable_pub,
        reason = "of the crate's files, only the way to a cubin is used"
    )
)]

#[cfg(feature = "embed-kernels")]
#[path = "src/arch.rs"]
mod arch;
#[cfg(feature = "embed-kernels")]
#[path = "src/inputs.rs"]
mod inputs;
#[cfg(feature = "embed-kernels")]
#[path = "src/kernels.rs"]
mod kernels;
#[cfg(feature = "embed-kernels")]
#[path = "src/kv.rs"]
mod kv;
#[cfg(feature = "embed-kernels")]
#[path = "src/launch.rs"]
mod launch;
#[cfg(feature = "embed-kernels")]
#[path = "src/layout.rs"]
#[rustfmt::skip] // formatted as a part of the crate, where its tests are found
mod layout;
#[cfg(feature = "embed-kernels")]
#[path = "src/lower/mod.rs"]
mod lower;
#[cfg(feature = "embed-kernels")]
#[path = "src/module.rs"]
mod module;
#[cfg(feature = "embed-kernels")]
#[path = "src/nvrtc.rs"]
mod nvrtc;

/// What a build of the table knows of embedded kernels: none.
#[cfg(feature = "embed-kernels")]
mod embedded {
    pub(crate) fn find(_: &str) -> Option<&'static [u8]> {
        None
    }

    pub(crate) fn covers(_: &str) -> bool {
        false
    }
}

#[cfg(feature = "embed-kernels")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    use std::fmt::Write;
    use std::path::PathBuf;

    const ARCHES: &str = "WORKER_ORCD_EMBED_ARCHES";
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=src");
    println!("cargo::rerun-if-changed=../../cuda");
    println!("cargo::rerun-if-env-changed={ARCHES}");
    let names = std::env::var(ARCHES).unwrap_or_else(|_| "sm_80,sm_86,sm_89,sm_90a".to_owned());
    let folder = PathBuf::from(std::env::var("OUT_DIR")?);
    let compiler = module::Compiler::open();
    let mut table = String::from("&[\n");
    for name in names.split(',') {
        let arch = arch::Arch::parse(name).ok_or_else(|| format!("{ARCHES}: {name:?} is no architecture"))?;
        let units = module::units_of(arch);
        for (unit, cubin) in units.iter().zip(compiler.cubins(&units, arch)?) {
            let name = module::embedded_name(unit, arch);
            let file = folder.join(format!("{name}.cubin"));
            std::fs::write(&file, cubin)?;
            writeln!(table, "    ({name:?}, include_bytes!({file:?})),")?;
        }
    }
    table.push(']');
    Ok(std::fs::write(folder.join("embedded.rs"), table)?)
}

#[cfg(not(feature = "embed-kernels"))]
fn main() {
    println!("cargo::rerun-if-changed=build.rs");
}
