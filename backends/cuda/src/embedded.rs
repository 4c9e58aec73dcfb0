//! Machine code that `build.rs` put into the binary; without the feature `embed-kernels` there is none.

/// Name (`module::embedded_name`) and code of every embedded unit.
#[cfg(feature = "embed-kernels")]
static TABLE: &[(&str, &[u8])] = include!(concat!(env!("OUT_DIR"), "/embedded.rs"));
#[cfg(not(feature = "embed-kernels"))]
static TABLE: &[(&str, &[u8])] = &[];

/// The code of a unit.
pub(crate) fn find(name: &str) -> Option<&'static [u8]> {
    TABLE.iter().find(|(found, _)| *found == name).map(|(_, code)| *code)
}

/// Whether the kernels of an architecture, by its name, are in the binary.
pub(crate) fn covers(arch: &str) -> bool {
    TABLE.iter().any(|(name, _)| name.contains(&format!("-{arch}-")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::Arch;
    use crate::module;

    #[test]
    fn an_embedded_architecture_is_there_whole_and_as_machine_code() {
        for arch in Arch::CHECKED.into_iter().filter(|arch| covers(&arch.to_string())) {
            for unit in module::units_of(arch) {
                let code = find(&module::embedded_name(&unit, arch)).unwrap_or_default();
                assert!(code.starts_with(b"\x7fELF"), "{} for {arch}", unit.name);
            }
        }
        assert_eq!(TABLE.is_empty(), !cfg!(feature = "embed-kernels"));
        assert_eq!(find("no such unit"), None);
    }
}
