//! What a new daemon does with the containers of an earlier one: gather, judge, act.
//!
//! - [`gather`] reads the files of a container and changes nothing;
//! - [`mod@judge`] decides, as a pure function, what becomes of it;
//! - [`adopt`] and [`remains`] act, and [`aside`] keeps what cannot be read.
//!
//! Several threads gather and judge containers at the same time. Calls of clients wait for that, for all containers together, and
//! never longer than [`GATHER_LIMIT`]. Acting may kill, run the runtime, and wait for a process that does not die; only a client that
//! wants the same id waits for it.

mod adopt;
pub(crate) mod aside;
mod gather;
mod judge;
mod remains;

use cgroup::Hierarchies;
use failpoint::{Point, reach};
use oci::Shim;
use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;
use tokio::sync::{mpsc, watch};

use crate::container::lifecycle::Silent;
use crate::container::{Container, Process};
use crate::error::Error;
use crate::events::{Held, Journal};
use crate::host::RETRY_DELAY;
use crate::host::disk::{bulk_threads, on_disk};
use crate::host::registry::{Registry, Slot};
use crate::host::runtimes::Runtimes;
use crate::host::tasks::Tasks;
use crate::operations::checkpoint::Checkpointer;
use crate::operations::delete::Deleter;
use crate::operations::exit::Exits;
use crate::operations::freezer::Freezer;
use crate::operations::remove::Remover;
use crate::recovery::aside::Asides;
use crate::recovery::gather::{Adopted, Gathered, Gatherer};
use crate::recovery::judge::{Fate, Reason, Verdict, judge};

/// How long calls wait at most for containers that cannot be looked at.
const GATHER_LIMIT: Duration = Duration::from_secs(2);

/// Recovers containers.
#[derive(Debug)]
pub(crate) struct Recovery {
    pub(crate) registry: Arc<Registry>,
    pub(crate) journal: Arc<Journal>,
    pub(crate) runtimes: Arc<Runtimes>,
    pub(crate) hierarchies: Arc<Hierarchies>,
    pub(crate) deleter: Arc<Deleter>,
    pub(crate) remover: Arc<Remover>,
    pub(crate) exits: Arc<Exits>,
    pub(crate) freezer: Arc<Freezer>,
    pub(crate) checkpointer: Arc<Checkpointer>,
    pub(crate) asides: Arc<Asides>,
    pub(crate) tasks: Tasks,
    pub(crate) boot_id: String,
    /// This process was another daemon and has replaced itself, so that it has that daemon's children.
    pub(crate) replaces: bool,
}

/// Held until a container has been judged.
struct Looking {
    /// The journal is not trimmed before it is dropped.
    _journal: mpsc::Sender<Infallible>,
    /// Calls wait until it is dropped. Dropped after the other one.
    calls: Option<mpsc::Sender<Infallible>>,
}

/// A judged container, with what acting needs.
enum Judged {
    /// Only its directory is concerned.
    Directory(Verdict),
    /// Its exit is recorded, and held until its directory is removed; the key.
    CleanUp(String, Option<Held>),
    /// It is half made.
    Discard(Arc<Container>, Arc<Process>),
    /// It is of an earlier boot: with the added processes whose exits are due, whether init's is, and the keys of all.
    Bury(Arc<Container>, Vec<Arc<Process>>, bool, Vec<String>),
    Adopt(Box<Adopted>),
}

