//! TLS for `tcp://`: the daemon must have a certificate of our authority, and wants one of us.

use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

/// Files in PEM.
#[derive(Debug, Clone, Default)]
pub(crate) struct Files {
    pub(crate) cert: Option<PathBuf>,
    pub(crate) key: Option<PathBuf>,
    pub(crate) ca: Option<PathBuf>,
}

impl Files {
    /// `None` if no file is named.
    pub(crate) fn connector(&self) -> Result<Option<TlsConnector>> {
        let (cert, key, ca) = match self {
            Files { cert: None, key: None, ca: None } => return Ok(None),
            Files { ca: None, .. } => bail!("for TLS --tls-ca must be given too"),
            Files { cert, key, ca: Some(ca) } => (cert, key, ca),
        };
        let mut authorities = RootCertStore::empty();
        let ca_of = || format!("--tls-ca {}", ca.display());
        for certificate in certificates(ca).with_context(ca_of)? {
            authorities.add(certificate).with_context(ca_of)?;
        }
        let config = ClientConfig::builder().with_root_certificates(authorities);
        let mut config = match (cert, key) {
            (Some(cert), Some(key)) => {
                let chain = certificates(cert).with_context(|| format!("--tls-cert {}", cert.display()))?;
                let private = PrivateKeyDer::from_pem_file(key);
                let private = private.with_context(|| format!("--tls-key {}", key.display()))?;
                config.with_client_auth_cert(chain, private).context("--tls-cert and --tls-key do not go together")?
            }
            // The daemon will say what it thinks of that.
            (None, None) => config.with_no_client_auth(),
            (Some(_), None) => bail!("--tls-cert needs --tls-key"),
            (None, Some(_)) => bail!("--tls-key needs --tls-cert"),
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Some(TlsConnector::from(Arc::new(config))))
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let all = CertificateDer::pem_file_iter(path)?.collect::<Result<Vec<_>, _>>()?;
    if all.is_empty() {
        bail!("there is no certificate in it");
    }
    Ok(all)
}
