//! Plots of what was measured, as SVG.

use anyhow::{Result, anyhow};
use plotters::prelude::*;
use std::path::Path;

use crate::report::{Report, Row};

const OURS: RGBColor = RGBColor(0x2b, 0x6c, 0xb0);
const FLOOR: RGBColor = RGBColor(0xa0, 0xae, 0xc0);

pub(crate) fn all(report: &Report, directory: &Path) -> Result<()> {
    let of = |begin: &str| report.rows.iter().filter(|row| row.what.starts_with(begin)).collect::<Vec<_>>();
    bars("Containers started a second", &of("starts/s"), &directory.join("starts.svg"))?;
    let cpu: Vec<&Row> = report.rows.iter().filter(|row| row.what.ends_with("CPU")).collect();
    bars("CPU time in ms: client, daemon, shim and runtime together", &cpu, &directory.join("cpu.svg"))?;
    let wall: Vec<&Row> = report.rows.iter().filter(|row| row.what.ends_with("wall time")).collect();
    bars("Wall time in ms", &wall, &directory.join("wall.svg"))?;
    growth(report, &directory.join("growth.svg"))
}

/// Two bars for each figure: ours, and the bare runtime's.
fn bars(title: &str, rows: &[&Row], path: &Path) -> Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    let failed = |e: &dyn std::fmt::Display| anyhow!("draw {}: {e}", path.display());
    let top = rows.iter().flat_map(|row| [Some(row.ours.median), row.floor.map(|floor| floor.median)]).flatten();
    let top = top.fold(0.0_f64, f64::max) * 1.1;
    let width = 120 + 110 * u32::try_from(rows.len())?;
    let area = SVGBackend::new(path, (width, 360)).into_drawing_area();
    area.fill(&WHITE).map_err(|e| failed(&e))?;
    let last = rows.len() as f64;
    let mut chart = ChartBuilder::on(&area)
        .caption(title, ("sans-serif", 18))
        .margin(10)
        .x_label_area_size(50)
        .y_label_area_size(50)
        .build_cartesian_2d(0.0..last, 0.0..top)
        .map_err(|e| failed(&e))?;
    chart.configure_mesh().disable_x_mesh().disable_x_axis().draw().map_err(|e| failed(&e))?;
    let bar = |x: f64, value: f64, colour: RGBColor| Rectangle::new([(x, 0.0), (x + 0.36, value)], colour.filled());
    let ours = rows.iter().enumerate().map(|(n, row)| bar(n as f64 + 0.12, row.ours.median, OURS));
    let floors = rows.iter().enumerate().filter_map(|(n, row)| Some(bar(n as f64 + 0.5, row.floor?.median, FLOOR)));
    let key = |colour: RGBColor| move |(x, y)| Rectangle::new([(x, y - 5), (x + 12, y + 5)], colour.filled());
    chart.draw_series(ours).map_err(|e| failed(&e))?.label("containerd").legend(key(OURS));
    chart.draw_series(floors).map_err(|e| failed(&e))?.label("bare runtime").legend(key(FLOOR));
    chart.configure_series_labels().background_style(WHITE.mix(0.8)).draw().map_err(|e| failed(&e))?;
    for (n, row) in rows.iter().enumerate() {
        let (x, y) = chart.backend_coord(&(n as f64 + 0.1, 0.0));
        let what = row.what.trim_end_matches(", CPU").trim_end_matches(", wall time").trim_start_matches("starts/s, ");
        for (line, text) in [what, row.runtime.as_str()].into_iter().enumerate() {
            let style = ("sans-serif", 12).into_text_style(&area);
            area.draw_text(text, &style, (x, y + 6 + 15 * line as i32)).map_err(|e| failed(&e))?;
        }
    }
    area.present().map_err(|e| failed(&e))?;
    Ok(())
}

fn growth(report: &Report, path: &Path) -> Result<()> {
    let failed = |e: &dyn std::fmt::Display| anyhow!("draw {}: {e}", path.display());
    let points = || report.growth.iter().flat_map(|(_, points)| points);
    if points().next().is_none() {
        return Ok(());
    }
    let right = points().map(|(n, _)| *n).fold(0.0, f64::max);
    let top = points().map(|(_, kb)| *kb).fold(0.0, f64::max) * 1.3;
    let area = SVGBackend::new(path, (640, 320)).into_drawing_area();
    area.fill(&WHITE).map_err(|e| failed(&e))?;
    let mut chart = ChartBuilder::on(&area)
        .caption("Memory of the daemon in kB, after so many", ("sans-serif", 18))
        .margin(10)
        .x_label_area_size(30)
        .y_label_area_size(60)
        .build_cartesian_2d(0.0..right, 0.0..top)
        .map_err(|e| failed(&e))?;
    chart.configure_mesh().draw().map_err(|e| failed(&e))?;
    for ((what, points), colour) in report.growth.iter().zip([OURS, RED]) {
        let series = LineSeries::new(points.iter().copied(), colour);
        let key = move |(x, y)| PathElement::new([(x, y), (x + 14, y)], colour);
        chart.draw_series(series).map_err(|e| failed(&e))?.label(what.as_str()).legend(key);
    }
    chart.configure_series_labels().background_style(WHITE.mix(0.8)).draw().map_err(|e| failed(&e))?;
    area.present().map_err(|e| failed(&e))?;
    Ok(())
}
