//! TLS: the server's certificate and key from PEM files, and the handshake of one connection.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{self, ServerConfig};
use tokio_rustls::server::TlsStream;

/// Time for a client to finish its handshake.
const HANDSHAKE_TIME: Duration = Duration::from_secs(10);
/// The only protocol spoken inside.
const ALPN: &[u8] = b"http/1.1";

/// Why connections cannot be encrypted.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file is not there, or not PEM.
    #[error("{path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the reader says.
        source: pem::Error,
    },
    /// The file of certificates has none.
    #[error("{0}: expected a PEM certificate, found none")]
    NoCertificate(PathBuf),
    /// The file of the key has none.
    #[error("{0}: expected a PEM private key (PKCS#8, PKCS#1 or SEC1), found none")]
    NoKey(PathBuf),
    /// They are read but do not serve.
    #[error("{certificate} with {key}: {source}")]
    Unusable {
        /// The file of certificates.
        certificate: PathBuf,
        /// The file of the key.
        key: PathBuf,
        /// What is wrong with them.
        source: rustls::Error,
    },
}

/// Encrypts connections.
#[derive(Clone)]
pub struct Tls(TlsAcceptor);

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").finish_non_exhaustive()
    }
}

impl Tls {
    /// Reads a certificate, the chain that may follow it, and its key.
    ///
    /// # Errors
    ///
    /// A file cannot be read or holds something else, or the key is not the certificate's.
    pub fn load(certificate: &Path, key: &Path) -> Result<Self, TlsError> {
        let read = |path: &Path, source| TlsError::Read { path: path.to_owned(), source };
        let chain = CertificateDer::pem_file_iter(certificate)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(|source| read(certificate, source))?;
        if chain.is_empty() {
            return Err(TlsError::NoCertificate(certificate.to_owned()));
        }
        let secret = PrivateKeyDer::from_pem_file(key).map_err(|source| match source {
            pem::Error::NoItemsFound => TlsError::NoKey(key.to_owned()),
            source => read(key, source),
        })?;
        let unusable =
            |source| TlsError::Unusable { certificate: certificate.to_owned(), key: key.to_owned(), source };
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(unusable)?
            .with_no_client_auth()
            .with_single_cert(chain, secret)
            .map_err(unusable)?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        Ok(Self(TlsAcceptor::from(Arc::new(config))))
    }

    /// Shakes hands with a client.
    ///
    /// # Errors
    ///
    /// The client does something else, or takes too long.
    pub async fn secure(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        self.secure_within(HANDSHAKE_TIME, stream).await
    }

    async fn secure_within(&self, time: Duration, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        timeout(time, self.0.accept(stream)).await?
    }
}

/// Names the cryptography of this process's HTTPS clients, which would otherwise not know which to take. Calling it
/// again changes nothing.
pub fn install_crypto() {
    if CryptoProvider::get_default().is_none() {
        // One that came in between is as good.
        let _ = ring::default_provider().install_default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn a_client_that_says_nothing_is_given_up() {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tls");
        let (certificate, key) = (fixtures.join("localhost.pem"), fixtures.join("localhost.key.pem"));
        let tls = Tls::load(&certificate, &key).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let _silent = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let error = tls.secure_within(Duration::from_millis(20), stream).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
