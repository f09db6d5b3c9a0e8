//! Processes that begin together, and what they report.

use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::Result;

/// A process that works.
pub struct Worker {
    child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Worker {
    /// Starts a process and waits until it is connected.
    ///
    /// # Errors
    ///
    /// If it ends before.
    pub async fn start(work: &str, url: &str, arguments: &[String]) -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["worker", work, url])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let input = child.stdin.take().ok_or("no input")?;
        let output = BufReader::new(child.stdout.take().ok_or("no output")?).lines();
        let mut worker = Self { child, input, output };
        match worker.line().await?.as_str() {
            "ready" => Ok(worker),
            other => Err(format!("{work} said {other:?} instead of being ready").into()),
        }
    }

    /// Sends a line.
    ///
    /// # Errors
    ///
    /// If the process has ended.
    pub async fn tell(&mut self, line: &str) -> Result {
        self.input.write_all(format!("{line}\n").as_bytes()).await?;
        Ok(self.input.flush().await?)
    }

    /// Returns the next line that the process prints.
    ///
    /// # Errors
    ///
    /// If the process has ended.
    pub async fn line(&mut self) -> Result<String> {
        Ok(self.output.next_line().await?.ok_or("a worker ended early")?)
    }

    /// Returns the figures of the next line.
    ///
    /// # Errors
    ///
    /// If they are none.
    pub async fn figures(&mut self) -> Result<Vec<f64>> {
        let line = self.line().await?;
        let figures: std::result::Result<_, _> = line.split(' ').map(str::parse).collect();
        Ok(figures.map_err(|_| format!("a worker said {line:?}"))?)
    }

    /// Kills the process, as a power failure would.
    ///
    /// # Errors
    ///
    /// If it has ended already.
    pub async fn kill(mut self) -> Result {
        Ok(self.child.kill().await?)
    }

    /// Returns the memory of the process in kilobytes.
    ///
    /// # Errors
    ///
    /// If it has ended already.
    pub fn memory(&self) -> Result<u64> {
        let pid = self.child.id().ok_or("a worker has ended")?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .ok_or("no VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    }
}

/// Runs `count` processes together and returns what they did a second, all together.
///
/// # Errors
///
/// If one of them ends early.
pub async fn rate(work: &str, url: &str, count: usize, arguments: &[String]) -> Result<f64> {
    let mut workers = Vec::new();
    for _ in 0..count {
        workers.push(Worker::start(work, url, arguments).await?);
    }
    for worker in &mut workers {
        worker.tell("go").await?;
    }
    let mut sum = 0.0;
    for worker in &mut workers {
        sum += worker.figures().await?.first().ok_or("no figure")?;
    }
    Ok(sum)
}

/// How long one turn of a measurement takes.
pub const TURN: Duration = Duration::from_secs(2);

/// How many turns each side has.
const TURNS: usize = 5;

/// Figures of several turns.
pub struct Turns(Vec<f64>);

impl Turns {
    fn sorted(mut figures: Vec<f64>) -> Self {
        figures.sort_by(f64::total_cmp);
        Self(figures)
    }

    /// Returns the median.
    pub fn median(&self) -> f64 {
        self.0[self.0.len() / 2]
    }
}

impl std::fmt::Display for Turns {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{:.0} ({:.0}..{:.0})",
            self.median(),
            self.0[0],
            self.0[self.0.len() - 1]
        )
    }
}

/// Lets two sides take turns, and prints both rates and their ratio.
///
/// # Errors
///
/// Those of the measurements.
pub async fn compare(
    title: &str,
    (base, mut of_base): (&str, impl AsyncFnMut() -> Result<f64>),
    (other, mut of_other): (&str, impl AsyncFnMut() -> Result<f64>),
) -> Result {
    let (mut bases, mut others) = (Vec::new(), Vec::new());
    for _ in 0..TURNS {
        bases.push(of_base().await?);
        others.push(of_other().await?);
    }
    let (bases, others) = (Turns::sorted(bases), Turns::sorted(others));
    let ratio = others.median() / bases.median();
    let times = 1.0 / ratio;
    println!("{title}: {other} {others} a second, {base} {bases}: {ratio:.2} of its rate, {times:.2} times its time");
    Ok(())
}
