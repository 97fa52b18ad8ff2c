//! `events` and `watch`: one line for each event, as it comes.

use containerd_client::{Client, Resume, Subscribe, api};
use std::process::ExitCode;

use crate::args::EventOptions;
use crate::failure::Failure;
use crate::out;
use crate::table;

const HEAD: [&str; 5] = ["TIME", "TYPE", "ID", "PID", "STATUS"];
/// Each line is written before the next event is known. A longer cell pushes the rest of its line to the right.
const WIDTHS: [usize; 5] = [30, 15, 20, 10, 6];

pub(crate) async fn execute(client: &Client, id: Option<String>, options: EventOptions) -> Result<ExitCode, Failure> {
    let since =
        options.timestamp.map(|time| api::Timestamp { seconds: time.as_second(), nanos: time.subsec_nanosecond() });
    // A script must see that the daemon went away.
    let subscribe = Subscribe { container: id, since, stored_only: options.stored_only, resume: Resume::Never };
    let mut events = client.events(subscribe).await?;
    if !options.options.json {
        out::write(table::row(&WIDTHS, &HEAD))?;
    }
    while let Some(event) = events.next().await? {
        if options.options.json {
            out::write_json_line(&event)?;
        } else {
            out::write(table::row(&WIDTHS, &row(&event)))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn row(event: &api::Event) -> [String; 5] {
    let timestamp = event.timestamp.unwrap_or_default();
    let time = jiff::Timestamp::new(timestamp.seconds, timestamp.nanos);
    let status = if event.r#type == "exit" { event.status.to_string() } else { String::new() };
    [
        time.map(|time| format!("{time:.9}")).unwrap_or_default(),
        event.r#type.clone(),
        event.id.clone(),
        event.pid.clone(),
        status,
    ]
}
