//! `health`: asks a worker whether it serves; the exit code says it. What a container's probe runs, where there is
//! nothing else to run.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::{CommandError, causes};
use crate::server::tls::install_crypto;

/// Flags of `health`. Beside the address all are the server's own, so that its environment is enough.
#[derive(Args, Debug)]
pub struct HealthArgs {
    /// Address of the probe; /health of the worker that the other flags describe, on this machine, when omitted
    #[arg(long, env = "WORKER_ORCD_HEALTH_URL", value_name = "URL")]
    url: Option<String>,
    /// Port the worker listens on
    #[arg(long, env = "WORKER_ORCD_PORT", default_value_t = 8080)]
    port: u16,
    /// Address the worker listens on
    #[arg(long, env = "WORKER_ORCD_HOST", default_value = "127.0.0.1")]
    host: IpAddr,
    /// The worker's certificate: ask over HTTPS. Nobody else listens there, so it is not checked
    #[arg(long, env = "WORKER_ORCD_SSL_CERTFILE", value_name = "FILE")]
    ssl_certfile: Option<PathBuf>,
    /// Take any certificate from --url
    #[arg(long, env = "WORKER_ORCD_INSECURE")]
    insecure: bool,
    /// Seconds to wait for the answer
    #[arg(long, env = "WORKER_ORCD_TIMEOUT_SEC", value_name = "SECONDS", default_value_t = 3)]
    timeout_sec: u64,
}

impl HealthArgs {
    /// Where to ask.
    fn address(&self) -> String {
        if let Some(url) = &self.url {
            return url.clone();
        }
        let scheme = if self.ssl_certfile.is_some() { "https" } else { "http" };
        let host = match self.host {
            IpAddr::V4(host) if host.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(host) if host.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            host => host,
        };
        format!("{scheme}://{}/health", SocketAddr::new(host, self.port))
    }
}

/// Runs the command: prints the answer, and fails unless it is one of a worker that serves.
///
/// # Errors
/// Nobody answers, or a worker that does not serve.
pub fn run(args: &HealthArgs, out: &mut dyn Write) -> Result<(), CommandError> {
    install_crypto();
    let url = args.address();
    let unhealthy = |reason: String| CommandError::Unhealthy { url: url.clone(), reason };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let asked = runtime.block_on(async {
        let client = reqwest::Client::builder()
            // A proxy would answer for itself.
            .no_proxy()
            .timeout(Duration::from_secs(args.timeout_sec))
            .tls_danger_accept_invalid_certs(args.insecure || args.url.is_none())
            .build()?;
        let response = client.get(&url).send().await?;
        Ok::<_, reqwest::Error>((response.status(), response.text().await?))
    });
    let (status, body) = asked.map_err(|error| {
        let causes = causes(&error);
        unhealthy(format!("{}{causes}", error.without_url()))
    })?;
    if !status.is_success() {
        return Err(unhealthy(format!("HTTP {}: {}", status.as_u16(), body.trim())));
    }
    writeln!(out, "{}", body.trim())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: HealthArgs,
    }

    #[test]
    fn the_server_s_own_flags_say_where_to_ask() {
        for (flags, address) in [
            (&["--port", "9000"][..], "http://127.0.0.1:9000/health"),
            (&["--host", "0.0.0.0"], "http://127.0.0.1:8080/health"),
            (&["--host", "::"], "http://[::1]:8080/health"),
            (&["--host", "10.0.0.5", "--ssl-certfile", "c.pem"], "https://10.0.0.5:8080/health"),
            (&["--url", "http://w/ready", "--port", "1"], "http://w/ready"),
        ] {
            let line = Line::try_parse_from(["health"].iter().chain(flags)).unwrap();
            assert_eq!(line.args.address(), address);
        }
    }
}
