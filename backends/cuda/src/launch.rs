//! One kernel launch as plain data: what lowering emits, what plans replay, what tests look at without a GPU.
//!
//! Every kernel takes exactly one parameter, a `#[repr(C)]` structure passed by value. Its size is declared in the
//! kernel's entry ([`crate::kernels::Kernel`]), asserted in the `.cu` file at compile time and checked here before a
//! launch, so the two sides cannot drift apart unseen.

use std::borrow::Cow;

use bytemuck::{Pod, Zeroable};

use crate::kernels::Kernel;

/// The `extern "C"` name of a kernel.
pub(crate) type KernelName = Cow<'static, str>;

/// Largest parameter block the driver takes on every supported capability.
pub(crate) const MAX_ARGS_BYTES: usize = 4096;

/// An address in device memory; 0 = none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
#[repr(transparent)]
pub(crate) struct DevicePtr(pub(crate) u64);

impl DevicePtr {
    /// No address: an optional operand that is absent.
    pub(crate) const NULL: Self = Self(0);

    /// `bytes` further.
    pub(crate) const fn offset(self, bytes: usize) -> Self {
        Self(self.0 + bytes as u64)
    }
}

/// A kernel launch. The grid never depends on a step's data; kernels read the live counts from the input buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Launch {
    /// Which kernel.
    pub(crate) kernel: KernelName,
    /// CTAs.
    pub(crate) grid: [u32; 3],
    /// Threads per CTA.
    pub(crate) block: [u32; 3],
    /// Dynamic shared memory per CTA.
    pub(crate) shared_bytes: u32,
    /// The one parameter, by value.
    pub(crate) args: Box<[u8]>,
    /// Label of the node, or of the fused nodes joined by `+`.
    pub(crate) label: String,
}

impl Launch {
    /// A launch of `grid` × `block` threads in one dimension, without dynamic shared memory.
    pub(crate) fn linear<A: Pod>(
        label: &str,
        kernel: impl Into<KernelName>,
        grid: u32,
        block: u32,
        args: &A,
    ) -> Self {
        Self::grid(label, kernel, [grid, 1, 1], [block, 1, 1], 0, args)
    }

    /// A launch with every dimension given.
    pub(crate) fn grid<A: Pod>(
        label: &str,
        kernel: impl Into<KernelName>,
        grid: [u32; 3],
        block: [u32; 3],
        shared_bytes: u32,
        args: &A,
    ) -> Self {
        let args = bytemuck::bytes_of(args).into();
        Self { kernel: kernel.into(), grid, block, shared_bytes, args, label: label.to_owned() }
    }

    /// Checks the launch against what the kernel declares. The reason names the number that is out of bounds.
    pub(crate) fn check(&self, kernel: &Kernel) -> Result<(), String> {
        let threads: u64 = self.block.iter().map(|&n| u64::from(n)).product();
        let [x, y, z] = self.grid;
        if self.args.len() != kernel.args_bytes {
            return Err(format!(
                "{}: {} argument bytes, the kernel takes {}",
                kernel.name,
                self.args.len(),
                kernel.args_bytes
            ));
        }
        if self.args.len() > MAX_ARGS_BYTES {
            return Err(format!(
                "{}: {} argument bytes exceed {MAX_ARGS_BYTES}",
                kernel.name,
                self.args.len()
            ));
        }
        if threads == 0 || threads > u64::from(kernel.max_threads) {
            return Err(format!("{}: {threads} threads per CTA, limit {}", kernel.name, kernel.max_threads));
        }
        if x == 0 || y == 0 || z == 0 || x > i32::MAX as u32 || y > 65_535 || z > 65_535 {
            return Err(format!("{}: grid {:?} outside [1, 2^31) x [1, 65535]^2", kernel.name, self.grid));
        }
        if self.shared_bytes > kernel.max_shared_bytes {
            return Err(format!(
                "{}: {} bytes of shared memory, limit {}",
                kernel.name, self.shared_bytes, kernel.max_shared_bytes
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel() -> Kernel {
        Kernel { name: "add_f32".into(), args_bytes: 8, max_threads: 256, max_shared_bytes: 1024 }
    }

    fn launch() -> Launch {
        Launch::linear("sum", "add_f32", 4, 256, &DevicePtr(7))
    }

    #[test]
    fn launch_inside_the_limits_passes() {
        assert_eq!(launch().check(&kernel()), Ok(()));
    }

    #[test]
    fn launch_outside_any_limit_is_named() {
        let cases: [(&str, Launch); 6] = [
            ("argument bytes", Launch { args: Box::new([0; 4]), ..launch() }),
            ("threads", Launch { block: [257, 1, 1], ..launch() }),
            ("threads", Launch { block: [16, 0, 1], ..launch() }),
            ("grid", Launch { grid: [0, 1, 1], ..launch() }),
            ("grid", Launch { grid: [1, 65_536, 1], ..launch() }),
            ("shared memory", Launch { shared_bytes: 1025, ..launch() }),
        ];
        for (word, launch) in cases {
            let reason = launch.check(&kernel()).unwrap_err();
            assert!(reason.contains(word), "{reason}");
        }
    }
}
