//! What was measured with databases, as a table and as JSON.

use std::collections::BTreeSet;
use std::fmt::{self, Write};

use super::load::Loaded;
use super::sql::Kind;
use super::workload::Mode;
use super::{ms, unsteady};

/// What was measured in one cell.
pub struct Figures {
    /// What the servers have flushed over all of it.
    pub fsyncs: u64,
    /// What one connection commits by itself, a second.
    pub commits_alone: f64,
    /// Under load.
    pub loaded: Loaded,
}

struct Row {
    round: u8,
    kind: Kind,
    mode: Mode,
    window: usize,
    figures: Figures,
}

/// Of a whole run.
pub struct Report {
    is_embedded: bool,
    branches: u8,
    /// How long each cell was measured.
    seconds: u64,
    rows: Vec<Row>,
}

/// How many times as fast reserve is as xa, each at its best, of one database in each round.
struct Ratios {
    kind: Kind,
    of_rounds: Vec<f64>,
}

impl Figures {
    fn fsyncs_each(&self) -> f64 {
        self.fsyncs as f64 / (self.loaded.committed + self.loaded.aborted).max(1) as f64
    }
}

impl Report {
    /// Of nothing yet.
    pub fn new(is_embedded: bool, branches: u8, seconds: u64) -> Self {
        Self { is_embedded, branches, seconds, rows: Vec::new() }
    }

    /// One cell more.
    pub fn add(&mut self, round: u8, kind: Kind, mode: Mode, window: usize, figures: Figures) {
        self.rows.push(Row { round, kind, mode, window, figures });
    }

    /// The table, and a line of JSON if that is wanted.
    pub fn text(&self, json: bool) -> Result<String, fmt::Error> {
        let mut text = String::new();
        let broker = if self.is_embedded { "embedded (librdkafka's mock): says little" } else { "real" };
        writeln!(text, "broker    {broker}")?;
        writeln!(text, "branches  {}, each in a database of its own\n", self.branches)?;
        writeln!(
            text,
            "round database mode    under way  applied tx/s   p50 ms   p99 ms  fsyncs/tx  one connection  program  machine"
        )?;
        writeln!(
            text,
            "                                                                               commits/s    us/tx     busy"
        )?;
        for Row { round, kind, mode, window, figures } in &self.rows {
            let Loaded { rate, applied, cores, busy, .. } = &figures.loaded;
            let busy = busy.map_or("?".to_string(), |busy| format!("{:.0} %", busy * 100.0));
            writeln!(
                text,
                "{round:>5} {:<8} {:<7} {window:>9} {rate:>13.0} {:>8.1} {:>8.1} {:>10.3} {:>15.0} {:>8.0} {busy:>8}",
                kind.name(),
                mode.name(),
                ms(applied, 0.5),
                ms(applied, 0.99),
                figures.fsyncs_each(),
                figures.commits_alone,
                cores / rate.max(1.0) * 1_000_000.0,
            )?;
        }
        let aborted: u64 = self.rows.iter().map(|row| row.figures.loaded.aborted).sum();
        if aborted > 0 {
            writeln!(text, "\n{aborted} transactions were aborted: none should be, and the rates leave them out")?;
        }
        for Row { round, kind, mode, window, figures } in &self.rows {
            if let Some(unsteady) = unsteady(&figures.loaded.applied, self.seconds) {
                writeln!(text, "\nround {round}, {}, {}, {window} under way: {unsteady}", kind.name(), mode.name())?;
            }
        }
        writeln!(text)?;
        for Ratios { kind, of_rounds } in self.ratios() {
            let each: Vec<String> = of_rounds.iter().map(|ratio| format!("{ratio:.1}")).collect();
            writeln!(text, "reserve : xa on {:<9} {}", kind.name(), each.join("  "))?;
        }
        if json {
            writeln!(text, "{}", self.json())?;
        }
        Ok(text)
    }

    fn ratios(&self) -> Vec<Ratios> {
        let kinds: BTreeSet<Kind> = self.rows.iter().map(|row| row.kind).collect();
        let rounds: BTreeSet<u8> = self.rows.iter().map(|row| row.round).collect();
        let best = |of: (u8, Kind, Mode)| {
            let rows = self.rows.iter().filter(|row| (row.round, row.kind, row.mode) == of);
            rows.map(|row| row.figures.loaded.rate).reduce(f64::max)
        };
        let ratio = |round, kind| Some(best((round, kind, Mode::Reserve))? / best((round, kind, Mode::Xa))?);
        let ratios = kinds.into_iter().map(|kind| {
            let of_rounds = rounds.iter().filter_map(|round| ratio(*round, kind)).collect();
            Ratios { kind, of_rounds }
        });
        ratios.filter(|ratios| !ratios.of_rounds.is_empty()).collect()
    }

    fn json(&self) -> serde_json::Value {
        let cells = self.rows.iter().map(|Row { round, kind, mode, window, figures }| {
            let Loaded { rate, applied, cores, busy, committed, aborted } = &figures.loaded;
            serde_json::json!({
                "round": round, "database": kind.name(), "mode": mode.name(), "window": window,
                "transactions_per_second": rate, "applied_p50_ms": ms(applied, 0.5), "applied_p99_ms": ms(applied, 0.99),
                "steady": unsteady(applied, self.seconds).is_none(), "committed": committed, "aborted": aborted,
                "fsyncs": figures.fsyncs, "fsyncs_per_transaction": figures.fsyncs_each(),
                "one_connection_commits_per_second": figures.commits_alone,
                "cpu_cores": cores, "machine_busy": busy,
            })
        });
        let ratios = self.ratios().into_iter().map(|ratios| (ratios.kind.name().to_string(), ratios.of_rounds.into()));
        serde_json::json!({
            "embedded": self.is_embedded, "branches": self.branches,
            "cells": cells.collect::<Vec<_>>(),
            "reserve_to_xa": ratios.collect::<serde_json::Map<String, serde_json::Value>>(),
        })
    }
}
