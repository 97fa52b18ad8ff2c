//! A filter for the `:authority` of requests. Clients that dial the socket by its path send that path, or nothing, as the
//! authority. The daemon ignores it, but h2 refuses a request whose authority is malformed. The filter therefore replaces a
//! malformed authority before h2 sees it. Once a request has a well-formed one, or none, the connection's bytes pass unread.
//!
//! The filter replaces the authority within the header block (RFC 7541) by one that is no longer. (An empty one becomes a
//! single character.) The dynamic tables of both sides stay in step: each entry keeps its index, and an entry that takes less
//! room is only evicted later on this side. Whatever the filter cannot parse, it leaves for h2 to judge.

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
/// `localhost` in Huffman code, which most clients send.
const LOCALHOST: [u8; 6] = [0xa0, 0xe4, 0x1d, 0x13, 0x9d, 0x09];

/// A connected socket, with TLS or without.
pub(crate) trait Io: AsyncRead + AsyncWrite + Send {}

impl<T: AsyncRead + AsyncWrite + Send> Io for T {}

/// A connection whose requests have a well-formed authority.
pub(crate) struct Connection {
    stream: Pin<Box<dyn Io>>,
    /// `None` once the connection's bytes pass unread.
    filter: Option<Filter>,
    /// Bytes that have passed the filter and that h2 has not read yet.
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

/// The filter's position in a connection's frames.
#[derive(Debug)]
struct Filter {
    /// Received bytes that are not a whole frame yet.
    pending: Vec<u8>,
    /// How many of the next bytes pass unread.
    passing: usize,
}

/// The authority in a header block.
#[derive(Debug, PartialEq, Eq)]
enum Authority {
    /// Well-formed, absent, or in a block that the filter cannot parse.
    Good,
    /// Malformed: `value` is to replace the string literal from `start` to `end`.
    Bad { start: usize, end: usize, value: &'static [u8] },
    /// Possibly one of the dynamic table's entries, which the filter does not know.
    Unknown,
}

impl Filter {
    /// Moves to `out` what can pass. Returns true if there is nothing left to filter.
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

/// Replaces a part of a frame's payload, from `start` to `end`, by a string literal.
fn replace(frame: &[u8], start: usize, end: usize, value: &[u8]) -> Vec<u8> {
    let mut new = frame[..FRAME_HEADER + start].to_vec();
    // The length of a string that is shorter than 127 bytes and not Huffman-coded takes one byte.
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
        // The first bits tell the kind of field (RFC 7541, section 6).
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
            // gRPC's C core sends the name as a literal.
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
    // The longest Huffman code has 30 bits, so 16 bytes hold at least four characters.
    let long = if huffman { value.len() >= 16 } else { value.len() >= 4 };
    Authority::Bad { start, end, value: if long { b"unix" } else { b"u" } }
}

/// Decodes the integer at `at` (RFC 7541, section 5.1). Returns it with the position after it.
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

/// Finds the string at `at` (RFC 7541, section 5.2). Returns its coded bytes with the position after it.
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

/// Filters a connection that arrives in `pieces`, the preface first. Returns what the HTTP/2 library would read.
#[cfg(feature = "fuzzing")]
pub fn filter_in_pieces<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut filter = Filter { pending: Vec::new(), passing: PREFACE };
    let (mut out, mut is_done) = (Vec::new(), false);
    for piece in pieces {
        filter.pending.extend_from_slice(piece);
        is_done = is_done || filter.advance(&mut out);
        if is_done {
            out.append(&mut filter.pending);
        }
    }
    out.append(&mut filter.pending);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(block: &[u8]) -> Vec<u8> {
        let mut frame = vec![0, 0, block.len() as u8, HEADERS, END_HEADERS, 0, 0, 0, 1];
        frame.extend_from_slice(block);
        frame
    }

    /// Sends frames through a filter byte by byte. Returns what comes out, and whether the filter has then ended.
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
    fn well_formed_authorities_pass_unchanged_and_end_the_filter() {
        for authority in [&b"\x41\x09localhost"[..], b"\x41\x86\xa0\xe4\x1d\x13\x9d\x09", b"\x01\x04unix", b""] {
            let frames = [&[0, 0, 0, 4, 0, 0, 0, 0, 0][..], &headers(&[b"\x83\x86", authority].concat())].concat();
            assert_eq!(filtered(&frames), (frames, true));
        }
    }

    #[test]
    fn malformed_authorities_are_replaced_in_every_request() {
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
    fn malformed_header_blocks_pass_unchanged() {
        for block in [&b"\x41"[..], b"\x41\x7f", b"\x41\xff\xff\xff\xff\xff", b"\x40\x05ab", b"\x7f\xff\xff\xff\xff"] {
            let frame = headers(block);
            assert_eq!(filtered(&frame).0, frame);
        }
    }
}
