//! The client of the daemon that the global flags name, and calls that a signal may interrupt.

use anyhow::anyhow;
use containerd_client::{Address, AddressError, Client, Config, Error, Identity, Tls};
use std::cell::Cell;

use crate::args::Args;
use crate::failure::Failure;
use crate::signals::Signals;

/// Returns a client for the global flags. It has not connected yet.
pub(crate) fn client(args: &Args) -> Result<Client, Failure> {
    let address = args.address.parse().map_err(|e: AddressError| anyhow!("--address {e}"))?;
    let timeout = Some(args.conn_timeout).filter(|timeout| !timeout.is_zero());
    let tls = match &address {
        Address::Unix(_) => None,
        Address::Tcp(_) => tls(args)?,
    };
    Ok(Client::new(Config { address, timeout, tls }))
}

fn tls(args: &Args) -> Result<Option<Tls>, Failure> {
    let identity = match (&args.tls_cert, &args.tls_key) {
        (Some(certificate), Some(key)) => Some(Identity { certificate: certificate.clone(), key: key.clone() }),
        (None, None) => None,
        (Some(_), None) => return Err(anyhow!("--tls-cert needs --tls-key").into()),
        (None, Some(_)) => return Err(anyhow!("--tls-key needs --tls-cert").into()),
    };
    match &args.tls_ca {
        Some(ca) => Ok(Some(Tls { authority: ca.clone(), identity })),
        None if identity.is_some() => Err(anyhow!("--tls-cert and --tls-key need --tls-ca").into()),
        None => Ok(None),
    }
}

/// Makes a call that changes something. A signal ends this program while it waits; `goes_on` says what the daemon then does
/// without it.
pub(crate) async fn change<T>(
    client: &Client,
    goes_on: &str,
    call: impl Future<Output = Result<T, Error>>,
) -> Result<T, Failure> {
    change_with(client, &Signals::take()?, goes_on, call).await
}

/// As [`change`], with signals that are being watched already.
pub(crate) async fn change_with<T>(
    client: &Client,
    signals: &Signals,
    goes_on: &str,
    call: impl Future<Output = Result<T, Error>>,
) -> Result<T, Failure> {
    let is_sent = Cell::new(false);
    let work = async {
        client.connect().await?;
        is_sent.set(true);
        Ok(call.await?)
    };
    let message = || if is_sent.get() { goes_on.to_string() } else { "nothing was asked of the daemon yet".into() };
    signals.end(message, work).await
}
