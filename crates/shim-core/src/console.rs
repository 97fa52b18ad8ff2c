//! The console socket, on which the OCI runtime sends the master of a process's terminal.

use alloc::string::{String, ToString};
use core::mem::MaybeUninit;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::{self, Errno, IoSliceMut};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketAddrUnix, SocketFlags, SocketType,
    accept_with, bind, listen, recvmsg, socket_with,
};

use crate::error::{Context, Error};

/// The longest file name that a runtime sends along with the descriptor.
const NAME: usize = 4096;

/// A listening socket. Its name is removed when the value is dropped.
#[derive(Debug)]
pub(crate) struct ConsoleSocket {
    path: String,
    listener: OwnedFd,
    /// The runtime's connection, once there is one.
    connection: Option<OwnedFd>,
}

/// What [`ConsoleSocket::advance`] found.
#[derive(Debug)]
pub(crate) enum Progress {
    /// Nothing new.
    Nothing,
    /// The runtime has connected: [`ConsoleSocket::waits_on`] is another descriptor now.
    Connected,
    /// The runtime has sent the terminal's master.
    Terminal(OwnedFd),
}

impl ConsoleSocket {
    /// Listens at `path`, which must fit into the 108 bytes of a socket address (unix(7)).
    pub(crate) fn listen(path: &str) -> Result<ConsoleSocket, Error> {
        let make = || {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let listener = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
            bind(&listener, &SocketAddrUnix::new(path)?)?;
            listen(&listener, 1)?;
            Ok(listener)
        };
        let listener = make().context(|| "make the console socket".into())?;
        Ok(ConsoleSocket { path: path.to_string(), listener, connection: None })
    }

    /// The descriptor to wait on next.
    pub(crate) fn waits_on(&self) -> BorrowedFd<'_> {
        self.connection.as_ref().unwrap_or(&self.listener).as_fd()
    }

    /// Accepts and receives as far as that is possible without blocking.
    pub(crate) fn advance(&mut self) -> io::Result<Progress> {
        let mut progress = Progress::Nothing;
        if self.connection.is_none() {
            match accept_with(&self.listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Ok(connection) => self.connection = Some(connection),
                Err(Errno::AGAIN | Errno::CONNABORTED) => return Ok(progress),
                Err(e) => return Err(e),
            }
            progress = Progress::Connected;
        }
        let Some(connection) = &self.connection else { return Ok(progress) };
        let mut name = [0; NAME];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        match recvmsg(connection, &mut [IoSliceMut::new(&mut name)], &mut control, RecvFlags::CMSG_CLOEXEC) {
            Ok(_) => {}
            Err(Errno::AGAIN) => return Ok(progress),
            Err(e) => return Err(e),
        }
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                return Ok(descriptors.last().map_or(progress, Progress::Terminal));
            }
        }
        // A message without a descriptor: it was not the runtime that connected. Wait for another connection.
        self.connection = None;
        Ok(Progress::Nothing)
    }
}

impl Drop for ConsoleSocket {
    fn drop(&mut self) {
        let _ = rustix::fs::unlink(&self.path[..]);
    }
}
