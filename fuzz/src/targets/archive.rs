//! Checkpoint archives, which may come from another machine.

use ctr::fuzzing::import_archive;
use std::path::Path;
use tar::{EntryType, Header};

use crate::scratch;

/// Imports the input as it is. Mutations of it rarely get past the checksums, so that this reaches zstd and tar.
pub(crate) fn bytes(input: &[u8]) {
    import(input);
}

/// Imports an archive whose entries the input describes, with valid checksums. One line is one entry:
///
/// ```text
/// TYPE PATH [LINK] [=CONTENT]
/// ```
///
/// `TYPE` is the character that a tar header has for it (tar(5)): `0` for a file, `5` for a directory, `2` for a symbolic
/// link, `x` for an extended header. The content goes to the end of the line; `\n` stands for a line feed.
pub(crate) fn entries(input: &[u8]) {
    let mut tar = Vec::new();
    for line in input.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        add(&mut tar, line);
    }
    tar.extend_from_slice(&[0; 1024]);
    if let Ok(compressed) = zstd::encode_all(&tar[..], 1) {
        import(&compressed);
    }
}

fn add(tar: &mut Vec<u8>, line: &[u8]) {
    let (head, content) = match line.iter().position(|byte| *byte == b'=') {
        Some(at) => (&line[..at], unescaped(&line[at + 1..])),
        None => (line, Vec::new()),
    };
    let mut words = head.split(|byte| *byte == b' ').filter(|word| !word.is_empty());
    let kind = words.next().and_then(|word| word.first()).copied().unwrap_or(b'0');
    let (path, link) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut header = Header::new_ustar();
    header.set_entry_type(EntryType::new(kind));
    header.set_mode(0o644);
    header.set_size(content.len() as u64);
    let fields = header.as_old_mut();
    for (field, value) in [(&mut fields.name, path), (&mut fields.linkname, link)] {
        let length = value.len().min(field.len());
        field[..length].copy_from_slice(&value[..length]);
    }
    header.set_cksum();
    tar.extend_from_slice(header.as_bytes());
    tar.extend_from_slice(&content);
    tar.resize(tar.len().next_multiple_of(512), 0);
}

fn unescaped(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, after)) = rest.split_first() {
        match rest.strip_prefix(b"\\n") {
            Some(after) => {
                out.push(b'\n');
                rest = after;
            }
            None => {
                out.push(*first);
                rest = after;
            }
        }
    }
    out
}

/// Imports an archive into a directory beside it, and checks that nothing else has been touched.
fn import(archive: &[u8]) {
    let directory = scratch::directory();
    let file = directory.path().join("archive");
    scratch::write(&file, archive);
    scratch::write(&directory.path().join("outside"), b"untouched");
    let bundle = directory.path().join("bundle");
    let imported = import_archive(&file, &bundle);
    let mut names = names_in(directory.path());
    names.sort_unstable();
    let expected: &[&str] = if imported.is_ok() { &["archive", "bundle", "outside"] } else { &["archive", "outside"] };
    assert_eq!(names, expected, "{imported:?}");
    assert_eq!(std::fs::read(directory.path().join("outside")).expect("is there"), b"untouched");
    if imported.is_ok() {
        assert!(bundle.join("checkpoints").is_dir() && bundle.join("config.json").is_file());
    }
}

fn names_in(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).expect("lists").map(|entry| entry.expect("an entry").file_name());
    entries.map(|name| name.to_string_lossy().into_owned()).collect()
}
