//! Starts the binary as a user would and waits until it serves.

use std::io::Read;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::http;

/// Where the built binary is.
pub(crate) fn binary() -> &'static str {
    env!("CARGO_BIN_EXE_worker-orcd")
}

/// The bundled model.
pub(crate) fn haiku_model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/haiku-moe/haiku-moe-mxfp4.gguf")
}

/// A command that no variable of the caller's can change.
pub(crate) fn command(args: &[&str]) -> Command {
    let mut command = Command::new(binary());
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("WORKER_ORCD_") {
            command.env_remove(name);
        }
    }
    command.args(args);
    command
}

/// A worker process; killed when dropped.
pub(crate) struct WorkerProcess {
    pub(crate) child: Child,
    pub(crate) addr: SocketAddr,
}

impl WorkerProcess {
    pub(crate) fn start(backend: &str, model: &Path, flags: &[&str]) -> Self {
        Self::start_in(&[], backend, model, flags)
    }

    /// One with these variables beside its own flags.
    pub(crate) fn start_in(
        environment: &[(&str, &str)],
        backend: &str,
        model: &Path,
        flags: &[&str],
    ) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let port_text = port.to_string();
        let model = model.to_str().unwrap();
        let base = ["--model", model, "--backend", backend, "--port", &port_text];
        let mut command = command(&base);
        command.args(flags).envs(environment.iter().copied());
        let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut worker = Self { child, addr: SocketAddr::from(([127, 0, 0, 1], port)) };
        worker.wait_until_ready();
        worker
    }

    fn wait_until_ready(&mut self) {
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(120) {
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("worker ended with {status}: {}", self.stderr());
            }
            if TcpStream::connect(self.addr).is_ok() && http::get(self.addr, "/health").0 == 200 {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("worker was not ready in two minutes");
    }

    /// What the process wrote, once it has ended.
    pub(crate) fn stderr(&mut self) -> String {
        let mut text = String::new();
        if let Some(stderr) = &mut self.child.stderr {
            stderr.read_to_string(&mut text).unwrap();
        }
        text
    }

    /// Sends SIGTERM and returns how the process ended and after how long.
    pub(crate) fn terminate(&mut self) -> (Option<i32>, Duration) {
        let start = Instant::now();
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        while start.elapsed() < Duration::from_secs(20) {
            if let Some(status) = self.child.try_wait().unwrap() {
                return (status.code(), start.elapsed());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("worker did not end within 20 s of SIGTERM");
    }
}

impl Drop for WorkerProcess {
    fn drop(&mut self) {
        // Already gone is fine.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
