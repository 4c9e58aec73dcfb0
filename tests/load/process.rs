//! What this process costs, as the kernel counts it. Elsewhere than on Linux nothing is known, and nothing is printed.

use std::fs;

/// Nanoseconds of processor time that the threads of these names have used, or `None` where nobody counts.
pub(crate) fn cpu_ns(names: &[&str]) -> Option<u64> {
    let mut sum = 0;
    for task in fs::read_dir("/proc/self/task").ok()? {
        let folder = task.ok()?.path();
        // A thread may end while its folder is read.
        let Ok(name) = fs::read_to_string(folder.join("comm")) else { continue };
        let Ok(times) = fs::read_to_string(folder.join("schedstat")) else { continue };
        if names.iter().any(|wanted| name.starts_with(wanted)) {
            sum += times.split(' ').next()?.parse::<u64>().ok()?;
        }
    }
    Some(sum)
}

/// Bytes of memory that are resident.
pub(crate) fn resident_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
}
