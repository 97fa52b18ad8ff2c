//! Runs a container attached to this program's stdio, and ends with the container's status.
//!
//!     run ADDRESS ID BUNDLE

use containerd_client::{Client, Config, INIT, Session, Stdio, api};
use std::error::Error;
use std::process::ExitCode;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run().await {
        Ok(status) => {
            eprintln!("the container ended with status {status}");
            // The thread that may still wait for stdin does not keep the program from ending.
            ExitCode::from(u8::try_from(status).unwrap_or(u8::MAX))
        }
        Err(e) => {
            eprintln!("run: {e}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<u32, Box<dyn Error>> {
    let [address, id, bundle_path] = arguments().ok_or("usage: run ADDRESS ID BUNDLE")?;
    let client = Client::new(Config { address: address.parse()?, ..Config::default() });
    let prepared = Session::prepare(&client, &id, INIT, false, Stdio::inherit()?).await?;
    let request = api::CreateContainerRequest { bundle_path, ..Default::default() };
    let mut session = prepared.start(request).await?;
    Ok(session.wait().await?.code())
}

fn arguments<const N: usize>() -> Option<[String; N]> {
    std::env::args().skip(1).collect::<Vec<_>>().try_into().ok()
}
