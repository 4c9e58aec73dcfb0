//! GPU architectures by compute capability: which code NVRTC makes for each, and which kernel set it runs.

use std::fmt;

/// A GPU architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Arch {
    capability: u32,
}

impl Arch {
    /// Those that continuous integration compiles every kernel for.
    pub const CHECKED: [Self; 6] =
        [Self::of(80), Self::of(86), Self::of(89), Self::of(90), Self::of(100), Self::of(120)];

    /// The architecture of a compute capability, `major * 10 + minor`.
    pub const fn of(capability: u32) -> Self {
        Self { capability }
    }

    /// Reads `sm_90a`, `sm_90`, `90a` or `90`.
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.strip_prefix("sm_").unwrap_or(text);
        let digits = digits.strip_suffix('a').unwrap_or(digits);
        let capability = digits.parse().ok()?;
        (80..1000).contains(&capability).then_some(Self { capability })
    }

    /// `major * 10 + minor`.
    pub const fn capability(self) -> u32 {
        self.capability
    }

    /// Whether kernels may start before their predecessor has ended (programmatic dependent launch).
    pub const fn has_dependent_launch(self) -> bool {
        self.capability >= 90
    }

    /// Whether it has the tensor-core products of warpgroups (`wgmma`), which 9.0a alone has.
    pub const fn has_warpgroup_products(self) -> bool {
        self.capability == 90
    }

    /// The kernel set chosen for it, in words.
    pub const fn kernel_set(self) -> &'static str {
        match self.capability {
            90 => "9.0a: mma.sync, wgmma, cp.async, dependent launch",
            100.. => "8.x path on a newer device: mma.sync, cp.async, dependent launch",
            _ => "8.x: mma.sync, cp.async",
        }
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let features = if self.capability >= 90 { "a" } else { "" };
        write!(f, "sm_{}{features}", self.capability)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        let names: Vec<String> = Arch::CHECKED.iter().map(ToString::to_string).collect();
        assert_eq!(names, ["sm_80", "sm_86", "sm_89", "sm_90a", "sm_100a", "sm_120a"]);
        for arch in Arch::CHECKED {
            assert_eq!(Arch::parse(&arch.to_string()), Some(arch));
        }
        assert_eq!(Arch::parse("sm_75"), None);
        assert_eq!(Arch::parse("hopper"), None);
    }
}
