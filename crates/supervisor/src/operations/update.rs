//! Changing the limits of a container.
//!
//! First the runtime's `update` gets the limits that runtimes know, so that its own records and systemd agree. Then the daemon reads
//! every limit. It corrects those that differ from the request, and puts back those that changed unasked. If anything fails, it puts
//! all limits back.

use cgroup::{Cgroup, Changes, Field, Limit, LimitError, Setting, Value};
use failpoint::{Point, reach};
use oci::{Ability, INIT, Operation};
use serde_json::{Map, Value as Json, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::container::Container;
use crate::container::lifecycle::Request;
use crate::error::Error;
use crate::host::disk::on_disk;
use crate::host::runtimes::Runtimes;
use crate::host::tasks::Tasks;

/// What the kernel had for each field.
type Before = BTreeMap<Field, Value>;

/// Refuses limits that cannot be set, as far as that is known before it is tried.
pub(crate) fn check(container: &Container, changes: &Changes) -> Result<(), Error> {
    let refused = |source| Error::Limit { id: container.id.clone(), source };
    let cgroup = cgroup_of(container)?;
    cgroup.expected(changes).and_then(|_| check_conflict(cgroup, changes)).map_err(refused)
}

fn cgroup_of(container: &Container) -> Result<&Cgroup, Error> {
    container.cgroup().ok_or_else(|| Error::NoCgroup { id: container.id.clone() })
}

/// Changes limits.
#[derive(Debug)]
pub(crate) struct Updater {
    pub(crate) runtimes: Arc<Runtimes>,
    pub(crate) tasks: Tasks,
    pub(crate) call_timeout: Duration,
}

impl Updater {
    /// Changes limits; those that are not named stay as they are. Either all changes are made, or none.
    pub(crate) async fn update(&self, container: &Arc<Container>, changes: Changes) -> Result<(), Error> {
        let _order = container.turn("update", self.call_timeout).await?;
        container.check(Request::Update)?;
        let refused = |source| Error::Limit { id: container.id.clone(), source };
        let cgroup = cgroup_of(container)?;
        let expected = cgroup.expected(&changes).map_err(refused)?;
        check_conflict(cgroup, &changes).map_err(refused)?;
        let before = cgroup.limits().map_err(refused)?;
        // What only the kernel can parse is written first: a runtime that fails does not name the field.
        for (field, value) in expected.iter().flat_map(|(field, values)| values.iter().map(move |value| (field, value)))
        {
            if matches!(value, Value::Text(_)) {
                let written = cgroup.set_limit(*field, value);
                if written.is_err() {
                    restore(container, cgroup, &before);
                }
                written.map_err(refused)?;
            }
        }
        let by_runtime = self.update_by_runtime(container, cgroup, &changes).await;
        reach(Point::Updated);
        // The kernel may take a while to take memory away.
        let (theirs, asked) = (container.clone(), changes.clone());
        let settled = on_disk(move || {
            let id = &theirs.id;
            let cgroup = cgroup_of(&theirs)?;
            let result = match by_runtime {
                Ok(()) => {
                    settle(cgroup, &asked, &expected, &before).map_err(|source| Error::Limit { id: id.clone(), source })
                }
                Err(e) => Err(e),
            };
            result.map_err(|e| {
                // If memory alone is to have no limit, the limit of memory and swap is in the way.
                let conflict = if is_unlimited(&asked) { cgroup.conflict(&asked).ok().flatten() } else { None };
                restore(&theirs, cgroup, &before);
                conflict.map_or(e, |source| Error::Limit { id: id.clone(), source })
            })
        });
        settled.await??;
        reach(Point::LimitsSettled);
        tracing::info!(container = %container.id, limits = %describe(&changes), "limits changed");
        Ok(())
    }

    /// Runs the runtime's `update` with what runtimes apply.
    async fn update_by_runtime(&self, container: &Container, cgroup: &Cgroup, changes: &Changes) -> Result<(), Error> {
        let resources = oci_resources(cgroup, changes);
        if resources.is_empty() {
            return Ok(());
        }
        match self.runtimes.check_ability(container.oci(), Ability::Update).await {
            Ok(()) => {}
            Err(e @ Error::RuntimeMissing(_)) => return Err(e),
            // The daemon does what the runtime cannot do.
            Err(_) => return Ok(()),
        }
        let result = self.run_update(container, resources).await;
        // crun 1.8 writes the -1 that stands for "no limit" as it is, which the kernel refuses in two files, and does not know bfq's
        // weight. Without these the rest may succeed; the kernel then judges them when the daemon writes them.
        let surely = |(field, setting): &(&Field, &Setting)| match field {
            Field::CpuQuota | Field::PidsLimit => **setting != Setting::Number(Limit::Unlimited),
            field => **field != Field::BlkioWeight,
        };
        let fewer: Changes = changes.iter().filter(surely).map(|(f, s)| (*f, s.clone())).collect();
        let result = match result {
            Err(Error::Runtime(_)) if fewer.len() < changes.len() => {
                let resources = oci_resources(cgroup, &fewer);
                if resources.is_empty() { Ok(()) } else { self.run_update(container, resources).await }
            }
            result => result,
        };
        result.map_err(|e| match e {
            // Some runtimes do not say what they could not set.
            Error::Runtime(words) => Error::Runtime(format!("{words} (asked for: {})", describe(changes))),
            e => e,
        })
    }

    async fn run_update(&self, container: &Container, resources: Map<String, Json>) -> Result<(), Error> {
        let file = container.dir.write_resources(&resources.into())?;
        let log = container.dir.process(INIT).runtime_log();
        let _task = self.tasks.begin_runtime("runtime update", &container.id, "");
        let update = Operation::Update(file.as_os_str().as_encoded_bytes());
        let result = container.oci().run(update, &container.id, &log, self.call_timeout).await;
        let _ = std::fs::remove_file(&file);
        Ok(result?)
    }
}

/// Refuses changes that conflict with a limit that stays as it is.
///
/// One conflict is left to the runtime: if memory is to have no limit while the limit of memory and swap stays, runc removes both.
fn check_conflict(cgroup: &Cgroup, changes: &Changes) -> Result<(), LimitError> {
    match cgroup.conflict(changes)? {
        Some(conflict) if !is_unlimited(changes) => Err(conflict),
        _ => Ok(()),
    }
}

/// Whether memory is to have no limit, and the client does not name the limit of memory and swap.
fn is_unlimited(changes: &Changes) -> bool {
    let unlimited = Some(&Setting::Number(Limit::Unlimited));
    changes.get(&Field::MemoryLimit) == unlimited && !changes.contains_key(&Field::MemorySwap)
}

/// Puts all limits back to what they were.
fn restore(container: &Container, cgroup: &Cgroup, before: &Before) {
    for (field, e) in put_back(cgroup, before, |_| false) {
        tracing::warn!(container = %container.id, "cannot put {} back: {e}", field.name());
    }
}

/// Makes sure that everything is as the client asked, and that nothing else has changed.
fn settle(
    cgroup: &Cgroup,
    changes: &Changes,
    expected: &BTreeMap<Field, Vec<Value>>,
    before: &Before,
) -> Result<(), LimitError> {
    // The limits of memory, and of memory and swap, may have to be set in either order.
    let again: Vec<_> =
        expected.iter().filter(|(field, values)| set(cgroup, changes, **field, values).is_err()).collect();
    for (field, values) in again {
        set(cgroup, changes, *field, values)?;
    }
    let now_unlimited = |field| matches!(cgroup.limit(field), Ok(Some(Value::Number(u64::MAX))));
    let is_asked = |field: Field| {
        // runc removes the limit of swap together with the limit of memory (libcontainer/cgroups/fs/memory.go, `setMemoryAndSwap`).
        changes.contains_key(&field) || (field == Field::MemorySwap && is_unlimited(changes) && now_unlimited(field))
    };
    let left = put_back(cgroup, before, is_asked);
    left.into_iter().next().map_or(Ok(()), |(_, e)| Err(e))
}

/// Makes sure that one field is as the client asked.
fn set(cgroup: &Cgroup, changes: &Changes, field: Field, values: &[Value]) -> Result<(), LimitError> {
    let is_there = || Ok::<_, LimitError>(cgroup.limit(field)?.unwrap_or(Value::Number(0)));
    let holds = |actual: &Value| values.iter().any(|value| actual.is(value));
    if holds(&is_there()?) {
        return Ok(());
    }
    if let Some(value) = values.first() {
        cgroup.set_limit(field, value)?;
        if matches!(value, Value::Text(_)) {
            // Only the kernel can say what the text means.
            return Ok(());
        }
    }
    let actual = is_there()?;
    if holds(&actual) { Ok(()) } else { Err(LimitError::Ignored { field, wanted: changes[&field].clone(), actual }) }
}

/// Puts back every field that is no longer as it was, except those for which `but` is true. Returns what cannot be put back.
fn put_back(cgroup: &Cgroup, before: &Before, but: impl Fn(Field) -> bool) -> Vec<(Field, LimitError)> {
    let mut failed = Vec::new();
    // Twice: one limit may have to be put back before another can be (memory, and memory and swap).
    for _ in 0..2 {
        failed.clear();
        for (field, value) in before.iter().filter(|(field, _)| !but(**field)) {
            let result = match cgroup.limit(*field) {
                Ok(Some(now)) if now != *value => {
                    cgroup.set_limit(*field, &now.back_to(value)).and_then(|()| match cgroup.limit(*field)? {
                        Some(now) if now != *value => {
                            Err(LimitError::Stuck { field: *field, now, before: value.clone() })
                        }
                        _ => Ok(()),
                    })
                }
                Ok(_) => Ok(()),
                Err(e) => Err(e),
            };
            if let Err(e) = result {
                failed.push((*field, e));
            }
        }
    }
    failed
}

/// The `resources` object of the runtime specification (config-linux, "Control groups"), with what runtimes apply.
fn oci_resources(cgroup: &Cgroup, changes: &Changes) -> Map<String, Json> {
    let mut resources = Map::new();
    for (field, setting) in changes {
        let (group, member) = match field {
            Field::MemoryLimit => ("memory", "limit"),
            Field::MemoryReservation => ("memory", "reservation"),
            // On v2 a runtime also needs the limit of memory.
            Field::MemorySwap if cgroup.counts_swap_with_memory() || changes.contains_key(&Field::MemoryLimit) => {
                ("memory", "swap")
            }
            Field::CpuShares => ("cpu", "shares"),
            Field::CpuPeriod => ("cpu", "period"),
            Field::CpuQuota => ("cpu", "quota"),
            Field::CpusetCpus => ("cpu", "cpus"),
            Field::CpusetMems => ("cpu", "mems"),
            Field::BlkioWeight => ("blockIO", "weight"),
            Field::PidsLimit => ("pids", "limit"),
            _ => continue,
        };
        let value = match setting {
            Setting::Number(Limit::Unlimited) => json!(-1),
            Setting::Number(Limit::To(number)) => json!(number),
            Setting::List(text) => json!(text),
            Setting::Devices(_) => continue,
        };
        let members = resources.entry(group).or_insert_with(|| json!({}));
        if let Some(members) = members.as_object_mut() {
            members.insert(member.into(), value);
        }
    }
    resources
}

fn describe(changes: &Changes) -> String {
    let all: Vec<String> = changes.iter().map(|(field, setting)| format!("{} {setting}", field.name())).collect();
    all.join(", ")
}
