//! The console socket, on which the runtime sends the master of the process's terminal.

use alloc::format;
use alloc::string::{String, ToString};
use contract::process_files::CONSOLE;
use core::mem::MaybeUninit;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::{self, IoSliceMut};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketAddrUnix, SocketFlags, SocketType,
    accept_with, bind, listen, recvmsg, socket_with,
};

use crate::error::{Context, Failure};

/// A listening socket in the process directory.
#[derive(Debug)]
pub(crate) struct ConsoleSocket {
    listener: OwnedFd,
    /// Once the runtime has connected.
    connection: Option<OwnedFd>,
}

impl ConsoleSocket {
    /// Listens under a name relative to the working directory, so that no length of path matters.
    pub(crate) fn listen() -> Result<ConsoleSocket, Failure> {
        let what = || "make the console socket".to_string();
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let listener = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).context(what)?;
        let address = SocketAddrUnix::new(CONSOLE).context(what)?;
        bind(&listener, &address).context(what)?;
        listen(&listener, 1).context(what)?;
        Ok(ConsoleSocket { listener, connection: None })
    }

    /// A path for the runtime that fits into 108 bytes wherever the process directory is, and whatever
    /// directory the runtime has changed into.
    pub(crate) fn path(&self) -> String {
        format!("/proc/{}/cwd/{CONSOLE}", rustix::process::getpid().as_raw_nonzero())
    }

    /// The descriptor to wait on next.
    pub(crate) fn waits_on(&self) -> BorrowedFd<'_> {
        self.connection.as_ref().unwrap_or(&self.listener).as_fd()
    }

    /// Goes on as far as it can without blocking; the terminal's master once it has come.
    pub(crate) fn advance(&mut self) -> io::Result<Option<OwnedFd>> {
        if self.connection.is_none() {
            match accept_with(&self.listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Ok(connection) => self.connection = Some(connection),
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::CONNABORTED) => return Ok(None),
                Err(e) => return Err(e),
            }
        }
        let Some(connection) = &self.connection else { return Ok(None) };
        let mut name = [0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        match recvmsg(connection, &mut [IoSliceMut::new(&mut name)], &mut control, RecvFlags::CMSG_CLOEXEC) {
            Ok(_) => {}
            Err(rustix::io::Errno::AGAIN) => return Ok(None),
            Err(e) => return Err(e),
        }
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                return Ok(descriptors.last());
            }
        }
        // Somebody else connected, or the runtime changed its mind: wait for the next one.
        self.connection = None;
        Ok(None)
    }
}

impl Drop for ConsoleSocket {
    fn drop(&mut self) {
        let _ = rustix::fs::unlink(CONSOLE);
    }
}
