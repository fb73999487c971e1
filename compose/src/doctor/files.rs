//! Keys and rules: what stands in files.

use std::os::unix::fs::PermissionsExt;

use suture_coordinator_core::ingest::rules::Rules;

use super::line::Line;
use crate::settings::Settings;

/// The two secrets.
pub fn keys(settings: &Settings) -> Vec<Line> {
    let mut lines = Vec::new();
    match settings.identity_key() {
        Ok(Some(key)) => lines.push(Line::ok("keys", "identity", format!("fingerprint {}", key.fingerprint()))),
        Ok(None) => {
            lines.push(Line::ok("keys", "identity", "not configured: ingest needs it, participants do without"))
        }
        Err(error) => {
            let why = "without it no event gets its business key";
            lines.push(Line::bad(
                "keys",
                "identity",
                format!("{error:#}"),
                why,
                "restore it from its copy: it never changes",
            ));
        }
    }
    match settings.hash_key() {
        Ok(Some(_)) => lines.push(Line::ok("keys", "hash", "read")),
        Ok(None) => lines.push(Line::ok("keys", "hash", "not configured: ingest needs it, participants do without")),
        Err(error) => {
            let why = "without it no request gets its hash";
            lines.push(Line::bad(
                "keys",
                "hash",
                format!("{error:#}"),
                why,
                "restore it, or make another with a new keys.hash_id",
            ));
        }
    }
    for (key, file) in settings.key_files() {
        let Ok(metadata) = std::fs::metadata(&file) else { continue };
        let mode = metadata.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            let place = file.display();
            lines.push(Line::warn(
                "keys",
                key,
                format!("{place} has mode {mode:o}"),
                "who reads it can guess patients back from pseudonyms, or hashes from data",
                format!("chmod 600 {place}"),
            ));
        }
    }
    lines
}

/// The rules, and whether those that they name can do what they ask.
pub fn rules(settings: &Settings) -> (Vec<Line>, Option<Rules>) {
    if !settings.has_rules() {
        return (vec![Line::ok("rules", "ingest.rules", "not configured: only ingest needs them")], None);
    }
    let rules = match settings.rules() {
        Ok(rules) => rules,
        Err(error) => {
            let line =
                Line::bad("rules", "ingest.rules", format!("{error:#}"), "ingest does not start", "correct the file");
            return (vec![line], None);
        }
    };
    let topics = rules.topics().join(", ");
    let mut lines = vec![Line::ok("rules", "ingest.rules", format!("compiled; they read {topics}"))];
    for (participant, operation) in rules.operations() {
        let name = format!("{participant}.{operation}");
        if !settings.participants().any(|known| known == participant.as_str()) {
            if settings.participants().next().is_some() {
                lines.push(Line::warn(
                    "rules",
                    name,
                    format!("{participant} is not in [participants]"),
                    "right if another configuration has it; if the name is wrong, every such transaction aborts",
                    "correct the name, or leave it",
                ));
            }
            continue;
        }
        // What is wrong with its file is said with its database.
        let Ok(config) = settings.participant(participant.as_str()) else { continue };
        if !config.operations.contains_key(operation) {
            let known = config.operations.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
            lines.push(Line::bad(
                "rules",
                name,
                format!("{participant} has no operation {operation}"),
                "every such transaction aborts as unreadable",
                format!("name one of its operations ({known}), or add it to {}", config.file.display()),
            ));
        }
    }
    (lines, Some(rules))
}
