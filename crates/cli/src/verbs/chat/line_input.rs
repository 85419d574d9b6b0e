//! Where the user's lines come from: an editor with history on a terminal, plain lines of a pipe. The history file lies where the
//! XDG base directory specification puts state.

use std::io::{BufRead, IsTerminal, Read};
use std::path::PathBuf;

use anyhow::Context;
use bitnet_model::limits::TEXT_BYTES_MAX;
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;

use crate::terminal::{Style, Terminal};

/// A line, or what came instead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Line {
    Text(String),
    /// Ctrl-C at the prompt.
    Interrupted,
    /// Ctrl-D, or the end of the pipe.
    End,
}

/// The user's lines.
pub(super) enum LineInput {
    Terminal { editor: Box<DefaultEditor>, history: Option<PathBuf>, prompt: String },
    Pipe,
}

impl LineInput {
    /// The editor if standard input is a terminal.
    pub(super) fn open(terminal: &Terminal) -> anyhow::Result<Self> {
        if !std::io::stdin().is_terminal() {
            return Ok(Self::Pipe);
        }
        let mut editor = DefaultEditor::new().context("cannot use the terminal")?;
        let history = history_file();
        if let Some(path) = &history {
            // There is none the first time.
            let _ = editor.load_history(path);
        }
        Ok(Self::Terminal { editor: Box::new(editor), history, prompt: terminal.on_stdout(Style::Accent, "> ") })
    }

    /// Whether a person is typing.
    pub(super) fn is_terminal(&self) -> bool {
        matches!(self, Self::Terminal { .. })
    }

    /// Waits for a line.
    pub(super) fn read(&mut self) -> anyhow::Result<Line> {
        match self {
            Self::Pipe => read_line(&mut std::io::stdin().lock(), TEXT_BYTES_MAX),
            Self::Terminal { editor, prompt, .. } => match editor.readline(prompt) {
                Ok(line) => {
                    // A history that cannot grow is no reason to stop.
                    let _ = editor.add_history_entry(&line);
                    Ok(Line::Text(line))
                }
                Err(ReadlineError::Interrupted) => Ok(Line::Interrupted),
                Err(ReadlineError::Eof) => Ok(Line::End),
                Err(error) => Err(error).context("cannot read from the terminal"),
            },
        }
    }

    /// Keeps the history for the next time, where that is possible.
    pub(super) fn close(self) {
        if let Self::Terminal { mut editor, history: Some(path), .. } = self {
            let folder_exists = path.parent().is_some_and(|folder| std::fs::create_dir_all(folder).is_ok());
            if folder_exists {
                let _ = editor.save_history(&path);
            }
        }
    }
}

/// A line of at most `limit` bytes. A longer one is refused: cut in two it would be two turns.
fn read_line(input: &mut dyn BufRead, limit: usize) -> anyhow::Result<Line> {
    let mut line = Vec::new();
    input.take(limit as u64 + 1).read_until(b'\n', &mut line).context("cannot read standard input")?;
    if line.len() > limit {
        anyhow::bail!("a line of standard input is longer than {limit} bytes");
    }
    let line = String::from_utf8(line).context("a line of standard input is not UTF-8")?;
    Ok(if line.is_empty() { Line::End } else { Line::Text(line) })
}

fn history_file() -> Option<PathBuf> {
    let folder = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let state = folder("XDG_STATE_HOME").or_else(|| Some(folder("HOME")?.join(".local/state"))).or_else(|| folder("LOCALAPPDATA"))?;
    Some(state.join("bitnet/chat_history"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_over_the_limit_is_refused_and_not_cut() {
        let mut input: &[u8] = "four\nfi\u{e9}ve\nlast".as_bytes();
        assert_eq!(read_line(&mut input, 5).expect("fits"), Line::Text("four\n".into()));
        assert!(read_line(&mut { input }, 4).is_err());
        assert!(read_line(&mut { input }, 6).is_err(), "the line feed counts");
        assert_eq!(read_line(&mut input, 7).expect("fits"), Line::Text("fi\u{e9}ve\n".into()));
        assert_eq!(read_line(&mut input, 4).expect("fits"), Line::Text("last".into()));
        assert_eq!(read_line(&mut input, 4).expect("ends"), Line::End);
        assert!(read_line(&mut &b"\xc3\n"[..], 4).is_err());
    }
}
