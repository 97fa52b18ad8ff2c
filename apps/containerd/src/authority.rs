//! Clients that dial the socket by its path send that path, or nothing, as `:authority`. It means nothing here, but
//! the HTTP/2 library refuses a request whose authority is not well-formed. So it is looked at before the library
//! sees it: only in a connection's first request, if that has a good one, and then bytes pass untouched.
//!
//! A bad authority is replaced in the header block (RFC 7541) by one that is no longer than it, so that the dynamic
//! tables of both sides stay in step: the index of each entry is the same, and an entry that takes less room is only
//! forgotten later here. (An empty one is replaced by a single character.) What cannot be read is left as it is, for
//! the library to judge.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;

use crate::load::Open;

/// The client's connection preface (RFC 9113, section 3.4).
const PREFACE: usize = 24;
/// A frame's header: length, type, flags, stream.
const FRAME_HEADER: usize = 9;
/// The largest frame that a client may send here.
const LARGEST_FRAME: usize = 16 << 10;
const HEADERS: u8 = 1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
/// `:authority` in the static table.
const AUTHORITY: usize = 1;
/// `localhost` as it is when it is Huffman-coded, which most clients send.
const LOCALHOST: [u8; 6] = [0xa0, 0xe4, 0x1d, 0x13, 0x9d, 0x09];

/// A socket, with TLS or without.
pub(crate) trait Io: AsyncRead + AsyncWrite + Send {}

impl<T: AsyncRead + AsyncWrite + Send> Io for T {}

/// A connection whose requests have a well-formed authority.
pub(crate) struct Connection {
    stream: Pin<Box<dyn Io>>,
    filter: Option<Filter>,
    /// Filtered, to be read before anything else.
    out: Vec<u8>,
    _open: Open,
}

impl Connection {
    pub(crate) fn new(stream: impl Io + 'static, open: Open) -> Connection {
        Connection {
            stream: Box::pin(stream),
            filter: Some(Filter { pending: Vec::new(), passing: PREFACE }),
            out: Vec::new(),
            _open: open,
        }
    }
}

/// Where in the stream of frames a connection is.
#[derive(Debug)]
struct Filter {
    /// Received, and not yet a whole frame.
    pending: Vec<u8>,
    /// Bytes that are of no interest and go through.
    passing: usize,
}

/// What a header block says of the authority.
#[derive(Debug, PartialEq, Eq)]
enum Authority {
    /// Well-formed, or absent, or nothing of ours to judge.
    Good,
    /// To be replaced, from here to there, by this.
    Bad { start: usize, end: usize, value: &'static [u8] },
    /// In the dynamic table already, or coded so that it was not read.
    Unknown,
}

impl Filter {
    /// Takes what has been received; gives what can go on. True: there is nothing more to look for.
    fn advance(&mut self, out: &mut Vec<u8>) -> bool {
        loop {
            let passed = self.passing.min(self.pending.len());
            out.extend(self.pending.drain(..passed));
            self.passing -= passed;
            if self.passing > 0 || self.pending.len() < FRAME_HEADER {
                return false;
            }
            let length =
                usize::from(self.pending[0]) << 16 | usize::from(self.pending[1]) << 8 | usize::from(self.pending[2]);
            let (kind, flags) = (self.pending[3], self.pending[4]);
            if kind != HEADERS {
                self.passing = FRAME_HEADER + length;
                continue;
            }
            if length > LARGEST_FRAME || flags & END_HEADERS == 0 {
                return true;
            }
            if self.pending.len() < FRAME_HEADER + length {
                return false;
            }
            let frame: Vec<u8> = self.pending.drain(..FRAME_HEADER + length).collect();
            match look(&frame[FRAME_HEADER..], flags) {
                Authority::Good => {
                    out.extend(frame);
                    return true;
                }
                Authority::Unknown => out.extend(frame),
                Authority::Bad { start, end, value } => out.extend(replace(&frame, start, end, value)),
            }
        }
    }
}

/// A frame with a part of its payload replaced by a string literal.
fn replace(frame: &[u8], start: usize, end: usize, value: &[u8]) -> Vec<u8> {
    let mut new = frame[..FRAME_HEADER + start].to_vec();
    // Shorter than 127 and not Huffman-coded.
    new.push(value.len() as u8);
    new.extend_from_slice(value);
    new.extend_from_slice(&frame[FRAME_HEADER + end..]);
    let length = (new.len() - FRAME_HEADER) as u32;
    new[..3].copy_from_slice(&length.to_be_bytes()[1..]);
    new
}

/// Finds the authority in the payload of a HEADERS frame.
fn look(payload: &[u8], flags: u8) -> Authority {
    find(payload, flags).unwrap_or(Authority::Good)
}

fn find(payload: &[u8], flags: u8) -> Option<Authority> {
    let mut at = 0;
    let mut end = payload.len();
    if flags & PADDED != 0 {
        end = end.checked_sub(usize::from(*payload.first()?))?;
        at += 1;
    }
    if flags & PRIORITY != 0 {
        at += 5;
    }
    let block = payload.get(..end)?;
    let mut indexed = false;
    while at < block.len() {
        let first = block[at];
        // RFC 7541, section 6: the kinds of fields by their first bits.
        let (prefix, literal) = match first {
            0x80.. => (7, false),
            0x40.. => (6, true),
            0x20.. => (5, false),
            _ => (4, true),
        };
        let (index, after) = integer(block, at, prefix)?;
        at = after;
        if !literal {
            indexed |= first >= 0x80 && index > 61;
            continue;
        }
        let mut named = index == AUTHORITY;
        if index == 0 {
            let (name, after) = string(block, at)?;
            // gRPC's C core spells names out.
            named = name == b":authority";
            at = after;
        }
        let start = at;
        let (value, after) = string(block, at)?;
        at = after;
        if named {
            let huffman = block[start] & 0x80 != 0;
            return Some(judge(value, huffman, start, after));
        }
    }
    Some(if indexed { Authority::Unknown } else { Authority::Good })
}

fn judge(value: &[u8], huffman: bool, start: usize, end: usize) -> Authority {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b".-_:[]".contains(byte);
    let good = if huffman { value == LOCALHOST } else { !value.is_empty() && value.iter().all(plain) };
    if good {
        return Authority::Good;
    }
    // The longest Huffman code has 30 bits: 16 bytes are four characters at least.
    let long = if huffman { value.len() >= 16 } else { value.len() >= 4 };
    Authority::Bad { start, end, value: if long { b"unix" } else { b"u" } }
}

/// An integer (RFC 7541, section 5.1) at a place, and the place after it.
fn integer(block: &[u8], at: usize, prefix: u32) -> Option<(usize, usize)> {
    let mask = (1_usize << prefix) - 1;
    let mut value = usize::from(*block.get(at)?) & mask;
    let mut at = at + 1;
    if value < mask {
        return Some((value, at));
    }
    for shift in [0, 7, 14] {
        let byte = usize::from(*block.get(at)?);
        at += 1;
        value += (byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some((value, at));
        }
    }
    None
}

/// A string (RFC 7541, section 5.2) at a place, as it is coded, and the place after it.
fn string(block: &[u8], at: usize) -> Option<(&[u8], usize)> {
    let (length, start) = integer(block, at, 7)?;
    let end = start.checked_add(length)?;
    Some((block.get(start..end)?, end))
}

impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            if !this.out.is_empty() {
                let length = this.out.len().min(buf.remaining());
                buf.put_slice(&this.out[..length]);
                this.out.drain(..length);
                return Poll::Ready(Ok(()));
            }
            let Some(filter) = &mut this.filter else { return this.stream.as_mut().poll_read(cx, buf) };
            let mut piece = [0; 4096];
            let mut piece = ReadBuf::new(&mut piece);
            ready!(this.stream.as_mut().poll_read(cx, &mut piece))?;
            filter.pending.extend_from_slice(piece.filled());
            let ended = piece.filled().is_empty();
            if filter.advance(&mut this.out) || ended {
                this.out.append(&mut filter.pending);
                this.filter = None;
            }
            if ended && this.out.is_empty() {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().stream.as_mut().poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().stream.as_mut().poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().stream.as_mut().poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().stream.as_mut().poll_write_vectored(cx, pieces)
    }
}

