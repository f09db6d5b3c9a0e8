//! A lock holder in a process of its own, which a test drives line by line: `tenure_testbed::Holder`.
//!
//! One command a line on standard input, one answer a line on standard output, in order. What
//! follows `message=` reaches to the end of the line; no other value holds a space.
//!
//! | command | answer |
//! |---|---|
//! | `open URL TTL_MS` | `session=ID ttl_ms=N` |
//! | `lock NAME`, `try NAME`, `timeout NAME MS` | `token=N key=K valid=BOOL` |
//! | `valid` | `valid=BOOL remaining_ms=N` |
//! | `spin GAP_MS` | `spinning`, then `gap_ms=N before=BOOL valid=BOOL remaining_ms=N` |
//! | `write FILE TEXT` | `written`: a line `TOKEN TEXT` at the end of the file, whatever the lock says |
//! | `lost` | `reason=R at_ms=N`, once the lock (or the session, if none was taken) is lost |
//! | `produce QUEUE TAG COUNT` | `produced=N`: items `TAG-0`, `TAG-1`, ..., one by one |
//! | `consume QUEUE WORK_MS FILE` | `consumed=N`, once the queue is empty: in the file a line `VALUE COUNT TOKEN` for each delivery, and `VALUE done TOKEN` for each that was acknowledged |
//! | `release`, `close` | `released`, `closed` |
//! | anything that fails | `error kind=K message=M` |
//!
//! Everything runs on one thread. While `spin` runs, nothing else does: no renewal, no timer, no
//! task that could notice a loss. So what its first check after a pause says, the clock has said.

use std::io::{BufRead as _, Write as _};
use std::time::{Duration, Instant, SystemTime};

use tenure::{Error, ErrorKind, LockGuard, LockHandle, Result, Session, SessionOptions};
use tokio::sync::mpsc;

/// How long `spin` looks for a gap: a test that forgot it must not burn a processor for ever.
const SPIN_LIMIT: Duration = Duration::from_secs(120);

fn main() -> std::io::Result<()> {
    let (sender, mut commands) = mpsc::unbounded_channel();
    // A thread that blocks: tokio's own standard input needs one as well.
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
        // The test is over. Even in the middle of a `lock` nobody is left to answer.
        std::process::exit(0);
    });
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut holder = Holder::default();
        while let Some(command) = commands.recv().await {
            let answer = holder.obey(&command).await;
            say(&answer.unwrap_or_else(|error| explain(&error)))?;
        }
        Ok(())
    })
}

/// What this process holds.
#[derive(Default)]
struct Holder {
    session: Option<Session>,
    guard: Option<LockGuard>,
}

impl Holder {
    async fn obey(&mut self, command: &str) -> Result<String> {
        let (verb, rest) = command.split_once(' ').unwrap_or((command, ""));
        match verb {
            "valid" => Ok(self.validity()?),
            "open" => self.open(rest).await,
            "lock" => {
                let granted = self.handle(rest)?.lock().await;
                self.granted(granted)
            }
            "try" => {
                let granted = self.handle(rest)?.try_lock().await;
                self.granted(granted)
            }
            "timeout" => {
                let (name, limit) = two(rest)?;
                let limit = milliseconds(limit)?;
                let granted = self.handle(name)?.lock_timeout(limit).await;
                self.granted(granted)
            }
            "spin" => self.spin(milliseconds(rest)?),
            "write" => {
                let (file, text) = two(rest)?;
                self.write(file, text)
            }
            "lost" => self.lost().await,
            "produce" => {
                let (name, rest) = two(rest)?;
                let (tag, count) = two(rest)?;
                let count = count.trim().parse();
                let count = count.map_err(|_| wrong("that is no number of items"))?;
                self.produce(name, tag, count).await
            }
            "consume" => {
                let (name, rest) = two(rest)?;
                let (work, file) = two(rest)?;
                self.consume(name, milliseconds(work)?, file).await
            }
            "release" => {
                let guard = self.guard.take().ok_or_else(|| wrong("nothing is held"))?;
                guard.release().await?;
                Ok("released".to_owned())
            }
            "close" => {
                let session = self.session.take().ok_or_else(no_session)?;
                session.close().await?;
                Ok("closed".to_owned())
            }
            _ => Err(wrong(format!("unknown command `{verb}`"))),
        }
    }

    async fn open(&mut self, rest: &str) -> Result<String> {
        let (url, ttl) = two(rest)?;
        let options = SessionOptions::new().ttl(milliseconds(ttl)?);
        let session = tenure::connect(url).await?.open(options).await?;
        let answer = format!(
            "session={} ttl_ms={}",
            session.id(),
            session.ttl().as_millis()
        );
        self.session = Some(session);
        Ok(answer)
    }

    fn handle(&self, name: &str) -> Result<LockHandle> {
        self.session.as_ref().ok_or_else(no_session)?.locker(name)
    }

    fn granted(&mut self, granted: Result<LockGuard>) -> Result<String> {
        let guard = granted?;
        let answer = format!(
            "token={} key={} valid={}",
            guard.token(),
            guard.key(),
            guard.is_valid()
        );
        self.guard = Some(guard);
        Ok(answer)
    }

