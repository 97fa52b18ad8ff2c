use super::*;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use tar::{EntryType, Header};

/// A bundle with a checkpoint and a layer, and the archive of it that [`write_archive`] would write.
pub(super) struct Source {
    directory: tempfile::TempDir,
}

impl Source {
    pub(super) fn new() -> Source {
        let directory = tempfile::tempdir().expect("tempdir");
        let source = Source { directory };
        for made in ["checkpoint/criu.work", "bundle", "layer/etc/removed.d", "layer/data"] {
            std::fs::create_dir_all(source.path(made)).expect("makes");
        }
        for (name, text) in [
            ("checkpoint/config.json", r#"{"name":"one"}"#),
            ("checkpoint/pages-1.img", &"page".repeat(10_000)),
            ("checkpoint/criu.work/dump.log", "is left out"),
            ("bundle/config.json", r#"{"root":{"path":"rootfs"}}"#),
            ("layer/data/numbers", "1 2 3"),
            (&format!("layer/data/{}", "long".repeat(50)), "a long name"),
        ] {
            std::fs::write(source.path(name), text).expect("writes");
        }
        symlink("/bin/busybox", source.path("layer/data/link")).expect("links");
        std::fs::hard_link(source.path("layer/data/numbers"), source.path("layer/data/same")).expect("links");
        let numbers = source.path("layer/data/numbers");
        std::fs::set_permissions(&numbers, std::fs::Permissions::from_mode(0o4751)).expect("chmod");
        let (fifo, hidden) = (source.path("layer/data/fifo"), source.path("layer/etc/removed"));
        use rustix::fs::{CWD, FileType, Mode, XattrFlags, mknodat, setxattr};
        mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR, 0).expect("makes a fifo");
        mknodat(CWD, &hidden, FileType::CharacterDevice, Mode::empty(), 0).expect("makes a whiteout; as root");
        let opaque = source.path("layer/etc/removed.d");
        setxattr(&opaque, OPAQUE_ATTRIBUTE, b"y", XattrFlags::empty()).expect("makes it opaque; as root");
        let capability = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let able = source.path(&format!("layer/data/{}", "long".repeat(50)));
        setxattr(&able, "security.capability", &capability, XattrFlags::empty()).expect("gives a capability; as root");
        source
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(super) fn archive(&self) -> PathBuf {
        let path = self.path("archive");
        let file = std::fs::File::create(&path).expect("creates");
        let mut writer = Writer::new(&file).expect("begins");
        writer.add_plain_tree(&self.path("checkpoint"), CHECKPOINT).expect("adds");
        writer.add_file(&self.path("bundle/config.json"), "bundle/config.json").expect("adds");
        writer.add_root(&self.path("layer"), LAYER).expect("adds");
        writer.finish(manifest()).expect("ends");
        path
    }
}

fn manifest() -> Manifest {
    let root = Root::Overlay { lower: vec!["/base".into()] };
    Manifest { format: FORMAT, name: "one".into(), id: "c".into(), root, files: BTreeMap::new() }
}

/// Imports an archive into `bundle` of a new directory. Returns the directory and the result.
pub(super) fn import(archive: &Path) -> (tempfile::TempDir, Result<Imported, String>) {
    let directory = tempfile::tempdir().expect("tempdir");
    let options = ImportCheckpoint {
        file: archive.to_path_buf(),
        bundle: Some(directory.path().join("bundle")),
        mount: false,
        lower: None,
    };
    let imported = read_archive(&options).map_err(|e| format!("{e:#}"));
    if imported.is_err() {
        assert_eq!(std::fs::read_dir(directory.path()).expect("lists").count(), 0, "nothing is left");
    }
    (directory, imported)
}

#[test]
fn imported_layer_is_the_same_as_the_exported_one() {
    let source = Source::new();
    let (directory, imported) = import(&source.archive());
    let imported = imported.expect("imports");
    assert_eq!((imported.id.as_str(), imported.name.as_str()), ("c", "one"));
    let bundle = directory.path().join("bundle");
    let command = imported.mount.expect("is to be mounted");
    let shown = bundle.display();
    assert_eq!(
        command,
        format!(
            "mount -t overlay overlay -o 'lowerdir=/base,upperdir={shown}/upper,workdir={shown}/work' '{shown}/rootfs'"
        )
    );
    let text = |name: &str| std::fs::read_to_string(bundle.join(name)).expect(name);
    assert_eq!(text("checkpoints/one/pages-1.img"), "page".repeat(10_000));
    assert!(!bundle.join("checkpoints/one/criu.work").exists());
    assert_eq!(text("config.json"), r#"{"root":{"path":"rootfs"}}"#);
    assert_eq!(text("upper/data/numbers"), "1 2 3");
    let metadata = |name: &str| bundle.join(name).symlink_metadata().expect(name);
    let (numbers, same) = (metadata("upper/data/numbers"), metadata("upper/data/same"));
    assert_eq!((numbers.mode() & 0o7777, numbers.ino()), (0o4751, same.ino()));
    let was = source.path("layer/data/numbers").metadata().expect("is there");
    assert_eq!(numbers.mtime(), was.mtime());
    assert_eq!(std::fs::read_link(bundle.join("upper/data/link")).expect("a link"), Path::new("/bin/busybox"));
    assert!(metadata("upper/data/fifo").file_type().is_fifo());
    let hidden = metadata("upper/etc/removed");
    assert!(hidden.file_type().is_char_device() && hidden.rdev() == 0);
    let mut value = [0; 64];
    let opaque = rustix::fs::getxattr(bundle.join("upper/etc/removed.d"), OPAQUE_ATTRIBUTE, &mut value[..]);
    assert_eq!((opaque, value[0]), (Ok(1), b'y'));
    let able = bundle.join(format!("upper/data/{}", "long".repeat(50)));
    assert_eq!(rustix::fs::getxattr(able, "security.capability", &mut value[..]), Ok(20));
}

#[test]
fn import_replaces_no_file_and_accepts_an_identical_config() {
    let source = Source::new();
    let archive = source.archive();
    let directory = tempfile::tempdir().expect("tempdir");
    let bundle = directory.path().join("bundle");
    std::fs::create_dir(&bundle).expect("makes");
    std::fs::write(bundle.join("config.json"), r#"{"root":{"path":"rootfs"}}"#).expect("writes");
    let options =
        ImportCheckpoint { file: archive, bundle: Some(bundle.clone()), mount: false, lower: Some("/b".into()) };
    let imported = read_archive(&options).expect("imports");
    assert!(imported.mount.expect("a command").contains("lowerdir=/b,"));
    let said = format!("{:#}", read_archive(&options).err().expect("refused"));
    assert!(said.contains("exist"), "{said}");
    assert!(bundle.join("checkpoints/one/config.json").exists());
    std::fs::write(bundle.join("config.json"), "{}").expect("writes");
    let said = format!("{:#}", read_archive(&options).err().expect("refused"));
    assert!(said.contains("another config.json"), "{said}");
    let left: Vec<_> = std::fs::read_dir(&bundle).expect("lists").flatten().map(|e| e.file_name()).collect();
    assert!(!left.iter().any(|name| name.as_bytes().starts_with(b".import")), "{left:?}");
}

#[test]
fn truncated_and_damaged_archives_are_refused() {
    let source = Source::new();
    let whole = std::fs::read(source.archive()).expect("reads");
    let damaged = source.path("damaged");
    for end in [0, 10, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&damaged, &whole[..end]).expect("writes");
        assert!(import(&damaged).1.is_err(), "cut off at {end} of {}", whole.len());
    }
    let mut taken = 0;
    for place in (0..whole.len()).step_by(whole.len() / 20) {
        let mut bytes = whole.clone();
        bytes[place] ^= 0x10;
        std::fs::write(&damaged, &bytes).expect("writes");
        let (directory, imported) = import(&damaged);
        if imported.is_ok() {
            // A bit that the decoder ignores.
            let pages = std::fs::read_to_string(directory.path().join("bundle/checkpoints/one/pages-1.img"));
            assert_eq!(pages.expect("reads"), "page".repeat(10_000), "changed at {place} of {}", whole.len());
            taken += 1;
        }
    }
    assert!(taken < 3, "{taken} of 20");
}

/// An entry of a foreign archive: its name, its kind, its link's target, and its content.
type Hostile<'a> = (&'a str, EntryType, &'a str, &'a str);

fn made(entries: &[Hostile], manifest: &Manifest) -> PathBuf {
    let file = tempfile::NamedTempFile::new().expect("tempfile");
    let mut tar = tar::Builder::new(zstd::Encoder::new(file.as_file(), 1).expect("begins"));
    for (name, kind, target, text) in entries {
        // The tar crate refuses to write these names.
        let mut header = Header::new_gnu();
        let old = header.as_old_mut();
        old.name[..name.len()].copy_from_slice(name.as_bytes());
        old.linkname[..target.len()].copy_from_slice(target.as_bytes());
        header.set_entry_type(*kind);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(text.len() as u64);
        if matches!(kind, EntryType::Char | EntryType::Block) {
            header.set_device_major(1).expect("fits");
            header.set_device_minor(3).expect("fits");
        }
        header.set_cksum();
        tar.append(&header, text.as_bytes()).expect("adds");
    }
    let text = serde_json::to_vec(manifest).expect("a manifest");
    let mut header = Header::new_gnu();
    header.set_size(text.len() as u64);
    header.set_mode(0o600);
    tar.append_data(&mut header, MANIFEST, &text[..]).expect("adds");
    tar.into_inner().expect("ends").finish().expect("ends");
    file.into_temp_path().keep().expect("stays")
}

fn digest(text: &str) -> Digest {
    let mut hashed = write::Hashed::new(text.as_bytes());
    std::io::copy(&mut hashed, &mut std::io::sink()).expect("reads");
    hashed.digest()
}

#[test]
fn hostile_archives_are_refused() {
    let file = EntryType::Regular;
    let good: [Hostile; 3] = [
        ("checkpoint/config.json", file, "", "{}"),
        ("bundle/config.json", file, "", "{}"),
        ("layer/a", file, "", "a"),
    ];
    let files = |entries: &[Hostile]| -> BTreeMap<String, Digest> {
        let regular = entries.iter().filter(|(_, kind, ..)| *kind == EntryType::Regular);
        regular.map(|(name, _, _, text)| ((*name).to_string(), digest(text))).collect()
    };
    let refused = |more: &[Hostile], says: &str| {
        let entries = [&good[..], more].concat();
        let archive = made(&entries, &Manifest { files: files(&entries), ..manifest() });
        let said = import(&archive).1.err().unwrap_or_else(|| panic!("is taken: {more:?}"));
        assert!(said.contains(says), "{more:?}: {said}");
        std::fs::remove_file(archive).expect("removes");
    };
    let outside = tempfile::tempdir().expect("tempdir");
    let victim = outside.path().join("victim");
    std::fs::write(&victim, "whole").expect("writes");
    let absolute = victim.to_str().expect("UTF-8");
    refused(&[("../x", file, "", "x")], "no path");
    refused(&[("layer/../../x", file, "", "x")], "no path");
    refused(&[(absolute, file, "", "x")], "no path");
    refused(&[("layer//x", file, "", "x")], "no path");
    refused(&[("elsewhere/x", file, "", "x")], "does not belong here");
    refused(&[("layer/dev", EntryType::Char, "", "")], "is a device");
    refused(&[("layer/dev", EntryType::Block, "", "")], "is a device");
    refused(&[("layer/out", EntryType::Symlink, "../../x", "")], "link out of its tree");
    refused(&[("layer/out", EntryType::Link, absolute, "")], "link out of its tree");
    refused(&[("layer/out", EntryType::Link, "../../x", "")], "link out of its tree");
    refused(&[("layer/out", EntryType::Link, "bundle/config.json", "")], "link out of its tree");
    refused(&[("checkpoint/link", EntryType::Symlink, "config.json", "")], "neither a file nor a directory");
    refused(&[("checkpoint/sub/x", file, "", "x")], "no directory of the archive");
    // Paths through a link that leads out.
    let through = outside.path().to_str().expect("UTF-8");
    refused(&[("layer/l", EntryType::Symlink, through, ""), ("layer/l/victim", file, "", "x")], "no directory");
    refused(&[("layer/l", EntryType::Symlink, absolute, ""), ("layer/l", file, "", "x")], "layer/l");
    refused(&[("layer/a", file, "", "again")], "layer/a");
    refused(&[("layer/.wh...", file, "", "")], "hides nothing");
    refused(&[("layer/.wh.", file, "", "")], "hides nothing");
    refused(&[("rootfs/x", file, "", "x")], "in place of");
    assert_eq!(std::fs::read_to_string(&victim).expect("is there"), "whole");
    // The archive without a hostile entry is accepted.
    let archive = made(&good, &Manifest { files: files(&good), ..manifest() });
    import(&archive).1.expect("imports");
    // Roots outside the bundle or with a name that is taken, and lower directories that add options to the mount.
    for root in ["/etc", "../x", "a/b", "upper", "work", ".x", ""] {
        let config = serde_json::json!({"root": {"path": root}}).to_string();
        let entries = [good[0], ("bundle/config.json", file, "", config.as_str()), good[2]];
        let archive = made(&entries, &Manifest { files: files(&entries), ..manifest() });
        let said = import(&archive).1.err().unwrap_or_else(|| panic!("is taken: {root}"));
        assert!(said.contains("root file system"), "{said}");
    }
    for lower in ["relative", "/a,upperdir=/etc", "/a:/b", "/a'; reboot; '", "/a\n"] {
        let root = Root::Overlay { lower: vec![lower.into()] };
        let archive = made(&good, &Manifest { files: files(&good), root, ..manifest() });
        let said = import(&archive).1.err().unwrap_or_else(|| panic!("is taken: {lower}"));
        assert!(said.contains("directory of an overlay"), "{said}");
    }
    let with = |manifest: Manifest, says: &str| {
        let said = import(&made(&good, &manifest)).1.err().expect("is refused");
        assert!(said.contains(says), "{said}");
    };
    with(manifest(), "not in the manifest");
    let mut more = files(&good);
    more.insert("layer/b".into(), digest("b"));
    with(Manifest { files: more, ..manifest() }, "layer/b is missing");
    let mut other = files(&good);
    other.insert("layer/a".into(), digest("b"));
    with(Manifest { files: other, ..manifest() }, "digest differs");
    with(Manifest { format: 2, files: files(&good), ..manifest() }, "a newer ctr");
    with(Manifest { name: "../x".into(), files: files(&good), ..manifest() }, "its name");
    with(Manifest { id: "../x".into(), files: files(&good), ..manifest() }, "its id");
    with(Manifest { root: Root::Elsewhere, files: files(&good), ..manifest() }, "in place of");
}

#[test]
fn topmost_mount_on_a_path_decides_whether_it_is_an_overlay() {
    let text = "50 20 0:40 / /b/rootfs rw - ext4 /dev/vda rw\n\
        51 20 0:41 / /b/rootfs rw,relatime - overlay overlay rw,lowerdir=/l\\0401:/l2,upperdir=/u,workdir=/w\n\
        52 20 0:41 / /other rw - overlay overlay rw,lowerdir+=/x,lowerdir+=/y,upperdir=/u2,workdir=/w\n";
    let overlay = Overlay::find(text, Path::new("/b/rootfs")).expect("is one");
    assert_eq!(overlay, Overlay { lower: vec!["/l 1".into(), "/l2".into()], upper: "/u".into() });
    let overlay = Overlay::find(text, Path::new("/other")).expect("is one");
    assert_eq!(overlay.lower, [Path::new("/x"), Path::new("/y")]);
    assert_eq!(Overlay::find(text, Path::new("/b")), None);
}
