//! What the command knows of the terminal: whether there is one, whether it wants colour, notes and progress bars on standard
//! error, and a standard output whose reader may leave early. Colour follows <https://no-color.org>.

use std::fmt;
use std::io::{self, IsTerminal, Write};

use indicatif::{ProgressBar, ProgressStyle};

/// How a piece of text stands out, where colour is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Style {
    /// Headings.
    Bold,
    /// What may be skipped.
    Dim,
    /// The word `error`.
    Error,
    /// The word `help`, and prompts.
    Accent,
}

impl Style {
    fn code(self) -> &'static str {
        match self {
            Self::Bold => "1",
            Self::Dim => "2",
            Self::Error => "1;31",
            Self::Accent => "1;36",
        }
    }
}

/// Standard output and error, as found at start-up.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terminal {
    quiet: bool,
    stdout_colour: bool,
    stderr_colour: bool,
    stderr_is_terminal: bool,
}

impl Terminal {
    /// Looks at the streams, NO_COLOR and TERM. `quiet` silences notes and bars.
    pub(crate) fn detect(quiet: bool) -> Self {
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
            || std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let stderr_is_terminal = io::stderr().is_terminal();
        Self {
            quiet,
            stdout_colour: io::stdout().is_terminal() && !refused,
            stderr_colour: stderr_is_terminal && !refused,
            stderr_is_terminal,
        }
    }

    /// No terminal at all: nothing is coloured, nothing is drawn.
    #[cfg(test)]
    pub(crate) fn plain() -> Self {
        Self { quiet: true, stdout_colour: false, stderr_colour: false, stderr_is_terminal: false }
    }

    /// `text` for standard output.
    pub(crate) fn on_stdout(&self, style: Style, text: impl fmt::Display) -> String {
        paint(self.stdout_colour, style, text)
    }

    /// `text` for standard error.
    pub(crate) fn on_stderr(&self, style: Style, text: impl fmt::Display) -> String {
        paint(self.stderr_colour, style, text)
    }

    /// Tells something that is neither result nor error. A standard error that is gone is no reason to stop.
    pub(crate) fn note(&self, text: &str) {
        if !self.quiet {
            let _ = writeln!(io::stderr(), "{}", self.on_stderr(Style::Dim, text));
        }
    }

    /// A bar that counts bytes; invisible unless standard error is a terminal.
    pub(crate) fn bytes_bar(&self, size_bytes: u64, what: &str) -> ProgressBar {
        self.bar(size_bytes, what, "{msg:30!} {wide_bar} {bytes:>10}/{total_bytes} {binary_bytes_per_sec:>12} {eta:>4}")
    }

    /// A bar that counts steps; invisible unless standard error is a terminal.
    pub(crate) fn steps_bar(&self, n_steps: u64, what: &str) -> ProgressBar {
        self.bar(n_steps, what, "{msg} {bar:40} {pos}/{len} {eta:>4}")
    }

    fn bar(&self, length: u64, what: &str, template: &str) -> ProgressBar {
        if self.quiet || !self.stderr_is_terminal {
            return ProgressBar::hidden();
        }
        let style = ProgressStyle::with_template(template).expect("the templates above are well formed: a test draws them");
        ProgressBar::new(length).with_style(style.progress_chars("━╸─")).with_message(what.to_string())
    }
}

fn paint(colour: bool, style: Style, text: impl fmt::Display) -> String {
    if colour { format!("\x1b[{}m{text}\x1b[0m", style.code()) } else { text.to_string() }
}

/// Standard output's reader has left (`bitnet … | head`): not a failure, just the end.
#[derive(Debug)]
pub(crate) struct ReaderLeft;

impl fmt::Display for ReaderLeft {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("the reader of standard output has left")
    }
}

impl std::error::Error for ReaderLeft {}

/// Standard output. Unlike `println!` it never panics: a reader that left is told apart by [`ReaderLeft`] in the error.
#[derive(Debug, Default)]
pub(crate) struct Output;

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        io::stdout().write(bytes).map_err(mark_reader_left)
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stdout().flush().map_err(mark_reader_left)
    }
}

fn mark_reader_left(error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::BrokenPipe { io::Error::new(io::ErrorKind::BrokenPipe, ReaderLeft) } else { error }
}

/// Whether `error` is that of a reader that left.
pub(crate) fn is_reader_left(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let io_error = cause.downcast_ref::<io::Error>();
        io_error.and_then(io::Error::get_ref).is_some_and(|inner| inner.is::<ReaderLeft>())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_have_well_formed_templates() {
        let terminal = Terminal { quiet: false, stdout_colour: false, stderr_colour: false, stderr_is_terminal: true };
        terminal.bytes_bar(10, "file").finish_and_clear();
        terminal.steps_bar(10, "layers").finish_and_clear();
    }

    #[test]
    fn reader_that_left_is_told_from_other_broken_pipes() {
        let ours = anyhow::Error::from(mark_reader_left(io::ErrorKind::BrokenPipe.into())).context("writing");
        assert!(is_reader_left(&ours));
        assert!(!is_reader_left(&anyhow::Error::from(io::Error::from(io::ErrorKind::BrokenPipe))));
        assert!(!is_reader_left(&anyhow::Error::from(mark_reader_left(io::ErrorKind::Other.into()))));
    }
}