    fn is_valid(&self) -> Result<bool> {
        match (&self.guard, &self.session) {
            (Some(guard), _) => Ok(guard.is_valid()),
            (None, Some(session)) => Ok(session.is_valid()),
            (None, None) => Err(no_session()),
        }
    }

    fn validity(&self) -> Result<String> {
        let valid = self.is_valid()?;
        let remaining = match (&self.guard, &self.session) {
            (Some(guard), _) => guard.remaining(),
            (None, Some(session)) => session.remaining(),
            (None, None) => Duration::ZERO,
        };
        Ok(format!(
            "valid={valid} remaining_ms={}",
            remaining.as_millis()
        ))
    }

    /// Checks validity without a break and reports the first check that *began* after this process
    /// was not scheduled for longer than `gap`, with the check before it.
    fn spin(&self, gap: Duration) -> Result<String> {
        let start = Instant::now();
        let (mut last, mut before) = (start, self.is_valid()?);
        say("spinning").map_err(|error| wrong(error.to_string()))?;
        loop {
            // First the time, then the check: were it the other way round, a pause between the two
            // would make a gap of a check that came before it.
            let now = Instant::now();
            let valid = self.is_valid()?;
            let since = now.duration_since(last);
            if since > gap {
                let validity = self.validity()?;
                let remaining = validity.split(' ').next_back().unwrap_or_default();
                let since = since.as_millis();
                return Ok(format!(
                    "gap_ms={since} before={before} valid={valid} {remaining}"
                ));
            }
            if now.duration_since(start) > SPIN_LIMIT {
                return Err(Error::new(
                    ErrorKind::TimedOut,
                    format!("never not scheduled for {gap:?}"),
                ));
            }
            if now.elapsed() <= gap {
                (last, before) = (now, valid);
            }
            // Else the pause came in the middle of this check, whose answer is from before it or
            // from after it: the next one counts.
        }
    }

    /// An unfenced resource: nobody compares the token, and nobody asks whether the lock is held.
    fn write(&self, file: &str, text: &str) -> Result<String> {
        let guard = self
            .guard
            .as_ref()
            .ok_or_else(|| wrong("nothing is held"))?;
        let line = format!("{} {text}\n", guard.token());
        append(file, &line)?;
        Ok("written".to_owned())
    }

    async fn produce(&self, name: &str, tag: &str, count: u64) -> Result<String> {
        let queue = self.session.as_ref().ok_or_else(no_session)?.queue(name)?;
        for number in 0..count {
            queue.enqueue(format!("{tag}-{number}")).await?;
        }
        Ok(format!("produced={count}"))
    }

    /// Works off a queue until nothing is left in it, with others or alone. What it writes it writes
    /// at once, so that what a killed process did is known: a delivery before its work, an
    /// acknowledgement after it was confirmed.
    async fn consume(&self, name: &str, work: Duration, file: &str) -> Result<String> {
        let queue = self.session.as_ref().ok_or_else(no_session)?.queue(name)?;
        let mut consumed = 0;
        loop {
            let delivery = match queue.dequeue_timeout(Duration::from_millis(500)).await {
                Err(error) if error.kind() == ErrorKind::TimedOut => {
                    if queue.len().await? == 0 {
                        return Ok(format!("consumed={consumed}"));
                    }
                    continue;
                }
                delivery => delivery?,
            };
            let value = String::from_utf8_lossy(delivery.value()).into_owned();
            let token = delivery.token();
            append(file, &format!("{value} {} {token}\n", delivery.count()))?;
            tokio::time::sleep(work).await;
            delivery.ack().await?;
            append(file, &format!("{value} done {token}\n"))?;
            consumed += 1;
        }
    }

    async fn lost(&self) -> Result<String> {
        let reason = match (&self.guard, &self.session) {
            (Some(guard), _) => guard.lost().await,
            (None, Some(session)) => session.lost().await,
            (None, None) => return Err(no_session()),
        };
        let at = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        Ok(format!("reason={reason} at_ms={}", at.as_millis()))
    }
}

fn append(file: &str, line: &str) -> Result<()> {
    std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(file)
        // In one piece, so that writers do not mix.
        .and_then(|mut file| file.write_all(line.as_bytes()))
        .map_err(|error| wrong(format!("cannot write {file}: {error}")))
}

fn say(line: &str) -> std::io::Result<()> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{line}")?;
    stdout.flush()
}

fn explain(error: &Error) -> String {
    let message = error.chain().to_string().replace(['\n', '\r'], " ");
    format!("error kind={:?} message={message}", error.kind())
}

fn two(rest: &str) -> Result<(&str, &str)> {
    rest.split_once(' ')
        .ok_or_else(|| wrong("this command needs two arguments"))
}

fn milliseconds(text: &str) -> Result<Duration> {
    text.trim()
        .parse()
        .map(Duration::from_millis)
        .map_err(|_| wrong(format!("`{text}` is not a number of milliseconds")))
}

fn wrong(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Config, message)
}

fn no_session() -> Error {
    wrong("no session is open")
}
