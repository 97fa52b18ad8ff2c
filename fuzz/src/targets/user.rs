//! `ctr exec --user`, which reads files of the container.

use ctr::fuzzing::resolve_user;

use crate::scratch;
use crate::sections::{sections, text};

/// The number that the kernel takes as "no change" (setuid(2)): the process would stay root.
const NO_ID: u32 = u32::MAX;

pub(crate) fn run(input: &[u8]) {
    let root = scratch::directory();
    for (name, content) in sections(input) {
        match name {
            b"passwd" => scratch::write(&root.path().join("etc/passwd"), &content),
            b"group" => scratch::write(&root.path().join("etc/group"), &content),
            _ => {}
        }
    }
    let wanted = text(input, "user");
    if let Ok(user) = resolve_user(wanted.trim_end_matches('\n'), root.path()) {
        let mut ids = [user.uid, user.gid].into_iter().chain(user.additional_gids);
        assert!(ids.all(|id| id != NO_ID), "no process keeps root's id by mistake");
    }
}
