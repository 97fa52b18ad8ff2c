//! The client's side of stdio.

use rustix::fs::{CWD, FileType, Mode, mknodat};
use std::fs::File;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::thread::JoinHandle;

/// A FIFO that a client made.
#[derive(Debug, Clone)]
pub struct Fifo(PathBuf);

/// A thread that reads a FIFO to its end.
#[derive(Debug)]
pub struct Pipe(JoinHandle<Vec<u8>>);

impl Fifo {
    /// Makes one under `path`.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn new(path: PathBuf) -> Fifo {
        mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect("makes a fifo");
        Fifo(path)
    }

    /// Its path.
    pub fn path(&self) -> String {
        self.0.to_str().expect("test paths are UTF-8").to_string()
    }

    /// Opens it for reading, which waits for a writer.
    ///
    /// # Panics
    /// When it cannot be opened.
    pub fn reader(&self) -> File {
        File::open(&self.0).expect("opens")
    }

    /// Opens it for reading at once.
    ///
    /// # Panics
    /// When it cannot be opened.
    pub fn reader_now(&self) -> File {
        use std::os::unix::fs::OpenOptionsExt;
        let flags = rustix::fs::OFlags::NONBLOCK.bits() as i32;
        File::options().read(true).custom_flags(flags).open(&self.0).expect("opens")
    }

    /// Opens it for writing, which waits for a reader.
    ///
    /// # Panics
    /// When it cannot be opened.
    pub fn writer(&self) -> File {
        File::options().write(true).open(&self.0).expect("opens")
    }

    /// Reads it to its end in a thread, beginning when there is a writer.
    pub fn collect(&self) -> Pipe {
        let fifo = self.clone();
        Pipe(std::thread::spawn(move || {
            let mut bytes = Vec::new();
            fifo.reader().read_to_end(&mut bytes).expect("reads");
            bytes
        }))
    }

    /// Writes into it in a thread, and closes it.
    pub fn feed(&self, bytes: Vec<u8>) -> JoinHandle<()> {
        let fifo = self.clone();
        std::thread::spawn(move || fifo.writer().write_all(&bytes).expect("writes"))
    }
}

impl Pipe {
    /// All that came.
    ///
    /// # Panics
    /// When it could not be read.
    pub fn bytes(self) -> Vec<u8> {
        self.0.join().expect("the reader does not panic")
    }

    /// All that came, as text.
    ///
    /// # Panics
    /// When it could not be read.
    pub fn text(self) -> String {
        String::from_utf8(self.bytes()).expect("UTF-8")
    }
}
