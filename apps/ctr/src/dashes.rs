//! Flags as Go's `flag` package takes them: `-debug`, `-address X` and `-conn-timeout=2s` mean the same as with two dashes.
//!
//! A word with one dash is rewritten only if the whole word is the name of a long flag of the command at that place. Short
//! flags (also several in one word), values of other flags, and the words of a program to run stay unchanged.

use clap::{Arg, Command};
use std::ffi::OsString;

/// Rewrites the words of a command line. The first word is the program's name.
pub(crate) fn doubled(mut command: Command, words: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut words = words.into_iter();
    let mut rewritten: Vec<OsString> = words.next().into_iter().collect();
    // Adds clap's own flags, for help and the version.
    command.build();
    let mut levels = vec![&command];
    // Whether the next word is the value of a flag.
    let mut is_value = false;
    for word in words.by_ref() {
        let level = levels[levels.len() - 1];
        // A word that is not UTF-8 is not a flag.
        let text = word.clone().into_string().unwrap_or_default();
        let text = text.as_str();
        if std::mem::take(&mut is_value) {
            rewritten.push(word);
        } else if text == "--" {
            rewritten.push(word);
            break;
        } else if let Some(name) = text.strip_prefix('-').filter(|name| !name.is_empty()) {
            let long = name.strip_prefix('-').unwrap_or(name);
            let (long, has_value) = long.split_once('=').map_or((long, false), |(long, _)| (long, true));
            // One letter is a short flag.
            let flag = find(&levels, |arg| arg.get_long() == Some(long)).filter(|_| long.len() > 1);
            is_value = match flag {
                Some(flag) => takes_value(flag) && !has_value,
                None => !name.starts_with('-') && short_wants_value(&levels, name),
            };
            let is_single = flag.is_some() && !name.starts_with('-');
            rewritten.push(if is_single { format!("-{text}").into() } else { word });
        } else {
            rewritten.push(word);
            match level.find_subcommand(text) {
                Some(subcommand) => levels.push(subcommand),
                None if level.get_positionals().any(Arg::is_trailing_var_arg_set) => break,
                None => {}
            }
        }
    }
    rewritten.extend(words);
    rewritten
}

/// Finds a flag of the last command in `levels`: one of its own, or a global flag of a command above it.
fn find<'a>(levels: &[&'a Command], is_meant: impl Fn(&Arg) -> bool) -> Option<&'a Arg> {
    let (last, above) = levels.split_last()?;
    let global = above.iter().flat_map(|level| level.get_arguments()).filter(|arg| arg.is_global_set());
    last.get_arguments().chain(global).find(|arg| is_meant(arg))
}

fn takes_value(flag: &Arg) -> bool {
    flag.get_action().takes_values()
}

/// Whether the last of several short flags in one word takes the next word as its value.
fn short_wants_value(levels: &[&Command], letters: &str) -> bool {
    let first = letters.char_indices().find_map(|(at, letter)| {
        let flag = find(levels, |arg| arg.get_short() == Some(letter))?;
        takes_value(flag).then_some(at + letter.len_utf8())
    });
    first == Some(letters.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Args;
    use clap::CommandFactory;

    fn rewritten(line: &str) -> String {
        let words = doubled(Args::command(), line.split(' ').map(OsString::from));
        words.join(" ".as_ref()).into_string().expect("UTF-8")
    }

    #[test]
    fn long_flags_with_one_dash_get_two() {
        let all = [
            ("ctr -debug version", "ctr --debug version"),
            ("ctr -address unix:///a -conn-timeout=2s state", "ctr --address unix:///a --conn-timeout=2s state"),
            ("ctr containers start -attach a b -label x", "ctr containers start --attach a b --label x"),
            ("ctr containers kill a -signal 9 -debug", "ctr containers kill a --signal 9 --debug"),
            ("ctr containers exec -id a -pid b -tty -- sh", "ctr containers exec --id a --pid b --tty -- sh"),
            ("ctr -version", "ctr --version"),
            ("ctr containers -help", "ctr containers --help"),
            ("ctr events -timestamp=2020-01-01T00:00:00Z", "ctr events --timestamp=2020-01-01T00:00:00Z"),
        ];
        for (line, wanted) in all {
            assert_eq!(rewritten(line), wanted);
        }
    }

    #[test]
    fn other_words_stay_unchanged() {
        let lines = [
            "ctr",
            "ctr containers exec --id a --pid b -at -e X=1 sh",
            // Words of the program to run.
            "ctr containers exec --id a --pid b -- ls -debug",
            "ctr containers exec --id a --pid b ls -debug -address x",
            // Values.
            "ctr containers start a b --runtime-args -debug --runtime-args -address",
            "ctr containers start a b -l -debug",
            "ctr containers start a b -al -debug",
            "ctr containers update a --memory-limit -1",
            // The command has no flag of that name.
            "ctr containers list -attach",
            "ctr -attach containers",
            "ctr -xyz",
            "ctr containers kill a -p init -s 9",
            "ctr -- -debug",
        ];
        for line in lines {
            assert_eq!(rewritten(line), line);
        }
    }

    #[test]
    fn words_that_are_not_utf8_stay_unchanged() {
        use std::os::unix::ffi::OsStringExt;
        let word = OsString::from_vec(b"-debug\xff".to_vec());
        assert_eq!(doubled(Args::command(), ["ctr".into(), word.clone()]), [OsString::from("ctr"), word]);
    }
}
