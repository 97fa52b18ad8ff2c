//! The ids that are in use, and what each of them stands for.

use failpoint::{Point, reach};
use oci::ContainerDir;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

use crate::container::Container;
use crate::container::aside::Aside;
use crate::error::{Error, check_name};
use crate::events::journal;

/// What an id stands for.
#[derive(Debug, Clone)]
pub(crate) enum Slot {
    /// A container that is being created.
    Taken,
    /// A container of an earlier daemon that has not been judged yet. The sender is dropped when it has been.
    Left(watch::Receiver<()>),
    /// A container that is supervised.
    Here(Arc<Container>),
    /// A container whose directory cannot be read.
    Aside(Arc<Aside>),
}

impl Slot {
    /// Whether the container's control groups are not known yet.
    pub(crate) fn is_unsettled(&self) -> bool {
        matches!(self, Slot::Taken | Slot::Left(_))
    }
}

/// All ids of one state directory.
#[derive(Debug)]
pub(crate) struct Registry {
    state_dir: PathBuf,
    slots: Mutex<HashMap<String, Slot>>,
}

impl Registry {
    pub(crate) fn new(state_dir: &Path) -> Registry {
        Registry { state_dir: state_dir.to_path_buf(), slots: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Slot>> {
        // Held for look-ups only.
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state directory.
    pub(crate) fn state_dir(&self) -> &Path {
        &self.state_dir
    }

    /// The directory of a container, which need not exist.
    pub(crate) fn dir(&self, id: &str) -> ContainerDir {
        ContainerDir::new(&self.state_dir, id)
    }

    /// Takes an id for a container that is to be created.
    pub(crate) fn reserve(&self, id: &str) -> Result<(), Error> {
        check_name("id", id, &[journal::FILE])?;
        let mut slots = self.lock();
        if slots.contains_key(id) {
            return Err(Error::ContainerExists { id: id.to_string() });
        }
        slots.insert(id.to_string(), Slot::Taken);
        drop(slots);
        reach(Point::IdTaken);
        Ok(())
    }

    /// Says what a reserved id stands for from now on.
    pub(crate) fn set(&self, id: &str, slot: Slot) {
        self.lock().insert(id.to_string(), slot);
    }

    /// Frees an id.
    pub(crate) fn free(&self, id: &str) {
        self.lock().remove(id);
    }

    /// What an id stands for.
    pub(crate) fn get(&self, id: &str) -> Option<Slot> {
        self.lock().get(id).cloned()
    }

    /// How many ids are in use.
    pub(crate) fn count(&self) -> usize {
        self.lock().len()
    }

    /// All ids in use, in no order.
    pub(crate) fn all(&self) -> Vec<(String, Slot)> {
        self.lock().iter().map(|(id, slot)| (id.clone(), slot.clone())).collect()
    }

    /// Whether a container other than `id` fulfils a condition.
    pub(crate) fn any_other(&self, id: &str, mut condition: impl FnMut(&str, &Slot) -> bool) -> bool {
        self.lock().iter().any(|(other, slot)| other != id && condition(other, slot))
    }

    /// The container of an id, once it has been created.
    pub(crate) fn container(&self, id: &str) -> Result<Arc<Container>, Error> {
        check_name("id", id, &[journal::FILE])?;
        match self.lock().get(id) {
            Some(Slot::Here(container)) => Ok(container.clone()),
            Some(Slot::Aside(aside)) => Err(aside.error(id)),
            Some(Slot::Taken | Slot::Left(_)) => Err(Error::ContainerNotReady { id: id.to_string() }),
            None => Err(Error::ContainerNotFound { id: id.to_string() }),
        }
    }

    /// The container of an id, if it has been set aside.
    pub(crate) fn aside(&self, id: &str) -> Option<Arc<Aside>> {
        match self.lock().get(id) {
            Some(Slot::Aside(aside)) => Some(aside.clone()),
            _ => None,
        }
    }
}
