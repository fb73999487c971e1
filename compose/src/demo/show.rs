//! What a person sees while the demo runs: bars on a terminal, plain lines elsewhere.

use std::io::IsTerminal;
use std::sync::atomic::Ordering;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use suture_contract::messages::{Ballot, Verdict};
use suture_coordinator::ingest::IngestCounts;
use tokio::time::Instant;

use super::watch::Watch;
use crate::out::{self, Unwritable};

/// How often a plain line is printed, at most.
const PLAIN_LINE: Duration = Duration::from_millis(250);

/// The display.
pub struct Show {
    bars: Option<Bars>,
    last_line: String,
    last_at: Option<Instant>,
}

struct Bars {
    all: MultiProgress,
    events: ProgressBar,
    votes: ProgressBar,
    decisions: ProgressBar,
    databases: Vec<ProgressBar>,
}

impl Show {
    /// Nothing is drawn yet.
    pub fn new(events: usize) -> Self {
        let bars = std::io::stderr().is_terminal().then(|| {
            let all = MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(10));
            let bar = |style: &str, length| {
                // A template that is wrong would show in every run; then the library's default is drawn.
                let style = ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar());
                all.add(ProgressBar::new(length).with_style(style.progress_chars("=> ")))
            };
            Bars {
                events: bar("  events      [{bar:40}] {pos:>5}/{len}", events as u64),
                votes: bar("  votes       {msg}", 0),
                decisions: bar("  decisions   {msg}", 0),
                databases: (0..3).map(|_| bar("  {prefix:11} [{bar:40}] {pos:>5}/{len} applied", 0)).collect(),
                all,
            }
        });
        Self { bars, last_line: String::new(), last_at: None }
    }

    /// A line above the bars.
    pub fn say(&self, line: &str) -> Result<(), Unwritable> {
        match &self.bars {
            // Drawing fails only with the terminal itself.
            Some(bars) => drop(bars.all.println(line)),
            None => out::line(line)?,
        }
        Ok(())
    }

    /// The state of things.
    pub fn progress(&mut self, watch: &Watch, counts: &IngestCounts, kills: usize) -> Result<(), Unwritable> {
        let read = counts.read.load(Ordering::Relaxed);
        let yes = watch.votes.values().filter(|vote| **vote == Ballot::Yes).count();
        let no = watch.votes.len() - yes;
        let commit = watch.decisions.values().filter(|verdict| **verdict == Verdict::Commit).count();
        let abort = watch.decisions.len() - commit;
        let killed = if kills > 0 { format!(", {kills} processes killed") } else { String::new() };
        if let Some(bars) = &self.bars {
            bars.events.set_position(read);
            bars.votes.set_message(format!("{yes} yes, {no} no"));
            bars.decisions.set_message(format!("{commit} commit, {abort} abort{killed}"));
            for (bar, (participant, (applied, there))) in bars.databases.iter().zip(&watch.applied) {
                bar.set_prefix(participant.to_string());
                bar.set_length(*there);
                bar.set_position(*applied);
            }
            return Ok(());
        }
        let applied: Vec<_> = watch.applied.iter().map(|(name, (applied, _))| format!("{name} {applied}")).collect();
        // At first the databases have not been looked at.
        let applied = if applied.is_empty() { String::new() } else { format!(", applied {}", applied.join(" ")) };
        let line =
            format!("events {read}, votes {yes} yes {no} no, decisions {commit} commit {abort} abort{applied}{killed}");
        let now = Instant::now();
        if line != self.last_line && self.last_at.is_none_or(|at| now - at >= PLAIN_LINE) {
            out::line(&line)?;
            self.last_line = line;
            self.last_at = Some(now);
        }
        Ok(())
    }

    /// The last picture, which stays.
    pub fn last(&mut self, watch: &Watch, counts: &IngestCounts, kills: usize) -> Result<(), Unwritable> {
        self.last_at = None;
        self.progress(watch, counts, kills)?;
        if let Some(bars) = &self.bars {
            bars.events.abandon();
            bars.votes.abandon();
            bars.decisions.abandon();
            bars.databases.iter().for_each(ProgressBar::abandon);
        }
        Ok(())
    }
}
