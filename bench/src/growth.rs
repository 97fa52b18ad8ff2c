//! Whether the daemon grows with what it has done.

use anyhow::Result;

use crate::Scale;
use crate::report::{Budget, Report};
use crate::subject::Subject;

/// How often it is looked at.
const LOOKS: usize = 10;

pub(crate) async fn measure(subject: &Subject, report: &mut Report, scale: Scale) -> Result<()> {
    let (sleeper, bundle) = &subject.bundles(1, &["sleep", "100000"])[0];
    subject.create(sleeper, bundle).await?;
    let mut points = Vec::new();
    for n in 1..=scale.growth {
        subject.exec(sleeper).await?;
        look(subject, &mut points, n, scale.growth).await?;
    }
    told(subject, report, "execs", scale.growth, points);
    subject.end(sleeper).await?;
    let (id, bundle) = &subject.bundles(1, &["true"])[0];
    let mut points = Vec::new();
    for n in 1..=scale.growth {
        subject.create(id, bundle).await?;
        subject.exit(id, "init").await?;
        look(subject, &mut points, n, scale.growth).await?;
    }
    told(subject, report, "containers", scale.growth, points);
    Ok(())
}

async fn look(subject: &Subject, points: &mut Vec<(usize, u64, usize)>, n: usize, of: usize) -> Result<()> {
    if n % (of / LOOKS) == 0 {
        subject.settle().await?;
        let usage = tests::usage(subject.pid());
        points.push((n, usage.anonymous, usage.descriptors));
    }
    Ok(())
}

/// Growth from the second look on: at the first, buffers are still being filled to their limits.
fn told(subject: &Subject, report: &mut Report, what: &str, number: usize, points: Vec<(usize, u64, usize)>) {
    let (Some(first), Some(last)) = (points.get(1), points.last()) else { return };
    let grown = last.1 as f64 - first.1 as f64;
    let descriptors = last.2 as f64 - first.2 as f64;
    // A tenth of a kilobyte for each is beyond noise, but for a few, while buffers are still being filled.
    let noise = if number < 1000 { Budget::None } else { Budget::Below(number as f64 / 10.0) };
    report.single((&format!("{number} {what}: growth of the daemon's memory"), &subject.runtime, "kB"), grown, noise);
    report.single(
        (&format!("{number} {what}: growth of its descriptors"), &subject.runtime, ""),
        descriptors,
        Budget::Below(0.0),
    );
    report.growth(what, points.iter().map(|(n, kb, _)| (*n as f64, *kb as f64)).collect());
}
