//! The example's hospital and insurer, each in the other mode, on the same server, with the same rows in the end: the files of
//! `compose` with other steps.

/// A file of `config/participants` or `schema`, for the other modes.
pub fn other(file: &str, text: &str) -> String {
    match file {
        "hospital.postgres.toml" => hospital_in_reserve(text),
        "hospital.postgres.sql" => replaced(text, &[("txid text not null unique,", HOSPITAL_STATE, 2)]),
        "insurer.mariadb.toml" => insurer_in_xa(text),
        // A row that can be seen is accepted.
        "insurer.mariadb.sql" => replaced(text, &[("default 'reserved'", "default 'accepted'", 1)]),
        _ => text.to_string(),
    }
}

const HOSPITAL_STATE: &str = "txid text not null unique,
    state text not null default 'reserved' check (state in ('reserved', 'recorded')),";

const HOSPITAL_DECISIONS: &str = r#"
[[operation.record_surgery.confirm]]
sql = "update encounter set state = 'recorded' where txid = :txid"
rows = 1
[[operation.record_surgery.confirm]]
sql = "update surgery set state = 'recorded' where txid = :txid"
rows = 1
[[operation.record_surgery.cancel]]
sql = "delete from encounter where txid = :txid"
rows = 1
[[operation.record_surgery.cancel]]
sql = "delete from surgery where txid = :txid"
rows = 1
"#;

fn hospital_in_reserve(text: &str) -> String {
    let changes =
        [("mode = \"xa\"", "mode = \"reserve\"", 1), ("record_surgery.prepare]]", "record_surgery.reserve]]", 6)];
    replaced(text, &changes) + HOSPITAL_DECISIONS
}

fn insurer_in_xa(text: &str) -> String {
    let (steps, rest) = text.split_once("[[operation.reserve_claim.confirm]]").expect("confirm steps");
    let (_, seed) = rest.split_once("[seed.").expect("a seed");
    let changes = [
        ("mode = \"reserve\"", "mode = \"xa\"", 1),
        ("reserve_claim.reserve]]", "reserve_claim.prepare]]", 4),
        ("set reserved_minor = reserved_minor + :total", "set used_minor = used_minor + :total", 1),
        // A coverage stays locked from vote to decision.
        ("[database]\n", "[database]\nlock_timeout_ms = 10000\nstatement_timeout_ms = 15000\n", 1),
    ];
    format!("{}[seed.{seed}", replaced(steps, &changes))
}

fn replaced(text: &str, changes: &[(&str, &str, usize)]) -> String {
    changes.iter().fold(text.to_string(), |text, (old, new, times)| {
        assert_eq!(text.matches(old).count(), *times, "{old}");
        text.replace(old, new)
    })
}
