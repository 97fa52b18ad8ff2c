//! The HTTP server of `--pprof-address`: CPU profiles, the tasks that are under way, and the log level.
//!
//! The paths are those of Go's `net/http/pprof`, which tools know.

use anyhow::{Context, Result};
use flate2::Compression;
use flate2::write::GzEncoder;
use hyper::{Method, StatusCode};
use pprof::ProfilerGuardBuilder;
use pprof::protos::Message;
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;
use supervisor::Supervisor;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::dump;
use crate::http::{self, Answer, Asked};
use crate::logging::Level;

/// Samples per second, as many as Go's profiler takes.
const FREQUENCY: i32 = 100;
const DEFAULT_SECONDS: u64 = 30;
const MOST_SECONDS: u64 = 3600;

const INDEX: &str = "\
GET /debug/pprof/profile?seconds=30   CPU profile in pprof's format
GET /debug/pprof/tasks                tasks under way, containers and event loop
GET /debug/log-level                  the log level
PUT /debug/log-level                  change it: error, warn, info, debug or trace
";

/// Serves the debug information. Never returns.
pub(crate) async fn serve(listener: TcpListener, supervisor: Supervisor, level: Level) {
    // One profile at a time: a process has one profiling timer.
    let profiler = Arc::new(Semaphore::new(1));
    http::serve(listener, move |asked| {
        let (supervisor, level, profiler) = (supervisor.clone(), level.clone(), profiler.clone());
        async move { answer(&asked, &supervisor, &level, &profiler).await }
    })
    .await;
}

async fn answer(asked: &Asked, supervisor: &Supervisor, level: &Level, profiler: &Semaphore) -> Answer {
    let reads = matches!(asked.method, Method::GET | Method::HEAD);
    // Taking a profile changes nothing, but costs CPU time.
    let is_harmless = reads && asked.path != "/debug/pprof/profile";
    match asked.path.as_str() {
        _ if asked.is_of_another_origin && !is_harmless => {
            Answer::text(StatusCode::FORBIDDEN, "refused: the request comes from a web page of another origin\n")
        }
        "/debug/log-level" if reads => Answer::text(StatusCode::OK, format!("{level}\n")),
        "/debug/log-level" => match level.set(asked.body.trim()) {
            Ok(()) => {
                tracing::info!(%level, "log level changed");
                Answer::text(StatusCode::OK, format!("{level}\n"))
            }
            Err(e) => Answer::text(StatusCode::BAD_REQUEST, format!("log level {:?}: {e:#}\n", asked.body.trim())),
        },
        _ if !reads => Answer::text(StatusCode::METHOD_NOT_ALLOWED, "this path is read-only\n"),
        "/" | "/debug/pprof" | "/debug/pprof/" => Answer::text(StatusCode::OK, INDEX),
        "/debug/pprof/tasks" | "/debug/pprof/goroutine" => {
            Answer::text(StatusCode::OK, dump::lines(supervisor).await.join("\n") + "\n")
        }
        "/debug/pprof/profile" => profile(asked, profiler).await,
        _ => Answer::text(StatusCode::NOT_FOUND, INDEX),
    }
}

async fn profile(asked: &Asked, profiler: &Semaphore) -> Answer {
    let seconds = match asked.parameter("seconds").map(str::parse) {
        None => DEFAULT_SECONDS,
        Some(Ok(seconds @ 1..=MOST_SECONDS)) => seconds,
        Some(_) => {
            let text = format!("seconds must be a number from 1 to {MOST_SECONDS}\n");
            return Answer::text(StatusCode::BAD_REQUEST, text);
        }
    };
    let Ok(_permit) = profiler.try_acquire() else {
        return Answer::text(StatusCode::CONFLICT, "another profile is being taken; try again later\n");
    };
    match take(Duration::from_secs(seconds)).await {
        Ok(body) => Answer { status: StatusCode::OK, kind: "application/octet-stream", body },
        Err(e) => {
            tracing::warn!("cannot take a profile: {e:#}");
            Answer::text(StatusCode::INTERNAL_SERVER_ERROR, format!("cannot take a profile: {e:#}\n"))
        }
    }
}

/// Takes a profile for a time. Returns it gzipped, as pprof's format demands.
async fn take(time: Duration) -> Result<Vec<u8>> {
    let guard = ProfilerGuardBuilder::default().frequency(FREQUENCY).build().context("begin")?;
    tokio::time::sleep(time).await;
    // In a thread of its own: looking up the names of functions takes a while.
    let encode = move || {
        let report = guard.report().build().context("read the samples")?;
        let bytes = report.pprof().context("write the profile")?.encode_to_vec();
        let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
        gzip.write_all(&bytes)?;
        let compressed = gzip.finish()?;
        drop(guard);
        // pprof leaves SIGPROF ignored, which children would inherit.
        sys::signal::restore_default(sys::signal::PROF)?;
        // Free the symbols of the whole program, which the lookup has read.
        backtrace::clear_symbol_cache();
        sys::allocator::give_back();
        Ok(compressed)
    };
    tokio::task::spawn_blocking(encode).await.context("write the profile")?
}
