//! Adding a process, until its exit event is there.

use anyhow::Result;

use crate::Scale;
use crate::figures::Cost;
use crate::report::{Budget, Kind, Report};
use crate::subject::Subject;

pub(crate) async fn measure(subject: &Subject, report: &mut Report, scale: Scale) -> Result<()> {
    let (mut ours, mut bare) = (Cost::default(), Cost::default());
    let (id, bundle) = &subject.bundles(1, &["sleep", "100000"])[0];
    let (other, its_bundle) = &subject.bundles(1, &["sleep", "100000"])[0];
    subject.create(id, bundle).await?;
    subject.bare(&["run", "--detach", "--bundle", its_bundle, other]).await?;
    for _ in 0..scale.rounds * 2 {
        subject.cost(true, &mut ours, subject.exec(id)).await?;
        subject.cost(false, &mut bare, subject.bare(&["exec", other, "true"])).await?;
    }
    subject.bare(&["delete", "--force", other]).await?;
    subject.end(id).await?;
    report.beside(
        Kind::Ratio,
        ("exec until its exit, wall time", &subject.runtime, "ms"),
        &ours.wall,
        &bare.wall,
        Budget::None,
    );
    report.beside(
        Kind::Above,
        ("exec until its exit, CPU", &subject.runtime, "ms"),
        &ours.cpu,
        &bare.cpu,
        Budget::Below(1.5),
    );
    Ok(())
}
