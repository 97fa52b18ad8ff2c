//! The documents: links lead somewhere, and the paths that they name exist.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

/// The directories at the top of the repository whose files documents and comments name.
const TOP: [&str; 8] = ["apps/", "bench/", "crates/", "docs/", "fuzz/", "packaging/", "scripts/", "tests/"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

/// The files below `directory` with that extension, without what is built or hidden.
fn files(directory: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap().flatten() {
        let (path, name) = (entry.path(), entry.file_name().into_string().unwrap());
        if entry.file_type().unwrap().is_dir() {
            if !name.starts_with('.') && name != "target" && name != "corpus" {
                found.append(&mut files(&path, extension));
            }
        } else if path.extension().is_some_and(|found| found == extension) {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// The lines of Markdown with their numbers, without fenced code.
fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut fence = None;
    text.lines().enumerate().filter_map(move |(number, line)| {
        let start = line.trim_start();
        let marks = ["```", "~~~"].into_iter().find(|marks| start.starts_with(marks));
        match (fence, marks) {
            (None, Some(marks)) => fence = Some(marks),
            (Some(open), Some(marks)) if open == marks => fence = None,
            (None, None) => return Some((number + 1, line)),
            _ => {}
        }
        None
    })
}

/// The text of a line outside code spans, and the code spans.
fn split_code(line: &str) -> (String, Vec<&str>) {
    let (mut text, mut spans) = (String::new(), Vec::new());
    for (number, part) in line.split('`').enumerate() {
        if number % 2 == 0 { text.push_str(part) } else { spans.push(part) }
    }
    (text, spans)
}

/// The destinations of a line's inline links and link definitions.
fn destinations(text: &str) -> Vec<String> {
    let inline = text.match_indices("](").map(|(at, _)| text[at + 2..].split([')', ' ']).next().unwrap_or_default());
    let definition = text.strip_prefix('[').and_then(|rest| rest.split_once("]: ")).map(|(_, destination)| destination);
    inline.chain(definition).map(|destination| destination.trim_matches(['<', '>']).to_string()).collect()
}

/// The anchors of a document's headings, as forges make them: lower case, without punctuation, with hyphens for spaces.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut seen: HashMap<String, usize> = HashMap::new();
    let mut found = BTreeSet::new();
    for (_, line) in prose(text) {
        let heading = line.trim_start_matches('#');
        if heading.len() == line.len() || !heading.starts_with(' ') {
            continue;
        }
        let kept = heading.trim().chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        let slug: String = kept.map(|c| if c == ' ' { '-' } else { c }).collect::<String>().to_lowercase();
        let count = seen.entry(slug.clone()).or_default();
        found.insert(if *count == 0 { slug } else { format!("{slug}-{count}") });
        *count += 1;
    }
    found
}

/// What is wrong with a link in `document`; `None` if it leads somewhere.
fn problem(document: &Path, destination: &str) -> Option<String> {
    if ["https://", "http://", "mailto:"].iter().any(|scheme| destination.starts_with(scheme)) {
        return None;
    }
    let (path, anchor) = destination.split_once('#').unwrap_or((destination, ""));
    if path.starts_with('/') {
        return Some("is absolute".into());
    }
    let target = if path.is_empty() { document.to_path_buf() } else { document.parent().unwrap().join(path) };
    if !target.exists() {
        return Some("leads nowhere".into());
    }
    if anchor.is_empty() || target.extension().is_none_or(|extension| extension != "md") {
        return None;
    }
    let has_anchor = anchors(&fs::read_to_string(&target).unwrap()).contains(anchor);
    (!has_anchor).then(|| format!("has no such heading: {anchor}"))
}

/// Whether a code span is the path of a file of this repository that does not exist.
fn is_missing_path(span: &str) -> bool {
    let is_path = TOP.iter().any(|top| span.starts_with(top))
        && span.chars().all(|c| c.is_ascii_alphanumeric() || "_-./".contains(c));
    is_path && !root().join(span).exists()
}

#[test]
fn links_in_documents_lead_somewhere() {
    let mut problems = Vec::new();
    for document in files(&root(), "md") {
        for (number, line) in prose(&fs::read_to_string(&document).unwrap()) {
            for destination in destinations(&split_code(line).0) {
                if let Some(problem) = problem(&document, &destination) {
                    problems.push(format!("{}:{number}: {destination} {problem}", document.display()));
                }
            }
        }
    }
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
}

#[test]
fn paths_that_documents_and_comments_name_exist() {
    let mut problems = Vec::new();
    for extension in ["md", "rs", "sh", "toml"] {
        for file in files(&root(), extension) {
            let text = fs::read_to_string(&file).unwrap();
            let comment = if extension == "rs" { "//" } else { "#" };
            let lines: Vec<(usize, &str)> = match extension {
                "md" => prose(&text).collect(),
                _ => text.lines().enumerate().filter(|(_, line)| line.trim_start().starts_with(comment)).collect(),
            };
            for (number, line) in lines {
                let missing = split_code(line).1.into_iter().filter(|span| is_missing_path(span));
                problems.extend(missing.map(|span| format!("{}:{number}: there is no {span}", file.display())));
            }
        }
    }
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
}

#[test]
fn broken_links_and_paths_are_found() {
    let directory = tempfile::tempdir().unwrap();
    let document = directory.path().join("a.md");
    fs::write(&document, "# One `two`, three\n\n```\n# no heading\n```\n## Same\n## Same\n").unwrap();
    let anchored = ["one-two-three", "same", "same-1"].map(String::from);
    assert_eq!(anchors(&fs::read_to_string(&document).unwrap()), BTreeSet::from(anchored));
    for good in ["a.md", "#same-1", "a.md#one-two-three", "https://example.org/x", "."] {
        assert_eq!(problem(&document, good), None, "{good}");
    }
    for bad in ["b.md", "#no-heading", "a.md#same-2", "/etc/passwd"] {
        assert!(problem(&document, bad).is_some(), "{bad}");
    }
    let (text, spans) = split_code("see [a](b.md) and `crates/none.rs`, not `[c](d.md)`");
    assert_eq!(destinations(&text), ["b.md"]);
    assert_eq!(destinations("[a]: b.md"), ["b.md"]);
    assert!(is_missing_path(spans[0]) && !is_missing_path("tests/Cargo.toml") && !is_missing_path("crates/*/src"));
}
