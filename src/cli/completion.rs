//! What a shell completes: commands and flags from their definition, names from the
//! leafblk that runs.
//!
//! The shell asks the program itself, by its environment: `leafblk completions` prints the
//! few lines that have it do so.

use std::ffi::{OsStr, OsString};

use clap::CommandFactory;
use clap_complete::CompleteEnv;
use clap_complete::engine::CompletionCandidate;
use clap_complete::env::Shells;
use serde_json::Value;

use super::Cli;
use super::control::ControlArgs;
use crate::config::Environment;

/// What a shell sets to ask for completions: its name.
const VARIABLE: &str = "LEAFBLK_COMPLETE";

/// Answers a shell that asks for completions; whether one has asked.
///
/// # Errors
/// As write(2); a shell that isn't known.
pub fn answer_shell() -> clap::error::Result<bool> {
    let directory = std::env::current_dir().ok();
    CompleteEnv::with_factory(Cli::command)
        .var(VARIABLE)
        .try_complete(std::env::args_os(), directory.as_deref())
}

/// The lines by which a shell asks; `None` for a shell that isn't known.
pub(super) fn registration(shell: &str) -> Option<std::io::Result<Vec<u8>>> {
    let shells = Shells::builtins();
    let mut script = Vec::new();
    let written = shells.completer(shell)?.write_registration(
        VARIABLE,
        "leafblk",
        "leafblk",
        "leafblk",
        &mut script,
    );
    Some(written.map(|()| script))
}

/// The names that begin so: of VMs, or of roots for a command on those.
pub(super) fn names(begun: &OsStr) -> Vec<CompletionCandidate> {
    let command = std::env::args().skip_while(|word| word != "--").nth(2);
    let path = if command.as_deref() == Some("root") { "/v1/roots" } else { "/v1/vms" };
    begin_with("", begun, names_at(path))
}

/// A new VM that is described so far: the name of its root, where that is next.
pub(super) fn new_vm(begun: &OsStr) -> Vec<CompletionCandidate> {
    let Some((before, _)) = begun.to_str().and_then(|text| text.rsplit_once("root=")) else {
        return Vec::new();
    };
    begin_with(&format!("{before}root="), begun, names_at("/v1/roots"))
}

fn begin_with(before: &str, begun: &OsStr, names: Vec<String>) -> Vec<CompletionCandidate> {
    let begun = begun.to_string_lossy();
    let whole = names.into_iter().map(|name| format!("{before}{name}"));
    whole.filter(|whole| whole.starts_with(&*begun)).map(CompletionCandidate::new).collect()
}

/// The names that the leafblk has which the words so far lead to. None where it doesn't
/// answer: nobody is to be told in the middle of a line.
fn names_at(path: &str) -> Vec<String> {
    let words: Vec<OsString> = std::env::args_os().collect();
    let args = ControlArgs {
        socket: value_of("--socket", &words).map(Into::into),
        runtime_dir: value_of("--runtime-dir", &words).map(Into::into),
        config: value_of("--config", &words).map(Into::into),
        json: false,
    };
    let answer = Environment::current()
        .ok()
        .and_then(|env| args.client(&env).ok())
        .and_then(|client| client.get(path).ok());
    let Some(Value::Array(all)) = answer else {
        return Vec::new();
    };
    all.iter().filter_map(|one| one["name"].as_str().map(str::to_owned)).collect()
}

/// What follows a flag, as a word or after `=`.
fn value_of(flag: &str, words: &[OsString]) -> Option<OsString> {
    let with_sign =
        |word: &OsString| word.to_str()?.strip_prefix(flag)?.strip_prefix('=').map(OsString::from);
    let at = words.iter().position(|word| *word == *flag || with_sign(word).is_some())?;
    with_sign(&words[at]).or_else(|| words.get(at + 1).cloned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flags_value_is_found_in_both_forms() {
        let words = |text: &str| text.split(' ').map(OsString::from).collect::<Vec<_>>();
        for text in ["leafblk vm show --socket /s w", "leafblk --socket=/s vm show"] {
            assert_eq!(value_of("--socket", &words(text)), Some("/s".into()), "{text}");
        }
        for text in ["leafblk vm show", "leafblk vm show --socket", "leafblk --sockets=/s"] {
            assert_eq!(value_of("--socket", &words(text)), None, "{text}");
        }
    }

    #[test]
    fn a_root_is_completed_behind_what_is_written_already() {
        let whole = begin_with("web1,root=", OsStr::new("web1,root=de"), vec!["debian".into()]);
        let values: Vec<_> = whole.iter().map(CompletionCandidate::get_value).collect();
        assert_eq!(values, ["web1,root=debian"]);
        assert!(begin_with("", OsStr::new("x"), vec!["debian".into()]).is_empty());
    }
}
