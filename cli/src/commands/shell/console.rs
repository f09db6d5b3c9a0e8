//! Where the lines of `tenure shell` come from, and where its outcomes go: a terminal, with a
//! prompt, history and completion; or a pipe.

use std::io::IsTerminal as _;

use rustix::termios::{self, OptionalActions, Termios};
use rustyline::completion::Completer;
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::MemHistory;
use rustyline::validate::Validator;
use rustyline::{CompletionType, Config, Context, Editor, ExternalPrinter, Helper};
use tokio::sync::mpsc;

use super::line::VERBS;
use crate::exit::Failure;
use crate::input::{self, Line};
use crate::output;

/// The longest line that is kept: every byte of the largest value as an escape `\xNN`, and a few words.
pub(super) const LONGEST: usize = 4 * tenure::MAX_VALUE_BYTES + 8 * 1024;

/// What was typed.
pub(super) enum Input {
    Line(Vec<u8>),
    /// A line of more than [`LONGEST`] bytes.
    TooLong,
}

/// Lines in, lines out.
pub(super) struct Console {
    lines: mpsc::Receiver<Result<Input, Failure>>,
    /// Prints above the line that is being typed.
    above: Option<Box<dyn ExternalPrinter + Send>>,
    _terminal: Option<Terminal>,
}

impl Console {
    /// A prompt on a terminal, bare lines elsewhere.
    pub(super) fn open(prompt: String) -> Result<Self, Failure> {
        if std::io::stdin().is_terminal() && std::io::stdout().is_terminal() {
            Self::on_terminal(prompt)
        } else {
            Self::on_pipe()
        }
    }

    /// The next line; `None` at the end. Cancel safe.
    pub(super) async fn next(&mut self) -> Option<Result<Input, Failure>> {
        self.lines.recv().await
    }

    /// Prints a line, now.
    pub(super) fn print(&mut self, line: &str) -> Result<(), Failure> {
        match &mut self.above {
            Some(above) => above.print(format!("{line}\n")).map_err(refused),
            None => output::line(line),
        }
    }

    fn on_pipe() -> Result<Self, Failure> {
        let (sender, lines) = mpsc::channel(1);
        thread(move || {
            let mut stdin = std::io::stdin().lock();
            loop {
                let line = match input::line(&mut stdin, LONGEST) {
                    Ok(Line::End) => return,
                    Ok(Line::Whole(line)) => Ok(Input::Line(line)),
                    Ok(Line::TooLong) => input::skip(&mut stdin)
                        .map(|()| Input::TooLong)
                        .map_err(|error| Failure::os("read stdin", error)),
                    Err(error) => Err(Failure::os("read stdin", error)),
                };
                let over = line.is_err();
                if sender.blocking_send(line).is_err() || over {
                    return;
                }
            }
        })?;
        Ok(Self {
            lines,
            above: None,
            _terminal: None,
        })
    }

    fn on_terminal(prompt: String) -> Result<Self, Failure> {
        let terminal = Terminal::save()?;
        let config = Config::builder()
            .completion_type(CompletionType::List)
            .auto_add_history(true)
            .build();
        let mut editor =
            Editor::<Verbs, _>::with_history(config, MemHistory::new()).map_err(refused)?;
        editor.set_helper(Some(Verbs));
        // A terminal that cannot do that has to take the outcome in the middle of a line.
        let above = editor.create_external_printer().ok();
        let (sender, lines) = mpsc::channel(1);
        thread(move || {
            loop {
                let line = match editor.readline(&prompt) {
                    Ok(line) => Ok(Input::Line(line.into_bytes())),
                    // Ctrl-C drops the line.
                    Err(ReadlineError::Interrupted) => continue,
                    Err(ReadlineError::Eof) => return,
                    Err(error) => Err(refused(error)),
                };
                let over = line.is_err();
                if sender.blocking_send(line).is_err() || over {
                    return;
                }
            }
        })?;
        Ok(Self {
            lines,
            above: above.map(|above| Box::new(above) as _),
            _terminal: Some(terminal),
        })
    }
}

fn thread(read: impl FnOnce() + Send + 'static) -> Result<(), Failure> {
    // A read that has begun cannot be given up: it ends with the process.
    std::thread::Builder::new()
        .name("input".to_owned())
        .spawn(read)
        .map(drop)
        .map_err(|error| Failure::os("read stdin", error))
}

fn refused(error: ReadlineError) -> Failure {
    Failure::os("use the terminal", std::io::Error::other(error))
}

/// The terminal as it was. The thread that reads lines may be in the middle of one when the process
/// ends.
struct Terminal(Termios);

impl Terminal {
    fn save() -> Result<Self, Failure> {
        termios::tcgetattr(std::io::stdin())
            .map(Self)
            .map_err(|error| Failure::os("use the terminal", error.into()))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if let Err(error) = termios::tcsetattr(std::io::stdin(), OptionalActions::Now, &self.0) {
            tracing::debug!(%error, "the terminal stays as it is");
        }
    }
}

/// Completes the first word of a line.
struct Verbs;

impl Completer for Verbs {
    type Candidate = String;

    fn complete(
        &self,
        line: &str,
        position: usize,
        _: &Context<'_>,
    ) -> rustyline::Result<(usize, Vec<String>)> {
        let begun = line.get(..position).unwrap_or(line);
        let verbs = VERBS.iter().filter(|verb| verb.name.starts_with(begun));
        Ok((0, verbs.map(|verb| format!("{} ", verb.name)).collect()))
    }
}

impl Hinter for Verbs {
    type Hint = String;
}

impl Highlighter for Verbs {}
impl Validator for Verbs {}
impl Helper for Verbs {}