impl Recovery {
    /// Recovers everything in the state directory. Returns as soon as it is known what there is.
    pub(crate) async fn run(self: &Arc<Self>) -> Result<(), Error> {
        let state_dir = self.registry.state_dir();
        let canonical = state_dir.canonicalize().map_err(Error::system("find the state directory"))?;
        let kept = Mutex::new(if self.replaces { Shim::kept_children() } else { HashMap::new() });
        let gatherer = Arc::new(Gatherer {
            registry: self.registry.clone(),
            journal: self.journal.clone(),
            hierarchies: self.hierarchies.clone(),
            boot_id: self.boot_id.clone(),
            history: self.journal.history(),
            state_dir: canonical,
            kept,
            deletes: OnceLock::new(),
            runtimes: Mutex::default(),
        });
        reach(Point::RecoveryBegun);
        let (calls, mut calls_wait) = mpsc::channel(1);
        let (journal, mut journal_waits) = mpsc::channel(1);
        let left = self.list(|| Looking { calls: Some(calls.clone()), _journal: journal.clone() })?;
        drop((calls, journal));
        let count = left.len();
        self.look_at_all(left, &gatherer);
        drop(gatherer);
        if tokio::time::timeout(GATHER_LIMIT, calls_wait.recv()).await.is_err() {
            tracing::warn!("some containers cannot be looked at yet; the others are served");
        }
        if matches!(journal_waits.try_recv(), Err(mpsc::error::TryRecvError::Disconnected)) {
            // Before any subscriber can read it.
            self.journal.recovered();
        } else {
            let recovery = self.clone();
            tokio::spawn(async move {
                let _ = journal_waits.recv().await;
                recovery.journal.recovered();
            });
        }
        if let Ok(oci) = self.runtimes.find(None, &[]) {
            // The copy is made in the background, before the first start needs it.
            let _ = oci.copy();
        }
        tracing::info!(containers = count, "recovered");
        // Give back the memory that reading all those files took.
        tokio::spawn(on_disk(sys::allocator::give_back));
        reach(Point::RecoveryServes);
        Ok(())
    }

