//! Prometheus' text format, version 0.0.4, which every scraper understands. A timer becomes a summary with its quantiles, a type
//! that the Rust libraries for Prometheus lack.

use std::fmt::Write;

use super::Figures;

pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The help text of a metric.
fn help(name: &str) -> &'static str {
    match name {
        "container-create-time" => "Time to create a container, until its first process waits to be started.",
        "container-start-time" => "Time to start a created container.",
        "container-delete-time" => "Time to delete a container after its end.",
        "container-stats-time" => "Time to read a container's resource usage.",
        "exec-process-time" => "Time to add a process to a container, until it runs.",
        "exit-process-time" => "Time from a process's end until its exit event is published.",
        "containers" => "Number of containers.",
        "events" => "Events recorded since the daemon was started.",
        "event-subscribers" => "Clients that are subscribed to events.",
        "tasks" => "Calls and runs of a runtime since the daemon was started.",
        "fds" => "Open descriptors of the daemon.",
        "epoll-fds" => "Descriptors that the daemon's event loop watches.",
        "memory-used" => "Resident memory of the daemon in bytes.",
        "runtime-tasks" => "Tasks of the daemon's event loop.",
        _ => "",
    }
}

/// Converts nanoseconds to seconds.
fn seconds(nanoseconds: f64) -> f64 {
    nanoseconds / 1e9
}

impl Figures {
    /// The page that Prometheus scrapes.
    pub(super) fn prometheus(&self) -> String {
        let mut text = String::new();
        let head = |text: &mut String, name: &str, kind: &str, help: &str| {
            // Writing into a string does not fail.
            let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
        };
        for (name, timer) in &self.timers {
            let base = format!("containerd_{}_seconds", name.replace('-', "_"));
            head(&mut text, &base, "summary", help(name));
            for (quantile, value) in timer.quantiles {
                let _ = writeln!(text, "{base}{{quantile=\"{quantile}\"}} {}", seconds(value as f64));
            }
            let _ = writeln!(text, "{base}_sum {}\n{base}_count {}", seconds(timer.sum as f64), timer.count);
            let figures = [
                ("min", timer.min as f64, "The shortest time since the daemon was started."),
                ("max", timer.max as f64, "The longest time since the daemon was started."),
                ("mean", timer.mean, "The average time since the daemon was started."),
                ("stddev", timer.stddev, "The standard deviation of the time since the daemon was started."),
            ];
            let base = format!("containerd_{}", name.replace('-', "_"));
            for (what, value, help) in figures {
                let name = format!("{base}_{what}_seconds");
                head(&mut text, &name, "gauge", help);
                let _ = writeln!(text, "{name} {}", seconds(value));
            }
            let name = format!("{base}_rate");
            head(&mut text, &name, "gauge", "Times per second, over a window of time.");
            for (window, rate) in ["1m", "5m", "15m"].iter().zip(timer.rates) {
                let _ = writeln!(text, "{name}{{window=\"{window}\"}} {rate}");
            }
            let _ = writeln!(text, "{name}{{window=\"all\"}} {}", timer.mean_rate);
        }
        for (name, value) in self.counters.iter().chain(&self.gauges) {
            let (kind, suffix) = match *name {
                "events" | "tasks" => ("counter", "_total"),
                "memory-used" => ("gauge", "_bytes"),
                // Prometheus calls a value that goes up and down a gauge, even if it is a counter for Graphite.
                _ => ("gauge", ""),
            };
            let metric = format!("containerd_{}{suffix}", name.replace('-', "_"));
            head(&mut text, &metric, kind, help(name));
            let _ = writeln!(text, "{metric} {value}");
        }
        text
    }
}
