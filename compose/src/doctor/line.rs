//! What was looked at, a line each.

use std::io::IsTerminal;

use serde::Serialize;

/// One thing that was looked at.
#[derive(Debug, Clone, Serialize)]
pub struct Line {
    /// What kind of thing.
    pub group: &'static str,
    /// Which.
    pub name: String,
    /// How it is.
    pub state: State,
    /// What was seen.
    pub what: String,
    /// Why that matters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// What mends it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mend: Option<String>,
}

/// How it is, from good to bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// As it should be.
    Ok,
    /// Not looked at, because something else is down.
    Unknown,
    /// Works, and should be looked at.
    Warn,
    /// Keeps something from working, or is not safe.
    Bad,
}

impl Line {
    /// All is well.
    pub fn ok(group: &'static str, name: impl Into<String>, what: impl Into<String>) -> Self {
        Self { group, name: name.into(), state: State::Ok, what: what.into(), why: None, mend: None }
    }

    /// It could not be looked at.
    pub fn unknown(group: &'static str, name: impl Into<String>, because: impl Into<String>) -> Self {
        Self { state: State::Unknown, ..Self::ok(group, name, because) }
    }

    /// It should be looked at.
    pub fn warn(
        group: &'static str,
        name: impl Into<String>,
        what: impl Into<String>,
        why: impl Into<String>,
        mend: impl Into<String>,
    ) -> Self {
        let (why, mend) = (Some(why.into()), Some(mend.into()));
        Self { state: State::Warn, why, mend, ..Self::ok(group, name, what) }
    }

    /// It must be mended.
    pub fn bad(
        group: &'static str,
        name: impl Into<String>,
        what: impl Into<String>,
        why: impl Into<String>,
        mend: impl Into<String>,
    ) -> Self {
        Self { state: State::Bad, ..Self::warn(group, name, what, why, mend) }
    }

    /// As it is printed.
    pub fn text(&self, coloured: bool) -> String {
        let (word, colour) = match self.state {
            State::Ok => ("ok     ", "32"),
            State::Unknown => ("unknown", "2"),
            State::Warn => ("warn   ", "33"),
            State::Bad => ("BAD    ", "31"),
        };
        let word = if coloured { format!("\x1b[{colour}m{word}\x1b[0m") } else { word.to_string() };
        let why = self.why.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
        let mend = self.mend.as_ref().map(|mend| format!("; mend: {mend}")).unwrap_or_default();
        format!("{word} {:<13} {}: {}{why}{mend}", self.group, self.name, self.what)
    }
}

/// The last line.
pub fn summary(lines: &[Line]) -> String {
    let count = |state| lines.iter().filter(|line| line.state == state).count();
    let (ok, warn, bad, unknown) = (count(State::Ok), count(State::Warn), count(State::Bad), count(State::Unknown));
    format!("{ok} ok, {warn} to look at, {bad} bad, {unknown} not looked at")
}

/// All of it as one document.
pub fn json(lines: &[Line], worst: State) -> String {
    serde_json::json!({ "state": worst, "checks": lines }).to_string()
}

/// Whether somebody looks at it who sees colours.
pub fn is_coloured() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_why_and_how_to_mend_it() {
        let line = Line::bad("database", "beds", "fsync is off", "a vote must survive a power loss", "set it to on");
        let expected = "BAD     database      beds: fsync is off: a vote must survive a power loss; mend: set it to on";
        assert_eq!(line.text(false), expected);
        assert!(line.text(true).starts_with("\x1b[31mBAD"));
        let lines = [Line::ok("keys", "identity", "read"), line];
        assert_eq!(summary(&lines), "1 ok, 0 to look at, 1 bad, 0 not looked at");
        assert_eq!(
            json(&lines[..1], State::Ok),
            r#"{"checks":[{"group":"keys","name":"identity","state":"ok","what":"read"}],"state":"ok"}"#
        );
    }

    #[test]
    fn the_worst_state_is_the_greatest() {
        assert!(State::Ok < State::Unknown && State::Unknown < State::Warn && State::Warn < State::Bad);
    }
}