    /// Lists the directories of containers, and reserves their ids. The senders are dropped when the containers are judged.
    fn list(&self, looking: impl Fn() -> Looking) -> Result<Vec<(String, Looking, watch::Sender<()>)>, Error> {
        let failed = || Error::system("list the state directory");
        let mut left = Vec::new();
        for entry in std::fs::read_dir(self.registry.state_dir()).map_err(failed())? {
            let entry = entry.map_err(failed())?;
            let Ok(id) = entry.file_name().into_string() else { continue };
            if id.starts_with(oci::UNFINISHED) {
                tracing::info!(directory = %id, "removing a container's directory that was not finished");
                if let Err(e) = oci::remove_unfinished(&entry.path()) {
                    tracing::warn!("{e}");
                }
                continue;
            }
            // A container's directory has no other kind of name.
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) && self.registry.reserve(&id).is_ok() {
                let (judged, waits) = watch::channel(());
                self.registry.set(&id, Slot::Left(waits));
                left.push((id, looking(), judged));
            }
        }
        Ok(left)
    }

    /// Has several threads gather and judge.
    fn look_at_all(self: &Arc<Self>, mut left: Vec<(String, Looking, watch::Sender<()>)>, gatherer: &Arc<Gatherer>) {
        let share = left.len().div_ceil(bulk_threads()).max(1);
        while !left.is_empty() {
            let part = left.split_off(left.len().saturating_sub(share));
            let (recovery, gatherer) = (self.clone(), gatherer.clone());
            tokio::spawn(on_disk(move || {
                for (id, looking, judged) in part {
                    let (recovery, gatherer) = (recovery.clone(), gatherer.clone());
                    let first = recovery.look_at(&id, &gatherer);
                    tokio::spawn(async move {
                        recovery.recover(id, gatherer, first, looking).await;
                        drop(judged);
                    });
                }
            }));
        }
    }

    /// Recovers one container. `found` is what the first look has found.
    async fn recover(
        self: Arc<Self>,
        id: String,
        gatherer: Arc<Gatherer>,
        mut found: Result<Judged, Error>,
        mut looking: Looking,
    ) {
        let _task = self.tasks.begin("recovery", &id, "");
        loop {
            match found {
                Ok(judged) => {
                    reach(Point::RecoveryLooked);
                    return self.act(&id, judged, looking).await;
                }
                Err(e) if e.is_exhausted() => {
                    if looking.calls.take().is_some() {
                        tracing::error!(container = %id, "cannot be looked at, which is tried again: {e}");
                    }
                    tokio::time::sleep(RETRY_DELAY).await;
                    found = self.look_at(&id, &gatherer);
                }
                Err(e) => return self.asides.set_aside(&id, &e),
            }
        }
    }

    /// Gathers and judges, and reads what acting needs. An error says why the container must be set aside, or that the machine has
    /// run out of something.
    fn look_at(&self, id: &str, gatherer: &Gatherer) -> Result<Judged, Error> {
        let Gathered { facts, dir, record, init, error } = gatherer.gather(id)?;
        let verdict = judge(&facts);
        let unreadable = || error.unwrap_or_else(|| Error::Unproven { id: id.to_string() });
        let exit_is_due = match verdict {
            Verdict::RemoveUnstarted | Verdict::RemoveEmpty | Verdict::LeaveAlone => {
                return Ok(Judged::Directory(verdict));
            }
            Verdict::SetAside(Reason::Unproven) => return Err(Error::Unproven { id: id.to_string() }),
            Verdict::SetAside(Reason::Unreadable) => return Err(unreadable()),
            Verdict::CleanUp => {
                let (_, key) = record.ok_or_else(unreadable)?;
                let held = self.journal.hold_exit(&key);
                return Ok(Judged::CleanUp(key, held));
            }
            Verdict::Bury { exit_is_due } => exit_is_due,
            Verdict::Discard | Verdict::Adopt { .. } => false,
        };
        let (Some((record, key)), Some(init)) = (record, init) else { return Err(unreadable()) };
        let container = gatherer.container(id, dir, (record, key.clone()), &init);
        if matches!(verdict, Verdict::Bury { .. }) {
            let others = gatherer.others(&container)?;
            let of_read = others.read.iter().map(|(left, fate)| (&left.process, fate));
            let all = of_read.chain(others.unreadable.iter().map(|(process, fate)| (process, fate)));
            let is_due = |fate: &Fate| matches!(fate, Fate::Adopt { .. } | Fate::Leave { exit_is_due: true });
            let keys = all.clone().map(|(process, _)| process.key.clone()).collect();
            let due = all.filter(|(_, fate)| exit_is_due && is_due(fate)).map(|(process, _)| process.clone()).collect();
            return Ok(Judged::Bury(container, due, exit_is_due, keys));
        }
        gatherer.find_cgroup_again(&container, &init.process);
        if init.is_closed {
            if let Some((pid, process)) = gatherer.take_delete(&container.dir) {
                self.deleter.note_running(id, pid, process);
            }
        }
        let Verdict::Adopt { start_is_recorded } = verdict else { return Ok(Judged::Discard(container, init.process)) };
        let dump = container.dir.dump()?;
        container.recall_oom_kills(gatherer.history.oom_kills.get(&key).copied());
        let mut others = gatherer.others(&container)?;
        for (left, _) in others.read.iter_mut().filter(|(_, fate)| *fate == Fate::CleanUp) {
            left.held = self.journal.hold_exit(&left.process.key);
        }
        Ok(Judged::Adopt(Box::new(Adopted { container, init, others, dump, start_is_recorded })))
    }

    async fn act(self: &Arc<Self>, id: &str, judged: Judged, looking: Looking) {
        match judged {
            Judged::Directory(verdict) => self.deal_with_directory(id, verdict).await,
            Judged::CleanUp(key, held) => {
                self.journal.protect(&key);
                drop(looking);
                tracing::info!(container = %id, "its exit is in the journal; cleaning up");
                self.remover.remove_directory(id, &self.registry.dir(id)).await;
                self.registry.free(id);
                self.journal.release_key(&key);
                drop(held);
            }
            Judged::Discard(container, init) => {
                self.journal.protect(&container.origin.instance);
                drop(looking);
                tracing::info!(container = %id, "was being made when its daemon ended; removing it");
                let _ = container.change(Silent::Failed);
                self.discard(&container, &init).await;
            }
            Judged::Bury(container, due, exit_is_due, keys) => {
                for key in keys.iter().map(String::as_str).chain([&*container.origin.instance]) {
                    self.journal.protect(key);
                }
                self.bury(&container, &due, exit_is_due, &keys, looking).await;
            }
            Judged::Adopt(adopted) => self.adopt(*adopted, looking),
        }
    }
}
