//! TLS on `tcp://`. The daemon must show a certificate of an authority that the client names, and asks the client for one.
//!
//! The files are read for every connection, so that renewed certificates are used without a new [`Client`](crate::Client).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::pem::{Error as PemError, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::error::{Error, chain};

/// The PEM files with which a client authenticates the daemon, and itself to the daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// The certificates of the authority that signed the daemon's certificate.
    pub authority: PathBuf,
    /// The client's own certificate. A daemon with TLS refuses clients that have none.
    pub identity: Option<Identity>,
}

/// The PEM files of a client's certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The certificate, followed by those of intermediate authorities.
    pub certificate: PathBuf,
    /// The certificate's private key.
    pub key: PathBuf,
}

impl Tls {
    pub(crate) fn connector(&self) -> Result<TlsConnector, Error> {
        let mut authorities = RootCertStore::empty();
        for certificate in certificates(&self.authority)? {
            authorities.add(certificate).map_err(|e| failed("use the certificate in", &self.authority, &e))?;
        }
        let config = ClientConfig::builder().with_root_certificates(authorities);
        let mut config = match &self.identity {
            Some(Identity { certificate, key }) => {
                let certificates = certificates(certificate)?;
                let private = PrivateKeyDer::from_pem_file(key).map_err(|e| failed("read the private key", key, &e))?;
                config
                    .with_client_auth_cert(certificates, private)
                    .map_err(|e| failed("use the private key", key, &e))?
            }
            // Whether a certificate is needed is for the daemon to say.
            None => config.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(TlsConnector::from(Arc::new(config)))
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let read = || CertificateDer::pem_file_iter(path)?.collect::<Result<Vec<_>, PemError>>();
    let certificates = read().map_err(|e| failed("read the certificate", path, &e))?;
    if certificates.is_empty() {
        let reason = "it contains no certificate".into();
        return Err(Error::Tls { operation: "read the certificate", path: path.into(), reason });
    }
    Ok(certificates)
}

fn failed(operation: &'static str, path: &Path, e: &dyn std::error::Error) -> Error {
    Error::Tls { operation, path: path.into(), reason: chain(e) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_and_empty_certificate_files_are_named() {
        let directory = tempfile::tempdir().expect("makes a directory");
        let missing = Tls { authority: directory.path().join("missing"), identity: None };
        let said = missing.connector().err().expect("is missing").to_string();
        assert!(said.starts_with("read the certificate ") && said.contains("/missing: "), "{said}");
        let empty = directory.path().join("empty");
        std::fs::write(&empty, "").expect("writes");
        let said = Tls { authority: empty, identity: None }.connector().err().expect("is empty").to_string();
        assert!(said.ends_with("/empty: it contains no certificate"), "{said}");
    }
}
