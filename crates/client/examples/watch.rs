//! Prints events as they come, of all containers or of one, until it is ended by a signal.
//!
//!     watch ADDRESS [ID]
//!
//! The stream survives restarts of the daemon. Events are lost only if the daemon's journal drops them before this program
//! has read them, which the daemon reports.

use containerd_client::{Client, Config, Error, Subscribe};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().ok_or("usage: watch ADDRESS [ID]")?;
    let client = Client::new(Config { address: address.parse()?, ..Config::default() });
    let mut events = client.events(Subscribe { container: arguments.next(), ..Subscribe::default() }).await?;
    println!("subscribed");
    loop {
        match events.next().await {
            Ok(Some(event)) => println!("{} {} {} {}", event.id, event.r#type, event.pid, event.status),
            // Only a stream with `Resume::Never` or `stored_only` ends.
            Ok(None) => return Ok(()),
            // The stream goes on with the oldest event that is still recorded.
            Err(lost @ Error::EventsLost { .. }) => eprintln!("watch: {lost}"),
            Err(e) => return Err(e.into()),
        }
    }
}
