//! Checks of requests that do not depend on the container.

use tonic::Status;

use crate::errors::invalid;

/// The most bytes that all labels of a container may have together. Each label counts two bytes more than its text, as it does
/// in a message.
pub(super) const LARGEST_LABELS: usize = 64 << 10;

/// -1, which means "leave this id unchanged" to the kernel and the runtimes (setresuid(2), chown(2)). A process with this id
/// would keep the ids of the runtime, which are root's.
const NO_ID: u32 = u32::MAX;

/// The most columns or rows. They have 16 bits (ioctl_tty(2), `struct winsize`).
const LARGEST_TERMINAL: u32 = u16::MAX as u32;

/// Checks a request for a new container.
pub(crate) fn check_container(request: &api::CreateContainerRequest) -> Result<(), Status> {
    let size: usize = request.labels.iter().map(|label| label.len() + 2).sum();
    if size > LARGEST_LABELS {
        let reason = format!(
            "are too long: a container may have {LARGEST_LABELS} bytes of labels, and each label counts two bytes more"
        );
        return Err(invalid("labels", format_args!("of {size} bytes"), &reason));
    }
    check_size(request.width, request.height)
}

/// Checks a request for an added process.
pub(crate) fn check_process(request: &api::AddProcessRequest) -> Result<(), Status> {
    if let Some(user) = &request.user {
        let groups = user.additional_gids.iter().map(|gid| ("user.additionalGids", *gid));
        let ids = [("user.uid", user.uid), ("user.gid", user.gid)];
        for (field, id) in ids.into_iter().chain(groups) {
            if id == NO_ID {
                return Err(invalid(field, id, "is not an id: it means \"unchanged\" to the kernel"));
            }
        }
    }
    for limit in &request.rlimits {
        let text = format!("{} {}:{}", limit.r#type, limit.soft, limit.hard);
        if limit.r#type.is_empty() {
            return Err(invalid("rlimits", text, "has no type"));
        }
        if limit.soft > limit.hard {
            return Err(invalid("rlimits", text, "has a soft limit above the hard limit"));
        }
    }
    check_size(request.width, request.height)
}

fn check_size(width: u32, height: u32) -> Result<(), Status> {
    for (field, value) in [("width", width), ("height", height)] {
        if value > LARGEST_TERMINAL {
            return Err(invalid(field, value, "is more than a terminal can have (65535)"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Code;

    fn assert_refused(result: Result<(), Status>, field: &str) {
        let status = result.expect_err(field);
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().contains(field), "{:?} does not name {field}", status.message());
    }

    #[test]
    fn ids_that_mean_unchanged_are_refused_in_every_field() {
        let user = |uid, gid, additional_gids| api::User { uid, gid, additional_gids };
        let check = |user| check_process(&api::AddProcessRequest { user: Some(user), ..Default::default() });
        check(user(NO_ID - 1, NO_ID - 1, vec![0, NO_ID - 1])).expect("valid");
        assert_refused(check(user(NO_ID, 0, vec![])), "user.uid");
        assert_refused(check(user(0, NO_ID, vec![])), "user.gid");
        assert_refused(check(user(0, 0, vec![1, NO_ID])), "user.additionalGids");
    }

    #[test]
    fn rlimits_without_type_or_above_the_hard_limit_are_refused() {
        let check = |kind: &str, soft, hard| {
            let rlimits = vec![api::Rlimit { r#type: kind.into(), soft, hard }];
            check_process(&api::AddProcessRequest { rlimits, ..Default::default() })
        };
        check("RLIMIT_NOFILE", 1, u64::MAX).expect("valid");
        check("RLIMIT_NOFILE", u64::MAX, u64::MAX).expect("valid");
        assert_refused(check("RLIMIT_NOFILE", 2, 1), "rlimits");
        assert_refused(check("", 1, 1), "rlimits");
    }

    #[test]
    fn terminal_sizes_beyond_16_bits_are_refused() {
        let container =
            |width, height| check_container(&api::CreateContainerRequest { width, height, ..Default::default() });
        let process = |width, height| check_process(&api::AddProcessRequest { width, height, ..Default::default() });
        for check in [&container as &dyn Fn(u32, u32) -> Result<(), Status>, &process] {
            check(65_535, 65_535).expect("valid");
            assert_refused(check(65_536, 1), "width");
            assert_refused(check(1, u32::MAX), "height");
        }
    }

    #[test]
    fn labels_beyond_the_limit_are_refused() {
        let check = |labels| check_container(&api::CreateContainerRequest { labels, ..Default::default() });
        check(vec!["x".repeat(1022); 64]).expect("exactly the limit");
        assert_refused(check(vec!["x".repeat(1023); 64]), "labels");
        assert_refused(check(vec![String::new(); 40_000]), "labels");
    }
}
