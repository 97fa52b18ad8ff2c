//! What was measured: as a table, as JSON and as plots.

use anyhow::{Context, Result};
use serde::Serialize;
use std::path::Path;
use std::process::Command;

use crate::figures::{Spread, Values};
use crate::plot;

/// What a figure is held to.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Budget {
    None,
    Below(f64),
    Above(f64),
}

/// What a figure is called, of which runtime it is, and in what it is measured.
pub(crate) type Name<'a> = (&'a str, &'a str, &'static str);

/// What a budget is about.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    /// The ratio to the floor.
    Ratio,
    /// What is above the floor.
    Above,
    /// The value itself.
    Value,
}

/// One figure.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Row {
    pub(crate) what: String,
    pub(crate) runtime: String,
    pub(crate) unit: &'static str,
    pub(crate) ours: Spread,
    pub(crate) floor: Option<Spread>,
    kind: Kind,
    figure: f64,
    budget: Budget,
}

/// All figures of a run.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    daemon: String,
    runtimes: Vec<String>,
    machine: String,
    pub(crate) rows: Vec<Row>,
    /// Memory of the daemon, in kB, after so many.
    pub(crate) growth: Vec<(String, Vec<(f64, f64)>)>,
}

fn first_line(program: &str, argument: &str) -> String {
    let output = Command::new(program).arg(argument).output().map(|output| output.stdout).unwrap_or_default();
    String::from_utf8_lossy(&output).lines().next().unwrap_or_default().to_string()
}

fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map_or("", |m| m.1);
    let memory = read("/proc/meminfo").split_ascii_whitespace().nth(1).and_then(|kb| kb.parse::<u64>().ok());
    let unified = !Path::new("/sys/fs/cgroup/memory").exists();
    format!(
        "{cpus} CPUs ({model}), {} GiB, Linux {}, control groups {}",
        memory.unwrap_or_default() >> 20,
        read("/proc/sys/kernel/osrelease").trim(),
        if unified { "v2" } else { "v1" }
    )
}

impl Report {
    pub(crate) fn new(address: Option<&str>, runtimes: &[String]) -> Result<Report> {
        let own = first_line(tests::bin("containerd").to_str().context("a path")?, "--version");
        Ok(Report {
            daemon: address.map_or(own, |address| format!("the daemon at {address}")),
            runtimes: runtimes.iter().map(|runtime| first_line(runtime, "--version")).collect(),
            machine: machine(),
            rows: Vec::new(),
            growth: Vec::new(),
        })
    }

    /// A figure beside its floor.
    pub(crate) fn beside(&mut self, kind: Kind, name: Name<'_>, ours: &Values, floor: &Values, budget: Budget) {
        let figure = match kind {
            Kind::Above => ours.median() - floor.median(),
            _ => ours.median() / floor.median(),
        };
        self.add(name, ours.spread(), Some(floor.spread()), kind, figure, budget);
    }

    /// One that has no floor.
    pub(crate) fn value(&mut self, name: Name<'_>, ours: &Values, budget: Budget) {
        self.add(name, ours.spread(), None, Kind::Value, ours.median(), budget);
    }

    /// One that was measured once.
    pub(crate) fn single(&mut self, name: Name<'_>, value: f64, budget: Budget) {
        self.add(name, value.into(), None, Kind::Value, value, budget);
    }

    fn add(&mut self, name: Name<'_>, ours: Spread, floor: Option<Spread>, kind: Kind, figure: f64, budget: Budget) {
        let (what, runtime, unit) = name;
        let row = Row { what: what.into(), runtime: runtime.into(), unit, ours, floor, kind, figure, budget };
        eprintln!("  {}", row.line());
        self.rows.push(row);
    }

    /// How the daemon's memory went.
    pub(crate) fn growth(&mut self, what: &str, points: Vec<(f64, f64)>) {
        self.growth.push((what.into(), points));
    }

    /// Prints a table, in Markdown.
    pub(crate) fn print(&self) {
        print!("{}", self.table());
    }

    fn table(&self) -> String {
        let mut text = format!("{}; {}; {}\n\n", self.daemon, self.runtimes.join(", "), self.machine);
        text.push_str("| figure | with | measured (quarter – three quarters) | floor | is | budget |\n|---|---|---|---|---|---|\n");
        for row in &self.rows {
            text.push_str(&row.line());
            text.push('\n');
        }
        text
    }

    /// Writes `results.json`, `results.md` and the plots.
    pub(crate) fn write(&self, directory: &Path) -> Result<()> {
        let failed = || format!("write into {}", directory.display());
        std::fs::create_dir_all(directory).with_context(failed)?;
        let json = serde_json::to_vec_pretty(self)?;
        std::fs::write(directory.join("results.json"), json).with_context(failed)?;
        std::fs::write(directory.join("results.md"), self.table()).with_context(failed)?;
        plot::all(self, directory)
    }
}

impl Row {
    fn line(&self) -> String {
        let number = |value: f64| match value.abs() {
            v if v >= 100.0 || value.fract() == 0.0 => format!("{value:.0}"),
            v if v >= 10.0 => format!("{value:.1}"),
            _ => format!("{value:.2}"),
        };
        let spread = |s: &Spread| match s.quarter == s.three_quarters {
            true => format!("{} {}", number(s.median), self.unit),
            false => {
                format!("{} ({} – {}) {}", number(s.median), number(s.quarter), number(s.three_quarters), self.unit)
            }
        };
        let floor = self.floor.as_ref().map(spread).unwrap_or_default();
        let figure = match self.kind {
            Kind::Ratio => format!("{:.2} ×", self.figure),
            Kind::Above => format!("{} {} above", number(self.figure), self.unit),
            Kind::Value => String::new(),
        };
        let budget = match self.budget {
            Budget::None => String::new(),
            Budget::Below(limit) => format!("≤ {} {}", number(limit), if self.figure <= limit { "✓" } else { "✗" }),
            Budget::Above(limit) => format!("≥ {} {}", number(limit), if self.figure >= limit { "✓" } else { "✗" }),
        };
        format!("| {} | {} | {} | {floor} | {figure} | {budget} |", self.what, self.runtime, spread(&self.ours).trim())
    }
}