impl Connected for Connection {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(block: &[u8]) -> Vec<u8> {
        let mut frame = vec![0, 0, block.len() as u8, HEADERS, END_HEADERS, 0, 0, 0, 1];
        frame.extend_from_slice(block);
        frame
    }

    /// What comes out when all comes in byte by byte, and whether it then passes untouched.
    fn filtered(frames: &[u8]) -> (Vec<u8>, bool) {
        let mut filter = Filter { pending: Vec::new(), passing: 2 };
        let mut out = Vec::new();
        let mut over = false;
        for byte in [b"PR", frames].concat() {
            filter.pending.push(byte);
            over |= !over && filter.advance(&mut out);
        }
        out.append(&mut filter.pending);
        assert!(out.starts_with(b"PR"));
        (out.split_off(2), over)
    }

    #[test]
    fn good_ones_pass_untouched() {
        for authority in [&b"\x41\x09localhost"[..], b"\x41\x86\xa0\xe4\x1d\x13\x9d\x09", b"\x01\x04unix", b""] {
            let frames = [&[0, 0, 0, 4, 0, 0, 0, 0, 0][..], &headers(&[b"\x83\x86", authority].concat())].concat();
            assert_eq!(filtered(&frames), (frames, true));
        }
    }

    #[test]
    fn bad_ones_are_replaced_whenever_they_come() {
        let bad = headers(b"\x83\x41\x0c/run/ab.sock\x86\x40\x01x\x01y");
        let good = headers(b"\x83\x41\x04unix\x86\x40\x01x\x01y");
        assert_eq!(filtered(&bad), (good.clone(), false));
        let indexed = headers(b"\x83\xbe\x86");
        let twice = [&bad[..], &indexed, &bad].concat();
        assert_eq!(filtered(&twice), ([&good[..], &indexed, &good].concat(), false));
        let (spelt, better) = (headers(b"\x40\x0a:authority\x02a%"), headers(b"\x40\x0a:authority\x01u"));
        assert_eq!(filtered(&spelt).0, better);
        assert_eq!(filtered(&headers(b"\x41\x00\x83")).0, headers(b"\x41\x01u\x83"));
    }

    #[test]
    fn what_is_malformed_is_left_as_it_is() {
        for block in [&b"\x41"[..], b"\x41\x7f", b"\x41\xff\xff\xff\xff\xff", b"\x40\x05ab", b"\x7f\xff\xff\xff\xff"] {
            let frame = headers(block);
            assert_eq!(filtered(&frame).0, frame);
        }
    }
}
