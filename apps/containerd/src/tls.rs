//! TLS for `tcp://`. The daemon shows a certificate, and demands one from every client.

use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

use crate::flags::Flags;

/// The acceptor that `--tls-cert`, `--tls-key` and `--tls-ca` describe; `None` if none of them is given.
pub(crate) fn acceptor(flags: &Flags) -> Result<Option<TlsAcceptor>> {
    let all: [(&str, &Option<PathBuf>); 3] =
        [("--tls-cert", &flags.tls_cert), ("--tls-key", &flags.tls_key), ("--tls-ca", &flags.tls_ca)];
    if let (Some(cert), Some(key), Some(ca)) = (&flags.tls_cert, &flags.tls_key, &flags.tls_ca) {
        return load(cert, key, ca).map(Some);
    }
    let missing: Vec<&str> = all.iter().filter(|(_, path)| path.is_none()).map(|(name, _)| *name).collect();
    if missing.len() < all.len() {
        bail!("TLS also needs {}", missing.join(" and "));
    }
    Ok(None)
}

fn load(cert: &Path, key: &Path, ca: &Path) -> Result<TlsAcceptor> {
    let chain = certificates(cert).with_context(|| format!("--tls-cert {}", cert.display()))?;
    let key_of = || format!("--tls-key {}", key.display());
    let private = PrivateKeyDer::from_pem_file(key).with_context(key_of)?;
    let mut authorities = RootCertStore::empty();
    let ca_of = || format!("--tls-ca {}", ca.display());
    for certificate in certificates(ca).with_context(ca_of)? {
        authorities.add(certificate).with_context(ca_of)?;
    }
    let verifier = WebPkiClientVerifier::builder(Arc::new(authorities)).build().with_context(ca_of)?;
    let config = ServerConfig::builder().with_client_cert_verifier(verifier).with_single_cert(chain, private);
    let mut config = config.context("--tls-cert and --tls-key do not match")?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let all = CertificateDer::pem_file_iter(path)?.collect::<Result<Vec<_>, _>>()?;
    if all.is_empty() {
        bail!("the file has no certificate");
    }
    Ok(all)
}
