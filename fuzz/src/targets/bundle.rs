//! `config.json` of a bundle, which a client names and any program may have written.

use oci::Bundle;

use crate::scratch;

/// The number that the kernel takes as "no change" (setuid(2)).
const NO_ID: u32 = u32::MAX;

pub(crate) fn run(input: &[u8]) {
    let bundle = scratch::directory();
    scratch::write(&bundle.path().join("config.json"), input);
    let Ok(loaded) = Bundle::load(bundle.path()) else { return };
    assert!(!loaded.spec.args.is_empty(), "a bundle without a program is refused");
    assert!(loaded.root_uid != NO_ID && loaded.root_gid != NO_ID, "the container's root has a user and a group");
    let user = &loaded.process.get("user").cloned().unwrap_or_default();
    for name in ["uid", "gid"] {
        assert_ne!(user[name].as_u64(), Some(NO_ID.into()), "{name} is the number that means no change");
    }
}
