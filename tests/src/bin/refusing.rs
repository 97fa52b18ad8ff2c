//! Runs a program for which system calls fail: `refusing CALL=ERRNO… -- PROGRAM ARGUMENTS…`, with the error as a number.

use std::os::unix::process::CommandExt;

fn main() {
    let mut arguments = std::env::args().skip(1);
    for argument in arguments.by_ref().take_while(|argument| argument != "--") {
        let (call, errno) = argument.split_once('=').expect("CALL=ERRNO");
        sys::seccomp::refuse(call, errno.parse().expect("a number")).expect("refuses a call");
    }
    let program = arguments.next().expect("a program");
    panic!("{program}: {}", std::process::Command::new(&program).args(arguments).exec());
}
